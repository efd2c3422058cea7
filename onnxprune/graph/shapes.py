"""Shapes of tensors: inferred, guessed where they are dynamic, and observed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxprune.errors import ModelError, OptionError, ShapeError
from onnxprune.runtime.session import UNOPTIMIZED, Feeds, fed_inputs, open_session, random_feeds, run_batch

DIFFERENT: tuple[Sequence[int], ...] = (range(224, 32 * 1024, 32), range(48, 16 * 1024, 16), range(32, 32 * 1024, 32))
"""Sizes to try for axes without a size: every axis gets another one, a multiple of the usual strides."""
MOST_ELEMENTS = 2**23
"""Elements of an input, at most, in a shape that is tried."""
MOST_RUN, MOST_FOLDED = 2**33, 2**30
"""Elements of a tensor for one sample, and of a constant that a file computes, at most."""
SQUARE = (1, 256, 512, 224, 96, 128, 64, 32, 28, 48, 112, 160, 192, 100, 299, 300, 320, 384, 416, 640, 608, 768, 1024)
"""Sizes to try next: every axis gets the same; then every multiple of 32 up to the largest."""
AUDIO = (16_000, 48_000, 8_000, 44_100, 32_000, 22_050, 24_000, 4_000, 1_600, 480, 400)
"""Numbers of audio samples to try for inputs of rank 1 to 3."""
TOLD_SHAPES = 4
Layout = dict[str, int | None]
"""The axis of samples of each input; None: it has none."""


def check_shapes(header: onnx.ModelProto, given: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse inputs without a rank, and given shapes that are not those of inputs.

    Raises:
        ModelError: an input has no rank.
        OptionError: there is no such input, or its rank or a fixed size differs.
    """
    for value in fed_inputs(header):
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
            raise ModelError(
                "an input has no rank", where=f"input {value.name}", hint="export the model with input shapes"
            )
    dims = {value.name: value.type.tensor_type.shape.dim for value in fed_inputs(header)}
    for name, shape in given.items():
        told = f"--shape {name}={'x'.join(map(str, shape))}"
        if name not in dims:
            raise OptionError(f"{told} names no input", hint=f"inputs are {', '.join(dims)}")
        sizes = [dim.dim_value if dim.dim_value > 0 else "any" for dim in dims[name]]
        if len(shape) != len(sizes) or any(
            want not in ("any", have) for have, want in zip(shape[1:], sizes[1:], strict=True)
        ):
            raise OptionError(
                f"{told} does not fit", why=f"the input is {sizes}", hint="give a size for every axis, samples included"
            )


def candidate_sizes(proto: onnx.ModelProto) -> list[Sequence[int]]:
    """Return sizes to try for the axes of the inputs that have none; further axes get the last size of a list."""
    audio = AUDIO if len(fed_inputs(proto)[0].type.tensor_type.shape.dim) < 4 else ()
    single = dict.fromkeys((*audio[:1], *SQUARE, *audio, *range(32, max(SQUARE), 32)))
    free = max(sum(not dim.dim_value > 0 for dim in v.type.tensor_type.shape.dim) for v in fed_inputs(proto))
    return [*DIFFERENT, *((size,) for size in single if size ** max(1, free - 1) <= MOST_ELEMENTS)]


def input_shapes(
    proto: onnx.ModelProto,
    layout: Layout,
    samples: int,
    *,
    known: Mapping[str, tuple[int, ...]],
    told: Mapping[tuple[str, int], int],
    sizes: Sequence[int],
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the inputs for a number of samples.

    Axes of one name get one size. The name of an axis of samples stands for samples wherever it occurs.

    Args:
        proto: the model, or its header.
        layout: the axis of samples of each input.
        samples: size of these axes where they are dynamic.
        known: shapes of data, for the other axes.
        told: sizes that weights tell, by input and axis; see `onnxprune.graph.input_sizes`.
        sizes: sizes of the other axes, in turn, where nothing is known.
    """
    dims = {value.name: value.type.tensor_type.shape.dim for value in fed_inputs(proto)}
    on = ((name, axis) for name, axis in layout.items() if axis is not None)
    names = {param: samples for name, axis in on if (param := dims[name][axis].dim_param)}
    left = iter(sizes)
    result: dict[str, tuple[int, ...]] = {}
    for name, axes in dims.items():
        shape: list[int] = []
        for axis, dim in enumerate(axes):
            if dim.dim_value > 0:
                size = dim.dim_value
            elif axis == layout[name]:
                size = samples
            elif name in known:
                size = known[name][axis]
            elif dim.dim_param in names:
                size = names[dim.dim_param]
            elif (name, axis) in told:
                size = told[name, axis]
            else:
                size = next(left, sizes[-1])
                if dim.dim_param:
                    names[dim.dim_param] = size
            shape.append(size)
        result[name] = tuple(shape)
    return result


def refuse_without_room(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse shapes of inputs from which a tensor without elements, or of a negative size, follows.

    Shape inference of onnx ends the process where a Slice takes a tensor of a negative size, as a window without room gives it:
    here an operator that nothing is known of stands for each Slice.

    Raises:
        ModelError: the shapes cannot be.
    """
    if not any(node.op_type == "Slice" for node in proto.graph.node):
        return
    cautious = onnx.ModelProto()
    cautious.CopyFrom(proto)
    cautious.opset_import.add(domain="unknown", version=1)
    for node in cautious.graph.node:
        if node.op_type == "Slice":
            node.domain = "unknown"
    wrong = contradiction(cautious, infer_shapes(cautious, shapes).full)
    if wrong:
        raise ModelError("the shape does not fit the model", why=f"on {dict(shapes)}: no room for {wrong}")


def refuse_too_large(shapes: Mapping[str, tuple[int, ...]], samples: int = 1, most: int = MOST_RUN) -> None:
    """Refuse a tensor of more than `most` elements per sample, given the shapes of all tensors for a number of samples.

    Raises:
        ModelError: names the tensor and its size.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    name = max(sizes, key=lambda name: sizes[name], default="")
    if name and sizes[name] > most * samples:
        raise ModelError(
            "a tensor of the model is too large",
            why=f"tensor {name} has {sizes[name] // samples:,} elements, at most {most:,} are computed for a sample",
            hint="export the model with smaller inputs",
        )


def contradiction(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the node whose inferred shapes cannot be; empty where there is none.

    Shape inference believes a literal target shape, whatever the number of elements is.
    """
    for node in proto.graph.node:
        sizes = [shapes.get(name, ()) for name in (*node.output[:1], *node.input[:2])]
        if any(size <= 0 for shape in sizes for size in shape):
            return f"{node.op_type} {node.name}"
        moves = node.op_type in MOVEMENTS and node.input[0] in shapes and node.output[0] in shapes
        if moves and math.prod(sizes[0]) != math.prod(sizes[1]):
            return f"{node.op_type} {node.name}"
        if node.op_type == "Gemm" and all(name in shapes for name in node.input[:2]):
            flipped = {attribute.name: attribute.i for attribute in node.attribute}
            inner = sizes[1][not flipped.get("transA", 0)], sizes[2][bool(flipped.get("transB", 0))]
            if inner[0] != inner[1]:
                return f"Gemm {node.name}"
    return ""


MOVEMENTS = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators whose output holds the elements of the input."""


def no_shape_runs(failures: Sequence[tuple[Mapping[str, tuple[int, ...]], ModelError]]) -> ShapeError:
    """Return the error for a model that runs on no input shape: the first one where only the batch changed."""
    (_, first), tried = failures[0], [shapes for shapes, _ in failures]
    if len({tuple(shape[1:] for shape in shapes.values()) for shapes in tried}) == 1:
        return ShapeError(first.what, where=first.where, why=first.why, hint=first.hint)
    told = [", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) for shapes in tried[:TOLD_SHAPES]]
    more = f"; and {len(tried) - len(told)} more" if len(tried) > len(told) else ""
    name, shape = next(iter(tried[0].items()))
    return ShapeError(
        "no input shape that was tried runs",
        where=first.where,
        why=f"tried {'; '.join(told)}{more}. The first failed {first.why}",
        hint=f"say the shape, for instance --shape {name}={'x'.join(map(str, shape))}, or give --data of that shape",
    )


@dataclass(frozen=True)
class InferredShapes:
    """Result of shape inference by tensor: full shapes, shapes with None for unknown sizes, ONNX element types."""

    full: dict[str, tuple[int, ...]]
    partial: dict[str, list[int | None]]
    types: dict[str, int]


def infer_shapes(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> InferredShapes:
    """Infer shapes without a run, given concrete shapes of inputs; `proto` has no large weights."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    for value in fixed.graph.input:
        if value.name in shapes:
            del value.type.tensor_type.shape.dim[:]
            for size in shapes[value.name]:
                value.type.tensor_type.shape.dim.add(dim_value=size)
    for value in fixed.graph.output:  # drop the shapes that the exporter wrote, and infer them again
        value.type.tensor_type.ClearField("shape")
    try:
        fixed = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    except Exception:
        return InferredShapes(dict(shapes), {}, {})
    partial: dict[str, list[int | None]] = {}
    types: dict[str, int] = {}
    for value in (*fixed.graph.input, *fixed.graph.value_info, *fixed.graph.output):
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            partial[value.name] = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    full = {name: tuple(d for d in dims if d is not None) for name, dims in partial.items() if None not in dims}
    return InferredShapes({**full, **shapes}, partial, types)


def light(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose large weights are inputs: small, and enough for shape inference."""
    result = onnx.ModelProto()
    copy_fields(proto, result, ("graph",))
    copy_fields(proto.graph, result.graph, ("initializer",))
    listed = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if math.prod(tensor.dims) < LARGE:
            result.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            kind, shape = tensor.data_type, list(tensor.dims)
            result.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, kind, shape))
    return result


def copy_fields(source: Any, target: Any, skipped: Collection[str]) -> None:
    """Copy the fields of a protobuf message but some, so that large ones are never copied."""
    for descriptor, value in source.ListFields():
        if descriptor.name in skipped:
            continue
        if hasattr(value, "extend"):
            getattr(target, descriptor.name).extend(value)
        else:
            setattr(target, descriptor.name, value)


LARGE = 1024
"""Elements from which a weight is large."""


def observe_tensors(
    proto: onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...]],
    names: Iterable[str],
    where: str,
    weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> Feeds:
    """Run the model once on seeded inputs of `shapes` and return the named tensors; `weights` as for `open_session`.

    Raises:
        ModelError: the model cannot be loaded or run.
    """
    wanted = list(dict.fromkeys(names))
    extended = onnx.ModelProto()
    extended.CopyFrom(proto)
    present = {value.name for value in extended.graph.output}
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in present)
    opened = open_session(extended, UNOPTIMIZED, where=where, weights=weights)
    return dict(zip(wanted, run_batch(opened, random_feeds(proto, shapes, 0), where=where, names=wanted), strict=True))

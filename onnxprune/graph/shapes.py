"""Shapes of tensors: inferred, guessed where they are dynamic, and observed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from onnxprune.errors import ModelError
from onnxprune.runtime.session import UNOPTIMIZED, Feeds, fed_inputs, open_session, random_feeds, run_batch

if TYPE_CHECKING:
    import onnxruntime as ort

DYNAMIC_SIZES: tuple[Sequence[int], ...] = (
    range(224, 32 * 1024, 32),
    range(48, 16 * 1024, 16),
    range(32, 32 * 1024, 32),
    (1,),
    (256,),
    (512,),
)
"""Sizes to try for dynamic axes other than the batch. A list gives each axis another size, a multiple of the usual
strides; further axes get its last size."""
TOLD_SHAPES = 4


def concrete_shapes(
    proto: onnx.ModelProto,
    batch: int,
    *,
    known: Mapping[str, tuple[int, ...]] | None = None,
    sizes: Sequence[int] = DYNAMIC_SIZES[0],
    states: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Give every dynamic axis of the inputs a size.

    Axes of one name get one size. The name of a dynamic first axis stands for the batch wherever it occurs.

    Args:
        proto: the model, or its header.
        batch: size of a dynamic first axis.
        known: shapes of data, for the other axes.
        sizes: sizes of the other axes, in turn, where there are no data.
        states: whether every dynamic axis of all inputs but the first is the batch.

    Raises:
        ModelError: an input without a rank.
    """
    inputs = fed_inputs(proto)
    first = [value.type.tensor_type.shape.dim[0] for value in inputs if value.type.tensor_type.shape.dim]
    names = {dim.dim_param: batch for dim in first if dim.dim_param}
    left = iter(sizes)
    result: dict[str, tuple[int, ...]] = {}
    for number, value in enumerate(inputs):
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            raise ModelError(
                "an input has no rank", where=f"input {value.name}", hint="export the model with input shapes"
            )
        shape: list[int] = []
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                size = dim.dim_value
            elif axis == 0 or (states and number):
                size = batch
            elif dim.dim_param in names:
                size = names[dim.dim_param]
            else:
                size = known[value.name][axis] if known else next(left, sizes[-1])
                if dim.dim_param:
                    names[dim.dim_param] = size
            shape.append(size)
        result[value.name] = tuple(shape)
    return result


def workable_shapes(opened: ort.InferenceSession, proto: onnx.ModelProto, batch: int) -> dict[str, tuple[int, ...]]:
    """Return input shapes that a model runs on, with `batch` for a dynamic batch axis.

    Raises:
        ModelError: the model runs on none of the shapes that are tried.
    """
    if all(dim.dim_value > 0 for value in fed_inputs(proto) for dim in value.type.tensor_type.shape.dim[1:]):
        return concrete_shapes(proto, batch)
    failures: list[tuple[dict[str, tuple[int, ...]], ModelError]] = []
    for _, shapes in candidate_shapes(proto, (batch,)):
        try:
            run_batch(opened, random_feeds(proto, shapes, 0))
        except ModelError as failure:
            failures.append((shapes, failure))
            continue
        return shapes
    raise no_shape_runs(failures)


def candidate_shapes(
    proto: onnx.ModelProto, batches: Sequence[int], known: Mapping[str, tuple[int, ...]] | None = None
) -> Iterator[tuple[int, dict[str, tuple[int, ...]]]]:
    """Yield (batch, input shapes) to try in turn, each once: every list of `DYNAMIC_SIZES` with every batch.

    In the second half every dynamic axis of all inputs but the first is the batch, as in states of a recurrent network.
    """
    seen: list[dict[str, tuple[int, ...]]] = []
    for states in (False, True) if known is None else (False,):
        for sizes in DYNAMIC_SIZES:
            for batch in batches:
                shapes = concrete_shapes(proto, batch, known=known, sizes=sizes, states=states)
                if shapes not in seen:
                    seen.append(shapes)
                    yield batch, shapes


def no_shape_runs(failures: Sequence[tuple[Mapping[str, tuple[int, ...]], ModelError]]) -> ModelError:
    """Return the error for a model that runs on no input shape: the first one where only the batch changed."""
    (_, first), tried = failures[0], [shapes for shapes, _ in failures]
    if len({tuple(shape[1:] for shape in shapes.values()) for shapes in tried}) == 1:
        return first
    told = [", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) for shapes in tried[:TOLD_SHAPES]]
    more = f"; and {len(tried) - len(told)} more" if len(tried) > len(told) else ""
    return ModelError(
        "no input shape that was tried runs",
        where=first.where,
        why=f"tried {'; '.join(told)}{more}. The first failed {first.why}",
        hint="give arrays of the right shapes with `prune --data`",
    )


def has_dynamic_batch(proto: onnx.ModelProto) -> bool:
    """Tell whether the first axis of every input is dynamic."""
    dims = [value.type.tensor_type.shape.dim for value in fed_inputs(proto)]
    return bool(dims) and all(len(dim) and not dim[0].dim_value > 0 for dim in dims)


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


def observe_tensors(
    proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], names: Iterable[str], where: str
) -> Feeds:
    """Run the model once on seeded inputs of `shapes` and return the named tensors.

    Raises:
        ModelError: the model cannot be loaded or run.
    """
    wanted = list(dict.fromkeys(names))
    extended = onnx.ModelProto()
    extended.CopyFrom(proto)
    present = {value.name for value in extended.graph.output}
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in present)
    opened = open_session(extended, UNOPTIMIZED, where=where)
    return dict(zip(wanted, run_batch(opened, random_feeds(proto, shapes, 0), where=where, names=wanted), strict=True))

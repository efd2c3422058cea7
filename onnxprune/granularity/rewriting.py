"""Turn layers into smaller ones, and zero what goes in the layers as they are: the two must give the same.

Each edit has two sides. `masked` is the dense layer whose dropped taps, blocks or directions are zero; `rewritten` is made of its
weights alone: whatever they are, taps that stay are sliced out, blocks on the diagonal stacked, factors of a matrix of low rank found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune import runtime
from onnxprune.channels.linear import Conv, Linear, Product, linear_layers
from onnxprune.channels.trace import node_labels
from onnxprune.errors import PlanError
from onnxprune.granularity.edits import Depth, Edit, Grouped, Kernel, Merged, Rank, Split
from onnxprune.model import Model, weightless
from onnxprune.normalise import remove_dead
from onnxprune.types import FloatArray, IntArray

Array = np.ndarray[Any, Any]
Bases = Mapping[str, FloatArray]
"""Of layers that lose directions: an orthonormal basis, (groups, outputs, outputs), the most important direction first."""
SPLIT_IS_INPUT = 13
ARGUMENTS_ARE_INPUTS = 10
"""Opset from which Slice takes its bounds as inputs."""
BETWEEN = "__rank"
"""End of the names of what lies between two layers that were one."""
FAR = 2**31 - 1


class RefusalError(Exception):
    """An edit that cannot be made, and why."""


@dataclass(frozen=True)
class Reformed:
    """A model before and after its layers were rewritten.

    Attributes:
        masked: dense, with what goes set to zero.
        model: with smaller layers; equal to `masked`.
        changed: names of the tensors that rewritten layers write: of those that were there before, and of `parts`.
        parts: new tensors that hold some channels of an old one: (name, old name, their numbers).
    """

    masked: Model
    model: Model
    changed: frozenset[str]
    parts: tuple[tuple[str, str, IntArray], ...] = ()


def reform(model: Model, edits: Sequence[Edit], bases: Bases) -> Reformed:
    """Make edits to a model, one to a layer.

    Args:
        model: as loaded, or as other edits have left it.
        edits: which.
        bases: of the layers that lose directions; those that are missing follow from their weights.

    Raises:
        PlanError: an edit that cannot be made.
    """
    masked, result = model.copy(), model.copy()
    numbers = {label: n for n, label in enumerate(node_labels(model.graph))}
    layers = linear_layers(model.graph)
    sizes = runtime.infer_shapes(weightless(model), {}).partial
    changed: set[str] = set()
    parts: list[tuple[str, str, IntArray]] = []
    targets = [result.graph.nodes[numbers[edit.layer]] if edit.layer in numbers else None for edit in edits]
    masks = list(masked.graph.nodes)
    partners = {edit.layer: result.graph.nodes[numbers[edit.into]] for edit in edits if isinstance(edit, Merged)}
    for edit, node in zip(edits, targets, strict=True):
        try:
            if node is None:
                raise RefusalError("there is no such layer")
            n = numbers[edit.layer]
            if isinstance(edit, Depth):
                changed |= _drop_branch(result.graph, node, edit.stays)
                _mask_branch(masked.graph, masks[n], edit.stays)
                continue
            if n not in layers:
                raise RefusalError(f"{node.op} is no layer with a stored float weight")
            if isinstance(edit, Merged):
                second = partners[edit.layer]
                merge_layers(result.graph, node, second)
                changed.add(second.outputs[0].name)
                continue
            matrix = masked_matrix(edit, layers[n], bases.get(edit.layer))
            twin = replace(layers[n], node=masks[n])
            twin.write(matrix, None)
            shape = sizes.get(node.inputs[layers[n].x].name)
            layer = replace(layers[n], node=node)
            if isinstance(edit, Split):
                found = _split(result.graph, layer, edit, matrix, shape)
                parts += found
                changed |= {name for name, _, _ in found}
            else:
                rewrite(result.graph, edit, layer, matrix, shape, bases.get(edit.layer))
            changed.add(masks[n].outputs[0].name)
        except RefusalError as reason:
            raise PlanError(
                f"a layer cannot be given a {edit}",
                where=edit.layer,
                why=str(reason),
                hint="take it out of the plan, or make a new one with `onnxprune plan`",
            ) from None
    for graph in (masked.graph, result.graph):
        graph.toposort()
        remove_dead(graph)
    return Reformed(masked, result, frozenset(changed), tuple(parts))


def masked_matrix(edit: Kernel | Split | Grouped | Rank, layer: Linear, basis: FloatArray | None) -> FloatArray:
    """Return the matrix of a layer, (groups, outputs, features), with what goes set to zero.

    Raises:
        RefusalError: the edit does not fit the layer.
    """
    matrix, _ = layer.effective()
    if isinstance(edit, Rank):
        return project(matrix, layer, edit, basis)
    return np.asarray(np.where(kept_features(edit, layer), matrix, 0.0))


def kept_features(edit: Kernel | Split | Grouped, layer: Linear) -> np.ndarray[Any, Any]:
    """Return which elements of the matrix stay, (groups, outputs, features) or what broadcasts to it.

    Raises:
        RefusalError: the edit does not fit the layer.
    """
    groups, outputs, features = layer.matrix(layer.values).shape
    if isinstance(edit, Split):
        total = groups * outputs
        if sorted(edit.filters) != list(range(total)) or not 0 < edit.count < total:
            raise RefusalError(f"its {total} filters are not each there once, in two parts")
        if (
            not isinstance(layer, Conv)
            or layer.transposed
            or not (groups == 1 or outputs == layer.values.shape[1] == 1)
        ):
            raise RefusalError("it is no convolution of one group, or of one filter for each channel")
        cut = np.zeros(total, dtype=bool)
        cut[list(edit.filters[: edit.count])] = True
        return np.asarray(~cut.reshape(groups, outputs, 1) | kept_features(Kernel(edit.layer, edit.taps), layer))
    if isinstance(edit, Kernel):
        if not isinstance(layer, Conv) or len(edit.taps) != len(layer.kernel):
            raise RefusalError("it has no kernel of so many axes")
        keep = np.ones(1, dtype=bool)
        for (first, step, count), size in zip(edit.taps, layer.kernel, strict=True):
            if min(first, step - 1, count - 1) < 0 or first + step * (count - 1) >= size:
                raise RefusalError(f"taps {first}, {first + step}, … ({count}) are not within {size}")
            axis = np.zeros(size, dtype=bool)
            axis[first : first + step * (count - 1) + 1 : step] = True
            keep = (keep[:, None] & axis).reshape(-1)
        return np.asarray(np.tile(keep, features // keep.size)[None, None])
    taps = features // len(edit.inputs) if edit.inputs else 0
    fits = groups == 1 and len(edit.outputs) == outputs and taps * len(edit.inputs) == features
    if not fits or outputs % edit.groups or len(edit.inputs) % edit.groups:
        raise RefusalError(f"{outputs} filters of {features} features don't fall into {edit.groups} groups")
    if isinstance(layer, Conv) and layer.transposed:
        raise RefusalError("it is a transposed convolution")
    of_input, of_output = (np.empty(len(order), dtype=np.int64) for order in (edit.inputs, edit.outputs))
    for order, found in ((edit.inputs, of_input), (edit.outputs, of_output)):
        if sorted(order) != list(range(len(order))):
            raise RefusalError("an order does not name each channel once")
        found[list(order)] = np.arange(len(order)) // (len(order) // edit.groups)
    return np.asarray(of_output[:, None] == np.repeat(of_input, taps)[None])[None]


def project(matrix: FloatArray, layer: Linear, edit: Rank, basis: FloatArray | None) -> FloatArray:
    """Return a matrix with no more directions than an edit leaves, those of the basis, or where there is none of its own singular vectors."""
    parts = spread(matrix, layer) if edit.form == "spatial" else matrix
    if basis is not None and basis.shape[-2] != parts.shape[-2]:
        raise RefusalError("the directions are those of another layer")
    if not 1 <= edit.rank <= min(parts.shape[-2:]):
        raise RefusalError(f"it has {min(parts.shape[-2:])} directions, {edit.rank} cannot be left")
    if edit.form == "channel":
        left = directions(matrix @ np.swapaxes(matrix, 1, 2)) if basis is None else basis
        left = left[:, :, : edit.rank]
        return np.asarray(left @ (np.swapaxes(left, 1, 2) @ matrix))
    left = directions(parts @ parts.T) if basis is None else basis[0]
    left = left[:, : edit.rank]
    return gather(left @ (left.T @ parts), layer)


def spread(matrix: FloatArray, layer: Linear) -> FloatArray:
    """Lay out a matrix as (outputs x taps of the other axes, inputs x taps of the first axis)."""
    if not isinstance(layer, Conv) or layer.transposed or layer.groups > 1 or len(layer.kernel) < 2:
        raise RefusalError("it is no convolution of one group with two or more spatial axes")
    first = layer.kernel[0]
    parts = matrix[0].reshape(matrix.shape[1], -1, first, int(np.prod(layer.kernel[1:])))
    return np.asarray(parts.transpose(0, 3, 1, 2).reshape(parts.shape[0] * parts.shape[3], -1))


def gather(parts: FloatArray, layer: Conv | Linear) -> FloatArray:
    """Undo `spread`."""
    assert isinstance(layer, Conv)
    first, others = layer.kernel[0], int(np.prod(layer.kernel[1:]))
    outputs = parts.shape[0] // others
    cube = parts.reshape(outputs, others, -1, first).transpose(0, 2, 3, 1)
    return np.asarray(cube.reshape(1, outputs, -1))


def rewrite(
    graph: gs.Graph,
    edit: Kernel | Grouped | Rank,
    layer: Linear,
    matrix: FloatArray,
    shape: Sequence[int | None] | None,
    basis: FloatArray | None = None,
) -> None:
    """Put a smaller layer, or two, in the place of one.

    Args:
        graph: changed in place; new nodes go to the end.
        edit: which.
        layer: as it is; its node is used again for what writes the output.
        matrix: `masked_matrix`.
        shape: of its input, None where a size is dynamic or unknown.
        basis: of the directions that are left, where the matrix was made with one.

    Raises:
        RefusalError: it cannot be done on this layer.
    """
    if isinstance(edit, Kernel):
        assert isinstance(layer, Conv)
        _crop(graph, layer, edit, matrix, shape)
    elif isinstance(edit, Grouped):
        _group(graph, layer, edit, matrix)
    elif edit.form == "spatial":
        _separate(graph, layer, edit.rank, matrix, shape, basis)
    elif isinstance(layer, Conv):
        _thin_conv(graph, layer, edit.rank, matrix, basis)
    else:
        _thin_product(graph, layer, edit.rank, matrix, basis)


# ----------------------------------------------------------------------------------------------------------------- kernel


def explicit_pads(layer: Conv, shape: Sequence[int | None] | None) -> tuple[int, ...]:
    """Return the pads of a convolution as numbers, begins and ends.

    Raises:
        RefusalError: they follow from a size that is not known.
    """
    if not isinstance(layer.pads, str):
        return layer.pads
    if layer.transposed:
        raise RefusalError(f"its padding is {layer.pads}")
    begins, ends = [], []
    for axis, kernel in enumerate(layer.kernel):
        size = None if shape is None or len(shape) != len(layer.kernel) + 2 else shape[axis + 2]
        span, step = (kernel - 1) * layer.dilations[axis] + 1, layer.strides[axis]
        if step == 1:
            missing = span - 1
        elif size is None:
            raise RefusalError(f"its padding is {layer.pads}, which follows from a size that is dynamic")
        else:
            missing = max(0, (-(-size // step) - 1) * step + span - size)
        begins.append(missing // 2 if layer.pads == "SAME_UPPER" else missing - missing // 2)
        ends.append(missing - begins[-1])
    return (*begins, *ends)


def _crop(graph: gs.Graph, layer: Conv, edit: Kernel, matrix: FloatArray, shape: Sequence[int | None] | None) -> None:
    """Keep some taps; pads shrink by what lies outside them, and where they become negative the input is cut."""
    if layer.transposed and (layer.output_shape or isinstance(layer.pads, str)):
        raise RefusalError("its padding follows from the size of the output")
    pads = explicit_pads(layer, shape)
    n = len(layer.kernel)
    weight = layer.unmatrix(matrix)
    begins, ends, dilations = [], [], []
    for axis, (first, step, count) in enumerate(edit.taps):
        dilation, last = layer.dilations[axis], first + step * (count - 1)
        weight = weight[(slice(None),) * (axis + 2) + (slice(first, last + 1, step),)]
        begins.append(pads[axis] - first * dilation)
        ends.append(pads[axis + n] - (layer.kernel[axis] - 1 - last) * dilation)
        dilations.append(dilation * step if count > 1 else 1)
    if layer.transposed and min(begins + ends) < 0:
        raise RefusalError("taps at its edge reach further than its padding")
    node = layer.node
    if min(begins + ends) < 0:
        cut = [axis for axis in range(n) if min(begins[axis], ends[axis]) < 0]
        starts = [max(0, -begins[axis]) for axis in cut]
        stops = [ends[axis] if ends[axis] < 0 else FAR for axis in cut]
        node.inputs[0] = _sliced(graph, node, starts, stops, [axis + 2 for axis in cut])
    node.attrs.pop("auto_pad", None)
    node.attrs["pads"] = [max(0, pad) for pad in begins + ends]
    node.attrs["dilations"] = dilations
    node.attrs["kernel_shape"] = list(weight.shape[2:])
    _put_weight(layer, weight)


def _sliced(graph: gs.Graph, node: gs.Node, starts: list[int], stops: list[int], axes: list[int]) -> gs.Variable:
    x, output = node.inputs[0], gs.Variable(f"{node.outputs[0].name}__cut")
    if (graph.opset or ARGUMENTS_ARE_INPUTS) < ARGUMENTS_ARE_INPUTS:
        attrs = {"starts": starts, "ends": stops, "axes": axes}
        graph.nodes.append(gs.Node("Slice", f"{output.name}__node", attrs, [x], [output]))
        return output
    bounds = [
        gs.Constant(f"{output.name}__{name}", np.array(values, dtype=np.int64))
        for name, values in (("starts", starts), ("ends", stops), ("axes", axes))
    ]
    graph.nodes.append(gs.Node("Slice", f"{output.name}__node", {}, [x, *bounds], [output]))
    return output


def _split(
    graph: gs.Graph, layer: Linear, edit: Split, matrix: FloatArray, shape: Sequence[int | None] | None
) -> list[tuple[str, str, IntArray]]:
    """Put two layers side by side, the first with fewer taps; return what each of them writes of the old output."""
    assert isinstance(layer, Conv)
    second, dtype = layer.node, layer.values.dtype
    y, order = second.outputs[0], np.array(edit.filters)
    halves = order[: edit.count], order[edit.count :]
    weight = layer.unmatrix(matrix)
    biased = len(second.inputs) > 2 and bool(second.inputs[2].name)
    bias = second.inputs[2].values if biased else None
    sorted_already = np.array_equal(order, np.arange(order.size))
    sources = [second.inputs[0]] * 2
    if layer.groups > 1:
        x = (
            second.inputs[0]
            if sorted_already
            else _gathered(graph, second.inputs[0], gs.Variable(f"{y.name}__in_order"), order)
        )
        sources = _halves(graph, x, y.name, [half.size for half in halves])
    first = second.copy([sources[0], second.inputs[1]], [])
    first.name = f"{second.name}__part" if second.name else ""
    graph.nodes.append(first)
    outputs = [gs.Variable(f"{y.name}__part{number}") for number in range(2)]
    for number, (node, half) in enumerate(((first, halves[0]), (second, halves[1]))):
        operands = [
            sources[number],
            gs.Constant(f"{outputs[number].name}__weight", np.ascontiguousarray(weight[half]).astype(dtype)),
        ]
        if bias is not None:
            operands.append(gs.Constant(f"{outputs[number].name}__bias", bias[half]))
        node.inputs, node.outputs = operands, [outputs[number]]
        if layer.groups > 1:
            node.attrs["group"] = int(half.size)
    small = replace(layer, node=first, groups=int(halves[0].size) if layer.groups > 1 else 1)
    _crop(graph, small, Kernel(edit.layer, edit.taps), small.matrix(first.inputs[1].values.astype(np.float64)), shape)
    joined = y if sorted_already else gs.Variable(f"{y.name}__joined")
    graph.nodes.append(gs.Node("Concat", f"{y.name}__join", {"axis": 1}, list(outputs), [joined]))
    if not sorted_already:
        _gathered(graph, joined, y, np.argsort(order))
    return [(output.name, y.name, half) for output, half in zip(outputs, halves, strict=True)]


def _halves(graph: gs.Graph, x: gs.Tensor, name: str, sizes: list[int]) -> list[gs.Variable]:
    outputs = [gs.Variable(f"{name}__half{number}") for number in range(len(sizes))]
    attrs, operands = {"axis": 1}, [x]
    if (graph.opset or SPLIT_IS_INPUT) < SPLIT_IS_INPUT:
        attrs["split"] = sizes  # type: ignore[assignment]
    else:
        operands.append(gs.Constant(f"{name}__sizes", np.array(sizes, dtype=np.int64)))
    graph.nodes.append(gs.Node("Split", f"{name}__halve", attrs, operands, list(outputs)))
    return outputs


# ------------------------------------------------------------------------------------------------------------------- rank


def factors(matrix: FloatArray, rank: int, basis: FloatArray | None = None) -> tuple[FloatArray, FloatArray]:
    """Return (.., outputs, rank) and (.., rank, features), whose product is a matrix of that rank; `basis` spans its columns."""
    if basis is not None:
        left = basis[..., :rank]
        return left, np.swapaxes(left, -1, -2) @ matrix
    turned = np.swapaxes(matrix, -1, -2)
    if matrix.shape[-2] <= matrix.shape[-1]:
        left = directions(matrix @ turned)[..., :rank]
        return left, np.swapaxes(left, -1, -2) @ matrix
    right = directions(turned @ matrix)[..., :rank]
    return matrix @ right, np.swapaxes(right, -1, -2)


def directions(scatter: FloatArray) -> FloatArray:
    """Return the eigenvectors of a symmetric matrix, the largest eigenvalue first, each with its largest element above zero."""
    vectors = np.linalg.eigh(scatter)[1][..., ::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=-2, keepdims=True), axis=-2)
    return np.asarray(vectors * np.where(largest < 0, -1, 1))


def _between(graph: gs.Graph, layer: Linear, weight: Array, attrs: dict[str, Any]) -> gs.Variable:
    """Put a layer without bias before a node, which then takes what it gives."""
    node = layer.node
    output = gs.Variable(f"{node.outputs[0].name}{BETWEEN}")
    operands = list(node.inputs[:2])
    operands[layer.weight] = gs.Constant(f"{output.name}__weight", weight)
    label = f"{node.name}{BETWEEN}" if node.name else ""
    graph.nodes.append(gs.Node(node.op, label, attrs, operands, [output], node.domain))
    node.inputs[layer.x] = output
    return output


def _thin_conv(graph: gs.Graph, layer: Conv, rank: int, matrix: FloatArray, basis: FloatArray | None) -> None:
    left, right = factors(matrix, rank, basis)
    node, dtype = layer.node, layer.values.dtype
    _between(graph, layer, layer.unmatrix(right).astype(dtype), dict(node.attrs))
    n = len(layer.kernel)
    node.op = "Conv"
    node.attrs = {"group": layer.groups, "kernel_shape": [1] * n, "strides": [1] * n, "pads": [0] * 2 * n}
    weight = left.reshape(-1, left.shape[2], *([1] * n)).astype(dtype)
    node.inputs[1] = gs.Constant(f"{node.outputs[0].name}__second_weight", weight)


def _thin_product(graph: gs.Graph, layer: Linear, rank: int, matrix: FloatArray, basis: FloatArray | None) -> None:
    if not isinstance(layer, Product) or layer.node.op not in ("Gemm", "MatMul"):
        raise RefusalError(f"{layer.node.op} is not split")
    node = layer.node
    if node.op == "Gemm" and (layer.weight != 1 or layer.alpha != 1.0 or layer.beta != 1.0):
        raise RefusalError("its weight is the first operand, or it has factors")
    left, right = factors(matrix, rank, basis)
    dtype = layer.values.dtype
    attrs = {key: value for key, value in node.attrs.items() if key in ("transA", "transB")}
    first = layer.unmatrix(right).astype(dtype)
    second = layer.unmatrix(left).astype(dtype)
    _between(graph, layer, first, attrs)
    node.attrs.pop("transA", None)
    node.inputs[layer.weight] = gs.Constant(f"{node.outputs[0].name}__second_weight", second)


def _separate(
    graph: gs.Graph,
    layer: Linear,
    rank: int,
    matrix: FloatArray,
    shape: Sequence[int | None] | None,
    basis: FloatArray | None,
) -> None:
    left, right = factors(spread(matrix, layer), rank, None if basis is None else basis[0])
    assert isinstance(layer, Conv)
    pads, n = explicit_pads(layer, shape), len(layer.kernel)
    node, dtype = layer.node, layer.values.dtype
    kernel = layer.kernel

    def half(first: bool) -> dict[str, Any]:
        def of(values: Sequence[int], other: int) -> list[int]:
            return [value if (axis == 0) == first else other for axis, value in enumerate(values)]

        return {
            "kernel_shape": of(kernel, 1),
            "strides": of(layer.strides, 1),
            "dilations": of(layer.dilations, 1),
            "pads": [*of(pads[:n], 0), *of(pads[n:], 0)],
        }

    thin = right.reshape(rank, -1, kernel[0], *([1] * (n - 1))).astype(dtype)
    _between(graph, layer, thin, half(True))
    node.attrs = half(False)
    outputs = matrix.shape[1]
    wide = left.reshape(outputs, -1, rank).transpose(0, 2, 1).reshape(outputs, rank, 1, *kernel[1:]).astype(dtype)
    node.inputs[1] = gs.Constant(f"{node.outputs[0].name}__second_weight", np.ascontiguousarray(wide))


# ------------------------------------------------------------------------------------------------------------------ group


def _group(graph: gs.Graph, layer: Linear, edit: Grouped, matrix: FloatArray) -> None:
    """Stack the blocks; channels are put in order before and after where they are not."""
    node, groups = layer.node, edit.groups
    inputs, outputs = np.array(edit.inputs), np.array(edit.outputs)
    taps = matrix.shape[2] // inputs.size
    cube = matrix[0].reshape(outputs.size, inputs.size, taps)[outputs]
    each_out, each_in = outputs.size // groups, inputs.size // groups
    blocks = [cube[g * each_out : (g + 1) * each_out, inputs[g * each_in : (g + 1) * each_in]] for g in range(groups)]
    kernel = layer.kernel if isinstance(layer, Conv) else (1,)
    weight = np.concatenate(blocks).reshape(outputs.size, each_in, *kernel)
    if isinstance(layer, Conv):
        node.attrs["group"] = groups
        node.inputs[1] = gs.Constant(f"{node.outputs[0].name}__blocks_weight", weight.astype(layer.values.dtype))
    else:
        _as_conv(graph, layer, weight, groups)
    x, y = node.inputs[0], node.outputs[0]
    if not np.array_equal(inputs, np.arange(inputs.size)):
        node.inputs[0] = _gathered(graph, x, gs.Variable(f"{y.name}__in_order"), inputs)
    if not np.array_equal(outputs, np.arange(outputs.size)):
        if len(node.inputs) > 2 and node.inputs[2].name:
            bias = node.inputs[2]
            node.inputs[2] = gs.Constant(f"{y.name}__blocks_bias", bias.values.reshape(-1)[outputs])
        before = gs.Variable(f"{y.name}__blocks")
        node.outputs = [before]
        _gathered(graph, before, y, np.argsort(outputs))


def _gathered(graph: gs.Graph, x: gs.Tensor, output: gs.Variable, order: Array) -> gs.Variable:
    index = gs.Constant(f"{output.name}__order", order.astype(np.int64))
    graph.nodes.append(gs.Node("Gather", f"{output.name}__node", {"axis": 1}, [x, index], [output]))
    return output


def _as_conv(graph: gs.Graph, layer: Linear, weight: FloatArray, groups: int) -> None:
    """Make a Gemm of (samples, features) a convolution of one tap, which has groups."""
    node = layer.node
    plain = node.op == "Gemm" and layer.weight == 1 and not node.attrs.get("transA", 0)
    if not plain or layer.alpha != 1.0 or layer.beta != 1.0:
        raise RefusalError(f"{node.op} does not fall into groups here")
    x, y = node.inputs[0], node.outputs[0]
    raised, flat = gs.Variable(f"{y.name}__raised"), gs.Variable(f"{y.name}__flat")
    for label, shape, source, output in (("up", [0, -1, 1], x, raised), ("down", [0, -1], flat, y)):
        target = gs.Constant(f"{y.name}__{label}", np.array(shape, dtype=np.int64))
        graph.nodes.append(gs.Node("Reshape", f"{y.name}__{label}__node", {}, [source, target], [output]))
    dtype = layer.values.dtype
    operands = [raised, gs.Constant(f"{y.name}__blocks_weight", weight.astype(dtype))]
    if len(node.inputs) > 2 and node.inputs[2].name:
        operands.append(gs.Constant(f"{y.name}__blocks_bias", layer.effective()[1].reshape(-1).astype(dtype)))
    node.op, node.attrs = "Conv", {"group": groups, "kernel_shape": [1]}
    node.inputs, node.outputs = operands, [flat]


# ------------------------------------------------------------------------------------------------------------------ depth


def _operands(graph: gs.Graph, node: gs.Node, stays: int) -> tuple[gs.Tensor, int]:
    """Return what stays of a sum, and the input that goes."""
    if node.op != "Add" or stays not in (0, 1) or any(hasattr(t, "values") for t in node.inputs):
        raise RefusalError("it is no sum of two activations")
    if any(node.outputs[0] is t for t in graph.outputs):
        raise RefusalError("the sum is an output of the model")
    return node.inputs[stays], 1 - stays


def _drop_branch(graph: gs.Graph, node: gs.Node, stays: int) -> set[str]:
    """Let all that takes a sum take one operand; return the names of what is computed from it next."""
    kept, _ = _operands(graph, node, stays)
    total = node.outputs[0]
    changed: set[str] = set()
    for reader in list(total.outputs):
        changed |= {t.name for t in reader.outputs}
        for i, tensor in enumerate(reader.inputs):
            if tensor is total:
                reader.inputs[i] = kept
    node.inputs.clear()
    node.outputs.clear()
    graph.nodes = [other for other in graph.nodes if other.outputs]
    return changed


def _mask_branch(graph: gs.Graph, node: gs.Node, stays: int) -> None:
    """Multiply what goes by zero."""
    _, goes = _operands(graph, node, stays)
    branch = node.inputs[goes]
    dtype = next(
        (
            t.values.dtype
            for other in graph.nodes
            for t in other.inputs
            if hasattr(t, "values") and t.values.dtype.kind == "f"
        ),
        np.dtype(np.float32),
    )
    zero = gs.Variable(f"{node.outputs[0].name}__nothing")
    operands = [branch, gs.Constant(f"{zero.name}__factor", np.zeros((), dtype=dtype))]
    graph.nodes.append(gs.Node("Mul", f"{zero.name}__node", {}, operands, [zero]))
    node.inputs[goes] = zero


def merge_layers(graph: gs.Graph, first: gs.Node, second: gs.Node) -> None:
    """Make two convolutions, one of them of a single tap, or two Gemms, one layer; it takes the place of the second.

    Raises:
        RefusalError: that would not be exact.
    """
    layers = {id(layer.node): layer for layer in linear_layers(graph).values()}
    a, b = layers.get(id(first)), layers.get(id(second))
    middle = first.outputs[0]
    if a is None or b is None or len(middle.outputs) != 1 or any(middle is t for t in graph.outputs):
        raise RefusalError("something else takes what lies between them")
    if second.inputs[b.x] is not middle:
        raise RefusalError("they do not follow each other")
    outer, outer_bias = b.effective()
    inner, inner_bias = a.effective()
    if isinstance(a, Conv) and isinstance(b, Conv):
        attrs, matrix, bias = _composed(a, b, inner[0], inner_bias[0], outer[0])
        kernel = attrs["kernel_shape"]
        weight = matrix.reshape(matrix.shape[0], -1, *kernel)
    elif first.op == second.op == "Gemm" and a.weight == b.weight == 1 and not second.attrs.get("transA", 0):
        attrs = {key: value for key, value in first.attrs.items() if key == "transA"} | {"transB": 1}
        weight, bias = outer[0] @ inner[0], outer[0] @ inner_bias[0]
    else:
        raise RefusalError(f"{first.op} and {second.op} are not merged")
    dtype = b.values.dtype
    bias = bias + outer_bias[0]
    x = first.inputs[a.x]
    name = second.outputs[0].name
    first.inputs.clear()
    first.outputs.clear()
    second.attrs = attrs
    second.inputs = [
        x,
        gs.Constant(f"{name}__merged_weight", np.ascontiguousarray(weight).astype(dtype)),
        gs.Constant(f"{name}__merged_bias", bias.astype(dtype)),
    ]
    graph.nodes = [node for node in graph.nodes if node.outputs]


def _composed(
    a: Conv, b: Conv, inner: FloatArray, inner_bias: FloatArray, outer: FloatArray
) -> tuple[dict[str, Any], FloatArray, FloatArray]:
    if a.groups > 1 or b.groups > 1 or a.transposed or b.transposed:
        raise RefusalError("one of them has groups, or is transposed")
    n = len(a.kernel)
    plain_b = set(b.kernel) == {1} and not isinstance(b.pads, str) and not any(b.pads)
    if plain_b and not isinstance(a.pads, str):
        attrs = {
            "kernel_shape": list(a.kernel),
            "strides": [s * t for s, t in zip(a.strides, b.strides, strict=True)],
            "dilations": list(a.dilations),
            "pads": list(a.pads),
        }
        return attrs, outer @ inner, outer @ inner_bias
    pads = () if isinstance(b.pads, str) else b.pads
    plain_a = set(a.kernel) == {1} and set(a.strides) == {1} and not isinstance(a.pads, str) and not any(a.pads)
    if not plain_a or isinstance(b.pads, str) or (any(pads) and inner_bias.any()):
        raise RefusalError("what lies between them is padded")
    cube = outer.reshape(outer.shape[0], inner.shape[0], -1)  # (outputs, middle, taps)
    matrix = np.einsum("omt,mi->oit", cube, inner).reshape(outer.shape[0], -1)
    bias = np.einsum("omt,m->o", cube, inner_bias)
    attrs = {
        "kernel_shape": list(b.kernel),
        "strides": list(b.strides),
        "dilations": list(b.dilations),
        "pads": list(pads),
    }
    assert len(b.kernel) == n
    return attrs, matrix, bias


def _put_weight(layer: Linear, weight: Array) -> None:
    value = np.ascontiguousarray(weight / layer.alpha).astype(layer.values.dtype)
    layer.node.inputs[layer.weight] = gs.Constant(f"{layer.node.outputs[0].name}__taps", value)

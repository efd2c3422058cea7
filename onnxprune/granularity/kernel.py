"""The spatial block: taps go, of all filters or of some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.granularity.edits import Kernel, Split
from onnxprune.granularity.group import gathered
from onnxprune.granularity.refusal import RefusalError
from onnxprune.graph.linear import Conv, Linear
from onnxprune.types import FloatArray, IntArray

Array = np.ndarray[Any, Any]
SPLIT_IS_INPUT = 13
ARGUMENTS_ARE_INPUTS = 10
"""Opset from which Slice takes its bounds as inputs."""
FAR = 2**31 - 1


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


def crop(graph: gs.Graph, layer: Conv, edit: Kernel, matrix: FloatArray, shape: Sequence[int | None] | None) -> None:
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
    for axis, (low, high) in enumerate(map(sorted, zip(begins, ends, strict=True))):
        size = None if shape is None or len(shape) != n + 2 else shape[axis + 2]
        if not layer.transposed and low < 0 < high and (size is None or size + low <= 0):
            raise RefusalError("the taps that stay may see nothing but its padding")
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


def split(
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
            else gathered(graph, second.inputs[0], gs.Variable(f"{y.name}__in_order"), order)
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
    crop(graph, small, Kernel(edit.layer, edit.taps), small.matrix(first.inputs[1].values.astype(np.float64)), shape)
    joined = y if sorted_already else gs.Variable(f"{y.name}__joined")
    graph.nodes.append(gs.Node("Concat", f"{y.name}__join", {"axis": 1}, list(outputs), [joined]))
    if not sorted_already:
        gathered(graph, joined, y, np.argsort(order))
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


def _put_weight(layer: Linear, weight: Array) -> None:
    value = np.ascontiguousarray(weight / layer.alpha).astype(layer.values.dtype)
    layer.node.inputs[layer.weight] = gs.Constant(f"{layer.node.outputs[0].name}__taps", value)

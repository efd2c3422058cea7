"""The channel block: filters read one block of channels each."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.granularity.edits import Grouped
from onnxprune.granularity.refusal import RefusalError
from onnxprune.graph.linear import Conv, Linear
from onnxprune.types import FloatArray

Array = np.ndarray[Any, Any]


def group(graph: gs.Graph, layer: Linear, edit: Grouped, matrix: FloatArray) -> None:
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
        node.inputs[0] = gathered(graph, x, gs.Variable(f"{y.name}__in_order"), inputs)
    if not np.array_equal(outputs, np.arange(outputs.size)):
        if len(node.inputs) > 2 and node.inputs[2].name:
            bias = node.inputs[2]
            node.inputs[2] = gs.Constant(f"{y.name}__blocks_bias", bias.values.reshape(-1)[outputs])
        before = gs.Variable(f"{y.name}__blocks")
        node.outputs = [before]
        gathered(graph, before, y, np.argsort(outputs))


def gathered(graph: gs.Graph, x: gs.Tensor, output: gs.Variable, order: Array) -> gs.Variable:
    """Put the channels of a tensor into an order, by a Gather at the end of the graph."""
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

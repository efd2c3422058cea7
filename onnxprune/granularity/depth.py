"""Whole branches go, and layers with nothing between them become one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.granularity.refusal import RefusalError
from onnxprune.graph.linear import Conv, Linear
from onnxprune.types import FloatArray


def _operands(graph: gs.Graph, node: gs.Node, stays: int) -> tuple[gs.Tensor, int]:
    """Return what stays of a sum, and the input that goes."""
    if node.op != "Add" or stays not in (0, 1) or any(hasattr(t, "values") for t in node.inputs):
        raise RefusalError("it is no sum of two activations")
    if any(node.outputs[0] is t for t in graph.outputs):
        raise RefusalError("the sum is an output of the model")
    return node.inputs[stays], 1 - stays


def drop_branch(graph: gs.Graph, node: gs.Node, stays: int) -> set[str]:
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


def mask_branch(graph: gs.Graph, node: gs.Node, stays: int) -> None:
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


def merge_layers(graph: gs.Graph, first: Linear, second: Linear) -> None:
    """Make two layers one; it takes the place of the second.

    Raises:
        RefusalError: that would not be exact.
    """
    attrs, weight, bias = merged(graph, first, second)
    name, dtype = second.node.outputs[0].name, second.values.dtype
    x = first.node.inputs[first.x]
    first.node.inputs.clear()
    first.node.outputs.clear()
    second.node.attrs = attrs
    second.node.inputs = [
        x,
        gs.Constant(f"{name}__merged_weight", np.ascontiguousarray(weight).astype(dtype)),
        gs.Constant(f"{name}__merged_bias", bias.astype(dtype)),
    ]
    graph.nodes = [node for node in graph.nodes if node.outputs]


def merged(graph: gs.Graph, a: Linear, b: Linear) -> tuple[dict[str, Any], FloatArray, FloatArray]:
    """Return attributes, weight and bias of the layer that two convolutions, one of them of a single tap, or two Gemms come to.

    Raises:
        RefusalError: there is no such layer, or something else takes what lies between.
    """
    middle = a.node.outputs[0]
    if len(middle.outputs) != 1 or any(middle is t for t in graph.outputs):
        raise RefusalError("something else takes what lies between them")
    if b.node.inputs[b.x] is not middle:
        raise RefusalError("they do not follow each other")
    outer, outer_bias = b.effective()
    inner, inner_bias = a.effective()
    if isinstance(a, Conv) and isinstance(b, Conv):
        attrs, matrix, bias = _composed(a, b, inner[0], inner_bias[0], outer[0])
        weight = matrix.reshape(matrix.shape[0], -1, *attrs["kernel_shape"])
    elif a.node.op == b.node.op == "Gemm" and a.weight == b.weight == 1 and not b.node.attrs.get("transA", 0):
        attrs = {key: value for key, value in a.node.attrs.items() if key == "transA"} | {"transB": 1}
        weight, bias = outer[0] @ inner[0], outer[0] @ inner_bias[0]
    else:
        raise RefusalError(f"{a.node.op} and {b.node.op} are not merged")
    return attrs, weight, bias + outer_bias[0]


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

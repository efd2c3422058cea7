"""View the node of an operator as a matrix: a `Linear`.

A function here returns None for a node that is not linear in a single activation, or whose weight or bias is not a
stored constant in float16, float32 or float64. Dequantized weights are not stored constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.graph import qdq
from onnxprune.graph.linear import Conv, Linear, Norm, Product, is_there


def conv(node: gs.Node) -> Linear | None:
    """View a Conv or ConvTranspose."""
    if not _is_weighted(node, 1) or not _is_writable(node, 2):
        return None
    attrs = node.attrs
    kernel = tuple(node.inputs[1].shape[2:])
    ones, zeros = (1,) * len(kernel), (0,) * len(kernel)
    auto = attrs.get("auto_pad") or "NOTSET"
    return Conv(
        node,
        x=0,
        weight=1,
        bias=2,
        groups=int(attrs.get("group", 1)),
        kernel=kernel,
        strides=tuple(attrs.get("strides") or ones),
        dilations=tuple(attrs.get("dilations") or ones),
        pads=auto if auto.startswith("SAME") else tuple(attrs.get("pads") or zeros * 2),
        transposed=node.op == "ConvTranspose",
        output_padding=tuple(attrs.get("output_padding") or zeros),
        output_shape=tuple(attrs.get("output_shape") or ()),
    )


def gemm(node: gs.Node) -> Linear | None:
    """View a Gemm with one constant matrix, on either side."""
    side = next((i for i in (1, 0) if _is_weighted(node, i)), None)
    alpha, beta = (float(node.attrs.get(name, 1.0)) for name in ("alpha", "beta"))
    if side is None or alpha == 0:
        return None
    summed = [1 - bool(node.attrs.get("transA", 0)), int(bool(node.attrs.get("transB", 0)))]
    axis = side - 2  # the second operand gives the last axis of the output
    outputs = node.inputs[side].shape[1 - summed[side]]
    writable = beta != 0 and _is_writable(node, 2)
    if beta != 0 and is_there(node, 2) and not (writable and _is_vector(node.inputs[2].shape, axis, outputs)):
        return None
    return Product(
        node,
        x=1 - side,
        weight=side,
        bias=2 if writable else None,
        alpha=alpha,
        beta=beta,
        bias_shape=(-1,) if side else (-1, 1),
        input_axis=summed[1 - side],
        channel_axis=axis,
        reads=summed[side],
    )


def matmul(node: gs.Node) -> Linear | None:
    """View a MatMul with one constant matrix, on either side; the bias is the constant of an Add behind it."""
    side = next((i for i in (1, 0) if _is_weighted(node, i)), None)
    if side is None or len(node.inputs[side].shape) < 2 or math.prod(node.inputs[side].shape[:-2]) != 1:
        return None
    axis = -1 if side else -2
    if axis == -2 and len(node.inputs[1].shape or (1, 1)) == 1:  # only inputs of the model have a known rank
        return None
    adds = _added(node, axis, outputs=node.inputs[side].shape[axis])
    return Product(node, 1 - side, side, None, input_axis=axis, channel_axis=axis, reads=1 - side, adds=adds)


def einsum(node: gs.Node) -> Linear | None:
    """View an Einsum that replaces one label of the activation by another, such as bik,kj->bij."""
    side = next((i for i in (1, 0) if len(node.inputs) == 2 and _is_weighted(node, i)), None)
    equation = "".join(node.attrs["equation"].split()).replace("...", ".")
    if side is None or "->" not in equation:
        return None
    terms, y = equation.split("->")
    w, x = terms.split(",")[side], terms.split(",")[1 - side]
    read, written = set(w) - set(y), set(w) & set(y)
    if len(w) != 2 or "." in w or not len(read) == len(written) == 1:
        return None
    r, o = read.pop(), written.pop()
    rest = x.replace(r, "", 1)
    if r not in x or rest != y.replace(o, "", 1):  # positions in another order, or more than two labels differ
        return None

    def axis(label: str, of: str) -> int:
        at = of.index(label)
        return at if "." in of[at:] else at - len(of)

    output = axis(o, y)
    adds = _added(node, output, outputs=node.inputs[side].shape[w.index(o)]) if output < 0 else None
    return Product(node, 1 - side, side, None, input_axis=axis(r, x), channel_axis=output, reads=w.index(r), adds=adds)


def norm(node: gs.Node) -> Linear | None:
    """View a BatchNormalization in inference."""
    odd = node.attrs.get("training_mode", 0) or node.attrs.get("spatial", 1) == 0
    if odd or not all(_is_stored(node, i) for i in range(1, 5)):
        return None
    return Norm(node, x=0, weight=1, bias=2, groups=node.inputs[1].shape[0])


def _added(node: gs.Node, axis: int, outputs: int) -> tuple[gs.Node, int] | None:
    """Return the Add of a constant vector along `axis` that alone reads a node, and the input of the vector."""
    users = node.outputs[0].outputs
    if len(users) != 1 or users[0].op != "Add" or users[0].domain not in qdq.STANDARD:
        return None
    for i in (0, 1):
        if _is_stored(users[0], i) and _is_vector(users[0].inputs[i].shape, axis, outputs):
            return users[0], i
    return None


def _is_stored(node: gs.Node, i: int) -> bool:
    """Tell whether input i is a constant of a numpy float type; bfloat16 is not one."""
    tensor = node.inputs[i] if is_there(node, i) else None
    return isinstance(tensor, gs.Constant) and isinstance(tensor.dtype, np.dtype) and tensor.dtype.kind == "f"


def _is_weighted(node: gs.Node, i: int) -> bool:
    """Tell whether input i of the first two is a stored weight, and the other one not a constant."""
    return _is_stored(node, i) and not isinstance(node.inputs[1 - i], gs.Constant)


def _is_writable(node: gs.Node, i: int) -> bool:
    """Tell whether a bias can be written to input i: absent, or stored."""
    return not is_there(node, i) or _is_stored(node, i)


def _is_vector(shape: Sequence[int], axis: int, size: int) -> bool:
    """Tell whether a constant holds `size` values along a (negative) axis, and no others."""
    return len(shape) >= -axis and shape[axis] == size == math.prod(shape)

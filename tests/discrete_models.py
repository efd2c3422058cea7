"""Small networks with a discrete operator at their end or in their middle, one function each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from graphs import Builder
from onnx import TensorProto, helper

POSITIONS = 64
Head = Callable[[Builder, str], list[str]]


def rows(b: Builder, x: str, width: int, *, logits: bool = False) -> str:
    """Two convolutions, and their output as (batch, positions, width)."""
    hidden = b.node("Tanh", [b.conv(x, 10, 3)])
    flat = b.reshape(b.conv(hidden, width), (0, width, -1), (width, POSITIONS))
    turned = b.node("Transpose", [flat], (POSITIONS, width), perm=[0, 2, 1])
    return turned if logits else b.node("Sigmoid", [turned])


def topk(b: Builder, x: str) -> list[str]:
    """The best rows, in their order, as NMS-free detectors give them; most scores are almost 0."""
    scores, boxes = rows(b, x, 3, logits=True), rows(b, x, 4, logits=True)
    scores = b.node("Sigmoid", [b.node("Sub", [scores, b.const(np.float32(14))])])
    best = b.node("ReduceMax", [scores], (POSITIONS,), axes=[-1], keepdims=0)
    _, index = b.nodes_out("TopK", [best, b.ints(40)], [(40,), (40,)])
    wide = b.node("Tile", [b.node("Unsqueeze", [index, b.ints(-1)], (40, 1)), b.ints(1, 1, 4)], (40, 4))
    picked = b.node("GatherElements", [boxes, wide], (40, 4), axis=1)
    return [b.node("Concat", [picked, b.node("Unsqueeze", [best, b.ints(-1)], (40, 1))][:1], (40, 4), axis=-1)]


def argmax(b: Builder, x: str) -> list[str]:
    """A map of classes."""
    return [b.node("ArgMax", [b.conv(b.node("Tanh", [b.conv(x, 12, 3)]), 5)], axis=1)]


def suppressed(b: Builder, x: str) -> list[str]:
    """Boxes gathered by NonMaxSuppression, whose number depends on the data."""
    boxes, scores = rows(b, x, 4), b.node("Transpose", [rows(b, x, 2)], (2, POSITIONS), perm=[0, 2, 1])
    limits = [b.ints(20), b.const(np.float32([0.3])), b.const(np.float32([0.5]))]
    chosen = b.node("NonMaxSuppression", [boxes, scores, *limits], ())
    where = b.node("Gather", [chosen, b.ints(0, 2)], (), axis=1)
    return [b.node("GatherND", [boxes, where], ()), chosen]


def passing(b: Builder, x: str) -> list[str]:
    """The elements above a threshold."""
    values = rows(b, x, 3)
    above = b.node("Greater", [values, b.const(np.float32(0.5))])
    index = b.node("Transpose", [b.node("NonZero", [above], ())], (), perm=[1, 0])
    return [b.node("GatherND", [values, index], ())]


def rounded(b: Builder, x: str) -> list[str]:
    """Integers from continuous values."""
    return [b.node("Round", [b.node("Mul", [rows(b, x, 3, logits=True), b.const(np.float32(50))])])]


def gated(b: Builder, x: str) -> list[str]:
    """Elements that a comparison of other elements switches off."""
    values, other = rows(b, x, 3, logits=True), rows(b, x, 3, logits=True)
    return [b.node("Where", [b.node("Less", [values, other]), values, b.const(np.float32(0))], b.shapes[values])]


def headed(b: Builder, x: str) -> list[str]:
    """A network behind the rows that TopK selects, with channels of its own."""
    scores, features = rows(b, x, 1), rows(b, x, 6, logits=True)
    flat = b.reshape(scores, (0, -1), (POSITIONS,))
    _, index = b.nodes_out("TopK", [flat, b.ints(8)], [(8,), (8,)])
    wide = b.node("Tile", [b.node("Unsqueeze", [index, b.ints(-1)], (8, 1)), b.ints(1, 1, 6)], (8, 6))
    picked = b.node("GatherElements", [features, wide], (8, 6), axis=1)
    hidden = b.node("Tanh", [b.node("MatMul", [picked, b.normal(6, 12, scale=0.4)], (8, 12))])
    return [b.node("MatMul", [hidden, b.normal(12, 2, scale=0.3)], (8, 2))]


def aligned(b: Builder, x: str) -> list[str]:
    """RoiAlign of a prunable feature map at computed boxes, and a head behind it."""
    first = b.node("Gather", [rows(b, x, 4), b.const(np.int64(0))], (), axis=0)
    parts = [b.node("Slice", [first, *(b.ints(n) for n in (i, i + 2, 1))], (POSITIONS, 2)) for i in (0, 2)]
    corners = [b.node("Sigmoid", [part]) for part in parts]  # boxes beside the map would show nothing of it
    far = b.node("Add", [corners[0], b.node("Mul", [corners[1], b.const(np.float32(6))])])
    boxes = b.node("Concat", [corners[0], far], (), axis=1)
    features = b.node("LeakyRelu", [b.conv(x, 8, 3)])
    zeros = b.const(np.zeros(POSITIONS, np.int64))
    regions = b.node("RoiAlign", [features, boxes, zeros], (8, 2, 2), output_height=2, output_width=2)
    return [b.gemm(b.flatten(b.node("Tanh", [b.conv(regions, 6)])), 3)]


def saturated(b: Builder, x: str) -> list[str]:
    """A map that is 0 almost everywhere."""
    shifted = b.node("Sub", [rows(b, x, 2, logits=True), b.const(np.float32(16))])
    return [b.node("Sigmoid", [shifted]), b.node("Softmax", [b.node("Mul", [shifted, b.const(np.float32(9))])])]


HEADS: dict[str, Head] = {
    head.__name__: head
    for head in (topk, argmax, suppressed, passing, rounded, gated, headed, aligned, saturated)
}  # fmt: skip


def model(head: str, seed: int, opset: int = 17) -> onnx.ModelProto:
    """Return a network with a prunable trunk and a head."""
    b = Builder((3, 8, 8), opset=opset, seed=seed)
    x = b.node("LeakyRelu", [b.conv("x", 8, 3)])
    x = b.node("LeakyRelu", [b.batchnorm(b.conv(x, 9, 3))])
    outputs = HEADS[head](b, x)
    proto = b.build(*outputs)
    del proto.graph.output[:]
    for name in outputs:
        op = next(node.op_type for node in proto.graph.node if name in node.output)
        kind = TensorProto.INT64 if op in ("ArgMax", "NonMaxSuppression") else TensorProto.FLOAT
        proto.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return proto

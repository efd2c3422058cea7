"""Write a sum that is divided by the number of its terms as the mean that it is.

Exporters of Flax and JAX spell the statistics of a normalization as ReduceSum times 1/n. Without its deleted channels such
a sum is exact, but the constant 1/n is not the mean over the channels that are left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.graph.nodes import integers_argument
from onnxprune.graph.normalize import remove_dead
from onnxprune.graph.order import sort
from onnxprune.graph.qdq import STANDARD

SUMS = ("ReduceSum", "ReduceSumSquare", "ReduceL2")
MOST_ERROR = 1e-6
"""Largest relative difference between the constant and 1/n. In float16 the rounded 1/n of most n is further away."""


def has_scaled_sums(graph: gs.Graph) -> bool:
    """Tell whether a sum is multiplied with, or divided by, a constant number."""
    return any(_scaled(node) is not None for node in graph.nodes)


def write_means(graph: gs.Graph, known: Mapping[str, Sequence[int | None]], opset: int) -> None:
    """Replace each sum times 1 / number of terms by ReduceMean, in place; a norm of n terms over sqrt(n) by the root of one.

    `known` holds the shape of each tensor, None where a size is not known.
    """
    nodes: list[gs.Node] = []
    for node in graph.nodes:
        found = _scaled(node)
        if found is None:
            continue
        total, factor = found
        axes = _axes(total)
        shape = known.get(total.inputs[0].name)
        if shape is None or not axes or any(shape[axis] is None for axis in axes):
            continue
        terms = math.prod(shape[axis] or 0 for axis in axes) ** (0.5 if total.op == "ReduceL2" else 1.0)
        if abs(factor * terms - 1) > MOST_ERROR:
            continue
        nodes += _mean(node, total, [axis % len(shape) for axis in axes], opset)
    if nodes:
        graph.nodes.extend(nodes)
        sort(graph)
        remove_dead(graph)


def _scaled(node: gs.Node) -> tuple[gs.Node, float] | None:
    """Return the sum that a node scales by a constant, and the factor."""
    if node.op not in ("Mul", "Div") or node.domain not in STANDARD:
        return None
    for i in (0, 1) if node.op == "Mul" else (0,):
        total, scale = next(iter(node.inputs[i].inputs), None), node.inputs[1 - i]
        if total is None or total.op not in SUMS or not isinstance(scale, gs.Constant) or math.prod(scale.shape) != 1:
            continue
        value = float(np.asarray(scale.values).reshape(-1)[0])
        if value > 0:
            return total, value if node.op == "Mul" else 1 / value
    return None


def _axes(total: gs.Node) -> list[int] | None:
    """Return the axes of a reduction where they are constant; None for all axes."""
    if len(total.inputs) > 1 and total.inputs[1].name:
        tensor = total.inputs[1]
        return [int(axis) for axis in tensor.values] if isinstance(tensor, gs.Constant) else None
    return [int(axis) for axis in total.attrs.get("axes") or []] or None


def _mean(node: gs.Node, total: gs.Node, axes: list[int], opset: int) -> list[gs.Node]:
    """Return nodes that write the output of a scaled sum as a mean, of squares where the sum is one of squares."""
    name, operand, new = node.outputs[0].name, total.inputs[0], []
    if total.op != "ReduceSum":
        square = gs.Variable(f"{name}__square")
        new.append(gs.Node("Mul", f"{name}__square_node", {}, [operand, operand], [square]))
        operand = square
    more, attrs = integers_argument("ReduceMean", "axes", axes, opset, f"{name}__axes")
    attrs["keepdims"] = total.attrs.get("keepdims", 1)
    output = node.outputs[0]
    node.outputs.clear()
    mean = gs.Variable(f"{name}__mean") if total.op == "ReduceL2" else output
    new.append(gs.Node("ReduceMean", node.name or f"{name}__mean_node", attrs, [operand, *more], [mean]))
    if total.op == "ReduceL2":
        new.append(gs.Node("Sqrt", f"{name}__root", {}, [mean], [output]))
    return new

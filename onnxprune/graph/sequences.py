"""Replace sequences of tensors by the tensors, where the length and each position are known before a run.

Exporters write a chunk as SplitToSequence and SequenceAt; Split says the same of tensors alone. What cannot be replaced
keeps its nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_graphsurgeon as gs

from onnxprune.graph.nodes import integers_argument
from onnxprune.graph.normalize import remove_dead
from onnxprune.graph.order import sort
from onnxprune.graph.qdq import STANDARD

SOURCES = ("SplitToSequence", "SequenceConstruct", "SequenceEmpty")
Shapes = Mapping[str, Sequence[int | None]]


def unpack_sequences(graph: gs.Graph, shapes: Callable[[], Shapes], opset: int) -> bool:
    """Replace the readers of sequences whose elements are known, in place; return whether there were any.

    Args:
        graph: in topological order, with constants folded.
        shapes: returns the shape of each tensor, None where a size is not known.
        opset: of the standard operators.
    """
    if not any(node.op in SOURCES and node.domain in STANDARD for node in graph.nodes):
        return False
    known = shapes()
    elements: dict[int, list[gs.Tensor]] = {}  # by the identity of a sequence
    nodes = _Nodes(opset)
    placed: list[gs.Node] = []
    for node in graph.nodes:
        start = len(nodes.new)
        if node.domain in STANDARD and node.outputs:
            _step(node, elements, known, nodes)
        placed += [*nodes.new[start:], node]
    if nodes.replaced:
        graph.nodes = placed
        sort(graph)
        remove_dead(graph)
    return nodes.replaced


def _step(node: gs.Node, elements: dict[int, list[gs.Tensor]], known: Shapes, nodes: _Nodes) -> None:
    """Note the elements of a sequence that a node makes, or replace a node that reads a sequence."""
    output = node.outputs[0]
    parts = elements.get(id(node.inputs[0])) if node.inputs else None
    position = _position(node, {"SequenceAt": 1, "SequenceErase": 1, "SequenceInsert": 2}.get(node.op, 0))
    if node.op == "SequenceEmpty":
        elements[id(output)] = []
    elif node.op == "SequenceConstruct":
        elements[id(output)] = list(node.inputs)
    elif node.op == "SplitToSequence":
        sizes = _sizes(node, known)
        if sizes is not None:
            elements[id(output)] = nodes.split(node, sizes)
    elif parts is None or position is None:
        return
    elif node.op == "SequenceInsert":
        elements[id(output)] = [
            *parts[: position % (len(parts) + 1)],
            node.inputs[1],
            *parts[position % (len(parts) + 1) :],
        ]
    elif node.op == "SequenceErase":
        elements[id(output)] = [part for i, part in enumerate(parts) if i != position % len(parts)]
    elif node.op == "SequenceAt":
        nodes.replace(node, "Identity", [parts[position]])
    elif node.op == "SequenceLength":
        nodes.replace(node, "Constant", [], value_int=len(parts))
    elif node.op == "ConcatFromSequence" and parts:
        axis = int(node.attrs["axis"])
        if node.attrs.get("new_axis", 0):
            parts = [nodes.on_axis("Unsqueeze", part, axis, f"{output.name}__{i}") for i, part in enumerate(parts)]
        nodes.replace(node, "Concat", parts, axis=axis)


def _position(node: gs.Node, i: int) -> int | None:
    """Return the constant position at input i, which is the end where a SequenceInsert or SequenceErase has none."""
    if not i:
        return 0
    if i >= len(node.inputs) or not node.inputs[i].name:
        return {"SequenceErase": -1, "SequenceInsert": -1}[node.op]
    tensor = node.inputs[i]
    return int(tensor.values.reshape(-1)[0]) if isinstance(tensor, gs.Constant) else None


def _sizes(node: gs.Node, known: Shapes) -> list[int] | None:
    """Return the sizes of the parts of a SplitToSequence; None where they are not known."""
    split = node.inputs[1] if len(node.inputs) > 1 and node.inputs[1].name else None
    if split is not None and not isinstance(split, gs.Constant):
        return None
    if split is not None and split.values.ndim:
        return [int(size) for size in split.values]
    shape = known.get(node.inputs[0].name)
    size = None if shape is None else shape[int(node.attrs.get("axis", 0))]
    step = 1 if split is None else int(split.values)
    return None if size is None else [min(step, size - start) for start in range(0, size, step)]


class _Nodes:
    """Nodes that replace others, to be added to a graph."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.new: list[gs.Node] = []
        self.replaced = False

    def split(self, node: gs.Node, sizes: list[int]) -> list[gs.Tensor]:
        """Split as a SplitToSequence does; return the parts."""
        name, axis = node.outputs[0].name, int(node.attrs.get("axis", 0))
        parts: list[gs.Tensor] = [gs.Variable(f"{name}__{i}") for i in range(len(sizes))]
        more, attrs = integers_argument("Split", "split", sizes, self.opset, f"{name}__sizes")
        attrs["axis"] = axis
        self.new.append(gs.Node("Split", f"{name}__split", attrs, [node.inputs[0], *more], parts))
        if len(node.inputs) > 1 or node.attrs.get("keepdims", 1):
            return parts
        return [self.on_axis("Squeeze", part, axis, f"{part.name}__squeezed") for part in parts]

    def on_axis(self, op: str, tensor: gs.Tensor, axis: int, name: str) -> gs.Tensor:
        """Squeeze or unsqueeze a tensor."""
        output = gs.Variable(name)
        more, attrs = integers_argument(op, "axes", [axis], self.opset, f"{name}__axes")
        self.new.append(gs.Node(op, f"{name}__node", attrs, [tensor, *more], [output]))
        return output

    def replace(self, node: gs.Node, op: str, inputs: list[gs.Tensor], **attrs: Any) -> None:
        """Let another operator write the output of a node."""
        outputs = list(node.outputs)
        node.outputs.clear()
        self.new.append(gs.Node(op, node.name, attrs, inputs, outputs))
        self.replaced = True

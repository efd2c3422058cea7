"""Simplify the states of recurrent layers, which exporters write as one tensor for all layers.

A tensor that holds the states of several layers would tie the hidden units of these layers.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.graph.normalize import remove_dead
from onnxprune.graph.qdq import STANDARD

STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
"""Inputs that take an initial state, by operator."""
MOVES = (
    "Cast",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)
"""Operators whose output holds nothing but elements of the first input."""


def drop_zero_states(graph: gs.Graph) -> int:
    """Leave out every initial state that is zero whatever the input, in place; return the number of states.

    A recurrent layer without an initial state starts from zero.
    """
    zeros = [
        (node, i)
        for node in graph.nodes
        if node.domain in STANDARD
        for i in STATES.get(node.op, ())
        if i < len(node.inputs) and node.inputs[i].name and _is_zero(node.inputs[i])
    ]
    for node, i in zeros:
        node.inputs[i] = gs.Variable.empty()
    if zeros:
        remove_dead(graph)
    return len(zeros)


def _is_zero(tensor: gs.Tensor) -> bool:
    """Tell whether all elements are zero whatever the input of the model."""
    while not isinstance(tensor, gs.Constant):
        node = tensor.inputs[0] if tensor.inputs else None
        if node is None or node.domain not in STANDARD:
            return False
        if node.op == "ConstantOfShape":
            fill = node.attrs.get("value")
            return fill is None or not fill.values.any()
        if node.op == "Concat":
            return all(map(_is_zero, node.inputs))
        if node.op not in MOVES:
            return False
        tensor = node.inputs[0]
    return not tensor.values.any()


def pick_final_states(graph: gs.Graph) -> None:
    """Let each Gather from the joined final states of several layers read the layer whose state it takes, in place."""
    changed = False
    for node in graph.nodes:
        joined = node.inputs[0].inputs[0] if node.op == "Gather" and node.inputs[0].inputs else None
        if joined is None or joined.op != "Concat" or joined.attrs["axis"] != 0 or node.attrs.get("axis", 0) != 0:
            continue
        directions = [_directions(tensor) for tensor in joined.inputs]
        if None in directions or not isinstance(node.inputs[1], gs.Constant):
            continue
        starts = np.cumsum([0, *directions])
        positions = np.asarray(node.inputs[1].values) % starts[-1]
        parts = np.unique(np.searchsorted(starts, positions, side="right") - 1)
        if parts.size == 1:
            part = int(parts[0])
            index = gs.Constant(f"{node.outputs[0].name}__index", np.asarray(positions - starts[part]))
            node.inputs = [joined.inputs[part], index]
            changed = True
    if changed:
        remove_dead(graph)


def _directions(tensor: gs.Tensor) -> int | None:
    """Return the size of the first axis of a final state of a recurrent layer; None for other tensors."""
    node = tensor.inputs[0] if tensor.inputs else None
    recurrent = node is not None and node.op in STATES and node.domain in STANDARD and not node.attrs.get("layout", 0)
    if node is None or not recurrent or tensor is node.outputs[0]:
        return None
    return 2 if node.attrs.get("direction") == "bidirectional" else 1

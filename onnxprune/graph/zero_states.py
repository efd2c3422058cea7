"""Leave out initial states that are zero: recurrent layers start from zero without them.

Exporters write such a state as a tensor of the size of the batch, often one tensor for all layers.
"""

from __future__ import annotations

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
    """Leave out every initial state that is zero whatever the input, in place; return the number of states."""
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

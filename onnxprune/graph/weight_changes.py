"""The constants by which two models of the same nodes differ, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.graph.folded import raw_values
from onnxprune.graph.model import Model

Change = tuple[int, int, str, np.ndarray[Any, Any]]
"""Number of a node and of its input, and the name and the values of the constant there."""


def changes(before: Model, after: Model) -> list[Change] | None:
    """Return the constants of `after` that `before` has not; None where they differ in more than constants of nodes."""
    old, new = before.graph.nodes, after.graph.nodes
    if [node.op for node in old] != [node.op for node in new]:
        return None
    found: list[Change] = []
    for n, (one, other) in enumerate(zip(old, new, strict=True)):
        for i, tensor in enumerate(other.inputs):
            earlier = one.inputs[i] if i < len(one.inputs) else None
            if not isinstance(tensor, gs.Constant):
                if earlier is None or earlier.name != tensor.name:
                    return None
            elif not isinstance(earlier, gs.Constant) or not _is_same(earlier, tensor):
                values = raw_values(tensor)
                if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
                    return None
                found.append((n, i, tensor.name, values))
    return found


def _is_same(one: gs.Constant, other: gs.Constant) -> bool:
    """Tell whether two constants have one name and the same values in memory."""
    return one.name == other.name and raw_values(one) is raw_values(other)


def changed(before: Model, found: Sequence[Sequence[Any]]) -> Model:
    """Return a model with the constants that `changes` returned.

    Raises:
        IndexError: a change is of a node that the model lacks.
    """
    after = before.copy()
    made: dict[str, gs.Constant] = {}
    for n, i, name, values in found:
        inputs = after.graph.nodes[n].inputs
        constant = made.setdefault(name, gs.Constant(name, values))
        while len(inputs) <= i:
            inputs.append(gs.Variable.empty())
        inputs[i] = constant
    return after

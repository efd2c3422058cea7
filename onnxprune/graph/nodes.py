"""Make and connect nodes of a graph, whatever the opset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

INPUT_FROM = {"ReduceMean": 18, "ReduceSum": 13, "Split": 13, "Squeeze": 13, "Unsqueeze": 13}
"""Opset from which an operator takes its axes or sizes as an input, before that as an attribute."""


def integers_argument(
    op: str, name: str, values: Sequence[int], opset: int, label: str
) -> tuple[list[gs.Constant], dict[str, Any]]:
    """Return axes or sizes of an operator as inputs, a constant `label`, and as attributes: one of both is empty."""
    if opset < INPUT_FROM[op]:
        return [], {name: [int(value) for value in values]}
    return [gs.Constant(label, np.array(values, dtype=np.int64))], {}


def redirect(old: gs.Tensor, new: gs.Tensor) -> None:
    """Let all readers of a tensor read another one."""
    for reader in {id(node): node for node in old.outputs}.values():
        for i in [i for i, tensor in enumerate(reader.inputs) if tensor is old]:
            reader.inputs[i] = new


def bodies_of(node: gs.Node) -> Iterator[gs.Graph]:
    """Yield the bodies of a node."""
    yield from (value for value in node.attrs.values() if isinstance(value, gs.Graph))


def has_bodies(node: gs.Node) -> bool:
    """Tell whether a node has bodies, as If, Loop and Scan."""
    return any(True for _ in bodies_of(node))

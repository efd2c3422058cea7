"""What a binder sees of a node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_graphsurgeon as gs
from torch import Tensor

Run = Callable[..., Tensor | Sequence[Tensor | None]]
"""Takes a tensor per input, None where it is absent; returns the output, or as many as the operator has."""


class Mode(Protocol):
    """What may change between two runs."""

    training: bool


@dataclass(frozen=True)
class Node:
    """One node of the graph.

    Attributes:
        node: of onnx-graphsurgeon.
        opset: version of the standard operators.
        label: its name, or that of its first output.
        mode: asked when it runs: whether it is training.
    """

    node: gs.Node
    opset: int
    label: str
    mode: Mode

    @property
    def op(self) -> str:
        """The operator."""
        return str(self.node.op)

    @property
    def domain(self) -> str:
        """Of the operator; empty for the standard one."""
        return self.node.domain or ""

    def attr(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.node.attrs.get(name, default)

    def has(self, i: int) -> bool:
        """Tell whether input i is there."""
        return i < len(self.node.inputs) and bool(self.node.inputs[i].name)

    def constant(self, i: int) -> np.ndarray[Any, Any] | None:
        """Return input i where it is a constant."""
        tensor = self.node.inputs[i] if self.has(i) else None
        return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None

    @property
    def n_outputs(self) -> int:
        """Number of outputs, those nobody reads included."""
        return len(self.node.outputs)


Binder = Callable[[Node], Run]

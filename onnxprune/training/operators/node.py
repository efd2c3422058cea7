"""What a binder sees of a node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx_graphsurgeon as gs
from torch import Tensor

Run = Callable[..., Tensor | Sequence[Tensor | None]]
"""Takes a tensor per input, None where it is absent; returns the output, or as many as the operator has."""
Inputs = Sequence[Tensor | None]
Numbers = Callable[[Inputs], list[Any] | None]
"""Takes the inputs, and returns what one of them holds."""


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
        host: inputs that are read as numbers, and need not be on the device.
    """

    node: gs.Node
    opset: int
    label: str
    mode: Mode
    host: set[int] = field(default_factory=set)

    @property
    def op(self) -> str:
        """The operator."""
        return str(self.node.op)

    @property
    def domain(self) -> str:
        """Of the operator; empty for the standard one."""
        return self.node.domain or ""

    def attr(self, name: str, default: Any = None) -> Any:
        """Return an attribute; a tensor as an array."""
        value = self.node.attrs.get(name, default)
        return np.asarray(value.values) if isinstance(value, gs.Constant) else value

    def has(self, i: int) -> bool:
        """Tell whether input i is there."""
        return i < len(self.node.inputs) and bool(self.node.inputs[i].name)

    def constant(self, i: int) -> np.ndarray[Any, Any] | None:
        """Return input i where it is a constant."""
        tensor = self.node.inputs[i] if self.has(i) else None
        return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None

    def numbers(self, i: int, name: str = "") -> Numbers:
        """Return how to read the numbers of input i, or of the attribute that held them in older opsets; None where neither is there.

        A constant is read here, once. Axes are such numbers, and so are sizes, pads, and bounds.
        """
        if not self.has(i):
            given = self.attr(name) if name else None
            fixed = list(given) if isinstance(given, (list, tuple)) else None if given is None else [given]
            return lambda inputs: fixed
        self.host.add(i)
        constant = self.constant(i)
        if constant is not None:
            known = constant.reshape(-1).tolist()
            return lambda inputs: known

        def read(inputs: Inputs) -> list[Any]:
            tensor = inputs[i]
            assert tensor is not None
            return tensor.reshape(-1).tolist()

        return read

    def known(self, i: int) -> bool:
        """Tell whether input i is absent or a constant, so that what `numbers` returns never changes."""
        return not self.has(i) or self.constant(i) is not None

    @property
    def n_outputs(self) -> int:
        """Number of outputs, those nobody reads included."""
        return len(self.node.outputs)

    def reader_ops(self) -> set[str]:
        """Return the operators that take the first output."""
        return {str(reader.op) for reader in self.node.outputs[0].outputs}


Binder = Callable[[Node], Run]

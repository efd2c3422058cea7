"""What a binder sees of a node, and how a plain function becomes a binder."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx_graphsurgeon as gs
from torch import Tensor

from onnxprune.errors import ModelError

Run = Callable[..., Tensor | Sequence[Tensor | None]]
"""Takes a tensor per input, None where it is absent; returns the output, or as many as the operator has."""
Inputs = Sequence[Tensor | None]
Numbers = Callable[[Inputs], Any]
"""Takes the inputs; returns the list of numbers that one of them holds, None where it is absent."""


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
        mode: says at run time whether the model is in training mode.
        host: inputs that are read as numbers; they stay on the host.
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

    def attr(self, name: str, default: Any = None) -> Any:
        """Return an attribute; a tensor as an array."""
        value = self.node.attrs.get(name, default)
        return np.asarray(value.values) if isinstance(value, gs.Constant) else value

    def require(self, **supported: Any) -> None:
        """Refuse an attribute that has another value than the supported one, which is its default.

        Raises:
            ModelError: names the operator and the attribute.
        """
        for name, value in supported.items():
            if self.attr(name, value) != value:
                raise unsupported(f"{self.op} with {name}={self.attr(name)}", self.label)

    def has(self, i: int) -> bool:
        """Tell whether input i is there."""
        return i < len(self.node.inputs) and bool(self.node.inputs[i].name)

    def constant(self, i: int) -> np.ndarray[Any, Any] | None:
        """Return input i where it is a constant."""
        tensor = self.node.inputs[i] if self.has(i) else None
        return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None

    def numbers(self, i: int, name: str = "") -> Numbers:
        """Return the function that reads the numbers of input i, or of the attribute that held them in older opsets.

        A constant is read here, once.
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
        return lambda inputs: None if (tensor := inputs[i]) is None else tensor.reshape(-1).tolist()

    def known(self, i: int) -> bool:
        """Tell whether input i is absent or a constant, so that what `numbers` returns never changes."""
        return not self.has(i) or self.constant(i) is not None

    @property
    def n_outputs(self) -> int:
        """Number of outputs, unread ones included."""
        return len(self.node.outputs)


Binder = Callable[[Node], Run]


def unsupported(what: str, where: str) -> ModelError:
    """Return the error for an operator, or an attribute of one, that training does not support."""
    return ModelError(
        f"{what} has no function in torch",
        where=where,
        why="training computes every operator of the graph in torch, and does not support this one",
        hint="leave the training out: prune, repair and check support this model",
    )


def direct(function: Callable[..., Tensor]) -> Binder:
    """Bind a function of tensors alone, such as one of torch."""
    return lambda node: function


def plain(function: Run, **numbers: int) -> Binder:
    """Bind a function of tensors whose keyword-only parameters are attributes, with their defaults, or numbers.

    Args:
        function: called with the inputs that are tensors.
        numbers: keyword-only parameters that get a list of numbers, and the position of the input that holds it.
    """
    parameters = inspect.signature(function).parameters.values()
    attributes = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in numbers}

    def binder(node: Node) -> Run:
        bound = functools.partial(function, **{name: node.attr(name, value) for name, value in attributes.items()})
        if not numbers:
            return bound
        readers = {name: node.numbers(i, name) for name, i in numbers.items()}

        def run(*inputs: Tensor | None) -> Tensor | Sequence[Tensor | None]:
            tensors = [x for i, x in enumerate(inputs) if i not in numbers.values()]
            return bound(*tensors, **{name: read(inputs) for name, read in readers.items()})

        return run

    return binder

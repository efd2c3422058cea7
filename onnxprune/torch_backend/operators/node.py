"""The view of a node that a binder gets, and binders made from plain functions."""

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
"""Takes one tensor per input (None: absent); returns the output, or all outputs of the operator."""
Numbers = Callable[[Sequence[Tensor | None]], Any]
"""Takes the inputs; returns the list of numbers in one of them, None if it is absent."""


class Mode(Protocol):
    """State that can change between two runs."""

    training: bool


@dataclass(frozen=True)
class Node:
    """One node of the graph.

    Attributes:
        node: the node of onnx-graphsurgeon.
        opset: opset version of the model.
        label: name of the node, or of its first output.
        mode: whether the model is in training mode, at run time.
        host: inputs that are read as numbers, which stay on the host.
    """

    node: gs.Node
    opset: int
    label: str
    mode: Mode
    host: set[int] = field(default_factory=set)

    @property
    def op(self) -> str:
        """Operator."""
        return str(self.node.op)

    def attr(self, name: str, default: Any = None) -> Any:
        """Return an attribute; tensors become arrays."""
        value = self.node.attrs.get(name, default)
        return np.asarray(value.values) if isinstance(value, gs.Constant) else value

    def require(self, **supported: Any) -> None:
        """Raise ModelError if an attribute differs from its only supported value, which is its default."""
        for name, value in supported.items():
            if self.attr(name, value) != value:
                raise unsupported(f"{self.op} with {name}={self.attr(name)}", self.label)

    def has(self, i: int) -> bool:
        """Tell whether the node has input i."""
        return i < len(self.node.inputs) and bool(self.node.inputs[i].name)

    def constant(self, i: int) -> np.ndarray[Any, Any] | None:
        """Return input i if it is a constant."""
        tensor = self.node.inputs[i] if self.has(i) else None
        return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None

    def numbers(self, i: int, name: str = "") -> Numbers:
        """Return the function that reads the numbers of input i, or of the attribute `name` of older opsets; constants are read once."""
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

    @property
    def n_outputs(self) -> int:
        """Number of outputs, including unused ones."""
        return len(self.node.outputs)


Binder = Callable[[Node], Run]


def unsupported(what: str, where: str) -> ModelError:
    """Return the error for an operator or attribute that training does not support."""
    return ModelError(
        f"{what} has no function in torch",
        where=where,
        why="training computes every operator of the graph in torch, and does not support this one",
        hint="leave out training: prune, repair and check support this model",
    )


def direct(function: Callable[..., Tensor]) -> Binder:
    """Bind a function of tensors."""
    return lambda node: function


def plain(function: Run, **numbers: int) -> Binder:
    """Bind a function of tensors whose keyword-only parameters are attributes with their defaults.

    `numbers` maps keyword-only parameters that take a list of numbers to the input that holds the list.
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

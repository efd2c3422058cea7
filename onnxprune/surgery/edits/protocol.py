"""The protocol of an edit.

An edit has two sides. `mask` sets what goes to zero in the dense model; `rewrite` makes smaller operators of the same weights. Both models
must give the same output, which `onnxprune.verify.prove` checks on every run, before any weight is refitted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, Self

import onnx_graphsurgeon as gs

from onnxprune.graph.linear import Linear
from onnxprune.graph.model import Model
from onnxprune.graph.readers import linear_layers
from onnxprune.graph.trace import node_labels
from onnxprune.types import FloatArray, IntArray


class RefusalError(Exception):
    """An edit that cannot be made; the message says why."""


@dataclass(frozen=True)
class Place:
    """The node that is edited.

    Attributes:
        graph: changed in place; new nodes go to its end.
        node: the node that the edit is named for.
        layer: the node as a matrix; None where it has no stored float weight.
        shape: shape of the layer's input, None for each size that is not known; None where nothing is known.
        nodes: the nodes that were in the graph before any edit, by label.
    """

    graph: gs.Graph
    node: gs.Node
    layer: Linear | None
    shape: Sequence[int | None] | None
    nodes: Mapping[str, gs.Node]


class Statistics(Protocol):
    """What calibration samples say of the input of one layer, see `onnxprune.importance.edit_error.Gram`."""

    layer: Linear

    def bias(self, matrix: FloatArray) -> FloatArray:
        """Return the bias that keeps the mean of the output with another matrix."""

    def regressed(self, features: IntArray) -> tuple[FloatArray, float]:
        """Return the best matrix on some input features, and its relative error."""

    def leading(self, form: str) -> tuple[FloatArray, FloatArray]:
        """Return directions of the output, the most important first, and the relative error of the first r of them, for each r."""


@dataclass(frozen=True)
class Candidate:
    """An edit that a model allows, and the numbers of the nodes that it replaces, in graph order."""

    edit: Edit
    nodes: tuple[int, ...]


class Edit(ABC):
    """A layer, or a branch, rewritten into another form. Subclasses are frozen dataclasses.

    Attributes:
        kind: name of the class in a plan.
        is_exact: whether the output stays as it was.
        needs_data: whether `refit` changes the edit.
        removes_nodes: whether all nodes of a candidate go.
        layer: label of the node that the edit is named for.
    """

    kind: ClassVar[str]
    is_exact: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    removes_nodes: ClassVar[bool] = False
    layer: str

    @classmethod
    @abstractmethod
    def candidates(cls, model: Model, multiple: int) -> Iterator[Candidate]:
        """Yield the edits of this kind that a model allows; `multiple` is the channel multiple that runs best."""

    @abstractmethod
    def mask(self, place: Place) -> None:
        """Set what goes to zero in the dense model.

        Raises:
            RefusalError: the edit does not fit the node.
        """

    @abstractmethod
    def rewrite(self, place: Place) -> set[str]:
        """Replace the node by smaller ones; return the names of the tensors whose values may change.

        Raises:
            RefusalError: the edit does not fit the node.
        """

    def refit(self, statistics: Statistics | None) -> tuple[Self, float]:
        """Return the edit with what it takes from data, and the error of the output that remains, as a share of its variance."""
        return self, float(not self.is_exact)

    def substitute(
        self, node: gs.Node, statistics: Statistics | None, mean_of: Callable[[gs.Tensor], FloatArray]
    ) -> None:
        """Change a node of the dense model to the best that the edit allows; `mean_of` gives the mean of an activation."""
        raise NotImplementedError

    @property
    def family(self) -> str:
        """The edits of one layer whose loss of the output is taken to be proportional to their error."""
        return self.kind

    @property
    def cost_signature(self) -> tuple[Any, ...]:
        """What the time of the edit depends on, beside the nodes that it replaces."""
        return (self.kind, *(value for name, value in self.to_dict().items() if name != "layer"))

    def timed(self, layer: Linear) -> Self:
        """Return an edit of the same cost that is quick to make."""
        return self

    @classmethod
    def plan_fields(cls) -> tuple[str, ...]:
        """Return the names of the fields that stand in a plan."""
        return tuple(field.name for field in fields(cls) if field.compare)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """Return the edit as it stands in a plan."""
        return {"kind": self.kind, **{name: getattr(self, name) for name in self.plan_fields()}}


class LayerEdit(Edit):
    """An edit of one layer with a stored weight."""

    @classmethod
    def candidates(cls, model: Model, multiple: int) -> Iterator[Candidate]:
        """Yield the edits of this kind that a model allows."""
        labels = node_labels(model.graph)
        for n, layer in linear_layers(model.graph).items():
            yield from (Candidate(edit, (n,)) for edit in cls.of_layer(layer, labels[n], multiple))

    @classmethod
    @abstractmethod
    def of_layer(cls, layer: Linear, label: str, multiple: int) -> Iterator[Self]:
        """Yield the edits of one layer."""

    @abstractmethod
    def masked(self, layer: Linear) -> FloatArray:
        """Return the matrix of the layer, (groups, outputs, features), with what goes set to zero.

        Raises:
            RefusalError: the edit does not fit the layer.
        """

    @abstractmethod
    def replace_layer(self, place: Place, layer: Linear) -> None:
        """Replace the layer by smaller ones, the last of which writes the old output.

        Raises:
            RefusalError: the edit does not fit the layer.
        """

    @abstractmethod
    def best(self, statistics: Statistics) -> FloatArray:
        """Return the matrix that the edit allows with the least error of the output."""

    def mask(self, place: Place) -> None:
        """Set what goes to zero."""
        layer = _layer(place)
        layer.write(self.masked(layer), None)

    def rewrite(self, place: Place) -> set[str]:
        """Replace the layer by smaller ones."""
        layer = _layer(place)
        name = layer.node.outputs[0].name
        self.replace_layer(place, layer)
        return {name}

    def substitute(
        self, node: gs.Node, statistics: Statistics | None, mean_of: Callable[[gs.Tensor], FloatArray]
    ) -> None:
        """Write the best matrix, and the bias that keeps the mean of the output."""
        assert statistics is not None
        layer = replace(statistics.layer, node=node)
        matrix = self.best(statistics)
        adds = getattr(layer, "adds", None)  # its node is that of another graph
        layer.write(matrix, statistics.bias(matrix) if layer.holds_bias and adds is None else None)


def _layer(place: Place) -> Linear:
    if place.layer is None:
        raise RefusalError(f"{place.node.op} is no layer with a stored float weight")
    return place.layer

"""The protocol of an edit.

An edit has two sides. `mask` sets weights of the dense model to zero; `rewrite` makes smaller operators of the other
weights. Both models must give the same output, which `onnxprune.surgery.proof.prove` checks on every run before any
weight is refitted.

Methods that take a `Place` or a `Linear` raise RefusalError where the edit does not fit it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, Self

import onnx_graphsurgeon as gs

from onnxprune.graph.linear import Linear
from onnxprune.graph.model import Model
from onnxprune.graph.readers import own_layers
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
        layer: the node as a matrix; None where it has no stored float weight that it alone reads.
        shape: of the layer's input, with None for each unknown size; None where nothing is known.
        nodes: the nodes of the graph before any edit, by label.
    """

    graph: gs.Graph
    node: gs.Node
    layer: Linear | None
    shape: Sequence[int | None] | None
    nodes: Mapping[str, gs.Node]

    @property
    def linear(self) -> Linear:
        """The node as a matrix, or RefusalError."""
        if self.layer is None:
            raise RefusalError(f"{self.node.op} is no layer with a stored float weight of its own")
        return self.layer


class Statistics(Protocol):
    """Statistics of the input of one layer on calibration samples, see `onnxprune.importance.edit_error.Gram`."""

    layer: Linear

    def bias(self, matrix: FloatArray) -> FloatArray:
        """Return the bias that keeps the mean of the output with another matrix."""

    def regressed(self, features: IntArray) -> tuple[FloatArray, float]:
        """Return the matrix with the least error that reads only some input features, and its relative error."""

    def removal(self, width: int) -> IntArray:
        """Return the order in which input channels of `width` features each are missed least, first to go first."""

    def leading(self, form: str) -> tuple[FloatArray, FloatArray]:
        """Return directions of the output, most important first, and the relative error of the first r for each r."""


@dataclass(frozen=True)
class Candidate:
    """An edit that a model allows, and the numbers of the nodes that it replaces, in graph order."""

    edit: Edit
    nodes: tuple[int, ...]


class Edit(ABC):
    """A layer or a branch in another form. Subclasses are frozen dataclasses, whose fields stand in a plan.

    Attributes:
        kind: name of the class in a plan.
        is_exact: whether the output stays the same.
        needs_data: whether `refit` changes the edit.
        removes_nodes: whether all nodes of a candidate are removed.
        layer: label of the edited node.
    """

    kind: ClassVar[str]
    is_exact: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    removes_nodes: ClassVar[bool] = False
    layer: str

    @classmethod
    @abstractmethod
    def candidates(cls, model: Model, multiple: int) -> Iterator[Candidate]:
        """Yield the edits of this kind that a model allows; `multiple` is the channel multiple."""

    @abstractmethod
    def mask(self, place: Place) -> None:
        """Set the removed weights of the dense model to zero."""

    @abstractmethod
    def rewrite(self, place: Place) -> set[str]:
        """Replace the node by smaller ones; return the names of the tensors that the new nodes write."""

    def refit(self, statistics: Statistics | None) -> tuple[Self, float]:
        """Return the edit fitted to data, and the remaining error of the output as a share of its variance."""
        return self, float(not self.is_exact)

    def substitute(
        self, node: gs.Node, statistics: Statistics | None, mean_of: Callable[[gs.Tensor], FloatArray]
    ) -> None:
        """Change a node of the dense model to the least error of the edit; `mean_of` gives means of activations."""
        raise NotImplementedError

    @property
    def family(self) -> str:
        """Edits of one layer and family have losses of the output in proportion to their errors."""
        return self.kind

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
        """Yield the edits of all layers."""
        labels = node_labels(model.graph)
        for n, layer in own_layers(model.graph).items():
            yield from (Candidate(edit, (n,)) for edit in cls.of_layer(layer, labels[n], multiple))

    @classmethod
    @abstractmethod
    def of_layer(cls, layer: Linear, label: str, multiple: int) -> Iterator[Self]:
        """Yield the edits of one layer."""

    @abstractmethod
    def masked(self, layer: Linear) -> FloatArray:
        """Return the matrix of the layer, (groups, outputs, features), with the removed weights set to zero."""

    @abstractmethod
    def replace_layer(self, place: Place, layer: Linear) -> None:
        """Replace the layer by smaller ones, the last of which writes the old output."""

    @abstractmethod
    def best(self, statistics: Statistics) -> FloatArray:
        """Return the matrix with the least error of the output that the edit allows."""

    def mask(self, place: Place) -> None:
        """Write the masked matrix."""
        place.linear.write(self.masked(place.linear), None)

    def rewrite(self, place: Place) -> set[str]:
        """Replace the layer by smaller ones."""
        name = place.node.outputs[0].name
        self.replace_layer(place, place.linear)
        return {name}

    def substitute(
        self, node: gs.Node, statistics: Statistics | None, mean_of: Callable[[gs.Tensor], FloatArray]
    ) -> None:
        """Write the best matrix, and the bias that keeps the mean of the output."""
        assert statistics is not None
        layer = replace(statistics.layer, node=node)
        matrix = self.best(statistics)
        adds = getattr(layer, "adds", None)  # its node is that of another graph
        layer.write(matrix, statistics.bias(matrix) if layer.bias_place is not None and adds is None else None)

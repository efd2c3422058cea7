"""Apply edits to a model, and make the masked model that the result must equal."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxprune.errors import PlanError
from onnxprune.graph.model import Model, weightless
from onnxprune.graph.normalize import remove_dead
from onnxprune.graph.order import sort
from onnxprune.graph.readers import linear_of, own_layers
from onnxprune.graph.shapes import infer_shapes
from onnxprune.graph.trace import node_labels
from onnxprune.surgery.edits.protocol import Edit, Place, RefusalError


@dataclass(frozen=True)
class Applied:
    """A model after edits.

    Attributes:
        masked: the dense model with the removed weights set to zero.
        model: the model with smaller layers; equal to `masked`.
        changed: names of the tensors that rewritten layers write.
    """

    masked: Model
    model: Model
    changed: frozenset[str]


def apply_edits(model: Model, edits: Sequence[Edit]) -> Applied:
    """Apply edits to a model, at most one to a layer.

    Raises:
        PlanError: an edit cannot be made.
    """
    masked, result = model.copy(), model.copy()
    labels = node_labels(model.graph)
    layers = {labels[n] for n in own_layers(model.graph)}
    shapes = infer_shapes(weightless(model), {}).partial
    before = [*_tensors(result.graph), *result.graph.nodes]
    graphs = [(graph, dict(zip(labels, graph.nodes, strict=True))) for graph in (masked.graph, result.graph)]

    def place(graph: gs.Graph, nodes: Mapping[str, gs.Node], label: str) -> Place:
        if label not in nodes:
            raise RefusalError("there is no such layer")
        node = nodes[label]
        if not node.outputs:
            raise RefusalError("an edit before this one removes the layer")
        layer = linear_of(node) if label in layers else None
        shape = None if layer is None else shapes.get(node.inputs[layer.x].name)
        return Place(graph, node, layer, shape, nodes)

    changed: set[str] = set()
    for edit in edits:
        try:
            dense, small = (place(graph, nodes, edit.layer) for graph, nodes in graphs)
            edit.mask(dense)
            changed |= edit.rewrite(small)
        except RefusalError as reason:
            raise PlanError(
                f"an edit cannot be made: {edit}",
                where=edit.layer,
                why=str(reason),
                hint="take it out of the plan, or make a new one with `onnxprune plan`",
            ) from None
    for graph, _ in graphs:
        sort(graph)
        remove_dead(graph)
    _rename_new(result.graph, before)
    return Applied(masked, result, frozenset(changed))


def _tensors(graph: gs.Graph) -> list[gs.Tensor]:
    return list({id(t): t for node in graph.nodes for t in (*node.inputs, *node.outputs)}.values())


def _rename_new(graph: gs.Graph, before: Sequence[gs.Tensor | gs.Node]) -> None:
    """Give new tensors and nodes unique names: a layer that an edit made may be edited again."""
    known = set(map(id, before))
    for things in (_tensors(graph), graph.nodes):
        taken = {thing.name for thing in things if id(thing) in known}
        for thing in things:
            if thing.name and id(thing) not in known:
                names = itertools.chain([thing.name], (f"{thing.name}_{number}" for number in itertools.count(2)))
                thing.name = next(name for name in names if name not in taken)
                taken.add(thing.name)

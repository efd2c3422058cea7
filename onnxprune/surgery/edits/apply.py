"""Apply edits to a model, and make the masked model that the result must equal."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from onnxprune.errors import PlanError
from onnxprune.graph.model import Model, weightless
from onnxprune.graph.normalize import remove_dead
from onnxprune.graph.readers import linear_layers, linear_of
from onnxprune.graph.shapes import infer_shapes
from onnxprune.graph.trace import node_labels
from onnxprune.surgery.edits.protocol import Edit, Place, RefusalError


@dataclass(frozen=True)
class Applied:
    """A model before and after edits.

    Attributes:
        masked: dense, with what goes set to zero.
        model: with smaller layers; equal to `masked`.
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
    numbers = {label: n for n, label in enumerate(labels)}
    layers = linear_layers(model.graph)
    shapes = infer_shapes(weightless(model), {}).partial
    before = _named(result.graph)
    graphs = [(graph, dict(zip(labels, graph.nodes, strict=True))) for graph in (masked.graph, result.graph)]

    def places(label: str) -> list[Place]:
        if label not in numbers:
            raise RefusalError("there is no such layer")
        n = numbers[label]
        found = []
        for graph, nodes in graphs:
            node = nodes[label]
            layer = linear_of(node) if n in layers else None
            shape = None if layer is None else shapes.get(node.inputs[layer.x].name)
            found.append(Place(graph, node, layer, shape, nodes))
        return found

    changed: set[str] = set()
    for edit in edits:
        try:
            dense, small = places(edit.layer)
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
        graph.toposort()
        remove_dead(graph)
    _rename_new(result.graph, before)
    return Applied(masked, result, frozenset(changed))


def _named(graph: gs.Graph) -> dict[int, Any]:
    """Return the tensors and nodes of a graph that have a name, by identity."""
    found = {id(t): t for node in graph.nodes for t in (*node.inputs, *node.outputs)} | {id(n): n for n in graph.nodes}
    return {key: thing for key, thing in found.items() if thing.name}


def _rename_new(graph: gs.Graph, before: Mapping[int, Any]) -> None:
    """Give new tensors and nodes names of their own: a layer that an edit made may be edited again."""
    found = _named(graph)
    taken: dict[bool, set[str]] = {True: set(), False: set()}  # nodes and tensors may share names
    for key, thing in found.items():
        if key in before:
            taken[isinstance(thing, gs.Node)].add(thing.name)
    for key, thing in found.items():
        if key not in before:
            others = taken[isinstance(thing, gs.Node)]
            thing.name = _free(thing.name, others)
            others.add(thing.name)


def _free(name: str, taken: Collection[str]) -> str:
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(candidate for candidate in names if candidate not in taken)

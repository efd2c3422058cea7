"""Recognize a model that is random: two sessions give different outputs for the same inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.errors import ModelError
from onnxprune.graph.model import Model
from onnxprune.graph.nodes import bodies_of
from onnxprune.graph.operators import spec_of
from onnxprune.metrics.outputs import TOLERANCE, relative_difference
from onnxprune.runtime.session import Feeds
from onnxprune.surgery.cuts import Subject

MOST_NAMED = 3
"""Number of nodes that an error names."""


def random_nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    """Yield the nodes that draw random numbers, those in bodies included."""
    for node in graph.nodes:
        if spec_of(node).random or (node.op == "Dropout" and _trains(node)):
            yield node
        for body in bodies_of(node):
            yield from random_nodes(body)


def _trains(node: gs.Node) -> bool:
    """Tell whether a Dropout can drop elements: in training mode, and not with a constant ratio of 0."""
    ratio, mode = (node.inputs[i] if len(node.inputs) > i else gs.Variable.empty() for i in (1, 2))
    if isinstance(ratio, gs.Constant) and not np.any(ratio.values):
        return False
    return bool(np.any(mode.values)) if isinstance(mode, gs.Constant) else bool(mode.name)


def check_repeatable(model: Model, known: dict[str, tuple[int, ...]] | None) -> None:
    """Refuse a model that has random nodes and is random; `known` are the shapes of data.

    Raises:
        ModelError: the model is random.
    """
    if any(True for _ in random_nodes(model.graph)):
        feeds = model.signature.random_feeds(model.header, 1, 0, known)
        refuse_random(model, [feeds])


def refuse_random(model: Model, feeds: Sequence[Feeds]) -> None:
    """Run a model twice on the same inputs in each of two sessions: sessions can start with equal seeds, or with others.

    Raises:
        ModelError: the outputs differ.
    """
    first, *others = (Subject(model, str(model.path)).values([*feeds, *feeds], ()) for _ in range(2))
    runs = [first[len(feeds) :], *others]
    pairs = [(a[name], b[name]) for run in runs for a, b in zip(first, run, strict=False) for name in a]
    if max(relative_difference(a, b) for a, b in pairs) <= TOLERANCE:
        return
    nodes = list(random_nodes(model.graph))
    label = ", ".join(f"{node.op} {node.name or node.outputs[0].name}" for node in nodes[:MOST_NAMED])
    more = f" and {len(nodes) - MOST_NAMED} more" if len(nodes) > MOST_NAMED else ""
    drops = any(node.op == "Dropout" for node in nodes)
    raise ModelError(
        f"the model is random: node {label}{more}" if nodes else "the model is random",
        where=str(model.path),
        why="two runs on the same inputs give different outputs"
        + (", since it was exported with Dropout in training mode" if drops else ""),
        hint="export it in eval mode: model.eval(), training=TrainingMode.EVAL"
        + (", or set training_mode of the node to false" if drops else ", or without this node"),
    )

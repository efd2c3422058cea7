"""One stored tensor is one thing: all nodes that read a constant lose the same of its elements, or none."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.graph.facts import Facts
from onnxprune.graph.model import tensors_of
from onnxprune.graph.qdq import captured_names
from onnxprune.types import IntArray, Slice

Use = tuple[int, int]
"""A node and one of its inputs."""


def tie_uses(facts: Facts, graph: gs.Graph, labels: tuple[str, ...]) -> None:
    """Tie the channels that lie at one index of a constant for different readers.

    Where a reader has no channels along an axis, those of the others are pinned.
    """
    uses: dict[str, set[Use]] = defaultdict(set)
    for n, i, tensor in tensors_of(graph):
        uses[tensor.name].add((n, i))
    elsewhere = {
        name: f"the body of {labels[n]}" for n, node in enumerate(graph.nodes) for name in captured_names(node)
    }
    elsewhere |= {tensor.name: "an output of the model" for tensor in graph.outputs}
    slices: dict[str, dict[int, dict[Use, list[Slice]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for fact in facts.slices:
        if len(uses[fact.tensor]) > 1 or fact.tensor in elsewhere:
            slices[fact.tensor][fact.axis][fact.node, fact.input].append(fact)
    for name, axes in slices.items():
        for found in axes.values():
            others = sorted(uses[name] - set(found))
            if name in elsewhere:
                _pin(facts, found, f"the weight {name} is also {elsewhere[name]}")
            elif others:
                _pin(
                    facts, found, f"the weight {name} is also read by {labels[others[0][0]]}, whose channels are pinned"
                )
            else:
                _tie(facts, found, name, labels)


def unshare_fills(graph: gs.Graph) -> None:
    """Give the layers that read a vector of one value throughout (zeros, ones) a vector of their own; in place.

    Exporters store equal vectors once, which would tie layers that have nothing else in common. Layers that take the
    same weight keep one vector.
    """
    fills = {tensor.name for _, _, tensor in tensors_of(graph) if _is_fill(tensor)}
    owned: dict[tuple[str, str], gs.Constant] = {}
    seen: set[str] = set()
    for n, i, tensor in list(tensors_of(graph)):
        if tensor.name in fills:
            partners = [t.name for t in graph.nodes[n].inputs if isinstance(t, gs.Constant) and t.name not in fills]
            key = tensor.name, partners[0] if partners else str(n)
            if key not in owned:
                owned[key] = gs.Constant(f"{tensor.name}__{n}_{i}", tensor.values) if tensor.name in seen else tensor
                seen.add(tensor.name)
            graph.nodes[n].inputs[i] = owned[key]


def _is_fill(tensor: gs.Constant) -> bool:
    size = math.prod(tensor.shape)
    if not isinstance(tensor.dtype, np.dtype) or tensor.dtype == np.int64 or not 1 < size == max(tensor.shape):
        return False
    values = tensor.values
    return bool((values == values.flat[0]).all())


def _pin(facts: Facts, found: dict[Use, list[Slice]], reason: str) -> None:
    for fact in (fact for part in found.values() for fact in part):
        facts.pin(fact.channels, fact.layer, reason)


def _tie(facts: Facts, found: dict[Use, list[Slice]], name: str, labels: tuple[str, ...]) -> None:
    """Tie the channels of all uses to those of the first."""
    first, *rest = (fact for part in found.values() for fact in part)
    for fact in rest:
        one, two = _columns(first.channels), _columns(fact.channels)
        if one.shape[1] != two.shape[1] and 1 not in (one.shape[1], two.shape[1]):
            _pin(facts, found, f"the weight {name} holds other channels for {labels[fact.layer]}")
            return
        facts.tie(
            one, two, fact.layer, f"the weight {name} is also read by {labels[first.layer]}, whose channels are pinned"
        )


def _columns(channels: IntArray) -> IntArray:
    """Return the (n, m) channels of a fact."""
    return channels.reshape(len(channels), -1)

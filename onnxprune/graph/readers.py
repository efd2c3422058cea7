"""Find the linear layers of a graph, and the layers that read the channels of a group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.graph.linear import Linear
from onnxprune.graph.model import Model, tensors_of
from onnxprune.graph.operators import spec_of
from onnxprune.graph.qdq import captured_names
from onnxprune.types import IntArray, Trace


def linear_of(node: gs.Node) -> Linear | None:
    """Return a layer as a matrix; None for a layer that is not linear, see `onnxprune.graph.rules.linear_views`."""
    return spec_of(node).linear(node)


def linear_layers(graph: gs.Graph) -> dict[int, Linear]:
    """Return the linear layers of a graph whose weights can be changed, by node number.

    Layers are left out whose weight is an output of the model, or whose bias is added behind an output.
    """
    results = {t.name for t in graph.outputs}
    found = {n: layer for n, node in enumerate(graph.nodes) if (layer := linear_of(node)) is not None}
    return {
        n: layer
        for n, layer in found.items()
        if results.isdisjoint(t.name for t in layer.node.inputs if isinstance(t, gs.Constant))
        and not (layer.adds and layer.node.outputs[0].name in results)
    }


@dataclass(frozen=True)
class Unit:
    """Linear layers that are fitted as one, since they take one stored weight; mostly a single layer.

    Attributes:
        nodes: numbers of the layers, ascending.
        fixed: whether the weight must stay: other nodes read it too, or read it as another matrix.
        fixed_bias: whether the biases must stay: nodes outside the unit read one of them.
    """

    nodes: tuple[int, ...]
    fixed: bool
    fixed_bias: bool

    @property
    def is_own(self) -> bool:
        """Tell whether this is one layer, whose weight and bias no other node reads."""
        return len(self.nodes) == 1 and not self.fixed and not self.fixed_bias


def units_of(graph: gs.Graph, layers: Mapping[int, Linear]) -> tuple[Unit, ...]:
    """Put all layers of a graph that take one stored weight, as one matrix, into one unit."""
    uses: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for n, i, tensor in tensors_of(graph):
        uses[tensor.name].add((n, i))
    elsewhere = {name for node in graph.nodes for name in captured_names(node)} | {t.name for t in graph.outputs}
    number = {id(node): n for n, node in enumerate(graph.nodes)}

    def fixes_bias(nodes: Sequence[int]) -> bool:
        at: dict[str, set[tuple[int, int]]] = defaultdict(set)
        for node, i in (place for n in nodes if (place := layers[n].bias_place) is not None):
            at[node.inputs[i].name].add((number[id(node)], i))
        return any(name in elsewhere or uses[name] != places for name, places in at.items())

    by_weight: dict[str, list[int]] = defaultdict(list)
    for n, layer in sorted(layers.items()):
        by_weight[layer.node.inputs[layer.weight].name].append(n)
    found: list[Unit] = []
    for name, nodes in by_weight.items():
        free = name not in elsewhere and uses[name] == {(n, layers[n].weight) for n in nodes}
        free = free and len({layers[n].form for n in nodes}) == 1
        for part in [nodes] if free else [[n] for n in nodes]:
            found.append(Unit(tuple(part), not free, fixes_bias(part)))
    return tuple(found)


def own_layers(graph: gs.Graph) -> dict[int, Linear]:
    """Return the linear layers of a graph whose weight and bias no other node reads."""
    layers = linear_layers(graph)
    units = units_of(graph, layers)
    return {unit.nodes[0]: layers[unit.nodes[0]] for unit in units if unit.is_own}


@dataclass(frozen=True)
class Reader:
    """Layers that read channels through one weight, and the channel of each feature.

    Attributes:
        members: node and view of each layer, in graph order.
        channels: (groups, features), -1: no prunable channel.
    """

    members: tuple[tuple[int, Linear], ...]
    channels: IntArray

    @property
    def node(self) -> int:
        """The node of the first layer."""
        return self.members[0][0]

    @property
    def last(self) -> int:
        """The node of the last layer."""
        return self.members[-1][0]

    @property
    def layer(self) -> Linear:
        """The first layer."""
        return self.members[0][1]


def readers_of(model: Model, trace: Trace) -> dict[str, list[Reader]]:
    """Return the linear readers of every group with prunable channels, in graph order."""
    of_group = np.full(trace.n_channels + 1, -1)
    for number, group in enumerate(trace.groups):
        if not trace.pinned[group.channels].all():
            of_group[group.channels] = number
    result: dict[str, list[Reader]] = {trace.groups[number].name: [] for number in np.unique(of_group) if number >= 0}
    layers = linear_layers(model.graph)
    units = {unit.nodes[0]: unit for unit in units_of(model.graph, layers)}
    for (node, i), facts in sorted(trace.slices_by_use().items()):
        reads = [fact for fact in facts if fact.role == "reads"]
        numbers = sorted({int(number) for fact in reads for number in np.unique(of_group[fact.channels])} - {-1})
        layer = layers.get(node) if len(reads) == 1 and numbers and node in units else None
        if layer is None or layer.weight != i:
            continue
        shape = [1] * layer.values.ndim
        shape[reads[0].axis] = -1
        channels = layer.matrix(np.broadcast_to(reads[0].channels.reshape(shape), layer.values.shape))[:, 0]
        reader = Reader(tuple((n, layers[n]) for n in units[node].nodes), np.ascontiguousarray(channels))
        for number in numbers:
            result[trace.groups[number].name].append(reader)
    return result

"""Find the linear layers of a graph, and the layers that read the channels of a group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.graph.linear import Linear
from onnxprune.graph.model import Model
from onnxprune.graph.operators import spec_of
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
class Reader:
    """A layer that reads channels, and the channel of each feature, (groups, features), -1: no prunable channel."""

    node: int
    layer: Linear
    channels: IntArray


def readers_of(model: Model, trace: Trace) -> dict[str, list[Reader]]:
    """Return the linear readers of every group with prunable channels, in graph order."""
    of_group = np.full(trace.n_channels + 1, -1)
    for number, group in enumerate(trace.groups):
        if not trace.pinned[group.channels].all():
            of_group[group.channels] = number
    result: dict[str, list[Reader]] = {trace.groups[number].name: [] for number in np.unique(of_group) if number >= 0}
    layers = linear_layers(model.graph)
    for (node, i), facts in sorted(trace.slices_by_use().items()):
        reads = [fact for fact in facts if fact.role == "reads"]
        numbers = sorted({int(number) for fact in reads for number in np.unique(of_group[fact.channels])} - {-1})
        layer = layers.get(node) if len(reads) == 1 and numbers else None
        if layer is None or layer.weight != i:
            continue
        shape = [1] * layer.values.ndim
        shape[reads[0].axis] = -1
        channels = layer.matrix(np.broadcast_to(reads[0].channels.reshape(shape), layer.values.shape))[:, 0]
        reader = Reader(node, layer, np.ascontiguousarray(channels))
        for number in numbers:
            result[trace.groups[number].name].append(reader)
    return result

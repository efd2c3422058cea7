"""Elements of every activation under any selection, and the peak of those alive at once."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.graph.cost import CostModel, Extents
from onnxprune.types import BoolArray, FloatArray, IntArray, Trace

FEATURES = ("once", "in", "out", "macs", "weights")
"""Terms of the time of a node, in the order of the last axis of `ActivationCost.features`."""


def lifetimes(
    nodes: Sequence[tuple[Sequence[str], Sequence[str]]], inputs: Collection[str], outputs: Collection[str]
) -> dict[str, tuple[int, int]]:
    """Return the node that writes each activation, and the last node that reads it, by name.

    `nodes` holds (names read, names written), in the order of a run. Inputs and outputs of the model live to the end.
    """
    end = max(len(nodes) - 1, 0)
    first: dict[str, int] = dict.fromkeys(inputs, 0)
    last: dict[str, int] = {}
    for n, (read, written) in enumerate(nodes):
        first.update((name, n) for name in written if name)
        last.update((name, n) for name in (*read, *written) if name in first)
    last.update((name, end) for name in (*inputs, *outputs) if name in first)
    return {name: (start, last[name]) for name, start in first.items()}


def alive_at(size: FloatArray, lives: IntArray) -> FloatArray:
    """Return the sum of sizes alive at each node, given size, (n,), and lifetime, (n, 2), of each activation."""
    change = np.zeros(lives.max(initial=0) + 2)
    np.add.at(change, lives[:, 0], size)
    np.subtract.at(change, lives[:, 1] + 1, size)
    return np.asarray(np.cumsum(change))


class ActivationCost:
    """Count the elements of activations, per sample, as `CostModel` counts MACs.

    A tensor shrinks with its channels where they lie along one axis. A tensor with channels on several axes (blocks of
    a grouped convolution, attention scores) counts as constant.

    Args:
        graph: the graph that was traced.
        trace: facts of the graph.
        cost: cost model of the trace.
    """

    def __init__(self, graph: gs.Graph, trace: Trace, cost: CostModel) -> None:
        self._cost = cost
        self._extents = Extents()
        inputs = [t.name for t in graph.inputs]
        variables = ([t.name for t in node.inputs if isinstance(t, gs.Variable) and t.name] for node in graph.nodes)
        read = [list(dict.fromkeys(names)) for names in variables]
        written = [[t.name for t in node.outputs if t.name] for node in graph.nodes]
        nodes = list(zip(read, written, strict=True))
        ordered = dict.fromkeys([*inputs, *(name for names in nodes for side in names for name in side)])
        self.names = {name: number for number, name in enumerate(ordered)}
        carried = [trace.carried.get(name) for name in self.names]
        self._base = np.array([math.prod(trace.shapes.get(name, ())) / trace.samples for name in self.names])
        self._extent = np.array([-1 if on is None else self._extents.number(on[1]) for on in carried], dtype=np.int64)
        self._extents.close()
        self._reads, self._writes = (  # (node, tensor)
            np.array([(n, self.names[name]) for n, names in enumerate(side) for name in names], np.int64).reshape(-1, 2)
            for side in (read, written)
        )
        self._layers = np.array([work.layer for work in trace.works], dtype=np.int64)
        self._nodes = len(graph.nodes)
        lives = lifetimes(nodes, inputs, [t.name for t in graph.outputs])
        self._lives = np.array([lives.get(name, (0, 0)) for name in self.names], dtype=np.int64).reshape(-1, 2)

    def elements(self, keep: BoolArray, step: int = 1) -> FloatArray:
        """Return the elements of each tensor, (len(names),), channels rounded up to whole steps."""
        return np.asarray(self._base * self._extents.shares(keep, step)[self._extent])

    def per_tensor(self, read: FloatArray, written: FloatArray) -> FloatArray:
        """Sum the cost of each tensor's elements over the nodes that read and write it; arguments are (nodes,)."""
        found = np.zeros(len(self.names))
        np.add.at(found, self._reads[:, 1], read[self._reads[:, 0]])
        np.add.at(found, self._writes[:, 1], written[self._writes[:, 0]])
        return found

    def peak(self, keep: BoolArray, itemsize: FloatArray) -> float:
        """Return the peak of the bytes alive at once, given bytes per element of each tensor, (len(names),)."""
        return float(alive_at(self.elements(keep) * itemsize, self._lives).max(initial=0.0))

    def features(self, keep: BoolArray, step: int = 1) -> FloatArray:
        """Return what the time of each node is made of, (nodes, `FEATURES`), channels counted in whole steps."""
        found = np.zeros((self._nodes, len(FEATURES)))
        elements = self.elements(keep, step)
        macs, weights = self._cost.work(keep, step)
        found[:, 0] = 1.0
        np.add.at(found[:, 1], self._reads[:, 0], elements[self._reads[:, 1]])
        np.add.at(found[:, 2], self._writes[:, 0], elements[self._writes[:, 1]])
        np.add.at(found[:, 3], self._layers, macs)
        np.add.at(found[:, 4], self._layers, weights)
        return found

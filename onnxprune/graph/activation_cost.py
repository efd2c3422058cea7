"""What moves through a model under any choice of survivors: elements of every activation, and the most that are alive at once."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.graph.cost import CostModel, Extents
from onnxprune.types import BoolArray, FloatArray, IntArray, Trace

FEATURES = ("once", "in", "out", "macs", "weights")
"""What the time of a node is made of, in the order of the last axis of `Traffic.features`."""


class Traffic:
    """Count the elements of activations, per sample, as `CostModel` counts MACs.

    A tensor whose channels lie along one axis shrinks with them; what spreads channels over several axes (a grouped convolution's
    blocks, attention scores) is taken for constant.

    Args:
        graph: the graph that was traced.
        trace: its facts.
        cost: its cost model.
    """

    def __init__(self, graph: gs.Graph, trace: Trace, cost: CostModel) -> None:
        self._cost = cost
        self._extents = Extents()
        self.names: dict[str, int] = {}
        base: list[float] = []
        extent: list[int] = []

        def tensor(name: str) -> int:
            number = self.names.setdefault(name, len(self.names))
            if number == len(base):
                shape = trace.shapes.get(name, ())
                base.append(math.prod(shape) / trace.batch)
                carried = trace.carried.get(name)
                extent.append(-1 if carried is None else self._extents.number(carried[1]))
            return number

        reads: list[tuple[int, int]] = []  # (node, tensor)
        writes: list[tuple[int, int]] = []
        for value in graph.inputs:
            tensor(value.name)
        for n, node in enumerate(graph.nodes):
            taken = dict.fromkeys(t.name for t in node.inputs if isinstance(t, gs.Variable) and t.name)
            reads += [(n, tensor(name)) for name in taken]
            writes += [(n, tensor(t.name)) for t in node.outputs if t.name]
        self._extents.close()
        self._base = np.array(base, dtype=np.float64)
        self._extent = np.array(extent, dtype=np.int64)
        self._reads = np.array(reads, dtype=np.int64).reshape(-1, 2)
        self._writes = np.array(writes, dtype=np.int64).reshape(-1, 2)
        self._layers = np.array([work.layer for work in trace.works], dtype=np.int64)
        self._nodes = len(graph.nodes)
        self._from, self._until = self._lifetimes(graph)

    def _lifetimes(self, graph: gs.Graph) -> tuple[IntArray, IntArray]:
        """Return the node that makes each tensor, and the last that takes it; inputs and outputs of the model live throughout."""
        first, last = np.zeros(len(self.names), dtype=np.int64), np.zeros(len(self.names), dtype=np.int64)
        first[self._writes[:, 1]] = self._writes[:, 0]
        last[self._writes[:, 1]] = self._writes[:, 0]
        np.maximum.at(last, self._reads[:, 1], self._reads[:, 0])
        end = max(self._nodes - 1, 0)
        for value in graph.inputs:
            last[self.names[value.name]] = end
        for value in graph.outputs:
            if value.name in self.names:
                last[self.names[value.name]] = end
        return first, last

    def elements(self, keep: BoolArray, step: int = 1) -> FloatArray:
        """Return the elements of each tensor, (len(names),), channels counted in whole steps."""
        return np.asarray(self._base * self._extents.shares(keep, step)[self._extent])

    def per_tensor(self, read: FloatArray, written: FloatArray) -> FloatArray:
        """Turn what each node takes per element that it reads and writes, (nodes,) each, into what each tensor takes per element."""
        found = np.zeros(len(self.names))
        np.add.at(found, self._reads[:, 1], read[self._reads[:, 0]])
        np.add.at(found, self._writes[:, 1], written[self._writes[:, 0]])
        return found

    def peak(self, keep: BoolArray, itemsize: FloatArray) -> float:
        """Return the most bytes that are alive at once, while nodes run in order and what nobody needs any more is freed.

        Args:
            keep: (n_channels,) channels that stay.
            itemsize: (len(names),) bytes of an element of each tensor.
        """
        elements = self.elements(keep) * itemsize
        change = np.zeros(self._nodes + 1)
        np.add.at(change, self._from, elements)
        np.subtract.at(change, self._until + 1, elements)
        return float(np.cumsum(change).max(initial=0.0))

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

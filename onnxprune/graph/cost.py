"""FLOPs and parameters of a model under any selection, from the facts of a trace alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.types import BoolArray, FloatArray, IntArray, Trace

UNITS = "hidden_size"
"""The attribute that counts the units of a recurrent layer."""


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer per sample; `channels` counts the channels that it writes (depthwise: filters)."""

    label: str
    op: str
    macs: int
    params: int
    channels: int


class Extents:
    """Distinct arrays of channels (-1: pinned), and the number of survivors of each."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}
        self.arrays: list[IntArray] = []

    def number(self, channels: IntArray) -> int:
        """Add an array of channels unless it is known; return its index."""
        number = self._known.setdefault(channels.tobytes(), len(self.arrays))
        if number == len(self.arrays):
            self.arrays.append(channels)
        return number

    def close(self) -> None:
        """Prepare the counts; no array can be added any more."""
        self.flat = np.concatenate([*self.arrays, np.zeros(0, dtype=np.int64)])
        self.lengths = np.array([a.size for a in self.arrays], dtype=np.int64)
        self._starts = np.cumsum(self.lengths) - self.lengths

    def survivors(self, keep: BoolArray) -> IntArray:
        """Return the number of channels left of each array."""
        return np.add.reduceat(np.append(keep, True)[self.flat], self._starts, dtype=np.int64)

    def shares(self, keep: BoolArray, step: int = 1) -> FloatArray:
        """Return the share left of each array, rounded up to whole steps, and 1 at the end, for index -1."""
        left = -(-self.survivors(keep) // step) * step
        return np.append(left / np.maximum(self.lengths, 1), 1.0)


class CostModel:
    """Count multiply-accumulates (MACs) and parameters without building the pruned model.

    The weight of a layer shrinks along every axis that holds channels. The MACs of a layer are the elements left of the
    weight times the positions it is applied to (output pixels of a Conv, rows of a Gemm); FLOPs are 2 x MACs. Both are
    per sample, also where the batch is fixed. Only layers with a weight count (Conv, Gemm, MatMul, LSTM with both weights;
    `Trace.opaque` at a constant cost), not additions, activations and pools. Parameters are the elements of all float
    constants and of all dequantized integers, biases and normalization included, each stored tensor once.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._extents = Extents()
        extent = self._extents.number
        uses: dict[tuple[int, int], list[tuple[int, int]]] = {}  # (node, input) -> [(axis, extent)]
        names: dict[tuple[int, int], str] = {}
        self._written: dict[int, int] = {}  # the extent that a layer writes
        for fact in trace.slices:
            number = extent(fact.channels)
            uses.setdefault((fact.node, fact.input), []).append((fact.axis, number))
            names[fact.node, fact.input] = fact.tensor
            if fact.role in ("writes", "follows"):
                self._written.setdefault(fact.layer, number)
        # the filters of a recurrent layer are the gates of its units
        self._written |= {fact.node: extent(fact.channels) for fact in trace.counts if fact.field == UNITS}
        # one row per stored tensor: all its uses are sliced alike
        rows = {name: row for row, name in enumerate(dict.fromkeys(names.values()))}
        slices = {names[use]: found for use, found in uses.items()}
        row_of_use = {use: rows[name] for use, name in names.items()}
        params = trace.per_tensor_params
        self._base = np.array([params.get(name, 0) for name in rows], dtype=np.float64)
        self._row = np.array([rows[name] for name, found in slices.items() for _ in found], dtype=np.int64)
        self._extent = np.array([number for found in slices.values() for _, number in found], dtype=np.int64)
        self._fixed_params = sum(count for name, count in params.items() if name not in rows)
        # layers: elements of the weight, positions, and the channels where the weight is applied once per channel
        works = trace.works
        self._layers = np.array([w.layer for w in works], dtype=np.int64)
        self._work_row = np.array([row_of_use.get((w.node, w.input), -1) for w in works], dtype=np.int64)
        self._positions = np.array([w.positions for w in works], dtype=np.float64)
        self._work_base = np.array([trace.weight_sizes[w.node, w.input] for w in works], dtype=np.float64)
        self._over = np.array([extent(w.over) if w.over.size else -1 for w in works], dtype=np.int64)
        self._extents.close()
        self.opaque_macs = sum(one.macs or 0.0 for one in trace.opaque)

    def _count(self, keep: BoolArray, step: int = 1) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return elements left of each sliced tensor, and elements and MACs left of each layer."""
        share = self._extents.shares(keep, step)
        left = np.ones(self._base.size + 1)  # share of each sliced tensor; row -1: none
        np.multiply.at(left, self._row, share[self._extent])
        elements, layer = self._base * left[:-1], self._work_base * left[self._work_row]
        return elements, layer, layer * self._positions * share[self._over]

    def work(self, keep: BoolArray, step: int = 1) -> tuple[FloatArray, FloatArray]:
        """Return (MACs per sample, weight elements) of each of `Trace.works`, channels rounded up to whole steps."""
        _, elements, macs = self._count(keep, step)
        return macs, elements

    def totals(self, keep: BoolArray) -> tuple[float, float]:
        """Return (MACs per sample, parameters) of a selection."""
        elements, _, macs = self._count(keep)
        return float(macs.sum()) + self.opaque_macs, float(elements.sum()) + self._fixed_params

    def savings(self) -> tuple[FloatArray, FloatArray]:
        """Return the share of all MACs, and of all parameters, that deleting each channel alone saves.

        To first order: an element of a weight that holds the channel on two axes is counted twice.
        """
        keep = np.ones(self.trace.n_channels, dtype=bool)
        elements, _, macs = self._count(keep)
        lengths = self._extents.lengths
        per_extent = np.zeros((2, lengths.size + 1))  # extent -1: none
        np.add.at(per_extent[1], self._extent, elements[self._row])
        work_of_row = np.zeros(self._base.size + 1)
        np.add.at(work_of_row, self._work_row, macs)
        np.add.at(per_extent[0], self._extent, work_of_row[self._row])
        np.add.at(per_extent[0], self._over, macs)
        found = np.zeros((2, self.trace.n_channels + 1))
        for total, amounts in zip(found, per_extent[:, :-1], strict=True):
            np.add.at(total, self._extents.flat, np.repeat(amounts / np.maximum(lengths, 1), lengths))
        whole = self.totals(keep)
        return found[0, :-1] / max(whole[0], 1.0), found[1, :-1] / max(whole[1], 1.0)

    def layers(self, keep: BoolArray) -> tuple[LayerCost, ...]:
        """Return the cost of every layer with a weight."""
        _, params, macs = self._count(keep)
        survivors = self._extents.survivors(keep)
        labels, ops = self.trace.labels, self.trace.ops
        sums = np.zeros((2, len(labels)))  # a recurrent layer has two weights
        for total, amounts in zip(sums, (macs, params), strict=True):
            np.add.at(total, self._layers, amounts)
        found = {
            layer: LayerCost(
                labels[layer],
                ops[layer],
                round(float(sums[0, layer])),
                round(float(sums[1, layer])),
                int(survivors[self._written[layer]]) if layer in self._written else 0,
            )
            for layer in self._layers.tolist()
        }
        found |= {
            o.node: LayerCost(labels[o.node], ops[o.node], round(o.macs or 0), o.params, 0) for o in self.trace.opaque
        }
        return tuple(found[node] for node in sorted(found))

    def prunable_share(self) -> float:
        """Return the share of MACs of weights that read or write at least one prunable channel."""
        free = ~self.trace.pinned
        lively = {(s.node, s.input) for s in self.trace.slices if free[s.channels[s.channels >= 0]].any()}
        _, _, macs = self._count(np.ones_like(free))
        moving = np.array([(work.node, work.input) in lively for work in self.trace.works], dtype=bool)
        whole = float(macs.sum()) + self.opaque_macs
        return float(macs[moving].sum()) / whole if whole else 0.0

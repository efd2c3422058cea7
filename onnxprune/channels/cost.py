"""FLOPs and parameters of a model under any choice of survivors, from the facts of a trace alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.types import BoolArray, IntArray, Trace


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs per sample. `channels` is what it writes (for a depthwise layer: what it filters)."""

    label: str
    op: str
    macs: int
    params: int
    channels: int


class CostModel:
    """Count multiply-accumulates (MACs) and parameters without building the pruned model.

    The weight of a layer shrinks along every axis that holds channels; its MACs are the elements left times the positions it
    is applied to (output pixels of a Conv, rows of a Gemm). FLOPs are 2 x MACs. Only layers with a weight count: Conv, Gemm,
    MatMul; additions, activations and pools do not. Parameters are the elements of all float constants, biases and
    normalisation included, each stored tensor once.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        extents: dict[bytes, int] = {}
        arrays: list[IntArray] = []
        uses: dict[tuple[int, int], list[tuple[int, int]]] = {}  # (node, input) -> [(axis, extent)]
        names: dict[tuple[int, int], str] = {}
        for fact in trace.slices:
            key = fact.channels.tobytes()
            if key not in extents:
                extents[key] = len(arrays)
                arrays.append(fact.channels)
            uses.setdefault((fact.node, fact.input), []).append((fact.axis, extents[key]))
            names[fact.node, fact.input] = fact.tensor
        self._flat = np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)
        self._lengths = np.array([a.size for a in arrays], dtype=np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        # one row per way a stored tensor is sliced: two uses with the same slices share it, as they share the tensor
        stored: dict[tuple[str, tuple[tuple[int, int], ...]], int] = {}
        row_of_use: dict[tuple[int, int], int] = {}
        for use, slices in uses.items():
            row_of_use[use] = stored.setdefault((names[use], tuple(sorted(slices))), len(stored))
        self._base = np.array([trace.per_tensor_params.get(name, 0) for name, _ in stored], dtype=np.float64)
        self._row = np.array([row for (_, slices), row in stored.items() for _ in slices], dtype=np.int64)
        self._extent = np.array([extent for (_, slices) in stored for _, extent in slices], dtype=np.int64)
        untouched = set(trace.per_tensor_params) - {name for name, _ in stored}
        self._fixed_params = sum(trace.per_tensor_params[name] for name in untouched)
        # layers
        self._work_row = np.array([row_of_use.get((w.node, w.input), -1) for w in trace.works], dtype=np.int64)
        self._positions = np.array([w.positions for w in trace.works], dtype=np.float64)
        self._work_base = np.array([self._weight_size(w.node, w.input) for w in trace.works], dtype=np.float64)
        self._written: dict[int, int] = {}
        for fact in trace.slices:
            if fact.role in ("writes", "follows"):
                self._written.setdefault(fact.node, extents[fact.channels.tobytes()])

    def _weight_size(self, node: int, index: int) -> int:
        return self.trace.weight_sizes[node, index]

    def _elements(self, keep: BoolArray) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Return the elements left of each sliced tensor."""
        alive = np.append(keep, True)[self._flat].astype(np.int64)
        counts = np.add.reduceat(alive, self._starts) if self._starts.size else np.zeros(0, dtype=np.int64)
        share = counts / np.maximum(self._lengths, 1)
        elements = self._base.copy()
        np.multiply.at(elements, self._row, share[self._extent])
        return elements

    def totals(self, keep: BoolArray) -> tuple[float, float]:
        """Return (MACs per sample, parameters) when only the channels in `keep` are left."""
        elements = self._elements(keep)
        return float(self._layer_elements(elements) @ self._positions), float(elements.sum()) + self._fixed_params

    def _layer_elements(
        self, elements: np.ndarray[tuple[int], np.dtype[np.float64]]
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        if not elements.size:
            return self._work_base
        return np.where(self._work_row >= 0, elements[self._work_row], self._work_base)

    def layers(self, keep: BoolArray) -> tuple[LayerCost, ...]:
        """Return the cost of every layer that has a weight."""
        elements = self._layer_elements(self._elements(keep))
        alive = np.append(keep, True)
        rows = []
        for work, params, positions in zip(self.trace.works, elements, self._positions, strict=True):
            extent = self._written.get(work.node)
            if extent is None:
                channels = 0
            else:
                start = self._starts[extent]
                channels = int(alive[self._flat[start : start + self._lengths[extent]]].sum())
            rows.append(
                LayerCost(
                    self.trace.labels[work.node],
                    self.trace.ops[work.node],
                    round(params * positions),
                    round(params),
                    channels,
                )
            )
        return tuple(rows)

    def prunable_share(self) -> float:
        """Return the share of MACs in layers that read or write at least one channel that may go."""
        free = ~self.trace.pinned
        lively = {s.node for s in self.trace.slices if free[s.channels[s.channels >= 0]].any()}
        total = float(self._work_base @ self._positions)
        macs = [
            b * p
            for w, b, p in zip(self.trace.works, self._work_base, self._positions, strict=True)
            if w.node in lively
        ]
        return float(sum(macs)) / total if total else 0.0

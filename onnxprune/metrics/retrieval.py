"""Metrics of embeddings: whether the nearest samples are of the same identity. All are in percent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.metrics.statistics import Statistic, Sums
from onnxprune.types import Array, BoolArray

BLOCK = 2**23
"""Similarities that are held at a time."""
ROUNDING = 16
"""Units in the last place of 1 within which similarities are equal."""


def recall(k: int) -> Callable[[Array, Array], Statistic]:
    """Return the metric: percentage of queries with a sample of the same identity among the k nearest by cosine.

    Every sample with another one of its identity is a query, and all other samples are its gallery. Equal similarities (up to rounding) count
    against the query, so that a model that gives one embedding for all finds nothing. Resamples draw queries; the gallery stays. The metric is
    NaN where there are no queries. Predictions are (n, d), labels (n,) identities; time is O(n^2 d).

    Source: Oh Song et al., 2016, "Deep metric learning via lifted structured feature embedding" (Recall@K).

    >>> from onnxprune.metrics.statistics import on_all
    >>> on_all(recall(1)(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]), np.array([0, 0, 1, 2])), 4)
    100.0
    """

    def metric(predictions: Array, labels: Array) -> Statistic:
        _, identities, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        queries = sizes[identities] > 1
        found = _found(predictions, identities, k) & queries
        return Sums(np.stack([found, queries], axis=1).astype(np.float64), lambda sums: 100.0 * sums[:, 0] / sums[:, 1])

    return metric


def _found(embeddings: Array, identities: Array, k: int) -> BoolArray:
    """Return whether fewer than k samples of other identities are as near as the nearest of the same identity, (n,)."""
    n = len(embeddings)
    units = _units(embeddings)
    rows = max(1, BLOCK // max(n, 1))
    hits = np.zeros(n, dtype=bool)
    margin = ROUNDING * np.finfo(units.dtype).eps
    with np.errstate(invalid="ignore"):
        for start in range(0, n, rows):
            block = np.arange(start, min(start + rows, n))
            near = units[block] @ units.T
            near[block - start, block] = -np.inf
            same = identities[block, None] == identities
            best = np.where(same, near, -np.inf).max(axis=1, keepdims=True)
            hits[block] = (~(near < best - margin) & ~same).sum(axis=1) < k
    return hits


def _units(embeddings: Array) -> Array:
    """Return rows of length 1, in float32 unless the embeddings are float64; rows of zeros stay."""
    rows = embeddings.reshape(len(embeddings), -1)
    kind = np.float64 if rows.dtype == np.float64 else np.float32
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))[:, None]
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), dtype=kind)

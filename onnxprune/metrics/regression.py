"""Metrics of regression; predictions and labels are (n, …) numbers of one shape, each value per sample an output.

Sources: scikit-learn's `r2_score` and `mean_absolute_error`; torchmetrics' `MeanSquaredError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.metrics.statistics import Statistic, Sums, mean
from onnxprune.types import Array, FloatArray, IntArray

BLOCK = 2**22
"""Values that are converted to float64 at a time."""


def r2(predictions: Array, labels: Array) -> Statistic:
    """Return the coefficient of determination in percent, mean over outputs.

    An output that is constant over the labels has 100 where all its predictions are exact, else 0. One sample has none (NaN).

    >>> from onnxprune.metrics.statistics import on_all
    >>> on_all(r2(np.array([1.0, 2.0, 2.0]), np.array([1.0, 2.0, 3.0])), 3)
    50.0
    """
    n = len(labels)
    return _R2(predictions.reshape(n, -1), labels.reshape(n, -1))


def mae(predictions: Array, labels: Array) -> Statistic:
    """Return the mean absolute error over samples and outputs, in the unit of the labels."""
    return mean(_mean_of(predictions, labels, 1))


def rmse(predictions: Array, labels: Array) -> Statistic:
    """Return the root of the mean squared error over samples and outputs, in the unit of the labels."""
    squared = mean(_mean_of(predictions, labels, 2))
    return Sums(squared.parts, lambda sums: np.sqrt(squared.value(sums)))


@dataclass(frozen=True)
class _R2:
    """R^2 of (n, outputs) arrays; a few outputs at a time, since a map has many."""

    predictions: Array
    labels: Array

    def __call__(self, counts: IntArray) -> FloatArray:
        drawn = counts.astype(np.float64)
        total = drawn.sum(axis=1)
        outputs = self.labels.shape[1]
        found = np.zeros(len(counts))
        with np.errstate(invalid="ignore", divide="ignore"):
            for block in _columns(outputs, max(counts.shape)):
                found += _determination(drawn, *(array[:, block] for array in (self.predictions, self.labels)))
            return np.where(total > 1, 100.0 * found / outputs, np.nan)


def _columns(outputs: int, rows: int) -> Iterator[slice]:
    width = max(1, BLOCK // max(rows, 1))
    return (slice(start, start + width) for start in range(0, outputs, width))


def _determination(drawn: FloatArray, predictions: Array, labels: Array) -> FloatArray:
    """Return the sum over outputs of R^2, (r,); drawn is (r, n), the others (n, outputs)."""
    y = labels.astype(np.float64)
    unexplained = drawn @ np.square(y - predictions)
    # Around the mean the sums do not cancel; that of equal values may be another value.
    y -= np.where(np.ptp(y, axis=0) > 0, y.mean(axis=0), y[0])
    squares = drawn @ np.square(y)
    around = squares - np.square(drawn @ y) / drawn.sum(axis=1, keepdims=True)
    varies = around > len(y) * np.finfo(np.float64).eps * squares
    shares = np.where(varies, 1 - unexplained / around, np.where(unexplained > 0, 0.0, 1.0))
    return np.asarray(np.where(np.isnan(unexplained), np.nan, shares).sum(axis=1))


def _mean_of(predictions: Array, labels: Array, power: int) -> FloatArray:
    """Return the mean over outputs of |error| to a power, (n,)."""
    n = len(labels)
    rows = max(1, BLOCK * n // max(labels.size, 1))
    found = np.zeros(n)
    for start in range(0, n, rows):
        a, b = (array[start : start + rows].astype(np.float64) for array in (predictions, labels))
        found[start : start + rows] = (np.abs(a - b) ** power).reshape(len(a), -1).mean(axis=1)
    return found

"""Metrics of samples as functions of a resample, so that one bootstrap gives the interval of any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import DataError
from onnxprune.types import Array, FloatArray, IntArray

Statistic = Callable[[IntArray], FloatArray]
"""Amounts of a metric on resamples: (r, n) times that each sample is drawn -> (r,); NaN where the metric is not defined."""


@dataclass(frozen=True)
class Sums:
    """A metric that is a function of sums over samples.

    Attributes:
        parts: (n, k), what each sample adds to each of k sums.
        value: returns the metric, (r,), of the sums of r resamples, (r, k).

    >>> mean = Sums(np.array([[1.0], [3.0]]), lambda sums: sums[:, 0] / 2)
    >>> mean(np.array([[1, 1], [2, 0]])).tolist()
    [2.0, 1.0]
    """

    parts: FloatArray
    value: Callable[[FloatArray], FloatArray]

    def __call__(self, counts: IntArray) -> FloatArray:
        """Return the metric on resamples."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.value(counts.astype(np.float64) @ self.parts), dtype=np.float64)


@dataclass(frozen=True)
class OfSamples:
    """A metric of a set of samples that no sums give: `value` returns it for the numbers of the samples, (m,)."""

    value: Callable[[IntArray], float]

    def __call__(self, counts: IntArray) -> FloatArray:
        """Return the metric on resamples, one after the other."""
        numbers = np.arange(counts.shape[1])
        return np.array([self.value(np.repeat(numbers, row)) for row in counts], dtype=np.float64)


def mean(values: FloatArray) -> Sums:
    """Return the mean over samples of values, (n,)."""
    parts = np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)
    return Sums(parts, lambda sums: sums[:, 0] / sums[:, 1])


def on_all(statistic: Statistic, samples: int) -> float:
    """Return a metric on all samples, each once."""
    return float(statistic(np.ones((1, samples), dtype=np.int64))[0])


def check_counts(predictions: Array, labels: Array) -> None:
    """Refuse predictions of which there is not one per label.

    Raises:
        DataError: with both numbers.
    """
    if len(predictions) != len(labels):
        raise DataError(
            "the model gives no output per sample",
            why=f"there are {len(predictions)} predictions for {len(labels)} labels",
            hint="export the model so that an output has the samples of its input along the first axis",
        )

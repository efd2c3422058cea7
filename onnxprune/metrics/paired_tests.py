"""Statistics of two models on the same samples: paired tests, classes, calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.metrics.statistics import OfSamples, Statistic, Sums, on_all
from onnxprune.types import BoolArray, FloatArray, IntArray

RESAMPLES = 10_000
CONFIDENCE = 0.95
RESAMPLES_OF_SUMS, RESAMPLES_OF_RANKS, FEW_RESAMPLES = 2000, 200, 40
"""Resamples of a metric that is a function of sums, of another that is vectorised, and of one that is evaluated for each resample."""
TWO_SIDED, ONE_SIDED = 1.96, 1.645
"""Standard errors from the amount to its bounds at `CONFIDENCE`."""
LEAST_DEFINED = 0.5
"""Share of the resamples on which a metric is defined, at least, for an interval."""
DRAWN = 2**24
"""Counts of samples that are drawn at a time."""
BINS = 15
"""Number of bins of the calibration error, as in the paper."""


@dataclass(frozen=True)
class Paired:
    """The drop in accuracy from the first to the second of two models.

    Attributes:
        drop: points.
        low, high: two-sided bootstrap interval of the drop at `CONFIDENCE`.
        upper: one-sided upper bound of the drop at `CONFIDENCE`.
        p: p-value of McNemar's exact test that both models are right equally often.
        lost, gained: samples that only the first model gets right, and only the second.
        samples: all samples.
    """

    drop: float
    low: float
    high: float
    upper: float
    p: float
    lost: int
    gained: int
    samples: int


def paired(first: BoolArray, second: BoolArray, seed: int = 0) -> Paired:
    """Compare two models on the same samples.

    The bootstrap draws the counts of lost, gained and other samples from their multinomial distribution, so that its cost does not depend
    on the number of samples.

    Args:
        first: whether the first model is right, (n,).
        second: whether the second model is right, (n,).
        seed: of the bootstrap.

    Source: McNemar, 1947, "Note on the sampling error of the difference between correlated proportions"; Efron and Tibshirani, 1993, "An
    introduction to the bootstrap", section 13.3 (percentile interval).
    """
    from scipy.stats import binomtest

    lost, gained, drops = _resampled(first, second, np.random.default_rng(seed))
    outside = 100 * (1 - CONFIDENCE)
    low, high, upper = np.percentile(drops, [outside / 2, 100 - outside / 2, 100 - outside])
    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    drop = 100 * (lost - gained) / first.size
    return Paired(drop, float(low), float(high), float(upper), p, lost, gained, first.size)


@dataclass(frozen=True)
class Interval:
    """A difference of two amounts of a metric, with its bounds at `CONFIDENCE`; see `difference`.

    Attributes:
        drop: amount of the first less that of the second, on all samples.
        low, high: two-sided interval.
        upper, lower: one-sided bounds.
    """

    drop: float
    low: float
    high: float
    upper: float
    lower: float


def difference(first: Statistic, second: Statistic, samples: int, seed: int = 0) -> Interval:
    """Return how much a metric drops from the first to the second of two models, by the paired bootstrap over samples.

    Both models are resampled alike; resamples on which the metric is not defined are left out. Where it is not defined on most, the
    interval is infinite.

    Args:
        first: the metric of the first model.
        second: the metric of the second model.
        samples: number of all samples.
        seed: of the bootstrap.

    Source: Efron and Tibshirani, 1993, "An introduction to the bootstrap", section 13.3 (percentile interval). For a metric that is
    evaluated anew for each resample (`OfSamples`) the standard normal interval, section 13.2, with the standard error of
    `FEW_RESAMPLES` resamples, which section 6.4 finds enough.

    >>> from onnxprune.metrics.statistics import mean
    >>> difference(mean(np.ones(100)), mean(np.ones(100)), 100)
    Interval(drop=0.0, low=0.0, high=0.0, upper=0.0, lower=0.0)
    """
    rng = np.random.default_rng(seed)
    slow = any(isinstance(one, OfSamples) for one in (first, second))
    vectorised = isinstance(first, Sums) and isinstance(second, Sums)
    draws: list[FloatArray] = []
    left = FEW_RESAMPLES if slow else RESAMPLES_OF_SUMS if vectorised else RESAMPLES_OF_RANKS
    while left:
        rows = min(left, max(1, DRAWN // samples))
        counts = rng.multinomial(samples, np.full(samples, 1 / samples), rows)
        draws.append(first(counts) - second(counts))
        left -= rows
    drops = np.concatenate(draws)
    defined = np.isfinite(drops)
    drop = on_all(first, samples) - on_all(second, samples)
    if defined.mean() < LEAST_DEFINED:
        return Interval(drop, -np.inf, np.inf, np.inf, -np.inf)
    if slow:
        error = float(np.std(drops[defined], ddof=1))
        two, one = TWO_SIDED * error, ONE_SIDED * error
        return Interval(drop, drop - two, drop + two, drop + one, drop - one)
    outside = 100 * (1 - CONFIDENCE)
    low, high, lower, upper = np.percentile(drops[defined], [outside / 2, 100 - outside / 2, outside, 100 - outside])
    return Interval(drop, float(low), float(high), float(upper), float(lower))


def interval(statistic: Statistic, samples: int, seed: int = 0) -> Interval:
    """Return the amount of a metric as `drop`, with its bounds; see `difference`."""
    return difference(statistic, Sums(np.zeros((samples, 1)), lambda sums: sums[:, 0]), samples, seed)


def _resampled(first: BoolArray, second: BoolArray, rng: np.random.Generator) -> tuple[int, int, FloatArray]:
    """Return how many samples are lost and gained, and the drop in each resample, (RESAMPLES,) points."""
    n, lost, gained = first.size, int((first & ~second).sum()), int((~first & second).sum())
    counts = rng.multinomial(n, np.array([lost, gained, n - lost - gained]) / n, RESAMPLES)
    return lost, gained, 100 * (counts[:, 0] - counts[:, 1]) / n


@dataclass(frozen=True)
class ClassDrop:
    """The drop in recall of one class, in points, with its lower bound; see `class_drops`."""

    label: int
    before: float
    after: float
    drop: float
    low: float
    samples: int


def class_drops(first: BoolArray, second: BoolArray, labels: IntArray, seed: int = 0) -> tuple[ClassDrop, ...]:
    """Return the drop in recall of every class, the largest first.

    `low` is a one-sided lower bound at `CONFIDENCE` over all classes together (Bonferroni), so that no small class fails by chance.

    Args:
        first: whether the first model is right, (n,).
        second: whether the second model is right, (n,).
        labels: classes, (n,).
        seed: of the bootstrap.
    """
    classes = np.unique(labels)
    rng = np.random.default_rng(seed)
    found = []
    for label in classes:
        a, b = first[labels == label], second[labels == label]
        low = float(np.percentile(_resampled(a, b, rng)[2], 100 * (1 - CONFIDENCE) / classes.size))
        before, after = 100 * float(a.mean()), 100 * float(b.mean())
        found.append(ClassDrop(int(label), before, after, before - after, low, int(a.size)))
    return tuple(sorted(found, key=lambda one: -one.drop))


def calibration_error(log_probabilities: FloatArray, labels: IntArray) -> float:
    """Return the expected calibration error in points: the mean over bins of |confidence - accuracy|.

    Source: Guo et al., 2017, "On calibration of modern neural networks", equation 3.

    Args:
        log_probabilities: (n, classes).
        labels: (n,).
    """
    confidence = np.exp(log_probabilities.max(axis=1))
    right = log_probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    gaps = np.abs(np.bincount(place, right, BINS) - np.bincount(place, confidence, BINS))
    return float(100 * gaps[counts > 0].sum() / right.size)


def right(scores: np.ndarray[Any, Any], labels: IntArray) -> BoolArray:
    """Return whether the top-1 of each sample is its label, (n,)."""
    return np.asarray(np.argsort(-scores, axis=1, kind="stable")[:, 0] == labels)

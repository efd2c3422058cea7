"""What can be said of two models from the samples that both were run on: paired tests, classes, calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.types import BoolArray, FloatArray, IntArray

RESAMPLES = 10_000
CONFIDENCE = 0.95
BINS = 15
"""Of the calibration error, as in its source."""


@dataclass(frozen=True)
class Paired:
    """How much fewer samples the second of two models gets right.

    Attributes:
        drop: points.
        low, high: two-sided bootstrap interval of it at `CONFIDENCE`.
        upper: one-sided upper bound at `CONFIDENCE`: no worse than this.
        p: of McNemar's exact test that both are right equally often.
        lost, gained: samples that only the first gets right, and only the second.
        samples: all.
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

    Samples that both get right or wrong say nothing of a difference. The bootstrap over samples is one over how often each of the three
    cases occurs, which is multinomial, so that it costs the same for any number of samples.

    Args:
        first: (n,) whether the first model is right.
        second: (n,) whether the second one is.
        seed: of the bootstrap.

    Source: McNemar, 1947, "Note on the sampling error of the difference between correlated proportions"; Efron and Tibshirani, 1993, "An
    introduction to the bootstrap", section 13.3 (percentile interval).
    """
    from scipy.stats import binomtest

    n = first.size
    lost, gained = int((first & ~second).sum()), int((~first & second).sum())
    shares = np.array([lost, gained, n - lost - gained]) / n
    counts = np.random.default_rng(seed).multinomial(n, shares, RESAMPLES)
    drops = 100 * (counts[:, 0] - counts[:, 1]) / n
    outside = 100 * (1 - CONFIDENCE)
    low, high, upper = np.percentile(drops, [outside / 2, 100 - outside / 2, 100 - outside])
    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return Paired(100 * (lost - gained) / n, float(low), float(high), float(upper), p, lost, gained, n)


@dataclass(frozen=True)
class ClassDrop:
    """How much less of one class is recognised: points, with the lower end of what may be by chance; see `class_drops`."""

    label: int
    before: float
    after: float
    drop: float
    low: float
    samples: int


def class_drops(first: BoolArray, second: BoolArray, labels: IntArray, seed: int = 0) -> tuple[ClassDrop, ...]:
    """Return what every class loses of its recall, most first.

    `low` is the lower end of a one-sided interval at `CONFIDENCE` over all classes together (Bonferroni), so that with many small classes none
    fails by chance.

    Args:
        first: (n,) whether the first model is right.
        second: (n,) whether the second one is.
        labels: (n,) classes.
        seed: of the bootstrap.
    """
    classes = np.unique(labels)
    rng = np.random.default_rng(seed)
    found = []
    for label in classes:
        a, b = first[labels == label], second[labels == label]
        lost, gained = int((a & ~b).sum()), int((~a & b).sum())
        counts = rng.multinomial(a.size, np.array([lost, gained, a.size - lost - gained]) / a.size, RESAMPLES)
        drops = 100 * (counts[:, 0] - counts[:, 1]) / a.size
        low = float(np.percentile(drops, 100 * (1 - CONFIDENCE) / classes.size))
        before, after = 100 * float(a.mean()), 100 * float(b.mean())
        found.append(ClassDrop(int(label), before, after, before - after, low, int(a.size)))
    return tuple(sorted(found, key=lambda one: -one.drop))


def calibration_error(log_probabilities: FloatArray, labels: IntArray) -> float:
    """Return the expected calibration error in points: how far confidence and accuracy lie apart, mean over bins of confidence.

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
    """Return which samples get their label as top-1, (n,)."""
    return np.asarray(np.argsort(-scores, axis=1, kind="stable")[:, 0] == labels)

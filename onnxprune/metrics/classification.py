"""Metrics of classifiers: of one class per sample, of two classes, and of several labels per sample. All are in percent.

Sources: scikit-learn's `f1_score`, `roc_auc_score` and `average_precision_score`, each with `average="macro"`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.errors import DataError
from onnxprune.metrics.statistics import Statistic, Sums, mean
from onnxprune.types import Array, BoolArray, FloatArray, IntArray

BLOCK = 2**18
"""Counts of samples that are sorted at a time, in whole resamples; they fit into the cache."""
ROUNDING = 1e-6
"""How far a probability may lie outside 0..1."""


def topk(k: int) -> Callable[[Array, Array], Statistic]:
    """Return the metric: percentage of samples whose label is among the k largest of (n, classes) scores; labels are (n,) integers.

    Of equal scores the first counts as the larger, and NaN as larger than all.

    >>> from onnxprune.metrics.statistics import on_all
    >>> on_all(topk(2)(np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), np.array([1, 2])), 2)
    50.0
    """

    def metric(predictions: Array, labels: Array) -> Statistic:
        labels = _classes(predictions, labels)
        own = np.take_along_axis(predictions, labels[:, None], axis=1)
        before = np.arange(predictions.shape[1]) < labels[:, None]
        rank = (~(predictions <= own) | ((predictions == own) & before)).sum(axis=1)
        return mean(100.0 * (rank < k))

    return metric


def accuracy(predictions: Array, labels: Array) -> Statistic:
    """Return the percentage of samples whose side of 0.5 is right; (n,) probabilities, (n,) labels of 0 and 1."""
    return mean(100.0 * ((predictions > 0.5) == (labels > 0)))


def macro_f1(predictions: Array, labels: Array, *, probabilities: bool | None = None) -> Statistic:
    """Return F1 in percent, mean over classes (labels).

    Classes that are neither in the labels nor predicted have no F1 and are left out, as with `zero_division=nan` in scikit-learn.

    Args:
        predictions: (n, classes) scores, of which the largest is predicted; (n, k) scores of labels, of which those above 0.5
            (probabilities) or 0 (logits) are predicted.
        labels: (n,) integers; (n, k) of 0 and 1.
        probabilities: whether the scores of labels are probabilities; None: where all lie in 0..1.
    """
    from scipy import sparse

    if labels.ndim == 2:
        found, there = sparse.csr_array(above(predictions, probabilities)), sparse.csr_array(labels > 0)
        return over_classes(found * there, found, there, dice_of)
    labels = _classes(predictions, labels)
    best = predictions.argmax(axis=1)
    found, there = (_one_hot(numbers, predictions.shape[1]) for numbers in (best, labels))
    return over_classes(found * there, found, there, dice_of)


def auc(predictions: Array, labels: Array) -> Statistic:
    """Return the area under the ROC curve in percent; equal scores count half.

    Args:
        predictions: (n,) scores; (n, k): the mean over labels that have both values is returned.
        labels: of 0 and 1, of the same shape.
    """
    return _over_labels(predictions, labels, _Ranked.area)


def label_map(predictions: Array, labels: Array) -> Statistic:
    """Return the average precision in percent, mean over labels with a positive sample, as torchmetrics takes it.

    Average precision is the sum over thresholds of precision times the step in recall. Predictions are (n, k) scores, labels (n, k) of
    0 and 1.
    """
    return _over_labels(predictions, labels, _Ranked.average_precision)


# ------------------------------------------------------------------------------------------------------------ sums over classes


def over_classes(hits: Any, predicted: Any, labelled: Any, ratio: Callable[..., FloatArray]) -> Sums:
    """Return the mean over classes of a ratio of counts, in percent; classes that do not occur are left out.

    Args:
        hits: sparse (n, classes), how often a class is rightly predicted in each sample.
        predicted: of the same shape, how often it is predicted.
        labelled: of the same shape, how often it is the label.
        ratio: returns the amounts of the three sums.
    """
    from scipy import sparse

    parts = sparse.hstack([part.astype(np.float64) for part in (hits, predicted, labelled)], format="csr")

    def value(sums: FloatArray) -> FloatArray:
        hit, found, there = np.split(sums, 3, axis=1)
        occurs = found + there > 0
        amounts = np.where(occurs, ratio(hit, found, there), 0.0)
        return np.asarray(100.0 * amounts.sum(axis=1) / occurs.sum(axis=1))

    return Sums(parts, value)


def dice_of(hits: FloatArray, predicted: FloatArray, labelled: FloatArray) -> FloatArray:
    """Return 2 |A and B| / (|A| + |B|), which is F1."""
    return np.asarray(2 * hits / (predicted + labelled))


def above(scores: Array, probabilities: bool | None = None) -> BoolArray:
    """Return which scores of two classes are above 0.5 (probabilities) or 0 (logits); None: probabilities, where all lie in 0..1."""
    if probabilities is None:
        probabilities = bool(scores.size and scores.min() >= -ROUNDING and scores.max() <= 1 + ROUNDING)
    return np.asarray(scores > (0.5 if probabilities else 0.0))


def _classes(scores: Array, labels: Array) -> IntArray:
    """Return labels, (n,), that are classes of (n, classes) scores.

    Raises:
        DataError: a label is out of range.
    """
    labels = labels.astype(np.int64)
    if labels.size and not 0 <= labels.min() <= labels.max() < scores.shape[1]:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(
            "a label is out of range",
            why=f"there is a label {wrong}, the model has classes 0 to {scores.shape[1] - 1}",
            hint="check that the labels belong to this model",
        )
    return labels


def _one_hot(numbers: IntArray, classes: int) -> Any:
    """Return the sparse (n, classes) array with a one per row."""
    from scipy import sparse

    n = len(numbers)
    return sparse.csr_array((np.ones(n), numbers, np.arange(n + 1)), shape=(n, classes))


# --------------------------------------------------------------------------------------------------------------- ranked samples


@dataclass(frozen=True)
class _Ranked:
    """Positive and negative samples in the order of falling scores.

    Attributes:
        positive: (p,) numbers of the positive samples.
        negative: (m,) numbers of the negative samples.
        before: (p,) how many negative samples have a larger score than each positive one.
        through: (p,) how many have the same score or a larger one.
        found: (p,) how many positive samples have the same score or a larger one, each itself included.
    """

    positive: IntArray
    negative: IntArray
    before: IntArray
    through: IntArray
    found: IntArray

    @staticmethod
    def of(scores: Array, labels: Array) -> _Ranked:
        """Rank (n,) scores with (n,) labels of 0 and 1."""
        falling = -scores.astype(np.float64)
        order = np.argsort(falling, kind="stable")
        positive, negative = order[labels[order] > 0], order[labels[order] <= 0]
        own, others = falling[positive], falling[negative]
        before, through = (np.searchsorted(others, own, side) for side in ("left", "right"))
        return _Ranked(positive, negative, before, through, np.searchsorted(own, own, "right"))

    def area(self, drawn: IntArray) -> FloatArray:
        """Return the share of pairs of a positive and a negative sample in which the positive is ranked first, (r,)."""
        positive, negative = self._drawn(drawn)
        pairs = 2 * positive.sum(axis=0) * negative[-1]
        lost = (positive * (negative[self.before] + negative[self.through])).sum(axis=0)
        return np.asarray((pairs - lost) / pairs)

    def average_precision(self, drawn: IntArray) -> FloatArray:
        """Return the mean over positive samples of the precision at their score, (r,)."""
        positive, negative = self._drawn(drawn)
        found = np.cumsum(positive, axis=0)[self.found - 1]
        precision = found / np.maximum(found + negative[self.through], 1)
        return np.asarray((positive * precision).sum(axis=0) / positive.sum(axis=0))

    def _drawn(self, drawn: IntArray) -> tuple[IntArray, IntArray]:
        """Return how often positive samples are drawn, (p, r), and the first 0, 1, … m negative ones together, (m + 1, r)."""
        negative = np.zeros((len(self.negative) + 1, drawn.shape[1]), dtype=np.int64)
        np.cumsum(drawn[self.negative], axis=0, out=negative[1:])
        return drawn[self.positive], negative


def _over_labels(predictions: Array, labels: Array, value: Callable[[_Ranked, IntArray], FloatArray]) -> Statistic:
    """Return the mean over labels of a value of ranked samples, in percent; labels without a value (NaN) are left out.

    `value` takes how often samples are drawn as (n, r), so that samples are sorted by whole rows.
    """
    columns, targets = (array.reshape(len(array), -1) for array in (predictions, labels))
    ranked = [_Ranked.of(column, target) for column, target in zip(columns.T, targets.T, strict=True)]

    def statistic(counts: IntArray) -> FloatArray:
        rows = max(1, BLOCK // counts.shape[1])
        starts = range(0, len(counts), rows)
        blocks = (np.ascontiguousarray(counts[start : start + rows].T, dtype=np.int64) for start in starts)
        with np.errstate(invalid="ignore", divide="ignore"):
            amounts = np.concatenate([np.stack([value(one, block) for one in ranked]) for block in blocks], axis=1)
            there = ~np.isnan(amounts)
            return np.asarray(100.0 * np.where(there, amounts, 0.0).sum(axis=0) / there.sum(axis=0))

    return statistic

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

BLOCK = 2**22
"""Values that an intermediate array holds at most, in whole resamples."""
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
    return _over_labels(predictions, labels, _area)


def label_map(predictions: Array, labels: Array) -> Statistic:
    """Return the average precision in percent, mean over labels with a positive sample, as torchmetrics takes it.

    Average precision is the sum over thresholds of precision times the step in recall. Predictions are (n, k) scores, labels (n, k) of
    0 and 1.
    """
    return _over_labels(predictions, labels, _average_precision)


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
    """Samples in the order of falling scores, those with equal scores in one group.

    Attributes:
        order: (n,) numbers of samples.
        starts: (g,) places where groups start.
        positive: (n,) whether each is positive, in this order.
    """

    order: IntArray
    starts: IntArray
    positive: BoolArray

    @staticmethod
    def of(scores: Array, labels: Array) -> _Ranked:
        """Rank (n,) scores with (n,) labels of 0 and 1."""
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
        return _Ranked(order, starts, labels[order] > 0)

    def counts(self, counts: IntArray) -> tuple[IntArray, IntArray]:
        """Return how many positive and negative samples of each group are drawn, (r, g) each."""
        drawn = counts[:, self.order]
        positive = np.add.reduceat(drawn * self.positive, self.starts, axis=1)
        return positive, np.add.reduceat(drawn, self.starts, axis=1) - positive


def _over_labels(predictions: Array, labels: Array, value: Callable[[IntArray, IntArray], FloatArray]) -> Statistic:
    """Return the mean over labels of a value of ranked samples, in percent; labels without a value (NaN) are left out."""
    columns, targets = (array.reshape(len(array), -1) for array in (predictions, labels))
    ranked = [_Ranked.of(column, target) for column, target in zip(columns.T, targets.T, strict=True)]

    def statistic(counts: IntArray) -> FloatArray:
        rows = max(1, BLOCK // counts.shape[1])
        blocks = [counts[start : start + rows].astype(np.int64) for start in range(0, len(counts), rows)]
        with np.errstate(invalid="ignore", divide="ignore"):
            amounts = np.stack([np.concatenate([value(*one.counts(block)) for block in blocks]) for one in ranked])
            there = ~np.isnan(amounts)
            return np.asarray(100.0 * np.where(there, amounts, 0.0).sum(axis=0) / there.sum(axis=0))

    return statistic


def _area(positive: IntArray, negative: IntArray) -> FloatArray:
    """Return the share of pairs of a positive and a negative sample in which the positive is ranked first, (r,)."""
    first = np.cumsum(positive, axis=1)
    twice = ((2 * first - positive) * negative).sum(axis=1)
    return np.asarray(twice / (2 * first[:, -1] * negative.sum(axis=1)))


def _average_precision(positive: IntArray, negative: IntArray) -> FloatArray:
    """Return the mean over positive samples of the precision at their score, (r,)."""
    found = np.cumsum(positive, axis=1)
    drawn = np.maximum(np.cumsum(positive + negative, axis=1), 1)
    return np.asarray((positive * (found / drawn)).sum(axis=1) / found[:, -1])

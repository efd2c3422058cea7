"""What makes figures of quality say nothing: data that the original itself does not understand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.metrics.paired_tests import right
from onnxprune.types import FloatArray, IntArray

SIGNIFICANCE = 0.01
"""Probability with which chance alone is as good as the original, above which the original is near chance."""
FEW = 30
"""Samples below which a drop within the limit is undecided."""
BETTER = 20.0
"""Points that another assignment of classes must gain to be named."""
REMEDY = "check --preprocess, and that the data belong to this model"


def doubts(scores: FloatArray, labels: IntArray | None) -> Iterator[str]:
    """Say why the predictions of the original say nothing, from its class scores, (n, classes), and labels, (n,).

    >>> list(doubts(np.eye(2)[np.ones(40, int)], None))
    ['the original gives class 1 for all 40 samples: check --preprocess, and that the data belong to this model']
    """
    given = scores.argmax(axis=1)
    classes = np.unique(given)
    one_label = labels is not None and len(np.unique(labels)) == 1
    if len(classes) == 1 and len(given) > 1 and not one_label:
        yield f"the original gives class {classes[0]} for all {len(given)} samples: {REMEDY}"
    if labels is None:
        return
    if one_label:
        yield f"all {len(labels)} labels are {labels[0]}: samples of one class say little about a classifier"
        return
    better = _better_assignment(given, labels, scores.shape[1])
    if better:
        yield better
    elif _is_near_chance(scores, labels):
        rate, chance = 100 * right(scores, labels).mean(), 100 * _majority(labels)
        yield f"the original is near chance: {rate:.2f} % are right, the most frequent label is {chance:.2f} %: {REMEDY}"


def _majority(labels: IntArray) -> float:
    """Return the share of the most frequent label: what a model without knowledge reaches."""
    return float(np.bincount(labels).max()) / len(labels)


def _is_near_chance(scores: FloatArray, labels: IntArray) -> bool:
    """Tell whether chance alone would often be as good: the exact binomial test against the share of the most frequent label."""
    from scipy.stats import binomtest

    hits = int(right(scores, labels).sum())
    return float(binomtest(hits, len(labels), _majority(labels), alternative="greater").pvalue) > SIGNIFICANCE


def _better_assignment(given: IntArray, labels: IntArray, classes: int) -> str:
    """Say which other assignment of class numbers agrees with the labels much better; empty without one.

    The best assignment is that of the confusion matrix: Kuhn, 1955, "The Hungarian method for the assignment problem".
    """
    from scipy.optimize import linear_sum_assignment

    size = max(classes, int(labels.max()) + 1)
    used = np.unique(np.concatenate([given, labels]))
    place = np.zeros(size, dtype=np.int64)
    place[used] = np.arange(len(used))
    confusion = np.zeros((len(used), len(used)))
    np.add.at(confusion, (place[labels], place[given]), 1)
    rows, columns = linear_sum_assignment(confusion, maximize=True)
    before, after = (
        100 * float(found) / len(labels) for found in (np.trace(confusion), confusion[rows, columns].sum())
    )
    if after - before < BETTER or len(labels) < FEW or after - before < 2 * 100 * len(used) / len(labels):
        return ""
    seen = confusion[rows, columns] > 0
    steps = {int(used[c] - used[r]) for r, c in zip(rows[seen], columns[seen], strict=True)}
    how = f"with labels {-steps.pop():+d} they are" if len(steps) == 1 else "in another order of the classes they are"
    return (
        f"labels seem to belong to other class numbers: {before:.2f} % of the original's predictions are right, {how} "
        f"{after:.2f} %: check the order of the classes"
    )

"""Maps of classes from the outputs of a segmenter, and their overlap with labels. Metrics are in percent.

Labels of 255 and negative ones are ignored. Source: scikit-learn's `jaccard_score` and `f1_score` of all pixels, with `average="macro"`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from onnxprune.metrics.classification import above, dice_of, over_classes
from onnxprune.metrics.statistics import Statistic
from onnxprune.types import Array, FloatArray, IntArray

IGNORED = 255
BLOCK = 2**22
"""Scores of which the largest are found at a time."""


def class_map(
    output: Array, size: tuple[int, int] | None = None, *, classes_last: bool = False, probabilities: bool | None = None
) -> Array:
    """Return the class of every pixel, (n, height, width), in the smallest unsigned type (signed where a class is negative).

    Args:
        output: (n, C, h, w) scores; (n, 1, h, w) or (n, h, w): scores of one class against the rest, of which those above 0.5
            (probabilities) or 0 (logits) are class 1; or class numbers, as integers or as whole floats.
        size: height and width of the result; None: those of the output.
        classes_last: whether the output is (n, h, w, C).
        probabilities: whether scores of one class are probabilities; None: where all lie in 0..1.
    """
    maps = np.moveaxis(output, -1, 1) if classes_last and output.ndim == 4 else output
    if maps.ndim == 4 and maps.shape[1] > 1:
        maps = _best(maps)
    else:
        maps = maps.reshape(len(maps), *maps.shape[-2:])
        if maps.dtype.kind == "f" and not _whole(maps):
            maps = above(maps, probabilities)
    low, high = (int(maps.min()), int(maps.max())) if maps.size else (0, 0)
    kind = (
        np.min_scalar_type(high)
        if low >= 0
        else np.promote_types(np.min_scalar_type(low), np.min_scalar_type(-high - 1))
    )
    maps = maps.astype(kind, copy=False)
    return maps if size is None else resized(maps, size)


def resized(maps: Array, size: Iterable[int]) -> Array:
    """Return maps, (…, h, w), with the last axes of another size: each pixel takes the one nearest to its centre.

    >>> resized(np.array([[0, 1, 2]]), (1, 6)).tolist()
    [[0, 0, 1, 1, 2, 2]]
    """
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, maps.shape[-2:], strict=True)
    )
    is_same = (len(rows), len(columns)) == maps.shape[-2:]
    return maps if is_same else np.asarray(maps[..., rows[:, None], columns])


def miou(predictions: Array, labels: Array) -> Statistic:
    """Return the intersection over union, mean over classes that occur in labels or predictions.

    Args:
        predictions: (n, h, w) class numbers; resized to the labels where sizes differ, nearest.
        labels: (n, height, width) class numbers.
    """
    return _overlap(predictions, labels, lambda hits, found, there: np.asarray(hits / (found + there - hits)))


def dice(predictions: Array, labels: Array) -> Statistic:
    """Return the Dice coefficient, mean over classes that occur in labels or predictions; arguments are those of `miou`."""
    return _overlap(predictions, labels, dice_of)


def _overlap(predictions: Array, labels: Array, ratio: Callable[..., FloatArray]) -> Statistic:
    """Return the mean over classes of a ratio of pixels; one sample at a time, since maps are large."""
    from scipy import sparse

    rows: tuple[list[IntArray], ...] = ([], [], [])
    for found, there in zip(predictions, labels, strict=True):
        for row, counts in zip(rows, _pixels(resized(found, there.shape), there), strict=True):
            row.append(counts)
    classes = max((len(counts) for row in rows for counts in row), default=0)
    parts = []
    for row in rows:
        places = [np.flatnonzero(counts) for counts in row]
        ends = np.cumsum([0, *(len(place) for place in places)])
        values = [counts[place] for counts, place in zip(row, places, strict=True)]
        columns = (np.concatenate([np.zeros(0, dtype=np.int64), *arrays]) for arrays in (values, places))
        parts.append(sparse.csr_array((*columns, ends), shape=(len(row), classes)))
    return over_classes(parts[0], parts[1], parts[2], ratio)


def _pixels(found: Array, there: Array) -> tuple[IntArray, IntArray, IntArray]:
    """Return the pixels of each class that are rightly predicted, predicted, and labelled."""
    valid = (there >= 0) & (there != IGNORED)
    labels = there[valid].astype(np.int64)
    # A negative prediction is of no class: it is shifted away, and counts as a miss.
    classes = np.maximum(found[valid].astype(np.int64), -1) + 1
    hits = labels[classes == labels + 1]
    return np.bincount(hits), np.bincount(classes)[1:], np.bincount(labels)


def _best(scores: Array) -> Array:
    """Return the class with the largest of (n, C, h, w) scores, (n, h, w); a few samples at a time."""
    n, classes = scores.shape[:2]
    best = np.empty((n, *scores.shape[2:]), dtype=np.min_scalar_type(classes - 1))
    rows = max(1, BLOCK * n // max(scores.size, 1))
    for start in range(0, n, rows):
        best[start : start + rows] = scores[start : start + rows].argmax(axis=1)
    return best


def _whole(maps: Array) -> bool:
    """Tell whether floats are class numbers: whole, not negative, and more than two."""
    return bool(maps.size and maps.max() > 1 and maps.min() >= 0 and (maps == np.floor(maps)).all())

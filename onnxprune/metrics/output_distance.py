"""The distance of one output from the original's, for kinds of `onnxprune.metrics.distances` that take no class scores.

An output is looked at as (before, entries, behind): the entries are the classes of a position, the values of an embedding, or the numbers of
a box. Some values at a time are converted to float64, since the maps of all samples take much memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.types import FloatArray

Array = np.ndarray[Any, Any]
PIECE = 2**20
"""Values that are converted to float64 at a time."""
LEAST = 1e-12
"""Lower bound of a probability before its logarithm, and of a variance."""
LEAST_SHARE = 1e-3
"""Lower bound of the variance of an entry, as a share of the mean over entries: a class that no sample shows does not count most."""
EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class OutputDistance:
    """The distance of one output from the original's.

    Attributes:
        measure: `kl` over the entries; `bernoulli`: KL of each value; `error`: squared error as a share of the variance; `cosine`: 1 - cosine
            of the entries, as half the squared distance of unit vectors.
        axis: of the entries, from the end (-1: the last); None: all values are alike.
        probabilities: whether values are probabilities; else logits. Decided by the original, for both models.
        variance: (entries,) variance of the original, for `error`; (1,) where all values are alike.
    """

    measure: str
    axis: int | None
    probabilities: bool
    variance: FloatArray

    @property
    def tells_classes(self) -> bool:
        """Whether each position names a class."""
        return self.measure in ("kl", "bernoulli")

    def __call__(self, original: Array, candidate: Array) -> float:
        """Return the distance of two outputs of one shape, mean over positions."""
        total = np.zeros(len(self.variance))
        for x, y in pieces(self.axis, original, candidate):
            total += self._sum(x, y)
        return float((total / self.variance).sum()) / self.positions(original.shape)

    def positions(self, shape: Sequence[int]) -> int:
        """Return the number of terms that the mean is over."""
        size = math.prod(shape)
        return size if self.measure in ("error", "bernoulli") else size // folded(shape, self.axis)[1]

    def agreement(self, original: Array, candidate: Array) -> float:
        """Return the share of positions that name the same class, 0 to 1."""
        same = 0
        for x, y in pieces(self.axis, original, candidate):
            if self.measure == "kl":
                same += int((x.argmax(axis=1) == y.argmax(axis=1)).sum())
            else:
                border = 0.5 if self.probabilities else 0.0
                same += int(((x > border) == (y > border)).sum())
        return same / self.positions(original.shape)

    def _sum(self, x: FloatArray, y: FloatArray) -> Any:
        """Return the sum of the terms of a piece; of `error` for each entry."""
        if self.measure == "error":
            return np.square(x - y).sum(axis=(0, 2))
        if self.measure == "cosine":
            a, b = (np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
            gap = np.square(x / np.where(a > 0, a, 1) - y / np.where(b > 0, b, 1)).sum() / 2
            return gap + 0.5 * ((a > 0) != (b > 0)).sum()  # the cosine with a row of zeros is 0
        if self.measure == "kl":
            log_p, log_q = (_log_softmax(_log(z) if self.probabilities else z) for z in (x, y))
            return (np.exp(log_p) * (log_p - log_q)).sum()
        p, q = (_log(z) - _log(1 - z) if self.probabilities else z for z in (x, y))
        yes, no = (_log_sigmoid(sign * p) for sign in (1, -1))
        return (np.exp(yes) * (yes - _log_sigmoid(q)) + np.exp(no) * (no - _log_sigmoid(-q))).sum()


class Look:
    """Collects what the distance of one output depends on from the original's values, some samples at a time.

    Attributes:
        size: number of values so far.
    """

    def __init__(self, kind: str) -> None:
        """Take the kind of the distance."""
        self.size = 0
        self._kind = kind
        self._form: tuple[str, int | None] = ("error", None)
        self._shift: FloatArray | None = None
        self._sum_to_one = True

    def add(self, output: Array) -> None:
        """Look at more samples; integers do not count."""
        if output.dtype.kind != "f" or not output.size:
            return
        if not self.size:
            self._form = form_of(self._kind, output.shape)
        self.size += output.size
        for (x,) in pieces(self._form[1], output):
            self._add(x)

    def _add(self, x: FloatArray) -> None:
        if self._shift is None:
            self._shift = x.mean(axis=(0, 2))
            self._sum, self._squares = (np.zeros(x.shape[1]) for _ in range(2))
            self._low, self._high = np.full(x.shape[1], np.inf), np.full(x.shape[1], -np.inf)
        self._low, self._high = np.minimum(self._low, x.min(axis=(0, 2))), np.maximum(self._high, x.max(axis=(0, 2)))
        if self._form[0] == "error":
            x = x - self._shift[:, None]
            self._sum += x.sum(axis=(0, 2))
            self._squares += np.square(x).sum(axis=(0, 2))
        elif self._form[0] == "kl" and self._sum_to_one:
            self._sum_to_one = bool(np.allclose(x.sum(axis=1), 1, atol=1e-3))

    def distance(self) -> OutputDistance | None:
        """Return the distance; None where the output holds no floating point number."""
        if not self.size:
            return None
        measure, axis = self._form
        above = bool((self._low >= 0).all())
        unit = above and (self._sum_to_one if measure == "kl" else bool((self._high <= 1).all()))
        variance = self._variance() if measure == "error" else np.ones(1)
        return OutputDistance(measure, axis, unit and measure in ("kl", "bernoulli"), variance)

    def _variance(self) -> FloatArray:
        """Return the variance of each entry; probabilities, and all other entries, have a lower bound of their own."""
        n = self.size / len(self._sum)
        found = np.maximum(self._squares / n - np.square(self._sum / n), 0)
        unit = (self._low >= 0) & (self._high <= 1)
        for alike in (unit, ~unit):
            if alike.any():
                found[alike] = np.maximum(found[alike], LEAST_SHARE * found[alike].mean())
        rounding = EPS * np.maximum(np.abs(self._low), np.abs(self._high))
        return np.asarray(np.maximum(found, np.maximum(np.square(rounding), LEAST)))


def distance_of(kind: str, output: Array) -> OutputDistance | None:
    """Return how far others are from an output of the original; None where it holds no floating point number.

    >>> boxes = distance_of("boxes", np.random.default_rng(0).random((8, 5, 100)))
    >>> boxes.measure, boxes.axis, boxes.variance.shape
    ('error', -2, (5,))
    """
    look = Look(kind)
    look.add(output)
    return look.distance()


def form_of(kind: str, shape: Sequence[int]) -> tuple[str, int | None]:
    """Return the measure of an output by its shape, and the axis of its entries, from the end.

    >>> form_of("map", (8, 21, 64, 64)), form_of("map", (8, 1, 64, 64)), form_of("map", (8, 21))
    (('kl', -3), ('bernoulli', None), ('error', None))
    """
    n = len(shape)
    if kind == "map" and n >= 3:
        return ("kl", 1 - n) if shape[1] > 1 else ("bernoulli", None)
    if kind == "frames" and n == 3 and shape[2] > 1:
        return "kl", -1
    if kind == "embedding" and n >= 2 and shape[1] > 1 and math.prod(shape[2:]) == 1:
        return "cosine", 1 - n
    if kind == "boxes" and n >= 3:
        return "error", _entries_of_boxes(shape)
    return "error", None


def _entries_of_boxes(shape: Sequence[int]) -> int:
    """Return the axis of the numbers of a box: the smaller of two; of maps the channels; behind an axis of anchors the last."""
    n = len(shape)
    if n == 3:
        return -2 if shape[1] <= shape[2] else -1
    return -3 if n == 4 else -1


def folded(shape: Sequence[int], axis: int | None) -> tuple[int, int, int]:
    """Return a shape as (before, entries, behind) an axis; without an axis as one entry.

    >>> folded((8, 21, 4, 4), -3), folded((8, 3), None)
    ((8, 21, 16), (1, 1, 24))
    """
    if axis is None:
        return 1, 1, math.prod(shape)
    at = axis % len(shape)
    return math.prod(shape[:at]), shape[at], math.prod(shape[at + 1 :])


def pieces(axis: int | None, *outputs: Array) -> Iterator[list[FloatArray]]:
    """Yield parts of outputs of one shape as (before, entries, behind) in float64, each with all entries of its positions."""
    before, entries, behind = folded(outputs[0].shape, axis)
    whole = [output.reshape(before, entries, behind) for output in outputs]
    columns = max(1, min(behind, PIECE // max(entries, 1)))
    rows = max(1, PIECE // max(entries * columns, 1))
    for row in range(0, before, rows):
        for column in range(0, behind, columns):
            yield [x[row : row + rows, :, column : column + columns].astype(np.float64) for x in whole]


def _log(p: FloatArray) -> FloatArray:
    return np.asarray(np.log(np.maximum(p, LEAST)))


def _log_softmax(x: FloatArray) -> FloatArray:
    x = x - x.max(axis=1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))


def _log_sigmoid(x: FloatArray) -> FloatArray:
    return np.asarray(np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))))

"""Measures of what trained models are for: characters read, boxes matched, frames within 50 cents, overlap of masks.

A task draws samples, reads the outputs of a model on one of them, and counts what a reading shares with another one: with
the truth, or with the reading of the original model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

Array = np.ndarray[Any, Any]
Sample = dict[str, Array]
"""One sample by input name, without an axis of samples."""
Outputs = Sequence[Array]
Drawn = list[tuple[Sample, Any]]
"""Samples, each with the truth, or with None where it is not known."""


@dataclass(frozen=True)
class Task:
    """What a model is for, and how well it does it.

    Attributes:
        name: what is counted, as in "characters read".
        draw: returns samples; called with a source of random numbers, and how many.
        read: returns the reading of the outputs for one sample.
        match: returns what two readings share, and out of how much.
        axes: axis of samples of inputs where it is not the first; None: the input has no such axis.
    """

    name: str
    draw: Callable[[random.Random, int], Drawn]
    read: Callable[[Outputs], Any]
    match: Callable[[Any, Any], tuple[float, float]]
    axes: dict[str, int | None] | None = None

    def axis(self, name: str) -> int | None:
        """Return the axis of samples of an input."""
        return (self.axes or {}).get(name, 0)

    def score(self, readings: Sequence[Any], wanted: Sequence[Any]) -> float | None:
        """Return the share of what is wanted that is in the readings; None where nothing is wanted."""
        pairs = [self.match(a, b) for a, b in zip(readings, wanted, strict=True)]
        total = sum(out_of for _, out_of in pairs)
        return float(sum(hits for hits, _ in pairs) / total) if total > 0 else None


# ------------------------------------------------------------------------------------------------------------------- matches


def same_text(reading: str, wanted: str) -> tuple[float, float]:
    """Return the characters that are right (length less the edit distance), and the length."""
    row = list(range(len(wanted) + 1))
    for i, letter in enumerate(reading, 1):
        last, row[0] = row[0], i
        for j, other in enumerate(wanted, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (letter != other))
    return max(0, len(wanted) - row[-1]), len(wanted)


def same_labels(reading: Any, wanted: Any) -> tuple[float, float]:
    """Return the number of equal labels, and of those that are wanted (0 or more)."""
    reading, wanted = np.atleast_1d(reading), np.atleast_1d(wanted)
    known = wanted >= 0
    return int((reading == wanted)[known].sum()), int(known.sum())


def same_boxes(reading: Array, wanted: Array) -> tuple[float, float]:
    """Return twice the number of pairs of boxes with an IoU of 0.5 and more, and the number of boxes of both."""
    total = len(reading) + len(wanted)
    if not len(reading) or not len(wanted):
        return 0, total
    found, taken = 0, np.zeros(len(wanted), bool)
    for box in reading:
        near = overlap(box, wanted) * ~taken
        best = int(near.argmax())
        if near[best] >= 0.5:
            taken[best], found = True, found + 1
    return 2 * found, total


def overlap(box: Array, boxes: Array) -> Array:
    """Return the IoU of a box (x0, y0, x1, y1, class) with several; 0 for another class."""
    sides = np.minimum(box[2:4], boxes[:, 2:4]) - np.maximum(box[:2], boxes[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=1)
    union = (box[2:4] - box[:2]).prod() + (boxes[:, 2:4] - boxes[:, :2]).prod(axis=1) - shared
    return np.asarray(shared / np.maximum(union, 1e-9) * (box[4] == boxes[:, 4]))


def same_mask(reading: Array, wanted: Array) -> tuple[float, float]:
    """Return the size of the intersection and of the union of two masks."""
    return int((reading & wanted).sum()), int((reading | wanted).sum())


def same_values(reading: Array, wanted: Array) -> tuple[float, float]:
    """Return the variance that is explained, and the whole variance."""
    wanted = wanted.astype(np.float64)
    total = float(((wanted - wanted.mean()) ** 2).sum())
    return max(0.0, total - float(((reading - wanted) ** 2).sum())), total


def within_50_cents(reading: Array, wanted: Array) -> tuple[float, float]:
    """Return the frames whose pitch is within 50 cents, and the frames with a pitch."""
    sung = wanted > 0
    apart = 1200 * np.abs(np.log2(np.maximum(reading[sung], 1e-3) / wanted[sung]))
    return int((apart <= 50).sum()), int(sung.sum())


# ------------------------------------------------------------------------------------------------------------------ readings


def ctc(letters: Sequence[str] | None, blank: int = 0, output: int = 0) -> Callable[[Outputs], str]:
    """Read text from (1, time, classes) or (time, 1, classes): repeated letters once, without blanks."""

    def read(outputs: Outputs) -> str:
        values = outputs[output]
        best = values.reshape(-1, values.shape[-1]).argmax(axis=1)
        kept = [int(k) for k, before in zip(best, [-1, *best[:-1]], strict=True) if k not in (before, blank)]
        return "".join(chr(0x4E00 + k) if letters is None else letters[min(k, len(letters) - 1)] for k in kept)

    return read


def digits(outputs: Outputs) -> str:
    """Read one digit from each output."""
    return "".join(str(int(values.argmax())) for values in outputs)


def best(output: int = 0) -> Callable[[Outputs], Any]:
    """Read the largest of the last axis, at each place."""
    return lambda outputs: outputs[output].reshape(-1, outputs[output].shape[-1]).argmax(axis=1)


def above(limit: float, output: int = 0, channel: int | None = None, axis: int = -1) -> Callable[[Outputs], Array]:
    """Read the places above a limit, as a mask."""

    def read(outputs: Outputs) -> Array:
        values = outputs[output] if channel is None else outputs[output].take(channel, axis=axis)
        return np.asarray(values > limit).reshape(-1)

    return read


def values(*chosen: int) -> Callable[[Outputs], Array]:
    """Read the values of some outputs (without numbers: the first), in one row."""
    return lambda outputs: np.concatenate([np.ravel(outputs[i]) for i in chosen or (0,)])


def blobs(limit: float, channel: int | None = None, smallest: int = 12) -> Callable[[Outputs], Array]:
    """Read the boxes around connected places of a map that are above a limit."""

    def read(outputs: Outputs) -> Array:
        there = outputs[0][0, channel] if channel is not None else outputs[0].reshape(outputs[0].shape[-2:])
        marked, _ = ndimage.label(there > limit)
        found = ndimage.find_objects(marked)
        sizes = ndimage.sum_labels(there > limit, marked, np.arange(1, len(found) + 1))
        return rows(
            [(x.start, y.start, x.stop, y.stop, 0) for (y, x), n in zip(found, sizes, strict=True) if n >= smallest]
        )

    return read


def rows(boxes: Sequence[Sequence[float]] | Array) -> Array:
    """Return boxes as an array (n, 5), also when there are none."""
    return np.asarray(boxes, np.float64).reshape(-1, 5)


def suppressed(boxes: Array, scores: Array, limit: float, keep: int = 50) -> Array:
    """Return the boxes (n, 5) above a limit that overlap no better one of their class."""
    order = np.argsort(-scores)[:300]
    boxes = boxes[order[scores[order] > limit]]
    kept: list[Array] = []
    for box in boxes:
        if len(kept) < keep and (not kept or overlap(box, np.stack(kept)).max() < 0.5):
            kept.append(box)
    return rows(np.stack(kept)) if kept else rows([])


def yolo26(limit: float) -> Callable[[Outputs], Array]:
    """Read (1, n, 6): corners, score, class."""

    def read(outputs: Outputs) -> Array:
        found = outputs[0][0].astype(np.float64)
        return suppressed(found[:, [0, 1, 2, 3, 5]], found[:, 4], limit)

    return read


def yolov8(limit: float) -> Callable[[Outputs], Array]:
    """Read (1, 4 + classes, n): centre, size, and a score per class."""

    def read(outputs: Outputs) -> Array:
        found = outputs[0][0].T.astype(np.float64)
        corners = np.concatenate([found[:, :2] - found[:, 2:4] / 2, found[:, :2] + found[:, 2:4] / 2], axis=1)
        classes = found[:, 4:].argmax(axis=1)
        return suppressed(np.c_[corners, classes], found[:, 4:].max(axis=1), limit)

    return read


def yolox(side: int, limit: float) -> Callable[[Outputs], Array]:
    """Read (1, n, 5 + classes) on grids of strides 8, 16 and 32: offset, logarithm of the size, score, score per class."""

    def read(outputs: Outputs) -> Array:
        found = outputs[0][0].astype(np.float64)
        grids = [
            np.stack(np.meshgrid(np.arange(side // s), np.arange(side // s)), -1).reshape(-1, 2) for s in (8, 16, 32)
        ]
        stride = np.concatenate([np.full(len(g), s) for g, s in zip(grids, (8, 16, 32), strict=True)])[:, None]
        centre = (found[:, :2] + np.concatenate(grids)) * stride
        size = np.exp(np.clip(found[:, 2:4], -10, 10)) * stride
        scores = found[:, 4] * found[:, 5:].max(axis=1)
        return suppressed(np.c_[centre - size / 2, centre + size / 2, found[:, 5:].argmax(axis=1)], scores, limit)

    return read


def picodet(height: int, width: int, limit: float) -> Callable[[Outputs], Array]:
    """Read four levels of scores and of distributions over the distances of the sides."""

    def read(outputs: Outputs) -> Array:
        found, scores = [], []
        for level, stride in enumerate((8, 16, 32, 64)):
            classes, sides = outputs[level][0], outputs[4 + level][0]
            grid = np.stack(np.meshgrid(np.arange(-(-width // stride)), np.arange(-(-height // stride))), -1).reshape(
                -1, 2
            )
            centre = (grid + 0.5) * stride
            shares = np.exp(sides.reshape(len(sides), 4, -1) - sides.max())
            distance = (shares / shares.sum(axis=2, keepdims=True)) @ np.arange(shares.shape[2]) * stride
            corners = np.c_[centre - distance[:, :2], centre + distance[:, 2:]]
            found.append(np.c_[corners, classes.argmax(axis=1)])
            scores.append(classes.max(axis=1))
        return suppressed(np.concatenate(found), np.concatenate(scores), limit)

    return read


def pitch(outputs: Outputs) -> Array:
    """Read the pitch of frames whose confidence is above 0.5, else 0."""
    return np.asarray(outputs[0][0] * (outputs[1][0] > 0.5), np.float64)

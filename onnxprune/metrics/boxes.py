"""Boxes of detectors: forms of their numbers, overlap, and suppression of doubles.

Boxes are (m, 4) corners x1 y1 x2 y2 in pixels unless a name says otherwise; sizes are (height, width) in pixels.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit, softmax

from onnxprune.data.labels.values import object_array
from onnxprune.types import Array, FloatArray, IntArray

BLOCK = 256
"""Candidates of the suppression that are compared at once."""
FLOOR, IOU, LIMIT = 0.001, 0.7, 300
"""Lowest score, IoU of the suppression, and most boxes of a sample, as ultralytics validates YOLO."""
CANDIDATES = 30_000
"""Candidates of the suppression of one sample, the highest scores first (ultralytics' `max_nms`)."""


def corners(boxes: Array) -> FloatArray:
    """Return (…, 4) corners of boxes that are given as centre and size, cx cy w h."""
    boxes = np.asarray(boxes, dtype=np.float64)
    half = boxes[..., 2:4] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)


def pixels(boxes: Array, size: tuple[int, int]) -> FloatArray:
    """Return (…, 4) corners or centres and sizes in pixels, of parts of the width and height."""
    height, width = size
    return np.asarray(boxes * np.array([width, height, width, height], dtype=np.float64))


def relative(boxes: Array) -> bool:
    """Return whether boxes are parts of the input's size: the median of their largest coordinates is at most 2."""
    return not boxes.size or bool(np.median(boxes.max(axis=-1)) <= 2)


def overlap(first: Array, second: Array) -> FloatArray:
    """Return the intersection over union, (a, b), of boxes (a, 4) and (b, 4); 0 for boxes without an area."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:4], second[None, :, 2:4])
    both = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:4] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - both
    return np.asarray(np.divide(both, union, out=np.zeros(both.shape), where=union > 0), dtype=np.float64)


def suppress(boxes: FloatArray, scores: Array, classes: Array, *, iou: float, limit: int) -> IntArray:
    """Return the numbers of the boxes that are left, the highest score first: suppression of doubles, class by class.

    A box is dropped where it overlaps a kept box of its class and a higher score by more than `iou`. Equal scores keep their order.

    Args:
        boxes: (m, 4) corners.
        scores: (m,).
        classes: (m,).
        iou: intersection over union, 0..1; 1 drops nothing.
        limit: largest number of boxes that are left.

    >>> boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9]])
    >>> suppress(boxes, np.array([0.8, 0.9, 0.7]), np.array([0, 0, 1]), iou=0.7, limit=300).tolist()
    [1, 2]
    """
    order = best(scores)
    kept = np.zeros(0, dtype=np.int64)
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        free = ~_doubles(boxes, classes, block, kept, iou).any(axis=1)
        block = block[free]
        doubles = _doubles(boxes, classes, block, block, iou)
        left = np.ones(len(block), dtype=bool)
        for number in range(len(block)):
            if left[number]:
                left[number + 1 :] &= ~doubles[number, number + 1 :]
        kept = np.concatenate([kept, block[left]])
        if len(kept) >= limit:
            break
    return kept[:limit]


def suppressed(
    boxes: Array, scores: Array, floor: float = FLOOR, iou: float = IOU, beside: Array | None = None
) -> Array:
    """Return what a suppression leaves of all samples: an (n,) object array of rows x1 y1 x2 y2 score class, the highest score first.

    Args:
        boxes: (n, A, 4) corners.
        scores: (n, A, c); a box counts for each class above the floor.
        floor: lowest score.
        iou: of `suppress`.
        beside: (n, A, k), further columns of the rows.
    """
    result = []
    for sample, (corner, score) in enumerate(zip(boxes, scores, strict=True)):
        pairs = np.flatnonzero(score >= floor)
        pairs = pairs[best(score.reshape(-1)[pairs])]
        anchors, classes = np.unravel_index(pairs, score.shape)
        rows = table(corner[anchors], score[anchors, classes], classes)
        left = suppress(rows[:, :4], rows[:, 4], classes, iou=iou, limit=LIMIT)
        more = () if beside is None else (beside[sample, anchors[left]],)
        result.append(np.concatenate([rows[left], *more], axis=1))
    return object_array(result)


def table(boxes: Array, scores: Array, classes: Array) -> FloatArray:
    """Return rows x1 y1 x2 y2 score class, (m, 6)."""
    return np.concatenate([boxes, scores[:, None], classes[:, None]], axis=1, dtype=np.float64)


def best(scores: Array) -> IntArray:
    """Return the numbers of the highest of (m,) scores, the highest first, at most `CANDIDATES`; equal scores keep their order."""
    chosen = np.arange(len(scores))
    if len(scores) > CANDIDATES:
        level = np.partition(scores, -CANDIDATES)[-CANDIDATES]
        above = np.flatnonzero(scores > level)
        chosen = np.sort(np.concatenate([above, np.flatnonzero(scores == level)[: CANDIDATES - len(above)]]))
    return np.asarray(chosen[np.argsort(-scores[chosen], kind="stable")])


def _doubles(boxes: FloatArray, classes: Array, first: IntArray, second: IntArray, iou: float) -> Array:
    """Return which boxes (a,) overlap which (b,) of the same class by more than `iou`, (a, b)."""
    return np.asarray((overlap(boxes[first], boxes[second]) > iou) & (classes[first][:, None] == classes[second][None]))


def probabilities(values: Array) -> Array:
    """Return probabilities: the values where all are in 0..1, else their sigmoid."""
    return values if _in_unit(values) else np.asarray(expit(values))


def shares(values: Array) -> Array:
    """Return probabilities of the classes on the last axis: the values where all are in 0..1, else their softmax."""
    return values if _in_unit(values) else np.asarray(softmax(values.astype(np.float64), axis=-1))


def _in_unit(values: Array) -> bool:
    """Return whether values are in 0..1, within the rounding of a softmax in half precision."""
    return not values.size or bool(values.min() >= -1e-3 and values.max() <= 1 + 1e-3)


def cells(size: tuple[int, int], strides: tuple[int, ...]) -> int:
    """Return the number of cells of the grids of all strides.

    >>> cells((640, 640), (8, 16, 32))
    8400
    """
    return sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in strides)


def grid(size: tuple[int, int], strides: tuple[int, ...], copies: int = 1) -> FloatArray:
    """Return column, row and stride of each cell of the grids of all strides, row by row, (cells x copies, 3)."""
    levels = []
    for stride in strides:
        rows, columns = np.mgrid[: -(-size[0] // stride), : -(-size[1] // stride)]
        levels.append(np.stack([columns.ravel(), rows.ravel(), np.full(rows.size, stride)], axis=1))
    return np.repeat(np.concatenate(levels), copies, axis=0).astype(np.float64)

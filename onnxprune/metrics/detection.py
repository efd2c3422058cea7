"""Mean average precision of boxes, masks and keypoints, as COCO defines it, on all samples and on resamples of them.

pycocotools matches the detections of each image to its objects, once per model. A resample draws whole images, so it keeps these matches:
an image that is drawn twice counts twice in the sums of the precision-recall curve, and no image is matched again.

Source: T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context" (ECCV 2014, https://arxiv.org/abs/1405.0312), and `COCOeval` of
pycocotools. With each image once, results equal its `stats[0]` and `stats[1]`. What differs between images of one score is the order of
images, as it is there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.data.instances import areas, hold_masks
from onnxprune.data.labels.values import object_array
from onnxprune.errors import DataError, OptionError
from onnxprune.metrics.statistics import Statistic
from onnxprune.types import Array, BoolArray, FloatArray, IntArray

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoU or OKS at which a detection matches an object: .50:.05:.95."""
RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which the precision is read."""
BOXES, POSES = 100, 20
"""Detections of an image and class that count, the highest scores first: of boxes, of keypoints (COCO's limits)."""
LARGEST = 1e5**2
"""Largest area of an object and of a detection (pixels²): COCO's area "all"."""
SIGMAS = (
    np.array([0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89])
    / 10
)
"""Deviations of people who mark the 17 keypoints of COCO, relative to the root of the object's area."""
BODY = 0.53
"""Area of an object over that of its box, where only the box is known (CrowdPose, https://arxiv.org/abs/1812.00324, and ultralytics)."""
ELEMENTS = 4_000_000
"""Detections times resamples that are computed at once, which bounds the memory (32 MB per array)."""


def mean_average_precision(predictions: Array, labels: Array) -> Statistic:
    """Return the COCO mAP of boxes at IoU .50:.05:.95, of all areas, as a function of resamples.

    Args:
        predictions: (n,) object array of (m, 6): x1 y1 x2 y2 score class, in pixels; further columns (keypoints) are ignored. Detections
            with a number that is not finite are dropped. `Instances` are read as their boxes.
        labels: (n,) object array of (m, 6): x1 y1 x2 y2 class crowd, crowd 1 for a region of many objects; further columns are ignored.

    Returns:
        Amounts in percent; NaN where the resample has no object. Classes without an object in a resample do not count there.

    Raises:
        OptionError: pycocotools is not installed.
        DataError: a sample has another form.

    >>> def of(*arrays):
    ...     result = np.empty(len(arrays), dtype=object)
    ...     result[:] = [np.array(rows, dtype=float) for rows in arrays]
    ...     return result
    >>> found = of([[0, 0, 10, 10, 0.9, 1]], [[0, 0, 10, 10, 0.8, 1], [50, 50, 60, 60, 0.95, 1]])
    >>> there = of([[0, 0, 10, 10, 1, 0]], [[0, 0, 10, 10, 1, 0]])
    >>> mean_average_precision(found, there)(np.array([[2, 0], [0, 2]])).round(6).tolist()
    [100.0, 50.0]
    """
    return _statistic(predictions, labels, THRESHOLDS)


def at_half(predictions: Array, labels: Array) -> Statistic:
    """Return the mAP of boxes at IoU 0.5, in percent, as a function of resamples; see `mean_average_precision`.

    Detections are matched at this IoU alone.
    """
    return _statistic(predictions, labels, THRESHOLDS[:1])


def mask_average_precision(predictions: Array, labels: Array) -> Statistic:
    """Return the COCO mAP of masks at IoU .50:.05:.95, of all areas, in percent, as a function of resamples.

    Args:
        predictions: (n,) object array of `Instances`; see `mean_average_precision`.
        labels: the same, with masks of the same sizes.

    Raises:
        OptionError: pycocotools is not installed.
        DataError: a sample has another form or no masks, or masks of a sample differ in size.
    """
    for number, pair in enumerate(zip(predictions, labels, strict=True)):
        if not hold_masks(pair):
            raise DataError("a sample has no masks", where=f"sample {number}")
        sizes = {tuple(mask["size"]) for one in pair for mask in one.masks}
        if len(sizes) > 1:
            raise DataError(
                "masks of labels and predictions differ in size",
                where=f"sample {number}",
                why=f"they are {' and '.join(f'{width} x {height}' for height, width in sorted(sizes))}",
                hint="give a --preprocess with which all pictures have one size",
            )
    return _statistic(predictions, labels, THRESHOLDS, masks=True)


def keypoint_average_precision(predictions: Array, labels: Array) -> Statistic:
    """Return the COCO mAP of keypoints at object keypoint similarity (OKS) .50:.05:.95, as a function of resamples.

    The similarity divides distances by a deviation per keypoint: COCO's deviations where there are 17 keypoints, else 1/K for each of K.
    The area of an object, which labels do not tell, is 0.53 of its box. At most 20 detections of an image and class count. Objects
    without a visible keypoint are neither found nor missed.

    Args:
        predictions: (n,) object array of (m, 6 + 3K): x1 y1 x2 y2 score class, then x y confidence of each keypoint, in pixels.
        labels: (n,) object array of (m, 6 + 3K): x1 y1 x2 y2 class crowd, then x y visibility (0: not marked, 1: hidden, 2: visible).

    Returns:
        Amounts in percent; NaN where the resample has no object.

    Raises:
        OptionError: pycocotools is not installed.
        DataError: a sample has another form.
    """
    widths = {rows.shape[1] for rows in labels if getattr(rows, "ndim", 0) == 2 and len(rows)}
    width = min(widths, default=9)
    if len(widths) > 1 or width < 9 or width % 3:
        raise DataError("labels of keypoints are rows of one length, 6 + 3K", why=f"rows have {sorted(widths)} columns")
    return _statistic(predictions, labels, THRESHOLDS, keypoints=(width - 6) // 3)


# --------------------------------------------------------------------------------------------------------------- precision


@dataclass(frozen=True)
class _Class:
    """Detections of one class, the highest score first, equal scores in the order of images.

    Attributes:
        images: (d,), number of the image.
        hits: (thresholds, d), matches an object that counts.
        ignored: (thresholds, d), neither right nor wrong: it matches a crowd; None: there is none.
        starts: (groups + 1,), first detection of each run of detections of one image and one score.
        mixed: images with a run in which some detections match and some do not.
    """

    images: IntArray
    hits: BoolArray
    ignored: BoolArray | None
    starts: IntArray
    mixed: IntArray

    def average(self, counts: IntArray, truths: FloatArray) -> FloatArray:
        """Return the average precision, (r,), on resamples (r, n) that have (r,) objects of the class."""
        result = np.zeros(len(counts))
        if not len(self.images):
            return result
        # copies of an image follow each other: its detections of one score come in turn, which weights do not show
        copied = (counts[:, self.mixed] > 1).any(axis=1) if len(self.mixed) else np.zeros(len(counts), dtype=bool)
        plain = np.flatnonzero(~copied)
        for part in np.array_split(plain, max(1, -(-len(plain) * len(self.images) // ELEMENTS))):
            weights = counts[np.ix_(part, self.images)].astype(np.float64)
            result[part] = _average(weights, self.hits, self.ignored, truths[part])
        for row in np.flatnonzero(copied):
            order = self._copied(counts[row])
            ignored = None if self.ignored is None else self.ignored[:, order]
            result[row] = _average(np.ones((1, len(order))), self.hits[:, order], ignored, truths[row : row + 1])[0]
        return result

    def _copied(self, counts: IntArray) -> IntArray:
        """Return numbers of detections where each image is there as often as it is drawn."""
        sizes = np.diff(self.starts)
        runs = np.repeat(np.arange(len(sizes)), counts[self.images[self.starts[:-1]]])
        ends = np.cumsum(sizes[runs])
        first = self.starts[:-1][runs] - (ends - sizes[runs])
        return np.repeat(first, sizes[runs]) + np.arange(ends[-1] if len(ends) else 0)


def _average(weights: FloatArray, hits: BoolArray, ignored: BoolArray | None, truths: FloatArray) -> FloatArray:
    """Return the average precision, (r,), over thresholds and recalls.

    The precision at a recall is the largest one at that recall or above. Only a match raises precision or recall, so matches alone are
    looked at. Among the recalls of the curve those between two matches read the precision of the second one.

    Args:
        weights: (r, d), times that each detection counts, the highest score first.
        hits: (t, d), the detection matches.
        ignored: (t, d), the detection does not count; None: all count.
        truths: (r,), number of objects, above 0.
    """
    before = np.cumsum(weights, axis=1)
    result = np.zeros(len(weights))
    for number, hit in enumerate(hits):
        at = np.flatnonzero(hit)
        if not len(at):
            continue
        found = np.cumsum(weights[:, at], axis=1)
        counted = before[:, at]
        if ignored is not None and ignored[number].any():
            counted = counted - np.cumsum(weights * ignored[number], axis=1)[:, at]
        precision = found / (counted + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(RECALLS, found / truths[:, None], side="right")
        result += (precision * np.diff(reached, axis=1, prepend=0)).sum(axis=1)
    return np.asarray(result / (len(hits) * len(RECALLS)))


@dataclass(frozen=True)
class AveragePrecision:
    """The mean over classes of their average precision, in percent, as a function of resamples.

    Attributes:
        truths: (n, classes), objects of each image that count.
        classes: matched detections of each class.
    """

    truths: FloatArray
    classes: Sequence[_Class]

    def __call__(self, counts: IntArray) -> FloatArray:
        """Return the metric on resamples, (r, n) -> (r,); NaN where there is no object."""
        truths = counts.astype(np.float64) @ self.truths
        total = np.zeros(len(counts))
        for number, one in enumerate(self.classes):
            there = np.flatnonzero(truths[:, number])
            if len(there):
                total[there] += one.average(counts[there], truths[there, number])
        with np.errstate(invalid="ignore"):
            return np.asarray(100 * total / np.count_nonzero(truths, axis=1))


# ---------------------------------------------------------------------------------------------------------------- matching


def _statistic(
    predictions: Array, labels: Array, thresholds: FloatArray, keypoints: int = 0, *, masks: bool = False
) -> Statistic:
    """Match detections at thresholds, and return their mean average precision."""
    found, image = _rows(predictions, "predictions", 6 + 3 * keypoints)
    truth, place = _rows(labels, "labels", 6 + 3 * keypoints)
    classes = np.unique(truth[:, 4])
    chosen = _counting(found, image, classes, POSES if keypoints else BOXES)
    found, image = found[chosen], image[chosen]
    outlines = (_masks(predictions)[chosen], _masks(labels)) if masks else None
    hits, ignored, counts = _match(found, image, truth, place, thresholds, keypoints, outlines)
    truths = np.zeros((len(labels), len(classes)))
    np.add.at(truths, (place, np.searchsorted(classes, truth[:, 4])), counts)
    edges = np.searchsorted(found[:, 5], np.append(classes, np.inf))
    parts = [slice(*pair) for pair in itertools.pairwise(edges)]
    of = [_class(image[part], found[part, 4], hits[:, part], ignored[:, part]) for part in parts]
    return AveragePrecision(truths, of)


def _masks(samples: Array) -> Array:
    """Return the masks of all samples, an object array."""
    return object_array([mask for one in samples for mask in one.masks])


def _rows(samples: Array, what: str, width: int) -> tuple[FloatArray, IntArray]:
    """Return the rows of all samples, their first columns, and the number of the sample of each row."""
    arrays = []
    for number, rows in enumerate(samples):
        rows = np.asarray(rows, dtype=np.float64)
        rows = rows.reshape(-1, width) if not rows.size else rows
        if rows.ndim != 2 or rows.shape[1] < width:
            raise DataError(
                f"{what} of a sample are rows of {width} numbers",
                where=f"sample {number}",
                why=f"its shape is {rows.shape}",
            )
        arrays.append(rows[:, :width])
    place = np.repeat(np.arange(len(arrays)), [len(rows) for rows in arrays])
    return np.concatenate([np.empty((0, width)), *arrays]), place


def _counting(found: FloatArray, image: IntArray, classes: FloatArray, limit: int) -> IntArray:
    """Return the numbers of the detections that count: finite ones of classes that have objects, at most `limit` of an image and class.

    They are in the order of class, image, falling score and their own order.
    """
    known = np.flatnonzero(np.isfinite(found).all(axis=1) & np.isin(found[:, 5], classes))
    known = known[np.lexsort((-found[known, 4], image[known], found[known, 5]))]
    first = np.flatnonzero(_starts(found[known, 5], image[known]))
    rank = np.arange(len(known)) - np.repeat(first, np.diff(np.append(first, len(known))))
    return known[rank < limit]


def _starts(*keys: Array) -> BoolArray:
    """Return where any of the keys differs from the one before."""
    return np.concatenate(
        [np.ones(min(1, len(keys[0])), dtype=bool), np.any([key[1:] != key[:-1] for key in keys], axis=0)]
    )


def _class(image: IntArray, scores: FloatArray, hits: BoolArray, ignored: BoolArray) -> _Class:
    """Return the detections of a class in the order of their scores."""
    order = np.argsort(-scores, kind="stable")
    hits, edges = hits[:, order], np.append(np.flatnonzero(_starts(image[order], scores[order])), len(order))
    # behind the run of the last match nothing changes the curve
    matched = np.flatnonzero(hits.any(axis=0))
    edges = edges[: np.searchsorted(edges, matched[-1], side="right") + 1] if len(matched) else edges[:1]
    order, hits = order[: edges[-1]], hits[:, : edges[-1]]
    image, ignored = image[order], ignored[:, order]
    state = hits + 2 * ignored
    same = np.zeros(len(order), dtype=bool)
    same[1:] = (state[:, 1:] == state[:, :-1]).all(axis=0)
    same[edges[:-1]] = True
    return _Class(image, hits, ignored if ignored.any() else None, edges, np.unique(image[~same]))


def _match(
    found: FloatArray,
    image: IntArray,
    truth: FloatArray,
    place: IntArray,
    thresholds: FloatArray,
    keypoints: int,
    masks: tuple[Array, Array] | None,
) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Match detections with objects of the same image and class, by `COCOeval.evaluateImg`; with masks of both by these.

    Returns:
        (t, d) detections that match an object that counts, (t, d) those that do not count, (objects,) objects that count.
    """
    evaluation = _evaluation(thresholds, keypoints, "keypoints" if keypoints else "segm" if masks else "bbox")
    boxes = found[:, 2:4] - found[:, :2]
    area = areas(list(masks[0])) if masks else _extent(found[:, 6:]) if keypoints else boxes[:, 0] * boxes[:, 1]
    hits = np.zeros((len(thresholds), len(found)), dtype=bool)
    # without a match, a detection outside of the range of areas does not count
    ignored = np.repeat(((area < 0) | (area > LARGEST))[None], len(thresholds), axis=0)
    counts = np.zeros(len(truth), dtype=bool)
    order = np.lexsort((place, truth[:, 4]))
    detections = np.concatenate([found[:, :2], boxes, found[:, 4:5], area[:, None], found[:, 6:]], axis=1).tolist()
    for members in np.split(order, np.flatnonzero(_starts(truth[order, 4], place[order]))[1:]) if len(order) else ():
        start, stop = _span(found[:, 5], image, truth[members[0], 4], place[members[0]])
        there = list(_objects(truth[members], members))
        given = [
            {"bbox": row[:4], "score": row[4], "area": row[5], "keypoints": row[6:], "id": start + number + 1}
            for number, row in enumerate(detections[start:stop])
        ]
        for one, mask in (
            zip([*given, *there], [*masks[0][start:stop], *masks[1][members]], strict=True) if masks else ()
        ):
            one["segmentation"] = mask
        evaluation._gts, evaluation._dts = {(0, 0): there}, {(0, 0): given}
        measure = evaluation.computeOks if keypoints else evaluation.computeIoU
        evaluation.ious = {(0, 0): measure(0, 0)}
        result = evaluation.evaluateImg(0, 0, [0, LARGEST], stop - start)
        matched, skipped = result["dtMatches"] > 0, result["dtIgnore"].astype(bool)
        hits[:, start:stop], ignored[:, start:stop] = matched & ~skipped, skipped
        counts[np.array(result["gtIds"]) - 1] = np.asarray(result["gtIgnore"]) == 0
    return hits, ignored, counts


def _span(classes: FloatArray, image: IntArray, kind: float, sample: int) -> tuple[int, int]:
    """Return where the detections of a class and image begin and end, among detections in the order of both."""
    start, stop = np.searchsorted(classes, kind, "left"), np.searchsorted(classes, kind, "right")
    inside = image[start:stop]
    return int(start + np.searchsorted(inside, sample, "left")), int(start + np.searchsorted(inside, sample, "right"))


def _objects(rows: FloatArray, numbers: IntArray) -> Iterator[dict[str, Any]]:
    """Return objects of one image and class in the form of pycocotools; an id is above 0."""
    pose = rows.shape[1] > 6
    for row, number in zip(rows, numbers, strict=True):
        x1, y1, x2, y2, _, crowd = row[:6].tolist()
        points = row[6:].tolist()
        yield {
            "id": int(number) + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1) * (BODY if pose else 1.0),
            "iscrowd": int(crowd > 0),
            "ignore": int(crowd > 0 or (pose and not any(seen > 0 for seen in points[2::3]))),
            "keypoints": points,
        }


def _extent(points: FloatArray) -> FloatArray:
    """Return the area of the box of keypoints, (m,), as pycocotools takes it for that of a detection."""
    x, y = points[:, 0::3], points[:, 1::3]
    return np.asarray(np.ptp(x, axis=1) * np.ptp(y, axis=1)) if len(points) else np.zeros(0)


def _evaluation(thresholds: FloatArray, keypoints: int, kind: str) -> Any:
    """Return an evaluation of pycocotools without data: of a kind, and of objects with a number of keypoints."""
    try:
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise OptionError("mAP of detections needs pycocotools", hint="pip install 'onnxprune[detect]'") from error
    evaluation = COCOeval(iouType=kind)
    evaluation.params.iouThrs = thresholds
    evaluation.params.maxDets = [POSES if keypoints else BOXES]
    if keypoints:
        known = keypoints == len(SIGMAS)
        evaluation.params.kpt_oks_sigmas = SIGMAS if known else np.full(keypoints, 1 / keypoints)
    return evaluation

"""What makes boxes and masks doubtful as labels: classes in another order, corners in another form, objects that are not where they are said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from onnxprune.evaluation.sanity import BETTER, FEW, OVERCONFIDENT, REMEDY, assignment
from onnxprune.metrics.boxes import corners, overlap, relative
from onnxprune.metrics.outputs import Outputs, log_probabilities
from onnxprune.metrics.segmentation import IGNORED, resized
from onnxprune.types import Array, BoolArray, Check, FloatArray, IntArray, doubt

SAMPLES = 256
"""Samples that are looked at."""
PIXELS = 2**20
"""Pixels that are looked at."""
SURE = 0.5
"""Score from which a detection is taken at its word."""
MATCH = 0.5
"""IoU at which a detection matches an object."""
SLIGHT = 0.2
"""Cohen's kappa up to which agreement is slight (Landis and Koch, 1977, "The measurement of observer agreement for categorical data")."""
FORMS: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "x, y, width, height": lambda boxes: np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
    "centre, width, height": corners,
    "y1, x1, y2, x2": lambda boxes: boxes[:, [1, 0, 3, 2]],
}
"""Other readings of four numbers of a box, as corners."""


def label_doubts(name: str, predictions: Array | None, labels: Array | None, outputs: Outputs) -> Iterator[Check]:
    """Say what is doubtful about labels, as the original sees them.

    Args:
        name: a key of `onnxprune.metrics.table.TASKS`.
        predictions: of the original, samples first.
        labels: of the same samples, as the metrics of the task take them.
        outputs: of the original; of maps of scores, its confidence is taken.
    """
    if predictions is None or labels is None:
        return
    some = np.unique(np.linspace(0, len(labels) - 1, SAMPLES, dtype=np.int64))
    if name in ("detect", "keypoints"):
        yield from _of_boxes([predictions[i][:, :6] for i in some], [labels[i][:, :6] for i in some])
    if name == "segment":
        scores = next((o for o in outputs if o.ndim == 4 and o.shape[2:] == predictions.shape[1:]), None)
        yield from _of_masks(predictions[some], labels[some], None if scores is None else scores[some])


# ------------------------------------------------------------------------------------------------------------------ boxes


def _of_boxes(found: list[FloatArray], there: list[FloatArray]) -> Iterator[Check]:
    every = np.concatenate(there)
    if not len(every):
        yield doubt("no objects in the labels", f"all {len(there)} samples", "give samples with objects")
        return
    sides = every[:, 2:4] - every[:, :2]
    empty = int((sides <= 0).any(axis=1).sum())
    boxes = every[(every[:, :4] != 0).any(axis=1), :4]
    if len(boxes) and relative(boxes):
        told = f"the largest coordinate is {every[:, :4].max():.3g}: give them in pixels of the network's input"
        yield doubt("boxes in shares of the picture", f"{len(every)} boxes", told)
        return
    form = _better_form(found, there)
    if form:
        yield doubt("boxes in another form", *form)
        return
    if empty > 0.1 * len(every):
        told = "have no area: give x1, y1, x2, y2 and the class, and pad with the class -1"
        yield doubt("boxes without area", f"{empty} of {len(every)}", told)
        return
    given, labels = _pairs(found, there)
    yield from other_classes(given, labels, "objects")
    sure = [rows[rows[:, 4] >= SURE] for rows in found]
    scores, hits = np.concatenate([rows[:, 4] for rows in sure]), np.concatenate([*map(_hits, sure, there)])
    if len(hits) >= FEW:
        yield from too_sure(scores, hits, "boxes")


def _hits(rows: FloatArray, objects: FloatArray) -> BoolArray:
    """Return which detections overlap an object of any class, (m,)."""
    if not len(objects) or not len(rows):
        return np.zeros(len(rows), dtype=bool)
    return np.asarray(overlap(rows[:, :4], objects[:, :4]).max(axis=1) >= MATCH)


def _better_form(found: list[FloatArray], there: list[FloatArray]) -> tuple[str, str] | None:
    """Return the share of the surest detections that overlap an object, and a form of the boxes with which it is much larger."""
    surest = [
        rows[np.argsort(-rows[:, 4], kind="stable")[: len(objects)]] for rows, objects in zip(found, there, strict=True)
    ]
    if sum(map(len, surest)) < FEW:
        return None

    def share(read: Callable[[FloatArray], FloatArray]) -> float:
        return 100 * float(np.concatenate([*map(_hits, surest, [read(objects[:, :4]) for objects in there])]).mean())

    as_given = share(lambda boxes: boxes)
    shares = {form: share(read) for form, read in FORMS.items()}
    best = max(shares, key=lambda form: shares[form])
    if shares[best] - as_given < BETTER:
        return None
    return (
        f"{as_given:.0f} %",
        f"of the original's boxes overlap an object, read as {best} {shares[best]:.0f} %: give x1, y1, x2, y2",
    )


def _pairs(found: list[FloatArray], there: list[FloatArray]) -> tuple[IntArray, IntArray]:
    """Return the class of the surest detection of each object, and that of the object."""
    given, labels = [], []
    for rows, objects in zip(found, there, strict=True):
        if not len(rows) or not len(objects):
            continue
        scores = np.where(overlap(rows[:, :4], objects[:, :4]) >= MATCH, rows[:, 4:5], -1.0)
        best = scores.argmax(axis=0)
        is_found = scores.max(axis=0) > 0
        given.append(rows[best[is_found], 5])
        labels.append(objects[is_found, 4])
    return tuple(np.concatenate([np.zeros(0), *each]).astype(np.int64) for each in (given, labels))  # type: ignore[return-value]


# ------------------------------------------------------------------------------------------------------------------ masks


def _of_masks(found: Array, there: Array, scores: Array | None) -> Iterator[Check]:
    there = np.stack([resized(mask, found.shape[1:]) for mask in there])
    step = -(-found.size // PIXELS)
    given, labels = (maps.reshape(-1)[::step].astype(np.int64) for maps in (found, there))
    valid = (labels >= 0) & (labels != IGNORED)
    if not valid.any():
        yield doubt("no pixels in the labels", f"all {len(there)} samples", f"{IGNORED} is ignored: give class numbers")
        return
    given, labels = given[valid], labels[valid]
    yield from other_classes(given, labels, "pixels", balanced=True)
    objects = given != np.bincount(given).argmax()  # the background is easy
    if scores is not None and scores.shape[1] > 1 and objects.sum() >= FEW:
        flat = np.moveaxis(scores, 1, -1).reshape(-1, scores.shape[1])[::step][valid][objects]
        sure = np.exp(log_probabilities(flat).max(axis=1))
        yield from too_sure(sure, given[objects] == labels[objects], "pixels beside those of the most frequent class")


# ---------------------------------------------------------------------------------------------------------------- classes


def too_sure(confidence: FloatArray, is_right: BoolArray, what: str) -> Iterator[Check]:
    """Say that far fewer predictions are right than the original says."""
    said, rate = 100 * float(confidence.mean()), 100 * float(is_right.mean())
    if said - rate > OVERCONFIDENT:
        told = f"of its {what}, although its probability for them is {said:.0f} % on average: {REMEDY}, and its labels to the samples"
        yield doubt("original too sure", f"{rate:.0f} % right", told)


def other_classes(given: IntArray, labels: IntArray, what: str, *, balanced: bool = False) -> Iterator[Check]:
    """Say that the classes of the labels are not those of the model.

    Args:
        given: (n,) predicted classes.
        labels: (n,) classes of the same objects.
        what: the objects, in words.
        balanced: whether each class of the labels counts alike, and agreement is that beside the most frequent one.

    >>> labels = np.arange(300) % 3
    >>> [found.detail.split(", ")[1].split(":")[0] for found in other_classes(labels, labels + 1, "objects")]
    ['with labels -1 they are 100 %']
    """
    given = np.maximum(given, -1) + 1  # of no class: 0
    labels = labels + 1
    if len(labels) < FEW:
        return
    used, place = np.unique(np.concatenate([given, labels]), return_inverse=True)
    confusion = np.zeros((len(used), len(used)))
    np.add.at(confusion, (place[len(given) :], place[: len(given)]), 1)
    there = confusion.sum(axis=1)
    weighed = confusion / np.maximum(there, 1)[:, None] / (there > 0).sum() if balanced else confusion / len(labels)
    before, after, how = assignment(weighed, used)
    told = f"of the {what} are of the class that the original gives"
    if after - before >= BETTER and after - before >= 200 * len(used) / len(labels):
        how = f"{how} they are {after:.0f} %: check the order and the first number of the classes"
        yield doubt("labels of other classes", f"{before:.0f} %", f"{told}, {how}")
        return
    absent = 100 * float(weighed[:, there == 0].sum())
    if absent >= BETTER:
        how = f"for {absent:.0f} % it gives classes that no label has: check that the labels belong to this model"
        yield doubt("labels of other classes", f"{before:.0f} %", f"{told}, {how}")
        return
    rows = confusion[there != there.max()] if balanced else confusion
    same = np.trace(confusion) - (confusion[there.argmax(), there.argmax()] if balanced else 0)
    total = rows.sum()
    if not total:
        return
    chance = float((rows.sum(axis=0) * (there * (there != there.max()) if balanced else there)).sum()) / total**2
    kappa = (same / total - chance) / (1 - chance) if chance < 1 else 1.0
    if same / total < 0.5 and kappa < SLIGHT:
        yield doubt(
            "classes near chance", f"{100 * same / total:.0f} %", f"{told}: {REMEDY}, and its labels to the samples"
        )

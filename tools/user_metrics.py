"""Metrics that `tools/tasks.py` gives to `--metric`: each computes with its own code, or with a library, what `--task` computes.

Every function takes the outputs of the model and the labels of the same samples, samples first, and returns percent. A function is called
on each resample of the bootstrap; boxes of a sample are decoded once, and kept by the bytes of its outputs.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

Array = np.ndarray[Any, Any]
Decode = Callable[[Array], list[list[float]]]
BYTE = 255
_decoded: dict[tuple[str, bytes], list[list[float]]] = {}


# ------------------------------------------------------------------------------------------------------------------ detectors


def yolov8_map(outputs: Array, labels: Array) -> float:
    """Return COCO mAP of a detector that gives (4 + classes, anchors): centre, size, and a score per class."""
    return _coco(_yolov8, outputs, labels)[0]


def end2end_map(outputs: Array, labels: Array) -> float:
    """Return COCO mAP of a detector that gives (boxes, 6): corners, score, class."""
    return _coco(_end2end, outputs, labels)[0]


def db_map(outputs: Array, labels: Array) -> float:
    """Return COCO mAP of a text detector that gives a map of probabilities."""
    return _coco(_db, outputs, labels)[0]


def _yolov8(output: Array) -> list[list[float]]:
    """Return rows x1 y1 x2 y2 score class: scores of 0.001 and more, suppressed at an IoU of 0.7 within each class, 300 at most."""
    rows = output.T.astype(np.float64)
    found = []
    for kind in range(rows.shape[1] - 4):
        kept: list[Array] = []
        scores = output[4 + kind]
        for anchor in sorted(np.flatnonzero(scores >= 0.001), key=lambda k: -scores[k]):
            x, y, w, h = rows[anchor, :4]
            box = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2, float(scores[anchor]), kind])
            if not kept or max(_iou(box, np.array(kept))) <= 0.7:
                kept.append(box)
        found += [box.tolist() for box in kept]
    return sorted(found, key=lambda box: -box[4])[:300]


def _iou(box: Array, boxes: Array) -> Array:
    sides = np.minimum(box[2:4], boxes[:, 2:4]) - np.maximum(box[:2], boxes[:, :2])
    both = np.clip(sides, 0, None).prod(axis=1)
    area = (box[2] - box[0]) * (box[3] - box[1])
    return np.asarray(both / (area + (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) - both))


def _end2end(output: Array) -> list[list[float]]:
    return [row.tolist() for row in output.astype(np.float64) if row[4] >= 0.001]


def _db(output: Array) -> list[list[float]]:
    """Return a box for each region above 0.3 whose mean is 0.6 and more, enlarged by 1.5 x area / perimeter, as PP-OCR does."""
    text = output[0]
    height, width = text.shape
    regions, _ = ndimage.label(text > 0.3, structure=np.ones((3, 3), dtype=int))
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(regions), 1):
        score = float(text[regions == number].astype(np.float64).mean())
        h, w = rows.stop - rows.start, columns.stop - columns.start
        if score < 0.6 or min(h, w) < 3:
            continue
        grow = 1.5 * h * w / (2 * (h + w))
        left, top = max(columns.start - grow, 0), max(rows.start - grow, 0)
        found.append([left, top, min(columns.stop + grow, width), min(rows.stop + grow, height), score, 0])
    return found


def _boxes_of(decode: Decode, output: Array) -> list[list[float]]:
    key = (decode.__name__, output.tobytes())
    if key not in _decoded:
        _decoded[key] = decode(output)
    return _decoded[key]


def _coco(decode: Decode, outputs: Array, labels: Array) -> tuple[float, float]:
    """Return COCO mAP and mAP at IoU 0.5, in percent, by pycocotools."""
    from pycocotools.coco import COCO  # type: ignore[import-untyped]
    from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

    there = [(i, row) for i, rows in enumerate(labels) for row in np.asarray(rows, dtype=float).tolist() if row[4] >= 0]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(len(labels))],
            "categories": [{"id": int(kind)} for kind in sorted({row[4] for _, row in there})],
            "annotations": [
                {"id": k, "image_id": i, "category_id": int(row[4]), "iscrowd": 0, "bbox": _xywh(row),
                 "area": (row[2] - row[0]) * (row[3] - row[1])}
                for k, (i, row) in enumerate(there, 1)
            ],
        }  # fmt: skip
        coco.createIndex()
        results = [
            {"image_id": i, "category_id": int(row[5]), "bbox": _xywh(row), "score": row[4]}
            for i, output in enumerate(outputs)
            for row in _boxes_of(decode, output)
        ]
        if not results:
            return 0.0, 0.0
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0]), 100 * float(evaluation.stats[1])


def _xywh(row: list[float]) -> list[float]:
    return [row[0], row[1], row[2] - row[0], row[3] - row[1]]


# --------------------------------------------------------------------------------------------------------------------- others


def scores_miou(outputs: Array, labels: Array) -> float:
    """Return the mean over classes of intersection over union, for outputs (n, classes, h, w)."""
    return _miou(outputs.argmax(axis=1), labels)


def text_miou(outputs: Array, labels: Array) -> float:
    """Return the mean of background and text of intersection over union, for maps of probabilities (n, 1, h, w)."""
    return _miou(outputs[:, 0] > 0.5, labels)


def _miou(found: Array, labels: Array) -> float:
    valid = labels != BYTE
    found, there = found[valid].astype(int), labels[valid].astype(int)
    overlaps = []
    for kind in sorted({*np.unique(found), *np.unique(there)}):
        one, two = found == kind, there == kind
        overlaps.append((one & two).sum() / (one | two).sum())
    return float(100 * np.mean(overlaps))


def text_cer(outputs: Array, labels: Array) -> float:
    """Return edits per 100 characters, for scores (n, steps, classes); the characters are in characters.txt."""
    from rapidfuzz.distance import Levenshtein

    characters = ["", *Path("characters.txt").read_text(encoding="utf-8").rstrip("\n").split("\n"), " "]
    edits = length = 0
    for best, label in zip(outputs.argmax(axis=2), labels, strict=True):
        read, before = "", 0
        for k in best:
            if k not in (before, 0):
                read += characters[k]
            before = k
        edits, length = edits + Levenshtein.distance(read, label), length + len(label)
    return 100 * edits / length


def r2_percent(outputs: Array, labels: Array) -> float:
    """Return the coefficient of determination, mean over outputs, by scikit-learn."""
    from sklearn.metrics import r2_score  # type: ignore[import-untyped]

    return 100 * float(r2_score(labels.astype(np.float64), outputs.astype(np.float64)))


def nearest_percent(outputs: Array, labels: Array) -> float:
    """Return the percentage of samples whose nearest other sample, by cosine, is of the same identity, by scikit-learn."""
    from sklearn.neighbors import NearestNeighbors  # type: ignore[import-untyped]

    search = NearestNeighbors(n_neighbors=1, metric="cosine").fit(outputs)
    nearest = search.kneighbors(return_distance=False)[:, 0]
    return float(100 * np.mean(labels[nearest] == labels))

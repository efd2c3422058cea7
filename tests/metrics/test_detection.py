"""Mean average precision of detections, against pycocotools on all samples and on samples drawn several times."""

from __future__ import annotations

import contextlib
import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import DataError, OptionError
from onnxprune.metrics import detection
from onnxprune.metrics.statistics import on_all

pytest.importorskip("pycocotools")


def objects(arrays: list[np.ndarray]) -> np.ndarray:
    result = np.empty(len(arrays), dtype=object)
    for number, rows in enumerate(arrays):
        result[number] = rows
    return result


def drawn(seed: int, images: int, classes: int, digits: int, keypoints: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions near random objects and others, scores of few digits (ties), some objects crowds."""
    random = np.random.default_rng(seed)
    predictions, labels = [], []
    for _ in range(images):
        count = random.integers(0, 5)
        low = random.integers(0, 40, (count, 2))
        truth = np.column_stack(
            [
                low,
                low + random.integers(4, 30, (count, 2)),
                random.integers(0, classes, count),
                random.random(count) < 0.2,
            ]
        ).astype(float)
        points = np.concatenate(
            [random.uniform(0, 70, (count, keypoints, 2)), random.integers(0, 3, (count, keypoints, 1))], axis=2
        )
        points *= random.random((count, 1, 1)) > 0.2  # some objects have no keypoint
        labels.append(np.concatenate([truth, points.reshape(count, 3 * keypoints)], axis=1))
        near = random.integers(0, count, random.integers(0, 8)) if count else np.zeros(0, dtype=int)
        far = random.integers(0, 4)
        corner = random.integers(0, 40, (far, 2))
        boxes = np.concatenate(
            [
                truth[near, :4] + random.integers(-3, 4, (len(near), 4)),
                np.concatenate([corner, corner + random.integers(4, 30, (far, 2))], axis=1),
            ]
        )
        kinds = np.concatenate([truth[near, 4], random.integers(0, classes + 1, far)])
        places = np.concatenate(
            [points[near] + random.normal(0, 1, (len(near), keypoints, 3)), random.uniform(0, 70, (far, keypoints, 3))]
        )
        rows = np.column_stack(
            [boxes, random.random(len(boxes)).round(digits), kinds, places.reshape(len(boxes), 3 * keypoints)]
        )
        predictions.append(rows[random.permutation(len(rows))])
    return objects(predictions), objects(labels)


def reference(predictions: np.ndarray, labels: np.ndarray, keypoints: int = 0) -> tuple[float, float]:
    """Return stats[0] and stats[1] of COCOeval in percent, NaN where it has none, through the public classes of pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def sides(row: np.ndarray) -> list[float]:
        return [row[0], row[1], row[2] - row[0], row[3] - row[1]]

    truths, results = [], []
    for image, rows in enumerate(labels):
        for row in rows:
            box = sides(row)
            more = {"keypoints": row[6:].tolist(), "num_keypoints": int((row[8::3] > 0).sum())} if keypoints else {}
            area = box[2] * box[3] * (0.53 if keypoints else 1)
            truths.append({"image_id": image, "category_id": int(row[4]), "bbox": box, "area": area} | more)
            truths[-1] |= {"iscrowd": int(row[5]), "id": len(truths)}
    for image, rows in enumerate(predictions):
        for row in rows:
            box = sides(row)
            results.append({"image_id": image, "category_id": int(row[5]), "bbox": box, "area": box[2] * box[3]})
            if keypoints:
                x, y = row[6::3], row[7::3]
                results[-1] |= {"keypoints": row[6:].tolist(), "area": np.ptp(x) * np.ptp(y)}
            results[-1] |= {"score": row[4], "iscrowd": 0, "id": len(results)}
    sets = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (truths, results):
            one = COCO()
            one.dataset = {
                "images": [{"id": number} for number in range(len(labels))],
                "categories": [{"id": number} for number in range(10)],
                "annotations": annotations,
            }
            one.createIndex()
            sets.append(one)
        evaluation = COCOeval(*sets, "keypoints" if keypoints else "bbox")
        if keypoints not in (0, 17):
            evaluation.params.kpt_oks_sigmas = np.full(keypoints, 1 / keypoints)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    first, half = (100 * value if value >= 0 else np.nan for value in evaluation.stats[:2])
    return first, half


def equal(found: float, expected: float) -> bool:
    return bool(np.isclose(found / 100, expected / 100, rtol=0, atol=1e-12, equal_nan=True))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))
def test_map_is_that_of_pycocotools(seed: int, images: int, classes: int, digits: int) -> None:
    predictions, labels = drawn(seed, images, classes, digits)
    first, half = reference(predictions, labels)
    assert equal(on_all(detection.mean_average_precision(predictions, labels), images), first)
    assert equal(on_all(detection.at_half(predictions, labels), images), half)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 2), st.integers(1, 3))
def test_an_image_drawn_twice_is_two_images(seed: int, images: int, classes: int, digits: int) -> None:
    predictions, labels = drawn(seed, images, classes, digits)
    counts = np.random.default_rng(seed).integers(0, 4, (3, images))
    found = detection.mean_average_precision(predictions, labels)(counts)
    for row, amount in zip(counts, found, strict=True):
        numbers = np.repeat(np.arange(images), row)
        assert equal(amount, reference(predictions[numbers], labels[numbers])[0])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 5), st.sampled_from([1, 5, 17]))
def test_map_of_keypoints_is_that_of_pycocotools(seed: int, images: int, keypoints: int) -> None:
    predictions, labels = drawn(seed, images, 1, 2, keypoints)
    if not any(len(rows) for rows in labels):  # the number of keypoints is not known, and no amount either
        return
    statistic = detection.keypoint_average_precision(predictions, labels)
    assert equal(on_all(statistic, images), reference(predictions, labels, keypoints)[0])
    numbers = np.repeat(np.arange(images), 2)
    twice = reference(predictions[numbers], labels[numbers], keypoints)[0]
    assert equal(float(statistic(np.full((1, images), 2))[0]), twice)
    boxes = detection.mean_average_precision(predictions, labels)
    cut = [objects([rows[:, :6] for rows in of]) for of in (predictions, labels)]
    assert equal(on_all(boxes, images), reference(*cut)[0])


def test_a_hundred_detections_of_an_image_and_class_count() -> None:
    truth = np.array([[0.0, 0, 10, 10, 0, 0], [0, 0, 10, 10, 1, 0]])
    found = [[50.0, 50, 60, 60, 0.9, 0]] * 100 + [[0, 0, 10, 10, 0.8, 0]] + [[0, 0, 10, 10, 0.8, 1]]
    predictions, labels = objects([np.array(found)]), objects([truth])
    assert on_all(detection.mean_average_precision(predictions, labels), 1) == pytest.approx(50)
    assert equal(reference(predictions, labels)[0], 50)


def test_many_resamples_are_those_of_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, labels = drawn(3, 40, 3, 2)
    counts = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), 20)
    statistic = detection.mean_average_precision(predictions, labels)
    together = statistic(counts)
    monkeypatch.setattr(detection, "ELEMENTS", 100)
    assert np.array_equal(together, statistic(counts))
    assert np.array_equal(together, np.concatenate([statistic(row[None]) for row in counts]))
    assert together.std() > 0


def test_classes_without_an_object_are_left_out() -> None:
    box = [0.0, 0, 10, 10]
    predictions = objects([np.array([[*box, 0.9, 0], [*box, 0.9, 7]]), np.zeros((0, 6)), np.zeros(0)])
    labels = objects([np.array([[*box, 0, 0]]), np.array([[*box, 1, 0]]), np.array([[*box, 2, 1]])])
    statistic = detection.mean_average_precision(predictions, labels)
    found = statistic(np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 3], [1, 0, 1]]))
    assert found == pytest.approx([100, 50, 0, np.nan, 100], nan_ok=True)


def test_nothing_found_and_nothing_to_find() -> None:
    nothing = objects([np.zeros((0, 6))] * 2)
    label = objects([np.array([[0.0, 0, 10, 10, 0, 0]])] * 2)
    assert on_all(detection.mean_average_precision(nothing, label), 2) == 0
    assert np.isnan(on_all(detection.mean_average_precision(nothing, nothing), 2))
    assert np.isnan(on_all(detection.keypoint_average_precision(objects([np.zeros(0)]), objects([np.zeros(0)])), 1))


def test_detections_that_are_not_finite_are_dropped() -> None:
    label = objects([np.array([[0.0, 0, 10, 10, 0, 0]])])
    rows = np.array(
        [[0.0, 0, 10, 10, 0.5, 0], [np.nan, 0, 10, 10, 0.9, 0], [0, 0, 10, 10, np.nan, 0], [0, 0, np.inf, 1, 0.9, 0]]
    )
    assert on_all(detection.mean_average_precision(objects([rows]), label), 1) == pytest.approx(100)


def test_forms_that_cannot_be_read() -> None:
    label = objects([np.zeros((1, 6))])
    with pytest.raises(DataError, match="predictions of a sample are rows of 6 numbers"):
        detection.mean_average_precision(objects([np.zeros((2, 5))]), label)
    with pytest.raises(DataError, match="labels of keypoints are rows of one length"):
        detection.keypoint_average_precision(label, label)
    with pytest.raises(DataError, match="rows of one length"):
        detection.keypoint_average_precision(label, objects([np.zeros((1, 9)), np.zeros((1, 12))]))


def test_without_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(OptionError) as caught:
        detection.mean_average_precision(*drawn(0, 2, 1, 2))
    assert caught.value.hint == "pip install 'onnxprune[detect]'"

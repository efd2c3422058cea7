"""Boxes and masks that are not what the original sees are named; honest ones are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxprune.evaluation.label_sanity import FORMS, label_doubts, other_classes
from onnxprune.evaluation.picture_sanity import picture_doubts, readings
from onnxprune.metrics.statistics import mean
from onnxprune.metrics.table import METRICS

Array = np.ndarray[Any, Any]
CLASSES = 4
RANDOM = np.random.default_rng(5)


def scene(seed: int, right: float = 0.9) -> tuple[Array, Array]:
    """Return predictions near random objects, and labels; classes are right for a share."""
    rng = np.random.default_rng(seed)
    predictions, labels = np.empty(60, object), np.empty(60, object)
    for number in range(60):
        low = rng.uniform(10, 60, (3, 2))
        boxes = np.concatenate([low, low + rng.uniform(15, 40, (3, 2))], axis=1)
        kinds = rng.integers(0, CLASSES, 3)
        labels[number] = np.column_stack([boxes, kinds, np.zeros(3)])
        given = np.where(rng.random(3) < right, kinds, rng.integers(0, CLASSES, 3))
        near = np.column_stack([boxes + rng.normal(0, 1, (3, 4)), rng.uniform(0.6, 0.95, 3), given])
        noise = np.column_stack([boxes[:, [0, 1]], boxes[:, [0, 1]] + 5, rng.uniform(0, 0.3, 3), kinds])
        predictions[number] = np.concatenate([near, noise])
    return predictions, labels


def masks(seed: int, right: float = 0.95) -> tuple[Array, Array, Array]:
    """Return predicted masks, labels, and scores: mostly background, objects of the other classes."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((40, 16, 16), int)
    for number in range(40):
        y, x = rng.integers(0, 10, 2)
        labels[number, y : y + 6, x : x + 6] = rng.integers(1, CLASSES)
    found = np.where(rng.random(labels.shape) < right, labels, rng.integers(0, CLASSES, labels.shape))
    return found, labels, np.moveaxis(4 * np.eye(CLASSES)[found], 3, 1)


def named(name: str, predictions: Array, labels: Array, *outputs: Array) -> list[str]:
    return [check.name for check in label_doubts(name, predictions, labels, list(outputs))]


def with_boxes(labels: Array, change: Callable[[Array], Array]) -> Array:
    found = labels.copy()
    for number, rows in enumerate(labels):
        found[number] = np.concatenate([change(rows[:, :4]), rows[:, 4:]], axis=1)
    return found


def with_classes(labels: Array, change: Callable[[Array], Array]) -> Array:
    found = labels.copy()
    for number, rows in enumerate(labels):
        found[number] = np.column_stack([rows[:, :4], change(rows[:, 4].astype(int)), rows[:, 5]])
    return found


@pytest.mark.parametrize("seed", range(20))
def test_honest_labels_raise_no_doubt(seed: int) -> None:
    assert named("detect", *scene(seed, 0.7)) == []
    found, labels, scores = masks(seed)
    assert named("segment", found, labels, scores) == []
    assert named("segment", found, labels) == []
    # labels of some of the classes, and of one class, as the original gives them
    few = with_classes(scene(seed)[1], lambda c: c)
    for number, rows in enumerate(few):
        few[number] = rows[rows[:, 4] < 1]
    assert "labels of other classes" not in named("detect", scene(seed)[0], few)


FORMS_OF = {
    "x, y, width, height": lambda b: np.column_stack([b[:, :2], b[:, 2:] - b[:, :2]]),
    "centre, width, height": lambda b: np.column_stack([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]]),
    "y1, x1, y2, x2": lambda b: b[:, [1, 0, 3, 2]],
}


@pytest.mark.parametrize("form", FORMS)
def test_boxes_in_another_form(form: str) -> None:
    predictions, labels = scene(0)
    (found,) = label_doubts("detect", predictions, with_boxes(labels, FORMS_OF[form]), [])
    assert found.name == "boxes in another form"
    assert f"read as {form} " in found.detail
    assert found.status == "UNDECIDED"


def test_mistakes_with_boxes() -> None:
    predictions, labels = scene(0)
    assert named("detect", predictions, with_boxes(labels, lambda b: b / 100)) == ["boxes in shares of the picture"]
    assert named("detect", predictions, with_boxes(labels, lambda b: b * 3)) == ["original too sure"]
    assert named("detect", predictions, with_boxes(labels, lambda b: np.concatenate([b[:1], 0 * b[1:]]))) == [
        "boxes without area"
    ]
    none = np.empty(60, object)
    none[:] = [np.zeros((0, 6))] * 60
    assert named("detect", predictions, none) == ["no objects in the labels"]
    assert named("regress", predictions, labels) == []


CLASS_MISTAKES: dict[str, tuple[Callable[[Array], Array], str]] = {
    "from 1": (lambda c: c + 1, "labels of other classes"),
    "rolled": (lambda c: (c + 1) % CLASSES, "labels of other classes"),
    "another order": (lambda c: np.array([2, 0, 3, 1])[c], "labels of other classes"),
    "one class": (np.zeros_like, "labels of other classes"),
    "at random": (lambda c: RANDOM.integers(0, CLASSES, c.shape), "classes near chance"),
}


@pytest.mark.parametrize("mistake", CLASS_MISTAKES)
def test_mistakes_with_classes(mistake: str) -> None:
    change, says = CLASS_MISTAKES[mistake]
    predictions, labels = scene(1)
    assert says in named("detect", predictions, with_classes(labels, change))
    found, maps, scores = masks(1)
    assert says in named("segment", found, np.where(maps > 0, 1 + change(maps - 1), 0), scores)


def test_mistakes_with_masks() -> None:
    found, labels, scores = masks(0)
    assert named("segment", found, (labels > 0).astype(int), scores)[0] == "labels of other classes"
    assert "original too sure" in named("segment", found, np.roll(labels, 8, axis=2), scores)
    assert named("segment", found, np.full_like(labels, 255), scores) == ["no pixels in the labels"]
    assert named("segment", found, labels.repeat(2, axis=1).repeat(2, axis=2), scores) == []


def test_few_objects_say_nothing() -> None:
    given = np.arange(20) % 4
    assert list(other_classes(given, (given + 1) % 4, "objects")) == []


def test_pictures_that_are_read_in_another_way() -> None:
    pictures = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32) ** 2

    def of(given: Array) -> list[str]:
        def measure(change: Callable[[Array], Array]) -> Any:
            seen = change(given)
            fits = seen.min() >= -0.01 and seen.max() <= 1.01 and seen.mean() < 0.5
            return mean(np.where(np.arange(40) % 10 < (9 if fits else 3), 100.0, 0.0))

        return [check.detail for check in picture_doubts(METRICS["miou"], {"x": given}, measure, 40)]

    assert of(pictures) == []
    assert "inverted they reach 90.00 %" in of(1 - pictures)[0]
    assert "moved to 0..1 they reach" in of(2 * pictures - 1)[0]
    assert "divided by 255 they reach" in of(255 * pictures)[0]
    assert readings(np.zeros((4, 3, 8, 8), np.float32)) == {}
    colors = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    assert "with their colors in the other order" in readings(colors)

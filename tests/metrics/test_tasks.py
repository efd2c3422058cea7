"""The task that labels and outputs tell, what is refused, and metrics of the user's own."""

from __future__ import annotations

import itertools
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.errors import DataError, DataWarning, OptionError
from onnxprune.metrics.paired_tests import difference
from onnxprune.metrics.statistics import on_all
from onnxprune.metrics.tasks import Task, amounts, find_task
from onnxprune.options.judging import Judging

Array = np.ndarray[Any, Any]
N = 12
SIZE = (64, 64)
RNG = np.random.default_rng(0)

RANDOM = itertools.count()
"""Values that never repeat."""


def scores(*shape: int) -> Array:
    return RNG.normal(size=(N, *shape)).astype(np.float32)


def numbers(classes: int, *shape: int) -> Array:
    return RNG.integers(0, classes, (N, *shape))


def objects(items: list[Any]) -> Array:
    found = np.empty(len(items), dtype=object)
    for number, item in enumerate(items):
        found[number] = item
    return found


def found(labels: Array | None, *outputs: Array, **asked: Any) -> Task | None:
    return find_task(Judging(**asked), labels, list(outputs), None, SIZE)


TEXTS = np.array(["ab"] * N)
BOXES = np.tile(np.array([[[4, 4, 20, 20, 1], [0, 0, 0, 0, -1]]], dtype=np.float32), (N, 1, 1))
OF_BOXES = objects([np.array([[4.0, 4, 20, 20, 1, 0]])] * N)
YOLO = np.abs(scores(9, 80))
DERIVED: dict[str, tuple[Array, tuple[Array, ...], str, str]] = {
    "class scores": (numbers(5), (scores(5),), "classify", "top1"),
    "two class scores": (numbers(2), (scores(2),), "classify", "top1"),
    "class scores behind a map": (numbers(5), (scores(3, 8, 8), scores(5)), "classify", "top1"),
    "one score": (numbers(2), (scores(1),), "binary", "accuracy"),
    "a number": (numbers(2), (scores(),), "binary", "accuracy"),
    "truth values": (numbers(2, 4), (scores(4),), "multilabel", "label_map"),
    "truth values as floats": (numbers(2, 4).astype(np.float32), (scores(4),), "multilabel", "label_map"),
    "vectors": (scores(4), (scores(4),), "regress", "r2"),
    "maps of numbers": (scores(1, 8, 8), (scores(1, 8, 8),), "regress", "r2"),
    "one number": (scores(), (scores(1),), "regress", "r2"),
    "masks": (numbers(3, 8, 8), (scores(3, 8, 8),), "segment", "miou"),
    "larger masks": (numbers(3, 16, 16), (scores(3, 8, 8),), "segment", "miou"),
    "masks of two classes": (numbers(2, 8, 8), (scores(1, 8, 8),), "segment", "miou"),
    "texts": (TEXTS, (scores(6, 5),), "ctc", "cer"),
    "padded boxes": (BOXES, (YOLO,), "detect", "map"),
    "boxes of objects": (OF_BOXES, (YOLO,), "detect", "map"),
}


@pytest.mark.parametrize("case", DERIVED)
def test_labels_and_outputs_tell_the_task(case: str, tmp_path: Path) -> None:
    labels, outputs, name, lead = DERIVED[case]
    if name == "detect":
        pytest.importorskip("pycocotools")
    (tmp_path / "characters.txt").write_text("a\nb\nc\nd\n", encoding="utf-8")
    asked = {"characters": tmp_path / "characters.txt"} if name == "ctc" else {}
    task = found(labels, *outputs, **asked)
    assert task is not None
    assert task.lead is not None
    assert task.decode is not None
    assert (task.name, task.lead.name) == (name, lead)
    decoded = task.decode(list(outputs))
    assert len(decoded) == N
    measured = amounts(task.statistics(list(outputs), decoded, labels), N)
    assert task.lead.name in measured
    assert measured.keys() <= {metric.name for metric in task.metrics}


REFUSED: dict[str, tuple[Array, tuple[Array, ...], dict[str, Any], str]] = {
    "a class that the model lacks": (np.arange(N) % 6, (scores(5),), {}, "a label is out of range"),
    "a negative class": (np.arange(N) % 5 - 1, (scores(5),), {"task": "classify"}, "a label is negative"),
    "a mask of a class that the model lacks": (np.full((N, 8, 8), 3), (scores(3, 8, 8),), {}, "a label is out of range"),
    "texts for a classifier": (TEXTS, (scores(5),), {}, "there are labels, but no output"),
    "texts for a classifier that is asked for": (TEXTS, (scores(5),), {"task": "classify"}, "don't fit --task classify"),
    "masks for a classifier": (numbers(5, 8, 8), (scores(5),), {"task": "classify"}, "don't fit --task classify"),
    "class numbers for masks": (numbers(5), (scores(5, 8, 8),), {"task": "segment"}, "don't fit --task segment"),
    "class numbers for a map": (numbers(5), (scores(5, 8, 8),), {}, "there are labels, but no output"),
    "vectors of another length": (scores(3), (scores(4),), {"task": "regress"}, "don't fit --task regress"),
    "vectors of another length, not asked": (scores(3), (scores(4),), {}, "there are labels, but no output"),
    "truth values of 2": (numbers(2, 4) * 2, (scores(4),), {"task": "multilabel"}, "don't fit --task multilabel"),
    "three classes of one score": (np.arange(N) % 3, (scores(1),), {"task": "binary"}, "don't fit --task binary"),
    "a vector for a map": (numbers(3, 8, 8), (scores(3),), {"task": "segment"}, "no output has the form"),
    "class numbers for boxes": (numbers(5), (YOLO,), {"task": "detect"}, "the boxes have another shape"),
    "no decoder fits": (BOXES, (scores(3),), {}, "no decoder fits the outputs"),
    "a decoder that does not exist": (BOXES, (YOLO,), {"decode": "nonsense"}, "no decoder has the name nonsense"),
    "a decoder of another form": (BOXES, (YOLO,), {"decode": "detr"}, "do not have the form of detr"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    labels, outputs, asked, says = REFUSED[case]
    with pytest.raises(DataError) as error:
        found(labels, *outputs, **asked)
    assert says in error.value.what
    assert error.value.why or error.value.hint


def test_several_decoders_that_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocotools")
    from onnxprune.metrics import decoders

    outputs = scores(84, 6)  # the cells of an input of 64 x 64, with one class: YOLOX; no number of queries
    boxes = np.where(BOXES == 1, 0, BOXES)
    task = found(boxes, outputs)
    assert task is not None
    assert task.name == "detect"
    likely = {name: replace(one, usual=lambda shapes, size: True) for name, one in decoders.DECODERS.items()}
    monkeypatch.setattr(decoders, "DECODERS", likely)
    with pytest.raises(DataError, match="outputs fit yolov5 and yolox and end2end") as error:
        found(boxes, outputs)
    assert "--decode NAME" in error.value.hint
    named = found(boxes, outputs, decode="yolox")
    assert named is not None
    assert named.name == "detect"


@pytest.mark.parametrize("labels", [numbers(5), None])
def test_a_task_without_labels_has_no_metric(labels: Array | None) -> None:
    task = found(None if labels is None else labels, scores(5))
    assert (task is None) == (labels is None)
    for name in ("segment", "ctc"):
        outputs = scores(3, 8, 8) if name == "segment" else scores(6, 5)
        alone = found(None, outputs, task=name)
        assert alone is not None
        assert alone.lead is None
        assert alone.decode is not None


def test_agreement_of_predictions() -> None:
    first, second = np.zeros((N, 4, 4), int), np.zeros((N, 4, 4), int)
    second[:, :, :1] = 1
    segment = Task("segment")
    assert np.allclose(segment.agreeing(first, second), 0.75)
    texts = objects([(1, 2)] * N), objects([(1, 2)] * (N - 3) + [(1,)] * 3)
    assert Task("ctc").agreeing(*texts).tolist() == [1.0] * (N - 3) + [0.0] * 3
    assert Task("regress").agreeing(first, second) is None
    assert segment.agreeing(None, second) is None


def top1(outputs: Array, labels: Array) -> float:
    return 100 * float((outputs.argmax(axis=1) == labels).mean())


def test_a_metric_of_the_users_own_leads() -> None:
    labels, outputs = numbers(5), scores(5)
    task = found(labels, outputs, metric=top1)
    assert task is not None
    assert task.lead is not None
    assert task.decode is not None
    assert (task.name, task.lead.name, task.lead.direction) == (
        "classify",
        "own_top1" if "top1" in "own_top1" else "",
        "higher",
    )
    statistics = task.statistics([outputs], task.decode([outputs]), labels)
    assert on_all(statistics["own_top1"], N) == pytest.approx(on_all(statistics["top1"], N))
    counts = np.random.default_rng(0).multinomial(N, np.full(N, 1 / N), 20)
    assert np.allclose(statistics["own_top1"](counts), statistics["top1"](counts))


def test_direction_of_a_metric_of_the_users_own() -> None:
    task = found(numbers(5), scores(5), metric=lambda outputs, labels: 1.0, direction="lower")
    assert task is not None
    assert task.lead is not None
    assert (task.lead.name, task.lead.direction, task.lead.unit) == ("metric", "lower", "")


def test_outputs_of_a_metric_of_the_users_own() -> None:
    seen: list[Any] = []

    def looks(outputs: Any, labels: Array) -> float:
        seen.append(outputs)
        return 0.0

    labels, pair = TEXTS, (scores(3), scores(4))
    task = found(labels, *pair, metric=looks)
    assert task is not None
    assert task.name == "metric"
    assert task.decode is None
    on_all(task.statistics(list(pair), None, labels)["looks"], N)
    assert [output.shape for output in seen[-1]] == [(N, 3), (N, 4)]
    on_all(task.statistics([pair[0]], None, labels)["looks"], N)
    assert seen[-1].shape == (N, 3)


@pytest.mark.parametrize("fails", [lambda o, y: 1 / 0, lambda o, y: o, lambda o, y: None, lambda o, y: "high"])
def test_a_failing_metric_is_named_with_its_shapes(fails: Any) -> None:
    fails.__name__ = "mine"
    with pytest.raises(OptionError, match="the metric of your own failed") as error:
        found(numbers(5), scores(5), metric=fails)
    assert error.value.where == "mine"
    assert f"float32[{N}, 5]" in error.value.why
    assert f"int64[{N}]" in error.value.why


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (lambda o, y: np.nan, "returned nan"),
        (lambda o, y: np.inf, "returned inf"),
        (lambda o, y: sys.exit(0), "failed"),
        (lambda o, y: next(RANDOM), "not repeatable"),
    ],
)
def test_a_metric_is_tried_before_any_work(metric: Any, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        found(numbers(5), scores(5), metric=metric)


def test_a_metric_that_needs_every_sample_once_has_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    def once(outputs: Array, labels: Array) -> float:
        print("counted")
        if len({output.tobytes() for output in outputs}) < len(outputs):
            raise ValueError("twice")
        return 1.0

    labels, outputs = numbers(5), scores(5)
    task = found(labels, outputs, metric=once)
    assert task is not None
    statistic = task.statistics([outputs], None, labels)["once"]
    told = difference(statistic, statistic, N)
    assert (told.drop, told.low, told.high) == (0.0, -np.inf, np.inf)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("asked", [{"decode": "yolov8"}, {"characters": "nowhere.txt"}])
def test_options_of_another_task_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="has no effect on the task classify"):
        found(numbers(5), scores(5), **asked)


def test_a_direction_is_that_of_a_metric() -> None:
    with pytest.raises(OptionError, match="--direction has no effect"):
        Judging(direction="lower")


def test_a_metric_of_the_users_own_needs_labels() -> None:
    with pytest.raises(OptionError, match="--metric needs labels"):
        found(None, scores(5), metric=top1)


def test_a_metric_is_loaded_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def share(outputs, labels):\n    return float((outputs.argmax(axis=1) == labels).mean())\n")
    labels, outputs = numbers(5), scores(5)
    task = found(labels, outputs, metric=f"{path}:share")
    assert task is not None
    assert task.lead is not None
    assert task.lead.name == "share"
    assert on_all(task.statistics([outputs], None, labels)["share"], N) == pytest.approx(top1(outputs, labels) / 100)
    with pytest.raises(OptionError, match="no such function"):
        found(labels, outputs, metric=f"{path}:other")


@pytest.mark.parametrize(
    ("asked", "labels", "told"),
    [
        ({}, objects([np.zeros((0, 6))] * N), "no object"),
        ({}, objects([np.array([[1.0, 1, 5, 5, 0, 1]])] * N), "no object"),
        ({}, objects([np.array([[5.0, 5, 5, 5, 0, 0]])] * N), "no object"),
        ({}, objects([np.array([[1.0, 1, 5, 5, 9, 0]])] * N), "out of range"),
    ],
)
def test_boxes_that_say_nothing_or_too_much_are_refused(asked: dict[str, Any], labels: Array, told: str) -> None:
    outputs = np.abs(scores(9, 80)) / 10
    with pytest.raises(DataError, match=told):
        found(labels, outputs, **asked)


@pytest.mark.parametrize(
    ("labels", "output", "name"),
    [
        (np.tile(np.array([[[1, 1, 9, 9, 0]]]), (N, 1, 1)), np.abs(scores(9, 80)) / 10, "detect"),
        (RNG.integers(0, 2, N).astype(float), scores(1), "binary"),
        (RNG.integers(0, 2, (N, 3)).astype(float), scores(3), "multilabel"),
        (RNG.normal(size=(N, 3)), scores(3), "regress"),
        (numbers(3, 8, 8).astype(np.float32), scores(3, 8, 8), "segment"),
        (numbers(3, 1, 8, 8), scores(3, 8, 8), "segment"),
    ],
)
def test_numbers_tell_a_task_whatever_their_type(labels: Array, output: Array, name: str) -> None:
    task = found(labels, output)
    assert task is not None
    assert task.name == name


def test_masks_that_count_nowhere_and_empty_texts_are_refused() -> None:
    with pytest.raises(DataError, match="no pixel that counts"):
        found(np.full((N, 8, 8), 255, np.uint8), scores(3, 8, 8))
    with pytest.raises(DataError, match="no character"):
        found(np.array([""] * N), scores(20, 5), task="ctc")


@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_a_column_of_truth_values_is_binary(kind: type) -> None:
    labels, outputs = numbers(2, 1).astype(kind), scores(1)
    task = found(labels, outputs)
    assert task is not None
    assert task.decode is not None
    assert task.name == "binary"
    measured = amounts(task.statistics([outputs], task.decode([outputs]), labels), N)
    assert measured["accuracy"] == pytest.approx(100 * ((outputs[:, 0] > 0) == labels[:, 0]).mean())


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((8, 8), True), ((64, 64), True), ((63, 63), True), ((61, 64), True), ((64, 40), False), ((80, 64), False)],
)
def test_masks_of_another_form_are_refused(shape: tuple[int, int], fits: bool) -> None:
    labels = numbers(3, *shape)
    if fits:  # a map of 8 x 8 for 61 x 64 is rounded up
        assert found(labels, scores(3, 8, 8) if shape == (61, 64) else scores(3, *shape)) is not None
        return
    with pytest.raises(DataError, match="the masks have another form than the predictions") as error:
        found(labels, scores(3, 64, 64))
    assert error.value.why == f"masks are {shape[0]} x {shape[1]}, predictions are 64 x 64"


OTHERS: dict[str, tuple[Array, tuple[Array, ...], str, int]] = {
    "classify": (np.arange(N) % 5, (scores(2), scores(5)), "classify", 1),
    "classify, the first of those that fit": (np.arange(N) % 5, (scores(2), scores(7), scores(5)), "classify", 1),
    "classify, the first": (np.arange(N) % 2, (scores(2), scores(5)), "classify", 0),
    "regress": (scores(3), (scores(2), scores(3)), "regress", 1),
    "regress of one value": (scores(), (scores(8), scores(1)), "regress", 1),
    "multilabel": (numbers(2, 4), (scores(3), scores(4)), "multilabel", 1),
    "multilabel behind a map": (numbers(2, 4), (scores(3, 8, 8), scores(4)), "multilabel", 1),
}


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("case", OTHERS)
def test_predictions_are_of_the_output_that_fits_the_labels(case: str, asked: bool) -> None:
    labels, outputs, name, place = OTHERS[case]
    task = found(labels, *outputs, task=name if asked else None)
    assert task is not None
    assert task.decode is not None
    assert task.name == name
    decoded = task.decode(list(outputs))
    assert np.array_equal(decoded, outputs[place].reshape(N, -1))
    assert task.lead is not None
    assert task.lead.name in amounts(task.statistics(list(outputs), decoded, labels), N)


def test_where_no_output_fits_the_first_is_refused() -> None:
    with pytest.raises(DataError, match="out of range") as error:
        found(np.arange(N), scores(2), scores(5))
    assert error.value.why == f"the largest is {N - 1}, the model has 2 classes"


def test_where_the_number_of_classes_is_unknown_the_largest_is_told() -> None:
    pytest.importorskip("pycocotools")
    end2end = np.abs(scores(30, 6))
    with pytest.warns(DataWarning, match="the largest class of the labels is 1"):
        found(BOXES, end2end, decode="end2end")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        found(np.where(BOXES == 1, 0, BOXES), end2end, decode="end2end")
        found(BOXES, YOLO)


def test_objects_with_five_columns_are_boxes() -> None:
    pytest.importorskip("pycocotools")
    labels = objects([rows[:, :5] for rows in OF_BOXES])
    task = found(labels, YOLO)
    assert task is not None
    assert task.decode is not None
    assert task.name == "detect"
    assert "map" in amounts(task.statistics([YOLO], task.decode([YOLO]), labels), N)


def test_all_labels_must_fit_and_some_must_hold_something() -> None:
    outputs = scores(3)
    with pytest.raises(DataError, match="out of range"):
        find_task(Judging(), numbers(3), [outputs], None, SIZE, every=np.append(numbers(3), 7))
    empty, one = np.zeros((N, 0, 5)), np.tile(np.array([[[1.0, 1, 5, 5, 0]]]), (2 * N, 1, 1))
    boxes = [np.abs(scores(9, 80)) / 10]
    assert find_task(Judging(task="detect"), empty, boxes, None, SIZE, every=one) is not None


def test_outputs_without_a_row_per_sample_are_refused() -> None:
    task = found(numbers(3), scores(3))
    assert task is not None
    with pytest.raises(DataError, match="no output per sample") as caught:
        task.statistics([scores(3)[:5]], scores(3)[:5], numbers(3))
    assert f"5 predictions for {N} labels" in str(caught.value)

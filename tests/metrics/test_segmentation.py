"""Maps of classes and their overlap with labels, against scikit-learn, torch and torchmetrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resampled import assert_counts_repeat_samples

from onnxprune.metrics import segmentation
from onnxprune.metrics.statistics import on_all

Array = np.ndarray[Any, Any]
SEEDS = st.integers(0, 2**32 - 1)
METRICS = (segmentation.miou, segmentation.dice)


def maps(seed: int) -> tuple[Array, Array]:
    """Return predictions at half the size of the labels, which have pixels to ignore and miss classes."""
    rng = np.random.default_rng(seed)
    n, classes = int(rng.integers(1, 6)), int(rng.integers(2, 6))
    predictions = rng.integers(0, classes, (n, 3, 4)).astype(np.uint8)
    labels = np.where(rng.random((n, 6, 8)) < 0.5, segmentation.resized(predictions, (6, 8)), rng.integers(0, classes))
    ignored = rng.random(labels.shape)
    return predictions, np.select([ignored < 0.1, ignored < 0.2], [255, -1], labels).astype(np.int64)


@settings(deadline=None)
@given(SEEDS)
def test_overlap_is_that_of_scikit_learn(seed: int) -> None:
    reference = pytest.importorskip("sklearn.metrics")
    predictions, labels = maps(seed)
    valid = (labels >= 0) & (labels < 255)
    pair = labels[valid], predictions.repeat(2, axis=1).repeat(2, axis=2)[valid]
    expected = reference.jaccard_score(*pair, average="macro"), reference.f1_score(*pair, average="macro")
    for metric, amount in zip(METRICS, expected, strict=True):
        assert on_all(metric(predictions, labels), len(labels)) == pytest.approx(100 * amount, rel=1e-12)
        assert_counts_repeat_samples(metric, predictions, labels, seed)


def test_labels_of_one_byte_and_of_several_sizes() -> None:
    predictions, labels = maps(0)
    small = np.where(labels < 0, 255, labels).astype(np.uint8)
    sizes = np.empty(len(labels), dtype=object)
    for n, label in enumerate(small):
        sizes[n] = label.repeat(n + 1, axis=0)
    one = np.empty(1, dtype=object)
    for metric in METRICS:
        n = len(labels)
        assert on_all(metric(predictions, small), n) == on_all(metric(predictions, labels), n)
        assert 0 < on_all(metric(predictions, sizes), n) < 100
        one[0] = sizes[n - 1]
        single = on_all(metric(predictions[-1:], one), 1)
        assert single == pytest.approx(on_all(metric(predictions[-1:], small[-1:]), 1), rel=1e-12)


def test_nothing_to_compare() -> None:
    for metric in METRICS:
        assert np.isnan(on_all(metric(np.zeros((2, 2, 2), np.uint8), np.full((2, 4, 4), 255)), 2))


def test_classes_above_255_and_negative_predictions() -> None:
    labels = np.array([[[300, 2], [2, 300]]])
    assert on_all(segmentation.miou(labels.astype(np.uint16), labels), 1) == 100
    assert on_all(segmentation.miou(np.array([[[300, -1], [-1, 300]]]), labels), 1) == 50


@pytest.mark.torch
def test_as_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(0)
    predictions, labels = (rng.integers(0, 4, (5, 16, 16)) for _ in range(2))
    labels[rng.random(labels.shape) < 0.1] = 255
    tensors = [torch.from_numpy(array) for array in (predictions, labels)]
    iou = functional.multiclass_jaccard_index(*tensors, num_classes=5, ignore_index=255)  # no class 4
    f1 = functional.multiclass_f1_score(*tensors, num_classes=5, ignore_index=255)
    found = [on_all(metric(predictions, labels), 5) for metric in METRICS]
    assert found == pytest.approx([100 * float(iou), 100 * float(f1)], rel=1e-5)  # float32


# ----------------------------------------------------------------------------------------------------------------------- maps


@pytest.mark.parametrize(("classes", "kind"), [(3, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_the_largest_score_in_blocks(classes: int, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).normal(size=(5, classes, 3, 4)).astype(np.float32)
    scores[0, -1, 0, 0] = 9
    monkeypatch.setattr(segmentation, "BLOCK", 2 * classes * 12)
    found = segmentation.class_map(scores)
    assert found.dtype == kind
    assert (found == scores.argmax(axis=1)).all()
    assert (segmentation.class_map(np.moveaxis(scores, 1, -1), classes_last=True) == found).all()


@pytest.mark.parametrize("shape", [(2, 1, 3, 3), (2, 3, 3)])
def test_one_class_against_the_rest(shape: tuple[int, ...]) -> None:
    logits = np.random.default_rng(0).normal(size=shape)
    expected = (logits > 0).reshape(2, 3, 3)
    for scores in (logits, 1 / (1 + np.exp(-logits)), (logits > 0).astype(np.float32), logits > 0):
        found = segmentation.class_map(scores)
        assert found.dtype == np.uint8
        assert (found == expected).all()
    last = segmentation.class_map(logits.reshape(2, 3, 3, 1), classes_last=True)
    assert (last == expected).all()
    assert segmentation.class_map(np.full((1, 1, 1, 1), 0.2), probabilities=False).tolist() == [[[1]]]


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.float32])
def test_class_numbers_stay(kind: Any) -> None:
    numbers = np.random.default_rng(0).integers(0, 19, (2, 5, 5))
    for shape in ((2, 5, 5), (2, 1, 5, 5)):
        found = segmentation.class_map(numbers.astype(kind).reshape(shape))
        assert found.dtype == np.uint8
        assert (found == numbers).all()


@pytest.mark.parametrize(("high", "kind"), [(127, np.int8), (128, np.int16), (300, np.int16)])
def test_negative_class_numbers_stay(high: int, kind: Any) -> None:
    found = segmentation.class_map(np.array([[[-1, high]]]))
    assert found.dtype == kind
    assert found.tolist() == [[[-1, high]]]


@pytest.mark.torch
@pytest.mark.parametrize("size", [(6, 8), (7, 9), (3, 4), (2, 3), (31, 5)])
def test_sizes_are_those_of_torch(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    numbers = np.random.default_rng(0).integers(0, 9, (2, 3, 4)).astype(np.uint8)
    tensor = torch.from_numpy(numbers[:, None].astype(np.float32))
    expected = torch.nn.functional.interpolate(tensor, size, mode="nearest-exact")[:, 0].numpy()
    assert (segmentation.class_map(numbers, size) == expected).all()

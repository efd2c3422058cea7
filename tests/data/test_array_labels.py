"""Labels that are given as arrays and lists, in one piece or in batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from onnxprune.data.array_labels import checked_labels
from onnxprune.data.dataset import load_data
from onnxprune.data.input_spec import InputSpec
from onnxprune.data.labels.values import object_array
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError

SPEC = InputSpec("x", np.dtype(np.float32), (None, 3))
BOX = [1.0, 1, 5, 5, 2]


def samples(n: int) -> np.ndarray[Any, Any]:
    return np.arange(3.0 * n, dtype=np.float32).reshape(n, 3)


@pytest.mark.parametrize(
    "labels",
    [
        [np.array([BOX]), np.array([BOX, BOX]), np.zeros((0, 5))],
        [[BOX], [BOX, BOX], []],
        object_array([np.array([BOX]), np.array([BOX, BOX]), np.zeros((0, 5))]),
    ],
)
def test_lists_of_boxes_get_the_column_of_crowds(labels: Any) -> None:
    found = load_data({"x": samples(3), "labels": labels}, [SPEC]).labels
    assert found is not None
    assert [rows.shape for rows in found] == [(1, 6), (2, 6), (0, 6)]
    assert found[1].tolist() == [[*BOX, 0.0]] * 2


def test_keypoints_and_texts_stay_as_they_are() -> None:
    rows = object_array([np.ones((1, 9)), np.ones((2, 9))])
    assert checked_labels(rows, 2, "data") is rows
    texts = object_array(["a", "bc"])
    assert checked_labels(texts, 2, "data") is texts


@pytest.mark.parametrize("counts", [(1, 2, 1), (2, 2, 2), (0, 1, 2)])
@pytest.mark.parametrize("size", [1, 2])
def test_batches_of_boxes_are_joined_whatever_their_numbers(counts: tuple[int, ...], size: int) -> None:
    boxes = [np.array([BOX] * count).reshape(-1, 5) for count in counts]

    def batches() -> Iterator[Any]:
        for start in range(0, len(boxes), size):
            yield samples(3)[start : start + size], boxes[start : start + size]

    found = load_data(batches(), [SPEC]).labels
    assert found is not None
    assert [len(rows) for rows in found] == list(counts)


def test_numbers_beyond_64_bits_are_named() -> None:
    for labels in (object_array([1, 10**23]), np.array([1, 2**63], dtype=np.uint64)):
        with pytest.raises(DataError) as error:
            checked_labels(labels, 2, "data")
        assert error.value.why == f"the label 1 is {labels[1]}, beyond 64 bits"


@pytest.mark.parametrize(
    ("shape", "how", "size"),
    [
        ((16, 24, 1), Preprocess(), (16, 24)),
        ((16, 24, 3), None, (16, 24)),
        ((3, 16, 24), Preprocess(layout="NHWC"), (16, 24)),
        ((7, 16, 24), Preprocess(), (16, 24)),
        ((16, 24, 7), Preprocess(layout="NHWC"), (16, 24)),
        ((1, 16, 3), Preprocess(), (16, 3)),
        ((1, 16, 3), Preprocess(layout="NHWC"), (1, 16)),
    ],
)
def test_size_of_pictures(shape: tuple[int, ...], how: Preprocess | None, size: tuple[int, int]) -> None:
    spec = InputSpec("x", np.dtype(np.float32), (None, None, None, None))
    data = load_data(np.zeros((2, *shape), np.float32), [spec], how)
    assert data.picture_size == size


@pytest.mark.parametrize("task", ["classify", "binary", "embed", "multilabel"])
def test_floats_as_class_numbers_are_whole(task: str) -> None:
    found = checked_labels(np.array([0.0, 1.0, 1.0]), 3, "data", task)
    assert found.dtype == np.int64
    assert found.tolist() == [0, 1, 1]
    for labels in (np.array([0, 1, 1.5]), np.array([0, 1, 2.0**60])):
        with pytest.raises(DataError, match="not a whole number") as caught:
            checked_labels(labels, 3, "data", task)
        assert "sample 2" in caught.value.why
    with pytest.raises(DataError, match="NaN"):
        checked_labels(np.array([0, np.nan]), 2, "data", task)


def test_a_column_of_floats_is_one_of_class_numbers() -> None:
    assert checked_labels(np.array([[0.0], [2.0]]), 2, "data", "classify").tolist() == [0, 2]


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 4, 4)])
def test_labels_that_wrap_are_refused(shape: tuple[int, ...]) -> None:
    labels = np.zeros(shape, np.uint64)
    labels[1] = 2**63
    with pytest.raises(DataError, match="don't fit") as caught:
        checked_labels(labels, 3, "data")
    assert "the label 1 is 9223372036854775808, beyond 64 bits" in caught.value.why

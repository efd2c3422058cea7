"""Overlap and suppression of boxes, against straightforward loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.metrics import boxes


def iou(first: np.ndarray, second: np.ndarray) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    both = max(width, 0) * max(height, 0)
    areas = [max(box[2] - box[0], 0) * max(box[3] - box[1], 0) for box in (first, second)]
    return both / (sum(areas) - both) if sum(areas) > both else 0.0


def suppressed(found: np.ndarray, scores: np.ndarray, classes: np.ndarray, limit: float, most: int) -> list[int]:
    kept: list[int] = []
    for number in sorted(range(len(found)), key=lambda number: -scores[number]):
        if all(classes[one] != classes[number] or iou(found[one], found[number]) <= limit for one in kept):
            kept.append(number)
    return kept[:most]


def drawn(seed: int, count: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    low = random.integers(0, 30, (count, 2))
    return np.concatenate([low, low + random.integers(0, 20, (count, 2))], axis=1).astype(float)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 60), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), st.integers(1, 40))
def test_suppression_is_the_greedy_one(seed: int, count: int, limit: float, most: int) -> None:
    random = np.random.default_rng(seed)
    found, scores, classes = drawn(seed, count), random.random(count).round(1), random.integers(0, 3, count)
    expected = suppressed(found, scores, classes, limit, most)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boxes, "BLOCK", 7)
        assert boxes.suppress(found, scores, classes, iou=limit, limit=most).tolist() == expected
    assert boxes.suppress(found, scores, classes, iou=limit, limit=most).tolist() == expected


@given(st.integers(0, 2**32))
def test_overlap_is_that_of_each_pair(seed: int) -> None:
    first, second = drawn(seed, 5), drawn(seed + 1, 4)
    expected = [[iou(one, other) for other in second] for one in first]
    assert boxes.overlap(first, second) == pytest.approx(np.array(expected))


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), max_size=20), st.integers(1, 20))
def test_best_scores_are_the_first_of_all_in_order(scores: list[float], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boxes, "CANDIDATES", most)
        expected = sorted(range(len(scores)), key=lambda number: -scores[number])[:most]
        assert boxes.best(np.array(scores)).tolist() == expected


def test_only_the_best_candidates_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "CANDIDATES", 2)
    found = np.array([[0.0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]])
    kept = boxes.suppress(found, np.array([0.1, 0.3, 0.2]), np.zeros(3), iou=0.5, limit=9)
    assert kept.tolist() == [1, 2]


def test_forms_of_numbers() -> None:
    assert boxes.corners(np.array([5.0, 6, 4, 2])).tolist() == [3, 5, 7, 7]
    assert boxes.pixels(np.array([0.5, 0.5, 1, 1]), (10, 20)).tolist() == [10, 5, 20, 10]
    assert boxes.relative(np.array([[0.0, 0, 1, 1.2]]))
    assert not boxes.relative(np.array([[0.0, 0, 30, 12]]))
    logits = np.array([[-2.0, 3.0]])
    assert boxes.probabilities(logits) == pytest.approx(1 / (1 + np.exp(-logits)))
    assert boxes.shares(logits).sum() == pytest.approx(1)
    probabilities = np.array([[0.2, 0.7]])
    assert boxes.probabilities(probabilities) is probabilities
    assert boxes.shares(probabilities) is probabilities


def test_grids_of_cells() -> None:
    places = boxes.grid((20, 33), (16, 32), copies=2)
    assert len(places) == 2 * boxes.cells((20, 33), (16, 32)) == 2 * (2 * 3 + 2)
    assert places[::2].tolist() == [
        *([column, row, 16] for row in range(2) for column in range(3)), [0, 0, 32], [1, 0, 32]
    ]  # fmt: skip

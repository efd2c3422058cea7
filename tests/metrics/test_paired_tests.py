"""Paired statistics, against closed forms, other implementations, and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.metrics import paired_tests


def outcomes(n: int, lost: int, gained: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.ones(n, dtype=bool), np.ones(n, dtype=bool)
    second[:lost] = False
    first[lost : lost + gained] = False
    return first, second


def test_drop_and_interval() -> None:
    found = paired_tests.paired(*outcomes(10_000, 300, 200))
    assert (found.drop, found.lost, found.gained) == (1.0, 300, 200)
    # normal approximation of a difference of paired proportions
    deviation = 100 * np.sqrt((0.05 - 0.01**2) / 10_000)
    assert found.low == pytest.approx(1 - 1.96 * deviation, abs=0.03)
    assert found.high == pytest.approx(1 + 1.96 * deviation, abs=0.03)
    assert found.upper == pytest.approx(1 + 1.645 * deviation, abs=0.03)
    assert found.p < 1e-4


def test_equal_models() -> None:
    found = paired_tests.paired(*outcomes(100, 0, 0))
    assert (found.drop, found.low, found.high, found.upper, found.p) == (0, 0, 0, 0, 1)


def test_mcnemar_is_the_exact_one() -> None:
    assert paired_tests.paired(*outcomes(50, 8, 2)).p == pytest.approx(
        2 * 56 / 1024
    )  # P(X <= 2) of 10 fair coins, twice


def test_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        kind = rng.choice(3, 2000, p=(0.03, 0.01, 0.96))
        found = paired_tests.paired(kind != 1, kind != 0, seed)
        hits += found.low <= 2.0 <= found.high
    assert hits >= 180


def test_a_collapsed_class_comes_first() -> None:
    labels = np.repeat(np.arange(10), 200)
    first = np.random.default_rng(0).random(2000) < 0.9
    second = first.copy()
    second[labels == 7] = False
    worst = paired_tests.class_drops(first, second, labels)[0]
    assert (worst.label, worst.after, worst.samples) == (7, 0.0, 200)
    assert worst.low > 70


def test_chance_fails_no_class() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 100, 2000)
    failed = 0
    for seed in range(20):
        first, second = rng.random((2, 2000)) < 0.8
        failed += max(one.low for one in paired_tests.class_drops(first, second, labels, seed)) > 10
    assert failed <= 2


@pytest.mark.parametrize(("confidence", "accuracy"), [(0.9, 0.9), (0.9, 0.6), (0.6, 0.9)])
def test_calibration_error(confidence: float, accuracy: float) -> None:
    n = 1000
    scores = np.log(np.tile([confidence, 1 - confidence], (n, 1)))
    labels = (np.arange(n) >= accuracy * n).astype(np.int64)
    assert paired_tests.calibration_error(scores, labels) == pytest.approx(100 * abs(confidence - accuracy), abs=1e-9)

"""Metrics of regression, against scikit-learn and torchmetrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resampled import assert_counts_repeat_samples, drawn

from onnxprune.metrics import regression
from onnxprune.metrics.statistics import on_all

Array = np.ndarray[Any, Any]
SEEDS = st.integers(0, 2**32 - 1)
METRICS = (regression.r2, regression.mae, regression.rmse)


@pytest.fixture(scope="module")
def reference() -> Any:
    return pytest.importorskip("sklearn.metrics")


def numbers(seed: int) -> tuple[Array, Array]:
    """Return predictions and labels, (n, k), of which some outputs are constant, and some of these exact."""
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(2, 40)), int(rng.integers(1, 6))
    labels = (
        np.round(8 * rng.normal(rng.normal() * 10, 1, (n, k))) / 8
    )  # nearly equal ones would leave rounding in their variance
    predictions = labels + rng.normal(size=(n, k)) * rng.choice((0.1, 1.0))
    constant = rng.random(k) < 0.3
    labels[:, constant] = 0.1
    exact = constant & (rng.random(k) < 0.5)
    predictions[:, exact] = 0.1
    return predictions, labels


def close(amount: float) -> Any:
    return pytest.approx(amount, rel=1e-12, abs=1e-10)


@settings(deadline=None)
@given(SEEDS)
def test_as_scikit_learn(reference: Any, seed: int) -> None:
    predictions, labels = numbers(seed)
    n = len(labels)
    varies = np.ptp(labels, axis=0) > 0  # the mean of equal values is rounded in scikit-learn
    exact = (labels == predictions).all(axis=0)
    shares = np.where(varies, reference.r2_score(labels, predictions, multioutput="raw_values"), exact)
    assert on_all(regression.r2(predictions, labels), n) == close(100 * float(shares.mean()))
    assert on_all(regression.mae(predictions, labels), n) == close(reference.mean_absolute_error(labels, predictions))
    squared = reference.mean_squared_error(labels, predictions)
    assert on_all(regression.rmse(predictions, labels), n) == close(squared**0.5)


@pytest.mark.parametrize("exact", [True, False])
def test_constant_targets_are_those_of_scikit_learn(reference: Any, exact: bool) -> None:
    labels = np.full((5, 2), 0.5)
    predictions = labels if exact else labels + 0.25
    expected = reference.r2_score(labels, predictions)
    assert expected == float(exact)
    assert on_all(regression.r2(predictions, labels), 5) == 100 * expected


@settings(deadline=None)
@given(SEEDS)
def test_resamples(seed: int) -> None:
    predictions, labels = numbers(seed)
    for metric in METRICS:
        assert_counts_repeat_samples(metric, predictions, labels, seed)


def test_a_resample_with_equal_labels() -> None:
    predictions, labels = np.array([[1.5], [2.0], [1e6 + 0.1]]), np.array([[1.1], [2.2], [1e6 + 0.1]])
    found = regression.r2(predictions, labels)(np.array([[3, 0, 0], [0, 0, 3], [1, 0, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(found, [0, 100, np.nan, np.nan])


def test_more_axes_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(6, 4, 3, 2)).astype(np.float32)
    predictions = (labels + rng.normal(size=labels.shape)).astype(np.float32)
    flat = [array.reshape(6, -1) for array in (predictions, labels)]
    for metric in METRICS:
        whole = metric(predictions, labels)(drawn(6))
        assert metric(*flat)(drawn(6)).tolist() == whole.tolist()
        with monkeypatch.context() as patch:
            patch.setattr(regression, "BLOCK", 30)
            np.testing.assert_allclose(metric(predictions, labels)(drawn(6)), whole, rtol=1e-12)


def test_predictions_that_are_nan_give_nan() -> None:
    for metric in METRICS:
        assert np.isnan(on_all(metric(np.array([1.0, np.nan, 3.0]), np.arange(3.0)), 3))


@pytest.mark.torch
def test_as_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional")
    predictions, labels = (np.random.default_rng(seed).normal(size=(50, 3)) for seed in range(2))
    tensors = [torch.from_numpy(array) for array in (predictions, labels)]
    expected = [
        100 * functional.r2_score(*tensors),
        functional.mean_absolute_error(*tensors),
        functional.mean_squared_error(*tensors, squared=False),
    ]
    found = [on_all(metric(predictions, labels), 50) for metric in METRICS]
    assert found == pytest.approx([float(one) for one in expected], rel=1e-12)

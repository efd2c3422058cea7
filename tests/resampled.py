"""Resamples of a metric: counts give what the repeated samples give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxprune.metrics.statistics import Statistic, on_all

Array = np.ndarray[Any, Any]


def drawn(samples: int, resamples: int = 4, seed: int = 0) -> Array:
    """Return how often each sample is drawn, (resamples, samples)."""
    return np.random.default_rng(seed).multinomial(samples, np.full(samples, 1 / samples), resamples)


def assert_counts_repeat_samples(
    metric: Callable[[Array, Array], Statistic], predictions: Array, labels: Array, seed: int = 0
) -> None:
    """Assert that a metric on counts is the metric of the samples, each repeated as often as it is drawn."""
    counts = drawn(len(labels), seed=seed)
    repeated = [np.repeat(np.arange(len(labels)), row) for row in counts]
    expected = [on_all(metric(predictions[numbers], labels[numbers]), len(numbers)) for numbers in repeated]
    assert metric(predictions, labels)(counts).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-10, nan_ok=True)

"""Which outputs are class scores, and what models with several outputs are judged by."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.metrics.outputs import (
    TOLERANCE,
    OutputPair,
    class_scores,
    compare_outputs,
    lost,
    output_divergence,
    relative_difference,
)

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(40, 5)).astype(np.float32) * 4
DEPTH = RNG.normal(size=(40, 3, 6, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "labelled", "is_scores"),
    [
        ((8, 5), False, True),
        ((8, 5, 1, 1), False, True),
        ((8, 5, 1), False, False),  # five steps of a forecast
        ((8, 5, 1), True, True),
        ((8, 1), False, False),
        ((8, 5, 2), True, False),
    ],
)
def test_form_of_class_scores(shape: tuple[int, ...], labelled: bool, is_scores: bool) -> None:
    assert (class_scores([np.ones(shape, np.float32)], labelled=labelled) is not None) == is_scores


def test_a_shifted_forecast_is_no_agreement() -> None:
    forecast = RNG.normal(size=(40, 24, 1)).astype(np.float32)
    found = compare_outputs([forecast], [forecast + 50])
    assert "agreement" not in found
    assert found["explained"] < 0
    assert output_divergence([forecast], [forecast + 50]) > 100


@pytest.mark.parametrize("order", [1, -1])
def test_every_output_counts(order: int) -> None:
    whole, dead = [SCORES, DEPTH][::order], [SCORES, np.zeros_like(DEPTH)][::order]
    found = compare_outputs(whole, dead)
    assert found["agreement"] == 100
    assert found["explained"] == pytest.approx(0, abs=5)
    assert lost(found) == pytest.approx(100, abs=5)
    assert output_divergence(whole, dead) > 0.9
    assert output_divergence(whole, [SCORES, 0.9 * DEPTH][::order]) < output_divergence(whole, dead)
    labels = SCORES.argmax(axis=1)
    beside = OutputPair(dead, whole, labels).explained()
    assert beside is not None
    assert beside < 3


def test_probabilities_and_best_classes_beside_logits_say_nothing_new() -> None:
    p = np.exp(SCORES) / np.exp(SCORES).sum(axis=1, keepdims=True)
    best = SCORES.argmax(axis=1)
    other = SCORES + RNG.normal(size=SCORES.shape).astype(np.float32)
    found = compare_outputs([SCORES, p, best], [other, p[::-1], best[::-1]])
    assert "explained" not in found
    assert output_divergence([SCORES, p], [other, p]) == pytest.approx(output_divergence([SCORES], [other]))


@pytest.mark.parametrize("range_", [1.0, 1e-3, 1e-6])
def test_the_last_bits_of_an_output_that_hardly_varies_are_no_difference(range_: float) -> None:
    one = (0.78 + range_ * RNG.random(100)).astype(np.float32)
    other = np.nextafter(one, np.float32(2))
    assert relative_difference(one, other) < TOLERANCE
    assert relative_difference(one, one + np.float32(range_ / 10 + 1e-5)) > TOLERANCE
    small = one - np.float32(0.78)
    assert relative_difference(small, small + np.float32(1e-3 * range_)) > 5e-4

"""Distances of outputs by kind, held against their definitions."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from onnxprune.errors import OptionError
from onnxprune.metrics import output_distance
from onnxprune.metrics.distances import DISTANCES, OF_TASK, takes_class_scores
from onnxprune.metrics.output_distance import LEAST_SHARE, distance_of, form_of
from onnxprune.metrics.outputs import output_agreement, output_divergence

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
KINDS = tuple(kind for kind in DISTANCES if not takes_class_scores(kind))


def drawn(*shape: int, scale: float = 2.0) -> Array:
    return (scale * RNG.normal(size=shape)).astype(np.float32)


def moved(x: Array, by: float = 0.5) -> Array:
    return x + by * RNG.normal(size=x.shape).astype(np.float32)


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x.astype(np.float64) - x.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x.astype(np.float64))))


def kl(p: Array, q: Array, axis: int) -> float:
    return float((p * np.log(p / q)).sum(axis=axis).mean())


def share(x: Array, y: Array) -> float:
    return float(np.square(x.astype(np.float64) - y).mean() / x.astype(np.float64).var())


def test_every_task_has_a_kind_and_an_unknown_one_is_refused() -> None:
    assert set(OF_TASK.values()) <= set(DISTANCES)
    with pytest.raises(OptionError, match="unknown distance 'boxen'") as error:
        output_divergence([drawn(4, 3)], [drawn(4, 3)], kind="boxen")
    assert all(kind in error.value.hint for kind in DISTANCES)


@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4), (6, 1, 4, 4), (6, 3, 4, 4)])
def test_equal_outputs_have_no_distance_and_an_output_that_is_not_finite_an_infinite_one(
    kind: str, shape: tuple[int, ...]
) -> None:
    x = drawn(*shape)
    assert output_divergence([x], [x.copy()], kind=kind) == 0
    broken = x.copy()
    broken.flat[0] = np.nan
    assert output_divergence([x], [broken], kind=kind) == np.inf
    assert output_divergence([x], [x[1:]], kind=kind) == np.inf


def test_class_scores_are_taken_as_before() -> None:
    x, maps = drawn(20, 5), drawn(20, 3, 4, 4)
    y, others = moved(x), moved(maps)
    before = output_divergence([x, maps], [y, others])
    assert output_divergence([x, maps], [y, others], kind="auto") == before
    assert output_divergence([x, maps], [y, others], kind="scores") == before
    steps = x[:, :, None], y[:, :, None]
    assert output_divergence([steps[0]], [steps[1]], kind="auto") == pytest.approx(share(x, y))
    assert output_divergence([steps[0]], [steps[1]], kind="scores", scores=False) == pytest.approx(
        kl(softmax(x, 1), softmax(y, 1), 1)
    )


def test_numbers_have_no_classes() -> None:
    x, y = drawn(20, 5), drawn(20, 5)
    classes = np.arange(20)
    found = output_divergence([x, x[:, 0], classes], [y, y[:, 0], classes[::-1]], kind="numbers")
    assert found == pytest.approx((share(x, y) + share(x[:, 0], y[:, 0])) / 2, rel=1e-6)
    assert output_agreement([x], [y], "numbers") is None


@pytest.mark.parametrize("shape", [(8, 6, 40), (8, 40, 6)])
def test_pixels_do_not_drown_the_scores_of_boxes(shape: tuple[int, ...]) -> None:
    axis = 1 if shape[1] == 6 else 2
    pixels = np.moveaxis(RNG.random(shape), axis, 0)
    pixels[:4] *= 640
    x = np.moveaxis(pixels, 0, axis).astype(np.float32)
    y = x.copy()
    rows = np.moveaxis(y, axis, 0)
    rows[4:] = 0.5
    assert output_divergence([x], [y], kind="numbers") < 1e-5
    each = [share(a, b) for a, b in zip(np.moveaxis(x, axis, 0), rows, strict=True)]
    assert output_divergence([x], [y], kind="boxes") == pytest.approx(np.mean(each), rel=1e-5)
    assert output_divergence([x], [y], kind="boxes") > 0.3


def test_a_class_that_no_sample_shows_does_not_count_most() -> None:
    x = RNG.random((8, 6, 40)).astype(np.float32)
    x[:, :4] *= 640
    x[:, 5] = 1e-7
    y = x.copy()
    y[:, 5] = 2e-3
    bound = LEAST_SHARE * x[:, 4].astype(np.float64).var() / 2
    assert output_divergence([x], [y], kind="boxes") == pytest.approx(4e-6 / bound / 6, rel=1e-2)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((1, 84, 8400), -2), ((1, 25200, 85), -1), ((1, 255, 13, 13), -3), ((1, 3, 13, 13, 85), -1), ((8, 4), None)],
)
def test_entries_of_boxes(shape: tuple[int, ...], axis: int | None) -> None:
    assert form_of("boxes", shape) == ("error", axis)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("shape", [(4, 5, 6, 7), (4, 5, 6)])
def test_maps_are_compared_at_each_position(shape: tuple[int, ...], unit: bool) -> None:
    x = drawn(*shape)
    y = moved(x)
    p, q = softmax(x, 1), softmax(y, 1)
    given = (p.astype(np.float32), q.astype(np.float32)) if unit else (x, y)
    assert output_divergence([given[0]], [given[1]], kind="map") == pytest.approx(kl(p, q, 1), rel=1e-5)
    same = 100 * (x.argmax(axis=1) == y.argmax(axis=1)).mean()
    assert output_agreement([given[0]], [given[1]], "map") == pytest.approx(same)
    beside = drawn(4, 3)
    both = output_divergence([given[0], beside], [given[1], 0.5 * beside], kind="map")
    assert both == pytest.approx(kl(p, q, 1) + share(beside, 0.5 * beside), rel=1e-5)


@pytest.mark.parametrize("unit", [False, True])
def test_a_map_of_one_class_is_compared_as_a_probability(unit: bool) -> None:
    x = drawn(4, 1, 6, 7)
    y = moved(x)
    p, q = sigmoid(x), sigmoid(y)
    expected = float((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean())
    given = (p.astype(np.float32), q.astype(np.float32)) if unit else (x, y)
    assert output_divergence([given[0]], [given[1]], kind="map") == pytest.approx(expected, rel=1e-5)
    assert output_agreement([given[0]], [given[1]], "map") == pytest.approx(100 * ((x > 0) == (y > 0)).mean())


def test_a_mask_of_zeros_and_ones_has_a_finite_distance() -> None:
    mask = (RNG.random((4, 1, 6, 6)) > 0.5).astype(np.float32)
    found = output_divergence([mask], [1 - mask], kind="map")
    assert found == pytest.approx(-np.log(1e-12), rel=1e-3)


def test_frames_are_compared_at_each_step() -> None:
    x = drawn(4, 9, 5)
    y = moved(x)
    assert output_divergence([x], [y], kind="frames") == pytest.approx(kl(softmax(x, 2), softmax(y, 2), 2), rel=1e-5)
    same = 100 * (x.argmax(axis=2) == y.argmax(axis=2)).mean()
    assert output_agreement([x], [y], "frames") == pytest.approx(same)


@pytest.mark.parametrize("shape", [(20, 6), (20, 6, 1, 1)])
def test_embeddings_are_compared_by_their_direction(shape: tuple[int, ...]) -> None:
    x = drawn(*shape)
    y = moved(x)
    a, b = (z.reshape(20, 6).astype(np.float64) for z in (x, y))
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert output_divergence([x], [y], kind="embedding") == pytest.approx(1 - cosine.mean(), rel=1e-5)
    assert output_divergence([x], [3 * x], kind="embedding") < 1e-12
    assert output_divergence([x], [0 * x], kind="embedding") == pytest.approx(1)
    assert output_divergence([0 * x], [0 * x], kind="embedding") == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 3, 6, 7), (5, 3, 6), (5, 1, 6, 6), (5, 8)])
def test_parts_of_any_size_give_the_same(kind: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    x = drawn(*shape) + 100
    y = moved(x)
    whole = output_divergence([x], [y], kind=kind)
    for size in (1, 7, 50):
        monkeypatch.setattr(output_distance, "PIECE", size)
        assert output_divergence([x], [y], kind=kind) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_all_samples_are_not_copied(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_distance, "PIECE", 2**12)
    x = drawn(2, 8, 256, 256)
    y = x + np.float32(0.1)
    found = distance_of(kind, x)
    assert found is not None
    tracemalloc.start()
    try:
        again = distance_of(kind, x)
        assert again is not None
        again(x, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 4

"""Distances from a teacher and from labels, held against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.metrics.outputs import output_divergence
from onnxprune.torch_backend.losses import Distance, Features, error, variance

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch
RNG = np.random.default_rng(0)
TEACHER = (3 * RNG.normal(size=(16, 5))).astype(np.float32)
STUDENT = (TEACHER + RNG.normal(size=(16, 5))).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def distance(teacher: list[np.ndarray], student: list[np.ndarray], temperature: float = 1.0) -> float:
    given, wanted = ([torch.from_numpy(x) for x in each] for each in (student, teacher))
    return float(Distance.of(wanted, temperature)(given, wanted))


@pytest.mark.parametrize("shape", [(16, 5), (16, 5, 1, 1)])
def test_at_temperature_one_it_is_the_divergence_that_is_reported(shape):
    teacher, student = TEACHER.reshape(shape), STUDENT.reshape(shape)
    assert distance([teacher], [student]) == pytest.approx(output_divergence([teacher], [student]), rel=1e-5)
    assert distance([teacher], [teacher]) == 0


@pytest.mark.parametrize("temperature", [0.5, 2.0, 7.0])
def test_temperature_scales_logits_and_what_comes_of_them(temperature):
    p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    assert distance([TEACHER], [STUDENT], temperature) == pytest.approx(expected, rel=1e-5)


def test_probabilities_are_taken_back_to_logits():
    p, q = (softmax(x).astype(np.float32) for x in (TEACHER, STUDENT))
    assert distance([p], [q], 3.0) == pytest.approx(distance([TEACHER], [STUDENT], 3.0), rel=1e-4)
    assert distance([p], [q]) == pytest.approx(output_divergence([p], [q]), rel=1e-4)


def test_other_outputs_count_with_their_share_of_variance():
    maps = RNG.normal(2, 3, size=(2, 16, 4, 3, 3)).astype(np.float32)
    expected = ((maps[0] - maps[1]) ** 2).mean() / maps[0].var()
    assert distance([maps[0]], [maps[1]]) == pytest.approx(expected, rel=1e-5)
    assert distance([maps[0]], [maps[1]]) == pytest.approx(output_divergence([maps[0]], [maps[1]]), rel=1e-5)
    both = distance([TEACHER, maps[0]], [STUDENT, maps[1]])
    assert both == pytest.approx(distance([TEACHER], [STUDENT]) + expected, rel=1e-5)


def test_integers_are_ignored():
    classes = np.arange(16)
    assert distance([classes, TEACHER], [classes[::-1].copy(), STUDENT]) == distance([TEACHER], [STUDENT])
    assert not Distance.of([torch.from_numpy(classes)])


@pytest.mark.parametrize("wide", [False, True])
def test_the_distance_of_a_batch_is_the_mean_of_those_of_its_parts(wide):
    """Also where the parts differ in variance: else gradients that are accumulated are not those of the whole."""
    a, b = (RNG.normal(size=(16, 4, 3, 3)).astype(np.float32) for _ in range(2)) if wide else (TEACHER, STUDENT)
    a = a * np.linspace(0.1, 5, 16, dtype=np.float32).reshape(-1, *[1] * (a.ndim - 1))
    wanted, given = torch.from_numpy(a), torch.from_numpy(b)
    whole = Distance.of([wanted], 2.0)
    parts = [float(whole([given[i : i + 4]], [wanted[i : i + 4]])) for i in range(0, 16, 4)]
    assert np.mean(parts) == pytest.approx(float(whole([given], [wanted])), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_smoothed_labels(smoothing):
    labels = RNG.integers(0, 5, 16)
    wanted = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    expected = -(wanted * np.log(softmax(STUDENT))).sum(1).mean()
    found = Distance.of([torch.from_numpy(TEACHER)], 4.0).cross_entropy(
        [torch.from_numpy(STUDENT)], torch.from_numpy(labels), smoothing
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_features_are_compared_at_the_channels_that_are_left():
    teacher = {"a": torch.randn(4, 6, 3, 3) * 2, "b": torch.randn(4, 5)}
    kept = np.array([0, 2, 5])
    features = Features({"a": (1, kept), "b": (1, None)}, teacher)
    student = {"a": teacher["a"][:, kept] + 0.5, "b": teacher["b"] - 1.0}
    x = teacher["a"][:, kept].numpy().astype(np.float64)
    y = teacher["b"].numpy().astype(np.float64)
    assert float(features(student, teacher)) == pytest.approx((0.25 / x.var() + 1 / y.var()) / 2, rel=1e-5)
    same = {"a": teacher["a"][:, kept], "b": teacher["b"]}
    assert float(features(same, teacher)) == 0


def test_a_constant_output_has_a_finite_error():
    constant = torch.ones(3, 4)
    assert np.isfinite(float(error(constant + 1e-3, constant, variance(constant))))

"""Distances of outputs by kind in torch, held against those in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.metrics.distances import DISTANCES
from onnxprune.metrics.output_distance import distance_of
from onnxprune.metrics.outputs import output_divergence
from onnxprune.torch_backend import output_losses
from onnxprune.torch_backend.losses import Distance

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch
Array = np.ndarray[Any, Any]
SHAPES = [(6, 5), (6, 5, 1, 1), (6, 5, 8), (6, 8, 5), (6, 4, 3, 3), (6, 1, 3, 3), (6, 2, 3, 3, 7)]
RNG = np.random.default_rng(0)


def squashed(x: Array, form: str) -> Array:
    """Return logits as they are, as probabilities of classes on an axis, or each as a probability."""
    if form == "logits":
        return x.astype(np.float32)
    if form == "sigmoid":
        return np.asarray((1 / (1 + np.exp(-x))).astype(np.float32))
    axis = 2 if form == "last" and x.ndim > 2 else 1
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray((e / e.sum(axis=axis, keepdims=True)).astype(np.float32))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[Array], list[Array]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    original, other = [], []
    for shape in draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3)):
        form, scale = draw(st.sampled_from(["logits", "sigmoid", "first", "last"])), draw(st.sampled_from([0.5, 3.0]))
        x = scale * rng.normal(size=shape)
        y = x + rng.normal(size=shape)
        original.append(squashed(x, form))
        other.append(squashed(y, form))
    return original, other


def loss(kind: str, teacher: list[Array], student: list[Array], temperature: float = 1.0) -> tuple[float, list[Any]]:
    wanted, found = ([torch.from_numpy(x.copy()) for x in each] for each in (teacher, student))
    for x in found:
        x.requires_grad_()
    value = Distance.of(wanted, temperature, kind)(found, wanted)
    value.backward()
    return float(value.detach()), [x.grad for x in found if x.grad is not None]


@pytest.mark.parametrize("kind", [kind for kind in DISTANCES if kind != "auto"])
@settings(max_examples=40, deadline=None)
@given(pair=pairs())
def test_torch_gives_what_numpy_gives(kind: str, pair: tuple[list[Array], list[Array]]) -> None:
    value, gradients = loss(kind, *pair)
    assert value == pytest.approx(output_divergence(*pair, kind=kind), rel=1e-5, abs=1e-7)
    assert gradients
    assert all(bool(torch.isfinite(each).all()) for each in gradients)


@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-20])
def test_gradients_at_the_border_are_finite(kind: str, shape: tuple[int, ...], value: float) -> None:
    constant = np.full(shape, value, np.float32)
    mask = (RNG.random(shape) > 0.5).astype(np.float32)
    for teacher, student in ((constant, mask), (mask, constant), (constant, constant), (mask, 1 - mask)):
        found, gradients = loss(kind, [teacher], [student])
        assert np.isfinite(found)
        assert all(bool(torch.isfinite(each).all()) for each in gradients)


@pytest.mark.parametrize("kind", ["map", "frames"])
def test_temperature_keeps_the_scale_of_gradients(kind: str) -> None:
    x = RNG.normal(size=(6, 5, 8)).astype(np.float32)
    y = x + 0.01 * RNG.normal(size=x.shape).astype(np.float32)
    axis = 1 if kind == "map" else 2
    p, q = (squashed((z / 4).astype(np.float64), "first" if axis == 1 else "last").astype(np.float64) for z in (x, y))
    expected = 16 * (p * np.log(p / q)).sum(axis=axis).mean()
    assert loss(kind, [x], [y], 4.0)[0] == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("kind", ["numbers", "boxes", "map", "frames", "embedding"])
def test_the_distance_of_a_batch_is_the_mean_of_those_of_its_parts(kind: str) -> None:
    x = (RNG.normal(size=(16, 5, 7)) * np.linspace(0.1, 5, 16)[:, None, None]).astype(np.float32)
    y = x + RNG.normal(size=x.shape).astype(np.float32)
    wanted, found = torch.from_numpy(x), torch.from_numpy(y)
    whole = Distance.of([wanted], 2.0, kind)
    parts = [float(whole([found[i : i + 4]], [wanted[i : i + 4]])) for i in range(0, 16, 4)]
    assert np.mean(parts) == pytest.approx(float(whole([found], [wanted])), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "shape", "form"),
    [
        ("numbers", (2, 3), "logits"),
        ("boxes", (2, 2, 3), "logits"),
        ("map", (2, 3, 2), "logits"),
        ("map", (2, 3, 2), "first"),
        ("map", (2, 1, 3), "logits"),
        ("map", (2, 1, 3), "sigmoid"),
        ("frames", (1, 2, 3), "last"),
        ("embedding", (2, 3), "logits"),
    ],
)
def test_the_gradient_of_noise_has_the_hessian_as_its_covariance(kind: str, shape: tuple[int, ...], form: str) -> None:
    x = squashed(RNG.normal(size=shape), form)
    found = distance_of(kind, x)
    assert found is not None
    z = torch.from_numpy(x)
    hessian = torch.autograd.functional.hessian(lambda y: output_losses.distance(found, y, z), z)
    hessian = hessian.reshape(z.numel(), z.numel()).double()
    generator, draws = torch.Generator().manual_seed(0), 6000
    total = torch.zeros_like(hessian)
    for _ in range(draws):
        y = z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(output_losses.noise(found, y, generator), y)
        total += torch.outer(gradient.reshape(-1), gradient.reshape(-1)).double()
    torch.testing.assert_close(total / draws, hessian, rtol=0.05, atol=0.06 * float(hessian.abs().max()))

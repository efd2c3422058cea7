"""Training towards the original by the distance of a task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Builder, load

from onnxprune.data.dataset import load_data
from onnxprune.errors import OptionError
from onnxprune.graph.model import Model, inputs_of
from onnxprune.metrics.outputs import output_agreement, output_divergence
from onnxprune.options import ResolvedTraining as Training
from onnxprune.runtime.session import UNOPTIMIZED, run_batch
from onnxprune.torch_backend.executor import Executor
from onnxprune.training.distill import Setting, TrainingResult, distill

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch
Array = np.ndarray[Any, Any]
SHORT = Training(amount=60, unit="steps", batch=16, rate=0.01, augment=(), clip=0, ema=0)


def network(kind: str) -> onnx.ModelProto:
    """Return a model with an output that a kind is made for."""
    b = Builder((2, 6, 6))
    x = b.node("Relu", [b.conv(b.node("Relu", [b.conv("x", 6, 3)]), 8, 3)])
    if kind in ("embedding", "numbers", "scores"):
        return b.build(b.gemm(b.flatten(b.global_pool(x)), 4))
    output = b.conv(x, 1 if kind == "mask" else 5)
    if kind == "frames":
        output = b.reshape(output, (-1, 5, 36), (5, 36))
    return b.build(output)


def samples(n: int) -> Array:
    rng = np.random.default_rng(3)
    return (rng.normal(size=(n, 2, 6, 6)) + 2 * rng.normal(size=(n, 2, 1, 1))).astype(np.float32)


def disturbed(model: Model, by: float = 0.2) -> Model:
    rng = np.random.default_rng(0)
    result = model.copy()
    tensors = result.graph.tensors()
    for name in Executor(model).weights:
        values = np.asarray(tensors[name].values)
        tensors[name].values = (values * (1 + by * rng.standard_normal(values.shape))).astype(values.dtype)
    return result


def tuned(teacher: Model, kind: str, training: Training = SHORT, labels: Array | None = None) -> TrainingResult:
    x = samples(120)
    data = load_data(x if labels is None else {"x": x, "labels": labels}, inputs_of(teacher))
    return distill(disturbed(teacher), teacher, data, training, Setting(distance=kind))


def outputs(model: Model) -> list[Array]:
    return run_batch(model.session(UNOPTIMIZED), {"x": samples(200)[120:]})


@pytest.mark.parametrize("name", ["scores", "numbers", "boxes", "map", "mask", "frames", "embedding"])
def test_training_lessens_the_distance_that_it_measures(name: str) -> None:
    kind = "map" if name == "mask" else name
    teacher = load(network(name))
    result = tuned(teacher, kind)
    first, last = result.validations[0], result.validations[-1]
    wanted = outputs(teacher)
    before, after = (
        output_divergence(wanted, outputs(model), kind=kind) for model in (disturbed(teacher), result.model)
    )
    assert first.divergence > 1e-3
    assert min(each.divergence for each in result.validations) < 0.3 * first.divergence
    assert after < 0.5 * before
    assert last.top1 is None
    names_classes = kind in ("scores", "map", "frames")
    assert (last.agreement is not None) == names_classes
    if names_classes:
        start, end = (output_agreement(wanted, outputs(model), kind) for model in (disturbed(teacher), result.model))
        assert start is not None
        assert end is not None
        assert end > start


@pytest.mark.parametrize("kind", ["numbers", "embedding", "boxes", "map"])
def test_labels_do_not_count_unless_asked_for(kind: str) -> None:
    teacher = load(network("numbers"))
    labels = np.arange(120) % 4
    short = replace(SHORT, amount=3)
    plain, labelled = (tuned(teacher, kind, short, given) for given in (None, labels))
    assert plain.validations[-1] == replace(labelled.validations[-1], seconds=plain.validations[-1].seconds)
    assert tuned(teacher, "scores", short, labels).validations[-1].top1 is not None
    asked = replace(short, labels=0.5)
    if kind in ("embedding", "boxes"):
        with pytest.raises(OptionError, match="needs labels") as caught:
            tuned(teacher, kind, asked, labels)
        assert "no output" in caught.value.why
    else:
        assert tuned(teacher, kind, asked, labels).validations[-1].top1 is not None


def test_labels_that_are_asked_for_without_scores() -> None:
    with pytest.raises(OptionError, match="needs labels") as caught:
        tuned(load(network("map")), "map", replace(SHORT, labels=0.5), np.zeros(120, np.int64))
    assert "no output has the form" in caught.value.why


def test_an_unknown_distance_is_refused() -> None:
    with pytest.raises(OptionError, match="unknown distance 'pixels'"):
        tuned(load(network("map")), "pixels")

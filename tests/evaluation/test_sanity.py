"""Data that the original does not understand are named; data that it does are not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import Builder, load
from onnx import numpy_helper

from onnxprune.data.dataset import load_data
from onnxprune.evaluation.sanity import doubts, normalization
from onnxprune.graph.model import inputs_of
from onnxprune.types import Verdict

CLASSES = 6


def scores(labels: np.ndarray, right: float, seed: int, sure: float = 4.0) -> np.ndarray:
    """Return scores whose best class is the label for a share of the samples, as sure as they are right."""
    rng = np.random.default_rng(seed)
    best = np.where(rng.random(len(labels)) < right, labels, rng.integers(0, CLASSES, len(labels)))
    return np.eye(CLASSES)[best] * sure + rng.normal(size=(len(labels), CLASSES)) * 0.3


def named(outputs: np.ndarray, labels: np.ndarray | None) -> list[str]:
    return [check.name for check in doubts([outputs], labels)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("right", [0.75, 0.9, 1.0])
def test_honest_data_raise_no_doubt(seed: int, right: float) -> None:
    labels = np.random.default_rng(seed).integers(0, CLASSES, 200)
    assert named(scores(labels, right, seed), labels) == []
    assert named(scores(labels, right, seed), None) == []


@pytest.mark.parametrize("seed", range(5))
def test_mistakes_with_labels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, 200)
    known = scores(labels, 0.95, seed)
    assert named(known, (labels + 1) % CLASSES) == ["labels of other classes"]
    assert named(known, rng.permutation(CLASSES)[(labels + 2) % CLASSES]) == ["labels of other classes"]
    assert named(known, rng.permutation(labels)) == ["original near chance"]
    assert named(known, np.zeros_like(labels)) == ["one class in the labels"]
    assert named(scores(labels, 0.35, seed, sure=8.0), labels) == ["original too sure"]
    shifted = next(check for check in doubts([known], labels + 1 - (labels == 5)) if "classes" in check.name)
    assert shifted.status == "UNDECIDED"


@pytest.mark.parametrize("deviation", [0.001, 0.1])
def test_maps_that_hardly_depend_on_the_input(deviation: float) -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(1, CLASSES, 8, 8)) + deviation * rng.normal(size=(100, CLASSES, 8, 8))
    assert named(maps, None) == (["nearly the same outputs"] if deviation < 0.01 else [])
    assert named(maps[:20], None) == []


def test_the_same_for_every_sample() -> None:
    p = np.full((40, CLASSES), 0.1)
    p[:, 2] = 0.5
    assert named(p, None) == ["nearly the same outputs"]
    p[:, 2] -= 0.3 * np.random.default_rng(0).random(40)
    p[:, 0] += 0.5 - p[:, 2]
    p[:, 0], p[:, 2] = np.minimum(p[:, 0], p[:, 2]), np.maximum(p[:, 0], p[:, 2])
    assert named(p, None) == ["one class predicted"]
    rows = np.random.default_rng(0).normal(size=(1, 16)) + 1e-3 * np.random.default_rng(1).normal(size=(40, 16))
    assert named(rows, None) == ["nearly the same outputs"]
    assert named(np.random.default_rng(0).normal(size=(40, 16)), None) == []


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize(
    ("scale", "shift", "doubtful"), [(1, 0, False), (1.3, 0.2, False), (0.01, 0, True), (60, 0, True), (1, 4, True)]
)
def test_values_that_the_first_normalization_was_not_trained_on(
    scale: float, shift: float, doubtful: bool, opset: int
) -> None:
    b = Builder((3, 8, 8), opset=opset)
    proto = b.build(b.flatten(b.global_pool(b.node("Relu", [b.batchnorm(b.conv("x", 8, 3))]))))
    x = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
    model = load(proto)
    norm = next(node for node in proto.graph.node if node.op_type == "BatchNormalization")
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    watched.graph.output.append(onnx.ValueInfoProto(name=norm.input[0]))
    import onnxruntime as ort

    seen = ort.InferenceSession(watched.SerializeToString()).run([norm.input[0]], {"x": x})[0]
    trained = {norm.input[3]: seen.mean(axis=(0, 2, 3)), norm.input[4]: seen.var(axis=(0, 2, 3))}
    for tensor in proto.graph.initializer:
        if tensor.name in trained:
            tensor.CopyFrom(numpy_helper.from_array(trained[tensor.name].astype(np.float32), tensor.name))
    found = list(normalization(proto, load_data({"x": x * scale + shift}, inputs_of(model))))
    assert bool(found) is doubtful
    assert Verdict(tuple(found)).quality == ("UNDECIDED" if doubtful else "NOT MEASURED")


def test_labels_that_start_at_another_number_are_told_how_to_correct() -> None:
    labels = np.random.default_rng(0).integers(0, CLASSES - 1, 200)
    (found,) = doubts([scores(labels, 1.0, 0)], labels + 1)
    assert "with labels -1 they are" in found.detail

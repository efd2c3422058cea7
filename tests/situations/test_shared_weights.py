"""One stored tensor is one thing: all its readers lose the same channels, and the file shrinks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxprune
from onnxprune.graph.io import load
from onnxprune.graph.model import count_params
from onnxprune.options import Options

HALF = Options(reduce={"flops": 0.5}, samples=48)


def stored(path: Path) -> int:
    """Return the number of elements of all float initializers."""
    return sum(int(np.prod(t.dims)) for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT)


def weights(path: Path) -> list[str]:
    """Return the names of the stored weights of layers."""
    return sorted(tensor.name for tensor in onnx.load(path).graph.initializer if len(tensor.dims) > 1)


def run(path: Path, **feeds: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def pruned(model: Path, **how: Any) -> tuple[Path, Any]:
    """Prune a model by half of its FLOPs; return the path of the result, and the result."""
    output = model.with_suffix(".pruned.onnx")
    return output, onnxprune.prune(model, output=output, options=HALF, latency=False, **how)


@pytest.mark.situation("siamese")
@pytest.mark.parametrize("with_data", [False, True])
def test_branches_of_a_siamese_network_lose_the_same(situation: Callable[[str], Path], with_data: bool) -> None:
    model = situation("siamese")
    output, result = pruned(model, data=model.with_suffix(".npz") if with_data else None)
    assert result.report.after.params == stored(output) < 0.7 * stored(model)
    assert result.report.before.params == stored(model)
    assert output.stat().st_size < 0.7 * model.stat().st_size
    a = np.random.default_rng(1).standard_normal((4, 3, 32, 32)).astype(np.float32)
    assert np.abs(run(output, a=a, b=a)).max() <= 1e-10
    assert len(onnx.load(output).graph.initializer) <= 2 * 4 + 1


@pytest.mark.situation("retina")
@pytest.mark.situation("tied")
@pytest.mark.parametrize("name", ["retina", "tied"])
def test_figures_of_a_shared_weight_are_those_of_the_file(situation: Callable[[str], Path], name: str) -> None:
    model = situation(name)
    output, result = pruned(model)
    assert result.report.before.params == stored(model)
    assert result.report.after.params == stored(output) < stored(model)
    assert output.stat().st_size < model.stat().st_size
    assert result.report.after.size == output.stat().st_size
    assert len(weights(output)) == len(weights(model))  # repair adds biases where layers have none


def test_the_digest_covers_external_data(situation: Callable[[str], Path]) -> None:
    model = situation("tied")
    onnx.save_model(onnx.load(model), model, save_as_external_data=True, location="weights", size_threshold=0)
    before = load(model)
    data = model.with_name("weights")
    data.write_bytes(bytes([*data.read_bytes()[:-4], 0, 0, 0, 0]))
    assert load(model).digest != before.digest
    assert load(model).params == before.params == 56160


def test_constants_that_are_computed_are_no_parameters(situation: Callable[[str], Path]) -> None:
    model = situation("bigconst")
    assert load(model).params == count_params(onnx.load(model)) < 150_000

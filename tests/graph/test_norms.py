"""Channels that a normalization runs over are prunable with `--norms cut` and repair, and only then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cases import build

import onnxprune
from onnxprune.errors import OnnxPruneError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.options import Options

WIDTH, COPIES = 8, 2
LAYER_NORM = "n = LayerNormalization (e, scale, beta)"
PRIMITIVES = """m1 = ReduceMean <axes=[-1]> (e) d = Sub (e, m1) s = Mul (d, d) r = ReduceMean <axes=[-1]> (s)
    t = Add (r, eps) q = Sqrt (t) p = Div (d, q) o = Mul (p, scale) n = Add (o, beta)"""
FAST = BenchmarkConfig(latency=False)


def twice(shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    """Return random numbers, repeated once along the last axis."""
    rng = np.random.default_rng(seed)
    half = rng.normal(0, shape[0] ** -0.5, (*shape[:-1], shape[-1] // COPIES)).astype(np.float32)
    return np.concatenate([half] * COPIES, axis=-1)


def embedding(norm: str = LAYER_NORM) -> onnx.ModelProto:
    """Return a transformer block whose embedding holds each channel twice: half of them give the same statistics."""
    wide = WIDTH * COPIES
    text = f"""e = MatMul (x, we) {norm} h = MatMul (n, k1) g1 = Relu (h) w = MatMul (g1, k2) z = Add (e, w)
        l = {"LayerNormalization (z, scale, beta)" if norm is LAYER_NORM else "Identity (z)"} y = MatMul (l, k3)"""
    weights: dict[str, Any] = {
        "we": twice((5, wide), 1), "scale": (wide,), "beta": (wide,), "k1": (wide, 12), "k2": twice((12, wide), 2), "k3": (wide, 4),
    }  # fmt: skip
    return build(text, weights, 17 if norm is LAYER_NORM else 13, "float[N,6,5] x")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a model; return its path."""
    path = tmp_path / "model.onnx"
    onnx.save(embedding(), path)
    return path


@pytest.fixture
def data() -> dict[str, Any]:
    """Return random inputs."""
    return {"x": np.random.default_rng(3).normal(size=(256, 6, 5)).astype(np.float32)}


def prune(path: Path, data: dict[str, Any] | None, **dials: Any) -> Any:
    """Prune with the common options of the tests."""
    return onnxprune.prune(path, data=data, reduce={"flops": 0.45}, round_to=1, measure=FAST, ignore=("k1",), **dials)


@pytest.mark.parametrize("norm", [LAYER_NORM, PRIMITIVES], ids=["LayerNormalization", "in primitives"])
def test_a_redundant_embedding_is_halved_and_repaired(norm: str, tmp_path: Path, data: dict[str, Any]) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(embedding(norm), path)
    result = prune(path, data)
    gone = result.trace.inexact() & ~result.plan.keep
    assert gone.sum() >= WIDTH - 1
    assert result.report.fidelity["cosine"] > 0.999
    assert result.report.verdict.integrity == "PASSED"
    assert any(note.startswith(f"inexact: {gone.sum()} of") for note in result.report.notes)
    assert result.plan.settings["norms"] == "cut"


@pytest.mark.parametrize(
    ("with_data", "dials"),
    [(False, {"repair": "none"}), (True, {"norms": "keep"}), (True, {"repair": "none"}), (True, {"repair": "bias"})],
)
def test_channels_are_pinned_without_repair(
    model: Path, data: dict[str, Any], with_data: bool, dials: dict[str, str]
) -> None:
    with pytest.raises(OnnxPruneError) as caught:
        prune(model, data if with_data else None, **dials)
    assert "LayerNormalization normalizes over the channels" in str(caught.value)
    assert "--norms cut" in str(caught.value)


@pytest.mark.parametrize(("data_given", "repair"), [(False, "auto"), (True, "none"), (True, "bias")])
def test_norms_are_not_cut_without_repair(data_given: bool, repair: str) -> None:
    with pytest.raises(OnnxPruneError, match="--norms cut"):
        Options(norms="cut", repair=repair).resolved(data_given)


def test_a_plan_is_replayed_with_the_channels_of_its_trace(model: Path, data: dict[str, Any], tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    first = prune(model, data, plan_output=plan)
    again = onnxprune.prune(model, plan=plan, data=data, measure=FAST, norms="keep")
    assert np.array_equal(first.plan.keep, again.plan.keep)
    assert again.report.fidelity["cosine"] > 0.999
    for dials in ({"repair": "none"}, {"data": data, "repair": "none"}):
        with pytest.raises(OnnxPruneError, match="needs --repair lstsq"):
            onnxprune.prune(model, plan=plan, measure=FAST, **dials)


def test_a_plan_of_whole_positions_needs_no_option_to_be_replayed(
    model: Path, data: dict[str, Any], tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    onnxprune.prune(model, reduce={"flops": 0.1}, repair="none", plan_output=plan, round_to=1, measure=FAST)
    content = json.loads(plan.read_text())
    assert content["settings"]["norms"] == "keep"
    onnxprune.prune(model, plan=plan, data=data, measure=FAST)
    del content["settings"]["norms"]  # as plans were written once
    plan.write_text(json.dumps(content))
    onnxprune.prune(model, plan=plan, data=data, measure=FAST)

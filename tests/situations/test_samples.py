"""Samples lie on the axis that the model uses, shapes are run, and outputs are what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import onnxprune
from onnxprune.graph import io
from onnxprune.types import SampleAxis

Situation = Callable[[str], Path]
QUICK: dict[str, Any] = {"latency": False, "samples": 16, "granularity": ("filter",)}


def outputs(path: Path, feeds: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    return list(ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds))


@pytest.mark.situation("batch1only")
@pytest.mark.parametrize("data", [True, False])
def test_a_batch_of_one_is_found_and_its_node_named(situation: Situation, tmp_path: Path, data: bool) -> None:
    path = situation("batch1only")
    signature = io.load(path).signature
    assert signature.fixed == 1
    assert "Reshape_10" in signature.notes[0]
    given = {"data": path.with_suffix(".npz")} if data else {}
    result = onnxprune.prune(path, output=tmp_path / "o.onnx", reduce={"flops": 0.3}, **given, **QUICK)
    assert result.report.verdict.integrity == "PASSED"
    assert any("Reshape_10" in note for note in result.report.notes)
    assert result.report.samples == (40 if data else QUICK["samples"])
    assert onnxprune.inspect(path).report.macs > 0
    limits = onnxprune.GateLimits(max_drop=100) if data else None
    assert onnxprune.check(tmp_path / "o.onnx", path, latency=False, limits=limits, **given)


@pytest.mark.situation("crnn")
@pytest.mark.parametrize("samples", [40, 32])
def test_the_second_axis_of_an_output_holds_the_samples(situation: Situation, tmp_path: Path, samples: int) -> None:
    path = situation("crnn")
    assert io.load(path).signature.outputs == {"logits": SampleAxis(1)}
    x = np.load(path.with_suffix(".npz"))["x"][:samples]
    result = onnxprune.prune(
        path, output=tmp_path / "o.onnx", data={"x": x}, reduce={"flops": 0.2}, eval_batch=16, **QUICK
    )
    assert result
    assert result.report.samples == samples
    # the figure is that of the samples, however they are put into batches
    a, b = (outputs(p, {"x": x})[0].swapaxes(0, 1).reshape(samples, -1) for p in (path, tmp_path / "o.onnx"))
    expected = 1 - ((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum()
    assert result.report.fidelity["explained"] == pytest.approx(100 * expected, abs=0.1)


@pytest.mark.situation("hwc")
@pytest.mark.parametrize("many", [False, True])
def test_an_input_without_a_batch_takes_one_picture_at_a_time(situation: Situation, tmp_path: Path, many: bool) -> None:
    path = situation("hwc")
    signature = io.load(path).signature
    assert (signature.inputs["image"], signature.fixed) == (SampleAxis(None), 1)
    file = path.with_name("hwc_batch.npz" if many else "hwc.npz")
    result = onnxprune.prune(path, output=tmp_path / "o.onnx", data=file, reduce={"flops": 0.3}, **QUICK)
    assert result.report.samples == (24 if many else 1)
    assert result.report.before.flops == pytest.approx(
        2 * onnxprune.inspect(path, shape={"image": (64, 80, 3)}).report.macs
    )
    assert onnxprune.prune(path, reduce={"flops": 0.3}, data="generated", **QUICK)


@pytest.mark.situation("uint8nhwc")
def test_generated_bytes_are_like_those_of_images(situation: Situation, tmp_path: Path) -> None:
    path = situation("uint8nhwc")
    onnxprune.prune(
        path, output=tmp_path / "o.onnx", reduce={"flops": 0.5}, latency=False, samples=64, granularity=("filter",)
    )
    rng = np.random.default_rng(3)
    smooth = rng.integers(0, 256, (200, 8, 8, 3)).repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)
    a, b = (outputs(p, {"image": smooth})[0].argmax(1) for p in (path, tmp_path / "o.onnx"))
    assert (a == b).mean() > 0.8


@pytest.mark.situation("square")
def test_usual_squares_are_tried_and_a_shape_can_be_given(situation: Situation, tmp_path: Path) -> None:
    path = situation("square")
    assert io.load(path).signature.shapes == {"x": (1, 3, 96, 96)}
    shape = {"x": (1, 3, 96, 96)}
    data = path.with_suffix(".npz")
    assert onnxprune.inspect(path, shape=shape).report.macs == onnxprune.inspect(path).report.macs
    assert onnxprune.prune(path, output=tmp_path / "o.onnx", reduce={"flops": 0.3}, shape=shape, **QUICK)
    assert onnxprune.prune(path, reduce={"flops": 0.3}, data=data, **QUICK)
    assert onnxprune.plan(path, reduce={"flops": 0.3}, shape=shape, repair="none", latency=False).plan.keep.any()
    assert onnxprune.bench(path, shape=shape, runs=1, warmup=0).report.latency.a > 0
    assert onnxprune.check(tmp_path / "o.onnx", path, shape=shape, latency=False)
    assert onnxprune.sensitivity(path, data="generated", shape=shape, samples=8).curves


@pytest.mark.situation("fixedbatch")
def test_figures_are_of_one_sample_and_no_sample_is_left_out(situation: Situation, tmp_path: Path) -> None:
    path = situation("fixedbatch")
    data = path.with_suffix(".npz")
    found = onnxprune.inspect(path).report
    assert found.macs == 3 * 32 * 9 * 1024 + 32 * 64 * 9 * 256 + 64 * 64 * 9 * 256 + 640
    result = onnxprune.prune(path, output=tmp_path / "o.onnx", reduce={"flops": 0.3}, data=data, **QUICK)
    assert result.report.samples == 50
    arrays = np.load(data)
    x, labels = np.concatenate([arrays["x"], arrays["x"][:6]]), arrays["labels"]
    predicted = np.concatenate([outputs(tmp_path / "o.onnx", {"x": x[i : i + 8]})[0] for i in range(0, 56, 8)])[:50]
    assert result.report.after.top1 == pytest.approx(100 * (predicted.argmax(1) == labels).mean())


@pytest.mark.situation("landmarks2")
def test_coordinates_are_held_to_their_variance(situation: Situation, tmp_path: Path) -> None:
    path = situation("landmarks2")
    data = path.with_suffix(".npz")
    result = onnxprune.prune(path, output=tmp_path / "o.onnx", max_drop=0.5, data=data, repair="none", latency=False)
    assert "agreement" not in result.report.fidelity
    x = np.load(data)["x"]
    a, b = (outputs(p, {"x": x})[0] for p in (path, tmp_path / "o.onnx"))
    assert ((a - b) ** 2).sum() <= 0.005 * ((a - a.mean(0)) ** 2).sum()
    assert not onnxprune.check(
        tmp_path / "o.onnx", path, data=data, limits=onnxprune.GateLimits(max_drop=1e-9), latency=False
    )

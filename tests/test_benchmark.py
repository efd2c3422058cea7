"""`bench`: whole runs and layers, side by side."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import onnxprune
from onnxprune import BenchmarkConfig
from onnxprune.evaluation import benchmark
from onnxprune.runtime import machine

QUICK = BenchmarkConfig(runs=10, warmup=1, seconds=1)


def test_layers_stand_side_by_side(models: Path, tmp_path: Path) -> None:
    small = tmp_path / "s.onnx"
    onnxprune.prune(models / "resnet.onnx", reduce={"flops": 0.5}, output=small, measure=BenchmarkConfig(latency=False))
    found = benchmark.bench([models / "resnet.onnx", small], QUICK)
    convs = [row for row in found.layers if row.op == "Conv"]
    assert len(convs) >= 10
    assert all(row.a is not None and row.b is not None for row in convs)
    assert sum(row.b for row in convs) < sum(row.a for row in convs)
    dearest = [max(row.a or 0, row.b or 0) for row in found.layers]
    assert dearest == sorted(dearest, reverse=True)
    content = found.to_dict()
    json.dumps(content)
    assert content["schema"] == benchmark.SCHEMA


def test_one_model_alone(models: Path) -> None:
    found = benchmark.bench([models / "small.onnx"], QUICK)
    assert found.latency.b is None
    assert found.layers
    assert all(row.b is None for row in found.layers)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes cannot be pinned here")
def test_pinned_and_let_go() -> None:
    before = os.sched_getaffinity(0)
    with machine.pinned(1) as processors:
        assert len(processors) == (1 if len(before) > 1 else 0)
        assert set(processors or before) == os.sched_getaffinity(0)
    assert os.sched_getaffinity(0) == before
    with machine.pinned(0) as processors:
        assert processors == ()


def test_command_writes_a_table(run, models: Path, tmp_path: Path) -> None:
    result = run(
        "bench", models / "small.onnx", "--runs", "5", "--latency-table", tmp_path / "t.json", "--layers", "3", "-q"
    )
    assert result.exit_code == 0, result.output
    assert "median error" in result.output
    assert json.loads((tmp_path / "t.json").read_text())["schema"] == "onnxprune.latency/1"

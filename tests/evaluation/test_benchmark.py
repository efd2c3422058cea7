"""`bench`: whole runs and layers, side by side."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import onnxprune
from onnxprune.evaluation import benchmark
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.runtime import machine
from onnxprune.runtime.timing import Latency, sample_times

QUICK = BenchmarkConfig(runs=10, warmup=1, seconds=1)


def test_layers_stand_side_by_side(models: Path, tmp_path: Path) -> None:
    small = tmp_path / "s.onnx"
    onnxprune.prune(
        models / "resnet.onnx",
        reduce={"flops": 0.75},
        repair="none",
        output=small,
        measure=BenchmarkConfig(latency=False),
    )
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


class Recorded:
    """A session that notes when it runs, with what `open_session` adds."""

    onnxprune_where, onnxprune_repeats = "the model", False

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def run(self, names, feeds):
        self.log.append(self.name)
        return []


def test_runs_are_interleaved_in_alternating_order():
    log: list[str] = []
    samples = sample_times([Recorded(name, log) for name in "abc"], [{}] * 3, runs=3, warmup=1)
    assert "".join(log) == "abc" + "abc" + "cba" + "abc"
    assert samples.shape == (3, 3)
    assert (samples > 0).all()


def test_runs_end_early_after_the_fewest():
    samples = sample_times([Recorded("a", [])], [{}], runs=1000, seconds=0.0, min_runs=4, progress=lambda _: None)
    assert samples.shape == (1, 4)


def test_a_latency_is_the_median_and_the_ratio_of_medians():
    found = Latency.from_samples(np.array([[2.0, 2.0, 9.0], [1.0, 1.0, 1.0]]), batch=4, threads=2)
    assert (found.a, found.b, found.speedup, found.runs, found.batch, found.threads) == (2.0, 1.0, 2.0, 3, 4, 2)
    alone = Latency.from_samples(np.array([[3.0, 3.0]]), batch=1, threads=0)
    assert (alone.a, alone.a_interval, alone.b, alone.speedup) == (3.0, (3.0, 3.0), None, None)

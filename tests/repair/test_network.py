"""Repair adds no bias that would take the result beyond a target or beyond the original."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import Builder

import onnxprune
from onnxprune.graph.model import count_params


@pytest.fixture
def unbiased(tmp_path: Path) -> tuple[Path, Path]:
    """Return a model whose layers have no biases, and samples."""
    b = Builder((3, 8, 8))
    x = "x"
    for channels, kernel in ((32, 3), (16, 1), (32, 1)):
        x = b.node("Relu", [b.conv(x, channels, kernel, bias=False)])
    onnx.save(b.build(b.gemm(b.flatten(b.global_pool(x)), 4, bias=False)), tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", x=np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32))
    return tmp_path / "m.onnx", tmp_path / "s.npz"


@pytest.mark.parametrize("share", [0.02, 0.1])
@pytest.mark.parametrize("metric", ["params", "size", "flops"])
def test_biases_that_repair_adds_are_within_the_target(metric: str, share: float, unbiased: tuple[Path, Path]) -> None:
    path, samples = unbiased
    result = onnxprune.prune(path, data=samples, reduce={metric: share}, round_to=1, latency=False)
    assert not [str(check) for check in result.report.verdict.checks if not check.passed]
    written = result.model.to_proto()
    before, after = result.report.before, result.report.after
    assert after.params == count_params(written) <= before.params
    assert written.ByteSize() <= before.size
    if metric != "flops":
        assert getattr(after, metric) <= (1 - share) * getattr(before, metric)


def test_biases_are_added_where_there_is_room(unbiased: tuple[Path, Path]) -> None:
    path, samples = unbiased
    result = onnxprune.prune(path, data=samples, reduce={"flops": 0.5}, round_to=1, latency=False)
    assert any(node.op_type == "Conv" and len(node.input) == 3 for node in result.model.to_proto().graph.node)

"""Time and memory stay in proportion: nothing is run or copied without need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import Builder

from onnxprune.graph import io
from onnxprune.graph.trace import trace
from onnxprune.surgery import channels as rewrite

MEASURE = """
import sys
from pathlib import Path
from onnxprune.graph import analysis as analysing
from onnxprune.graph import io
from onnxprune.pipeline import schedule
from onnxprune.options import Options
from onnxprune.surgery import channels as rewrite
import scipy.sparse.csgraph

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

before = peak()
loaded = io.load(sys.argv[1])
analysis = analysing.analyse(loaded)
plan = schedule.make_plan(analysis, Options(reduce={"flops": 0.3}))
pruned = rewrite.delete(loaded, analysis.trace, plan.keep)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_that_of_the_file_and_one_copy(tmp_path):
    b = Builder((256, 4, 4))
    x = "x"
    for _ in range(3):
        x = b.node("Relu", [b.conv(x, 1024, 3)])
    y = b.gemm(b.flatten(b.node("GlobalAveragePool", [x], (1024, 1, 1))), 10)
    path = tmp_path / "wide.onnx"
    path.write_bytes(b.build(y).SerializeToString())
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2.5 * path.stat().st_size + 50e6


def test_indices_computed_from_the_batch_need_no_run(tmp_path, monkeypatch):
    """A Range over the batch: exporters write it for indices of a gather."""
    b = Builder()
    x = b.conv("x", 8)
    size = b.node("Squeeze", [b.node("Shape", ["x"], (), end=1), b.ints(0)], ())
    rows = b.node("Range", [b.const(np.int64(0)), size, b.const(np.int64(1))], ())
    x = b.node("Gather", [x, b.node("Mul", [rows, b.const(np.int64(1))], ())])
    path = tmp_path / "range.onnx"
    path.write_bytes(b.build(b.conv(x, 4)).SerializeToString())
    monkeypatch.setattr("onnxprune.graph.trace.observe_tensors", lambda *_: pytest.fail("the model was run"))
    found = trace(io.load(path))
    assert int((~found.pinned).sum()) == 8


@pytest.mark.parametrize("block", [1, 1000, 2**22])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1), (1, 2), (0, 1, 2)])
def test_cutting_in_blocks(axes, block, monkeypatch):
    rng = np.random.default_rng(0)
    value = rng.standard_normal((13, 7, 5, 3)).astype(np.float16)
    kept = {axis: np.flatnonzero(rng.random(value.shape[axis]) < 0.6) for axis in axes}
    monkeypatch.setattr(rewrite, "CUT_BYTES", block)
    found = rewrite._cut(value, list(kept.items()))
    expected = value[np.ix_(*(kept.get(axis, np.arange(size)) for axis, size in enumerate(value.shape)))]
    assert found.dtype == value.dtype
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)

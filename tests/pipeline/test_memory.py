"""`--memory` bounds what a run takes beside the models. `tools/memory.py --sweep` measures it on ResNet-50."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

MEMORY = 150e6
WIDTH, SIZE, LAYERS, SAMPLES = 24, 96, 3, 64
SCRIPT = """
import sys, onnxprune, numpy as np
from onnxprune.runtime.process_memory import _peak

def prune(x):
    how = dict(reduce={"flops": 0.4}, round_to=1, latency=False, threads=1)
    onnxprune.prune(sys.argv[1], data=x, memory=float(sys.argv[2]), **how)

x = np.load(sys.argv[3])
prune(x[:8])  # loads all libraries
before = _peak()
prune(x)
print(_peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_memory_bounds_a_run_with_data(tmp_path: Path) -> None:
    """The activations of all samples take 170 MB, and those of 64 samples, in an evaluation, 130 MB."""
    rng, nodes, stored, at, channels = np.random.default_rng(0), [], [], "x", 3
    for layer in range(LAYERS):
        weight = rng.standard_normal((WIDTH, channels, 3, 3)).astype(np.float32) * (2 / channels / 9) ** 0.5
        stored.append(numpy_helper.from_array(weight.astype(np.float32), f"w{layer}"))
        nodes.append(helper.make_node("Conv", [at, f"w{layer}"], [f"c{layer}"], f"c{layer}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        at, channels = f"r{layer}", WIDTH
    nodes.append(helper.make_node("GlobalMaxPool", [at], ["y"]))
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])]
        for name, shape in (("x", (3, SIZE, SIZE)), ("y", (WIDTH, 1, 1)))
    ]
    graph = helper.make_graph(nodes, "wide", *ends, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    np.save(tmp_path / "x.npy", rng.standard_normal((SAMPLES, 3, SIZE, SIZE)).astype(np.float32))
    arguments = [str(tmp_path / "m.onnx"), str(MEMORY), str(tmp_path / "x.npy")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MEMORY

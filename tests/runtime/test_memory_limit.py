"""The expected memory, the limits of the process, and the refusal of a model that does not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.runtime import memory_limit
from onnxprune.runtime.memory_limit import CALIBRATED, PRUNED, READ, require, rooms

VERSIONS = {
    "2": ("0::/box/inner", "", ("memory.max", "memory.current", "inactive_file")),
    "1": (
        "3:cpu:/\n5:memory:/box/inner",
        "memory",
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ),
}


@pytest.fixture(params=VERSIONS)
def group(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a control group that holds this process: 1 GB, of which 600 MB are used, 100 MB for pages of files."""
    line, top, (limit, used, cache) = VERSIONS[request.param]
    (tmp_path / "membership").write_text(f"{line}\n")
    folder = tmp_path / top / "box"
    folder.mkdir(parents=True)
    (folder / limit).write_text("1000000000\n")
    (folder / used).write_text("600000000\n")
    (folder / "memory.stat").write_text(f"anon 500000000\n{cache} 100000000\n")
    monkeypatch.setattr(memory_limit, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(memory_limit, "CGROUPS", tmp_path)
    return folder


def test_the_limit_of_an_outer_control_group_holds(group: Path) -> None:
    (found,) = (room for room in rooms() if "control group" in room.source)
    assert found.bytes == 500e6
    assert str(group) in found.source
    require(200e6, READ, "m.onnx")
    with pytest.raises(ModelError) as caught:
        require(400e6, PRUNED, "m.onnx")
    assert caught.value.where == "m.onnx"
    assert "1.3 GB are needed" in caught.value.why
    assert "0.5 GB are left" in caught.value.why


def test_an_unlimited_control_group_bounds_nothing(group: Path) -> None:
    for file in (*group.glob("*max"), *group.glob("*limit*")):
        file.write_text("max\n")
    assert not [room for room in rooms() if "control group" in room.source]


def test_the_memory_for_data_counts() -> None:
    require(1e6, CALIBRATED, "m.onnx", 1e6)
    with pytest.raises(ModelError, match="does not fit") as caught:
        require(1e6, CALIBRATED, "m.onnx", 1e15)
    assert "--memory" in caught.value.hint


def test_a_model_that_does_not_fit_is_refused_before_the_work(tmp_path: Path) -> None:
    """Its data are never read: they are a file of 40 GB without content."""
    rows, columns = 100, 10**8
    weight = helper.make_tensor("w", TensorProto.FLOAT, [0], np.empty(0, np.float32))
    weight.dims[:] = rows, columns
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="m.data")
    with (tmp_path / "m.data").open("wb") as file:
        file.truncate(4 * rows * columns)
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])]
        for name, size in (("x", rows), ("y", columns))
    )
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", inputs, outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9)); "
        "import sys; from onnxprune.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", limited, "prune", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx")]
    options = ["--repair", "none", "--reduce", "flops=50%"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "the model does not fit into the memory of this process" in done.stderr
    assert "ulimit -v" in done.stderr
    assert "40 GB of weights" in done.stderr
    assert not (tmp_path / "o.onnx").exists()

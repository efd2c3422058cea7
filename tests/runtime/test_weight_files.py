"""Large weights in files that are mapped into memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune import leftovers
from onnxprune.graph.initializers import placeholder
from onnxprune.runtime import weight_files
from onnxprune.runtime.session import UNOPTIMIZED, open_session, run_batch
from onnxprune.runtime.weight_files import LARGE, in_file, map_array, place_of

WEIGHT = np.random.default_rng(0).standard_normal((600, 512)).astype(np.float32)


def test_a_large_weight_lies_in_a_file_as_long_as_it_lives() -> None:
    array = in_file(WEIGHT, LARGE)
    path, offset = place_of(array) or ("", -1)
    assert np.array_equal(array, WEIGHT)
    assert offset == 0
    assert np.array_equal(np.fromfile(path, np.float32), WEIGHT.ravel())
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0
    weight_files.release(LARGE)
    assert np.array_equal(array, WEIGHT)
    del array
    assert not os.path.exists(path)


def test_a_small_weight_and_one_of_a_small_model_stay_in_memory() -> None:
    assert in_file(WEIGHT, LARGE - 1) is WEIGHT
    assert in_file(WEIGHT[:1], LARGE).base is WEIGHT


def test_a_full_disk_leaves_a_weight_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_files, "map_array", full)
    before = set(weight_files._folder().iterdir())
    assert in_file(WEIGHT, LARGE) is WEIGHT
    assert set(weight_files._folder().iterdir()) == before


def test_the_place_of_an_array_is_that_of_its_values(tmp_path: Path) -> None:
    """Any offset holds; a part of an array, an array in memory, and one whose file has changed have no place."""
    path = tmp_path / "weights"
    path.write_bytes(b"12345678" * 1000 + WEIGHT.tobytes())
    array = map_array(path, WEIGHT.dtype, WEIGHT.shape, 8000)
    assert np.array_equal(array, WEIGHT)
    assert place_of(array) == (str(path), 8000)
    assert place_of(array.T) is None
    assert place_of(array[1:]) is None
    assert place_of(WEIGHT) is None
    path.rename(tmp_path / "old")
    path.write_bytes(bytes(8000 + WEIGHT.nbytes))
    assert place_of(array) is None
    assert np.array_equal(array, WEIGHT)


@pytest.mark.parametrize("in_files", [2, 1, 0])
def test_a_session_takes_weights_from_memory_and_from_files(in_files: int, tmp_path: Path) -> None:
    values = {"a": WEIGHT, "b": np.ascontiguousarray(WEIGHT.T)}
    nodes = [helper.make_node("MatMul", ["x", "a"], ["y"]), helper.make_node("MatMul", ["y", "b"], ["z"])]
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 600])] for name in ("x", "z"))
    stored = [placeholder(name, TensorProto.FLOAT, array.shape) for name, array in values.items()]
    proto = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, stored), ir_version=9)
    unchanged = onnx.ModelProto()
    unchanged.CopyFrom(proto)
    for number, name in enumerate([*values][:in_files]):
        path = tmp_path / str(number)
        values[name].tofile(path)
        values[name] = map_array(path, np.dtype(np.float32), values[name].shape)
    x = np.ones((3, 600), np.float32)
    (found,) = run_batch(open_session(proto, UNOPTIMIZED, weights=values), {"x": x})
    assert np.allclose(found, x @ WEIGHT @ WEIGHT.T, atol=1e-2)
    assert proto == unchanged


def test_the_folder_is_one_that_a_later_run_deletes_where_this_one_is_killed() -> None:
    """It is made anew where it is gone, as in a worker whose run is over."""
    folder = weight_files._folder()
    assert leftovers.OWN.fullmatch(folder.name)
    leftovers.sweep(folder.parent)  # it is locked
    assert folder.is_dir()
    folder.rmdir()
    again = weight_files._folder()
    assert again != folder
    assert again.is_dir()

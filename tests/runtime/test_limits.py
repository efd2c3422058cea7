"""A run of a graph that repeats nodes is ended; other graphs are not watched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import OptionError, RunLimitError
from onnxprune.runtime import limits, session
from onnxprune.runtime.session import open_session, run_batch

FEEDS = {"x": np.zeros((1, 3), np.float32)}


def looped(rounds: int) -> onnx.ModelProto:
    """Return a model that adds one to its input, again and again."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Add", ["old", "one"], ["new"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("old", TensorProto.FLOAT, None)],
        [value("goes", TensorProto.BOOL, []), value("new", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(1), "one")],
    )
    ends = [value(name, TensorProto.FLOAT, [1, 3]) for name in ("x", "y")]
    constants = [numpy_helper.from_array(np.array(rounds), "n"), numpy_helper.from_array(np.array(True), "yes")]
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "yes", "x"], ["y"], body=body)], "g", ends[:1], ends[1:], constants
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_loop_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.VARIABLE, "0.2")
    with pytest.raises(RunLimitError, match="was ended") as caught:
        run_batch(open_session(looped(10**9), where="loop.onnx"), FEEDS)
    assert caught.value.where == "loop.onnx"
    assert "did not end within 0.2 s" in caught.value.why


def test_a_loop_that_takes_all_memory_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LEAST_FREE", 1.1)
    with pytest.raises(RunLimitError, match="was ended") as caught:
        run_batch(open_session(looped(10**9)), FEEDS)
    assert "of memory were left" in caught.value.why


def test_a_loop_that_ends_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.VARIABLE, "0")
    np.testing.assert_array_equal(run_batch(open_session(looped(5)), FEEDS)[0], np.full((1, 3), 5))


def test_other_graphs_are_not_watched(
    tiny: onnx.ModelProto, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(session, "watched")
    assert len(run_batch(open_session(tiny), {"x": images})) == 1


def test_a_file_is_searched_as_its_bytes_are(tmp_path: Path, tiny: onnx.ModelProto) -> None:
    for proto, repeats in ((looped(1), True), (tiny, False)):
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        assert limits.may_repeat(str(tmp_path / "m.onnx")) is repeats
        assert limits.may_repeat(proto.SerializeToString()) is repeats


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_a_limit_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.VARIABLE, text)
    with pytest.raises(OptionError, match="no time limit"):
        limits.seconds()


def test_commands_take_the_limit(tmp_path: Path, refused, run) -> None:
    path = tmp_path / "loop.onnx"
    path.write_bytes(looped(10**9).SerializeToString())
    refused("inspect", path, "--timeout", "0.2", says=("loop.onnx", "within 0.2 s", "--timeout 0"))
    assert limits.seconds() == limits.SECONDS

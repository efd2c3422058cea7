"""Sizes of dynamic axes: names that inputs share, states of recurrent networks, and what is said when nothing runs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import load, signature_of
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ShapeError
from onnxprune.graph.trace import trace as trace_model

Dims = list[int | str | None]


def recurrent(x: Dims, state: Dims, length: int | None = None) -> onnx.ModelProto:
    """Return a Conv before an LSTM: "x" (n, t), "state" (1, n, 5). With a `length`, t has to be that."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(8, 1, 3)).astype(np.float32), "k": rng.normal(size=(1, 20, 8)).astype(np.float32),
        "r": rng.normal(size=(1, 20, 5)).astype(np.float32), "one": np.array([1]), "fixed": np.array([-1, length or 0]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Reshape", ["x", "fixed"], ["x1"], allowzero=0),
        helper.make_node("Unsqueeze", ["x1", "one"], ["x2"]),
        helper.make_node("Conv", ["x2", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Transpose", ["b"], ["t"], perm=[2, 0, 1]),
        helper.make_node("LSTM", ["t", "k", "r", "", "", "state", "state"], ["y"], hidden_size=5),
        helper.make_node("Shape", ["y"], ["size"]),
        helper.make_node("Reshape", ["y", "size"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, x),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, state),
        ],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [None] * 4)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_name_of_the_batch_is_the_batch_on_other_axes() -> None:
    for order in (1, -1):
        proto = recurrent(["n", "t"], [1, "n", 5])
        inputs = list(proto.graph.input)[::order]
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
        assert signature_of(proto).input_shapes(3) == {"x": (3, 224), "state": (1, 3, 5)}


@pytest.mark.parametrize("names", [(None, None, None), ("n", "t", "m"), ("n", "t", "n")])
def test_a_state_gets_the_batch_of_the_first_input(names: tuple[str | None, ...]) -> None:
    model = load(recurrent([names[0], names[1]], [1, names[2], 5]))
    trace = trace_model(model)
    assert trace.input_shapes["state"][1] == trace.input_shapes["x"][0]
    assert (~trace.pinned).sum() == 8


def test_a_model_that_runs_on_no_shape_says_what_was_tried() -> None:
    with pytest.raises(ShapeError, match="no input shape that was tried runs") as caught:
        load(recurrent(["n", "t"], [1, "m", 5], length=99991))
    for text in ("x [1, 224], state [1, 256, 5]", "more", "The first failed on", "--shape", "--data"):
        assert text in str(caught.value)


def test_odd_attributes_are_read_as_onnxruntime_reads_them() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node(
            "ReduceMean", ["a"], ["r"], "mean", axes=[2, 3], keepdims=2**32
        ),  # 1 keeps them, anything else does not
        helper.make_node("Gemm", ["r", "g"], ["y"], "gemm", transB=2**31),  # 0 leaves it, anything else transposes
    ]
    weights = {"w": (8, 3, 1, 1), "g": (4, 8)}
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(rng.standard_normal(size).astype(np.float32), name) for name, size in weights.items()],
    )
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    trace = trace_model(model)
    assert trace.pinned.all()
    assert any("rank of its output" in pin.reason for pin in trace.pins)

"""Initializers of any form are read, and weights of bodies are stored once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph import io

RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((8, 8, 3, 3)).astype(np.float32)


def sparse(values: np.ndarray, name: str, *, by_axis: bool) -> onnx.SparseTensorProto:
    kept = np.argwhere(values) if by_axis else np.flatnonzero(values)
    return helper.make_sparse_tensor(
        numpy_helper.from_array(values[values != 0], name),
        numpy_helper.from_array(kept.astype(np.int64), f"{name}_i"),
        list(values.shape),
    )


def model(nodes: list[onnx.NodeProto], *initializers: onnx.TensorProto) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8, 6, 6]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def answers(proto: onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((2, 8, 6, 6)).astype(np.float32)
    return ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]


@pytest.mark.parametrize("by_axis", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_sparse_initializers_and_constants_become_dense(tmp_path: Path, by_axis: bool, dtype: type) -> None:
    thin = np.where(np.abs(KERNEL) > 1, KERNEL, 0).astype(dtype)
    nodes = [
        helper.make_node("Cast", ["w"], ["wf"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "wf"], ["c"], pads=[1] * 4),
        helper.make_node("Constant", [], ["v"], sparse_value=sparse(thin[0], "v", by_axis=by_axis)),
        helper.make_node("Cast", ["v"], ["vf"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["vf"], ["s"], keepdims=0),
        helper.make_node("Mul", ["c", "s"], ["y"]),
    ]
    dense = model(nodes, numpy_helper.from_array(thin, "w"))
    dense.graph.node[2].CopyFrom(helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(thin[0])))
    proto = model(nodes)
    proto.graph.sparse_initializer.append(sparse(thin, "w", by_axis=by_axis))
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = io.load(tmp_path / "m.onnx")
    assert loaded.notes == ("2 sparse tensors stored as dense ones",)
    np.testing.assert_allclose(answers(loaded.to_proto()), answers(dense), rtol=1e-5, atol=1e-5)
    (stored,) = (t for t in loaded.to_proto().graph.initializer if list(t.dims) == [8, 8, 3, 3])
    assert np.array_equal(numpy_helper.to_array(stored), thin)


def branch(name: str, kernel: np.ndarray, *, constant: bool) -> onnx.GraphProto:
    """Return a body with a kernel of its own, and the name of the kernel is that of the other branch."""
    node = helper.make_node("Conv", ["x", "w"], [f"{name}_y"], pads=[1] * 4)
    output = [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)]
    tensor = numpy_helper.from_array(kernel, "w")
    if constant:
        return helper.make_graph([helper.make_node("Constant", [], ["w"], value=tensor), node], name, [], output)
    return helper.make_graph([node], name, [], output, [tensor])


@pytest.mark.parametrize("constant", [True, False])
def test_weights_of_bodies_are_counted_and_stored_once(tmp_path: Path, constant: bool) -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node(
            "If",
            ["c"],
            ["i"],
            then_branch=branch("t", KERNEL, constant=constant),
            else_branch=branch("e", -2 * KERNEL, constant=constant),
        ),
        helper.make_node("Relu", ["i"], ["y"]),
    ]
    proto = model(nodes, numpy_helper.from_array(np.zeros((), np.float32), "zero"))
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = io.load(tmp_path / "m.onnx")
    assert loaded.params == 2 * KERNEL.size + 1
    np.testing.assert_allclose(answers(loaded.to_proto()), answers(proto), rtol=1e-5, atol=1e-5)
    copied = loaded.copy()
    assert io.save(copied, tmp_path / "same.onnx") < (tmp_path / "m.onnx").stat().st_size + KERNEL.nbytes // 4
    assert io.load(tmp_path / "same.onnx").params == loaded.params


def test_weights_that_nothing_reads_are_named(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        m (float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y) { y = Conv (x, w) }"""
    proto = onnx.parser.parse_model(text)
    values = {"w": KERNEL[:, :3], "dead": KERNEL}
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = io.load(tmp_path / "m.onnx")
    assert loaded.notes == (f"weights that nothing reads are left out: 1 with {KERNEL.size} parameters",)
    assert [tensor.name for tensor in loaded.to_proto().graph.initializer] == ["w"]
    del proto.graph.initializer[1]
    onnx.save(proto, tmp_path / "m.onnx")
    assert not io.load(tmp_path / "m.onnx").notes

"""Quantized weights: counted in the file, once, and stored as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune

RNG = np.random.default_rng(0)
SHARED = RNG.integers(-127, 127, (24, 24, 3, 3)).astype(np.int8)


def stored(name: str, value: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(value, name)


def normal(*shape: int) -> np.ndarray:
    return (RNG.normal(size=shape) * np.prod(shape[1:] or (1,)) ** -0.5).astype(np.float32)


def save(path: Path, text: str, weights: list[TensorProto], opset: int = 21) -> Path:
    text = f'<ir_version: 10, opset_import: ["" : {opset}]>\nm (float[N, 3, 8, 8] x) => (float[N, 5] y) {{ {text} }}'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(weights)
    model = onnx.shape_inference.infer_shapes(model)
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def convolutions(path: Path) -> Path:
    """Two QLinearConv that share a weight of integers, between two float layers."""
    text = """
        a = Conv (x, k)
        b = Relu (a)
        q = QuantizeLinear (b, s, z)
        r = QLinearConv <pads = [1, 1, 1, 1]> (q, s, z, w, s, z, s, z)
        t = QLinearConv <pads = [1, 1, 1, 1]> (r, s, z, w, s, z, s, z)
        d = DequantizeLinear (t, s, z)
        e = Conv (d, m)
        f = Relu (e)
        g = GlobalAveragePool (f)
        h = Flatten (g)
        y = Gemm <transB = 1> (h, v)
    """
    scale, zero = stored("s", np.float32(0.02)), stored("z", np.int8(0))
    floats = [stored("k", normal(24, 3, 3, 3)), stored("m", normal(40, 24, 1, 1)), stored("v", normal(5, 40))]
    return save(path, text, [*floats, scale, zero, stored("w", SHARED)])


def blocked(path: Path) -> Path:
    """A MatMul by integers of four bits, with a scale for each block of rows."""
    text = """
        a = Conv (x, k)
        b = Relu (a)
        g = GlobalAveragePool (b)
        h = Flatten (g)
        w = DequantizeLinear <axis = 0, block_size = 8> (packed, s)
        c = MatMul (h, w)
        d = Relu (c)
        e = Gemm <transB = 1> (d, m)
        f = Relu (e)
        y = Gemm <transB = 1> (f, v)
    """
    values = RNG.integers(-8, 8, (32, 24)).astype(np.int8)
    packed = helper.make_tensor("packed", TensorProto.INT4, values.shape, values.ravel().tolist())
    floats = {"k": normal(32, 3, 3, 3), "s": np.abs(normal(4, 24)) + 0.02, "m": normal(16, 24), "v": normal(5, 16)}
    return save(path, text, [packed, *(stored(name, value) for name, value in floats.items())])


@pytest.mark.parametrize("build", [convolutions, blocked])
@pytest.mark.parametrize("data", [None, "generated"])
def test_quantized_weights_keep_their_type_and_values_and_count_once(build, data, tmp_path):
    path = build(tmp_path / "m.onnx")
    before = onnx.load(path)
    integers = (TensorProto.INT8, TensorProto.INT4)
    result = onnxprune.prune(
        path, output=tmp_path / "o.onnx", data=data, reduce={"flops": 0.01}, latency=False, samples=16, round_to=1
    )
    assert result.report.verdict.integrity == "PASSED"
    after = onnx.load(tmp_path / "o.onnx")
    (kept,) = [t for t in after.graph.initializer if t.data_type in integers and t.dims]
    (old,) = [t for t in before.graph.initializer if t.data_type in integers and t.dims]
    values, before_values = (
        numpy_helper.to_array(t).reshape(len(t.dims) and t.dims[0], -1).astype(int) for t in (kept, old)
    )
    assert kept.data_type == old.data_type
    assert set(map(tuple, values.T)) <= set(map(tuple, before_values.T))
    assert build is blocked or values.shape == before_values.shape
    for proto, found in ((before, result.report.before), (after, result.report.after)):
        scalars = [t for t in proto.graph.initializer if not t.dims and t.data_type == TensorProto.INT8]
        counted = sum(int(np.prod(t.dims)) for t in proto.graph.initializer if t not in scalars and t.data_type != 7)
        assert found.params == counted


def test_a_shared_weight_of_integers_counts_once_in_the_notes(tmp_path):
    notes = onnxprune.inspect(convolutions(tmp_path / "m.onnx")).report.to_dict()["notes"]
    share = 2 * SHARED.size / (2 * SHARED.size + 24 * 27 + 40 * 24 + 40 * 5 / 36)
    assert notes == [f"no rule counts channels in 2 QLinearConv: {share:.1%} of the FLOPs, {SHARED.size:,} parameters"]

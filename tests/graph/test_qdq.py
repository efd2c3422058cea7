"""Statically quantized models (Q/DQ): channels and counts as in the float model, exact deletion, a proof despite rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import load, random_plan, signature_of
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import onnxprune
from onnxprune.errors import ProofError
from onnxprune.graph import qdq
from onnxprune.graph.cost import CostModel
from onnxprune.graph.trace import trace as trace_model
from onnxprune.importance import weights as importance
from onnxprune.runtime.session import UNOPTIMIZED, Feeds, open_session, random_feeds, run_batch
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.mask import mask
from onnxprune.surgery.proof import TOLERANCE, prove

Quantize = Callable[..., Path]


class Noise(CalibrationDataReader):
    """Provide a few batches of normal numbers."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        shapes = signature_of(proto).input_shapes(4)
        self.feeds = iter([random_feeds(proto, shapes, seed) for seed in range(3)])

    def get_next(self) -> Feeds | None:
        return next(self.feeds, None)


@pytest.fixture
def quantize(models: Path, tmp_path: Path) -> Quantize:
    def make(name: str, **options: object) -> Path:
        source, target = models / f"{name}.onnx", tmp_path / f"{name}.onnx"
        quantize_static(source, target, Noise(onnx.load(source)), quant_format=QuantFormat.QDQ, **options)
        return target

    return make


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", ["small", "resnet", "mobile"])
def test_channels_and_costs_are_those_of_the_float_model(
    name: str, per_channel: bool, quantize: Quantize, models: Path
) -> None:
    whole = onnxprune.graph.io.load(models / f"{name}.onnx")
    narrow = onnxprune.graph.io.load(quantize(name, per_channel=per_channel, weight_type=QuantType.QInt8))
    a, b = trace_model(whole), trace_model(narrow)
    # the quantizer writes parallel branches in another order, and a group is named for its first layer
    assert [({*g.layers}, g.width) for g in a.groups] == [({*g.layers}, g.width) for g in b.groups]
    assert np.array_equal(a.pinned, b.pinned)
    for seed in range(3):
        keep = random_plan(a, seed, 0.5)
        costs = [sorted((c.label, c.macs, c.channels) for c in CostModel(t).layers(keep)) for t in (a, b)]
        assert costs[0] == costs[1]
        pruned = rewrite.delete(narrow, b, keep)
        assert CostModel(b).totals(keep)[1] == onnxprune.graph.model.count_params(pruned.to_proto())
        assert prove(narrow, pruned, mask(narrow, b, keep), seed=seed).difference <= TOLERANCE


@pytest.mark.parametrize("method", ["l1", "l2", "fpgm"])
def test_importance_uses_dequantized_weights(method: str, quantize: Quantize, models: Path) -> None:
    narrow = quantize("mobile", per_channel=True, weight_type=QuantType.QInt8)
    loaded = [onnxprune.graph.io.load(path) for path in (models / "mobile.onnx", narrow)]
    scores = [importance.score(model, trace_model(model), method) for model in loaded]
    assert np.corrcoef(*scores)[0, 1] > 0.98


@pytest.mark.parametrize(
    "options",
    [
        {"weight_type": QuantType.QInt8, "per_channel": True},
        {"weight_type": QuantType.QUInt8, "activation_type": QuantType.QUInt8},
        {"weight_type": QuantType.QInt8, "extra_options": {"AddQDQPairToWeight": True}},
        {"weight_type": QuantType.QInt8, "extra_options": {"UseQDQContribOps": True}},
        {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt16},
    ],
    ids=["int8 per channel", "uint8", "weights rounded at run time", "contributed operators", "16-bit activations"],
)
def test_a_quantized_resnet_is_pruned(options: dict[str, object], quantize: Quantize, out: Path) -> None:
    source = quantize("resnet", **options)
    result = onnxprune.prune(source, output=out / "pruned.onnx", reduce={"flops": 0.5}, repair="none")
    checks = {check.name: check for check in result.report.verdict.checks}
    assert checks["pruned equals masked"]
    before, after = (onnxprune.graph.io.load(path) for path in (source, out / "pruned.onnx"))
    totals = [CostModel(t).totals(np.ones(t.n_channels, bool)) for t in map(trace_model, (before, after))]
    assert 0.4 < totals[1][0] / totals[0][0] <= 0.5
    stored = [t for node in after.graph.nodes if qdq.is_dequantized(node) for t in node.inputs[:1]]
    assert sum(int(np.prod(t.shape)) for t in stored) > 0.8 * totals[1][1]


def rounding_net() -> onnx.ModelProto:
    """Return a model of two Convs with unsigned weights, between coarse quantizers; output "y"."""
    rng = np.random.default_rng(5)
    arrays = {
        "s": np.float32(0.5), "z": np.uint8(128), "w": rng.integers(0, 255, (8, 3, 1, 1)).astype(np.uint8),
        "v": rng.integers(0, 255, (4, 8, 1, 1)).astype(np.uint8), "k": np.float32(0.01), "p": np.uint8(120),
    }  # fmt: skip

    def both(x: str, y: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("QuantizeLinear", [x, "s", "z"], [f"{y}_q"]),
            helper.make_node("DequantizeLinear", [f"{y}_q", "s", "z"], [y]),
        ]

    nodes = [
        *both("x", "x1"),
        helper.make_node("DequantizeLinear", ["w", "k", "p"], ["w1"]),
        helper.make_node("Conv", ["x1", "w1"], ["c"], "first"),
        *both("c", "c1"),
        helper.make_node("DequantizeLinear", ["v", "k", "p"], ["v1"]),
        helper.make_node("Conv", ["c1", "v1"], ["d"], "last"),
        *both("d", "y"),
    ]
    graph = helper.make_graph(
        nodes,
        "rounding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 4, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_masked_integer_is_the_zero_point() -> None:
    model = load(rounding_net())
    trace = trace_model(model)
    keep = random_plan(trace, 0, 0.5)
    pruned, masked = rewrite.delete(model, trace, keep), mask(model, trace, keep)
    assert prove(model, pruned, masked).difference <= TOLERANCE
    naught = replace(trace, slices=tuple(replace(fact, zero=np.zeros((), np.uint8)) for fact in trace.slices))
    with pytest.raises(ProofError, match="not the masked model"):
        prove(model, pruned, mask(model, naught, keep))


def test_rounding_hides_nothing_from_the_proof() -> None:
    """Rounding behind a filter hides an integer of the filter that is off by one."""
    model = load(rounding_net())
    trace = trace_model(model)
    keep = random_plan(trace, 0, 0.5)
    pruned, masked = rewrite.delete(model, trace, keep), mask(model, trace, keep)
    node, i = next((n, i) for n, i, t in onnxprune.graph.model.tensors_of(pruned.graph) if t.name == "w")
    tensor = pruned.graph.nodes[node].inputs[i]
    wrong = tensor.values.copy()
    wrong[0, 0] += 1
    tensor.values = wrong
    feeds = [random_feeds(model.header, {"x": (1, 3, 4, 4)}, 1)]
    found = [run_batch(open_session(m.to_proto(), UNOPTIMIZED), feeds[0])[0] for m in (pruned, masked)]
    assert np.array_equal(*found)
    with pytest.raises(ProofError, match="not the masked model"):
        prove(model, pruned, masked)


def test_a_weight_that_is_computed_and_rounded_at_run_time_is_no_activation() -> None:
    source = rounding_net()
    stored = next(tensor for tensor in source.graph.initializer if tensor.name == "w")
    stored.CopyFrom(numpy_helper.from_array(np.random.default_rng(1).normal(size=(3, 8, 1, 1)).astype(np.float32), "w"))
    turned = helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0, 2, 3])
    source.graph.node.insert(0, turned)
    source.graph.node.insert(1, helper.make_node("QuantizeLinear", ["wt", "k", "p"], ["wq"]))
    next(node for node in source.graph.node if node.output[0] == "w1").input[0] = "wq"
    model = load(source)
    trace = trace_model(model)
    keep = random_plan(trace, 0, 0.5)
    proof = prove(model, rewrite.delete(model, trace, keep), mask(model, trace, keep))
    assert max(proof.difference, proof.normalized) <= TOLERANCE


def test_without_rounding_activations_are_clipped() -> None:
    smooth = qdq.unrounded(rounding_net())
    assert smooth is not None
    assert [node.op_type for node in smooth.graph.node].count("Max") == 3
    assert qdq.unrounded(smooth) is None  # weights are none of its business
    x = np.linspace(-100, 100, 48, dtype=np.float32).reshape(1, 3, 4, 4)
    smooth.graph.output[0].name = "x1"
    assert np.array_equal(run_batch(open_session(smooth), {"x": x})[0], np.clip(x, -64, 63.5))


@pytest.mark.parametrize(
    ("parameters", "attributes"),
    [((), {}), ((1,), {}), ((6,), {"axis": 0}), ((4,), {"axis": -1}), ((2, 4), {"axis": 0, "block_size": 3})],
)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, ml_dtypes.int4, ml_dtypes.uint4])
def test_integers_are_dequantized_as_onnxruntime_does(
    parameters: tuple[int, ...], attributes: dict[str, int], dtype: type
) -> None:
    rng = np.random.default_rng(0)
    limits = ml_dtypes.iinfo(dtype)
    arrays = {
        "w": rng.integers(limits.min, limits.max, (6, 4)).astype(dtype),
        "s": rng.uniform(0.1, 1, parameters).astype(np.float32),
        "z": np.asarray(rng.integers(limits.min, limits.max, parameters)).astype(dtype),
    }
    nodes = [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], **attributes)]
    nodes.append(helper.make_node("Add", ["x", "d"], ["y"]))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [6, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [6, 4])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (node,) = (node for node in load(proto).graph.nodes if qdq.is_dequantized(node))
    expected = run_batch(open_session(proto), {"x": np.zeros((6, 4), np.float32)})[0]
    assert np.array_equal(qdq.dequantized(node), expected)


def test_weights_of_half_a_byte_are_written_as_they_were_read() -> None:
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "k"], ["a"], "first"),
            helper.make_node("GlobalAveragePool", ["a"], ["p"]),
            helper.make_node("Flatten", ["p"], ["r"]),
            helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=1),
            helper.make_node("MatMul", ["r", "d"], ["y"], "last"),
        ],
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [
            helper.make_tensor("w", TensorProto.INT4, (8, 4), rng.integers(-8, 7, 32).tolist()),
            numpy_helper.from_array(np.full(4, 0.1, np.float32), "s"),
            numpy_helper.from_array(rng.normal(size=(8, 3, 1, 1)).astype(np.float32), "k"),
        ],
    )
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = load(source)
    trace = trace_model(model)
    assert trace.pinned.sum() == 4
    keep = random_plan(trace, 0, 0.5)
    pruned = rewrite.delete(model, trace, keep)
    assert prove(model, pruned, mask(model, trace, keep)).difference <= TOLERANCE
    (stored,) = [t for t in pruned.to_proto().graph.initializer if t.data_type == TensorProto.INT4]
    assert list(stored.dims) == [keep[~trace.pinned].sum(), 4]
    feeds = random_feeds(source, {"x": (2, 3, 4, 4)}, 0)
    before, after = (run_batch(open_session(proto), feeds)[0] for proto in (source, model.to_proto()))
    assert np.array_equal(before, after)

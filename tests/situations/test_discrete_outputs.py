"""Situations in which outputs jump, are flat, are random, or hold no numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import DataError, ModelError, ProofError
from onnxprune.metrics.outputs import output_divergence

Situation = Callable[[str], Path]


@pytest.mark.situation("dropout_train")
@pytest.mark.parametrize(("name", "node"), [("dropout_train", "Dropout"), ("mcdropout", "RandomUniformLike")])
@pytest.mark.parametrize("command", ["prune", "plan", "sensitivity"])
def test_a_random_model_is_named_as_such(
    situation: Situation, name: str, node: str, command: str, tmp_path: Path
) -> None:
    path = situation("dropout_train").with_name(f"{name}.onnx")
    more = {} if command == "sensitivity" else {"reduce": {"flops": 0.3}}
    data = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    with pytest.raises(ModelError, match=f"the model is random: node {node}") as error:
        getattr(onnxprune, command)(path, data=data, **more)
    assert "eval mode" in error.value.hint


@pytest.mark.parametrize(("ratio", "training"), [(0.0, True), (0.5, False)])
def test_a_dropout_that_drops_nothing_is_no_random_model(
    situation: Situation, ratio: float, training: bool, tmp_path: Path
) -> None:
    proto = onnx.load(situation("dropout_train"))
    node = next(node for node in proto.graph.node if node.op_type == "Dropout")
    for tensor in proto.graph.initializer:
        if tensor.name in node.input[1:]:
            value = np.float32(ratio) if tensor.name == node.input[1] else np.bool_(training)
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), tensor.name))
    onnx.save(proto, tmp_path / "m.onnx")
    result = onnxprune.prune(tmp_path / "m.onnx", reduce={"flops": 0.3}, repair="none", latency=False)
    assert result.report.verdict.integrity == "PASSED"


@pytest.mark.situation("nms")
def test_the_loss_of_boxes_after_suppression_is_measured(situation: Situation) -> None:
    path = situation("nms")
    data = path.with_suffix(".npz")
    curves = onnxprune.sensitivity(path, data=data).curves
    assert curves
    assert all(curve.losses[-1] > 1e-6 for curve in curves)
    result = onnxprune.prune(path, data=data, reduce={"flops": 0.3}, latency=False)
    assert result.report.verdict.integrity == "PASSED"


def test_what_cannot_be_compared_is_not_equal() -> None:
    assert output_divergence([np.zeros((3, 4))], [np.zeros((2, 4))]) == np.inf
    assert output_divergence([np.zeros(3, np.int64)], [np.zeros(3, np.int64)]) == np.inf


def numeric(path: Path, op: str, *more: float) -> Path:
    """Write two convolutions and an operator on the result."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((8, 3, 3, 3), (4, 8, 1, 1))]
    constants = [np.float32(value) for value in more]
    names = [f"w{i}" for i in range(2)] + [f"c{i}" for i in range(len(more))]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w1"], ["b"]),
        helper.make_node(op, ["b", *names[2:]], ["y"]),
    ]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", c, 8, 8]) for n, c in (("x", 3), ("y", 4))]
    initializers = [
        numpy_helper.from_array(np.asarray(v), n) for v, n in zip([*weights, *constants], names, strict=True)
    ]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("data", [None, np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)])
def test_outputs_that_are_not_finite_fail(tmp_path: Path, data: np.ndarray | None) -> None:  # type: ignore[type-arg]
    path = numeric(tmp_path / "m.onnx", "Log")
    result = onnxprune.prune(path, reduce={"flops": 0.3}, data=data, repair="none", latency=False)
    failed = [check for check in result.report.verdict.checks if not check]
    assert [check.name for check in failed] == ["finite outputs"]
    assert "the original" in failed[0].detail
    verdict = onnxprune.check(path, path, data=data, latency=False)
    assert [check.name for check in verdict.verdict.checks if not check] == ["finite outputs"]


def test_samples_that_preprocessing_makes_infinite_are_refused(tmp_path: Path) -> None:
    path = numeric(tmp_path / "m.onnx", "Relu")
    how = replace(onnxprune.Preprocess(), scale=1e308)
    data = np.random.default_rng(0).uniform(10, 200, (8, 3, 8, 8)).astype(np.float32)
    calls = [
        lambda: onnxprune.prune(path, reduce={"flops": 0.3}, data=data, preprocess=how, latency=False),
        lambda: onnxprune.check(path, path, data=data, preprocess=how, latency=False),
        lambda: onnxprune.sensitivity(path, data=data, preprocess=how),
    ]
    for call in calls:
        with pytest.raises(DataError, match="NaN or infinity after preprocessing") as error:
            call()
        assert "sample 0" in error.value.why
        assert "1e+308" in error.value.why


@pytest.mark.parametrize(("op", "more"), [("Sigmoid", ()), ("Clip", (0.0, 1.0)), ("Tanh", ())])
def test_an_output_that_is_flat_on_noise_is_proven(tmp_path: Path, op: str, more: tuple[float, ...]) -> None:
    """The offset pushes every element far into the flat part."""
    proto = onnx.load(numeric(tmp_path / "m.onnx", op, *more))
    proto.graph.node.insert(3, helper.make_node("Sub", ["b", "offset"], ["moved"]))
    proto.graph.node[4].input[0] = "moved"
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(np.float32(30)), "offset"))
    onnx.save(proto, tmp_path / "m.onnx")
    result = onnxprune.prune(tmp_path / "m.onnx", reduce={"flops": 0.3}, repair="none", latency=False)
    assert result.report.verdict.integrity == "PASSED"


def test_a_limit_that_is_drawn_at_random_is_named(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        m (float[1, 3, 16, 16] x, float low) => (float[1, 4, 16, 16] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w)
            r = Relu (a)
            b = Conv (r, v)
            many = Constant <value_float = 1000.0> ()
            above = Sub (low, many)
            root = Sqrt (above)
            y = Add (b, root)
        }""")
    weights = {"w": (8, 3, 3, 3), "v": (4, 8, 1, 1)}
    rng = np.random.default_rng(0)
    proto.graph.initializer.extend(
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in weights.items()
    )
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ProofError, match="hold no number") as error:
        onnxprune.prune(tmp_path / "m.onnx", reduce={"flops": 0.3}, latency=False)
    assert "low are single numbers" in error.value.why

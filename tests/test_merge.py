"""Repair without data: channels merged into those most like them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune import analysis as analysing
from onnxprune.graph import io
from onnxprune.graph.model import Model
from onnxprune.pruning.merge import merge
from onnxprune.runtime.session import open_session, run_batch
from onnxprune.surgery import channels as rewrite

RNG = np.random.default_rng(0)
CHANNELS = 8


def written(tmp_path, nodes, weights, shape=(3, 9, 9)) -> Model:
    """Return a loaded model of these nodes, from x to y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    del graph.output[0].type.tensor_type.shape.dim[:]
    graph.output[0].type.tensor_type.ClearField("shape")
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return io.load(path)


def twins() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return filters and biases of which each second one is a multiple of the one before, and the multiples."""
    weight, bias = RNG.standard_normal((CHANNELS, 3, 3, 3)), RNG.standard_normal(CHANNELS)
    times = RNG.uniform(0.5, 2, CHANNELS // 2)
    weight[1::2] = weight[::2] * times[:, None, None, None]
    bias[1::2] = bias[::2] * times
    return weight, bias, times


def gap(model: Model, found: Model) -> float:
    """Return the largest difference of their outputs, as a share of the range of the first one's."""
    x = np.random.default_rng(1).standard_normal((4, 3, 9, 9)).astype(np.float32)
    a, b = (run_batch(open_session(m.to_proto(), optimise=False), {"x": x})[0] for m in (model, found))
    return float(np.abs(a - b).max() / np.ptp(a))


def both(model: Model) -> tuple[float, float]:
    """Return how far the output moves when every second channel goes, without and with merging."""
    trace = analysing.analyse(model).trace
    group = next(g for g in trace.groups if g.channels.size == CHANNELS and not trace.pinned[g.channels].any())
    keep = np.ones(trace.n_channels, dtype=bool)
    keep[group.channels[1::2]] = False
    plain = rewrite.delete(model, trace, keep)
    merged = rewrite.delete(merge(model, trace, keep), trace, keep)
    return gap(model, plain), gap(model, merged)


def test_a_multiple_of_a_survivor_costs_nothing(tmp_path):
    weight, bias, _ = twins()
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w2", "b2"], ["y"], pads=[1, 1, 1, 1]),
    ]
    weights = {"w1": weight, "b1": bias, "w2": RNG.standard_normal((5, CHANNELS, 3, 3)), "b2": RNG.standard_normal(5)}
    before, after = both(written(tmp_path, nodes, weights))
    assert before > 0.05
    assert after < 1e-5


def test_several_features_of_a_channel_go_to_those_in_the_same_place(tmp_path):
    weight, bias, _ = twins()
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "w2"], ["y"], transB=1),
    ]
    weights = {"w1": weight, "b1": bias, "w2": RNG.standard_normal((5, CHANNELS * 49))}
    before, after = both(written(tmp_path, nodes, weights))
    assert before > 0.05
    assert after < 1e-5


@pytest.mark.parametrize("rectified", [True, False])
def test_the_mean_of_what_goes_moves_into_the_bias(tmp_path, rectified):
    """Channels that hardly vary are nothing but a mean, which the statistics of their BatchNormalization tell."""
    beta = RNG.standard_normal(CHANNELS) + 1.5
    gamma = np.where(np.arange(CHANNELS) % 2, 1e-3, 1.0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "gamma", "beta", "mean", "var"], ["b"]),
        *([helper.make_node("Relu", ["b"], ["r"])] if rectified else []),
        helper.make_node("Conv", ["r" if rectified else "b", "w2", "b2"], ["y"]),
    ]
    weight = RNG.standard_normal((CHANNELS, 3, 3, 3))
    weights = {
        "w1": weight,
        "gamma": gamma,
        "beta": beta,
        "mean": np.zeros(CHANNELS),
        "var": (weight**2).sum(axis=(1, 2, 3)),  # of what standard normal inputs give
        "w2": RNG.standard_normal((5, CHANNELS, 1, 1)),
        "b2": np.zeros(5),
    }
    before, after = both(written(tmp_path, nodes, weights))
    assert before > 0.05
    assert after < 0.2 * before


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "behind a BatchNormalization"])
def test_a_layer_without_bias_gets_none_that_nobody_would_cut(tmp_path, norm):
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"]),
        *([helper.make_node("BatchNormalization", ["a", "b1", "b1", "b1", "var"], ["b"])] if norm else []),
        helper.make_node("Conv", ["b" if norm else "a", "w2"], ["c"]),
        helper.make_node("Conv", ["c", "w3"], ["y"]),
    ]
    weight, bias, _ = twins()
    second = RNG.standard_normal((CHANNELS, CHANNELS, 1, 1))
    weights = {"w1": weight, "w2": second, "w3": RNG.standard_normal((5, CHANNELS, 1, 1))}
    weights |= {"b1": bias, "var": np.ones(CHANNELS)} if norm else {}
    model = written(tmp_path, nodes, weights)
    trace = analysing.analyse(model).trace
    keep = np.arange(trace.n_channels) % 2 == 0
    keep |= trace.pinned
    assert (~keep).sum() == CHANNELS, "the reader loses filters, too"
    found = rewrite.delete(merge(model, trace, keep), trace, keep)
    assert np.isfinite(gap(model, found))


def test_what_is_like_no_survivor_leaves_the_weights(tmp_path):
    weight = np.zeros((CHANNELS, 3, 3, 3))
    weight.reshape(CHANNELS, -1)[np.arange(CHANNELS), np.arange(CHANNELS)] = 1  # at right angles
    nodes = [helper.make_node("Conv", ["x", "w1"], ["a"]), helper.make_node("Conv", ["a", "w2"], ["y"])]
    model = written(tmp_path, nodes, {"w1": weight, "w2": RNG.standard_normal((5, CHANNELS, 1, 1))})
    before, after = both(model)
    assert after == pytest.approx(before, rel=1e-5)

"""Scores of channels that recurrent layers alone read, and every importance on a network of recurrent layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import build
from graphs import load
from repaired import inputs, repaired

from onnxprune import Options, prune
from onnxprune.calibration.batches import Calibration
from onnxprune.calibration.capture import ActivationStore
from onnxprune.calibration.workspace import Workspace
from onnxprune.data.dataset import load_data
from onnxprune.errors import ModelError
from onnxprune.graph.model import Model, inputs_of
from onnxprune.graph.trace import trace
from onnxprune.importance import recurrent
from onnxprune.runtime.session import open_session, run_batch

SAMPLES, STEPS = 48, 7
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def network(op: str = "LSTM") -> onnx.ModelProto:
    """Return a Conv, a bidirectional layer, another layer and a Gemm; channel 2 of the Conv is dead."""
    rows = 6 * GATES[op]
    bias = np.array([0.3, 0, -99, 0.5, -0.2, 0.1, 0, 0.2], np.float32)
    text = f"""a = Conv (x, w, wb) r = Relu (a) t = Transpose <perm=[2,0,1]> (r)
        s = {op} <hidden_size=6, direction="bidirectional"> (t, w1, r1, b1) q = Transpose <perm=[0,2,1,3]> (s)
        p = Reshape (q, joined) u, h = {op} <hidden_size=6> (p, w2, r2) f = Squeeze (h, i0) y = Gemm (f, m, gb)"""
    return build(
        text,
        {
            "w": (8, 3, 1), "wb": bias, "w1": (2, rows, 8), "r1": (2, rows, 6), "b1": (2, 2 * rows), "w2": (1, rows, 12),
            "r2": (1, rows, 6), "joined": [0, 0, 12], "i0": [0], "m": (6, 4), "gb": (4,),
        },
        inputs=f"float[N,3,{STEPS}] x",
    )  # fmt: skip


def workspace(model: Model) -> Workspace:
    feeds = inputs(model, SAMPLES, 3)
    return Workspace(Calibration.of(load_data(feeds, inputs_of(model)), SAMPLES), ActivationStore(1e9), 1e9)


@pytest.mark.parametrize("op", GATES)
def test_a_score_is_the_mean_square_of_what_a_channel_adds_to_the_gates(op: str) -> None:
    model = load(network(op))
    found = trace(model)
    everything = np.ones(found.n_channels, dtype=bool)
    fallback = np.full(found.n_channels, 0.25)
    scores = recurrent.scores(model, found, workspace(model), everything, fallback)
    proto = model.to_proto()
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("t", "p"))
    _, t, p = run_batch(open_session(proto), inputs(model, SAMPLES, 3), names=["y", "t", "p"])
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    first, second, last, _ = (group.channels for group in found.groups)
    for channels, x, weight in ((first, t, weights["w1"]), (second, p, weights["w2"])):
        expected = (x.astype(np.float64) ** 2).mean(axis=(0, 1)) * (weight.astype(np.float64) ** 2).sum(axis=(0, 1))
        expected = expected.reshape(-1, channels.size).sum(axis=0)  # a unit in both directions is one channel
        assert scores[channels] == pytest.approx(expected / expected.mean(), rel=1e-4)
    assert scores[first][2] == 0  # the dead channel
    assert (scores[last] == 0.25).all()  # a linear layer reads the last layer


def test_the_reader_behind_a_recurrent_layer_is_repaired() -> None:
    model = load(network())
    found = trace(model)
    keep = np.ones(found.n_channels, dtype=bool)
    keep[found.groups[0].channels[:3]] = keep[found.groups[1].channels[:2]] = keep[found.groups[2].channels[:2]] = False
    case = repaired(model, found, keep, n=256)
    (layer,) = [layer for layer in case.layers if layer.label.startswith("Gemm")]
    assert layer.after < 0.7 * layer.before
    assert not [layer for layer in case.layers if layer.label.startswith("LSTM")]  # has no closed form


@pytest.mark.parametrize(
    ("method", "data"),
    [(name, True) for name in ("auto", "obs", "activation", "apoz", "l2")]
    + [(name, False) for name in ("auto", "l1", "l2", "fpgm", "random")],
)
def test_importances_prune_hidden_units(method: str, data: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(network(), path)
    options = Options(reduce={"flops": 0.4}, importance=method, repair="auto" if data else "none", round_to=1)
    result = prune(path, data=inputs(load(network()), SAMPLES, 3) if data else None, options=options)
    assert result.report.verdict.integrity == "PASSED"
    lost = [layer.channels_before - layer.channels_after for layer in result.report.layers if layer.op == "LSTM"]
    assert len(lost) == 2
    assert sum(lost) > 0


@pytest.mark.torch
def test_gradients_name_the_layer_that_torch_lacks(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(network(), path)
    data = inputs(load(network()), SAMPLES, 3)
    with pytest.raises(ModelError, match="LSTM has no function in torch"):
        prune(path, data=data, options=Options(reduce={"flops": 0.4}, importance="taylor"))

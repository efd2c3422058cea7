"""Layer chains: the linearization matches the network, and layers fitted together do better than each alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from graphs import Builder, load
from repaired import repaired, run

from onnxprune.calibration.capture import ActivationStore, LayerwiseRunner
from onnxprune.graph.model import Model
from onnxprune.graph.readers import linear_layers
from onnxprune.graph.saturation import UNBOUNDED
from onnxprune.graph.trace import trace as trace_model
from onnxprune.repair import block_reconstruction, layer_chain
from onnxprune.runtime.session import Feeds


def line(b: Builder) -> str:
    x = b.node("Tanh", [b.conv("x", 6, 3, stride=2)])
    return b.conv(b.node("HardSwish", [b.conv(x, 6, 3, group=2, pad=0)]), 4, 3)


def residual(b: Builder) -> str:
    x = b.node("Sigmoid", [b.conv("x", 6, 3)])
    y = b.conv(b.node("Tanh", [b.conv(x, 5, 3, dilation=2)]), 6, 3)
    return b.node("Add", [y, b.conv(x, 6)])


def gate(b: Builder) -> str:
    return b.conv(b.squeeze_excite(b.node("Tanh", [b.depthwise(b.conv("x", 6))]), 4), 5)


def head(b: Builder) -> str:
    x = b.flatten(b.global_pool(b.node("Tanh", [b.conv("x", 6, 3)])))
    return b.gemm(b.node("Tanh", [b.gemm(x, 7)]), 3)


def channels_last(b: Builder) -> str:
    x = b.reshape(b.node("Tanh", [b.conv("x", 6, 3)]), (0, 6, 64), (6, 64))
    return b.node("MatMul", [b.node("Tanh", [b.node("MatMul", [x, b.normal(64, 8)], (6, 8))]), b.normal(8, 4)], (6, 4))


def whole(model: Model, depth: int = 9) -> tuple[Any, layer_chain.LayerChain | None, Feeds]:
    """Return a model, run up to nothing, and the chain of its last layer."""
    feeds = model.signature.random_feeds(model.header, 3, 1)
    stream = LayerwiseRunner(model, [feeds], ActivationStore(1e9))
    layers = linear_layers(model.graph)
    shapes = trace_model(model).shapes
    target = model.graph.outputs[0].name
    return stream, layer_chain.chain_of(stream, max(layers), target, layers, set(layers), shapes, depth), feeds


@pytest.mark.parametrize("build", [line, residual, gate, head, channels_last])
def test_what_changes_move(build):
    """The derivative is that of the network, and its transpose is its transpose."""
    b = Builder((3, 8, 8))
    model = load(b.build(build(b)))
    stream, chain, feeds = whole(model)
    assert chain is not None
    assert len(chain.layers) == len(linear_layers(model.graph))
    (given,) = run(model, feeds)
    samples = block_reconstruction.Samples({name: feeds[name] for name in chain.taken}, given + 1)
    linearized = block_reconstruction.Linearized(chain, stream, UNBOUNDED, samples)
    linearized.observe()
    rng = np.random.default_rng(0)
    changes = {}
    for n, layer in chain.layers.items():
        matrix, bias = (rng.standard_normal(part.shape) for part in layer.effective())
        changes[n] = matrix, bias * layer.has_bias
    moved = linearized.forward(changes)

    back = rng.standard_normal(moved.shape).astype(np.float32)
    there = float((moved * back).sum())
    pairs = ((changes[n], pulled) for n, pulled in linearized.backward(back).items())
    assert sum(
        float((a * b).sum()) for change, pulled in pairs for a, b in zip(change, pulled, strict=True)
    ) == pytest.approx(there, rel=1e-3, abs=1e-2)

    start = {n: layer.effective() for n, layer in chain.layers.items()}
    size = 1e-3
    both = []
    for sign in (1, -1):
        for n, change in changes.items():
            matrix, bias = linearized.layers[n].unshifted(change)
            weights = start[n][0] + sign * size * matrix, start[n][1] + sign * size * bias
            chain.layers[n].write(weights[0], weights[1] if chain.layers[n].has_bias else None)
        both.append(run(model, feeds)[0])
    np.testing.assert_allclose((both[0] - both[1]) / (2 * size), moved, rtol=0.02, atol=0.02 * np.abs(moved).max())


def test_what_something_else_sees_is_left():
    """A layer whose output another branch takes, too, is not bent to the target of one."""
    b = Builder((3, 8, 8))
    stem = b.node("Relu", [b.conv("x", 6, 3)])
    beside = b.conv(stem, 4, name="beside")
    last = b.conv(b.node("Relu", [b.conv(stem, 6, 3)]), 4, 3)
    model = load(b.build(last, beside))
    _, chain, _ = whole(model)
    assert chain is not None
    assert sorted(chain.layers) == [n for n, node in enumerate(model.graph.nodes) if node.op == "Conv"][-2:]


def test_no_further_than_what_is_known():
    b = Builder((3, 8, 8))
    x = b.node("Softmax", [b.conv("x", 6, 3)], axis=1)
    model = load(b.build(b.conv(b.node("Relu", [b.conv(x, 6, 3)]), 4, 3)))
    _, chain, _ = whole(model)
    assert chain is not None
    assert len(chain.layers) == 2
    assert whole(model, depth=1)[1] is None


def test_layers_fitted_together_do_better():
    """Fitted together, layers keep more of the output: survivors between two layers need not keep their values."""
    b = Builder((3, 8, 8))
    x = b.node("Relu", [b.conv("x", 12, 3)])
    y = b.conv(b.node("Relu", [b.conv(x, 12, 3)]), 12, 3)
    model = load(b.build(b.conv(b.node("Relu", [b.node("Add", [y, x])]), 4)))
    trace = trace_model(model)
    keep = trace.pinned | (np.arange(trace.n_channels) % 3 > 0)
    feeds = model.signature.random_feeds(model.header, 32, 99)
    (wanted,) = run(model, feeds)
    errors = []
    for depth in (1, 2, 5):
        case = repaired(model, trace, keep, n=256, depth=depth)
        errors.append(float(((run(case.repaired, feeds)[0] - wanted) ** 2).mean()))
        assert all(layer.after <= layer.before for layer in case.layers)
    assert errors[1] < 0.9 * errors[0]
    assert errors[2] < 0.9 * errors[0]


def test_no_work_allowed(monkeypatch):
    """Without the work that chains take, each layer is fitted by itself."""
    b = Builder((3, 8, 8))
    model = load(b.build(b.conv(b.node("Relu", [b.conv("x", 8, 3)]), 4, 3)))
    trace = trace_model(model)
    keep = trace.pinned | (np.arange(trace.n_channels) % 3 > 0)
    alone = repaired(model, trace, keep, depth=1)
    monkeypatch.setattr("onnxprune.repair.least_squares.WORK", 0.0)
    assert repaired(model, trace, keep).layers == alone.layers


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("rows", [5, 40])
def test_the_preconditioner_inverts_covariance_and_sensitivity(rows: int, groups: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(groups, rows, 12)).astype(np.float32)
    signed = rng.normal(size=(groups, 6, 4))
    change = rng.normal(size=(groups, 4, 12)), rng.normal(size=(groups, 4))
    found = block_reconstruction._Preconditioner(cast(Any, SimpleNamespace(x=x)), signed, 0.1)
    covariance = np.swapaxes(x, 1, 2).astype(float) @ x / rows
    ridge = 0.1 * np.trace(covariance, axis1=1, axis2=2) / 12
    inverse = np.linalg.inv(covariance + ridge[:, None, None] * np.eye(12))
    weight = np.square(signed).sum(axis=1)
    np.testing.assert_allclose(found(change)[0], change[0] @ inverse / weight[:, :, None], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found(change)[1], change[1] / weight, rtol=1e-6)

"""The global threshold on gradients: what is gated, what must not be, and that deletion then is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Builder, load
from onnx import numpy_helper

from onnxprune.graph.analysis import analyse
from onnxprune.graph.model import Model
from onnxprune.metrics.outputs import relative_difference
from onnxprune.runtime.session import UNOPTIMIZED, run_batch
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.mask import mask
from onnxprune.types import Trace

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

Array = np.ndarray[Any, Any]
T = 1e-9
"""Below every gradient of the networks here but those that are 0."""


def network(silent: tuple[int, ...] = (1, 4)) -> onnx.ModelProto:
    """Return a network with a residual of 6 channels, some of whose ReLUs never fire, and a group of 5 beside it."""
    b = Builder((2, 5, 5))
    x = b.conv("x", 6, 3, name="first")
    inner = b.node("Relu", [b.conv(b.node("Relu", [x]), 5, 3, name="inner")])
    y = b.node("Relu", [b.node("Add", [x, b.conv(inner, 6, 3, name="outer")])])
    proto = b.build(b.gemm(b.flatten(b.node("Relu", [b.conv(y, 4, 3, name="last")])), 3))
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.name in ("first", "outer"):
            for i, low in ((1, 0.0), (2, -3.0)):
                value = numpy_helper.to_array(tensors[node.input[i]]).copy()
                value[list(silent)] = low
                tensors[node.input[i]].CopyFrom(numpy_helper.from_array(value, node.input[i]))
    return proto


class Training:
    """A few steps of gradient descent, with gates."""

    def __init__(self, proto: onnx.ModelProto, threshold: float, ignore: tuple[str, ...] = (), **how: Any):
        from onnxprune.torch_backend.executor import Executor
        from onnxprune.training.gradient_gates import Gates

        self.model: Model = load(proto)
        self.trace: Trace = analyse(self.model, ignore).trace
        self.executor = Executor(self.model)
        self.gates = Gates(self.executor, self.trace, threshold, **how)
        self.rng = np.random.default_rng(0)
        self.shape = self.trace.input_shapes["x"][1:]

    def gradients(self) -> None:
        weights = self.executor.weights.values()
        for weight in weights:
            weight.grad = None
        x = torch.from_numpy(self.rng.standard_normal((8, *self.shape)).astype(np.float32))
        (z,) = self.executor({"x": x}).values()
        (z - torch.from_numpy(self.rng.standard_normal((8, 3)).astype(np.float32))).square().mean().backward()

    def step(self, rate: float = 0.01) -> Array:
        self.gradients()
        new = self.gates.observe()
        with torch.no_grad():
            for weight in self.executor.weights.values():
                if weight.grad is not None:
                    weight -= rate * weight.grad
        self.gates.apply()
        return new

    def group(self, name: str) -> Array:
        return next(group.channels for group in self.trace.groups if group.name == name)


def outputs(model: Model) -> list[Array]:
    feeds = model.signature.random_feeds(model.header, 4, 5)
    return run_batch(model.session(UNOPTIMIZED), feeds)


def weights(model: Model) -> list[Array]:
    return [numpy_helper.to_array(tensor) for tensor in model.to_proto().graph.initializer]


def test_silent_channels_are_gated_and_only_those():
    run = Training(network(), T, patience=3)
    silent = run.group("first")[[1, 4]]
    for step in range(1, 7):
        new = run.step()
        assert new.any() == (step == 3)  # at the end of the first window
        assert run.gates.gated.any() == (step >= 3)
    np.testing.assert_array_equal(np.flatnonzero(run.gates.gated), silent)


def test_deleting_what_is_gated_changes_nothing():
    run = Training(network(), T, patience=2)
    for _ in range(6):
        run.step()
    trained = run.executor.written()
    pruned = rewrite.delete(trained, run.trace, run.gates.keep)
    masked = mask(trained, run.trace, run.gates.keep)
    assert sum(w.size for w in weights(pruned)) < sum(w.size for w in weights(trained))
    for dense, zeroed, small in zip(outputs(trained), outputs(masked), outputs(pruned), strict=True):
        np.testing.assert_array_equal(dense, zeroed)  # the mask is in the weights
        assert relative_difference(dense, small) <= 1e-4


def test_deletion_is_exact_for_useful_channels_that_a_large_threshold_gates():
    run = Training(network(), 1e6, patience=2, max_ratio=0.5)
    for _ in range(5):
        run.step(0.05)
    assert run.gates.gated.sum() >= 5
    trained = run.executor.written()
    for dense, small in zip(outputs(trained), outputs(rewrite.delete(trained, run.trace, run.gates.keep)), strict=True):
        assert relative_difference(dense, small) <= 1e-4


def test_gates_hold_while_the_optimiser_goes_on():
    run = Training(network(), 1e6, patience=1)
    run.step()
    for _ in range(3):
        run.step(0.1)
        flags = np.append(run.gates.gated, False)
        for fact in run.trace.slices:
            if fact.role == "reads" and flags[fact.channels].any():
                weight = run.executor.weights[fact.tensor].detach().numpy()
                assert not np.compress(flags[fact.channels], weight, axis=fact.axis).any()


def test_one_large_gradient_keeps_a_channel_for_the_window():
    run = Training(network(silent=()), 1e6, patience=3)
    large = run.group("first")[2]
    fact = next(f for f in run.trace.slices if f.role == "follows" and large in f.channels)
    for step in range(3):
        run.gradients()
        if step == 1:
            run.executor.weights[fact.tensor].grad[int(np.flatnonzero(fact.channels == large)[0])] = -2e6
        run.gates.observe()
    assert run.gates.gated.any()
    assert not run.gates.gated[large]
    assert run.gates.peaks[large] == 2e6


def test_the_peak_gradient_is_taken_over_all_parameters_of_a_channel():
    run = Training(network(), T, patience=1)
    run.gradients()
    expected = np.zeros(run.trace.n_channels)
    for fact in run.trace.slices:
        gradient = np.abs(run.executor.weights[fact.tensor].grad.numpy())
        for place, channel in enumerate(fact.channels):
            if channel >= 0:
                expected[channel] = max(expected[channel], gradient.take(place, axis=fact.axis).max())
    run.gates.observe()
    np.testing.assert_allclose(run.gates.peaks, expected)
    assert {fact.role for fact in run.trace.slices} == {"writes", "follows", "reads"}


def test_a_gradient_that_is_not_finite_keeps_its_channel():
    run = Training(network(), 1e6, patience=1)
    fact = next(f for f in run.trace.slices if f.role == "writes" and run.group("inner")[0] in f.channels)
    run.gradients()
    run.executor.weights[fact.tensor].grad[0] = np.nan
    run.gates.observe()
    assert run.gates.gated.any()
    assert not run.gates.gated[run.group("inner")[0]]


def test_nothing_is_gated_at_a_threshold_of_zero_and_quantiles_are_told():
    run = Training(network(), 0.0, patience=2)
    run.step()
    assert run.gates.quantiles((0.5,)) == {}
    run.step()
    assert not run.gates.gated.any()
    found = run.gates.quantiles((0.0, 0.5, 1.0))
    assert found[0.0] == 0 < found[0.5] < found[1.0]


@pytest.mark.parametrize(("how", "left"), [({}, 1), ({"max_ratio": 0.4}, 4)])
def test_every_group_keeps_what_it_must(how: dict[str, Any], left: int):
    run = Training(network(silent=()), 1e6, patience=1, **how)
    for _ in range(3):
        run.step()
    keep = run.gates.keep
    assert keep[run.group("first")].sum() == left
    assert all(keep[extent].any() for extent in run.trace.extents)


def test_channels_with_the_smallest_gradients_go_first():
    run = Training(network(silent=()), 1e6, patience=1, max_ratio=0.5)
    run.step()
    members = run.group("first")
    order = members[np.argsort(run.gates.peaks[members])]
    np.testing.assert_array_equal(run.gates.gated[order], [True, True, True, False, False, False])


def test_pinned_channels_are_not_gated():
    run = Training(network(), 1e6, ignore=("inner",), patience=1)
    run.step()
    assert not run.gates.gated[run.group("inner")].any()
    assert run.gates.gated.any()


def test_what_is_summed_without_a_weight_is_not_gated():
    b = Builder((2, 5, 5))
    x = b.conv("x", 6, name="first")
    total = b.node("ReduceSum", [x, b.ints(1)], (1, 5, 5))
    y = b.node("Mul", [b.node("Relu", [b.conv(x, 4, name="second")]), total])
    run = Training(b.build(b.gemm(b.flatten(y), 3)), 1e6, patience=1)
    run.step()
    assert not run.trace.pinned[run.group("first")].any()
    assert not run.gates.gated[run.group("first")].any()
    assert run.gates.gated[run.group("second")].any()


@pytest.mark.parametrize("fixed", [False, True])
def test_a_weight_that_reads_two_things_gates_both_or_neither(fixed: bool):
    b = Builder((6, 5, 5))
    shared = b.normal(4, 6, 3, 3)
    first = b.conv("x", 6, name="first")
    other = "x" if fixed else b.conv("x", 6)
    y = b.node("Add", [b.conv(first, 4, 3, weight=shared), b.conv(other, 4, 3, weight=shared)])
    run = Training(b.build(b.gemm(b.flatten(b.conv(y, 4)), 3)), 1e6, patience=1)
    assert run.trace.pinned[run.group("first")].all() == fixed
    run.step()
    assert run.gates.gated[run.group("first")].any() != fixed
    trained = run.executor.written()
    for dense, small in zip(outputs(trained), outputs(rewrite.delete(trained, run.trace, run.gates.keep)), strict=True):
        np.testing.assert_allclose(small, dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 2e-2])
def test_a_resumed_run_goes_on_as_the_first_one_would(threshold: float):
    """Saved in the middle of the second window: after one step of it, which may have had the largest gradients."""
    whole, first, second = (Training(network(), threshold, patience=4) for _ in range(3))
    for _ in range(8):
        whole.step()
    for _ in range(5):
        first.step()
    state = first.gates.state_dict()
    second.rng.bit_generator.state = first.rng.bit_generator.state
    for name, weight in second.executor.weights.items():
        weight.data.copy_(first.executor.weights[name].detach())
    for _ in range(3):
        first.step()  # what was saved does not change
    second.gates.load_state_dict(state)
    for _ in range(3):
        second.step()
    assert whole.gates.gated.any() == (threshold > 0)
    np.testing.assert_array_equal(second.gates.gated, whole.gates.gated)
    np.testing.assert_array_equal(second.gates.peaks, whole.gates.peaks)
    for name, weight in whole.executor.weights.items():
        np.testing.assert_array_equal(weight.detach().numpy(), second.executor.weights[name].detach().numpy())

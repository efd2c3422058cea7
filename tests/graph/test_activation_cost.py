"""Predicted activation elements of a pruned model, against the elements of the model after deletion."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from graphs import DRAWN, Builder, cnn_models, load, random_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.graph.activation_cost import FEATURES, ActivationCost
from onnxprune.graph.cost import CostModel
from onnxprune.graph.model import Model
from onnxprune.graph.shapes import observe_tensors
from onnxprune.graph.trace import trace as trace_model
from onnxprune.metrics import activation_memory
from onnxprune.surgery import channels as rewrite


def branched() -> Model:
    """Return a residual block between two Conv, and a head."""
    b = Builder((3, 8, 8))
    first = b.conv("x", 16, 3)
    left = b.conv(b.node("Relu", [first]), 16, 3)
    total = b.node("Add", [first, left])
    return load(b.build(b.gemm(b.flatten(b.global_pool(b.conv(total, 8, 3))), 4)))


@settings(DRAWN, max_examples=60)
@given(cnn_models(), st.integers(0, 1000), st.floats(0.1, 0.9))
def test_elements_are_those_of_the_pruned_model(proto: onnx.ModelProto, seed: int, ratio: float) -> None:
    model = load(proto)
    trace = trace_model(model)
    keep = random_plan(trace, seed, ratio)
    cost = ActivationCost(model.graph, trace, CostModel(trace))
    again = trace_model(rewrite.delete(model, trace, keep))
    elements = cost.elements(keep)
    for name in trace.carried:
        if name in cost.names and name in again.shapes:
            assert elements[cost.names[name]] == pytest.approx(math.prod(again.shapes[name]) / again.samples), name


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_peak_is_that_of_the_pruned_model(seed: int, batch: int) -> None:
    model = branched()
    trace = trace_model(model)
    keep = random_plan(trace, seed, 0.2 * seed)
    cost = ActivationCost(model.graph, trace, CostModel(trace))
    pruned = rewrite.delete(model, trace, keep)
    measured = activation_memory.peak(pruned, {"x": (batch, 3, 8, 8)})
    assert batch * cost.peak(keep, np.full(len(cost.names), 4.0)) == pytest.approx(measured)


def test_peak_counts_activations_alive_together() -> None:
    model = branched()
    # while the second Conv runs: input (never freed), first, its Relu, what the Conv writes
    assert activation_memory.peak(model, {"x": (1, 3, 8, 8)}) == 4 * 64 * (3 + 16 + 16 + 16)


def test_peak_looks_at_shapes_that_cannot_be_inferred() -> None:
    b = Builder((4, 8, 8))
    chosen = b.node("NonZero", [b.conv("x", 8, 3)], (4, 1))
    model = load(b.build(b.node("Cast", [chosen], (4, 1), to=onnx.TensorProto.FLOAT)))
    found = activation_memory.peak(model, {"x": (1, 4, 8, 8)})
    run = observe_tensors(model.to_proto(), {"x": (1, 4, 8, 8)}, [chosen], "")
    assert found >= run[chosen].nbytes + 4 * 8 * 64


def test_features_of_a_layer() -> None:
    model = branched()
    trace = trace_model(model)
    found = dict(
        zip(
            trace.labels,
            ActivationCost(model.graph, trace, CostModel(trace)).features(np.ones(trace.n_channels, bool)),
            strict=True,
        )
    )
    first = dict(zip(FEATURES, found[trace.labels[0]], strict=True))
    assert first == {"once": 1, "in": 3 * 64, "out": 16 * 64, "macs": 16 * 27 * 64, "weights": 16 * 27}


def test_steps_round_channels_up() -> None:
    model = branched()
    trace = trace_model(model)
    keep = np.ones(trace.n_channels, dtype=bool)
    keep[trace.groups[0].channels[:3]] = False  # 13 of 16 are left
    cost = ActivationCost(model.graph, trace, CostModel(trace))
    dense = cost.features(np.ones_like(keep))
    touched = slice(0, 4)  # what follows has 8 and 4 channels
    np.testing.assert_allclose(cost.features(keep, 8)[touched], dense[touched])
    assert (cost.features(keep)[touched] < dense[touched]).any()

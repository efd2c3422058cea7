"""Networks with discrete operators: a right pruning is proven, a wrong one is not, in front of the operator and behind it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from discrete_models import HEADS, model
from graphs import DRAWN, Builder, load, random_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxprune.errors import ProofError
from onnxprune.graph.comparison_points import comparison_points, measured_tensors
from onnxprune.graph.model import Model, tensors_of
from onnxprune.graph.trace import trace as trace_model
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.mask import mask
from onnxprune.surgery.proof import prove

SEEDS = st.integers(0, 2**16)


def wrong_ones(pruned: Model, factor: float) -> list[Model]:
    """Return a pruned model with each weight in turn multiplied by a factor."""
    found = []
    for n, i, weight in list(tensors_of(pruned.graph)):
        if weight.values.dtype.kind == "f" and weight.values.ndim > 1:
            wrong = pruned.copy()
            wrong.graph.nodes[n].inputs[i] = gs.Constant(weight.name, weight.values * np.float32(factor))
            found.append(wrong)
    return found


@pytest.mark.parametrize("head", HEADS)
def test_discrete_operators_hide_neither_a_right_pruning_nor_a_wrong_one(head: str) -> None:
    seen: Counter[str] = Counter()

    @settings(DRAWN, max_examples=3)
    @given(SEEDS, st.sampled_from((0.3, 0.6)))
    def check(seed: int, ratio: float) -> None:
        original = load(model(head, seed))
        trace = trace_model(original)
        keep = random_plan(trace, seed, ratio)
        pruned, masked = rewrite.delete(original, trace, keep), mask(original, trace, keep)
        assert prove(original, pruned, masked, seed=seed).difference <= 1e-4
        for wrong in wrong_ones(pruned, 1.01):
            with pytest.raises(ProofError, match="the pruned model is not the masked model"):
                prove(original, wrong, masked, seed=seed)
            seen["wrong"] += 1
        seen["pruned"] += not keep.all()

    check()
    assert seen["pruned"]
    assert seen["wrong"] >= 12


def test_channels_behind_a_selection_are_compared_on_the_same_selection() -> None:
    """The channels that lie behind TopK or RoiAlign are deleted as well."""
    for head in ("headed", "aligned"):
        original = load(model(head, 0))
        behind = comparison_points(original.graph).behind
        trace = trace_model(original)
        outputs = [node.outputs[0].name for node in original.graph.nodes]
        layers = [fact for fact in trace.slices if fact.role == "writes" and outputs[fact.node] in behind]
        assert any((~trace.pinned[fact.channels[fact.channels >= 0]]).any() for fact in layers)


def test_a_selection_of_nothing_is_no_proof_of_what_lies_behind_it() -> None:
    """NonZero finds no element, so that nothing reaches the layers behind."""
    b = Builder((3, 8, 8))
    values = b.reshape(b.conv(b.node("Relu", [b.conv("x", 8, 3)]), 4), (-1, 4), (4,))
    found = b.node("NonZero", [b.node("Greater", [values, b.const(np.float32(1e9))])], ())
    row = b.node("Squeeze", [b.node("Slice", [found, b.ints(0), b.ints(1)], ()), b.ints(0)], ())
    picked = b.node("Gather", [values, row], (4,), axis=0)
    out = b.gemm(b.node("Relu", [b.gemm(picked, 12)]), 2)
    proto = b.build(out)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info(out, TensorProto.FLOAT, None))
    original = load(proto)
    trace = trace_model(original)
    keep = random_plan(trace, 0, 0.4)
    assert not keep.all()
    with pytest.raises(ProofError, match="outputs hold no number"):
        prove(original, rewrite.delete(original, trace, keep), mask(original, trace, keep))


def test_the_loss_is_measured_in_front_of_a_selection() -> None:
    for head, replaced in (
        ("topk", True),
        ("argmax", True),
        ("suppressed", True),
        ("rounded", False),
        ("gated", False),
    ):
        original = load(model(head, 0))
        outputs = tuple(tensor.name for tensor in original.graph.outputs)
        found = measured_tensors(original.graph)
        assert found.names
        assert (not set(outputs) & set(found.names)) is replaced
        assert bool(found.points) is replaced
    for head in ("headed", "aligned"):  # weights behind the selection: what they give is measured as well
        original = load(model(head, 0))
        found = measured_tensors(original.graph)
        assert found.names[0] == original.graph.outputs[0].name
        assert bool(found.points) is (head == "headed")

"""Random models, random plans: what must hold for every one of them."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import NORMS, THOROUGH, Builder, cnn_models, load, random_plan, signature_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxprune.allocation import knapsack
from onnxprune.graph.cost import CostModel
from onnxprune.graph.model import Model
from onnxprune.graph.trace import trace as trace_model
from onnxprune.importance import weights as importance
from onnxprune.metrics.outputs import relative_difference
from onnxprune.runtime.session import SessionConfig, open_session, random_feeds, run_batch
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.mask import mask
from onnxprune.surgery.proof import prove
from onnxprune.types import BoolArray, IntArray, Trace

SEEDS = st.integers(0, 2**16)
RATIOS = st.sampled_from((0.5, 0.2, 0.8))


def run(proto: onnx.ModelProto, batch: int, seed: int = 0, *, optimize: bool = False) -> list[np.ndarray[Any, Any]]:
    """Run a model on seeded inputs; a fixed batch stays what it is."""
    feeds = random_feeds(proto, signature_of(proto).input_shapes(batch), seed)
    return run_batch(open_session(proto, SessionConfig(optimize=optimize)), feeds)


def difference(one: onnx.ModelProto, two: onnx.ModelProto, batch: int = 3) -> float:
    """Return the largest difference between two models, as a share of the range of an output."""
    return max(relative_difference(a, b) for a, b in zip(run(one, batch), run(two, batch), strict=True))


def stored_floats(proto: onnx.ModelProto) -> int:
    """Count the elements of all float initializers."""
    arrays = [numpy_helper.to_array(tensor) for tensor in proto.graph.initializer]
    return sum(array.size for array in arrays if array.dtype.kind == "f")


def counted_macs(proto: onnx.ModelProto) -> float:
    """Count the multiply-accumulates per sample of Conv, ConvTranspose, Gemm and MatMul, from the shapes of the tensors of a run."""
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    there = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    names = dict.fromkeys(name for node in proto.graph.node for name in node.output if name and name not in there)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    batch = signature_of(proto).fixed or 1
    feeds = random_feeds(proto, signature_of(proto).input_shapes(batch), 0)
    found = run_batch(open_session(watched, SessionConfig(optimize=False)), feeds)
    shapes = {value.name: np.shape(array) for value, array in zip(watched.graph.output, found, strict=True)}
    shapes |= {name: np.shape(array) for name, array in feeds.items()}
    weights = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    total = 0
    for node in proto.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.input[1] not in weights:
            continue
        weight, source, result = weights[node.input[1]], shapes[node.input[0]], shapes[node.output[0]]
        match node.op_type:
            case "Conv":
                total += math.prod(result) * math.prod(weight[1:])
            case "ConvTranspose":
                total += math.prod(source) * math.prod(weight[1:])
            case _:
                total += math.prod(source[:-1]) * math.prod(weight)
    return total / batch


def interface(proto: onnx.ModelProto) -> list[bytes]:
    """Return the inputs and outputs, serialised."""
    return [value.SerializeToString() for value in (*proto.graph.input, *proto.graph.output)]


def test_drawn_models_are_valid_and_run() -> None:
    operators: Counter[str] = Counter()
    opsets: set[int] = set()

    @settings(THOROUGH, max_examples=400)
    @given(cnn_models())
    def check(proto: onnx.ModelProto) -> None:
        onnx.checker.check_model(proto, full_check=True)
        assert all(np.isfinite(output).all() for output in run(proto, 2, optimize=True))
        operators.update({node.op_type for node in proto.graph.node})
        opsets.add(proto.opset_import[0].version)

    check()
    wanted = {
        "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "Flatten", "Gather", "Gemm",
        "GlobalAveragePool", "HardSwish", "Identity", "MatMul", "MaxPool", "Mul", "PRelu", "Pad", "ReduceMean", "Relu",
        "Reshape", "Sigmoid", "Slice", "Split", "Sub", "Transpose",
    }  # fmt: skip
    assert wanted - set(operators) == set()
    assert opsets == {11, 13, 17, 18, 21}


def test_deleting_channels_equals_masking_them() -> None:
    seen: Counter[str] = Counter()

    @THOROUGH
    @given(cnn_models(), SEEDS, RATIOS)
    def check(proto: onnx.ModelProto, seed: int, ratio: float) -> None:
        model = load(proto)
        trace = trace_model(model)
        keep = random_plan(trace, seed, ratio)
        pruned, masked = rewrite.delete(model, trace, keep), mask(model, trace, keep)
        proof = prove(model, pruned, masked, seed=seed)
        assert proof.difference <= 1e-4
        written = pruned.to_proto()
        dynamic = model.signature.fixed is None
        assert proof.batches == ((1, 3) if dynamic else (model.signature.fixed,))

        onnx.checker.check_model(written, full_check=True)
        assert interface(written) == interface(proto)
        for batch in (1, 3) if dynamic else (2,):
            before, after = run(proto, batch), run(written, batch, optimize=True)
            assert [a.shape for a in before] == [a.shape for a in after]

        seen["examples"] += 1
        if keep.all():
            assert difference(proto, written) <= 1e-5
        else:
            seen["pruned"] += 1
            seen["changed"] += difference(proto, masked.to_proto()) > 1e-3

    check()
    # else the comparison above would not say anything
    assert seen["pruned"] >= 0.5 * seen["examples"]
    assert seen["changed"] >= 0.75 * seen["pruned"]


def test_what_normalisations_run_over_may_be_cut() -> None:
    seen: Counter[str] = Counter()

    @THOROUGH
    @given(cnn_models(6, 3 * NORMS), SEEDS, RATIOS)
    def check(proto: onnx.ModelProto, seed: int, ratio: float) -> None:
        model = load(proto)
        trace = trace_model(model, norms="cut")
        assert not trace_model(model).inexact().any()
        keep = random_plan(trace, seed, ratio)
        pruned, masked = rewrite.delete(model, trace, keep), mask(model, trace, keep)
        assert prove(model, pruned, masked, seed=seed).difference <= 1e-4
        written = pruned.to_proto()
        onnx.checker.check_model(written, full_check=True)
        again = trace_model(load(written), norms="cut")
        assert CostModel(again).totals(np.ones(again.n_channels, dtype=bool)) == pytest.approx(
            CostModel(trace).totals(keep)
        )
        seen["examples"] += 1
        seen["inexact"] += bool((trace.inexact() & ~keep).any())

    check()
    assert seen["inexact"] >= 0.15 * seen["examples"]


@THOROUGH
@given(cnn_models(), SEEDS, RATIOS)
def test_predicted_cost_is_the_cost_of_the_written_model(proto: onnx.ModelProto, seed: int, ratio: float) -> None:
    model = load(proto)
    trace = trace_model(model)
    keep = random_plan(trace, seed, ratio)
    macs, params = CostModel(trace).totals(keep)
    layers = CostModel(trace).layers(keep)
    assert sum(layer.macs for layer in layers) == pytest.approx(macs)

    written = rewrite.delete(model, trace, keep).to_proto()
    again = trace_model(load(written))
    assert CostModel(again).totals(np.ones(again.n_channels, dtype=bool)) == pytest.approx((macs, params))
    assert params == pytest.approx(stored_floats(written))
    if {layer.op for layer in layers} <= {"Conv", "Gemm", "MatMul"} and "ConvTranspose" not in trace.ops:
        assert macs == pytest.approx(counted_macs(written))
    for before, after in zip(CostModel(trace).layers(np.ones_like(keep)), layers, strict=True):
        assert 0 < after.macs <= before.macs
        assert 0 < after.params <= before.params


@settings(THOROUGH, max_examples=100)
@given(cnn_models())
def test_tracing_is_deterministic_and_explains_itself(proto: onnx.ModelProto) -> None:
    one, two = trace_model(load(proto)), trace_model(load(proto))
    assert one.labels == two.labels
    assert np.array_equal(one.pinned, two.pinned)
    for name in ("groups", "pins", "slices", "counts", "works"):
        assert repr(getattr(one, name)) == repr(getattr(two, name))
    assert [e.tolist() for e in one.extents] == [e.tolist() for e in two.extents]

    everything = np.concatenate([group.channels for group in one.groups]) if one.groups else np.zeros(0, dtype=int)
    assert sorted(everything) == list(range(one.n_channels)), "groups are disjoint and hold every channel"
    assert len({group.name for group in one.groups}) == len(one.groups)
    explained = np.zeros(one.n_channels, dtype=bool)
    for pin in one.pins:
        assert pin.reason
        assert pin.node in one.labels
        assert one.ops[one.labels.index(pin.node)] == pin.op
        explained[pin.channels] = True
    assert np.array_equal(explained, one.pinned)


def same_units(before: Trace, keep: BoolArray, after: Trace) -> list[set[int]]:
    """Find for each channel of a pruned model the channels of the original that it stands for."""
    meaning: list[set[int]] = [set() for _ in range(after.n_channels)]
    alive = np.append(keep, True)
    old: dict[tuple[str, int, int], IntArray] = {
        (before.labels[s.node], s.input, s.axis): s.channels[alive[s.channels]] for s in before.slices
    }
    for fact in after.slices:
        there = old.get((after.labels[fact.node], fact.input, fact.axis), np.full(fact.channels.size, -1))
        for new, original in zip(fact.channels, there, strict=True):
            if new >= 0 and original >= 0:
                meaning[new].add(int(original))
    return meaning


@settings(THOROUGH, max_examples=100)
@given(cnn_models(), SEEDS, RATIOS)
def test_pruning_twice_equals_pruning_once(proto: onnx.ModelProto, seed: int, ratio: float) -> None:
    model = load(proto)
    trace = trace_model(model)
    first = random_plan(trace, seed, ratio)
    assume(not first.all())
    halfway = load(rewrite.delete(model, trace, first).to_proto())
    second_trace = trace_model(halfway)
    second = random_plan(second_trace, seed + 1, 0.5)
    twice = rewrite.delete(halfway, second_trace, second)

    meaning = same_units(trace, first, second_trace)
    both = first.copy()
    gone = {channel for new in np.flatnonzero(~second) for channel in meaning[new]}
    stays = {channel for new in np.flatnonzero(second) for channel in meaning[new]}
    # where one channel of a depthwise Conv with multiplier 2 is left, its two filters are free from then on
    assume(not gone & stays)
    both[sorted(gone)] = False
    once = rewrite.delete(model, trace, both)
    assert stored_floats(once.to_proto()) == stored_floats(twice.to_proto())
    assert difference(once.to_proto(), twice.to_proto()) <= 1e-5


def without_readers(model: Model, trace: Trace, dead: BoolArray) -> Model:
    """Set every weight slice that reads one of the `dead` channels to zero."""
    result = model.copy()
    for fact in trace.slices:
        if fact.role == "reads":
            weight = result.graph.nodes[fact.node].inputs[fact.input]
            value = weight.values.copy()
            value[(slice(None),) * fact.axis + (np.append(dead, False)[fact.channels],)] = 0
            weight.values = value
    return result


def read_channels(trace: Trace) -> BoolArray:
    """Tell of each channel whether any weight reads it."""
    result = np.zeros(trace.n_channels, dtype=bool)
    for fact in trace.slices:
        if fact.role == "reads":
            result[fact.channels[fact.channels >= 0]] = True
    return result


def test_planted_dead_channels_are_found_and_cost_nothing() -> None:
    planted = Counter[str]()

    @THOROUGH
    @given(cnn_models(), SEEDS)
    def check(proto: onnx.ModelProto, seed: int) -> None:
        original = load(proto)
        trace = trace_model(original)
        keep = random_plan(trace, seed, 0.3) | ~read_channels(trace)
        for group in trace.groups:  # a group never goes as a whole
            if not keep[group.channels].any():
                keep[group.channels[0]] = True
        assume(not keep.all())

        model = load(without_readers(original, trace, ~keep).to_proto())
        again = trace_model(model)
        assert again.n_channels == trace.n_channels
        scores = importance.score(model, again, "l2")
        assert np.array_equal((scores == 0) & ~again.pinned, ~keep), (
            "dead channels score exactly zero, no others that may go do"
        )

        rules = knapsack.PruningRules(round_to=1, min_channels=1, max_ratio=1.0)
        left = knapsack.below(again, scores, np.ones_like(keep), rules, threshold=1e-12)
        assert np.array_equal(left, keep)
        pruned = rewrite.delete(model, again, left)
        assert difference(model.to_proto(), pruned.to_proto()) <= 1e-5
        planted["channels"] += int((~keep).sum())
        planted["models"] += 1

    check()
    assert planted["models"] >= 50
    assert planted["channels"] >= 2 * planted["models"]


# ------------------------------------------------------------------------------------------ found by the tests above


@pytest.mark.parametrize(("start", "end", "gone"), [(0, -1, [7]), (-5, -2, [6, 7]), (-5, -2, [3, 6]), (2, 5, [0, 7])])
def test_slice_bounds_follow_channels_outside_of_the_slice(start: int, end: int, gone: list[int]) -> None:
    b = Builder()
    x = b.slice(b.conv("x", 8), start, end)
    model = load(b.build(b.conv(x, 2)))
    trace = trace_model(model)
    keep = np.isin(np.arange(trace.n_channels), gone, invert=True)
    prove(model, rewrite.delete(model, trace, keep), mask(model, trace, keep))


def test_a_weight_shared_by_layers_with_different_inputs_counts_once() -> None:
    b = Builder()
    weight = b.normal(4, 3, 1, 1)
    one, two = (b.conv(b.conv("x", 3), 4, weight=weight, bias=False) for _ in range(2))
    model = load(b.build(b.conv(b.node("Add", [one, two]), 2)))
    trace = trace_model(model)
    cost = CostModel(trace)
    assert cost.totals(np.ones(trace.n_channels, dtype=bool))[1] == model.params
    keep = np.ones(trace.n_channels, dtype=bool)
    keep[0] = False
    assert cost.totals(keep)[1] == stored_floats(rewrite.delete(model, trace, keep).to_proto())

"""Graphs whose nodes share weights: the oracle holds, a tensor stays one tensor, and its readers lose the same channels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from graphs import THOROUGH, Builder, load, random_plan
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxprune.errors import PlanError
from onnxprune.graph.cost import CostModel
from onnxprune.graph.trace import trace as trace_model
from onnxprune.surgery.channels import delete
from onnxprune.surgery.edits import GRANULARITIES, candidates
from onnxprune.surgery.edits.apply import apply_edits
from onnxprune.surgery.edits.kernel import Kernel
from onnxprune.surgery.mask import mask
from onnxprune.surgery.proof import prove
from onnxprune.types import Trace

Draw = Callable[[st.SearchStrategy[int]], int]


def sizes(proto: onnx.ModelProto) -> dict[str, int]:
    """Return the elements of each float initializer, by name."""
    return {t.name: math.prod(t.dims) for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT}


def chain(b: Builder, x: str, weights: list[tuple[str, str, list[str]]], act: str) -> str:
    """Run an input through convolutions of given weights, biases and normalizations."""
    for weight, bias, norm in weights:
        out = {t.name: t for t in b.weights.values()}[weight].dims[0]
        x = b.node("Conv", [x, weight, bias], (out, *b.shapes[x][1:]), kernel_shape=[3, 3], pads=[1] * 4)
        x = b.node("BatchNormalization", [x, *norm]) if norm else x
        x = b.node(act, [x])
    return x


def stack(b: Builder, widths: list[int], norms: bool) -> list[tuple[str, str, list[str]]]:
    """Store the weights of convolutions between these widths."""
    found = []
    for i, o in itertools.pairwise(widths):
        norm = [b.const(b.rng.uniform(0.5, 1.5, o).astype(np.float32)) for _ in range(4)] if norms else []
        found.append((b.normal(o, i, 3, 3, scale=(9 * i) ** -0.5), b.normal(o, scale=0.3), norm))
    return found


def siamese(b: Builder, draw: Draw) -> list[str]:
    """Two inputs through one network; distance, and maybe one of the embeddings."""
    width = draw(st.integers(2, 6))
    weights = stack(
        b, [3, *(draw(st.integers(2, 6)) for _ in range(draw(st.integers(1, 3)))), width], bool(draw(st.booleans()))
    )
    other = b.node("Neg", ["x"])
    act = draw(st.sampled_from(["Relu", "Sigmoid"]))
    one, two = (b.flatten(b.global_pool(chain(b, x, weights, act))) for x in ("x", other))
    y = b.node("Add", [one, two])  # a difference would amplify rounding
    return [b.gemm(b.node("Abs", [y]), 2)] if draw(st.booleans()) else [y]


def pyramid(b: Builder, draw: Draw) -> list[str]:
    """A head that the levels of a pyramid share, with or without normalizations of their own per level."""
    width = draw(st.integers(2, 6))
    levels = [b.conv("x", width, 3)]
    for _ in range(draw(st.integers(1, 2))):
        levels.append(b.conv(b.node("Relu", [levels[-1]]), width, 3, stride=2))
    head = stack(b, [width, draw(st.integers(2, 6)), draw(st.integers(2, 6))], False)
    own, last = draw(st.booleans()), b.normal(4, int(b.weights[head[-1][0]].dims[0]), 1, 1)
    outputs = []
    for level in levels:
        norms = [(w, bias, stack(b, [1, int(b.weights[w].dims[0])], True)[0][2] if own else []) for w, bias, _ in head]
        t = chain(b, level, norms, "Relu")
        outputs.append(b.node("Conv", [t, last], (4, *b.shapes[t][1:]), kernel_shape=[1, 1]))
    return outputs


def autoencoder(b: Builder, draw: Draw) -> list[str]:
    """A ConvTranspose takes the weight of the Conv that it mirrors."""
    widths = [3, *(draw(st.integers(2, 6)) for _ in range(draw(st.integers(1, 3))))]
    weights = stack(b, widths, False)
    x = chain(b, "x", weights, "Relu")
    for weight, _, _ in reversed(weights):
        inner = int(b.weights[weight].dims[1])
        bias = [b.normal(inner, scale=0.3)] if draw(st.booleans()) else []
        x = b.node("ConvTranspose", [x, weight, *bias], (inner, *b.shapes[x][1:]), kernel_shape=[3, 3], pads=[1] * 4)
        x = b.node("Relu", [x]) if inner != 3 else x
    return [x]


def recurrence(b: Builder, draw: Draw) -> list[str]:
    """Unroll h = act(W h + U x + b) over the columns of an image."""
    width, hidden = draw(st.integers(2, 6)), draw(st.integers(2, 6))
    columns = b.node("ReduceMean", [b.node("Relu", [b.conv("x", width, 3)])], (width, 8), axes=[2], keepdims=0)
    w, u, bias = b.normal(hidden, hidden, scale=hidden**-0.5), b.normal(hidden, width, scale=0.5), b.normal(hidden)
    h, act = "", draw(st.sampled_from(["Tanh", "Relu"]))
    for t in range(draw(st.integers(2, 4))):
        x = b.node("Gather", [columns, b.const(np.array(t))], (width,), axis=2)
        new = b.node("Gemm", [x, u, bias], (hidden,), transB=1)
        new = b.node("Add", [new, b.node("Gemm", [h, w], (hidden,), transB=1)]) if h else new
        h = b.node(act, [new])
    return [b.gemm(h, 3)]


def mixed(b: Builder, draw: Draw) -> list[str]:
    """One tensor is a depthwise kernel and an ordinary one; a bias and an embedding are shared, too."""
    width = draw(st.integers(2, 6))
    kernel, bias = b.normal(width, 1, 3, 3), b.normal(width)
    wide = {"kernel_shape": [3, 3], "pads": [1] * 4}
    one = b.node("Conv", [b.conv("x", width), kernel, bias], (width, 8, 8), group=width, **wide)
    two = b.node("Conv", [b.conv("x", 1), kernel, bias], (width, 8, 8), **wide)
    how = draw(st.integers(0, 2))
    if how == 0:
        y = b.concat([one, two])
    elif how == 1:
        y = b.concat([one, b.node("Add", [two, b.normal(1, width, 8, 8)])])
    else:  # three readers, one of which has no channels there
        y = b.concat(
            [one, two, b.node("Conv", ["x", b.normal(width, 3, 1, 1), bias], (width, 8, 8), kernel_shape=[1, 1])]
        )
    return [b.conv(b.node("Relu", [y]), 3)]


@THOROUGH
@given(st.data(), st.sampled_from([siamese, pyramid, autoencoder, recurrence, mixed]), st.integers(0, 2**16))
def test_the_oracle_holds_and_no_tensor_is_stored_twice(
    data: st.DataObject, network: Callable[[Builder, Draw], list[str]], seed: int
) -> None:
    b = Builder((3, 8, 8), seed=seed)
    proto = b.build(*network(b, data.draw))
    model = load(proto)
    trace = trace_model(model)
    keep = random_plan(trace, seed, 0.4)
    pruned = delete(model, trace, keep)
    assert prove(model, pruned, mask(model, trace, keep), seed=seed).difference <= 1e-4
    loaded, after = sizes(model.to_proto()), sizes(pruned.to_proto())
    assert after.keys() == loaded.keys()
    assert sum(after.values()) <= sum(loaded.values()) <= sum(sizes(proto).values())
    assert CostModel(trace).totals(keep)[1] == sum(after.values())
    assert keep.all() or sum(after.values()) < sum(loaded.values())


def twins(b: Builder) -> tuple[str, list[str]]:
    """Return a weight, and the outputs of two layers that take it."""
    weight = b.normal(6, 4, 1, 1)
    return weight, [b.conv(b.conv("x", 4), 6, weight=weight, bias=False, name=name) for name in ("one", "two")]


def finished(b: Builder, parts: list[str]) -> onnx.ModelProto:
    return b.build(b.conv(b.node("Relu", [b.concat(parts)]), 2))


def reasons(trace: Trace, layer: str) -> set[str]:
    """Return why the channels that a layer writes are pinned."""
    group = next(group for group in trace.groups if layer in group.layers)
    return {pin.reason for pin in trace.why_pinned(group.channels)}


@pytest.mark.parametrize("alike", [True, False])
def test_a_normalization_is_folded_once_where_all_layers_of_a_weight_agree(alike: bool) -> None:
    b = Builder()
    _, parts = twins(b)
    first = stack(b, [1, 6], True)[0][2]
    norms = [first, first if alike else stack(b, [1, 6], True)[0][2]]
    proto = finished(b, [b.node("BatchNormalization", [x, *norm]) for x, norm in zip(parts, norms, strict=True)])
    model = load(proto)
    live = [node for node in model.graph.nodes if node.op == "BatchNormalization"]
    assert len(live) == (0 if alike else 2)
    one, two = (next(node for node in model.graph.nodes if node.name == name) for name in ("one", "two"))
    assert one.inputs[1].name == two.inputs[1].name
    assert sum(sizes(model.to_proto()).values()) <= sum(sizes(proto).values())
    assert prove(model, model, model).normalized <= 1e-4


def test_layers_of_one_weight_are_not_edited() -> None:
    b = Builder()
    weight = b.normal(32, 32, 3, 3)
    x = b.conv("x", 32)
    for name in ("one", "two"):
        x = b.node("Relu", [b.conv(x, 32, 3, weight=weight, name=name)])
    model = load(b.build(b.conv(x, 2)))
    edited = {candidate.edit.layer for candidate in candidates(model, GRANULARITIES, 8)}
    assert edited.isdisjoint({"one", "two"})
    with pytest.raises(PlanError, match="of its own"):
        apply_edits(model, [Kernel("one", ((1, 1, 1), (1, 1, 1)))])


def test_a_use_without_channels_pins_with_its_name() -> None:
    b = Builder((4, 8, 8))
    weight = b.normal(6, 4, 1, 1)
    one = b.conv(b.conv("x", 4, name="cut"), 6, weight=weight, bias=False, name="one")
    two = b.conv("x", 6, weight=weight, bias=False, name="two")
    trace = trace_model(load(finished(b, [one, two])))
    assert reasons(trace, "cut") == {f"the weight {weight} is also read by two, whose channels are pinned"}
    assert reasons(trace, "one") == set()


def test_a_weight_that_is_an_output_is_pinned() -> None:
    b = Builder()
    weight, parts = twins(b)
    proto = finished(b, parts)
    proto.graph.output.append(helper.make_tensor_value_info(weight, TensorProto.FLOAT, [6, 4, 1, 1]))
    assert reasons(trace_model(load(proto)), "one") == {f"the weight {weight} is also an output of the model"}


def test_equal_fill_values_tie_no_layers() -> None:
    b = Builder()
    zeros = b.const(np.zeros(6, np.float32))
    x = b.node("Conv", ["x", b.normal(6, 3, 1, 1), zeros], (6, 8, 8), kernel_shape=[1, 1], name="one")
    x = b.node("Conv", [b.node("Relu", [x]), b.normal(6, 6, 1, 1), zeros], (6, 8, 8), kernel_shape=[1, 1], name="two")
    model = load(b.build(b.conv(b.node("Relu", [x]), 2)))
    trace = trace_model(model)
    assert [group.layers for group in trace.groups if not trace.pinned[group.channels].any()] == [("one",), ("two",)]
    keep = np.ones(trace.n_channels, dtype=bool)
    keep[:2] = False
    prove(model, delete(model, trace, keep), mask(model, trace, keep))


@pytest.mark.parametrize("apart", [False, True])
def test_quantized_weights_are_tied(apart: bool) -> None:
    """Two layers read one DequantizeLinear, or two that take the same integers, scales and zero points."""
    b = Builder(opset=17)
    stored = [
        b.const(b.rng.integers(-100, 100, (6, 4, 1, 1)).astype(np.int8)),
        b.const(b.rng.uniform(0.01, 0.02, 6).astype(np.float32)),
        b.const(b.rng.integers(-3, 3, 6).astype(np.int8)),
    ]
    weights = [b.node("DequantizeLinear", stored, (4, 1, 1), axis=0) for _ in range(1 + apart)]
    parts = [
        b.node("Conv", [b.conv("x", 4), weights[i * apart]], (6, 8, 8), kernel_shape=[1, 1], name=name)
        for i, name in enumerate(("one", "two"))
    ]
    model = load(finished(b, parts))
    trace = trace_model(model)
    assert next(group.layers for group in trace.groups if "one" in group.layers) == ("one", "two")
    keep = random_plan(trace, 3, 0.4)
    pruned = delete(model, trace, keep)
    prove(model, pruned, mask(model, trace, keep))
    assert {t.name for t in pruned.to_proto().graph.initializer} == {t.name for t in model.to_proto().graph.initializer}

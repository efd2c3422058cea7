"""Hidden units of LSTM, GRU and RNN: drawn networks, batch first, zero states, and what the trace says of the rest."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.printer
import onnx.reference
import pytest
from cases import build
from graphs import THOROUGH, Builder, Picker, as_half, load, random_plan
from hypothesis import given, note
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxprune.graph import io
from onnxprune.graph.analysis import Analysis, inspect
from onnxprune.graph.cost import CostModel, LayerCost
from onnxprune.graph.trace import trace
from onnxprune.metrics.outputs import relative_difference
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.mask import mask
from onnxprune.surgery.proof import TOLERANCE, prove

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
STEPS, BATCH = 5, 2
ACTIVATIONS = ("Sigmoid", "Tanh", "Softplus", "HardSigmoid", "Relu", "Softsign")
"""Some map 0 to 0, and some do not."""


def options(pick: Picker, op: str, directions: int) -> dict[str, Any]:
    """Draw the attributes of a layer."""
    found: dict[str, Any] = {}
    if pick.flag():
        found["clip"] = 0.7
    if op == "LSTM" and pick.flag():
        found["input_forget"] = 1
    if op == "GRU" and pick.flag():
        found["linear_before_reset"] = 1
    if pick.flag():
        found["activations"] = [pick.of(ACTIVATIONS) for _ in range({"LSTM": 3, "GRU": 2, "RNN": 1}[op] * directions)]
    return found


def state(b: Builder, pick: Picker, x: str, directions: int, hidden: int) -> str:
    """Draw an initial state: none, zeros of the batch size, a constant, or channels of a Gemm on the input."""
    kinds = ("none", "zeros", "computed") if b.batch == "batch" else ("none", "zeros", "constant", "computed")
    match pick.of(kinds):
        case "zeros":
            size = b.node("Gather", [b.node("Shape", [x], ()), b.ints(1)], (), axis=0)
            target = b.node("Concat", [b.ints(directions), size, b.ints(hidden)], (), axis=0)
            return b.node("ConstantOfShape", [target], (directions, hidden))
        case "constant":
            return b.normal(directions, BATCH, hidden)
        case "computed":
            mean = b.reduce_mean(b.node("Relu", ["x"]), (2,), keepdims=False)
            parts = [b.node("Unsqueeze", [b.gemm(mean, hidden), b.ints(0)], (hidden,)) for _ in range(directions)]
            return b.node("Concat", parts, (directions, hidden), axis=0)
    return ""


def layer(b: Builder, pick: Picker, x: str, features: int, outputs: int) -> tuple[list[str], int, int]:
    """Add a recurrent layer to a sequence, (steps, batch, features); return its outputs, directions and units."""
    op, direction, hidden = pick.of(tuple(GATES)), pick.of(tuple(DIRECTIONS)), pick.int(2, 7)
    directions, rows = DIRECTIONS[direction], GATES[op] * hidden
    inputs = [x, b.normal(directions, rows, features, scale=features**-0.5)]
    inputs.append(b.normal(directions, rows, hidden, scale=hidden**-0.5))
    inputs.append(b.normal(directions, 2 * rows, scale=0.5) if pick.flag() else "")
    lengths = b.batch != "batch" and pick.flag()
    inputs.append(b.const(np.array([STEPS - 2, STEPS], np.int32)) if lengths else "")
    inputs.append(state(b, pick, x, directions, hidden))
    if op == "LSTM":
        inputs.append(state(b, pick, x, directions, hidden))
        inputs.append(b.normal(directions, 3 * hidden) if pick.flag() else "")
    attributes = options(pick, op, directions)
    shapes = [()] * min(outputs, 3 if op == "LSTM" else 2)
    found = b.nodes_out(op, inputs, shapes, hidden_size=hidden, direction=direction, **attributes)
    return found, directions, hidden


def joined(b: Builder, pick: Picker, y: str, directions: int, hidden: int) -> str:
    """Turn (steps, directions, batch, hidden) into (steps, batch, directions x hidden), as exporters do."""
    if directions == 1 and pick.flag():
        return b.node("Squeeze", [y, b.ints(1)], ())
    turned = b.node("Transpose", [y], (), perm=[0, 2, 1, 3])
    return b.node("Reshape", [turned, b.ints(*pick.of(((0, 0, -1), (STEPS, -1, directions * hidden))))], ())


@st.composite
def recurrent_models(draw: Callable[[Any], Any]) -> tuple[onnx.ModelProto, int]:
    """Draw a network of a Conv, one to three recurrent layers and a head; return it and its number of free channels."""
    pick = Picker(draw)
    b = Builder((3, STEPS), batch=pick.of(("batch", BATCH)), seed=pick.int(0, 2**16))
    features, free = 3, 0
    x = "x"
    if pick.flag():
        features = free = pick.int(2, 6)
        weight = b.normal(features, 3, 1)
        x = b.node("Conv", [x, weight, b.normal(features)], (features, STEPS))
    x = b.node("Transpose", [x], (), perm=[2, 0, 1])
    depth = pick.int(1, 3)
    for number in range(1, depth + 1):
        found, directions, hidden = layer(b, pick, x, features, pick.int(1, 3) if number == depth else 1)
        free += hidden
        if number < depth:
            x, features = joined(b, pick, found[0], directions, hidden), directions * hidden
            if pick.flag():
                x = b.node("Relu", [x], ())
    parts = []
    for y in found:
        if y == found[0]:
            wide = b.node("Transpose", [joined(b, pick, y, directions, hidden)], (), perm=[1, 0, 2])
            n = STEPS * directions * hidden
        else:
            wide, n = b.node("Transpose", [y], (), perm=[1, 0, 2]), directions * hidden
        flat = b.node("Flatten", [wide], (n,))
        parts.append(b.gemm(flat, 3))
    proto = b.build(parts[0] if len(parts) == 1 else b.node("Sum", parts))
    if pick.of((False, False, True)):
        proto = as_half(proto)
        zero = helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float16)))
        for node in proto.graph.node:
            node.attribute.extend([zero] * (node.op_type == "ConstantOfShape"))
    note(onnx.printer.to_text(proto))
    return proto, free


@THOROUGH
@given(recurrent_models(), st.integers(0, 2**16), st.sampled_from((0.3, 0.5, 0.9)))
def test_a_pruned_network_equals_the_masked_one(drawn: tuple[onnx.ModelProto, int], seed: int, ratio: float) -> None:
    proto, free = drawn
    model = load(proto)
    found = trace(model)
    computed = {pin.reason for pin in found.pins}
    assert not any("state" in reason or "weight" in reason for reason in computed)
    assert int((~found.pinned).sum()) == free, computed
    keep = random_plan(found, seed, ratio)
    pruned = rewrite.delete(model, found, keep)
    assert prove(model, pruned, mask(model, found, keep)).difference <= TOLERANCE
    again = trace(load(pruned.to_proto()))
    everything = np.ones(again.n_channels, dtype=bool)
    assert CostModel(again).totals(everything) == pytest.approx(CostModel(found).totals(keep))


def cell(op: str, hidden: int = 6, *, layout: int = 0, directions: int = 2) -> onnx.ModelProto:
    """Return a bidirectional layer on a sequence of 4 features, with biases, peepholes and constant states."""
    rows = GATES[op] * hidden
    b = Builder((BATCH, 4), batch=STEPS)
    states = (BATCH, directions, hidden) if layout else (directions, BATCH, hidden)
    inputs = ["x", b.normal(directions, rows, 4, scale=0.5), b.normal(directions, rows, hidden, scale=0.4)]
    inputs += [b.normal(directions, 2 * rows), "", b.normal(*states)]
    inputs += [b.normal(*states), b.normal(directions, 3 * hidden)] if op == "LSTM" else []
    if layout:
        inputs[0] = b.node("Transpose", ["x"], (), perm=[1, 0, 2])
    direction = "bidirectional" if directions == 2 else "forward"
    y, h = b.nodes_out(
        op, inputs, [(), ()], name="cell", hidden_size=hidden, direction=direction, **({"layout": 1} if layout else {})
    )
    y = b.node("Transpose", [y], (), perm=[1, 0, 2, 3] if layout else [0, 2, 1, 3])
    h = b.node("Transpose", [h], (), perm=[0, 1, 2] if layout else [1, 0, 2])
    y = b.node("Reshape", [y, b.ints(STEPS, BATCH, directions * hidden)], ())
    h = b.node("Reshape", [h, b.ints(BATCH, directions * hidden)], ())
    sequence = b.node("MatMul", [y, b.normal(directions * hidden, 3)], (BATCH, 3), name="sequence")
    b.shapes[h] = (directions * hidden,)
    last = b.node("Add", [sequence, b.node("MatMul", [h, b.normal(directions * hidden, 3)], (3,))], (BATCH, 3))
    return b.build(last)


@pytest.mark.parametrize("op", GATES)
def test_batch_first(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "_refuse_unloadable", lambda model: None)  # onnxruntime has no such layer on the CPU
    proto = cell(op, layout=1)
    onnx.checker.check_model(proto, full_check=True)
    model = load(proto)
    found = trace(model)
    assert [(g.name, g.channels.size) for g in found.groups if not found.pinned[g.channels].any()] == [("cell", 6)]
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, 4)).astype(np.float32)
    for seed in range(3):
        keep = random_plan(found, seed, 0.5)
        outputs = [
            onnx.reference.ReferenceEvaluator(one.to_proto()).run(None, {"x": x})
            for one in (mask(model, found, keep), rewrite.delete(model, found, keep), model)
        ]
        assert relative_difference(outputs[0][0], outputs[1][0]) <= TOLERANCE
        assert relative_difference(outputs[0][0], outputs[2][0]) > TOLERANCE


@pytest.mark.parametrize("op", GATES)
def test_both_weights_count_at_every_step(op: str) -> None:
    model = load(cell(op))
    found = trace(model)
    elements = 2 * GATES[op] * 6 * (4 + 6)
    (layer,) = [layer for layer in inspect(Analysis(model, found, CostModel(found))).layers if layer.op == op]
    assert layer == LayerCost("cell", op, STEPS * BATCH * elements, elements, 6)


SIZE = "d = Shape (x) n = Gather (d, one) e = Concat <axis=0> (one, n, five)"


@pytest.mark.parametrize(
    ("state", "dropped"),
    [
        (f"{SIZE} z = ConstantOfShape (e)", True),
        (f"{SIZE} z = Expand (zero, e)", True),
        (f"{SIZE} c = ConstantOfShape (e) f = Transpose <perm=[2,0,1]> (c) z = Transpose <perm=[1,2,0]> (f)", True),
        (f"{SIZE} c = ConstantOfShape (e) f = Concat <axis=0> (c, c) z = Slice (f, one, two)", True),
        (f"{SIZE} c = ConstantOfShape (e) f = Squeeze (c, none) z = Unsqueeze (f, none)", True),
        ("z = Identity (fixed)", True),
        (f"{SIZE} z = ConstantOfShape <value = float[1] {{0.5}}> (e)", False),
        (f"{SIZE} c = ConstantOfShape (e) z = Exp (c)", False),
        (f"{SIZE} c = ConstantOfShape (e) f = Exp (c) g = Concat <axis=0> (c, f) z = Slice (g, one, two)", False),
        ("g = ReduceMean <keepdims=1> (x, two) f = Mul (g, zero) z = Tile (f, wide)", False),
    ],
)
@pytest.mark.parametrize("op", GATES)
def test_zero_states_are_left_out(op: str, state: str, dropped: bool) -> None:
    weights: dict[str, Any] = {
        "w": (1, 5 * GATES[op], 3), "r": (1, 5 * GATES[op], 5), "one": [1], "two": [2], "five": [5], "none": [0],
        "zero": np.zeros((1, 1, 1), np.float32), "fixed": np.zeros((1, 4, 5), np.float32), "wide": [1, 1, 5],
    }  # fmt: skip
    two = ", z" if op == "LSTM" else ""
    text = f"{state} _, h = {op} <hidden_size=5> (x, w, r, , , z{two}) y = ReduceSum <keepdims=0> (h, two)"
    proto = build(text, weights, inputs="float[1,4,3] x" if "fixed" in state or "Tile" in state else "float[6,N,3] x")
    model = load(proto)
    inputs = next(node for node in model.graph.nodes if node.op == op).inputs
    assert [bool(tensor.name) for tensor in inputs[5:]] == [not dropped] * (2 if op == "LSTM" else 1)
    assert (len(model.graph.nodes) == 2) == dropped
    assert any("zero initial states" in text for text in model.notes) == dropped
    everything = np.ones(trace(model).n_channels, dtype=bool)
    prove(model, rewrite.delete(model, trace(model), everything), model)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("op", "bidirectional", "batch_first", "final"),
    [("LSTM", True, True, False), ("LSTM", True, False, True), ("GRU", False, False, True), ("RNN", True, True, True)],
)
def test_as_torch_exports_it(op: str, bidirectional: bool, batch_first: bool, final: bool, tmp_path: Path) -> None:
    import torch

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv1d(4, 6, 3, padding=1)
            cell = getattr(torch.nn, op)
            self.cell = cell(6, 7, 2, bidirectional=bidirectional, batch_first=batch_first)
            self.head = torch.nn.Linear(7 * (1 + bidirectional), 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.conv(x))
            y, state = self.cell(x.permute(0, 2, 1) if batch_first else x.permute(2, 0, 1))
            last = state[0] if op == "LSTM" else state
            last = torch.cat((last[-2], last[-1]), 1) if bidirectional else last[-1]
            return self.head(last if final else y)

    path, x = tmp_path / "m.onnx", torch.zeros(2, 4, 9)
    names = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n", 2: "t"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Network().eval(), (x,), str(path), dynamo=False, opset_version=17, **names)
    model = io.load(path)
    found = trace(model)
    free = [int((~found.pinned[group.channels]).sum()) for group in found.groups]
    assert free == [6, 7, 7, 0]
    keep = random_plan(found, 0, 0.5)
    assert prove(model, rewrite.delete(model, found, keep), mask(model, found, keep)).difference <= TOLERANCE

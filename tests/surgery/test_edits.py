"""Every edit of a layer gives what the dense layer gives with what went set to zero: on drawn layers, and on whole networks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest
from edited_models import reformable, residual, some
from graphs import cnn_models, load
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from zoo_models import EXPORTERS, ZOO, fill

from onnxprune import options
from onnxprune.errors import PlanError
from onnxprune.graph.analysis import analyse
from onnxprune.graph.linear import Conv
from onnxprune.graph.model import Model
from onnxprune.graph.readers import linear_layers
from onnxprune.importance.edit_error import Gram
from onnxprune.runtime.session import SessionConfig, random_feeds, run_batch
from onnxprune.surgery.edits import GRANULARITIES, candidates, from_dict
from onnxprune.surgery.edits.apply import apply_edits
from onnxprune.surgery.edits.depth import DropBranch, Merge
from onnxprune.surgery.edits.inputs import DropInputs
from onnxprune.surgery.edits.kernel import Kernel
from onnxprune.surgery.edits.low_rank import LowRank
from onnxprune.surgery.edits.protocol import Edit
from onnxprune.surgery.proof import TOLERANCE, prove

LETTERS = "abcdefgh"


def layer_model(
    op: str, weight: np.ndarray, attrs: dict[str, Any], size: int, channels: int, bias: bool = True
) -> Model:
    """Return a model of one layer, of dynamic batch and fixed other sizes."""
    axes = weight.ndim - 2
    rng = np.random.default_rng(1)
    outputs = weight.shape[1] * attrs.get("group", 1) if op == "ConvTranspose" else weight.shape[0]
    tensors = [numpy_helper.from_array(weight, "w")]
    names = ["x", "w"]
    if bias:
        tensors.append(numpy_helper.from_array(rng.standard_normal(outputs).astype(np.float32), "b"))
        names.append("b")
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], "layer", **attrs)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, *[size] * axes])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@st.composite
def layers(draw: Any) -> tuple[Model, tuple[int, ...]]:
    """Draw a convolution, transposed or not, of one to three axes."""
    axes = draw(st.integers(1, 3))
    op = draw(st.sampled_from(("Conv", "Conv", "ConvTranspose")))
    kernel = tuple(draw(st.integers(1, 5 if axes < 3 else 3)) for _ in range(axes))
    groups = draw(st.sampled_from((1, 1, 2, 4)))
    inputs = draw(st.sampled_from((4, 8)))
    outputs = inputs if groups == 4 and inputs == 4 else draw(st.sampled_from((4, 8)))
    attrs: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 3)) for _ in range(axes)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(axes)],
        "group": groups,
    }
    pad = draw(st.sampled_from(("NUMBERS", "NUMBERS", "SAME_UPPER", "SAME_LOWER", "VALID")))
    if pad == "NUMBERS":
        attrs["pads"] = [draw(st.integers(0, 3)) for _ in range(2 * axes)]
    else:
        attrs["auto_pad"] = pad
        if pad != "VALID" and op == "Conv":
            attrs["dilations"] = [1] * axes  # onnxruntime pads dilated kernels by sizes of its own
    if op == "ConvTranspose":
        attrs["output_padding"] = [draw(st.integers(0, stride - 1)) for stride in attrs["strides"]]
        if pad != "NUMBERS":
            attrs.pop("output_padding")
    shape = (inputs, outputs // groups, *kernel) if op == "ConvTranspose" else (outputs, inputs // groups, *kernel)
    weight = np.random.default_rng(draw(st.integers(0, 2**16))).standard_normal(shape).astype(np.float32)
    return layer_model(op, weight, attrs, draw(st.integers(9, 12)), inputs, draw(st.booleans())), kernel


def taps(draw: Any, kernel: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    found = []
    for size in kernel:
        first = draw(st.integers(0, size - 1))
        step = draw(st.integers(1, 2))
        found.append((first, step, draw(st.integers(1, (size - 1 - first) // step + 1))))
    return tuple(found)


@st.composite
def edited(draw: Any) -> tuple[Model, Edit]:
    """Draw a layer and something to do to it."""
    model, kernel = draw(layers())
    layer = linear_layers(model.graph)[0]
    _, outputs, features = layer.matrix(layer.values).shape
    kind = draw(st.sampled_from(("kernel", "rank", "spatial", "input")))
    if kind == "input":
        return model, DropInputs("layer", draw(st.integers(1, 8)))
    if kind == "kernel":
        return model, Kernel("layer", taps(draw, kernel))
    if kind == "rank":
        return model, LowRank("layer", draw(st.integers(1, min(outputs, features))), "channel")
    return model, LowRank("layer", draw(st.integers(1, 3)), "spatial")


def outputs_of(model: Model, seed: int = 0, optimize: bool = False) -> list[np.ndarray]:
    shapes = model.signature.input_shapes(2)
    return run_batch(model.session(SessionConfig(optimize=optimize)), random_feeds(model.header, shapes, seed))


def apart(a: Model, b: Model) -> float:
    """Return the largest difference of two models, as a share of the range."""
    first, second = outputs_of(a), outputs_of(b)
    assert [x.shape for x in first] == [x.shape for x in second]
    return max(float(np.abs(x - y).max() / max(np.ptp(x), 1e-6)) for x, y in zip(first, second, strict=True))


@settings(max_examples=250, deadline=None)
@given(edited())
def test_a_rewritten_layer_is_the_masked_one(drawn: tuple[Model, Edit]) -> None:
    model, edit = drawn
    try:
        found = apply_edits(model, [edit])
    except PlanError as error:
        why = str(error.why)
        reasons = ("padding", "directions", "no convolution of one group", "inputs")
        assert any(reason in why for reason in reasons), why
        return
    assert apart(found.masked, found.model) < 1e-4
    assert apart(model, found.masked) == 0 or not same_weights(model, found.masked)


def same_weights(a: Model, b: Model) -> bool:
    return bool(np.array_equal(a.graph.nodes[0].inputs[1].values, b.graph.nodes[0].inputs[1].values))


@pytest.mark.parametrize("opset", [9, 12, 17])
def test_input_is_cut_where_pads_would_be_negative(opset: int) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 5, 5)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "layer", kernel_shape=[5, 5])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7))
    found = apply_edits(model, [Kernel("layer", ((1, 1, 3), (0, 2, 3)))])
    assert [node.op for node in found.model.graph.nodes] == ["Slice", "Conv"]
    proof = prove(model, found.model, found.masked, {"x": (1, 3, 11, 13)}, loaded=True)
    assert proof.difference <= TOLERANCE
    assert found.model.graph.nodes[1].inputs[1].shape == (4, 3, 3, 3)


def test_taps_that_see_nothing_but_padding_are_not_left_alone() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    attrs = {"kernel_shape": [3, 3], "dilations": [12, 12], "pads": [12] * 4}
    model = layer_model("Conv", weight, attrs, 10, 3)
    with pytest.raises(PlanError, match="cannot be made"):
        apply_edits(model, [Kernel("layer", ((0, 1, 1), (1, 1, 1)))])
    found = apply_edits(model, [Kernel("layer", ((1, 1, 1), (1, 1, 1)))])
    assert apart(found.masked, found.model) < 1e-4


# ------------------------------------------------------------------------------------------------------ whole networks


LIGHT = ("mnasnet1_0", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "shufflenet_v2_x1_0", "squeezenet1_1")
"""Networks that take seconds; `tools/blocks.py --zoo` goes over all of them."""
ZOO_CASES = [pytest.param(EXPORTERS[n % 2], name, id=f"{EXPORTERS[n % 2]}-{name}") for n, name in enumerate(LIGHT)]


def proven(model: Model, edits: list[Edit]) -> Model:
    """Make edits, hold what comes of them against the masked model, and return it."""
    found = apply_edits(model, edits)
    proof = prove(model, found.model, found.masked, analyse(model).trace.input_shapes, loaded=True)
    assert proof.difference <= TOLERANCE
    return found.model


@pytest.mark.parametrize(("exporter", "name"), ZOO_CASES)
def test_networks_are_the_masked_ones(exporter: str, name: str) -> None:
    model = load(fill(ZOO / f"{exporter}-{name}.onnx.z"))
    edits = reformable(model, some(model, np.random.default_rng(len(name)), 0.3))
    assert len(edits) > 5
    proven(model, edits)


@settings(max_examples=60, deadline=None)
@given(cnn_models(), st.integers(0, 2**16))
def test_drawn_networks_are_the_masked_ones_and_so_is_what_further_edits_make_of_them(
    proto: onnx.ModelProto, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    model = load(proto)
    for _ in range(2):
        model = proven(model, reformable(model, some(model, rng)))
        names = [t.name for node in model.graph.nodes for t in node.outputs if t.name]
        assert len(set(names)) == len(names)


def test_the_second_of_two_layers_becomes_two() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 6, 3, 3)).astype(np.float32)
    model = layer_model("Conv", weight, {"kernel_shape": [3, 3], "pads": [1] * 4}, 9, 6)
    for edit in (LowRank("layer", 6, "spatial"), LowRank("layer", 3, "channel"), LowRank("layer", 2, "channel")):
        found = apply_edits(model, [edit])
        assert apart(found.masked, found.model) < 1e-4
        model = found.model
    assert [node.name for node in model.graph.nodes] == ["layer__rank", "layer__rank_2", "layer__rank_3", "layer"]


# ----------------------------------------------------------------------------------------------------------- second order


def conv_layer(weight: np.ndarray) -> Conv:
    pads = [size // 2 for size in weight.shape[2:]] * 2
    model = layer_model("Conv", weight, {"kernel_shape": weight.shape[2:], "pads": pads}, 8, weight.shape[1])
    layer = linear_layers(model.graph)[0]
    assert isinstance(layer, Conv)
    return layer


def gram_of(weight: np.ndarray, seed: int = 0) -> tuple[Gram, np.ndarray]:
    """Return the Gram of a convolution on coloured rows, and the rows, (n, features)."""
    layer = conv_layer(weight)
    features = layer.matrix(layer.values).shape[2]
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((4 * features, features)) @ rng.standard_normal(
        (features, features)
    ) + rng.standard_normal(features)
    return Gram(layer, np.cov(rows.T, bias=True)[None], rows.mean(axis=0)[None]), rows


def left(gram: Gram, rows: np.ndarray, matrix: np.ndarray) -> float:
    """Return the error of a matrix and its best bias, as a share of the variance."""
    before = rows @ gram.matrix[0].T + gram.bias(gram.matrix)[0]
    after = rows @ matrix[0].T + gram.bias(matrix)[0]
    return float(((before - after) ** 2).sum() / ((before - before.mean(axis=0)) ** 2).sum())


@pytest.mark.parametrize(
    "edit",
    [
        Kernel("layer", ((1, 1, 1), (0, 1, 3))),
        Kernel("layer", ((0, 2, 2), (0, 1, 2))),
    ],
)
def test_errors_are_those_of_the_best_weights(edit: Kernel) -> None:
    gram, rows = gram_of(np.random.default_rng(3).standard_normal((6, 4, 3, 3)).astype(np.float32))
    (_, error), matrix = edit.refit(gram), edit.best(gram)
    assert left(gram, rows, matrix) == pytest.approx(error, rel=1e-6)
    assert not matrix[0][~np.broadcast_to(edit.masked(gram.layer) != 0, matrix.shape)[0]].any()
    rng = np.random.default_rng(0)
    for _ in range(20):  # no other weights of the same pattern do better
        other = matrix + 0.01 * rng.standard_normal(matrix.shape) * (matrix != 0)
        assert left(gram, rows, other) >= error
    assert left(gram, rows, edit.masked(gram.layer)) > error  # nor those without what makes up for it


@pytest.mark.parametrize("form", ["channel", "spatial"])
def test_errors_of_directions(form: Any) -> None:
    gram, rows = gram_of(np.random.default_rng(3).standard_normal((6, 4, 3, 3)).astype(np.float32))
    _, errors = gram.leading(form)
    assert (np.diff(errors) <= 1e-12).all()
    assert errors[-1] == pytest.approx(0, abs=1e-9)
    for rank in (1, 3, 5):
        plain = LowRank("layer", rank, form)
        edit, error = plain.refit(gram)
        assert error == errors[rank]
        np.testing.assert_allclose(plain.best(gram), edit.masked(gram.layer), atol=1e-9)
        if form == "channel":
            assert left(gram, rows, edit.masked(gram.layer)) == pytest.approx(error, rel=1e-6)
            assert left(gram, rows, plain.masked(gram.layer)) >= error - 1e-9


def test_inputs_that_go_are_those_that_others_make_up_for() -> None:
    """Input 2 is the sum of inputs 0 and 1, so that any one of the three is free; input 3 has no weight."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 5, 1, 1)).astype(np.float32)
    weight[:, 3] = 0
    layer = conv_layer(weight)
    rows = rng.standard_normal((500, 5))
    rows[:, 2] = rows[:, 0] + rows[:, 1]
    covariance = np.cov(rows.T, bias=True)[None]
    gram = Gram(layer, covariance + 1e-9 * np.eye(5), rows.mean(axis=0)[None])
    first = gram.removal(1)
    assert set(first.tolist()) == set(range(5))
    assert first[0] == 3 or first[1] == 3
    edit, error = DropInputs("layer", 3).refit(gram)
    assert error == pytest.approx(0, abs=1e-6)
    assert set(edit.channels.tolist()) >= {4}
    assert left(gram, rows, edit.best(gram)) == pytest.approx(0, abs=1e-6)
    assert DropInputs("layer", 2).refit(gram)[1] > 1e-3
    by_weight = Gram(layer, np.ones((1, 5)), np.zeros((1, 5)))
    norms = (weight**2).sum(axis=(0, 2, 3))
    assert by_weight.removal(1).tolist() == np.argsort(norms, kind="stable").tolist()


@pytest.mark.parametrize("taps", [1, 9])
def test_order_of_inputs_is_greedy_and_its_errors_are_those_of_the_best_weights(taps: int) -> None:
    side = 1 if taps == 1 else 3
    gram, rows = gram_of(np.random.default_rng(3).standard_normal((6, 7, side, side)).astype(np.float32))
    order = gram.removal(taps)
    for gone in range(1, 6):
        errors = {}
        for last in set(range(7)) - set(order[: gone - 1].tolist()):
            channels = np.setdiff1d(np.arange(7), [*order[: gone - 1], last])
            features = (channels[:, None] * taps + np.arange(taps)).reshape(-1)
            errors[last] = gram.regressed(features)[1]
        assert min(errors, key=errors.__getitem__) == order[gone - 1]
        edit, error = DropInputs("layer", 7 - gone).refit(gram)
        assert error == pytest.approx(errors[int(order[gone - 1])])
        assert left(gram, rows, edit.best(gram)) == pytest.approx(error, rel=1e-6)


def test_inputs_go_only_where_others_read_them_too() -> None:
    """The stream goes to a branch and to the sum; what the branch has inside is its own, and is deleted where it is written."""
    rng = np.random.default_rng(2)
    shapes = {"k0": (32, 3, 3, 3), "k1": (24, 32, 1, 1), "k2": (32, 24, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "k0"], ["a"], "stem"),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "k1"], ["b"], "inner"),
        helper.make_node("Relu", ["b"], ["c"], "relu2"),
        helper.make_node("Conv", ["c", "k2"], ["d"], "outer"),
        helper.make_node("Add", ["a", "d"], ["y"], "sum"),
    ]
    graph = helper.make_graph(
        nodes,
        "stream",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), name) for name, s in shapes.items()],
    )
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert [c.edit for c in DropInputs.candidates(model, 8)] == [DropInputs("inner", count) for count in (8, 16, 24)]
    found = apply_edits(model, [DropInputs("inner", 8)])
    assert apart(found.masked, found.model) < 1e-5
    gather = next(node for node in found.model.graph.nodes if node.op == "Gather")
    largest = np.argsort(-(numpy_helper.to_array(graph.initializer[1]) ** 2).sum(axis=(0, 2, 3)))[:8]
    assert gather.inputs[1].values.tolist() == sorted(largest.tolist())


def test_planted_taps_and_directions_are_found() -> None:
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((8, 6, 5, 5)).astype(np.float32)
    weight[:, :, 0] = weight[:, :, -1] = 0
    gram, _ = gram_of(weight)
    assert Kernel("layer", ((1, 1, 3), (0, 1, 5))).refit(gram)[1] == pytest.approx(0, abs=1e-9)
    assert Kernel("layer", ((1, 1, 3), (1, 1, 3))).refit(gram)[1] > 0.001
    low = (rng.standard_normal((8, 3)) @ rng.standard_normal((3, 54))).astype(np.float32).reshape(8, 6, 3, 3)
    _, errors = gram_of(low)[0].leading("channel")
    assert errors[3] == pytest.approx(0, abs=1e-9)
    assert errors[2] > 1e-3


# ------------------------------------------------------------------------------------------------------- what may be done


def test_branches_are_what_nothing_else_takes() -> None:
    model = residual()
    found = list(DropBranch.candidates(model, 1))
    assert [c.edit for c in found] == [DropBranch("sum", 0)]
    assert [model.graph.nodes[n].name for n in found[0].nodes] == ["inner", "relu", "outer", "sum"]


def test_a_branch_goes() -> None:
    model = residual()
    found = apply_edits(model, [DropBranch("sum", 0)])
    assert [node.name for node in found.model.graph.nodes] == [
        "stem",
        "relu2",
        "project",
        "expand",
        "pool",
        "flat",
        "head",
    ]
    assert apart(found.masked, found.model) < 1e-5
    assert apart(model, found.model) > 1e-2


def test_layers_with_nothing_between_are_merged_exactly() -> None:
    model = residual()
    assert [c.edit for c in Merge.candidates(model, 1)] == [Merge("project", "expand")]
    found = apply_edits(model, [Merge("project", "expand")])
    assert "project" not in [node.name for node in found.model.graph.nodes]
    assert apart(model, found.model) < 1e-5


def test_an_edit_is_what_is_read_back() -> None:
    edits = (
        Kernel("a", ((1, 1, 3), (0, 2, 2))),
        LowRank("a", 3, "spatial", np.ones((1, 4, 3))),
        DropInputs("a", 3, np.arange(3)),
        DropBranch("a", 1),
        Merge("a", "b"),
    )
    for edit in edits:
        assert from_dict(json.loads(json.dumps({**edit.to_dict(), "what": str(edit)})), "plan.json") == edit
    known = {"kind": "kernel", "layer": "a", "taps": [[0, 1, 1]]}
    for odd in (
        {"kind": "split", "filters": [1, 0]},
        {"kind": "grouped"},
        {"kind": ["rank"]},
        {},
        {"kind": "rank", "layer": "a"},
    ):
        with pytest.raises(PlanError, match="cannot be read") as error:
            from_dict({**{key: known[key] for key in known if key != "kind"}, **odd}, "plan.json")
    assert "missing form, rank" in str(error.value.why)


def test_the_command_line_lists_the_granularities_of_the_registry() -> None:
    assert ("filter", *GRANULARITIES) == options.GRANULARITIES


def test_a_layer_that_is_a_norm_has_no_edits() -> None:
    statistics = [np.ones(16, dtype=np.float32)] * 4
    names = ["scale", "offset", "mean", "variance"]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("BatchNormalization", ["a", *names], ["y"], "norm")],
        "norm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16, 4, 4])],
        [numpy_helper.from_array(values, name) for values, name in zip(statistics, names, strict=True)],
    )
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert linear_layers(model.graph)
    assert list(candidates(model, GRANULARITIES, 8)) == []


def test_an_edit_that_cannot_be_made_is_refused_by_name() -> None:
    for edit, why in (
        (Kernel("stem", ((2, 1, 3), (0, 1, 3))), "not within 3"),
        (Kernel("head", ((0, 1, 1),)), "no kernel"),
        (LowRank("stem", 9, "channel"), "directions"),
        (DropInputs("stem", 3), "has 3 inputs"),
        (DropInputs("stem", 2, np.arange(9)), "another layer"),
        (DropInputs("head", 12), "has 12 inputs"),
        (DropBranch("relu", 0), "no sum"),
        (Merge("inner", "outer"), "follow each other"),
        (LowRank("nothing", 1, "channel"), "no such layer"),
    ):
        with pytest.raises(PlanError) as error:
            apply_edits(residual(), [edit])
        assert why in str(error.value.why)
        assert error.value.where == edit.layer

"""Every edit of a layer gives what the dense layer gives with what went set to zero: on drawn layers, and on whole networks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import cnn_models, load
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from test_zoo import EXPORTERS, ZOO, fill

from onnxprune.errors import PlanError
from onnxprune.granularity import candidates
from onnxprune.granularity.edits import Depth, Edit, Grouped, Kernel, Merged, Rank, Split, from_dict, to_dict
from onnxprune.granularity.losses import Gram
from onnxprune.granularity.refusal import RefusalError
from onnxprune.granularity.rewriting import masked_matrix, reform
from onnxprune.graph.analysis import analyse
from onnxprune.graph.linear import Conv
from onnxprune.graph.model import Model
from onnxprune.graph.readers import linear_layers
from onnxprune.graph.shapes import concrete_shapes
from onnxprune.graph.trace import node_labels
from onnxprune.runtime.session import SessionConfig, random_feeds, run_batch
from onnxprune.surgery import channels as rewrite
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
    groups, outputs, features = layer.matrix(layer.values).shape
    total, inputs = groups * outputs, layer.values.shape[0 if model.graph.nodes[0].op == "ConvTranspose" else 1]
    kind = draw(st.sampled_from(("kernel", "split", "rank", "spatial", "group")))
    order = tuple(draw(st.permutations(range(total))))
    if kind == "kernel":
        return model, Kernel("layer", taps(draw, kernel))
    if kind == "split":
        return model, Split("layer", taps(draw, kernel), order, draw(st.integers(1, total - 1)))
    if kind == "group":
        return model, Grouped("layer", 2, tuple(draw(st.permutations(range(inputs)))), order)
    if kind == "rank":
        return model, Rank("layer", draw(st.integers(1, min(outputs, features))), "channel")
    return model, Rank("layer", draw(st.integers(1, 3)), "spatial")


def outputs_of(model: Model, seed: int = 0, optimize: bool = False) -> list[np.ndarray]:
    shapes = concrete_shapes(model.header, 2)
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
        found = reform(model, [edit], {})
    except PlanError as error:
        why = str(error.why)
        reasons = (
            "its padding", "nothing but its padding", "taps at its edge", "directions", "no convolution of one group", "groups", "transposed", "in two parts",
        )  # fmt: skip
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
    found = reform(model, [Kernel("layer", ((1, 1, 3), (0, 2, 3)))], {})
    assert [node.op for node in found.model.graph.nodes] == ["Slice", "Conv"]
    proof = prove(model, found.model, found.masked, {"x": (1, 3, 11, 13)}, loaded=True)
    assert proof.difference <= TOLERANCE
    assert found.model.graph.nodes[1].inputs[1].shape == (4, 3, 3, 3)


def test_taps_that_see_nothing_but_padding_are_not_left_alone() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    attrs = {"kernel_shape": [3, 3], "dilations": [12, 12], "pads": [12] * 4}
    model = layer_model("Conv", weight, attrs, 10, 3)
    with pytest.raises(PlanError, match="cannot be given"):
        reform(model, [Kernel("layer", ((0, 1, 1), (1, 1, 1)))], {})
    found = reform(model, [Kernel("layer", ((1, 1, 1), (1, 1, 1)))], {})
    assert apart(found.masked, found.model) < 1e-4


# ------------------------------------------------------------------------------------------------------ whole networks


def some(model: Model, rng: np.random.Generator, share: float = 1.0) -> Iterator[Edit]:
    """Yield an edit of some kind for each layer, and for some sums."""
    labels = node_labels(model.graph)
    for n, layer in linear_layers(model.graph).items():
        if rng.random() > share:
            continue
        groups, outputs, features = layer.matrix(layer.values).shape
        found: list[Edit] = [Rank(labels[n], max(1, min(outputs, features) // 3), "channel")]
        conv = isinstance(layer, Conv)
        inputs = layer.values.shape[1] if conv else features
        if conv and max(layer.kernel, default=1) > 1:
            cut = []
            for size in layer.kernel:
                first, step = int(rng.integers(0, size)), int(rng.integers(1, 3))
                cut.append((first, step, int(rng.integers(1, (size - 1 - first) // step + 2))))
            found.append(Kernel(labels[n], tuple(cut)))
            order = tuple(map(int, rng.permutation(groups * outputs)))
            found.append(Split(labels[n], tuple(cut), order, max(1, len(order) // 2)))
            found.append(Rank(labels[n], max(1, min(outputs, features // 9) // 2), "spatial"))
        if groups == 1 and not outputs % 2 and not inputs % 2:
            orders = (tuple(map(int, rng.permutation(size))) for size in (inputs, outputs))
            found.append(Grouped(labels[n], 2, *orders))
        yield found[int(rng.integers(len(found)))]
    yield from (c.edit for c in candidates.branches(model) if rng.random() < 0.3)


def reformable(model: Model, edits: Iterator[Edit]) -> list[Edit]:
    """Return the edits that a model lets one make, one to a layer."""
    numbers = {label: n for n, label in enumerate(node_labels(model.graph))}
    layers = linear_layers(model.graph)
    found: dict[str, Edit] = {}
    for edit in edits:
        with contextlib.suppress(RefusalError):
            if not isinstance(edit, Depth):
                masked_matrix(edit, layers[numbers[edit.layer]], None)
            found.setdefault(edit.layer, edit)
    while True:
        try:
            reform(model, list(found.values()), {})
            return list(found.values())
        except PlanError as error:
            del found[str(error.where)]


LIGHT = ("efficientnet_b0", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "shufflenet_v2_x1_0", "squeezenet1_1")  # fmt: skip
"""Networks that take seconds; `tools/blocks.py --zoo` goes over all of them."""
ZOO_CASES = [pytest.param(EXPORTERS[n % 2], name, id=f"{EXPORTERS[n % 2]}-{name}") for n, name in enumerate(LIGHT)]


def proven(model: Model, edits: list[Edit]) -> Model:
    """Make edits, hold what comes of them against the masked model, and return it."""
    found = reform(model, edits, {})
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
    for edit in (Rank("layer", 6, "spatial"), Rank("layer", 3, "channel"), Rank("layer", 2, "channel")):
        found = reform(model, [edit], {})
        assert apart(found.masked, found.model) < 1e-4
        model = found.model
    assert [node.name for node in model.graph.nodes] == ["layer__rank", "layer__rank_2", "layer__rank_3", "layer"]


# ------------------------------------------------------------------------------------------------------- orders of channels


@settings(max_examples=60, deadline=None)
@given(cnn_models(), st.integers(0, 2**16))
def test_channels_in_another_order_change_nothing(proto: onnx.ModelProto, seed: int) -> None:
    model = load(proto)
    trace = analyse(model).trace
    rng = np.random.default_rng(seed)
    order = np.arange(trace.n_channels)
    for group in trace.groups:
        free = group.channels[~trace.pinned[group.channels]]
        order[free] = rng.permutation(free)
    found = rewrite.permute(model, trace, order)
    if found is not None:
        prove(model, found, model, trace.input_shapes, loaded=True)


def test_channels_of_a_chain_change_places(tiny_path: Any) -> None:
    from onnxprune.graph.io import load as load_file

    model = load_file(tiny_path)
    trace = analyse(model).trace
    order = np.arange(trace.n_channels)
    order[trace.groups[0].channels] = trace.groups[0].channels[::-1]
    found = rewrite.permute(model, trace, order)
    assert found is not None
    np.testing.assert_array_equal(found.graph.nodes[0].inputs[1].values, model.graph.nodes[0].inputs[1].values[::-1])
    prove(model, found, model, trace.input_shapes, loaded=True)


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
        Split("layer", ((1, 1, 1), (1, 1, 1)), (3, 1, 0, 2, 4, 5), 2),
        Grouped("layer", 2, (2, 0, 3, 1), (5, 1, 0, 2, 3, 4)),
    ],
    ids=lambda edit: type(edit).__name__,
)
def test_errors_are_those_of_the_best_weights(edit: Any) -> None:
    gram, rows = gram_of(np.random.default_rng(3).standard_normal((6, 4, 3, 3)).astype(np.float32))
    matrix, error = gram.without(edit)
    assert left(gram, rows, matrix) == pytest.approx(error, rel=1e-6)
    assert not matrix[0][~np.broadcast_to(masked_matrix(edit, gram.layer, None) != 0, matrix.shape)[0]].any()
    rng = np.random.default_rng(0)
    for _ in range(20):  # no other weights of the same pattern do better
        other = matrix + 0.01 * rng.standard_normal(matrix.shape) * (matrix != 0)
        assert left(gram, rows, other) >= error
    assert left(gram, rows, masked_matrix(edit, gram.layer, None)) > error  # nor those without what makes up for it


@pytest.mark.parametrize("form", ["channel", "spatial"])
def test_errors_of_directions(form: Any) -> None:
    gram, rows = gram_of(np.random.default_rng(3).standard_normal((6, 4, 3, 3)).astype(np.float32))
    basis, errors = gram.directions() if form == "channel" else gram.separable()
    assert (np.diff(errors) <= 1e-12).all()
    assert errors[-1] == pytest.approx(0, abs=1e-9)
    for rank in (1, 3, 5):
        matrix = gram.projected(basis, rank, form == "spatial")
        np.testing.assert_allclose(matrix, masked_matrix(Rank("layer", rank, form), gram.layer, basis), atol=1e-9)
        if form == "channel":
            assert left(gram, rows, matrix) == pytest.approx(errors[rank], rel=1e-6)
            plain = masked_matrix(Rank("layer", rank, form), gram.layer, None)
            assert left(gram, rows, plain) >= errors[rank] - 1e-9


@pytest.mark.parametrize("kind", ["split", "group"])
def test_edits_of_fewer_channels_are_put_in_the_terms_of_all(kind: str) -> None:
    wide, _ = gram_of(np.random.default_rng(0).standard_normal((16, 8, 3, 3)).astype(np.float32))
    taps = ((0, 1, 3), (1, 1, 1))
    narrow: Split | Grouped = Split("layer", taps, tuple(range(8)), 4)
    if kind == "group":
        narrow = Grouped("layer", 2, tuple(range(4)), tuple(range(8)))
    edit = wide.anew(narrow)
    assert edit is not None
    masked_matrix(edit, wide.layer, None)  # refuses what does not fit
    if isinstance(edit, Split):
        assert edit.count == 8
        assert edit.filters == wide.dispensable(edit)
    assert wide.anew(Grouped("layer", 3, tuple(range(3)), tuple(range(6)))) is None


def test_planted_blocks_are_found() -> None:
    rng = np.random.default_rng(5)
    weight = np.zeros((16, 16, 3, 3), dtype=np.float32)
    for block in range(4):
        part = slice(4 * block, 4 * block + 4)
        weight[part, part] = rng.standard_normal((4, 4, 3, 3))
    weight = weight[rng.permutation(16)][:, rng.permutation(16)]
    gram, _ = gram_of(weight)
    inputs, outputs = gram.blocks(4)
    edit = Grouped("layer", 4, inputs, outputs)
    np.testing.assert_allclose(masked_matrix(edit, gram.layer, None), gram.matrix)
    assert gram.without(edit)[1] == pytest.approx(0, abs=1e-9)


def test_planted_taps_directions_and_filters_are_found() -> None:
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((8, 6, 5, 5)).astype(np.float32)
    weight[:, :, 0] = weight[:, :, -1] = 0
    weight[[1, 4, 6], :, :, :1] = weight[[1, 4, 6], :, :, -1:] = 0
    gram, _ = gram_of(weight)
    assert gram.without(Kernel("layer", ((1, 1, 3), (0, 1, 5))))[1] == pytest.approx(0, abs=1e-9)
    assert gram.without(Kernel("layer", ((1, 1, 3), (1, 1, 3))))[1] > 0.001
    filters = gram.dispensable(Split("layer", ((1, 1, 3), (1, 1, 3)), tuple(range(8)), 3))
    assert filters[:3] == (1, 4, 6)
    low = (rng.standard_normal((8, 3)) @ rng.standard_normal((3, 54))).astype(np.float32).reshape(8, 6, 3, 3)
    _, errors = gram_of(low)[0].directions()
    assert errors[3] == pytest.approx(0, abs=1e-9)
    assert errors[2] > 1e-3


# ------------------------------------------------------------------------------------------------------- what may be done


def residual() -> Model:
    """Return two residual blocks, an expansion after a projection with nothing in between, and a head."""
    rng = np.random.default_rng(2)
    shapes = {
        "k0": (8, 3, 3, 3),
        "k1": (8, 8, 3, 3),
        "k2": (8, 8, 3, 3),
        "k3": (4, 8, 1, 1),
        "k4": (12, 4, 3, 3),
        "m": (12, 5),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k0"], ["a"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "k1"], ["b"], "inner", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["b"], ["c"], "relu"),
        helper.make_node("Conv", ["c", "k2"], ["d"], "outer", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["a", "d"], ["e"], "sum"),
        helper.make_node("Relu", ["e"], ["f"], "relu2"),
        helper.make_node("Conv", ["f", "k3"], ["g"], "project"),
        helper.make_node("Conv", ["g", "k4"], ["h"], "expand", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["h"], ["i"], "pool"),
        helper.make_node("Flatten", ["i"], ["j"], "flat"),
        helper.make_node("Gemm", ["j", "m"], ["y"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name) for name, shape in shapes.items()],
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_branches_are_what_nothing_else_takes() -> None:
    model = residual()
    found = list(candidates.branches(model))
    assert [c.edit for c in found] == [Depth("sum", 0)]
    assert [model.graph.nodes[n].name for n in found[0].nodes] == ["inner", "relu", "outer", "sum"]


def test_a_branch_goes() -> None:
    model = residual()
    found = reform(model, [Depth("sum", 0)], {})
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
    assert [c.edit for c in candidates.pairs(model)] == [Merged("project", "expand")]
    found = reform(model, [Merged("project", "expand")], {})
    assert "project" not in [node.name for node in found.model.graph.nodes]
    assert apart(model, found.model) < 1e-5


def test_an_edit_is_what_is_read_back() -> None:
    edits = (
        Kernel("a", ((1, 1, 3), (0, 2, 2))), Split("a", ((1, 1, 1),), (2, 0, 1), 1), Grouped("a", 2, (1, 0), (0, 1)),
        Rank("a", 3, "spatial"), Depth("a", 1), Merged("a", "b"),
    )  # fmt: skip
    import json

    for edit in edits:
        assert from_dict(json.loads(json.dumps(to_dict(edit))), "plan.json") == edit
    with pytest.raises(PlanError, match="cannot be read"):
        from_dict({"kind": "fold"}, "plan.json")


def test_an_edit_that_cannot_be_made_is_refused_by_name() -> None:
    for edit, why in (
        (Kernel("stem", ((2, 1, 3), (0, 1, 3))), "not within 3"),
        (Kernel("head", ((0, 1, 1),)), "no kernel"),
        (Rank("stem", 9, "channel"), "directions"),
        (Grouped("stem", 2, (0, 1, 2), tuple(range(8))), "groups"),
        (Depth("relu", 0), "no sum"),
        (Merged("inner", "outer"), "follow each other"),
        (Rank("nothing", 1, "channel"), "no such layer"),
    ):
        with pytest.raises(PlanError) as error:
            reform(residual(), [replace(edit)], {})
        assert why in str(error.value.why)
        assert error.value.where == edit.layer

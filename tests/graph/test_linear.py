"""Layers as matrices: matrix times rows plus bias equals the output of onnxruntime, before and after `write`."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from graphs import THOROUGH, Picker, load
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph.linear import Conv, Linear, Norm, Product, write_together
from onnxprune.graph.model import Model
from onnxprune.graph.readers import Unit, linear_layers, linear_of, units_of
from onnxprune.runtime.session import UNOPTIMIZED, open_session, run_batch

SEEDS = st.integers(0, 2**16)
Array = np.ndarray[Any, Any]


@dataclass
class Case:
    """A layer from input "x" to output "y", and the nodes behind it; `kind` is counted for coverage."""

    nodes: list[onnx.NodeProto]
    x_shape: Sequence[int]
    y_rank: int
    seed: int
    constants: dict[str, Array] = field(default_factory=dict)
    results: Sequence[tuple[str, int]] = ()
    opset: int = 17
    kind: str = ""

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def constant(self, name: str, *shape: int, positive: bool = False) -> str:
        value = self.rng.standard_normal(shape)
        self.constants[name] = (np.abs(value) + 0.1 if positive else value).astype(np.float32)
        return name

    def proto(self, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
        infos = [
            helper.make_tensor_value_info(name, kind, [None] * rank)
            for name, rank in (("x", len(self.x_shape)), ("y", self.y_rank), *self.results)
        ]
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        weights = [numpy_helper.from_array(value.astype(dtype), name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "layer", infos[:1], infos[1:], weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def input(self) -> Array:
        return self.rng.standard_normal(self.x_shape).astype(np.float32)


def loaded(case: Case) -> Model:
    return load(case.proto(), {"x": tuple(case.x_shape)})


def run(model: Model, x: Array) -> list[Array]:
    return run_batch(open_session(model.to_proto(), UNOPTIMIZED), {"x": x})


def layer_of(model: Model) -> Linear:
    layer = linear_of(next(node for node in model.graph.nodes if node.outputs[0].name == "y"))
    assert layer is not None
    return layer


def close(one: Array, two: Array) -> None:
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def check(case: Case) -> bool:
    """Compare a layer with onnxruntime, unchanged and with another matrix and bias; tell whether an output exists."""
    x = case.input()
    try:
        model = loaded(case)
        y, *after = run(model, x)
    except ModelError:  # the output would be empty
        return False
    layer = layer_of(model)
    before = model.to_proto().SerializeToString()
    matrix, bias = layer.effective()
    assert matrix.dtype == bias.dtype == np.float64
    assert np.array_equal(layer.unmatrix(layer.matrix(layer.values)), layer.values)

    count = layer.positions(y)
    every = np.arange(count)
    rows, outputs = layer.rows(x, every), layer.outputs(y, every)
    assert rows.shape == (len(matrix), count, matrix.shape[2])
    assert outputs.shape == (len(matrix), count, matrix.shape[1])
    assert rows.dtype == outputs.dtype == np.float32
    assert y.shape[layer.channel_axis] == len(matrix) * matrix.shape[1] == bias.size
    close(rows @ matrix.swapaxes(1, 2) + bias[:, None], outputs)
    assert np.array_equal(
        layer.outputs(y, every).swapaxes(0, 1).reshape(-1), np.moveaxis(y, layer.channel_axis, -1).reshape(-1)
    )

    for pick in (case.rng.permutation(count), case.rng.choice(count, 1 + count // 3)):
        assert np.array_equal(layer.rows(x, pick), rows[:, pick])
        assert np.array_equal(layer.outputs(y, pick), outputs[:, pick])

    other = model.copy()
    target = layer_of(other)
    assert target.has_bias == layer.has_bias
    new = case.rng.standard_normal(matrix.shape)
    shift = case.rng.standard_normal(bias.shape) if layer.has_bias else None
    target.write(new, shift)
    onnx.checker.check_model(other.to_proto(), full_check=True)
    z, *after_z = run(other, x)
    adds = getattr(layer, "adds", None)
    inside = np.zeros_like(bias) if shift is None or adds else shift
    written, offset = target.effective()
    close(written, new)
    close(offset, bias if shift is None else inside)
    close(rows @ new.swapaxes(1, 2) + offset[:, None], target.outputs(z, every))
    if adds:
        assert shift is not None
        moved = [layer.outputs(b, every) - layer.outputs(a, every) for a, b in ((y, after[0]), (z, after_z[0]))]
        close(moved[0] + shift[:, None], moved[1])
    target.write(matrix, None)
    close(target.effective()[1], offset)
    close(target.effective()[0], matrix)
    assert model.to_proto().SerializeToString() == before, "the original has changed"
    return True


# ---------------------------------------------------------------------------------------------------------------- layers


def conv_case(pick: Picker, seed: int, transposed: bool) -> Case:
    rank = pick.of((2, 1, 3))
    kernel, stride, dilation = ([pick.int(1, most) for _ in range(rank)] for most in (3, 3, 2))
    kind = pick.of(("plain", "grouped", "depthwise"))
    group = {"plain": 1, "grouped": 2, "depthwise": pick.int(2, 3)}[kind]
    inputs, outputs = (1 if kind == "depthwise" else pick.int(1, 3) for _ in range(2))
    outputs = pick.int(1, 2) if kind == "depthwise" else outputs
    sizes = [pick.int(1, 7) for _ in range(rank)]
    auto = pick.of(("NOTSET", "", "VALID", "SAME_UPPER", "SAME_LOWER"))
    if not transposed and auto.startswith("SAME"):
        dilation = [1] * rank  # onnxruntime has no other
    attrs: dict[str, Any] = {"strides": stride, "dilations": dilation, "group": group}
    if auto:
        attrs["auto_pad"] = auto
    if auto in ("NOTSET", "") and pick.flag():  # onnxruntime refuses both
        attrs["pads"] = [pick.int(0, 2) for _ in range(2 * rank)]
    if transposed and pick.flag():
        attrs["output_padding"] = [pick.int(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)]
    extra = attrs.get("output_padding", [0] * rank)
    whole = [
        (n - 1) * s + (k - 1) * d + 1 + e for n, s, k, d, e in zip(sizes, stride, kernel, dilation, extra, strict=True)
    ]
    if transposed and pick.flag():
        attrs.pop("pads", None)
        attrs["output_shape"] = [max(1, w - pick.int(-1, 3)) for w in whole]
        auto += "+shape"
    case = Case([], [pick.int(1, 2), group * inputs, *sizes], rank + 2, seed, kind=f"{kind} {auto}")
    first = (group * inputs, outputs) if transposed else (group * outputs, inputs)
    operands = ["x", case.constant("w", *first, *kernel)]
    if pick.flag():
        operands.append(case.constant("b", group * outputs))
    if pick.flag():
        attrs["kernel_shape"] = kernel
    case.nodes = [helper.make_node("ConvTranspose" if transposed else "Conv", operands, ["y"], **attrs)]
    return case


@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions(transposed: bool) -> None:
    seen: Counter[str] = Counter()

    @settings(THOROUGH, max_examples=300)
    @given(st.data(), SEEDS)
    def examples(data: st.DataObject, seed: int) -> None:
        case = conv_case(Picker(data.draw), seed, transposed)
        if check(case):
            seen.update(case.kind.split())

    examples()
    wanted = ["plain", "grouped", "depthwise", "SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"]
    wanted += ["SAME_UPPER+shape", "SAME_LOWER+shape", "NOTSET+shape"] * transposed
    assert all(seen[kind] >= 8 for kind in wanted), seen


@THOROUGH
@given(st.data(), SEEDS)
def test_gemm(data: st.DataObject, seed: int) -> None:
    pick = Picker(data.draw)
    m, k, n = pick.int(2, 4), pick.int(1, 4), pick.int(2, 4)
    trans = [pick.int(0, 1), pick.int(0, 1)]
    shapes = [(k, m) if trans[0] else (m, k), (n, k) if trans[1] else (k, n)]
    side = pick.of((1, 0))
    attrs: dict[str, Any] = {"transA": trans[0], "transB": trans[1]}
    if pick.flag():
        attrs["alpha"] = pick.of((2.0, -0.5))
    if pick.flag():
        attrs["beta"] = pick.of((0.5, -2.0, 0.0))
    case = Case([], shapes[1 - side], 2, seed)
    operands = ["x", "x"]
    operands[side] = case.constant("w", *shapes[side])
    form = pick.of(("none", "vector", "matrix", "empty"))
    if form == "empty":
        operands.append("")
    elif form != "none":
        operands.append(case.constant("c", *((m, 1) if side == 0 else (n,) if form == "vector" else (1, n))))
    case.nodes = [helper.make_node("Gemm", operands, ["y"], **attrs)]
    assert check(case)
    layer = layer_of(loaded(case))
    assert layer.has_bias == (attrs.get("beta") != 0)


@THOROUGH
@given(st.data(), SEEDS)
def test_matmul_and_the_add_behind_it(data: st.DataObject, seed: int) -> None:
    pick = Picker(data.draw)
    side = pick.of((1, 0))
    rank = pick.of((3, 2, 4, 1) if side else (3, 2, 4))
    batch = [pick.int(1, 3) for _ in range(rank - 2)]
    k, n = pick.int(1, 4), pick.int(1, 4)
    m = [pick.int(1, 4)] * (rank > 1)
    lead = [1] * pick.of((0, 0, 1, 2))
    y_rank = max(rank, len(lead) + 2 - (rank == 1))
    case = Case([], [*batch, *m, k] if side else [*batch, k, *m], y_rank, seed)
    case.constant("w", *lead, *((k, n) if side else (n, k)))
    case.nodes = [helper.make_node("MatMul", ["x", "w"] if side else ["w", "x"], ["y"])]
    axis = -1 if side else -2
    adds = pick.flag()
    if adds:
        shape = [1] * pick.int(-axis, y_rank)
        shape[axis] = n
        case.constant("b", *shape)
        case.nodes.append(helper.make_node("Add", ["y", "b"] if pick.flag() else ["b", "y"], ["z"]))
        case.results = [("z", y_rank)]
    assert check(case)
    layer = layer_of(loaded(case))
    assert isinstance(layer, Product)
    assert layer.has_bias == adds
    assert layer.channel_axis == axis


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("equation", "x_shape", "w_shape", "axis"),
    [
        ("bik,kj->bij", (2, 3, 4), (4, 5), -1),
        ("bik,jk->bij", (2, 3, 4), (5, 4), -1),
        ("bchw,dc->bdhw", (2, 4, 3, 5), (6, 4), -3),
        ("b c h w , d c -> b d h w", (2, 4, 3, 5), (6, 4), -3),
        ("bchw,cd->bhwd", (2, 4, 3, 5), (4, 6), -1),
        ("bik,kj->bji", (2, 3, 4), (4, 5), -2),
        ("...k,kj->...j", (2, 3, 4), (4, 5), -1),
        ("ck,...c->...k", (4, 5), (2, 3, 4), -1),
        ("bc...,dc->bd...", (2, 4, 3, 5), (6, 4), 1),
    ],
)
def test_einsum(equation: str, x_shape: Sequence[int], w_shape: Sequence[int], axis: int, first: bool) -> None:
    if equation.startswith("ck"):
        x_shape, w_shape = w_shape, x_shape
        first = False
    terms, result = equation.split("->")
    one, two = terms.split(",")
    if equation.startswith("ck"):
        one, two = two, one
    case = Case([], x_shape, len(x_shape), 0)
    case.constant("w", *w_shape)
    operands, sides = (["x", "w"], (one, two)) if first else (["w", "x"], (two, one))
    case.nodes = [helper.make_node("Einsum", operands, ["y"], equation=f"{sides[0]},{sides[1]}->{result}")]
    assert check(case)
    assert layer_of(loaded(case)).channel_axis == axis
    if axis >= 0:
        return
    case.constant("b", w_shape[0] if two[0] in result else w_shape[1], *[1] * (-1 - axis))
    case.nodes.append(helper.make_node("Add", ["b", "y"], ["z"]))
    case.results = [("z", len(x_shape))]
    assert check(case)
    assert layer_of(loaded(case)).has_bias


@pytest.mark.parametrize(
    ("equation", "x_shape", "w_shape"),
    [
        ("bik,kj->jib", (2, 3, 4), (4, 3)),  # positions in another order
        ("bik,kj->bi", (2, 3, 4), (4, 3)),
        ("bik,ik->bi", (2, 3, 4), (3, 4)),
        ("bik,k->bi", (2, 3, 4), (4,)),
        ("bik,ikj->bij", (2, 3, 4), (3, 4, 5)),
        ("bik,kj", (2, 3, 4), (4, 3)),
        ("bki,kk->bi", (2, 4, 3), (4, 4)),
        ("bkk,kj->bj", (2, 4, 4), (4, 3)),
        ("bi,kj->bij", (2, 3), (4, 5)),
        ("bjk,kj->bj", (2, 3, 4), (4, 3)),
    ],
)
def test_an_einsum_that_is_no_plain_product_is_none(
    equation: str, x_shape: Sequence[int], w_shape: Sequence[int]
) -> None:
    case = Case([], x_shape, 2, 0)
    case.constant("w", *w_shape)
    case.nodes = [helper.make_node("Einsum", ["x", "w"], ["y"], equation=equation)]
    graph = gs.import_onnx(case.proto())
    assert linear_of(graph.nodes[0]) is None


@THOROUGH
@given(st.data(), SEEDS)
def test_batchnorm(data: st.DataObject, seed: int) -> None:
    pick = Picker(data.draw)
    channels = pick.int(1, 4)
    shape = [pick.int(1, 3), channels, *(pick.int(1, 3) for _ in range(pick.int(0, 3)))]
    case = Case([], shape, len(shape), seed, opset=pick.of((9, 15, 17)))
    operands = [case.constant(name, channels, positive=name == "v") for name in "sbmv"]
    attrs = {"epsilon": 0.25} if pick.flag() else {}
    case.nodes = [helper.make_node("BatchNormalization", ["x", *operands], ["y"], **attrs)]
    assert check(case)
    assert isinstance(layer_of(loaded(case)), Norm)


# ------------------------------------------------------------------------------------------------------------- constants


def conv(shape: Sequence[int] = (1, 3, 4, 4)) -> Case:
    case = Case([], shape, len(shape), 0)
    case.constant("w", 2, 3, 3, 3)
    case.constant("b", 2)
    case.nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"])]
    return case


def names(model: Model) -> list[str]:
    proto = model.to_proto()
    return sorted(tensor.name for tensor in proto.graph.initializer)


def test_a_constant_without_other_readers_keeps_its_name() -> None:
    model = loaded(conv())
    layer = layer_of(model)
    matrix, bias = layer.effective()
    layer.write(2 * matrix, 2 * bias)
    assert names(model) == ["b", "w"]


def test_a_shared_constant_stays_one_constant() -> None:
    case = conv()
    case.nodes.append(helper.make_node("Conv", ["x", "w", "b"], ["z"]))
    case.results = [("z", 4)]
    model = loaded(case)
    x = case.input()
    y, z = run(model, x)
    layers = linear_layers(model.graph)
    assert units_of(model.graph, layers) == (Unit((0, 1), fixed=False, fixed_bias=False),)
    matrix, bias = layers[0].effective()
    write_together(list(layers.values()), 2 * matrix, bias)
    assert names(model) == ["b", "w"]
    close(run(model, x), [2 * y, 2 * z])


def test_biases_of_layers_that_share_a_weight_change_by_the_same() -> None:
    case = conv()
    case.constant("c", 2)
    case.nodes += [helper.make_node("Conv", ["x", "w", "c"], ["u"]), helper.make_node("Conv", ["x", "w"], ["v"])]
    case.nodes.append(helper.make_node("Conv", ["x", "w"], ["z"]))
    case.results = [(name, 4) for name in "uvz"]
    model = loaded(case)
    x = case.input()
    before = run(model, x)
    layers = list(linear_layers(model.graph).values())
    write_together(layers, None, np.full_like(layers[0].effective()[1], 3.0))
    assert len(names(model)) == 4  # the layers without a bias have one together
    close(run(model, x), [value + 3 for value in before])


def test_a_constant_that_one_node_takes_several_times() -> None:
    case = Case([], (2, 3, 2), 3, 0)
    case.constant("c", 3, positive=True)
    case.nodes = [helper.make_node("BatchNormalization", ["x", "c", "c", "c", "c"], ["y"])]
    model = loaded(case)
    assert units_of(model.graph, linear_layers(model.graph)) == (Unit((0,), fixed=True, fixed_bias=True),)


def test_a_constant_that_a_body_takes_too() -> None:
    case = conv()
    info = [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
    then = helper.make_graph([helper.make_node("Conv", ["x", "w", "b"], ["t"])], "then", [], info)
    other = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["t"])], "else", [], info)
    case.nodes.append(helper.make_node("If", ["yes"], ["z"], then_branch=then, else_branch=other))
    case.nodes.insert(0, helper.make_node("Greater", ["sum", "low"], ["yes"]))
    case.nodes.insert(0, helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0))
    case.constants["low"] = np.array(-1e9, dtype=np.float32)
    case.results = [("z", 4)]
    model = loaded(case).copy()
    at = next(n for n, node in enumerate(model.graph.nodes) if node.op == "Conv")
    assert units_of(model.graph, linear_layers(model.graph)) == (Unit((at,), fixed=True, fixed_bias=True),)


@pytest.mark.parametrize("behind", [["one"], ["one", "two"]])
def test_an_add_that_shares_its_constant(behind: list[str]) -> None:
    case = Case([], (2, 3), 2, 0)
    case.constant("w", 3, 4)
    case.constant("b", 4)
    case.nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["y", "b"], ["one"])]
    if "two" in behind:
        case.nodes.append(helper.make_node("Mul", ["one", "b"], ["two"]))
    case.results = [(name, 2) for name in behind]
    model = loaded(case)
    units = units_of(model.graph, {0: layer_of(model)})
    assert units == (Unit((0,), fixed=False, fixed_bias="two" in behind),)


def test_an_add_is_no_bias_where_the_product_has_other_readers() -> None:
    case = Case([], (2, 3), 2, 0)
    case.constant("w", 3, 4)
    case.constant("b", 4)
    case.nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Add", ["y", "b"], ["one"]),
        helper.make_node("Relu", ["y"], ["two"]),
    ]
    case.results = [("one", 2), ("two", 2)]
    assert not layer_of(loaded(case)).has_bias


@pytest.mark.parametrize("shape", [(), (1,), (2, 1), (2, 4), (4, 1)])
def test_an_add_of_anything_but_a_vector_is_no_bias(shape: Sequence[int]) -> None:
    case = Case([], (2, 3), 2, 0)
    case.constant("w", 3, 4)
    case.constant("b", *shape)
    case.nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["y", "b"], ["z"])]
    graph = gs.import_onnx(case.proto())
    layer = linear_of(graph.nodes[0])
    assert layer is not None
    assert not layer.has_bias


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_weights_keep_their_dtype(kind: int) -> None:
    for case in (conv(), dense((4,))):
        graph = gs.import_onnx(case.proto(kind))
        layer = linear_of(graph.nodes[0])
        assert layer is not None
        matrix, bias = layer.effective()
        assert matrix.dtype == bias.dtype == np.float64
        layer.write(2 * matrix, bias + 1)
        assert {tensor.data_type for tensor in gs.export_onnx(graph).graph.initializer} == {kind}
        assert layer.effective()[0] == pytest.approx(2 * matrix, rel=1e-3)
        assert layer.effective()[1] == pytest.approx(bias + 1, abs=1e-2)


# -------------------------------------------------------------------------------------------------------------- not linear


def dense(bias: Sequence[int] | None = None) -> Case:
    case = Case([], (2, 3), 2, 0)
    case.constant("w", 3, 4)
    if bias is not None:
        case.constant("b", *bias)
    case.nodes = [helper.make_node("Gemm", ["x", "w"] + ["b"] * (bias is not None), ["y"])]
    return case


def first_of(case: Case, op: str) -> Linear | None:
    return linear_of(next(node for node in gs.import_onnx(case.proto()).nodes if node.op == op))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (2, 1), (2, 4)])
def test_a_gemm_that_adds_anything_but_a_vector_is_none(shape: Sequence[int]) -> None:
    assert first_of(dense(shape), "Gemm") is None


def test_a_gemm_that_adds_an_activation_is_none() -> None:
    case = dense()
    case.nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Gemm", ["r", "w", "x"], ["y"])]
    assert first_of(case, "Gemm") is None


def test_a_gemm_of_nothing_is_none() -> None:
    case = dense()
    case.nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.0)]
    assert first_of(case, "Gemm") is None


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"])
def test_two_activations_are_none(op: str) -> None:
    case = Case([], (2, 2), 2, 0)
    attrs = {"equation": "bi,ij->bj"} if op == "Einsum" else {}
    case.nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node(op, ["x", "r"], ["y"], **attrs)]
    assert first_of(case, op) is None


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (2, 1, 3, 4)])
def test_a_matmul_of_no_single_matrix_is_none(shape: Sequence[int]) -> None:
    case = Case([], (2, 3), 2, 0)
    case.constant("w", *shape)
    case.nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    assert first_of(case, "MatMul") is None


def test_a_matrix_times_a_vector_is_none() -> None:
    case = Case([], (3,), 1, 0)
    case.constant("w", 4, 3)
    case.nodes = [helper.make_node("MatMul", ["w", "x"], ["y"])]
    assert first_of(case, "MatMul") is None


@pytest.mark.parametrize("computed", ["w", "b"])
def test_a_weight_or_bias_that_is_computed_is_none(computed: str) -> None:
    case = conv()
    case.nodes = [helper.make_node("Identity", [computed], [f"{computed}_"]), *case.nodes]
    case.nodes[1].input[1 if computed == "w" else 2] = f"{computed}_"
    assert first_of(case, "Conv") is None


def test_dequantized_weights_are_none() -> None:
    case = conv()
    proto = case.proto()
    graph = proto.graph
    graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == "w"))
    integers = case.rng.integers(-9, 9, (2, 3, 3, 3)).astype(np.int8)
    graph.initializer.extend(
        [numpy_helper.from_array(integers, "q"), numpy_helper.from_array(np.array(0.1, dtype=np.float32), "s")]
    )
    graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "s"], ["w"]))
    model = load(proto, {"x": tuple(case.x_shape)})
    assert [linear_of(node) for node in model.graph.nodes] == [None, None]


def test_bfloat16_weights_are_none() -> None:
    case = conv()
    proto = case.proto()
    for tensor in proto.graph.initializer:
        value = numpy_helper.to_array(tensor)
        halves = (value.view(np.uint32) >> 16).astype(np.uint16)
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.BFLOAT16, value.shape, halves.tobytes(), raw=True))
    assert linear_of(gs.import_onnx(proto).nodes[0]) is None


def test_training_and_other_domains_are_none() -> None:
    case = Case([], (2, 3, 2), 3, 0)
    operands = [case.constant(name, 3, positive=True) for name in "sbmv"]
    case.nodes = [helper.make_node("BatchNormalization", ["x", *operands], ["y"], training_mode=1)]
    assert first_of(case, "BatchNormalization") is None
    case.nodes = [helper.make_node("BatchNormalization", ["x", *operands], ["y"], spatial=0)]
    assert first_of(case, "BatchNormalization") is None
    other = conv()
    other.nodes[0].domain = "com.example"
    assert linear_of(gs.import_onnx(other.proto()).nodes[0]) is None
    relu = Case([helper.make_node("Relu", ["x"], ["y"])], (2, 3), 2, 0)
    assert first_of(relu, "Relu") is None


def test_rows_copy_only_picked_positions() -> None:
    case = Case([], (1, 8, 64, 64), 4, 0)
    case.constant("w", 2, 8, 5, 5)
    case.nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[2, 2, 2, 2])]
    layer = layer_of(loaded(case))
    assert isinstance(layer, Conv)
    x = case.input()
    pick = np.arange(0, 64 * 64, 64)
    tracemalloc.start()
    rows = layer.rows(x, pick)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * rows.nbytes < math.prod((64, 64, 8, 5, 5)) * 4 / 4

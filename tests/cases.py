"""Tiny graphs for each operator, with the expected channels and pins; see `graph/test_rules.py`.

A graph is written in ONNX's text format. Names that no node writes are weights: their shapes stand beside the text, or in
`STOCK`. A tuple is the shape of random float32 numbers, a list holds int64, anything else is the value itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from graphs import load, signature_of
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune.evaluation.structure import check_structure
from onnxprune.graph.cost import CostModel
from onnxprune.graph.trace import trace as trace_model
from onnxprune.metrics.outputs import relative_difference
from onnxprune.runtime.session import Feeds, open_session, random_feeds, run_batch
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.mask import mask
from onnxprune.surgery.proof import prove
from onnxprune.types import BoolArray, Trace

Weight = tuple[int, ...] | list[int] | npt.NDArray[Any] | np.generic
Edit = Callable[[onnx.ModelProto], None]

IMAGE = "float[N,3,6,6] x"
KNOWN = {"x": (1, 3, 4, 6)}
"""Sizes for rows and columns that are dynamic."""
ONE = "float[1,3,6,6] x"
RATIOS = (0.5, 0.3, 0.95)
OUTPUT = "it is a channel of the model output"

A = "a = Conv (x, w, wb)"  # (N, 8, 6, 6), the branch under test
C = "c = Conv (x, u, ub)"  # another one like it
Y = "y = Conv (b, v, vb)"  # reads 8 channels
ONLY = "the channel is the only one of a tensor"
LINE: dict[str, Any] = {"inputs": "float[N,3,9] x", "w": (8, 3, 1), "v": (4, 8, 1)}
CUBE: dict[str, Any] = {"inputs": "float[N,3,4,4,4] x", "w": (8, 3, 1, 1, 1), "v": (4, 8, 1, 1, 1)}
STEP = np.arange(-3, 5, dtype=np.float32).reshape(8, 1, 1) / 4
STOCK: dict[str, Weight] = {
    "w": (8, 3, 1, 1), "wb": (8,), "u": (8, 3, 1, 1), "ub": (8,), "v": (4, 8, 1, 1), "vb": (4,), "g": (4, 8), "gb": (4,),
    "m": (8, 4),
    "zero": np.float32(0), "half": np.float32(0.5), "two": np.float32(2), "eps": np.float32(1e-5),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A graph and the expected trace.

    Attributes:
        op: the operator under test.
        name: distinguishes the cases of an operator.
        text: nodes.
        free: number of prunable channels.
        pinned: number of pinned channels, those of the outputs included.
        why: a part of each reason for a pin, except that a channel is in the model output.
        weights: see above.
        opset: of the model.
        inputs, outputs: declarations; the types of outputs are inferred.
        changes: whether deleting channels changes the outputs.
        edit: last changes to the model.
        modes: options of the trace: `grouped`, `heads`, `norms`.
        defect: a known defect of the engine in this case.
    """

    op: str
    name: str
    text: str
    free: int
    pinned: int
    why: tuple[str, ...] = ()
    weights: Mapping[str, Weight] = field(default_factory=dict)
    opset: int = 18
    inputs: str = IMAGE
    outputs: str = "y"
    changes: bool = True
    edit: Edit | None = None
    modes: Mapping[str, str] = field(default_factory=dict)
    defect: str = ""

    @property
    def id(self) -> str:
        """Name the case in a list of tests."""
        return f"{self.op}: {self.name}" if self.name else self.op

    def build(self) -> onnx.ModelProto:
        """Return the model."""
        return build(self.text, self.weights, self.opset, self.inputs, self.outputs, self.edit)


def build(
    text: str,
    weights: Mapping[str, Weight],
    opset: int = 18,
    inputs: str = IMAGE,
    outputs: str = "y",
    edit: Edit | None = None,
) -> onnx.ModelProto:
    """Return the model that a text describes, with random weights."""
    graph = parser.parse_graph(f"test ({inputs}) => ({outputs}) {{ {text} }}")
    made = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    rng = np.random.default_rng(0)
    for name in dict.fromkeys(name for scope in _scopes(graph, made) for name in scope):
        value = weights[name] if name in weights else STOCK[name]
        graph.initializer.append(numpy_helper.from_array(_numbers(name, value, rng), name))
    ir_version = 8 if opset < 21 else 10 if opset < 23 else 13
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    if edit is not None:
        edit(model)
    types = {value.name: value.type for value in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output}
    for output in model.graph.output:
        output.type.CopyFrom(types[output.name])
        if not output.type.HasField("tensor_type"):
            output.type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def _scopes(graph: onnx.GraphProto, made: set[str]) -> Sequence[list[str]]:
    """Return the names that nodes read and no node writes, bodies of If and Loop included."""
    found = []
    for node in graph.node:
        found.append([name for name in node.input if name and name not in made])
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                inner = {name for n in attribute.g.node for name in n.output} | {v.name for v in attribute.g.input}
                found += _scopes(attribute.g, made | inner)
    return found


def _numbers(name: str, value: Weight, rng: np.random.Generator) -> npt.NDArray[Any]:
    if isinstance(value, list):
        return np.array(value, dtype=np.int64)
    if not isinstance(value, tuple):
        return np.asarray(value)
    if name.startswith(("scale", "var")):
        return rng.uniform(0.5, 1.5, value).astype(np.float32)
    spread = max(1, int(np.prod(value[1:]))) ** -0.5 if len(value) > 1 else 0.5
    return np.asarray(spread * rng.standard_normal(value), dtype=np.float32)


# ---------------------------------------------------------------------------------------------------------------- check


def check(case: Case) -> Trace:
    """Check the groups of a case, random plans with the oracle, and the written models."""
    source = case.build()
    onnx.checker.check_model(source, full_check=True)
    model = load(source)
    trace = trace_model(model, input_shapes=KNOWN if "H" in case.inputs else None, **case.modes)
    found = (int((~trace.pinned).sum()), int(trace.pinned.sum()))
    reasons = sorted({pin.reason for pin in trace.pins if OUTPUT not in pin.reason})
    assert found == (case.free, case.pinned), f"(free, pinned) is {found}; reasons: {reasons}"
    for part in case.why:
        assert any(part in reason for reason in reasons), f"nothing is pinned because {part!r}, but {reasons}"
    for reason in reasons:
        assert any(part in reason for part in case.why), f"pinned because {reason!r}"

    cost = CostModel(trace)
    feeds = _feeds(source, trace)
    expected = _run(source, feeds)
    changed = 0.0
    for seed, ratio in enumerate(RATIOS):
        keep = plan(trace, seed, ratio)
        pruned, masked = rewrite.delete(model, trace, keep), mask(model, trace, keep)
        prove(model, pruned, masked, trace.input_shapes, seed=seed)
        written = pruned.to_proto()
        broken = [str(c) for c in check_structure(written, source) if not c]
        assert not broken, broken
        found_outputs = _run(written, feeds)
        assert [a.shape for a in found_outputs] == [a.shape for a in expected]
        changed = max([changed, *map(relative_difference, expected, _run(masked.to_proto(), feeds))])
        again = trace_model(load(written), input_shapes=trace.input_shapes, **case.modes)
        everything = np.ones(again.n_channels, dtype=bool)
        assert np.allclose(CostModel(again).totals(everything), cost.totals(keep)), "the cost model predicts otherwise"
        assert case.free == 0 or ratio < max(RATIOS) or not keep.all(), "the plan removes nothing"
        if ratio == min(RATIOS):
            left = (int((~again.pinned).sum()), int(again.pinned.sum()))
            stay = (int((keep & ~trace.pinned).sum()), int((keep & trace.pinned).sum()))
            assert left == stay, f"traced again (free, pinned) is {left}, not {stay}"
    assert (changed > 1e-3) == (case.free > 0 and case.changes), f"outputs change by {changed:.1e} of their range"
    return trace


def plan(trace: Trace, seed: int, ratio: float) -> BoolArray:
    """Return a random selection without `ratio` of the prunable channels; every extent keeps one channel, or two at first."""
    rng = np.random.default_rng(seed)
    keep = np.ones(trace.n_channels, dtype=bool)
    free = np.flatnonzero(~trace.pinned)
    least = 2 if ratio == min(RATIOS) else 1
    for channel in rng.permutation(free)[: -int(-ratio * free.size // 1)]:
        keep[channel] = False
        if any(channel in extent and keep[extent].sum() < min(least, extent.size) for extent in trace.extents):
            keep[channel] = True
    return keep


def _feeds(proto: onnx.ModelProto, trace: Trace) -> Feeds:
    bare = onnx.ModelProto(graph=onnx.GraphProto(input=[v for v in proto.graph.input if v.name in trace.input_shapes]))
    shapes = signature_of(proto).input_shapes(2, trace.input_shapes)
    return random_feeds(bare, shapes, 5)


def _run(proto: onnx.ModelProto, feeds: Feeds) -> list[Any]:
    return run_batch(open_session(proto), feeds)


# ---------------------------------------------------------------------------------------------------------------- cases


def case(op: str, name: str, text: str, free: int, pinned: int, *why: str, **rest: Any) -> Case:
    """Make a case; keywords that are no field of `Case` are weights."""
    fields = {key: rest.pop(key) for key in list(rest) if key in Case.__dataclass_fields__}
    return Case(op, name, text, free, pinned, why, rest, **fields)


def one(op: str, name: str, text: str, **rest: Any) -> Case:
    """Make a case in which the 8 channels of `a` flow through `text` to `b`, and are prunable."""
    return case(op, name, f"{A} {text} {Y}", 8, 4, **rest)


def stuck(op: str, name: str, text: str, why: str, **rest: Any) -> Case:
    """Make a case in which all 8 channels of `a` are pinned."""
    return case(op, name, f"{A} {text} {Y}", 0, 12, why, **rest)


def flow(op: str, name: str, text: str, free: int, pinned: int = 4, *why: str, **rest: Any) -> Case:
    """Make a case in which the 8 channels of `a` flow through `text` to `b`, which is read by 4 filters."""
    return case(op, name, f"{A} {text} {Y}", free, pinned, *why, **rest)


def _unary() -> list[Case]:
    plain = [
        "Abs",
        "Ceil",
        "Clip",
        "Cos",
        "Dropout",
        "Elu",
        "Erf",
        "Floor",
        "HardSigmoid",
        "Identity",
        "LeakyRelu",
        "Neg",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Softplus",
        "Softsign",
        "Tanh",
        "ThresholdedRelu",
    ]
    cases = [one(op, "", f"b = {op} (a)") for op in plain]
    newer = {"Celu": 12, "Gelu": 20, "HardSwish": 14, "Mish": 18, "Swish": 24}
    cases += [one(op, "", f"b = {op} (a)", opset=opset) for op, opset in newer.items()]
    tame = {
        "Acos": "Tanh",
        "Acosh": "Exp",
        "Asin": "Tanh",
        "Asinh": "Neg",
        "Atan": "Neg",
        "Atanh": "Sin",
        "Cosh": "Tanh",
    }
    tame |= {"Exp": "Tanh", "Log": "Softplus", "Reciprocal": "Exp", "Sinh": "Tanh", "Sqrt": "Exp", "Tan": "Tanh"}
    cases += [one(op, "", f"s = Abs (a) t = {tame[op]} (s) b = {op} (t)") for op in tame]
    return [
        *cases,
        one("Shrink", "", "b = Shrink <lambd=0.3> (a)"),
        one("Clip", "bounds as inputs", "b = Clip (a, low, high)", low=np.float32(-0.5), high=np.float32(0.7)),
        one("Clip", "bounds as attributes", "b = Clip <min=0.0, max=6.0> (a)", opset=7),
        one("Dropout", "attribute", "b = Dropout <ratio=0.3> (a)", opset=7),
        one("Relu", "in the newest opset", "b = Relu (a)", opset=onnx.defs.onnx_opset_version()),
        one("Identity", "a chain", "i = Identity (a) j = Identity (i) k = Identity (j) b = Identity (k)"),
        one("Cast", "to double and back", "t = Cast <to=11> (a) b = Cast <to=1> (t)"),
        one("Cast", "to float16 and back", "t = Cast <to=10> (a) b = Cast <to=1> (t)"),
        one("Cast", "to int32", "t = Cast <to=6> (a) b = Cast <to=1> (t)", wb=np.arange(8, dtype=np.float32)),
        one("Not", "", "t = Greater (a, zero) n = Not (t) b = Cast <to=1> (n)"),
        one("IsNaN", "", "s = Sqrt (a) t = IsNaN (s) b = Cast <to=1> (t)"),
        one("IsInf", "", "r = Relu (a) s = Div (a, r) t = IsInf (s) b = Cast <to=1> (t)"),
    ]  # fmt: skip


def _elementwise() -> list[Case]:
    cases = [
        one(op, "two tensors", f"{C} b = {op} (a, c)") for op in ("Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean")
    ]
    for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        cases.append(one(op, "two tensors", f"{C} r = Relu (a) s = Relu (c) t = {op} (r, s) b = Cast <to=1> (t)"))
        cases.append(one(op, "a constant per channel", f"r = Round (a) t = {op} (r, k) b = Cast <to=1> (t)", k=STEP))
    for op in ("And", "Or", "Xor"):
        text = f"{C} r = Greater (a, zero) s = Greater (c, zero) t = {op} (r, s) b = Cast <to=1> (t)"
        cases.append(one(op, "", text))
    for op in ("Add", "Sub", "Mul", "Div"):
        cases.append(one(op, "a constant per channel", f"b = {op} (a, scale)", scale=(8, 1, 1)))
        first = f"r = Exp (a) b = {op} (scale, r)"
        cases.append(one(op, "a constant per channel, first", first, scale=(1, 8, 1, 1)))
    for op in ("Max", "Min", "Sum", "Mean"):
        text = f"{C} d = Neg (a) b = {op} (a, c, d, k)"
        cases.append(one(op, "three tensors and a constant", text, k=(8, 1, 1)))
        cases.append(one(op, "one tensor", f"b = {op} (a)"))
    gate = "q = GlobalAveragePool (a) r = Conv (q, t, tb) s = Sigmoid (r) b = Mul (a, s)"
    rows = "s = Reshape (q, s1) r = GlobalAveragePool (c) t = Reshape (r, s2)"
    product = f"{A} {C} q = GlobalAveragePool (a) {rows} b = Mul (s, t) y = MatMul (b, k)"
    hard = "s = Add (a, k3) t = Clip (s, zero, k6) q = Div (t, k6) b = Mul (a, q)"
    gelu = "s = Div (a, root) t = Erf (s) q = Add (t, half) r = Mul (a, q) b = Mul (r, half)"
    return [
        *cases,
        one("Add", "a scalar", "b = Add (a, half)"),
        one("Add", "a constant of one element, first", "b = Add (k, a)", k=np.full((1, 1, 1, 1), 0.5, np.float32)),
        one("Add", "a map of positions", "b = Add (a, k)", k=(6, 6)),
        one("Add", "a constant of full size", "b = Add (a, k)", k=(1, 8, 6, 6)),
        one("Add", "a constant of full size but for the batch", "b = Add (k, a)", k=(8, 6, 6)),
        one("Add", "to itself", "b = Add (a, a)"),
        one("Add", "three branches", f"{C} d = Conv (x, t) e = Add (a, c) b = Add (e, d)", t=(8, 3, 1, 1)),
        case("Add", "the input", f"{A} b = Add (a, x) {Y}", 0, 7, "joins the channel with the model input x", w=(3, 3, 1, 1), wb=(3,), v=(4, 3, 1, 1)),
        case("Add", "a map of one channel", f"{A} m = Conv (x, t) b = Add (a, m) {Y}", 8, 5, ONLY, t=(1, 3, 1, 1)),
        one("Mul", "a gate per channel", gate, t=(8, 8, 1, 1), tb=(8,)),
        case("Mul", "an outer product", product, 0, 20, "over two axes", s1=[0, 8, 1], s2=[0, 1, 8], k=(8, 4)),
        one("Mul", "Swish in primitives", "s = Sigmoid (a) b = Mul (a, s)"),
        one("Mul", "HardSwish in primitives", hard, k3=np.float32(3), k6=np.float32(6)),
        one("Mul", "Gelu in primitives", gelu, root=np.float32(2**0.5)),
        one("Mul", "Mish in primitives", "s = Softplus (a) t = Tanh (s) b = Mul (a, t)"),
        one("Div", "two tensors", f"{C} s = Exp (c) b = Div (a, s)"),
        one("Div", "by a scalar", "b = Div (a, two)"),
        one("Pow", "two tensors", f"{C} s = Exp (a) b = Pow (s, c)"),
        one("Pow", "a scalar exponent", "b = Pow (a, two)"),
        one("Pow", "an exponent per channel", "s = Exp (a) b = Pow (s, scale)", scale=(8, 1, 1)),
        one("Mod", "two tensors", f"{C} s = Exp (c) b = Mod <fmod=1> (a, s)"),
        one("Mod", "a divisor per channel", "b = Mod <fmod=1> (a, scale)", scale=(1, 8, 1, 1)),
        one("Where", "three tensors", f"{C} t = Greater (a, zero) b = Where (t, a, c)"),
        one("Where", "a constant per channel", "t = Greater (a, zero) b = Where (t, k, zero)", k=(8, 1, 1)),
        one("Where", "a constant condition", f"{C} b = Where (t, a, c)", t=(np.arange(8) % 2 == 0).reshape(8, 1, 1)),
        one("Where", "a map as condition", f"{C} m = ArgMax <axis=1> (x) t = Cast <to=9> (m) b = Where (t, a, c)"),
        one("PRelu", "a slope per channel", "b = PRelu (a, k)", k=(8, 1, 1)),
        one("PRelu", "one slope", "b = PRelu (a, k)", k=(1,)),
        one("PRelu", "a slope per element", "b = PRelu (a, k)", k=(8, 6, 6)),
        one("PRelu", "computed slopes", f"{C} b = PRelu (a, c)"),
    ]  # fmt: skip


def _pools() -> list[Case]:
    cases = [one(op, "", f"b = {op} (a)") for op in ("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")]
    window = "kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]"
    cases += [one(op, "", f"b = {op} <{window}> (a)") for op in ("AveragePool", "LpPool", "MaxPool")]
    turned = (
        "t = Transpose <perm=[0,2,1,3]> (a) q = AveragePool <kernel_shape=[2,1]> (t) b = Transpose <perm=[0,2,1,3]> (q)"
    )
    pooled = "m, i = MaxPool <kernel_shape=[2,2], strides=[2,2]> (a) r = Relu (m)"
    indices = "m, i = MaxPool <kernel_shape=[2,2]> (a) j = Cast <to=1> (i) b = Add (m, j)"
    return [
        *cases,
        one("MaxPool", "1D", "b = MaxPool <kernel_shape=[3]> (a)", **LINE),
        one("AveragePool", "3D", "b = AveragePool <kernel_shape=[2,2,2], ceil_mode=1> (a)", **CUBE),
        one("MaxPool", "with indices that nobody reads", "b, i = MaxPool <kernel_shape=[2,2]> (a)"),
        one("MaxUnpool", "", f"{pooled} b = MaxUnpool <kernel_shape=[2,2], strides=[2,2]> (r, i)"),
        flow(
            "MaxUnpool",
            "of other channels",
            f"{pooled} d = Conv (m, k) e = Relu (d) b = MaxUnpool <kernel_shape=[2,2], strides=[2,2]> (e, i)",
            8,
            k=(8, 8, 1, 1),
        ),
        one(
            "MaxUnpool",
            "a shape as input",
            f"{pooled} b = MaxUnpool <kernel_shape=[2,2], strides=[2,2]> (r, i, s)",
            s=[1, 8, 6, 6],
            inputs=ONE,
            outputs="float[1,4,6,6] y",
        ),
        stuck(
            "MaxUnpool",
            "another size than pooled",
            f"{pooled} b = MaxUnpool <kernel_shape=[2,2], strides=[2,2]> (r, i, s)",
            "has another size than the input of a MaxPool",
            s=[1, 8, 6, 8],
            inputs=ONE,
            outputs="float[1,4,6,8] y",
        ),
        flow(
            "MaxUnpool",
            "of a tensor whose channels are pinned",
            f"{pooled.replace('Relu (m)', 'Softmax <axis=1> (m)')} "
            "b = MaxUnpool <kernel_shape=[2,2], strides=[2,2]> (r, i)",
            0,
            12,
            "Softmax mixes the channels",
        ),
        stuck("MaxPool", "with indices", indices, "the indices that this MaxPool returns count channels"),
        stuck("AveragePool", "over channels", turned, "AveragePool pools over the channel axis", v=(4, 7, 1, 1)),
    ]


def _reductions() -> list[Case]:
    over = "runs over the channels"
    cases = []
    for kind in ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"):
        op = f"Reduce{kind}"
        cases.append(one(op, "a column", f"b = {op} <keepdims=1> (a, ax)", ax=[2]))
        over_channels = f"r = {op} (a, ax) b = Add (a, r)"
        if kind in ("LogSumExp", "Max", "Mean", "Min", "Prod"):
            cases.append(stuck(op, "over channels", over_channels, over, ax=[-3]))
        else:
            cases.append(one(op, "over channels", over_channels, ax=[-3]))
    gone = f"{A} f = ReduceMean <keepdims=0> (a, ax) y = Gemm <transB=1> (f, g, gb)"
    nhwc = f"{A} t = Transpose <perm=[0,2,3,1]> (a) f = ReduceMean <axes=[1,2], keepdims=0> (t) y = MatMul (f, m)"
    norms = "n = ReduceL2 <keepdims=1> (a, ax) r = ReduceMean <keepdims=1> (n, c) s = Add (r, eps) d = Div (n, s)"
    scaled = "p = Mul (a, d) q = Mul (p, k) t = Add (q, k) b = Add (t, a)"
    older = "n = ReduceL2 <axes=[2,3]> (a) r = ReduceMean <axes=[-3]> (n) s = Add (r, eps) d = Div (n, s)"
    last = norms.replace("(a, ax)", "(h, ax)").replace("(n, c)", "(n, l)").replace("Mul (a, d)", "Mul (h, d)")
    turned = "h = Transpose <perm=[0,2,3,1]> (a)"
    back = "p = Mul (h, d) q = Mul (p, e) t = Add (q, h) b = Transpose <perm=[0,3,1,2]> (t)"
    halves = "h = Cast <to=10> (a) f = ReduceSum (h, c) r = Cast <to=1> (f) b = Add (a, r)"
    return [
        *cases,
        one("ReduceSum", "over channels and rows", "r = ReduceSum (a, c) b = Add (a, r)", c=[1, 2]),
        one("ReduceSum", "over channels, axes as an attribute", "r = ReduceSum <axes=[1]> (a) b = Add (a, r)", opset=11),
        one("ReduceSum", "over channels, in float16", halves, c=[1]),
        one(
            "ReduceSum", "how many channels are above a bound",
            "g1 = Greater (a, half) i = Cast <to=7> (g1) f = ReduceSum (i, c) r = Cast <to=1> (f) b = Add (a, r)", c=[1],
        ),
        one("ReduceMean", "of norms, over channels", f"{norms} {scaled}", ax=[2, 3], c=[1], k=(1, 8, 1, 1)),
        one("ReduceMean", "of norms, over channels on the last axis", f"{turned} {last} {back}", ax=[1, 2], l=[-1], e=(8,)),
        one("ReduceMean", "of norms, axes as an attribute", f"{older} {scaled}", opset=12, k=(1, 8, 1, 1)),
        one("ReduceMean", "of norms, before opset 18", f"{older} {scaled}", opset=17, k=(1, 8, 1, 1)),
        one("ReduceLogSum", "a column", "s = Exp (a) b = ReduceLogSum <keepdims=1> (s, ax)", ax=[2]),
        one("ReduceLogSum", "over channels", "s = Exp (a) r = ReduceLogSum (s, ax) b = Add (a, r)", ax=[1]),
        one("ReduceMax", "axes as an attribute", "b = ReduceMax <axes=[-1]> (a)", opset=13),
        one("ReduceSum", "axes as an attribute", "b = ReduceSum <axes=[2,3]> (a)", opset=11),
        one("ReduceMean", "no axes: none", "b = ReduceMean <noop_with_empty_axes=1> (a)"),
        one("ReduceMean", "empty axes: none", "b = ReduceMean <noop_with_empty_axes=1> (a, ax)", ax=[]),
        stuck("ReduceMean", "no axes: all", "r = ReduceMean (a) b = Add (a, r)", over),
        stuck("ReduceMean", "empty axes: all", "r = ReduceMean (a, ax) b = Add (a, r)", over, ax=[]),
        case("ReduceMean", "axes go", gone, 8, 4, ax=[-2, -1]),
        case("ReduceMean", "axes before the channels go", nhwc, 8, 4, opset=13),
        stuck("ReduceMean", "a spatial gate", "r = ReduceMean (a, ax) s = Sigmoid (r) b = Mul (a, s)", over, ax=[1]),
        one("ReduceMean", "a spatial gate, cut", "r = ReduceMean (a, ax) s = Sigmoid (r) b = Mul (a, s)", ax=[1], modes={"norms": "cut"}),
    ]  # fmt: skip


def _along() -> list[Case]:
    mixes = "mixes the channels"
    cases = []
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        cases += [
            one(op, "over a row", f"b = {op} <axis=3> (a)", opset=13),
            one(op, "over a row by default", f"b = {op} (a)", opset=13),
            one(op, "before opset 13, from the rows on", f"b = {op} <axis=2> (a)", opset=11),
            stuck(op, "over channels", f"b = {op} <axis=1> (a)", mixes, opset=13),
            stuck(op, "over channels, axis counted from the end", f"b = {op} <axis=-3> (a)", mixes, opset=13),
            stuck(op, "before opset 13, by default over all but the batch", f"b = {op} (a)", mixes, opset=11),
        ]
    for op, opset in (("CumSum", 14), ("CumProd", 26)):
        cases.append(one(op, "down a column", f"b = {op} (a, k)", opset=opset, k=np.int64(2)))
        cases.append(
            stuck(
                op,
                "over channels",
                f"b = {op} (a, k)",
                mixes,
                opset=opset,
                k=np.int64(1),
            )
        )
    for op in ("ArgMax", "ArgMin"):
        cases.append(one(op, "of a row", f"i = {op} <axis=3> (a) b = Cast <to=1> (i)"))
        text = f"i = {op} <axis=1> (a) j = Cast <to=1> (i) b = Add (a, j)"
        cases.append(stuck(op, "of channels", text, "returns positions of channels"))
    gone = f"{A} r = Reshape (a, s) i = ArgMax <axis=-1, keepdims=0> (r) f = Cast <to=1> (i) y = MatMul (f, m)"
    turned = "t = Transpose <perm=[0,3,1,2]> (a) q = Trilu (t) b = Transpose <perm=[0,2,3,1]> (q)"
    return [
        *cases,
        case("ArgMax", "of positions, the axis goes", gone, 8, 4, s=[0, 8, -1]),
        one("LpNormalization", "over a row", "b = LpNormalization <axis=-1, p=2> (a)"),
        one("LpNormalization", "over channels", "b = LpNormalization <axis=1> (a)"),
        one("LpNormalization", "over channels, absolute", "b = LpNormalization <axis=1, p=1> (a)"),
        one("TopK", "of a row", "b, i = TopK <axis=3> (a, k)", k=[2]),
        one("TopK", "of a row, positions", "q, i = TopK (a, k) b = Cast <to=1> (i)", k=[2]),
        stuck("TopK", "of channels", "b, i = TopK <axis=1> (a, k)", mixes, k=[8]),
        one("Trilu", "of a map", "b = Trilu (a)"),
        one("Trilu", "of a map, the lower half", "b = Trilu <upper=0> (a, k)", k=np.int64(1)),
        stuck("Trilu", "of channels", turned, "Trilu needs the positions of channels"),
    ]  # fmt: skip


def _quantized() -> list[Case]:
    zero_points = {"z": np.arange(8, dtype=np.uint8) + 100, "k": np.linspace(0.01, 0.05, 8, dtype=np.float32)}
    tensor = {"z": np.uint8(128), "k": np.float32(0.02)}
    both = "q = QuantizeLinear (a, k, z) b = DequantizeLinear (q, k, z)"
    axis = "q = QuantizeLinear <axis=-3> (a, k, z) b = DequantizeLinear <axis=-3> (q, k, z)"
    rows = "q = QuantizeLinear <axis=2> (a, k, z) b = DequantizeLinear <axis=2> (q, k, z)"
    six = {"z": np.full(6, 128, np.uint8), "k": np.linspace(0.01, 0.05, 6, dtype=np.float32)}
    block = "q = QuantizeLinear <axis=3, block_size=3> (a, k, z) b = DequantizeLinear <axis=3, block_size=3> (q, k, z)"
    blocks = {"z": np.full((1, 8, 6, 2), 128, np.uint8), "k": np.full((1, 8, 6, 2), 0.02, np.float32)}
    cases = []
    for op in ("QuantizeLinear", "DequantizeLinear"):
        cases += [
            one(op, "a scale per channel", both, **zero_points),
            one(op, "a scale per channel, axis counted from the end", axis, **zero_points),
            one(op, "a scale per tensor", both, **tensor),
            one(op, "a scale per row", rows, **six),
            stuck(
                op, "a scale per block", block, "has a scale per block", opset=21, inputs="float[1,3,6,6] x", **blocks
            ),
        ]
    return [
        *cases,
        *_quantized_weights(),
    ]  # fmt: skip


def _integers(*shape: int, kind: type = np.int8, most: int = 100) -> npt.NDArray[Any]:
    return np.random.default_rng(len(shape)).integers(0 if kind is np.uint8 else -most, most, shape).astype(kind)


def _quantized_weights() -> list[Case]:
    per8, per4, half = np.linspace(0.004, 0.01, 8, dtype=np.float32), np.full(4, 0.01, np.float32), np.float32(0.01)
    bias = {"bq": _integers(8, kind=np.int32), "bk": half}
    signed = {"wq": _integers(8, 3, 1, 1), "wk": per8, "vq": _integers(4, 8, 1, 1), "vk": per4, **bias}
    unsigned = {"wq": _integers(8, 3, 1, 1, kind=np.uint8), "vq": _integers(4, 8, 1, 1, kind=np.uint8), **bias}
    per_channel = {
        "wz": np.arange(8, dtype=np.uint8) + 40,
        "vz": np.arange(4, dtype=np.uint8) + 40,
        "wk": per8,
        "vk": per4,
    }
    per_tensor = {"wz": np.uint8(40), "vz": np.array([60], np.uint8), "wk": half, "vk": np.array([0.01], np.float32)}
    matrix, turned = {"mq": _integers(8, 4), "mk": per4}, {"gq": _integers(4, 8), "gk": per4}
    block_rows = {"mq": _integers(8, 4), "mk": (3, 4), "mz": _integers(3, 4, most=9)}
    block_columns = {"mq": _integers(8, 4), "mk": (8, 2), "mz": _integers(8, 2, most=9)}
    first = "d = DequantizeLinear <axis=0> (wq, wk) e = DequantizeLinear (bq, bk) a = Conv (x, d, e) b = Relu (a)"
    last = "f = DequantizeLinear <axis=0> (vq, vk) y = Conv (b, f, vb)"
    both, shared = f"{first} {last}", f"{first} {last} c = Conv (x, d) s = Sigmoid (c) z = Conv (s, f)"
    zeros = both.replace("wq, wk", "wq, wk, wz").replace("vq, vk", "vq, vk, vz")
    rounded = "o = QuantizeLinear (w, half, z) d = DequantizeLinear (o, half, z) a = Conv (x, d) b = Relu (a)"
    kernel = "d = DequantizeLinear <axis=0> (kq, wk) c = Conv <group=8> (a, d) b = Relu (c)"
    factor = "d = DequantizeLinear <axis=0> (kq, wk) b = Mul (a, d)"
    halves = "h = Cast <to=10> (x) d = DequantizeLinear <axis=0> (wq, wk) a = Conv (h, d) b = Cast <to=1> (a)"
    row = f"{A} q = GlobalAveragePool (a) r = Flatten (q)"
    table = f"{row} d = DequantizeLinear <axis=-1> (mq, mk) y = MatMul (r, d)"
    transposed = f"{row} d = DequantizeLinear <axis=0> (gq, gk) t = Transpose <perm=[1,0]> (d) y = MatMul (r, t)"
    twice = f"{transposed} u1 = Sigmoid (r) z = MatMul (u1, t)"
    gemm = f"{row} d = DequantizeLinear <axis=0> (gq, gk) e = DequantizeLinear (cq, k) y = Gemm <transB=1> (r, d, e)"
    blocks = f"{row} d = DequantizeLinear <axis=0, block_size=3> (mq, mk, mz) y = MatMul (r, d)"
    across = f"{row} d = DequantizeLinear <axis=1, block_size=2> (mq, mk, mz) y = MatMul (r, d)"

    def weight(name: str, text: str, free: int = 8, pinned: int = 4, *why: str, **rest: Any) -> Case:
        return case("DequantizeLinear", f"of {name}", text, free, pinned, *why, **rest)

    return [
        weight("weights and a bias", both, **signed),
        weight("weights with a zero point per channel", zeros, **unsigned, **per_channel),
        weight("weights with one scale and zero point", zeros, **unsigned, **per_tensor),
        weight("a weight that is rounded at run time", f"{rounded} {Y}", z=np.int8(3), w=(8, 3, 1, 1)),
        weight("weights that two layers share", shared, 8, 4, outputs="y, z", **signed),
        weight("a weight that is an output as well", both, 0, 12, "is also read by DequantizeLinear_d", outputs="y, d", **signed),
        weight("a depthwise kernel", f"{A} {kernel} {Y}", kq=_integers(8, 1, 1, 1), wk=per8),
        weight("a factor per channel", f"{A} {factor} {Y}", kq=_integers(8, 1, 1), wk=per8),
        weight("a weight in float16", f"{halves} {Y}", opset=19, wq=signed["wq"], wk=per8.astype(np.float16)),
        weight("a matrix", table, **matrix),
        weight("a matrix that is transposed", transposed, **turned),
        weight("a matrix that comes through an Identity", table.replace("d)", "d2)").replace("y =", "d2 = Identity (d) y ="), **matrix),
        weight("a matrix that is transposed for two layers", twice, 8, 4, outputs="y, z", **turned),
        weight("the weight and bias of a Gemm", gemm, **turned, cq=_integers(4, kind=np.int32), k=half),
        weight("blocks of channels", blocks, 0, 12, "has a scale per block of channels", opset=21, **block_rows),
        weight("blocks across channels", across, 8, 4, "has a scale per block of channels", opset=21, **block_columns),
    ]  # fmt: skip


def _convs() -> list[Case]:
    dynamic = "the weight of this Conv is not a constant"
    pooled = "q = GlobalAveragePool (a) k = Reshape (q, s) b = Relu (a) d = Conv (b, k) y = Relu (d)"
    filters = "q = GlobalAveragePool (a) k = Reshape (q"
    numbers = ", ".join(f"{0.1 * i:.1f}" for i in range(24))
    node = f"k = Constant <value = float[8,3,1,1] {{{numbers}}}> () b = Conv (x, k) {Y}"
    wide = "strides=[2,2], dilations=[2,2], pads=[2,2,2,2]"
    up = "b = ConvTranspose <strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]> (a, k, kb)"
    return [
        one("Conv", "1D", "b = Relu (a)", **LINE),
        one("Conv", "2D", "b = Relu (a)", w=(8, 3, 3, 3), v=(4, 8, 3, 3)),
        one("Conv", "3D", "b = Relu (a)", **CUBE),
        case("Conv", "without bias", "a = Conv (x, w) b = Relu (a) y = Conv (b, v)", 8, 4),
        case("Conv", "strides, dilations, pads", f"b = Conv <{wide}> (x, w, wb) {Y}", 8, 4, w=(8, 3, 3, 3)),
        case("Conv", "auto_pad", f'b = Conv <auto_pad="SAME_UPPER"> (x, w, wb) {Y}', 8, 4, w=(8, 3, 3, 3)),
        flow("Conv", "two groups", "b = Conv <group=2> (a, k, kb)", 4 + 4, k=(8, 4, 1, 1), kb=(8,)),
        flow("Conv", "two groups, more filters", "b = Conv <group=2> (a, k)", 4 + 6, k=(12, 4, 1, 1), v=(4, 12, 1, 1)),
        flow("Conv", "four groups of two", "b = Conv <group=4> (a, k)", 2 + 3, k=(12, 2, 3, 3), v=(4, 12, 1, 1)),
        flow(
            "Conv", "groups, fewer filters than channels", "b = Conv <group=2> (a, k)", 4 + 2, k=(4, 4, 1, 1),
            v=(4, 4, 1, 1),
        ),
        one("Conv", "depthwise", "b = Conv <group=8> (a, k, kb)", k=(8, 1, 3, 3), kb=(8,)),
        one("Conv", "depthwise, 1D", "b = Conv <group=8> (a, k)", k=(8, 1, 3), **LINE),
        one("Conv", "depthwise, 3D", "b = Conv <group=8> (a, k)", k=(8, 1, 2, 2, 2), **CUBE),
        one(
            "Conv", "depthwise, multiplier 2", "b = Conv <group=8> (a, k, kb)", k=(16, 1, 3, 3), kb=(16,),
            v=(4, 16, 1, 1),
        ),
        case(
            "Conv", "depthwise on the input", f"a = Conv <group=3> (x, k) b = Conv (a, w, wb) {Y}", 8, 4,
            k=(3, 1, 3, 3),
        ),
        case(
            "Conv", "one channel in is not depthwise", f"b = Conv (x, w, wb) {Y}", 8, 4, w=(8, 1, 3, 3),
            inputs="float[N,1,6,6] x",
        ),
        case(
            "Conv", "one filter", f"a = Conv (x, w) b = Conv (a, k, kb) {Y}", 8, 5, ONLY, w=(1, 3, 3, 3),
            k=(8, 1, 3, 3), kb=(8,),
        ),
        case(
            "Conv", "one filter, then another", f"a = Conv (x, w) b = Conv (a, k) {Y}", 0, 6, ONLY, w=(1, 3, 1, 1),
            k=(1, 1, 3, 3), v=(4, 1, 1, 1),
        ),
        case("Conv", "nothing but an output", "y = Conv (x, w, wb)", 0, 8),
        case(
            "Conv", "a computed weight of one filter: its channels are summed over with the input's", f"{A} {pooled}", 8, 0, inputs=ONE,
            s=[1, 8, 1, 1],
        ),
        case("Conv", "a computed weight, depthwise", f"{A} {filters}, s1) b = Conv <group=8> (a, k) {Y}", 8, 4, inputs=ONE, s1=[8, 1, 1, 1]),
        case(
            "Conv", "a computed weight, a filter for each channel of another tensor",
            f"{C} q = GlobalAveragePool (c) k = Reshape (q, s1) b = Conv (x, k) {Y}", 8, 4, inputs="float[1,1,6,6] x",
            s1=[8, 1, 1, 1], u=(8, 1, 1, 1),
        ),
        case(
            "Conv", "a computed weight, mixed from stored ones",
            f"{A} q = GlobalAveragePool (x) f = Flatten (q) m1 = MatMul (f, bank) k = Reshape (m1, s1) b = Conv (a, k) {Y}", 5, 12,
            dynamic, inputs=ONE, bank=(3, 5 * 8 * 9), s1=[5, 8, 3, 3], v=(4, 5, 1, 1),
        ),
        case(
            "Conv", "a computed weight, in groups", f"{A} {filters}, s1) b = Conv <group=2> (x, k) {Y}", 0, 10, dynamic,
            "Conv takes its input W from the channel", inputs="float[1,4,6,6] x", s1=[4, 2, 1, 1], w=(8, 4, 1, 1), v=(4, 4, 1, 1),
        ),
        case("Conv", "a computed bias with channels", f"{A} {filters}, s1) b = Conv (x, u, k) {Y}", 8, 4, inputs=ONE, s1=[8]),
        case(
            "Conv", "a computed bias",
            f"{A} q = ReduceMean (x) k = Expand (q, s) r = Reshape (k, s) b = Conv (a, t, r) {Y}", 8, 12,
            "it meets the model input x", s=[8], t=(8, 8, 1, 1),
        ),
        case("Conv", "a Constant node as weight", node, 8, 4),
        case(
            "Conv", "a weight that is an input", f"b = Conv (x, k) {Y}", 0, 12, dynamic,
            inputs=f"{IMAGE}, float[8,3,1,1] k",
        ),
        flow("ConvTranspose", "dense", up, 8 + 5, k=(8, 5, 3, 3), kb=(5,), v=(4, 5, 1, 1)),
        flow("ConvTranspose", "1D, no bias", "b = ConvTranspose (a, k)", 8 + 5, k=(8, 5, 2), **LINE | {"v": (4, 5, 1)}),
        flow(
            "ConvTranspose", "3D", "b = ConvTranspose (a, k)", 8 + 5, k=(8, 5, 2, 2, 2),
            **CUBE | {"v": (4, 5, 1, 1, 1)},
        ),
        flow(
            "ConvTranspose", "two groups", "b = ConvTranspose <group=2> (a, k, kb)", 4 + 3, k=(8, 3, 2, 2), kb=(6,),
            v=(4, 6, 1, 1),
        ),
        one("ConvTranspose", "depthwise", "b = ConvTranspose <group=8> (a, k, kb)", k=(8, 1, 2, 2), kb=(8,)),
        one(
            "ConvTranspose", "depthwise, multiplier 2", "b = ConvTranspose <group=8> (a, k, kb)", k=(8, 2, 2, 2),
            kb=(16,), v=(4, 16, 1, 1),
        ),
        case(
            "ConvTranspose", "a computed weight",
            f"{A} q = GlobalAveragePool (a) k = Reshape (q, s) b = Relu (a) y = ConvTranspose (b, k)", 0, 9,
            "the weight of this ConvTranspose is not a constant", "ConvTranspose takes its input W from the channel", ONLY,
            inputs="float[1,3,6,6] x", s=[8, 1, 1, 1],
        ),
        case(
            "ConvTranspose", "shares its weight with a Conv",
            "a = Conv (x, w, wb) b = Relu (a) y = ConvTranspose (b, w)", 8, 3, "the weight w is also read by Conv_a",
        ),
    ]  # fmt: skip


def _matrices() -> list[Case]:
    row = f"{A} p = GlobalAveragePool (a) f = Flatten (p)"
    flat: dict[str, Any] = {"inputs": "float[1,3,6,6] x"}

    def gemm(name: str, node: str, free: int = 13, pinned: int = 4, *why: str, **rest: Any) -> Case:
        return case(
            "Gemm", name, f"{row} {node} r = Relu (h) y = Gemm (r, o)", free, pinned, *why, **{"o": (5, 4), **rest}
        )

    head = "q = MatMul (s, wq) k = MatMul (s, wk) v1 = MatMul (s, wv)"
    attention = f"""{head} q1 = Reshape (q, s4) q2 = Transpose <perm=[0,2,1,3]> (q1)
        k1 = Reshape (k, s4) k2 = Transpose <perm=[0,2,3,1]> (k1)
        v2 = Reshape (v1, s4) v3 = Transpose <perm=[0,2,1,3]> (v2)
        d = MatMul (q2, k2) e = Mul (d, half) t = Softmax <axis=-1> (e)
        o = MatMul (t, v3) o1 = Transpose <perm=[0,2,1,3]> (o) o2 = Reshape (o1, s3) y = MatMul (o2, wo)"""
    words = {"inputs": "float[N,5,8] s", "s4": [0, 0, 4, 3], "s3": [0, 0, 12]}
    words |= {"wq": (8, 12), "wk": (8, 12), "wv": (8, 12), "wo": (12, 8)}
    single = (
        f"{head} k1 = Transpose <perm=[0,2,1]> (k) d = MatMul (q, k1) t = Softmax (d) o = MatMul (t, v1) "
        "y = MatMul (o, wo)"
    )
    heads = """q = Einsum <equation="abc,cde->abde"> (s, wq) k = Einsum <equation="abc,cde->abde"> (s, wq2)
        v1 = Einsum <equation="abc,cde->abde"> (s, wv) q1 = Add (q, bq) d = Einsum <equation="aecd,abcd->acbe"> (k, q1)
        t = Softmax <axis=-1> (d) o = Einsum <equation="acbe,aecd->abcd"> (t, v1) y = Einsum <equation="abcd,cde->abe"> (o, wo)"""
    keras = {
        "inputs": "float[N,5,8] s",
        "wq": (8, 4, 3),
        "wq2": (8, 4, 3),
        "wv": (8, 4, 3),
        "bq": (4, 3),
        "wo": (4, 3, 8),
    }
    tokens = f"{A} r = Reshape (a, s) t = Transpose <perm=[0,2,1]> (r)"
    return [
        gemm("transB", "h = Gemm <transB=1> (f, k, kb)", k=(5, 8), kb=(5,)),
        gemm("no transB", "h = Gemm (f, k, kb)", k=(8, 5), kb=(5,)),
        gemm("alpha, beta", "h = Gemm <alpha=0.5, beta=3.0> (f, k, kb)", k=(8, 5), kb=(5,)),
        gemm("no bias", "h = Gemm (f, k)", k=(8, 5)),
        gemm("bias (1, n)", "h = Gemm (f, k, kb)", k=(8, 5), kb=(1, 5)),
        gemm("bias (1)", "h = Gemm (f, k, kb)", k=(8, 5), kb=(1,)),
        gemm("bias ()", "h = Gemm (f, k, half)", k=(8, 5)),
        gemm("bias (m, 1)", "h = Gemm (f, k, kb)", k=(8, 5), kb=(1, 1)),
        gemm("bias (m, n), one row", "h = Gemm (f, k, kb)", k=(8, 5), kb=(1, 5), **flat),
        gemm("bias (m, n), two rows", "h = Gemm (f, k, kb)", k=(8, 5), kb=(2, 5), inputs="float[2,3,6,6] x"),
        gemm("a computed bias", "z = Gemm (f, n, nb) h = Gemm (f, k, z)", k=(8, 5), n=(8, 5), nb=(5,)),
        gemm("a computed bias of one column", "z = Gemm (f, n) h = Gemm (f, k, z)", 13, 5, ONLY, k=(8, 5), n=(8, 1)),
        gemm("transA", "t = Transpose (f) h = Gemm <transA=1> (t, k, kb)", k=(8, 5), kb=(5,)),
        gemm("transA and transB", "t = Transpose (f) h = Gemm <transA=1, transB=1> (t, k, kb)", k=(5, 8), kb=(5,)),
        gemm("a constant on the left", "t = Transpose (f) s = Gemm (k, t) h = Transpose (s)", k=(5, 8)),
        gemm("a weight that is computed", "t = Relu (k) h = Gemm (f, t)", 8 + 5, 4, k=(8, 5)),
        gemm(
            "two activations", "t = Transpose (f) s = Gemm (f, t) q = Flatten (s) h = MatMul (q, k)", 8 + 5, 4,
            k=(1, 5), **flat,
        ),
        gemm(
            "a weight mixed from stored ones",
            "e = GlobalAveragePool (x) e1 = Flatten (e) e2 = MatMul (e1, bank) e3 = Reshape (e2, s1) h = Gemm <transB=1> (f, e3)", 0, 20,
            "sums over more than the channels", bank=(3, 40), s1=[5, 8], **flat,
        ),
        case("MatMul", "a constant on the right", f"{row} y = MatMul (f, m)", 8, 4),
        case(
            "MatMul", "a constant on the right, rank 3", f"{tokens} b = MatMul (t, k) y = MatMul (b, o)", 8 + 5, 4,
            s=[0, 8, 36], k=(8, 5), o=(5, 4),
        ),
        case(
            "MatMul", "a constant on the left", f"{A} r = Reshape (a, s) b = MatMul (k, r) y = MatMul (o, b)", 8 + 5, 4,
            s=[0, 8, 36], k=(5, 8), o=(4, 5),
        ),
        case(
            "MatMul", "positions of a constant on the left",
            f"{tokens} b = MatMul (k, t) q = ReduceMean <axes=[1], keepdims=0> (b) y = MatMul (q, m)", 8, 4,
            s=[0, 8, 36], k=(5, 36), opset=13,
        ),
        case("MatMul", "a vector", f"{row} y = MatMul (f, k)", 8, 0, k=(8,)),
        case("MatMul", "a matrix in a stack of one", f"{tokens} y = MatMul (t, k)", 8, 4, s=[0, 8, 36], k=(1, 8, 4)),
        case(
            "MatMul", "a matrix in a stack of one, on the left", f"{A} r = Reshape (a, s) y = MatMul (k, r)", 8, 4, s=[0, 8, 36],
            k=(1, 4, 8),
        ),
        case(
            "MatMul", "a matrix for each head",
            f"{A} r = Reshape (a, s) t = Transpose <perm=[0,1,3,2]> (r) q = MatMul (t, k) e = ReduceMean <axes=[1], keepdims=0> (q) "
            "y = MatMul (e, o)", 4 + 5, 4, s=[0, 2, 4, 36], k=(2, 4, 5), o=(5, 4), opset=13, modes={"heads": "width"},
        ),
        case(
            "MatMul", "positions mixed with another activation",
            f"{tokens} q = MatMul (r, t) f = Flatten (q) y = MatMul (f, k)", 0, 12, "", s=[0, 8, 36], k=(64, 4),
        ),
        case("MatMul", "attention with heads: they go whole", attention, 4, 8, **words),
        case(
            "MatMul", "attention without heads: its width may go", single, 12 + 12, 8, **words,
        ),
        case("Einsum", "a product", f'{row} y = Einsum <equation="bc,ck->bk"> (f, m)', 8, 4),
        case(
            "Einsum", "a constant first", f'{row} h = Einsum <equation="kc, bc -> bk"> (k, f) y = MatMul (h, o)', 8 + 5,
            4, k=(5, 8), o=(5, 4),
        ),
        case(
            "Einsum", "a Conv of one pixel", f'{A} b = Einsum <equation="bchw,kc->bkhw"> (a, k) {Y}', 8 + 8, 4,
            k=(8, 8),
        ),
        one("Einsum", "a scale per channel", 'b = Einsum <equation="bchw,c->bchw"> (a, scale)', scale=(8,)),
        one("Einsum", "a map's columns", 'b = Einsum <equation="bchw,wv->bchv"> (a, k)', k=(6, 5)),
        one("Einsum", "a transposition", 'b = Einsum <equation="bchw->bcwh"> (a)'),
        one("Einsum", "a transposition of the last axes", 'b = Einsum <equation="...hw->...wh"> (a)'),
        case("Einsum", "a sum over channels", f'{A} y = Einsum <equation="bchw->bhw"> (a)', 8, 0),
        stuck("Einsum", "a diagonal", 'q = Einsum <equation="bchh->bch"> (a) b = Unsqueeze (q, ax)', "has an equation that is not understood", ax=[3]),
        case("Einsum", "an ellipsis", f'{tokens} h = Einsum <equation="...x,xy->...y"> (t, k) y = MatMul (h, o)', 8 + 5, 4, s=[0, 8, 36], k=(8, 5), o=(5, 4)),
        case("Einsum", "no arrow", f'{row} y = Einsum <equation="bc,cd"> (f, m)', 8, 4),
        case(
            "Einsum", "two written labels, then read", f'{tokens} h = Einsum <equation="abc,cde->abde"> (t, k) e = Add (h, kb) '
            'y = Einsum <equation="abde,dec->abc"> (e, o)', 8 + 3, 4, s=[0, 8, 36], k=(8, 2, 3), kb=(2, 3), o=(2, 3, 4),
        ),
        case("Einsum", "attention with heads of two labels", heads, 4, 8, **keras),
        case("Einsum", "attention with heads of two labels: width", heads, 3 + 3, 8, modes={"heads": "width"}, **keras),
        case(
            "Einsum", "attention with heads of two labels, each with a matrix", heads.replace("y = ", 'o1 = Einsum <equation="abcd,cde->abce"> (o, wm) y = ')
            .replace("(o, wo)", "(o1, wo)"), 4, 8, wm=(4, 3, 3), **keras,
        ),
        one("Einsum", "two activations", f'{C} b = Einsum <equation="bchw,bchw->bchw"> (a, c)'),
        stuck(
            "Einsum", "two activations, channels summed",
            'q = Einsum <equation="bchw,bcvw->bhv"> (a, a) r = Unsqueeze (q, ax) b = Mul (r, a)',
            "sums over more than the channels", ax=[1],
        ),
        flow(
            "Einsum", "channels summed away", 'q = Einsum <equation="bchw,wv->bhv"> (a, k) b = Unsqueeze (q, ax)', 0,
            8 + 5 + 4, "this Einsum sums over the channels", "Conv can't lose channels on axis 3", k=(6, 5), ax=[1],
            v=(4, 1, 1, 1),
        ),
    ]  # fmt: skip


CUT = {"norms": "cut"}


def _norms() -> list[Case]:
    four: dict[str, Any] = {"scale": (8,), "beta": (8,), "mu": (8,), "var": (8,)}
    two: dict[str, Any] = {"scale": (8,), "beta": (8,)}
    bn = "BatchNormalization"
    style = "q1 = GlobalAveragePool (a) q2 = Sigmoid (q1) p1 = Reshape (q2, s)"
    trained = "b, mean, variance = BatchNormalization <training_mode=1> (a, scale, beta, mu, var)"
    last = "t = Transpose <perm=[0,2,3,1]> (a) q = {} (t, {}) b = Transpose <perm=[0,3,1,2]> (q)"
    over = "normalizes over the channels"
    layer = """m1 = ReduceMean <axes=[1]> (a) d = Sub (a, m1) e = Pow (d, two) r = ReduceMean <axes=[1]> (e)
        s = Add (r, eps) t = Sqrt (s) q = Div (d, t) n = Mul (q, scale) b = Add (n, beta)"""
    group = """r = Reshape (a, s1) i = InstanceNormalization (r, scale2, beta2) t = Reshape (i, s2)
        n = Mul (t, scale) b = Add (n, beta)"""
    instance = layer.replace("axes=[1]", "axes=[2,3]")
    rms = "e = Mul (a, a) r = ReduceMean <axes=[1]> (e) s = Add (r, eps) t = Sqrt (s) q = Div (a, t) b = Mul (q, scale)"
    columns: dict[str, Any] = {"scale": (8, 1, 1), "beta": (8, 1, 1)}
    return [
        one(bn, "folded into the Conv before it", f"b = {bn} (a, scale, beta, mu, var)", **four),
        one(bn, "after Relu", f"r = Relu (a) b = {bn} (r, scale, beta, mu, var)", **four),
        one(
            bn, "before Relu and Conv",
            f"r = MaxPool <kernel_shape=[2,2]> (a) n = {bn} (r, scale, beta, mu, var) b = Relu (n)", **four,
        ),
        one(bn, "after an output of two readers", f"n = {bn} (a, scale, beta, mu, var) b = Add (n, a)", **four),
        case(
            bn, "on the input", f"n = {bn} (x, scale, beta, mu, var) a = Conv (n, w, wb) b = Relu (a) {Y}", 8, 4,
            **dict.fromkeys(four, (3,)),
        ),
        one(
            bn, "after a depthwise Conv", f"d = Conv <group=8> (a, k) b = {bn} (d, scale, beta, mu, var)",
            k=(8, 1, 3, 3), **four,
        ),
        flow(
            bn, "after a grouped Conv", f"d = Conv <group=2> (a, k) b = {bn} (d, scale, beta, mu, var)", 8,
            k=(8, 4, 3, 3), **four,
        ),
        flow(
            bn, "after a grouped ConvTranspose",
            f"d = ConvTranspose <group=2> (a, k) b = {bn} (d, scale, beta, mu, var)", 8, k=(8, 4, 3, 3), **four,
        ),
        flow(
            bn, "after a ConvTranspose", f"d = ConvTranspose (a, k) b = {bn} (d, scale, beta, mu, var)", 16,
            k=(8, 8, 3, 3), **four,
        ),
        case(
            bn, "after Gemm",
            f"{A} p = GlobalAveragePool (a) f = Flatten (p) h = Gemm (f, k) n = {bn} (h, scale, beta, mu, var) "
            "y = MatMul (n, m)",
            16, 4, k=(8, 8), **four,
        ),
        one(bn, "with a scale that is computed", f"{style} n1 = Mul (a, two) b = {bn} (n1, p1, beta, mu, var)", inputs=ONE, s=[8], **four),
        one("InstanceNormalization", "with a scale and a bias that are computed", f"{style} b = InstanceNormalization (a, p1, p1)", inputs=ONE, s=[8]),
        flow("InstanceNormalization", "with a scale of another layer", f"{C} {style.replace('(a)', '(c)')} b = InstanceNormalization (a, p1, beta)", 8, inputs=ONE, s=[8], **two),
        stuck(
            "InstanceNormalization", "with a scale that has no channels", "q = ReduceMean (x) p = Reshape (q, s1) p1 = Expand (p, s) "
            "b = InstanceNormalization (a, p1, beta)", "it meets the model input x", inputs=ONE, s=[8], s1=[1], **two,
        ),
        case(
            "LayerNormalization", "with a scale that is computed from channels",
            f"{A} {C} {style.replace('(a)', '(c)')} {last.format('LayerNormalization', 'p1')} {Y}", 0, 20, over,
            "LayerNormalization takes its input Scale from the channel", inputs=ONE, s=[8],
        ),
        stuck(bn, "in training mode", trained, "computes statistics of the batch", **four),
        one("InstanceNormalization", "", "b = InstanceNormalization (a, scale, beta)", **two),
        one("InstanceNormalization", "in primitives", instance, opset=13, **columns),
        flow(
            "GroupNormalization", "whole groups", "b = GroupNormalization <num_groups=2> (a, scale, beta)", 2, 4, opset=21,
            outputs="float[N,4,6,6] y", **two,
        ),
        flow(
            "GroupNormalization", "in primitives: whole groups", group, 2, 4, s1=[0, 2, -1], s2=[0, 8, 6, 6], scale2=(2,),
            beta2=(2,), **columns,
        ),
        stuck(
            "LayerNormalization", "over channels, last", last.format("LayerNormalization", "scale, beta"), over, **two,
        ),
        stuck(
            "LayerNormalization", "over all but the batch", "b = LayerNormalization <axis=1> (a, scale)", over,
            scale=(8, 6, 6),
        ),
        one("LayerNormalization", "over a row", "b = LayerNormalization (a, scale)", scale=(6,)),
        stuck("LayerNormalization", "in primitives", layer, "runs over the channels", opset=13, **columns),
        stuck(
            "RMSNormalization", "over channels, last", last.format("RMSNormalization", "scale"), over, opset=23,
            scale=(8,),
        ),
        one("RMSNormalization", "over a map", "b = RMSNormalization <axis=2> (a, scale)", opset=23, scale=(6, 6)),
        stuck("RMSNormalization", "in primitives", rms, "runs over the channels", opset=13, **columns),
        stuck("LRN", "", "b = LRN <size=3> (a)", over),
        one("LRN", "cut", "b = LRN <size=3, alpha=3., bias=0.1> (a)", modes=CUT),
        one("LRN", "cut, a wide window", "b = LRN <size=7, alpha=3., bias=0.1> (a)", modes=CUT),
        one("LRN", "of rows", "t = Transpose <perm=[0,2,3,1]> (a) q = LRN <size=3> (t) b = Transpose <perm=[0,3,1,2]> (q)"),
        one("LayerNormalization", "cut, last", last.format("LayerNormalization", "scale, beta"), modes=CUT, **two),
        one(
            "LayerNormalization", "cut, before opset 18", last.format("LayerNormalization", "scale"), modes=CUT, opset=17,
            scale=(8,),
        ),
        one("LayerNormalization", "cut, one scale", last.format("LayerNormalization", "scale"), modes=CUT, scale=(1,)),
        one(
            "LayerNormalization", "cut, over all but the batch", "b = LayerNormalization <axis=1> (a, scale, beta)", modes=CUT,
            scale=(8, 6, 6), beta=(8, 1, 1),
        ),
        one("LayerNormalization", "cut, in primitives", layer, opset=13, modes=CUT, **columns),
        stuck(
            "LayerNormalization", "cut, with a scale that is computed",
            "m1 = ReduceMean <axes=[0,1,2,3]> (x) k = Add (scale, m1) r = Reshape (k, s) " + last.format("LayerNormalization", "r"), over,
            modes=CUT, opset=17, s=[8], scale=(8,),
        ),
        one(
            "RMSNormalization", "cut, last", last.format("RMSNormalization", "scale"), opset=23, modes=CUT, scale=(8,),
        ),
        one("RMSNormalization", "cut, in primitives", rms, opset=13, modes=CUT, **columns),
        one(
            "GroupNormalization", "cut, one group", "b = GroupNormalization <num_groups=1> (a, scale, beta)", opset=21,
            outputs="float[N,4,6,6] y", modes=CUT, **two,
        ),
        one(
            "GroupNormalization", "cut, one group in primitives", group, modes=CUT, s1=[0, 1, -1], s2=[0, 8, 6, 6],
            scale2=(1,), beta2=(1,), **columns,
        ),
        flow(
            "GroupNormalization", "cut, whole groups all the same", "b = GroupNormalization <num_groups=2> (a, scale, beta)",
            2, 4, opset=21, outputs="float[N,4,6,6] y", modes=CUT, **two,
        ),
        stuck(
            "MeanVarianceNormalization", "over channels", "b = MeanVarianceNormalization <axes=[1,2,3]> (a)", over,
            opset=9,
        ),
        one("MeanVarianceNormalization", "by default", "b = MeanVarianceNormalization (a)", opset=9),
    ]  # fmt: skip


def _others() -> list[Case]:
    boxes = np.array([[0, 0, 4, 4], [1, 1, 5, 3]], np.float32)
    rois = np.array([[0, 0, 0, 4, 4], [0, 1, 1, 5, 3]], np.float32)
    grid = np.random.default_rng(1).uniform(-1, 1, (1, 4, 4, 2)).astype(np.float32)
    return [
        one("GridSample", "", "b = GridSample (a, grid)", inputs="float[1,3,6,6] x", grid=grid),
        case(
            "GridSample", "computed positions",
            f"{A} c = Conv (x, k) t = Transpose <perm=[0,2,3,1]> (c) b = GridSample (a, t) {Y}", 8, 6,
            "GridSample reads positions from the channel", k=(2, 3, 1, 1),
        ),
        one("RoiAlign", "", "b = RoiAlign <output_height=2, output_width=2> (a, boxes, at)", boxes=boxes, at=[0, 0]),
        one("MaxRoiPool", "", "b = MaxRoiPool <pooled_shape=[2,2]> (a, rois)", rois=rois),
    ]  # fmt: skip


def _recurrent(op: str, gates: int) -> list[Case]:
    stock = {
        "lw": (1, 5 * gates, 8), "lr": (1, 5 * gates, 5), "lb": (1, 10 * gates), "lw2": (1, 5 * gates, 5),
        "bw": (2, 5 * gates, 8), "br": (2, 5 * gates, 5), "bb": (2, 10 * gates), "bw2": (2, 6 * gates, 10),
        "br2": (2, 6 * gates, 6), "o": (5, 4), "o10": (10, 4), "o12": (12, 4),
        "i0": [0], "i1": [1], "i2": [2], "i5": [5],
    }  # fmt: skip
    last = "f = Squeeze (h, i0) y = MatMul (f, o)"
    both = f'{op} <hidden_size=5, direction="bidirectional">'
    join = "q = Transpose <perm=[0,2,1,3]> (s) f = Reshape (q, t3)"
    sized = "d = Shape (t) n = Gather (d, i1) e = Concat <axis=0> ({}, n, i5) z = ConstantOfShape (e)"
    stack = "s, h = CELL (t, lw, lr) q = Squeeze (s, i1) u, g1 = CELL (q, lw2, lr, lb) c = Concat <axis=0> (h, g1)"
    two = {"inputs": "float[2,3,9] x"}

    def integers(*shape: int) -> npt.NDArray[Any]:
        return np.random.default_rng(1).integers(-100, 100, shape, dtype=np.int8)

    def net(name: str, text: str, free: int = 8 + 5, pinned: int = 4, *why: str, **rest: Any) -> Case:
        text = f"{A} t = Transpose <perm=[2,0,1]> (a) {text.replace('CELL', f'{op} <hidden_size=5>')}"
        return case(op, name, text, free, pinned, *why, **{**LINE, **stock, **rest})

    return [
        net("", f"s, h = CELL (t, lw, lr, lb) {last}"),
        net("its sequence", "s = CELL (t, lw, lr) q = Squeeze (s, i1) y = MatMul (q, o)"),
        net("in reverse", f's, h = {op} <hidden_size=5, direction="reverse"> (t, lw, lr, lb) {last}'),
        net("two directions", f"s, h = {both} (t, bw, br) f = ReduceSum <keepdims=0> (h, i0) y = MatMul (f, o)"),
        net("two directions, joined", f"s = {both} (t, bw, br, bb) {join} y = MatMul (f, o10)", t3=[0, 0, -1]),
        net("two directions, joined by a literal", f"s = {both} (t, bw, br) {join} y = MatMul (f, o10)", t3=[9, -1, 10]),
        net(
            "two layers", f"s = {both} (t, bw, br, bb) {join} u, h = {both.replace('5', '6')} (f, bw2, br2) "
            "p = Transpose <perm=[1,0,2]> (h) r = Reshape (p, t2) y = MatMul (r, o12)", 8 + 5 + 6, t3=[0, 0, 10],
            t2=[-1, 12],
        ),
        net(
            "two directions, joined by a computed shape", f"s = {both} (t, bw, br) q = Transpose <perm=[0,2,1,3]> (s) "
            "d = Shape (q) n = Slice (d, i1, i2) e = Concat <axis=0> (nine, n, ten) f = Reshape (q, e) "
            "y = MatMul (f, o10)", nine=[9], ten=[10],
        ),
        net("the last of two final states", f"{stack} z = Gather (c, last) y = MatMul (z, o)", 8 + 5, last=np.int64(-1)),  # both layers share lb
        net("the sum of two final states", f"{stack} z = ReduceSum <keepdims=0> (c, i0) y = MatMul (z, o)"),
        net(
            "two final states in turn", f"{stack} g = Gather (c, turn) z = ReduceSum <keepdims=0> (g, i0) y = MatMul (z, o)",
            turn=[1, 0],
        ),
        net(
            "weights of 8 bits", "lw = DequantizeLinear <axis=1> (qw, scalew, pw) lr = DequantizeLinear (qr, scaler, pr) "
            f"s, h = CELL (t, lw, lr, lb) {last}", qw=integers(1, 5 * gates, 8), scalew=(5 * gates,),
            pw=np.zeros(5 * gates, np.int8), qr=integers(1, 5 * gates, 5), scaler=np.float32(0.01), pr=np.int8(3),
        ),
        net("lengths of sequences", f"s, h = CELL (t, lw, lr, lb, n) {last}", n=np.array([4, 9], np.int32), **two),
        net("a constant state", f"s, h = CELL (t, lw, lr, lb, , z) {last}", z=(1, 2, 5), **two),
        net("a zero state of fixed size", f"s, h = CELL (t, lw, lr, , , z) {last}", z=np.zeros((1, 2, 5), "f"), **two),
        net("a zero state of the batch", f"{sized.format('i1')} s, h = CELL (t, lw, lr, lb, , z) {last}"),
        net(
            "zero states of two layers", f"{sized.format('i2')} z1, z2 = Split <axis=0> (z, each) "
            f"s = CELL (t, lw, lr, lb, , z1) q = Squeeze (s, i1) u, h = CELL (q, lw2, lr, , , z2) {last}", 8 + 5,  # both share lr
            each=[1, 1],
        ),
        net(
            "a state of another value", f"{sized.format('i1')} zz = Add (z, half) s, h = CELL (t, lw, lr, lb, , zz) {last}",
        ),
        net(
            "a state that is computed", "p = GlobalAveragePool (x) e = Conv (p, k) z = Transpose <perm=[2,0,1]> (e) "
            f"s, h = CELL (t, lw, lr, lb, , z) {last}", k=(5, 3, 1),
        ),
        net(
            "a state that is an input", f"s, h = CELL (t, lw, lr, lb, , z) {last}", 8, 4 + 5,
            f"an initial state of this {op} is an input of the model, or pinned",
            inputs="float[N,3,9] x, float[1,N,5] z",
        ),
        net(
            "a weight that is computed", f"g = ReduceMean <keepdims=0> (x) u = Add (lr, g) s, h = CELL (t, lw, u) {last}",
            8, 4 + 5, f"a weight of this {op} is not a constant",
        ),
    ]  # fmt: skip


def _newer() -> list[Case]:
    """Operators of opsets 18 to 24, zeros of a shape, deformable convolutions."""
    dcn = "o = Conv (x, ow) m1 = Conv (x, mw) m2 = Sigmoid (m1) b = DeformConv <kernel_shape=[3,3], pads=[1,1,1,1]{}> (a, k, o, kb, m2)"
    positions = "DeformConv reads positions from the channel"
    dw: dict[str, Any] = {"ow": (18, 3, 1, 1), "mw": (9, 3, 1, 1), "k": (8, 8, 3, 3), "kb": (8,), "opset": 22}
    two = dw | {"ow": (36, 3, 1, 1), "mw": (18, 3, 1, 1)}
    head = "q = MatMul (s, wq) k = MatMul (s, wk) v1 = MatMul (s, wv)"
    flat = f"{head} o = Attention <q_num_heads=4, kv_num_heads=4{{}}> (q, k, v1{{}}) y = MatMul (o, wo)"
    words: dict[str, Any] = {
        "inputs": "float[N,5,8] s",
        "opset": 23,
        "wq": (8, 12),
        "wk": (8, 12),
        "wv": (8, 8),
        "wo": (8, 8),
    }
    shared = f"{head} o = Attention <q_num_heads=4, kv_num_heads={{}}> (q, k, v1) y = MatMul (o, wo)"
    four = f"""{head} q1 = Reshape (q, s4) q2 = Transpose <perm=[0,2,1,3]> (q1) k1 = Reshape (k, s4) k2 = Transpose <perm=[0,2,1,3]> (k1)
        v2 = Reshape (v1, s2) v3 = Transpose <perm=[0,2,1,3]> (v2) o = Attention (q2, k2, v3) o1 = Transpose <perm=[0,2,1,3]> (o)
        o2 = Reshape (o1, s3) y = MatMul (o2, wo)"""
    axes = words | {"s4": [0, 0, 4, 3], "s2": [0, 0, 4, 2], "s3": [0, 0, 8]}
    width = {"heads": "width"}
    turned = f"{head} r = RotaryEmbedding <num_heads=4> (q, cos, sin, at) o = Attention <q_num_heads=4, kv_num_heads=4> (r, k, v1) y = MatMul (o, wo)"
    rotary = words | {
        "wq": (8, 16),
        "wk": (8, 16),
        "cos": (5, 2),
        "sin": (5, 2),
        "at": np.arange(5)[None],
        "inputs": "float[1,5,8] s",
    }
    n = "n = Shape <start=0, end=1> (x)"
    zeros = f"{n} t = Concat <axis=0> (n, sz) z = ConstantOfShape (t)"
    state = "g1 = Conv (j, k) p, q = Split <axis=1> (g1, half8) e = Sigmoid (p) f = Tanh (q) h1 = Mul (e, f)"
    cell = f"{zeros} c1 = Concat <axis=1> (a, z) j = Relu (c1) {state} h2 = Add (h1, z) b = Concat <axis=1> (h2, a)"
    return [
        case("DeformConv", "", f"{A} {dcn.format('')} {Y}", 8 + 8, 27 + 4, positions, **dw),
        case("DeformConv", "without mask and bias", f"{A} o = Conv (x, ow) b = DeformConv <pads=[1,1,1,1]> (a, k, o) {Y}", 8 + 8, 18 + 4, positions, **dw),
        case("DeformConv", "groups", f"{A} {dcn.format(', group=2')} {Y}", 4 + 4, 27 + 4, positions, **dw | {"k": (8, 4, 3, 3)}),
        case("DeformConv", "depthwise", f"{A} {dcn.format(', group=8')} {Y}", 8, 27 + 4, positions, **dw | {"k": (8, 1, 3, 3)}),
        case("DeformConv", "groups of offsets", f"{A} {dcn.format(', offset_group=2')} {Y}", 4 + 8, 54 + 4, positions, **two),
        case("Attention", "whole heads", flat.format("", ""), 4, 8, **words),
        case("Attention", "width", flat.format("", ""), 3 + 2, 8, modes=width, **words),
        case("Attention", "a scale, causal, softcap", flat.format(", scale=0.3, is_causal=1, softcap=2.", ""), 4, 8, **words),
        case("Attention", "a mask for all heads", flat.format("", ", mask"), 4, 8, mask=(5, 5), **words),
        case("Attention", "a mask for each head", flat.format("", ", mask"), 4, 8, mask=(1, 4, 5, 5), **words),
        case("Attention", "heads that share keys", shared.format(2), 2, 8, **words | {"wk": (8, 6), "wv": (8, 4)}),
        case("Attention", "heads that share keys: width", shared.format(2), 3 + 2, 8, modes=width, **words | {"wk": (8, 6), "wv": (8, 4)}),
        case("Attention", "heads that all share keys", shared.format(1), 4, 5 + 8, "all heads of this Attention share", **words | {"wk": (8, 3), "wv": (8, 2)}),
        case("Attention", "one head", flat.replace("=4", "=1").format("", ""), 12 + 8, 8, **words),
        case("Attention", "an axis of heads", four, 4, 8, **axes),
        case("Attention", "an axis of heads: width", four, 3 + 2, 8, modes=width, **axes),
        case("RotaryEmbedding", "", turned, 4, 8, **rotary),
        case("CastLike", "", f"{A} {C} b = CastLike (a, c) {Y}", 16, 4),
        one("ReverseSequence", "of rows", "t = Transpose <perm=[2,0,1,3]> (a) q = ReverseSequence (t, at) b = Transpose <perm=[1,2,0,3]> (q)", inputs="float[2,3,6,6] x", at=[6, 3]),
        one("BitwiseNot", "", "j = Cast <to=6> (a) q = BitwiseNot (j) b = Cast <to=1> (q)"),
        *(one(op, "", f"j = Cast <to=6> (a) q = {op} (j, bits) b = Cast <to=1> (q)", bits=np.arange(8, dtype=np.int32).reshape(8, 1, 1)) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
        one("BitShift", "", 'j = Cast <to=12> (a) q = BitShift <direction="LEFT"> (j, bits) b = Cast <to=1> (q)', bits=np.arange(8, dtype=np.uint32).reshape(8, 1, 1) % 3),
        flow("TensorScatter", "", f"{C} b = TensorScatter <axis=2> (a, c, at)", 8, opset=24, at=[0], inputs=ONE),
        stuck("TensorScatter", "into the input", "q = ReduceMax <keepdims=0> (x) z = Expand (q, sz) b = TensorScatter (z, a, at)", "it meets the model input x", opset=24, at=[0], inputs=ONE, sz=[1, 8, 6, 6]),
        flow("ConstantOfShape", "zeros beside channels", f"{zeros} b = Concat <axis=1> (a, z)", 8 + 5, sz=[5, 6, 6], v=(4, 13, 1, 1), opset=17),
        flow("ConstantOfShape", "the state of a cell", cell, 8 + 4, sz=[4, 6, 6], k=(8, 12, 1, 1), half8=[4, 4], v=(4, 12, 1, 1), opset=17),
        flow("Expand", "one number", f"{n} t = Concat <axis=0> (n, sz) z = Expand (one1, t) b = Concat <axis=1> (z, a)", 8 + 5, sz=[5, 6, 6], one1=np.ones(1, np.float32), v=(4, 13, 1, 1), opset=17),
        flow("Expand", "coordinates", f"{n} t = Concat <axis=0> (n, sz) z = Expand (k, t) b = Concat <axis=1> (a, z)", 8 + 2, sz=[2, 6, 6], k=(1, 2, 6, 6), v=(4, 10, 1, 1), opset=17),
        *(
            flow(op, f"{count} tokens {place}, {spelled}", f"{n} r = Reshape (a, rs) p = Transpose <perm=[0,2,1]> (r) {text} q = Concat <axis=1> ({joined}) u = Transpose <perm=[0,2,1]> (q) b = Unsqueeze (u, last)", 8, v=(4, 8, 1, 1), opset=17, token=(1, count, 8), ones=[1, 1], sz=[count, 8], rs=[0, 0, 36], last=[3])
            for op, spelled, text in (("Expand", "sizes", "t = Concat <axis=0> (n, sz) z = Expand (token, t)"), ("Expand", "ones", "t = Concat <axis=0> (n, ones) z = Expand (token, t)"), ("Tile", "repeats", "t = Concat <axis=0> (n, ones) z = Tile (token, t)"))
            for count, (place, joined) in ((1, ("first", "z, p")), (3, ("last", "p, z")))
        ),
        *(
            flow(op, f"tokens before the others, {spelled}", f"{n} {text} r = Reshape (a, rs) p = Transpose <perm=[0,2,1]> (r) m = Add (p, place) q = Concat <axis=1> (z, m) l = MatMul (q, wm) u = Transpose <perm=[0,2,1]> (l) b = Unsqueeze (u, last)", 8 + 8, v=(4, 8, 1, 1), opset=17, last=[3], token=(1, 3, 8), ones=[1, 1], sz=[3, 8], rs=[0, 8, 36], place=(1, 36, 8), wm=(8, 8))
            for op, spelled, text in (
                ("Expand", "sizes", "t = Concat <axis=0> (n, sz) z = Expand (token, t)"),
                ("Expand", "ones", "t = Concat <axis=0> (n, ones) z = Expand (token, t)"),
                ("Tile", "repeats", "t = Concat <axis=0> (n, ones) z = Tile (token, t)"),
            )
        ),
    ]  # fmt: skip


def _joins() -> list[Case]:
    different = "Concat joins channels that lie on different axes"
    across = f"{A} {C} t = Transpose <perm=[0,2,1,3]> (a) q = Concat <axis=1> (t, c) f = Flatten (q) y = MatMul (f, k)"
    parts = "b, c = Split <axis=1> (a{}) d = Conv (b, k) e = Conv (c, l) y = Add (d, e)"
    half = {"k": (4, 4, 1, 1), "l": (4, 4, 1, 1)}
    other = {"k": (4, 5, 1, 1), "l": (4, 3, 1, 1)}
    equal = "b, c = Split <axis=1> (a) d = Conv (b, k) e = Conv (c, l) y = Add (d, e)"
    counted = parts.replace("axis=1", "axis=1, num_outputs=2").format("")
    three = "p, q, r = Split <axis=1, num_outputs=3> (a) b = Concat <axis=1> (r, p, q)"
    attribute = "b, c = Split <axis=-3, split=[5, 3]> (a) d = Conv (b, k) e = Conv (c, l) y = Add (d, e)"
    computed = (
        "h = Shape <start=2, end=3> (x) i = Div (h, h) j = Sub (k8, i) n = Concat <axis=0> (i, j) "
        "p, q = Split <axis=1> (a, n) b = Concat <axis=1> (q, p)"
    )
    gate = "p, q = Split <axis=1> (a, s) t = Sigmoid (q) b = Mul (p, t)"
    return [
        flow("Concat", "", f"{C} b = Concat <axis=1> (a, c)", 16, v=(4, 16, 1, 1)),
        flow("Concat", "axis from the end", f"{C} b = Concat <axis=-3> (c, a)", 16, v=(4, 16, 1, 1)),
        one("Concat", "one tensor", "b = Concat <axis=1> (a)"),
        one("Concat", "of a tensor with itself", "b = Concat <axis=1> (a, a)", v=(4, 16, 1, 1)),
        one("Concat", "with the input", "b = Concat <axis=1> (x, a)", v=(4, 11, 1, 1)),
        flow("Concat", "with a constant", "b = Concat <axis=1> (k, a)", 10, k=(1, 2, 6, 6), inputs=ONE, v=(4, 10, 1, 1)),
        one("Concat", "of rows", f"{C} b = Concat <axis=2> (a, c)"),
        one("Concat", "of rows, with a constant", "b = Concat <axis=2> (a, k)", k=(1, 8, 2, 6), inputs=ONE),
        one("Concat", "of batches", f"{C} b = Concat <axis=0> (a, c)"),
        flow(
            "Concat", "of rows, with the input", "b = Concat <axis=2> (a, x)", 0, 7, "Concat joins the channel with the model input x",
            w=(3, 3, 1, 1), wb=(3,), v=(4, 3, 1, 1),
        ),
        case("Concat", "along and across", across, 0, 20, different, k=(16 * 64, 4), inputs="float[N,3,8,8] x"),
        case("Split", "sizes as input", f"{A} {parts.format(', s')}", 8, 4, s=[4, 4], **half),
        case("Split", "unequal sizes as input", f"{A} {parts.format(', s')}", 8, 4, s=[5, 3], **other),
        case("Split", "unequal sizes as an attribute", f"{A} {attribute}", 8, 4, opset=11, **other),
        case("Split", "equal parts, opset 13", f"{A} {equal}", 8, 4, opset=13, **half),
        case("Split", "equal parts, opset 11", f"{A} {equal}", 8, 4, opset=11, **half),
        case("Split", "equal parts, their number given", f"{A} {counted}", 8, 4, **half),
        one("Split", "a number of parts that does not divide", three),
        one("Split", "of rows", "p, q = Split <axis=2> (a, s) b = Concat <axis=2> (q, p)", s=[1, 5]),
        flow(
            "Split", "computed sizes", computed, 0, 12, "the sizes of this Split are computed at run time", ONLY,
            k8=[8], inputs="float[N,3,H,6] x", outputs="float[N,4,H,6] y",
        ),
        flow("Split", "a gate", gate, 4, s=[4, 4], v=(4, 4, 1, 1)),
        one("Split", "a part that nobody reads", "b, q = Split <axis=1> (a, s)", s=[5, 3], v=(4, 5, 1, 1)),
        case(
            "Split", "a part that is an output", f"{A} b, q = Split <axis=1> (a, s) {Y}", 5, 7, outputs="y, q",
            s=[5, 3], v=(4, 5, 1, 1),
        ),
    ]  # fmt: skip


def _cuts() -> list[Case]:
    big = 2**63 - 1

    def cut(name: str, start: int, end: int, left: int, step: int | None = None, **rest: Any) -> Case:
        inputs = "a, start, end, one" + ("" if step is None else ", step")
        bounds: dict[str, Any] = {"start": [start], "end": [end], "one": [1]} | (
            {} if step is None else {"step": [step]}
        )
        return one("Slice", name, f"b = Slice ({inputs})", v=(4, left, 1, 1), **bounds, **rest)

    steps = "this Slice steps over channels"
    halves = "p = Slice (a, k0, k3, k1) q = Slice (a, k3, k9, k1) b = Concat <axis=1> (q, p)"
    several = "b = Slice (a, starts, ends, axes)"
    computed = "h = Shape <start=2, end=3> (x) i = Div (h, h) b = Slice (a, i, k8, k1)"
    table = "q = Gather <axis=1> (a, k) b = Reshape (q, s)"
    found = (
        "q = GlobalAveragePool (x) f = Flatten (q) e = ArgMax <axis=1, keepdims=0> (f) i = ReduceMax (e) "
        "b = Gather <axis=1> (a, i)"
    )
    takes = "this Gather takes channels by positions that are computed"
    three = f"{A} r = Reshape (a, s) t = Transpose <perm=[0,2,1]> (r) q = Gather <axis=2> (t, k) y = MatMul (q, o)"
    words = "e = Gather (k, i) t = Transpose <perm=[0,2,1]> (e) b = Conv (t, w, wb) y = Conv (b, v, vb)"
    wrap = 'b = Pad <mode="wrap"> (a, k)'
    return [
        cut("the first", 0, 5, 5),
        cut("the last", 3, 8, 5),
        cut("the last, to the greatest integer", 3, big, 5),
        cut("the last, to the greatest 32 bit integer", 3, 2**31 - 1, 5),
        cut("the last, counted from the end", -3, big, 3),
        cut("all but the last", 0, -1, 7),
        cut("the middle, counted from the end", -6, -2, 4),
        cut("the middle, counted from both ends", 2, -2, 4),
        cut("beyond the end", 2, 100, 6),
        cut("before the begin", -100, 5, 5),
        cut("all of them", 0, 8, 8),
        cut("all of them, step 1", 0, big, 8, 1),
        cut("reversed", -1, -big, 8, -1),
        flow(
            "Slice", "reversed, from a literal", "b = Slice (a, k7, k9, k1, m1)", 0, 12, steps, k7=[7], k9=[-big],
            k1=[1], m1=[-1],
        ),
        flow("Slice", "every other", "b = Slice (a, k0, k8, k1, k2)", 4, k0=[0], k8=[8], k1=[1], k2=[2], v=(4, 4, 1, 1)),
        flow("Slice", "every other, from the second on", "b = Slice (a, k1, k9, k1, k2)", 4, k1=[1], k9=[big], k2=[2], v=(4, 4, 1, 1)),
        flow("Slice", "every third, to a literal", "b = Slice (a, k1, k7, k1, k3)", 3, k1=[1], k7=[7], k3=[3], v=(4, 2, 1, 1)),
        flow("Slice", "every other, from a whole step on", "b = Slice (a, k4, k9, k1, k2)", 4, k4=[4], k9=[big], k1=[1], k2=[2], v=(4, 2, 1, 1)),
        flow("Slice", "every other, from within a step on", "b = Slice (a, k3, k9, k1, k2)", 0, 12, steps, k3=[3], k9=[big], k1=[1], k2=[2], v=(4, 3, 1, 1)),
        flow("Slice", "even and odd ones", "p = Slice (a, k0, k9, k1, k2) q = Slice (a, k1, k9, k1, k2) b = Mul (p, q)", 4, k0=[0], k9=[big], k1=[1], k2=[2], v=(4, 4, 1, 1)),
        flow(
            "Slice", "reversed, a part", "b = Slice (a, k5, k0, k1, m1)", 0, 12, steps, k5=[5], k0=[0], k1=[1], m1=[-1],
            v=(4, 5, 1, 1),
        ),
        one("Slice", "two halves change places", halves, k0=[0], k1=[1], k3=[3], k9=[big]),
        one("Slice", "several axes", several, starts=[1, 2, -2], ends=[5, 8, big], axes=[3, 1, 2], v=(4, 6, 1, 1)),
        one("Slice", "axes left out", "b = Slice (a, starts, ends)", starts=[0, 2], ends=[big, 7], v=(4, 5, 1, 1)),
        one("Slice", "attributes", "b = Slice <axes=[1,2], starts=[2,0], ends=[7,3]> (a)", opset=9, v=(4, 5, 1, 1)),
        one(
            "Slice", "attributes, axes left out", "b = Slice <starts=[0,2], ends=[9999,-1]> (a)", opset=9,
            v=(4, 5, 1, 1),
        ),
        one("Slice", "rows, every other", "b = Slice (a, k0, k9, k2, k2)", k0=[0], k9=[big], k2=[2]),
        one(
            "Slice", "32 bit bounds", "b = Slice (a, start, end, ax)", start=np.array([2], np.int32),
            end=np.array([7], np.int32), ax=np.array([1], np.int32), v=(4, 5, 1, 1),
        ),
        flow(
            "Slice", "computed bounds", computed, 0, 12, "this Slice has bounds", k8=[8], k1=[1],
            inputs="float[N,3,H,6] x", v=(4, 7, 1, 1),
        ),
        one("Gather", "some", "b = Gather <axis=1> (a, k)", k=[1, 4, 6], v=(4, 3, 1, 1)),
        one("Gather", "a permutation", "b = Gather <axis=1> (a, k)", k=[3, 1, 7, 5, 0, 2, 6, 4]),
        one("Gather", "from the end", "b = Gather <axis=-3> (a, k)", k=[-1, 0, -3], v=(4, 3, 1, 1)),
        one("Gather", "some twice", "b = Gather <axis=1> (a, k)", k=[2, 2, 0, 5, 2], v=(4, 5, 1, 1)),
        one(
            "Gather", "32 bit positions", "b = Gather <axis=1> (a, k)", k=np.array([1, 6, 3], np.int32), v=(4, 3, 1, 1),
        ),
        flow(
            "Gather", "one", "q = Gather <axis=1> (a, k) b = Unsqueeze (q, ax)", 7, 5,
            "this Gather takes the one channel", ONLY, k=np.int64(2), ax=[1], v=(4, 1, 1, 1), changes=False,
        ),
        one("Gather", "a row", "q = Gather <axis=2> (a, k) b = Unsqueeze (q, ax)", k=np.int64(-1), ax=[2]),
        one("Gather", "rows", "b = Gather <axis=2> (a, k)", k=[0, 5]),
        case("Gather", "of tokens", three, 8, 4, s=[0, 8, 36], k=[5, 3, 1], o=(3, 4)),
        flow(
            "Gather", "a table of channels", table, 0, 12, "this Gather takes a table", k=np.array([[0, 1], [2, 3]]),
            s=[0, 4, 6, 6], v=(4, 4, 1, 1),
        ),
        flow("Gather", "computed positions", found, 0, 12, takes, v=(4, 1, 1, 1)),
        case("Gather", "an embedding", words, 8, 4, k=(11, 3), inputs="int64[N,9] i", w=(8, 3, 1), v=(4, 8, 1)),
        one("Pad", "rows and columns", "b = Pad (a, k)", k=[0, 0, 1, 0, 0, 0, 0, 2]),
        one("Pad", "reflected rows", 'b = Pad <mode="reflect"> (a, k)', k=[0, 0, 1, 0, 0, 0, 0, 2]),
        one("Pad", "wrapped rows", wrap, k=[0, 0, 1, 0, 0, 0, 0, 2], opset=19),
        flow("Pad", "channels", "b = Pad (a, k, half)", 11, k=[0, 1, 0, 0, 0, 2, 0, 0], v=(4, 11, 1, 1)),
        flow("Pad", "channels, attribute", "b = Pad <pads=[0,1,0,0,0,2,0,0], value=0.5> (a)", 11, opset=10, v=(4, 11, 1, 1)),
        flow("Pad", "channels, axes as input", "b = Pad (a, k, half, ax)", 11, k=[1, 0, 2, 1], ax=[1, -1], v=(4, 11, 1, 1)),
        flow(
            "Pad", "channels that meet others", "d = Conv (x, u1) p = Pad (a, k, zero) b = Add (p, d)", 11, k=[0, 1, 0, 0, 0, 2, 0, 0],
            u1=(11, 3, 1, 1), v=(4, 11, 1, 1),
        ),
        flow("Pad", "channels of the input", "p = Pad (x, k, zero) b = Add (p, a)", 0, 12, "it meets the model input x", k=[0, 0, 0, 0, 0, 5, 0, 0]),
        one("Pad", "cropped rows", "b = Pad (a, k)", k=[0, 0, -1, 0, 0, 0, -1, 0]),
        flow(
            "Pad", "repeated channels", 'b = Pad <mode="edge"> (a, k)', 0, 12, "repeats or crops channels",
            k=[0, 1, 0, 0, 0, 2, 0, 0], v=(4, 11, 1, 1),
        ),
        flow(
            "Pad", "cropped channels", "b = Pad (a, k)", 0, 12, "repeats or crops channels",
            k=[0, -1, 0, 0, 0, 0, 0, 0], v=(4, 7, 1, 1),
        ),
    ]  # fmt: skip


def _shapes() -> list[Case]:
    def shaped(
        name: str, *target: int, tail: str = "f = Flatten (b) y = MatMul (f, o)", n: int = 288, **rest: Any
    ) -> Case:
        return case("Reshape", name, f"{A} b = Reshape (a, s) {tail}", 8, 4, s=list(target), o=(n, 4), **rest)

    lane = "can't lose channels on axis"
    sequence = (
        "t = Transpose <perm=[2,0,1]> (b) h, z = LSTM <hidden_size=5> (t, lw, lr) f = Squeeze (z, ax) y = MatMul (f, o)"
    )
    shuffle = "p = Reshape (a, s1) q = Transpose <perm=[0,2,1,3,4]> (p) b = Reshape (q, s2)"
    reader = (
        "b = Conv <group=2> (a, k) p = Reshape (b, s1) q = Transpose <perm=[0,2,1,3,4]> (p) c = Reshape (q, s2) "
        "y = Conv <group=2> (c, l)"
    )
    tokens = "r = Reshape (a, s) t = Transpose <perm=[0,2,1]> (r) y = MatMul (t, m)"
    images = "r = Reshape (a, s1) q = Conv <pads=[1,1,1,1]> (r, k) b = Reshape (q, s2)"
    squeezed = f"{A} p = GlobalAveragePool (a) f = Squeeze ({{}}) y = MatMul (f, m)"
    turned = "b = Transpose <perm=[1,0,2,3]> (a)"
    nhwc = (
        f"{A} t = Transpose <perm=[0,2,3,1]> (a) r = Relu (t) q = MatMul (r, k) b = Transpose <perm=[0,3,1,2]> (q) "
        "y = Conv (b, v)"
    )
    return [
        shaped("0, -1", 0, -1),
        shaped("-1, n", -1, 288),
        shaped("0, channels, -1", 0, 8, -1),
        shaped("0, 0, -1", 0, 0, -1),
        shaped("0, -1, n", 0, -1, 36),
        shaped("-1, channels, n", -1, 8, 36),
        shaped("-1, channels, more axes", -1, 8, 2, 3, 6),
        shaped("allowzero without zeros", -1, 8, 36),
        shaped("channels are joined to rows", 0, 48, 6),
        shaped("channels are joined to rows, -1", 0, -1, 6),
        case(
            "Reshape", "allowzero", f"{A} b = Reshape <allowzero=1> (a, s) f = Flatten (b) y = MatMul (f, o)", 8, 4,
            s=[-1, 8, 36], o=(288, 4),
        ),
        case(
            "Reshape", "copies a size from another axis",
            f"{A} t = Transpose <perm=[0,2,1,3]> (a) b = Reshape (t, s) f = ReduceMean <keepdims=0> (b, ax) "
            "y = MatMul (f, m)",
            8, 4, s=[0, 0, 0, -1], ax=[1, 3],
        ),
        case(
            "Reshape", "a fixed batch", f"{A} b = Reshape (a, s) y = MatMul (b, o)", 8, 4, s=[1, -1], o=(288, 4),
            inputs=ONE,
        ),
        case(
            "Reshape", "a fixed batch, literals", f"{A} b = Reshape (a, s) y = MatMul (b, o)", 8, 4, s=[2, 288],
            o=(288, 4), inputs="float[2,3,6,6] x",
        ),
        case(
            "Reshape", "to a sequence", f"{A} b = Reshape (a, s) {sequence}", 8 + 5, 4, s=[0, 48, 6], lw=(1, 20, 48),
            lr=(1, 20, 5), ax=[0], o=(5, 4),
        ),
        case("Reshape", "to tokens", f"{A} {tokens}", 8, 4, s=[0, 8, 36]),
        flow("Reshape", "channel shuffle", shuffle, 4, s1=[0, 2, 4, 6, 6], s2=[0, 8, 6, 6]),
        flow("Reshape", "channel shuffle, -1", shuffle, 4, s1=[-1, 2, 4, 6, 6], s2=[-1, 8, 6, 6]),
        flow("Reshape", "channel shuffle, -1 for channels", shuffle, 2, s1=[0, 4, -1, 6, 6], s2=[0, -1, 6, 6]),
        case(
            "Reshape", "channel shuffle between grouped Convs", f"{A} {reader}", 4 + 2, 2, s1=[0, 2, 4, 6, 6],
            s2=[0, 8, 6, 6], k=(8, 4, 1, 1), l=(4, 4, 1, 1),
        ),
        flow(
            "Reshape", "each channel as an image", images, 0, 13, lane, ONLY, s1=[-1, 1, 6, 6], s2=[-1, 8, 6, 6],
            k=(1, 1, 3, 3),
        ),
        case("Flatten", "", f"{A} b = GlobalAveragePool (a) f = Flatten (b) y = MatMul (f, m)", 8, 4),
        case("Flatten", "of positions, too", f"{A} f = Flatten (a) y = MatMul (f, o)", 8, 4, o=(288, 4)),
        case("Flatten", "axis 0", f"{A} b = Flatten <axis=0> (a) y = MatMul (b, o)", 8, 4, o=(288, 4), inputs=ONE),
        case("Flatten", "axis 1, from the end", f"{A} f = Flatten <axis=-3> (a) y = MatMul (f, o)", 8, 4, o=(288, 4)),
        case("Flatten", "axis 2", f"{A} f = Flatten <axis=2> (a) y = MatMul (f, o)", 0, 8, o=(36, 4)),
        case(
            "Flatten", "axis 2, channels last",
            f"{A} q = GlobalAveragePool (a) t = Transpose <perm=[0,2,1,3]> (q) f = Flatten <axis=2> (t) "
            "y = MatMul (f, m)",
            8, 4,
        ),
        case(
            "Flatten", "axis 3", f"{A} t = Transpose <perm=[0,2,3,1]> (a) f = Flatten <axis=3> (t) y = MatMul (f, m)",
            8, 4,
        ),
        case("Flatten", "axis 4", f"{A} f = Flatten <axis=4> (a) s = ReduceMean (f) y = Add (x, s)", 0, 8, "runs over the channels"),
        case("Squeeze", "axes as input", squeezed.format("p, ax"), 8, 4, ax=[2, 3]),
        case(
            "Squeeze", "axes as an attribute", squeezed.replace("Squeeze", "Squeeze <axes=[-1,2]>").format("p"), 8, 4,
            opset=11,
        ),
        case("Squeeze", "no axes", squeezed.format("p"), 8, 4, inputs="float[2,3,6,6] x"),
        one("Unsqueeze", "axes as input", "q = Unsqueeze (a, ax) r = Relu (q) b = Squeeze (r, ax)", ax=[1, -1]),
        one("Unsqueeze", "axes as an attribute", "q = Unsqueeze <axes=[2]> (a) b = Squeeze <axes=[2]> (q)", opset=11),
        one("Expand", "positions", "p = GlobalAveragePool (a) b = Expand (p, s)", s=[1, 8, 6, 6]),
        one("Expand", "positions, a shorter target", "p = GlobalAveragePool (a) b = Expand (p, s)", s=[6, 6]),
        one("Expand", "positions, ones in the target", "p = GlobalAveragePool (a) b = Expand (p, s)", s=[1, 1, 6, 1]),
        one("Expand", "channels in a shorter target", "b = Expand (a, s)", s=[8, 6, 6]),
        one("Expand", "more axes", "q = Expand (a, s) b = ReduceMean <keepdims=0> (q, ax)", s=[5, 1, 8, 1, 1], ax=[0]),
        stuck(
            "Expand", "a map to channels", "q = ReduceMean (x, ax) r = Expand (q, s) b = Add (a, r)",
            "it meets the model input x", s=[1, 8, 1, 1], ax=[1],
        ),
        one("Tile", "rows", "b = Tile (a, k)", k=[1, 1, 2, 1]),
        one("Tile", "channels", "b = Tile (a, k)", k=[1, 2, 1, 1], v=(4, 16, 1, 1)),
        one("Tile", "computed repeats", "i = Shape (x) j = Div (i, i) b = Tile (a, j)", inputs="float[N,3,H,6] x"),
        one("Resize", "scales", "b = Resize (a, , k)", k=np.array([1, 1, 2, 2], np.float32)),
        one("Resize", "scales, opset 10", "b = Resize (a, k)", k=np.array([1, 1, 2, 2], np.float32), opset=10),
        one("Resize", "sizes", 'b = Resize <mode="linear"> (a, , , k)', k=[1, 8, 9, 9], inputs=ONE),
        one("Resize", "sizes, axes", "b = Resize <axes=[2,3]> (a, , , k)", k=[9, 9]),
        stuck(
            "Resize", "sizes, axes, channels among them", "b = Resize <axes=[1,2,3]> (a, , , k)",
            "Resize sets the size of the channel axis", k=[8, 9, 9],
        ),
        one(
            "Resize", "cubic, scales, axes", 'b = Resize <mode="cubic", axes=[-1,-2]> (a, , k)',
            k=np.array([2, 1.5], np.float32),
        ),
        flow(
            "Resize", "of channels", 'b = Resize <mode="linear"> (a, , k)', 0, 12, "interpolates between channels",
            k=np.array([1, 2, 1, 1], np.float32), v=(4, 16, 1, 1),
        ),
        one("Upsample", "scales as input", "b = Upsample (a, k)", k=np.array([1, 1, 2, 2], np.float32), opset=9),
        one("Upsample", "scales as an attribute", "b = Upsample <scales=[1.0,1.0,2.0,2.0]> (a)", opset=7),
        flow("DepthToSpace", "DCR", "b = DepthToSpace <blocksize=2> (a)", 2, v=(4, 2, 1, 1)),
        flow("DepthToSpace", "CRD", 'b = DepthToSpace <blocksize=2, mode="CRD"> (a)', 2, v=(4, 2, 1, 1)),
        one("SpaceToDepth", "", "b = SpaceToDepth <blocksize=2> (a)", v=(4, 32, 1, 1)),
        case("Transpose", "channels last", nhwc, 8 + 8, 4, k=(8, 8)),
        case(
            "Transpose", "by default",
            f"{A} p = GlobalAveragePool (a) f = Flatten (p) t = Transpose (f) r = Relu (t) q = Transpose (r) "
            "y = MatMul (q, m)",
            8, 4,
        ),
        one("Transpose", "of rows and columns", "b = Transpose <perm=[0,1,3,2]> (a)"),
        case(
            "Transpose", "channels before the batch",
            f"{A} {turned} q = Transpose <perm=[1,0,2,3]> (b) y = Conv (q, v)", 8, 4,
        ),
    ]  # fmt: skip


def _sizes() -> list[Case]:
    new = {
        "inputs": "float[N,3,H,W] x",
        "k0": np.int64(0),
        "k2": np.int64(2),
        "k3": np.int64(3),
        "ax": [0],
        "at": [0, 1, 2, 3],
    }
    new |= {"i2": [2], "i4": [4], "n8": [8], "n1": [-1], "d8": np.int64(8)}
    each = "s = Shape (a) n = Gather (s, k0) h = Gather (s, k2) v0 = Gather (s, k3)"
    packed = "n1d = Unsqueeze (n, ax) h1d = Unsqueeze (h, ax) v1d = Unsqueeze (v0, ax)"
    back = f"{packed} t = Concat <axis=0> (n1d, n8, h1d, v1d) b = Reshape (r, t)"
    flat = (
        f"{each} hw = Mul (h, v0) hw1 = Unsqueeze (hw, ax) nn = Unsqueeze (n, ax) t1 = Concat <axis=0> (nn, n8, hw1) "
        "q = Reshape (a, t1) r = Relu (q)"
    )
    double = (
        f"{each} h2 = Mul (h, k2) w2 = Mul (v0, k2) n1 = Unsqueeze (n, ax) h1 = Unsqueeze (h2, ax) "
        "w1 = Unsqueeze (w2, ax)"
    )
    up = "t = Concat <axis=0> (n1, n8, h1, w1) b = Resize (a, , , t)"

    def size(
        op: str, name: str, text: str, *, free: int = 8, pinned: int = 4, why: tuple[str, ...] = (), **rest: Any
    ) -> Case:
        return case(op, name, f"{A} {text} {Y}", free, pinned, *why, **{**new, **rest})

    pool = "p = GlobalAveragePool (a) b = Expand (p, t)"
    fill = f"{each} e = Sub (k, h) e1 = Unsqueeze (e, ax) pads = Concat <axis=0> (zeros, e1, z1) b = Pad (a, pads)"
    halves = (
        "s = Shape (a) d = Div (s, by) f = Slice (d, j0, j2) e = Slice (s, j2, j4) t = Concat <axis=0> (f, n2, e) "
        "q = Reshape (a, t)"
    )
    shuffle = "u1 = Transpose <perm=[0,2,1,3,4]> (q) b = Reshape (u1, s)"
    other = (
        "s = Shape (a) d = Div (s, by) f = Slice (d, j1, j2) n0 = Slice (s, j0, j1) e = Slice (s, j2, j4) "
        "t = Concat <axis=0> (n0, n2, f, e) q = Reshape (a, t)"
    )
    bounds: dict[str, Any] = {"by": [1, 2, 1, 1], "j0": [0], "j1": [1], "j2": [2], "j4": [4], "n2": [2]}
    return [
        size("Shape", "of channels, to an Expand", f"t = Shape (a) {pool}"),
        size("Shape", "from an axis on", f"e = Shape <start=2> (a) t = Concat <axis=0> (i1, n8, e) {pool}", i1=[1]),
        size(
            "Shape", "up to an axis",
            "e = Shape <start=0, end=2> (a) t = Concat <axis=0> (e, n1) b1 = Reshape (a, t) s = Shape (a) "
            "b = Reshape (b1, s)",
        ),
        size(
            "Shape", "of another tensor with the same channels",
            f"{C} r = Add (a, c) t = Shape (c) p = GlobalAveragePool (r) b = Expand (p, t)",
        ),
        size(
            "Shape", "of other channels", f"{C} t = Shape (c) p = GlobalAveragePool (a) b = Expand (p, t)",
        ),
        size(
            "Shape", "an output of the model", "s = Shape (a) b = Relu (a)", free=0, pinned=12,
            why=("the number of channels is the model output s",), outputs="y, s",
        ),
        size(
            "Shape", "to an operator that has no rule", "s = Shape (a) z = EyeLike (s1) s1 = Reshape (s, sq) b = Add (a, z)".replace("z = EyeLike (s1) s1 = Reshape (s, sq)", "s1 = Reshape (s, sq) e = EyeLike (s1) e1 = Cast <to=1> (e) z = ReduceMax <keepdims=0> (e1)"), free=0,
            pinned=12, why=("EyeLike computes with the number of channels",), sq=[2, 2], changes=False,
        ),
        size("Shape", "of zeros", "s = Shape (a) z = ConstantOfShape (s) b = Add (a, z)"),
        size("Shape", "of zeros, on a layer", "s = Shape (a) z = ConstantOfShape (s) e = Conv (z, k) b = Add (a, e)", k=(8, 8, 1, 1)),
        size("Gather", "single sizes, then a literal", f"r = Relu (a) {each} {back}"),
        size("Gather", "several sizes", f"s = Shape (a) t = Gather (s, at) {pool}"),
        size("Gather", "from the end", f"s = Shape (a) t = Gather (s, k) {pool}", k=[-4, -3, 2, -1]),
        size(
            "Slice", "the rows and columns",
            f"s = Shape (a) e = Slice (s, i2, i4) t = Concat <axis=0> (i1, n8, e) {pool}", i1=[1],
        ),
        size(
            "Slice", "attributes",
            "s = Shape (a) e = Slice <starts=[0], ends=[2]> (s) t = Concat <axis=0> (e, n1) q = Reshape (a, t) "
            "b = Reshape (q, s)",
            opset=9, outputs="float[N,4,H,W] y",
        ),
        size("Concat", "a literal between sizes", f"r = Relu (a) {each} {back}"),
        size(
            "Concat", "a literal of two readers",
            f"{flat} {packed} t = Concat <axis=0> (n1d, n8, h1d, v1d) b = Reshape (r, t)",
        ),
        size("Unsqueeze", "", f"r = Relu (a) {each} {back}"),
        size("Squeeze", "", f"s = Shape (a) q = Unsqueeze (s, ax) t = Squeeze (q, ax) {pool}"),
        size("Reshape", "", f"s = Shape (a) t = Reshape (s, n1) {pool}"),
        size("Flatten", "", f"s = Shape (a) q = Flatten <axis=0> (s) t = Squeeze (q, ax) {pool}"),
        size("Identity", "", f"s = Shape (a) t = Identity (s) {pool}"),
        size("Cast", "to 32 bits and back", f"s = Shape (a) q = Cast <to=6> (s) t = Cast <to=7> (q) {pool}"),
        size(
            "Floor", "rows and columns by floats",
            f"{each} h3 = Cast <to=1> (h) h4 = Mul (h3, two) h5 = Floor (h4) h2 = Cast <to=7> (h5) "
            f"n1 = Unsqueeze (n, ax) h1 = Unsqueeze (h2, ax) w1 = Unsqueeze (v0, ax) {up}",
        ),
        size(
            "Floor", "all sizes at once, by floats",
            "s = Shape (a) q = Cast <to=1> (s) r = Mul (q, k) f = Floor (r) t = Cast <to=7> (f) b = Resize (a, , , t)",
            k=np.array([1, 1, 2, 2], np.float32),
        ),
        size(
            "Ceil", "rows and columns by a fraction",
            "s = Shape (a) q = Cast <to=1> (s) r = Mul (q, k) f = Ceil (r) t = Cast <to=7> (f) b = Resize (a, , , t)",
            k=np.array([1, 1, 1.3, 1.7], np.float32),
        ),
        size(
            "Floor", "channels by a fraction",
            "s = Shape (a) q = Cast <to=1> (s) r = Mul (q, k) f = Floor (r) t = Cast <to=7> (f) b = Resize (a, , , t)",
            k=np.array([1, 1.1, 2, 2], np.float32), free=0, pinned=12, why=("goes into a Mul of shapes", "other values"),
        ),
        size(
            "Div", "by floats",
            "s = Shape (a) q = Cast <to=1> (s) r = Div (q, k) f = Floor (r) t = Cast <to=7> (f) b = Resize (a, , , t)",
            k=np.array([1, 1, 2, 0.7], np.float32),
        ),
        size("Mul", "rows and columns", f"{double} {up}"),
        size("Mul", "all sizes at once", "s = Shape (a) t = Mul (s, k) b = Resize (a, , , t)", k=[1, 1, 2, 2]),
        size("Mul", "rows by columns", f"{flat} {packed} t = Concat <axis=0> (n1d, n8, h1d, v1d) b = Reshape (r, t)"),
        size(
            "Mul", "channels by positions",
            "s = Shape (a) c0 = Slice (s, j1, j2) p0 = Slice (s, j2, j3) q0 = Slice (s, j3, j4) f = Mul (c0, p0) "
            "m0 = Slice (s, j0, j1) t = Concat <axis=0> (m0, f, q0) q = Reshape (a, t) b = Reshape (q, s)",
            j0=[0], j1=[1], j2=[2], j3=[3], j4=[4],
        ),
        size("Div", "a channel shuffle", f"{other} {shuffle}", free=4, **bounds),
        size(
            "Div", "a channel shuffle that splits the other way", f"{halves} {shuffle}", free=0, pinned=6,
            why=("a shape computed at run time would not follow the deletion",), **bounds,
        ),
        size(
            "Add", "a row more",
            f"{each} h2 = Add (h, one) n1 = Unsqueeze (n, ax) h1 = Unsqueeze (h2, ax) w1 = Unsqueeze (v0, ax) {up}",
            one=np.int64(1),
        ),
        size(
            "Sub", "a row less",
            f"{each} h2 = Sub (h, one) n1 = Unsqueeze (n, ax) h1 = Unsqueeze (h2, ax) w1 = Unsqueeze (v0, ax) {up}",
            one=np.int64(1),
        ),
        size("Sub", "rows to fill up, for a Pad", fill, k=np.int64(9), zeros=[0] * 6, z1=[0], outputs="float[N,4,P,W] y"),
        size(
            "Sub", "all sizes at once", "s = Shape (a) t = Sub (s, k) b = Resize (a, , , t)", k=[0, 0, 1, 1], free=0,
            pinned=12, why=("the number of channels goes into a Sub of shapes", "from other values"),
        ),
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------- weights, bodies, functions


def list_as_inputs(model: onnx.ModelProto) -> None:
    """List every initializer among the inputs, as IR version 3 asks for."""
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def add_function(model: onnx.ModelProto) -> None:
    """Add the function `local.Block`."""
    text = """<domain: "local", opset_import: ["": 18]> Block <slope> (i, k) => (o)
        { e = Conv (i, k) o = LeakyRelu <alpha: float = @slope> (e) }"""
    model.functions.append(parser.parse_function(text))
    model.opset_import.append(helper.make_opsetid("local", 1))


def use_microsoft(model: onnx.ModelProto) -> None:
    """Import the operators of onnxruntime."""
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _without_rule() -> list[Case]:
    body = "float[N,8,6,6]"
    branches = (
        f"then_branch = one () => ({body} t1) {{ t1 = Relu (a) }}, else_branch = two () => ({body} e1) "
        f"{{ e1 = Neg (c) }}"
    )
    cond = "q = ReduceMax <keepdims=0> (x) r = Greater (q, zero)"
    loop = (
        f"b = Loop <body = step (int64 i, bool go, {body} s) => (bool on, {body} e) "
        f"{{ on = Identity (go) e = Add (s, c) }}> (n, yes, a)"
    )
    inner = (
        f"b = Loop <body = step (int64 i, bool go, {body} s) => (bool on, {body} e) "
        f"{{ on = Identity (go) e = Conv (s, k) }}> (n, yes, a)"
    )
    scan = """t = Transpose <perm=[2,0,1,3]> (a) last, q = Scan <num_scan_inputs=1, body = step
        (float[1,8,6] s, float[1,8,6] i) => (float[1,8,6] e, float[1,8,6] o) { e = Add (s, i) o = Relu (e) }> (z, t)
        b = Transpose <perm=[1,2,0,3]> (q)"""
    boxes = (
        "t = Reshape (a, s) b = Transpose <perm=[0,2,1]> (t) c = Conv (x, u, ub) e = Reshape (c, s2) "
        "y = NonMaxSuppression (b, e, k)"
    )
    nms = {"w": (4, 3, 1, 1), "wb": (4,), "u": (2, 3, 1, 1), "ub": (2,), "s": [0, 4, -1], "s2": [0, 2, -1], "k": [3]}
    fused = f"{A} b = com.microsoft.QuickGelu (a) {Y}"
    return [
        case(
            "If", "its bodies use channels", f"{A} {C} {cond} b = If <{branches}> (r) {Y}", 0, 20,
            "the body of this If uses the channel",
        ),
        case(
            "If", "its bodies use the number of channels",
            f"{A} s = Shape (a) f = Cast <to=1> (s) {cond} "
            "z = If <then_branch = one () => (float t1) { t1 = Gather (f, c1) }, "
            f"else_branch = two () => (float e1) {{ e1 = Gather (f, c1) }}> (r) b = Mul (a, z) {Y}",
            0, 12, "the body of this If uses the number of channels", inputs="float[N,3,H,W] x", outputs="float[N,4,H,W] y",
            c1=np.int64(1),
        ),
        case(
            "Loop", "its state and a capture", f"{A} {C} {loop} {Y}", 0, 20, "the body of this Loop uses the channel",
            "there is no rule for Loop", n=np.int64(2), yes=np.bool_(True), outputs="float[N,4,6,6] y",
        ),
        case(
            "Loop", "a Conv in its body", f"{A} {inner} {Y}", 0, 12, "there is no rule for Loop", n=np.int64(2),
            yes=np.bool_(True), outputs="float[N,4,6,6] y", k=(8, 8, 1, 1),
        ),
        case(
            "Loop", "channels that it doesn't see",
            f"{A} {C} {loop.replace('b = Loop', 'd = Loop')} e1 = Conv (d, k) b = Relu (e1) {Y}", 8, 20,
            "the body of this Loop uses the channel", "there is no rule for Loop", n=np.int64(2), yes=np.bool_(True),
            outputs="float[N,4,6,6] y", k=(8, 8, 1, 1),
        ),
        case("Scan", "over rows", f"{A} {scan} {Y}", 0, 12, "there is no rule for Scan", inputs=ONE, z=(1, 8, 6)),
        case(
            "NonMaxSuppression", "boxes and scores", f"{A} {boxes}", 0, 6, "there is no rule for NonMaxSuppression",
            **nms,
        ),
        case(
            "Det", "", f"{A} q = Det (a) r = Unsqueeze (q, ax) y = Conv (r, v, vb)", 0, 12, "there is no rule for Det",
            ax=[2, 3],
        ),
        case(
            "DynamicQuantizeLSTM", "of onnxruntime",
            f"{A} t = Transpose <perm=[2,0,1]> (a) s, b = com.microsoft.DynamicQuantizeLSTM <hidden_size=5> "
            "(t, k, l, , , , , , scale, point, scale, point) q = Squeeze (b, i) y = MatMul (q, o)", 0, 12,
            "there is no rule for com.microsoft.DynamicQuantizeLSTM", edit=use_microsoft, outputs="float[N,4] y",
            **LINE, k=np.ones((1, 8, 20), np.int8), l=np.ones((1, 5, 20), np.int8), scale=(1,),
            point=np.zeros(1, np.int8), i=[0], o=(5, 4),
        ),
        case(
            "QuickGelu", "of onnxruntime", fused, 0, 12, "there is no rule for com.microsoft.QuickGelu",
            edit=use_microsoft, outputs="float[N,4,6,6] y",
        ),
        case(
            "NonZero", "", f"{A} q = NonZero (a) e = Cast <to=1> (q) f = ReduceMean <keepdims=0> (e) y = Add (x, f)", 0,
            8, "there is no rule for NonZero",
        ),
    ]  # fmt: skip


def _weights() -> list[Case]:
    rng = np.random.default_rng(5)

    def numbers(dtype: Any, *shape: int) -> npt.NDArray[Any]:
        return np.asarray(rng.standard_normal(shape) / 2).astype(dtype)

    half = {
        "w": numbers(np.float16, 8, 3, 1, 1),
        "wb": numbers(np.float16, 8),
        "v": numbers(np.float16, 4, 8, 1, 1),
        "vb": numbers(np.float16, 4),
    }
    double = {"w": numbers(np.float64, 3, 8), "v": numbers(np.float64, 8, 4)}
    brain = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    square = {"k": (8, 8, 1, 1)}
    tied = f"{A} {C} q = Add (a, c) b = Relu (q) d = Conv (b, k) e = Conv (c, k) f = Add (d, e) y = Conv (f, v, vb)"
    free = f"{A} {C} b = Relu (a) d = Conv (b, k) e = Conv (c, k) f = Concat <axis=1> (d, e) y = Conv (f, o)"
    alias = (
        f"{A} {C} b = Relu (a) k2 = Identity (k) d = Conv (b, k) e = Conv (c, k2) f = Concat <axis=1> (d, e) "
        "y = Conv (f, o)"
    )
    chain = f"{A} d = Conv (a, k) e = Conv (d, k) b = Conv (e, k) {Y}"
    bias = f"d = Conv (x, w, wb) e = Conv (d, k, wb) b = Relu (e) {Y}"
    norms = (
        f"{A} {C} k1 = Identity (scale) q = BatchNormalization (a, scale, beta, mu, var) r = Relu (c) "
        "e = BatchNormalization (r, k1, beta, mu, var) b = Concat <axis=1> (q, e) y = Conv (b, o)"
    )
    norm = {"scale": (8,), "beta": (8,), "mu": (8,), "var": (8,)}
    return [
        one("weights", "float16", "b = Relu (a)", inputs="float16[N,3,6,6] x", **half),
        case(
            "weights", "float64", "a = MatMul (x, w) b = Relu (a) y = MatMul (b, v)", 8, 4, inputs="double[N,3] x",
            **double,
        ),
        case(
            "weights", "stored as bfloat16", f"k = Cast <to=1> (w0) a = Conv (x, k) b = Relu (a) {Y}", 8, 4,
            w0=numbers(brain, 8, 3, 1, 1),
        ),
        case(
            "weights", "stored as float16", f"k = Cast <to=1> (w0) a = Conv (x, k) b = Relu (a) {Y}", 8, 4,
            w0=numbers(np.float16, 8, 3, 1, 1),
        ),
        case(
            "weights", "computed from constants",
            f"t = Transpose <perm=[1,0,2,3]> (w0) k = Mul (t, two) a = Conv (x, k) b = Relu (a) {Y}", 8, 4,
            w0=(3, 8, 1, 1),
        ),
        one("weights", "listed as inputs", "b = Relu (a)", edit=list_as_inputs, opset=8),
        one(
            "weights", "listed as inputs, literals, too", "r = Reshape (a, s) b = Reshape (r, s2)", edit=list_as_inputs,
            opset=8, s=[0, 8, 36], s2=[0, 8, 6, 6],
        ),
        case("weights", "shared, masks agree", tied, 8 + 8, 4, **square),
        case("weights", "shared, masks differ", free, 8 + 8, 4, o=(4, 16, 1, 1), **square),
        case("weights", "shared through Identity", alias, 8 + 8, 4, o=(4, 16, 1, 1), **square),
        case("weights", "shared by a chain", chain, 8, 4, **square),
        case("weights", "a bias of two layers", bias, 8, 4, **square),
        case("weights", "BatchNormalization tied by Identity, folded and not", norms, 16, 4, o=(4, 16, 1, 1), **norm),
        case(
            "weights", "a scale and a bias in one",
            f"a = Conv (x, w, wb) q = Mul (a, scale) r = Add (q, scale) b = Relu (r) {Y}", 8, 4, scale=(8, 1, 1),
        ),
        case(
            "weights", "of a local function",
            f"a = local.Block <slope=0.1> (x, w) b = local.Block <slope=0.3> (a, k) {Y}", 16, 4, edit=add_function,
            **square,
        ),
        case(
            "weights", "a literal of two Reshapes, one of channels",
            f"{A} r = Reshape (a, s) e = Reshape (x, s2) f = Reshape (r, s3) q = Reshape (e, s4) b = Relu (f) "
            "d = Conv (b, v, vb) y = Concat <axis=1> (d, q)",
            8, 4, s=[0, 8, -1], s2=[0, 3, -1], s3=[0, 8, 6, 6], s4=[0, 3, 6, 6],
        ),
    ]  # fmt: skip


CASES = [*_unary(), *_elementwise(), *_pools(), *_reductions(), *_along(), *_quantized(), *_convs(), *_matrices()]
CASES += [
    *_norms(),
    *_recurrent("LSTM", 4),
    *_recurrent("GRU", 3),
    *_recurrent("RNN", 1),
    *_others(),
    *_newer(),
    *_joins(),
    *_cuts(),
]
CASES += _shapes()
SIZE_CASES = _sizes()
OTHER_CASES = [*_without_rule(), *_weights()]

"""The graph run by torch: the same numbers as onnxruntime, the gradients of torch, and a file that changes only where weights did."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cases import CASES, KNOWN, OTHER_CASES, SIZE_CASES, Case, build
from graphs import DRAWN, cnn_models, load, random_plan
from hypothesis import given, settings
from onnx import numpy_helper
from topologies import NETS
from zoo_models import ZOO, fill

from onnxprune.errors import DataError, ModelError
from onnxprune.graph import io
from onnxprune.graph.model import Model
from onnxprune.graph.operators import RULES
from onnxprune.graph.trace import trace as trace_model
from onnxprune.metrics.outputs import relative_difference
from onnxprune.runtime.session import SessionConfig, open_session, random_feeds, run_batch
from onnxprune.surgery import channels as rewrite
from onnxprune.torch_backend import operators
from onnxprune.torch_backend.executor import Executor

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch
TOLERANCE = 1e-4
HALF = 1e-2
"""Where onnxruntime rounds to half precision, and the executor does not."""

LARGE = ("alexnet", "vgg11_bn", "vgg16", "vit_b_16", "wide_resnet50_2", "fcn_resnet50")
"""Left to tools/executor.py, as is the other exporter of every network."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def difference(model: Model, source: onnx.ModelProto, seed: int = 0, known: Any = None) -> float:
    """Return how far torch is from onnxruntime without optimisations, as a share of the range of an output."""
    names = {value.name for value in model.graph.inputs}
    bare = onnx.ModelProto(graph=onnx.GraphProto(input=[v for v in source.graph.input if v.name in names]))
    feeds = random_feeds(bare, model.signature.input_shapes(2, known), seed)
    expected = run_batch(open_session(source, SessionConfig(threads=1, optimize=False)), feeds)
    with torch.no_grad():
        found = Executor(model)({name: torch.from_numpy(value) for name, value in feeds.items()})
    pairs = [
        (a, found[value.name].numpy().astype(np.float16) if a.dtype == np.float16 else found[value.name].numpy())
        for a, value in zip(expected, source.graph.output, strict=True)
    ]
    return max(relative_difference(a, b) for a, b in pairs)


def is_rounded(source: onnx.ModelProto) -> bool:
    """Tell whether a model computes in half precision anywhere."""
    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    types = [value.type.tensor_type.elem_type for value in source.graph.input]
    types += [a.i for node in source.graph.node if node.op_type == "Cast" for a in node.attribute]
    return any(kind in halves for kind in types)


# --------------------------------------------------------------------------------------------------------------- parity


REFUSED = {
    "Attention",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "CumProd",
    "DeformConv",
    "GRU",
    "GlobalLpPool",
    "GridSample",
    "Hardmax",
    "LSTM",
    "LpPool",
    "MaxRoiPool",
    "MaxUnpool",
    "MeanVarianceNormalization",
    "RNN",
    "ReverseSequence",
    "RoiAlign",
    "RotaryEmbedding",
    "TensorScatter",
}
"""Operators with a rule that no training supports: pruning keeps them, the executor refuses them."""


def test_every_operator_with_a_rule_has_a_function_or_is_refused() -> None:
    assert set(RULES) - set(operators.TORCH_FUNCTIONS) == REFUSED


def is_refused(source: onnx.ModelProto) -> bool:
    """Tell whether a model has an operator or an attribute that the executor refuses."""
    attributes = {(a.name, a.i) for node in source.graph.node for a in node.attribute}
    blocked = any(name == "block_size" and size for name, size in attributes)
    indices = any(node.op_type == "MaxPool" and len(node.output) > 1 for node in source.graph.node)
    return (
        blocked
        or indices
        or ("training_mode", 1) in attributes
        or any(n.op_type in REFUSED | WITHOUT_RULE for n in source.graph.node)
    )


WITHOUT_RULE = {"DynamicQuantizeLSTM", "EyeLike"}
"""Operators without a rule in models that have prunable layers."""
WITHOUT = ("Det", "If", "Loop", "NonMaxSuppression", "QuickGelu", "Scan")
"""Operators without a rule that no training reaches: the executor refuses them."""
RUN = [case for case in (*CASES, *SIZE_CASES, *OTHER_CASES, *NETS) if case.op not in WITHOUT]


@pytest.mark.parametrize("case", RUN, ids=lambda case: case.id)
def test_case(case: Case) -> None:
    source = case.build()
    model = load(source)
    if is_refused(source):
        with pytest.raises(ModelError, match="has no function in torch"):
            Executor(model)
        return
    known = KNOWN if "H" in case.inputs else None
    limit = HALF if is_rounded(source) else TOLERANCE
    assert difference(model, source, known=known) <= limit
    trace = trace_model(model, input_shapes=known, **case.modes)
    if not trace.pinned.all():
        pruned = rewrite.delete(model, trace, random_plan(trace, 0, 0.5))
        assert difference(pruned, pruned.to_proto(), known=known) <= limit


@settings(DRAWN, max_examples=40)
@given(proto=cnn_models())
def test_drawn_models(proto: onnx.ModelProto) -> None:
    if is_refused(proto):
        with pytest.raises(ModelError, match="has no function in torch"):
            Executor(load(proto))
        return
    assert difference(load(proto), proto) <= TOLERANCE


@pytest.mark.parametrize("name", ["small", "resnet", "mobile"])
def test_reference_models(models: Path, name: str) -> None:
    model = io.load(models / f"{name}.onnx")
    assert difference(model, model.to_proto()) <= TOLERANCE


SOME = [path.name for path in sorted(ZOO.glob("*.z"), key=lambda path: (path.name.split("-")[1], path.name))]
"""Each network twice, by both exporters."""


@pytest.mark.parametrize("name", [name for name in SOME[::4] + SOME[3::4] if not name.split("-")[1].startswith(LARGE)])
def test_zoo(name: str) -> None:
    source = fill(ZOO / name)
    assert difference(load(source), source) <= TOLERANCE


def test_a_weight_that_is_an_output_has_no_gradient_in_evaluation(tiny: onnx.ModelProto, images: np.ndarray) -> None:
    tiny.graph.output.append(onnx.helper.make_tensor_value_info("w2", onnx.TensorProto.FLOAT, [16, 16, 3, 3]))
    executor = Executor(load(tiny))
    _, weight = executor.outputs({"x": torch.from_numpy(images)})
    np.testing.assert_array_equal(weight, executor.weights["w2"].detach().numpy())
    assert executor({"x": torch.from_numpy(images)})["w2"].requires_grad


IMAGE = "float[N,3,7,6] x"
LINE = "float[N,3,9] x"
CUBE = "float[N,3,5,4,6] x"
FLOATS = "float[2,6] x"
FORMS: dict[str, tuple[str, dict[str, Any]]] = {}


def form(name: str, text: str, **rest: Any) -> None:
    """Note a form of an operator that no case has."""
    assert name not in FORMS
    FORMS[name] = (text, {"inputs": IMAGE, **rest})


for pads in ("SAME_UPPER", "SAME_LOWER", "VALID"):
    settings_ = f'auto_pad="{pads}", strides=[2,3]'
    form(f"Conv {pads}", f"y = Conv <{settings_}> (x, w)", w=(4, 3, 4, 3))
    form(f"ConvTranspose {pads}", f"y = ConvTranspose <{settings_}> (x, w, wb)", w=(3, 4, 4, 3), wb=(4,))
    form(f"MaxPool {pads}", f"y = MaxPool <{settings_}, kernel_shape=[4,3]> (x)")
    form(f"AveragePool {pads}", f"y = AveragePool <{settings_}, kernel_shape=[4,3]> (x)")
form(
    "Conv uneven pads", "y = Conv <pads=[1,0,2,3], strides=[2,1], dilations=[1,2]> (x, w, wb)", w=(4, 3, 3, 2), wb=(4,)
)
form("Conv uneven pads 1D", "y = Conv <pads=[2,1]> (x, w)", w=(4, 3, 3), inputs=LINE)
form("Conv uneven pads 3D", "y = Conv <pads=[2,1,0,1,1,0], group=3> (x, w)", w=(6, 1, 2, 3, 1), inputs=CUBE)
form(
    "ConvTranspose uneven pads", "y = ConvTranspose <pads=[1,0,0,2], strides=[2,3]> (x, w, wb)", w=(3, 4, 4, 3), wb=(4,)
)
form("ConvTranspose output_shape", "y = ConvTranspose <output_shape=[15,19], strides=[2,3]> (x, w)", w=(3, 4, 4, 3))
form(
    "ConvTranspose large output_shape",
    "y = ConvTranspose <output_shape=[17,20], strides=[2,3]> (x, w, wb)",
    w=(3, 4, 4, 3),
    wb=(4,),
)
form(
    "ConvTranspose output_shape, upper",
    'y = ConvTranspose <output_shape=[13,16], strides=[2,3], auto_pad="SAME_UPPER"> (x, w)',
    w=(3, 4, 4, 3),
)
form(
    "ConvTranspose output_padding, groups",
    "y = ConvTranspose <output_padding=[1,2], strides=[2,3], pads=[1,1,1,1], group=3> (x, w)",
    w=(3, 2, 3, 3),
)
form("ConvTranspose dilations", "y = ConvTranspose <dilations=[2,2], pads=[2,1,2,1]> (x, w)", w=(3, 4, 3, 3))
form(
    "ConvTranspose 3D", "y = ConvTranspose <strides=[2,1,2], pads=[1,0,1,0,0,1]> (x, w)", w=(3, 4, 3, 2, 3), inputs=CUBE
)
form("MaxPool ceil", "y = MaxPool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (x)")
form("MaxPool ceil, uneven pads", "y = MaxPool <kernel_shape=[3,3], strides=[3,2], pads=[0,1,1,2], ceil_mode=1> (x)")
form("MaxPool wide pads", "y = MaxPool <kernel_shape=[3,3], pads=[2,2,2,2]> (x)")
form("MaxPool dilations", "y = MaxPool <kernel_shape=[2,3], dilations=[2,2]> (x)", opset=12)
form("MaxPool 3D", "y = MaxPool <kernel_shape=[2,2,3], strides=[2,1,1]> (x)", inputs=CUBE)
form("MaxPool integers", "y = MaxPool <kernel_shape=[2,2]> (x)", inputs="uint8[N,3,7,6] x", opset=12)
for include in (0, 1):
    pool = f"y = AveragePool <kernel_shape=[3,3], count_include_pad={include}, "
    form(f"AveragePool include {include}", f"{pool} strides=[2,2], pads=[1,1,1,1]> (x)")
    form(f"AveragePool include {include}, ceil", f"{pool} strides=[2,3], pads=[1,1,1,1], ceil_mode=1> (x)")
    form(f"AveragePool include {include}, uneven", f"{pool} strides=[2,2], pads=[0,1,2,1]> (x)")
form("AveragePool 1D", "y = AveragePool <kernel_shape=[4], pads=[2,1]> (x)", inputs=LINE)
form("Gemm, computed transposes", "y = Gemm <transA=1, alpha=0.5> (x, x)", inputs="float[3,4] x")
form("MatMul, vectors", "a = MatMul (x, w) y = MatMul (a, a)", inputs="float[3,4] x", w=(4,))
form("Einsum, implicit", 'y = Einsum <equation="ij,jk"> (x, w)', inputs="float[3,4] x", w=(4, 5))
form("Einsum, ellipsis", 'y = Einsum <equation="...ij,...kj->...ik"> (x, x)')

for mode in (
    "half_pixel",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
):
    up, down = np.array([1, 1, 2.3, 1.7], np.float32), np.array([1, 1, 0.62, 0.41], np.float32)
    for kind in ("nearest", "linear", "cubic"):
        if mode == "tf_half_pixel_for_nn" and kind != "nearest":
            continue
        resize = f'y = Resize <mode="{kind}", coordinate_transformation_mode="{mode}"'
        form(f"Resize {kind} {mode} up", f"{resize}> (x, , k)", k=up, opset=13)
        form(f"Resize {kind} {mode} down", f"{resize}> (x, , k)", k=down, opset=13)
        form(f"Resize {kind} {mode} sizes", f"{resize}> (x, , , k)", k=[2, 3, 14, 3], opset=13)
        form(f"Resize {kind} {mode} one", f"{resize}> (x, , , k)", k=[2, 3, 1, 1], opset=13)
for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
    for mode in ("half_pixel", "asymmetric", "align_corners"):
        text = f'y = Resize <nearest_mode="{rounding}", coordinate_transformation_mode="{mode}"> (x, , , k)'
        form(f"Resize {rounding} {mode}", text, k=[2, 3, 14, 4])
form(
    "Resize cubic, another coefficient",
    'y = Resize <mode="cubic", cubic_coeff_a=-0.5> (x, , k)',
    k=np.array([1, 1, 1.5, 0.8], np.float32),
)
form("Resize linear 1D", 'y = Resize <mode="linear"> (x, , , k)', k=[2, 3, 17], inputs=LINE)
form("Resize linear 3D", 'y = Resize <mode="linear"> (x, , , k)', k=[2, 3, 7, 9, 5], inputs=CUBE)
form("Resize linear, axes", 'y = Resize <mode="linear", axes=[3,2]> (x, , , k)', k=[9, 12])
form("Resize 10, down", "y = Resize (x, k)", k=np.array([1, 1, 0.6, 0.5], np.float32), opset=10)
form("Resize 10, linear", 'y = Resize <mode="linear"> (x, k)', k=np.array([1, 1, 1.6, 2.5], np.float32), opset=10)
form("Upsample 9, linear", 'y = Upsample <mode="linear"> (x, k)', k=np.array([1, 1, 2, 3], np.float32), opset=9)

for mode in ("reflect", "edge", "wrap"):
    form(f"Pad {mode}, uneven", f'y = Pad <mode="{mode}"> (x, k)', k=[0, 1, 2, 0, 0, 0, 3, 4], opset=19)
    form(f"Pad {mode}, cut", f'y = Pad <mode="{mode}"> (x, k)', k=[0, 0, -1, 2, 0, 0, 2, -2], opset=19)
form("Pad, cut and filled", "y = Pad (x, k, half)", k=[0, 1, -1, 2, 0, -1, 2, -2])
form(
    "Pad with a computed number",
    "m = ReduceMax <keepdims=0> (x) y = Pad (x, k, m)",
    k=[0, 1, 0, 2, 0, 0, 1, 0],
    opset=13,
)
form("Gather, a table of positions", "y = Gather <axis=-2> (x, k)", k=np.array([[0, -1], [3, 2]]))
form("Gather, computed positions", "i = Cast <to=7> (x) y = Gather (w, i)", w=(9, 2), inputs=FLOATS)
form("GatherElements", "y = GatherElements <axis=1> (x, k)", k=np.array([[0, -1], [3, 2]]), inputs=FLOATS)
form("GatherND", "y = GatherND (x, k)", k=np.array([[[0, -1]], [[1, 2]]]), inputs="float[2,3,4] x")
form(
    "ScatterElements", "y = ScatterElements <axis=1> (x, k, u)", k=np.array([[0, -1], [3, 2]]), u=(2, 2), inputs=FLOATS
)
for kind in ("none", "add"):
    text = f'y = ScatterND <reduction="{kind}"> (x, k, u)'
    form(f"ScatterND {kind}", text, k=np.array([[0, 1], [1, 0]]), u=(2, 3), inputs="float[2,2,3] x")
form("Slice, backwards", "y = Slice (x, s, e, a, t)", s=[-1, 5], e=[-100, 0], a=[2, -1], t=[-2, -1])
form("Slice, nothing left", "y = Slice (x, s, e, a)", s=[3], e=[3], a=[2])
form("Split 18, uneven", "p, q, r = Split <axis=2, num_outputs=3> (x) y = Concat <axis=2> (r, q, p)")
form("Tile and Expand", "t = Tile (x, k) y = Expand (t, e)", k=[2, 1], e=[3, 4, 1], inputs=FLOATS)
form("Trilu below", "y = Trilu <upper=0> (x, k)", k=np.int64(-1))
form(
    "SpaceToDepth and back",
    "s = SpaceToDepth <blocksize=2> (x) y = DepthToSpace <blocksize=2> (s)",
    inputs="float[N,3,4,6] x",
)
form(
    "Range",
    "s = Shape (x) h = Gather (s, two1) r = Range (zero1, h, one1) y = Cast <to=1> (r)",
    two1=np.int64(2),
    zero1=np.int64(0),
    one1=np.int64(1),
)
form(
    "NonZero and ConstantOfShape",
    "s = Shape (x) z = ConstantOfShape <value=float[1] {2.0}> (s) a = Add (x, z) n = NonZero (a) y = Cast <to=1> (n)",
)
form("Size", "s = Size (x) f = Cast <to=1> (s) y = Mul (x, f)", inputs=FLOATS)
form("CastLike", "y = CastLike (x, k)", k=np.int32(0))
form("Mod of integers", "y = Mod (x, k)", k=np.array([3, -3, 2, -2, 5, 7]), inputs="int64[2,6] x")
form(
    "Div of integers",
    "n = Sub (x, one2) y = Div (n, k)",
    one2=np.int64(4),
    k=np.array([3, -3, 2, -2, 5, 7]),
    inputs="int64[2,6] x",
)
form("Pow of integers", "y = Pow (x, k)", k=np.float32(3), inputs="int64[2,6] x")
form("Gelu, tanh", 'y = Gelu <approximate="tanh"> (x)', opset=20)
form("Swish, alpha", "y = Swish <alpha=1.5> (x)", opset=24)
form("Selu, alpha", "y = Selu <alpha=1.5, gamma=0.9> (x)")
form("HardSigmoid, a sixth", "y = HardSigmoid <alpha=0.16666667, beta=0.5> (x)")
form("HardSigmoid, other", "y = HardSigmoid <alpha=0.7, beta=0.1> (x)")
form("Shrink, bias", "y = Shrink <lambd=0.2, bias=0.1> (x)")
form(
    "Celu, Elu, LeakyRelu, ThresholdedRelu",
    "a = Celu <alpha=0.7> (x) b = Elu <alpha=0.6> (a) c = LeakyRelu <alpha=0.2> (b) y = ThresholdedRelu <alpha=0.1> (c)",
)
form("Clip, one bound", "a = Clip (x, half) y = Clip (a, , two)")
form("Clip, computed bounds", "m = ReduceMin <keepdims=0> (x) n = Div (m, two) y = Clip (x, n, half)", opset=13)
form("Clip, integers", "y = Clip (x, k)", k=np.int64(1), inputs="int64[2,6] x")
form("PRelu, slopes of rows", "y = PRelu (x, k)", k=(7, 1))
form("Dropout with a mask", "a, m = Dropout (x) c = Cast <to=1> (m) y = Add (a, c)")

for kind in ("Sum", "Max", "Min", "Mean", "Prod", "L1", "L2", "LogSumExp", "SumSquare"):
    form(f"Reduce{kind} two axes", f"y = Reduce{kind} <keepdims=0> (x, a)", a=[-1, 1])
    form(f"Reduce{kind} all", f"y = Reduce{kind} (x)")
    if kind not in ("L1", "L2", "LogSumExp"):
        form(f"Reduce{kind} integers", f"y = Reduce{kind} <keepdims=0> (x, a)", a=[1], inputs="int32[2,6] x")
for op in ("ArgMax", "ArgMin"):
    form(f"{op} last", f"r = Round (x) y = {op} <axis=1, select_last_index=1, keepdims=0> (r)")
    form(f"{op} first", f"r = Round (x) y = {op} <axis=-1> (r)")
for settings_ in ("exclusive=1", "reverse=1", "exclusive=1, reverse=1"):
    form(f"CumSum {settings_}", f"y = CumSum <{settings_}> (x, a)", a=np.int32(-1))
form("TopK smallest", "v, i = TopK <largest=0, axis=1> (x, k) c = Cast <to=1> (i) y = Add (v, c)", k=[2])
form("TopK 9", "v, i = TopK <k=2, axis=2> (x) c = Cast <to=1> (i) y = Add (v, c)", opset=9)
form("TopK of equals", "r = Round (x) v, i = TopK <axis=2> (r, k) c = Cast <to=1> (i) y = Add (v, c)", k=[4])
form("LpNormalization 1", "y = LpNormalization <axis=2, p=1> (x)")
form("LayerNormalization, broadcast", "y = LayerNormalization <axis=1> (x, scale, beta)", scale=(7, 1), beta=(3, 1, 1))
form(
    "GroupNormalization 18",
    "y = GroupNormalization <num_groups=2, epsilon=0.01> (x, scale, beta)",
    scale=(2,),
    beta=(2,),
    inputs="float[N,4,3,3] x",
    outputs="float[N,4,3,3] y",
)
form(
    "InstanceNormalization 1D",
    "y = InstanceNormalization <epsilon=0.1> (x, scale, beta)",
    scale=(3,),
    beta=(3,),
    inputs=LINE,
)
form("LRN, wide", "y = LRN <size=5, alpha=2.0, beta=0.6, bias=1.5> (x)", inputs="float[N,7,3,3] x")
form(
    "BatchNormalization 2D, old",
    "y = BatchNormalization <epsilon=0.01> (x, scale, beta, mu, var)",
    scale=(6,),
    beta=(6,),
    mu=(6,),
    var=(6,),
    inputs=FLOATS,
    opset=7,
)

form("QuantizeLinear to integers", "q = QuantizeLinear (x, k, z) y = Cast <to=1> (q)", k=np.float32(0.02), z=np.int8(3))
form(
    "QuantizeLinear without zero point",
    "q = QuantizeLinear (x, k) d = DequantizeLinear (q, k) y = Relu (d)",
    k=np.float32(0.02),
)


REFUSALS = {
    "Resize with antialias=1": 'y = Resize <mode="linear", antialias=1> (x, , , k)',
    "Resize with exclude_outside=1": 'y = Resize <mode="cubic", exclude_outside=1> (x, , , k)',
    "Resize with keep_aspect_ratio_policy=not_larger": 'y = Resize <keep_aspect_ratio_policy="not_larger"> (x, , , k)',
    "Resize with coordinate_transformation_mode=tf_crop_and_resize": (
        'y = Resize <mode="linear", coordinate_transformation_mode="tf_crop_and_resize"> (x, roi, , k)'
    ),
    "Resize with coordinate_transformation_mode=half_pixel_symmetric": (
        'y = Resize <coordinate_transformation_mode="half_pixel_symmetric"> (x, , , k)'
    ),
    "MaxPool with 2 outputs": "v, i = MaxPool <kernel_shape=[2,2]> (x) c = Cast <to=1> (i) y = Add (v, c)",
    "AveragePool with dilations": "y = AveragePool <kernel_shape=[2,2], dilations=[2,2]> (x)",
    "LayerNormalization with 2 outputs": "n, m = LayerNormalization (x, w) y = Add (n, m)",
    "ScatterElements with reduction=max": 'y = ScatterElements <reduction="max"> (x, at, x)',
    "ScatterND with reduction=mul": 'y = ScatterND <reduction="mul"> (x, rows, x)',
    "GatherND with batch_dims=1": "y = GatherND <batch_dims=1> (x, rows)",
    "IsInf with detect_negative=0": "i = IsInf <detect_negative=0> (x) y = Cast <to=1> (i)",
    "OneHot": "i = Cast <to=7> (x) y = OneHot (i, depth, pair)",
    "EyeLike": "f = Flatten (x) e = EyeLike (f) y = Add (f, e)",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_training_does_not_support_is_refused_by_name(name: str) -> None:
    weights = {"k": [2, 3, 9, 9], "w": (6,), "roi": (8,), "at": np.zeros((2, 3, 7, 6), np.int64)}
    weights |= {"rows": np.array([[0], [1]]), "depth": np.int64(4), "pair": (2,)}
    used = {key: value for key, value in weights.items() if f"{key})" in REFUSALS[name] or f"{key}," in REFUSALS[name]}
    model = load(build(REFUSALS[name], used, inputs="float[2,3,7,6] x", opset=19))
    with pytest.raises(ModelError, match=f"^{name} has no function in torch") as caught:
        Executor(model)
    assert "leave out training" in caught.value.hint


@pytest.mark.parametrize("name", FORMS)
def test_form(name: str) -> None:
    text, rest = FORMS[name]
    fields = {key: rest[key] for key in ("opset", "inputs", "outputs") if key in rest}
    weights = {key: value for key, value in rest.items() if key not in fields}
    source = build(text, weights, **fields)
    assert difference(load(source), source) <= TOLERANCE


# ------------------------------------------------------------------------------------------------------------ gradients


class Mode:
    """What a node asks when it runs."""

    training = False


GRADIENTS = [
    name
    for name in FORMS
    if name.startswith(("Conv ", "ConvTranspose", "AveragePool", "Resize", "Upsample", "LRN", "Pad ", "ReduceL2", "ReduceProd"))
    or name in ("LayerNormalization, broadcast", "GroupNormalization 18", "LpNormalization 1", "CumSum exclusive=1")
]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in GRADIENTS if "integers" not in name][::2])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    text, rest = FORMS[name]
    fields = {key: rest[key] for key in ("opset", "inputs", "outputs") if key in rest}
    model = load(build(text, {key: value for key, value in rest.items() if key not in fields}, **fields))
    node = model.graph.nodes[0]
    run = operators.bind(operators.Node(node, model.opset, name, Mode()))
    rng = np.random.default_rng(0)
    inputs = []
    for tensor in node.inputs:
        if tensor.name == "x":
            inputs.append(torch.from_numpy(rng.standard_normal([2 if d == "N" else d for d in tensor.shape])))
        elif not tensor.name:
            inputs.append(None)
        else:
            value = torch.from_numpy(np.array(tensor.values))
            inputs.append(value.double() if value.is_floating_point() else value)
    resized = node.op in ("Resize", "Upsample")  # the other inputs are numbers, no variables
    moved = [i for i, x in enumerate(inputs) if x is not None and x.is_floating_point() and not (resized and i)]
    for i in moved:
        inputs[i].requires_grad_()

    def function(*variables: Any) -> Any:
        given = list(inputs)
        for i, value in zip(moved, variables, strict=True):
            given[i] = value
        result = run(*given)
        return result if isinstance(result, torch.Tensor) else tuple(r for r in result if r.is_floating_point())

    assert torch.autograd.gradcheck(function, [inputs[i] for i in moved], fast_mode=True)


NORM = {"scale": (8,), "beta": (8,), "mu": (8,), "var": (8,)}
BLOCK = """a = Conv <pads=[1,1,1,1]> (x, w, wb) r = Relu (a) n = BatchNormalization <momentum=0.8, epsilon=0.001> (r, scale, beta, mu, var)
    d = Conv <group=8, pads=[1,1,1,1], strides=[2,2]> (n, k) h = HardSwish (d) p = GlobalAveragePool (h) f = Flatten (p)
    y = Gemm <transB=1> (f, g, gb)"""


def block() -> tuple[Model, Any, dict[str, str]]:
    """Return a network, the same one in torch, and the names of its parameters there."""
    model = load(build(BLOCK, {"w": (8, 3, 3, 3), "k": (8, 1, 3, 3), **NORM}, inputs="float[N,3,8,8] x"))
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.BatchNorm2d(8, eps=1e-3, momentum=0.2),
        torch.nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False),
        torch.nn.Hardswish(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    ).eval()
    names = {
        "w": "0.weight",
        "wb": "0.bias",
        "scale": "2.weight",
        "beta": "2.bias",
        "k": "3.weight",
        "g": "7.weight",
        "gb": "7.bias",
    }
    state = {**names, "mu": "2.running_mean", "var": "2.running_var"}
    tensors = model.graph.tensors()
    net.load_state_dict(
        {there: torch.from_numpy(np.array(tensors[here].values)) for here, there in state.items()}, strict=False
    )
    return model, net, names


def close(a: Any, b: Any) -> bool:
    return bool(torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.detach().abs().max())))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_steps_are_those_of_the_network_in_torch(training: bool, channels_last: bool) -> None:
    model, net, names = block()
    executor = Executor(model, channels_last=channels_last)
    executor.training = training
    net.train(training)
    parameters = dict(net.named_parameters())
    assert set(executor.weights) == set(names)
    assert set(executor.buffers) == {"mu", "var"}
    ours, theirs = (torch.optim.SGD(p, 0.05, momentum=0.9) for p in (executor.weights.values(), net.parameters()))
    for step in range(3):
        torch.manual_seed(step)
        x, target = torch.randn(5, 3, 8, 8), torch.randint(4, (5,))
        for optimiser, output in ((ours, executor({"x": x})["y"]), (theirs, net(x))):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(output, target).backward()
            optimiser.step()
        for here, there in names.items():
            assert close(executor.weights[here].grad, parameters[there].grad), here
            assert close(executor.weights[here], parameters[there]), here
    for name, statistic in (("mu", net[2].running_mean), ("var", net[2].running_var)):
        assert close(executor.buffers[name], statistic)
    written = executor.written()
    assert difference(written, written.to_proto()) <= TOLERANCE
    statistics = [t for t in written.to_proto().graph.initializer if t.name in ("mu", "var")]
    before = {t.name: t for t in model.to_proto().graph.initializer}
    assert len(statistics) == 2
    assert all((t != before[t.name]) == training for t in statistics)


# ------------------------------------------------------------------------------------------------------------ write-back


@pytest.mark.parametrize("name", ["small", "resnet", "mobile"])
def test_nothing_trained_is_nothing_changed(models: Path, name: str) -> None:
    model = io.load(models / f"{name}.onnx")
    executor = Executor(model)
    assert executor.written().to_proto().SerializeToString() == model.to_proto().SerializeToString()
    (some, *_), given = executor.weights, dict(executor.weights)
    given[some] = given[some] + 1
    changed = executor.written(given).to_proto()
    assert [
        t.name for t, u in zip(changed.graph.initializer, model.to_proto().graph.initializer, strict=True) if t != u
    ] == [some]
    assert executor.written().to_proto() == model.to_proto()


@pytest.mark.parametrize(
    "case",
    [c for c in RUN if c.op in ("weights", "DequantizeLinear") and "block" not in c.id],
    ids=lambda c: c.id,
)
def test_weights_keep_their_type(case: Case) -> None:
    model = load(case.build())
    executor = Executor(model)
    before = {t.name: numpy_helper.to_array(t) for t in model.to_proto().graph.initializer}
    assert executor.written().to_proto() == model.to_proto()
    with torch.no_grad():
        for weight in executor.weights.values():
            weight += 0.25
    after = {t.name: numpy_helper.to_array(t) for t in executor.written().to_proto().graph.initializer}
    assert {name: value.dtype for name, value in before.items()} == {name: value.dtype for name, value in after.items()}
    for name, value in after.items():
        expected = before[name]
        if name in executor.weights:
            wide = expected.astype(np.float64 if expected.dtype == np.float64 else np.float32)
            expected = (wide + wide.dtype.type(0.25)).astype(expected.dtype)
        assert np.array_equal(value, expected), name
    assert all(np.array_equal(t.values, before[n]) for n, t in model.graph.tensors().items() if n in before)


def test_integers_and_bounds_are_not_trained() -> None:
    text = """d = DequantizeLinear <axis=0> (q, k) a = Conv (x, d, wb) s = Add (a, half) c = Clip (s, zero, two)
        n = InstanceNormalization (c, scale, beta) y = PRelu (n, p)"""
    weights = {"q": np.ones((8, 3, 1, 1), np.int8), "k": (8,), "scale": (8,), "beta": (8,), "p": (8, 1, 1)}
    executor = Executor(load(build(text, weights)))
    assert set(executor.weights) == {"wb", "scale", "beta", "p"}
    assert not Executor(executor.model, trained=False).weights


# ------------------------------------------------------------------------------------------------------- running, errors


def test_outputs_that_are_inputs_or_constants() -> None:
    text = "y = Relu (x) z = Identity (k)"
    model = load(build(text, {"k": (3,)}, outputs="y, z"))
    x = torch.randn(2, 3, 6, 6)
    copy = x.clone()
    found = Executor(model)({"x": x}, wanted=["x"])
    assert set(found) == {"x", "y", "z"}
    assert torch.equal(found["x"], copy)
    assert torch.equal(x, copy)


def test_activations_and_masks(tiny: onnx.ModelProto) -> None:
    model = load(tiny)
    executor = Executor(model)
    x, mask = torch.randn(2, 3, 8, 8), (torch.arange(16) % 3 != 0).float().reshape(1, -1, 1, 1).requires_grad_()
    found = executor({"x": x}, wanted=["r1"], masks={(2, 0): mask})
    assert torch.equal(found["r1"], executor({"x": x}, wanted=["r1"])["r1"])
    found["y"].sum().backward()
    assert mask.grad is not None
    masked = load(tiny)
    weight = masked.graph.tensors()["w2"]
    weight.values = weight.values * mask.detach().numpy()
    assert close(found["y"], Executor(masked)({"x": x})["y"])


class Calls(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
    """Note the functions of torch that compute something, and count the results of earlier ones that are there when one is called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.most_alive = 0
        self.results: list[weakref.ref[torch.Tensor]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.most_alive = max(self.most_alive, sum(result() is not None for result in self.results))
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and function not in (torch.Tensor.to, torch.Tensor.t):
            self.names.append(function.__name__)
            self.results.append(weakref.ref(found))
        return found


def test_what_is_not_needed_is_freed(tiny: onnx.ModelProto) -> None:
    executor = Executor(load(tiny))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), Calls() as calls:
        executor({"x": x})
    assert len(calls.names) == 7
    assert calls.most_alive <= 2  # what is read, and what has been written last


def test_a_missing_input_is_named(tiny: onnx.ModelProto) -> None:
    with pytest.raises(DataError, match="x"):
        Executor(load(tiny))({})


def test_an_operator_without_a_function_is_named() -> None:
    model = load(build("a = Conv (x, w, wb) y = Det (a)", {}))
    model.graph.nodes[1].name = "the determinant"
    with pytest.raises(ModelError, match="Det has no function in torch") as caught:
        Executor(model)
    assert caught.value.where == "the determinant"


def test_a_node_that_fails_is_named_with_its_shapes(tiny: onnx.ModelProto) -> None:
    with pytest.raises(ModelError, match="Conv cannot be run in torch") as caught:
        Executor(load(tiny))({"x": torch.zeros(2, 4, 8, 8)})
    assert caught.value.where == "conv1"
    assert "[2, 4, 8, 8], [16, 3, 3, 3], [16]" in caught.value.why


WHOLES = {
    "SiLU": "s = Sigmoid (x) y = Mul (x, s)",
    "SiLU, the gate first": "s = Sigmoid (x) y = Mul (s, x)",
    "HardSwish": "s = HardSigmoid <alpha=0.16666667, beta=0.5> (x) y = Mul (x, s)",
    "GELU": "d = Div (x, root) e = Erf (d) a = Add (e, k1) m = Mul (x, a) y = Mul (m, half)",
    "GELU, in another order": "d = Mul (x, inverse) e = Erf (d) a = Add (k1, e) h = Mul (half, x) y = Mul (h, a)",
    "a linear layer": "m = MatMul (x, q) y = Add (b, m)",
}
PARTS = {
    "another gate": "s = Sigmoid (x) r = Relu (x) y = Mul (r, s)",
    "a gate that is read twice": "s = Sigmoid (x) m = Mul (x, s) y = Add (m, s)",
    "a HardSigmoid of its own": "s = HardSigmoid (x) y = Mul (x, s)",
    "another root": "d = Div (x, two) e = Erf (d) a = Add (e, k1) m = Mul (x, a) y = Mul (m, half)",
    "GELU of two tensors": "r = Relu (x) d = Div (r, root) e = Erf (d) a = Add (e, k1) m = Mul (x, a) y = Mul (m, half)",
    "a bias of rows": "m = MatMul (x, q) y = Add (rows, m)",
}
NUMBERS = {
    "root": np.float32(2**0.5),
    "inverse": np.float32(0.5**0.5),
    "k1": np.float32(1),
    "q": (6, 5),
    "b": (5,),
    "rows": (7, 1),
}


@pytest.mark.parametrize("name", [*WHOLES, *PARTS])
def test_nodes_that_are_one_layer_run_as_one(name: str) -> None:
    source = build({**WHOLES, **PARTS}[name], NUMBERS, inputs=IMAGE)
    model = load(source)
    executor = Executor(model)
    assert difference(model, source) <= TOLERANCE
    feeds = {"x": torch.randn(2, 3, 7, 6)}
    within = model.graph.nodes[0].outputs[0].name
    with Calls() as calls:
        apart = executor(feeds, wanted=[within])
    assert set(apart) == {"y", within}
    with Calls() as fewer:
        whole = executor(feeds)["y"]
    assert (len(fewer.names) == 1) == (name in WHOLES)
    assert (len(fewer.names) < len(calls.names)) == (name in WHOLES)
    assert close(whole, apart["y"])
    mask = torch.tensor(0.5)
    assert not close(executor(feeds, masks={(len(model.graph.nodes) - 1, 0): mask})["y"], apart["y"])

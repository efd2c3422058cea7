"""The table of operators: one row holds everything that onnxprune knows about an ONNX operator.

A missing field disables one feature for the operator: without a rule the operator pins every channel that reaches it,
without a linear view repair skips it, without a chain role a layer chain ends there. An operator without a row has no
feature.

`torch` names a function below the module `torch` that computes the operator from its inputs alone. Where attributes
matter, the torch backend has a binder under the operator's name. Training refuses an operator that has neither.

To add an operator, add a row here and a case to `tests/cases.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import onnx_graphsurgeon as gs

from onnxprune.graph import qdq, saturation, shape_rules
from onnxprune.graph.linear import Linear
from onnxprune.graph.rule_context import Rule
from onnxprune.graph.rules import attention, elementwise, layers, linear_views, movement, products, recurrent
from onnxprune.graph.saturation import UNBOUNDED, Flat

ChainRole = Literal["elementwise", "sum", "product", "mean", "reshape"]


@dataclass(frozen=True)
class OperatorSpec:
    """One row of the table.

    Attributes:
        rule: the operation on channel ids; the support matrix shows the first line of its docstring.
        constant_first: whether the rule accepts a constant as the first input.
        weight_inputs: inputs that hold weights, which training changes.
        linear: view of a node as a matrix; returns None for a node that is not linear.
        saturation: bounds beyond which the output does not change with the input.
        shape_rule: the operation on the integers of shape arithmetic.
        chain: how a layer chain passes derivatives through the operator.
        target_shape: the input that holds a target shape.
        foldable: whether a node with constant inputs is computed in advance.
        quantized_layer: whether the operator is a layer on integers, which is never pruned.
        random: whether the operator draws random numbers.
        torch: name of the torch function that computes the operator from its inputs alone.
    """

    rule: Rule | None = None
    constant_first: bool = False
    weight_inputs: tuple[int, ...] = ()
    linear: Callable[[gs.Node], Linear | None] = lambda node: None
    saturation: Callable[[gs.Node], Flat] = lambda node: UNBOUNDED
    shape_rule: shape_rules.ShapeRule | None = None
    chain: ChainRole | None = None
    target_shape: int | None = None
    foldable: bool = True
    quantized_layer: bool = False
    random: bool = False
    torch: str = ""


def unary(torch: str = "", **more: Any) -> OperatorSpec:
    """Row of an operator on each element by itself; further inputs (bounds, ratios) are scalars."""
    return OperatorSpec(elementwise.passthrough, torch=torch, **more)


def activation(torch: str = "", **more: Any) -> OperatorSpec:
    """Row of a unary operator whose slope a layer chain measures."""
    return unary(torch, chain="elementwise", **more)


def broadcast(torch: str = "", **more: Any) -> OperatorSpec:
    """Row of an operator on the elements of several tensors, broadcast as in numpy."""
    return OperatorSpec(elementwise.elementwise, constant_first=True, torch=torch, **more)


def rows(spec: OperatorSpec, *operators: str) -> dict[str, OperatorSpec]:
    """Give several operators the same row."""
    return dict.fromkeys(operators, spec)


OPERATORS: dict[str, OperatorSpec] = {
    # each element by itself
    "Abs": unary("abs"),
    "Acos": unary("acos"),
    "Acosh": unary("acosh"),
    "Asin": unary("asin"),
    "Asinh": unary("asinh"),
    "Atan": unary("atan"),
    "Atanh": unary("atanh"),
    "BitwiseNot": unary(),
    "Cast": unary(shape_rule=shape_rules.cast),
    "CastLike": OperatorSpec(elementwise.cast_like),
    "Ceil": unary("ceil", shape_rule=shape_rules.rounded),
    "Celu": unary(),
    "Clip": activation(saturation=saturation.clip),
    "Cos": unary("cos"),
    "Cosh": unary("cosh"),
    "Dropout": unary(foldable=False),
    "Elu": activation(),
    "Erf": unary("erf"),
    "Exp": unary("exp"),
    "Floor": unary("floor", shape_rule=shape_rules.rounded),
    "Gelu": activation(),
    "HardSigmoid": activation(saturation=saturation.hard_sigmoid),
    "HardSwish": activation("nn.functional.hardswish", saturation=saturation.from_input(-3.0)),
    "Identity": unary(shape_rule=shape_rules.same),
    "IsInf": unary(),
    "IsNaN": unary("isnan"),
    "LeakyRelu": activation(),
    "Log": unary("log"),
    "Mish": unary("nn.functional.mish"),
    "Neg": unary("neg"),
    "Not": unary("logical_not"),
    "Reciprocal": unary("reciprocal"),
    "Relu": activation("relu", saturation=saturation.from_input(0.0)),
    "Round": unary("round"),
    "Selu": activation(),
    "Shrink": unary(),
    "Sigmoid": activation("sigmoid"),
    "Sign": unary("sign"),
    "Sin": unary("sin"),
    "Sinh": unary("sinh"),
    "Softplus": activation("nn.functional.softplus"),
    "Softsign": unary("nn.functional.softsign"),
    "Sqrt": unary("sqrt"),
    "Swish": unary(),
    "Tan": unary("tan"),
    "Tanh": activation("tanh"),
    "ThresholdedRelu": unary(),
    # element by element, broadcast
    "Add": broadcast("add", shape_rule=shape_rules.arithmetic, chain="sum"),
    "And": broadcast("logical_and"),
    "BitShift": broadcast(),
    "BitwiseAnd": broadcast(),
    "BitwiseOr": broadcast(),
    "BitwiseXor": broadcast(),
    "Div": broadcast(shape_rule=shape_rules.arithmetic),
    "Equal": broadcast("eq"),
    "Greater": broadcast("gt"),
    "GreaterOrEqual": broadcast("ge"),
    "Less": broadcast("lt"),
    "LessOrEqual": broadcast("le"),
    "Max": broadcast(),
    "Mean": broadcast(),
    "Min": broadcast(),
    "Mod": broadcast(),
    "Mul": broadcast("mul", shape_rule=shape_rules.arithmetic, chain="product"),
    "Or": broadcast("logical_or"),
    "PRelu": broadcast(weight_inputs=(1,)),
    "Pow": broadcast(),
    "Sub": broadcast("sub", shape_rule=shape_rules.arithmetic),
    "Sum": broadcast(chain="sum"),
    "Where": broadcast("where"),
    "Xor": broadcast("logical_xor"),
    # pools, reductions and what works along an axis
    **rows(OperatorSpec(elementwise.pool), "AveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"),
    "GlobalAveragePool": OperatorSpec(elementwise.pool, chain="mean"),
    **rows(OperatorSpec(elementwise.reduce), "ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd"),
    **rows(
        OperatorSpec(elementwise.reduce_sum), "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSum", "ReduceSumSquare"
    ),
    "ReduceMean": OperatorSpec(elementwise.reduce_mean, chain="mean"),
    **rows(OperatorSpec(elementwise.along), *elementwise.FLAT_SOFTMAX, "CumSum", "CumProd", "TopK"),
    "LpNormalization": OperatorSpec(elementwise.lp_norm),
    **rows(OperatorSpec(elementwise.argmax), "ArgMax", "ArgMin"),
    "MaxUnpool": OperatorSpec(elementwise.unpool, target_shape=2),
    "ReverseSequence": OperatorSpec(elementwise.reverse_sequence),
    "TensorScatter": OperatorSpec(elementwise.tensor_scatter, constant_first=True),
    "Trilu": OperatorSpec(elementwise.diagonal),
    # layers
    "Attention": OperatorSpec(attention.attention),
    "RotaryEmbedding": OperatorSpec(attention.rotary_embedding),
    "Conv": OperatorSpec(layers.conv, constant_first=True, weight_inputs=(1, 2), linear=linear_views.conv),
    "ConvTranspose": OperatorSpec(layers.conv, weight_inputs=(1, 2), linear=linear_views.conv),
    "DeformConv": OperatorSpec(layers.deform_conv, weight_inputs=(1, 3)),
    "Einsum": OperatorSpec(products.einsum, constant_first=True, weight_inputs=(0, 1), linear=linear_views.einsum),
    "Gemm": OperatorSpec(products.gemm, constant_first=True, weight_inputs=(0, 1, 2), linear=linear_views.gemm),
    "MatMul": OperatorSpec(
        products.matmul, constant_first=True, weight_inputs=(0, 1), linear=linear_views.matmul, torch="matmul"
    ),
    **rows(OperatorSpec(recurrent.recurrent), "GRU", "LSTM", "RNN"),
    **rows(OperatorSpec(layers.roi_align), "GridSample", "MaxRoiPool", "RoiAlign"),
    # normalizations
    "BatchNormalization": OperatorSpec(
        layers.batchnorm, weight_inputs=(1, 2), linear=linear_views.norm, chain="elementwise"
    ),
    "GroupNormalization": OperatorSpec(layers.group_norm, weight_inputs=(1, 2)),
    "InstanceNormalization": OperatorSpec(layers.instance_norm, weight_inputs=(1, 2)),
    "LayerNormalization": OperatorSpec(layers.channel_norm, weight_inputs=(1, 2)),
    "LRN": OperatorSpec(layers.local_response_norm),
    "MeanVarianceNormalization": OperatorSpec(layers.channel_norm),
    "RMSNormalization": OperatorSpec(layers.channel_norm, weight_inputs=(1,)),
    # movement
    "Concat": OperatorSpec(movement.concat, constant_first=True, shape_rule=shape_rules.concat),
    "DepthToSpace": OperatorSpec(movement.depth_to_space),
    "ConstantOfShape": OperatorSpec(movement.constant_of_shape, constant_first=True, target_shape=0),
    "Expand": OperatorSpec(movement.expand, constant_first=True, target_shape=1),
    "Flatten": OperatorSpec(movement.flatten, shape_rule=shape_rules.same, chain="reshape"),
    "Gather": OperatorSpec(movement.gather, constant_first=True, shape_rule=shape_rules.gather),
    "Pad": OperatorSpec(movement.pad),
    "Reshape": OperatorSpec(movement.reshape, shape_rule=shape_rules.same, chain="reshape", target_shape=1),
    "Resize": OperatorSpec(movement.resize, target_shape=3),
    "Slice": OperatorSpec(movement.slice_, constant_first=True, shape_rule=shape_rules.slice_),
    "SpaceToDepth": OperatorSpec(movement.space_to_depth),
    "Split": OperatorSpec(movement.split),
    "Squeeze": OperatorSpec(movement.flatten, shape_rule=shape_rules.same),
    "Tile": OperatorSpec(movement.tile, constant_first=True),
    "Transpose": OperatorSpec(movement.transpose),
    "Unsqueeze": OperatorSpec(movement.flatten, shape_rule=shape_rules.same),
    "Upsample": OperatorSpec(movement.resize),
    "Shape": OperatorSpec(shape_rule=shape_rules.shape),
    # quantization
    "QuantizeLinear": OperatorSpec(elementwise.quantize, weight_inputs=(0,), foldable=False),
    "DequantizeLinear": OperatorSpec(elementwise.quantize, foldable=False),
    "DynamicQuantizeLinear": OperatorSpec(foldable=False),
    **rows(OperatorSpec(quantized_layer=True), "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"),
    **rows(OperatorSpec(quantized_layer=True), "DynamicQuantizeLSTM", "DynamicQuantizeMatMul"),
    **rows(OperatorSpec(quantized_layer=True), "QAttention", "QGemm"),
    # random numbers
    **rows(OperatorSpec(foldable=False, random=True), "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"),
    **rows(OperatorSpec(foldable=False, random=True), "RandomUniform", "RandomUniformLike"),
}
"""Rows by operator. `QGemm`, `QAttention`, `DynamicQuantizeLSTM` and `DynamicQuantizeMatMul` belong to the domain of onnxruntime."""
UNKNOWN = OperatorSpec()
RULES: dict[str, Rule] = {op: spec.rule for op, spec in OPERATORS.items() if spec.rule is not None}
SHAPE_RULES = {op: spec.shape_rule for op, spec in OPERATORS.items() if spec.shape_rule is not None}


def spec_of(node: gs.Node) -> OperatorSpec:
    """Return the row of a node; an empty row for an operator without a row, or of another domain."""
    standard = node.domain in qdq.STANDARD or qdq.is_quantizer(node)
    return OPERATORS.get(node.op, UNKNOWN) if standard else UNKNOWN


def support() -> list[tuple[str, str]]:
    """Return (operator, effect on channels) for every rule, in alphabetical order."""
    return [(op, (RULES[op].__doc__ or "").strip().splitlines()[0]) for op in sorted(RULES)]

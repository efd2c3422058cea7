"""The table of operators and their torch functions. Training refuses an operator without a row, by name.

An operator is *bound* once per node: the binder reads attributes and constants, and returns the function that runs on tensors, one per
input (None: absent).
"""

from __future__ import annotations

import functools
from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from onnxprune.graph.operators import OPERATORS, spec_of
from onnxprune.torch_backend.operators import (
    elementwise,
    layers,
    movement,
    norms,
    pools,
    qdq,
    reductions,
    resize,
    shapes,
)
from onnxprune.torch_backend.operators.elementwise import variadic
from onnxprune.torch_backend.operators.node import Binder, Node, Run, direct, plain, unsupported
from onnxprune.torch_backend.operators.reductions import argument, norm, reduction, softmax

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = ["TORCH_FUNCTIONS", "UPDATED", "Binder", "Node", "Run", "bind", "is_weight"]

TORCH_FUNCTIONS: dict[str, Binder] = {
    **{op: direct(attrgetter(spec.torch)(torch)) for op, spec in OPERATORS.items() if spec.torch},
    "ArgMax": argument(torch.argmax),
    "ArgMin": argument(torch.argmin),
    "AveragePool": pools.average_pool,
    "BatchNormalization": norms.batch_normalization,
    "Cast": shapes.cast,
    "CastLike": direct(lambda x, like: x.to(like.dtype)),
    "Celu": plain(lambda x, *, alpha=1.0: functional.celu(x, alpha)),
    "Clip": elementwise.clip,
    "Concat": plain(lambda *tensors, axis=1: torch.cat(tensors, axis)),
    "Constant": shapes.constant,
    "ConstantOfShape": plain(shapes.constant_of_shape, shape=0),
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "CumSum": plain(reductions.cumsum, axis=1),
    "DepthToSpace": plain(movement.depth_to_space),
    "DequantizeLinear": qdq.dequantize,
    "Div": direct(lambda a, b: torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")),
    "Dropout": elementwise.dropout,
    "Einsum": plain(lambda *tensors, equation: torch.einsum(equation, *tensors)),
    "Elu": plain(lambda x, *, alpha=1.0: functional.elu(x, alpha)),
    "Expand": plain(movement.expand, shape=1),
    "Flatten": plain(movement.flatten),
    "Gather": movement.gather,
    "GatherElements": plain(lambda x, at, *, axis=0: torch.gather(x, axis, movement.positive(at, x.shape[axis]))),
    "GatherND": movement.gather_nd,
    "Gelu": plain(lambda x, *, approximate="none": functional.gelu(x, approximate=approximate)),
    "Gemm": layers.gemm,
    "GlobalAveragePool": direct(lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True)),
    "GlobalMaxPool": direct(lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True)),
    "GroupNormalization": plain(norms.group_normalization),
    "HardSigmoid": elementwise.hard_sigmoid,
    "Identity": direct(elementwise.identity),
    "InstanceNormalization": plain(
        lambda x, scale, bias, *, epsilon=1e-5: torch.group_norm(x, x.shape[1], scale, bias, epsilon)
    ),
    "IsInf": elementwise.is_inf,
    "LRN": plain(norms.local_response_normalization),
    "LayerNormalization": plain(norms.layer_normalization),
    "LeakyRelu": plain(lambda x, *, alpha=0.01: functional.leaky_relu(x, alpha)),
    "LogSoftmax": softmax(torch.log_softmax),
    "LpNormalization": plain(norms.lp_normalization),
    "Max": variadic(torch.maximum),
    "MaxPool": pools.max_pool,
    "Mean": direct(lambda *tensors: functools.reduce(torch.add, tensors) / len(tensors)),
    "Min": variadic(torch.minimum),
    "Mod": plain(lambda a, b, *, fmod=0: torch.fmod(a, b) if fmod else torch.remainder(a, b)),
    "NonZero": direct(lambda x: torch.nonzero(x).t()),
    "PRelu": direct(elementwise.prelu),
    "Pad": plain(movement.pad, pads=1, value=2, axes=3),
    "Pow": elementwise.power,
    "QuantizeLinear": qdq.quantize,
    "RMSNormalization": plain(
        lambda x, scale, *, axis=-1, epsilon=1e-5: functional.rms_norm(x, x.shape[axis:], None, epsilon) * scale
    ),
    "Range": shapes.arange,
    "ReduceL1": reduction(norm(1)),
    "ReduceL2": reduction(norm(2)),
    "ReduceLogSum": reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "ReduceLogSumExp": reduction(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    "ReduceMax": reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMean": reduction(reductions.mean),
    "ReduceMin": reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": reduction(reductions.prod),
    "ReduceSum": reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype)),
    "ReduceSumSquare": reduction(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep, dtype=x.dtype)),
    "Reshape": plain(movement.reshape, shape=1),
    "Resize": resize.resize,
    "Scatter": movement.scatter_elements,
    "ScatterElements": movement.scatter_elements,
    "ScatterND": movement.scatter_nd,
    "Selu": plain(
        lambda x, *, alpha=1.67326319217881684765625, gamma=1.05070102214813232421875: gamma * functional.elu(x, alpha)
    ),
    "Shape": plain(lambda x, *, start=0, end=None: torch.tensor(x.shape[start:end], dtype=torch.int64)),
    "Shrink": plain(lambda x, *, lambd=0.5, bias=0.0: torch.where(x.abs() > lambd, x - bias * x.sign(), 0)),
    "Size": direct(lambda x: torch.tensor(x.numel(), dtype=torch.int64)),
    "Slice": plain(movement.slice_, starts=1, ends=2, axes=3, steps=4),
    "Softmax": softmax(torch.softmax),
    "SpaceToDepth": plain(movement.space_to_depth),
    "Split": movement.split,
    "Squeeze": plain(lambda x, *, axes: x.squeeze() if axes is None else x.squeeze(axes), axes=1),
    "Sum": variadic(torch.add),
    "Swish": plain(lambda x, *, alpha=1.0: functional.silu(alpha * x) / alpha),
    "ThresholdedRelu": plain(lambda x, *, alpha=1.0: functional.threshold(x, alpha, 0.0)),
    "Tile": plain(lambda x, *, repeats: x.repeat(repeats), repeats=1),
    "TopK": plain(reductions.top_k, k=1),
    "Transpose": plain(lambda x, *, perm=None: x.permute(perm or tuple(range(x.ndim))[::-1])),
    "Trilu": plain(lambda x, *, k, upper=1: (torch.triu if upper else torch.tril)(x, (k or [0])[0]), k=1),
    "Unsqueeze": plain(movement.unsqueeze, axes=1),
    "Upsample": resize.resize,
}
"""Binders by operator of the ONNX domain. `onnxprune.graph.operators` names functions that need no attribute."""

AFFINE = ("Add", "Div", "Mul", "Sub", "Sum")
"""Operators whose constants with more than one element are weights: biases or scales."""
UPDATED = {"BatchNormalization": (3, 4)}
"""Inputs that hold running statistics."""
SEVERAL_OUTPUTS = ("Dropout", "Split", "TopK")


def bind(node: Node) -> Run:
    """Return the function that computes a node.

    Raises:
        ModelError: training does not support the operator, one of its attributes, or its second output.
    """
    domain = node.node.domain or ""
    binder = TORCH_FUNCTIONS.get(node.op) if domain in ("", "ai.onnx") else None
    if binder is None:
        prefix = "" if domain in ("", "ai.onnx") else f"{domain}."
        raise unsupported(f"{prefix}{node.op}", node.label)
    if node.n_outputs > 1 and node.op not in SEVERAL_OUTPUTS:
        raise unsupported(f"{node.op} with {node.n_outputs} outputs", node.label)
    return binder(node)


def is_weight(node: gs.Node, i: int) -> bool:
    """Tell whether a float constant at input i of a node is a weight."""
    if node.op in AFFINE:
        return bool(node.inputs[i].values.size > 1)
    return i in spec_of(node).weight_inputs

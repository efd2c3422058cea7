"""Operators that treat every element by itself, and pools and reductions that leave channels alone."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.rule_context import CUT, Ids, Rule, Site, nothing, pin_axes, rows, tie_broadcast, varying
from onnxprune.types import Statistic


def passthrough(site: Site) -> list[Ids]:
    """Every element by itself: channels pass through."""
    ids = site.ids(0)
    assert ids is not None
    return [ids] * site.n_outputs


def elementwise(site: Site) -> list[Ids]:
    """Channels of all inputs are tied, broadcast as in numpy; constants with a value per channel are sliced."""
    out_shape = site.out_shape()
    rank = len(out_shape)
    result = nothing(rank)
    dims = (1,) * rank
    for i in range(site.n_inputs):
        ids = site.ids(i)
        if ids is None:
            continue
        aligned = ids.reshape((1,) * (rank - ids.ndim) + ids.shape)
        shape = (1,) * (rank - ids.ndim) + site.shape(i)
        result, dims = tie_broadcast(site, result, dims, aligned, shape)
    for i in range(site.n_inputs):
        constant = site.const(i)
        if constant is None:
            continue
        for axis in varying(result):
            own = axis - (rank - constant.ndim)
            if own >= 0 and constant.shape[own] > 1:
                site.slice(i, own, rows(result, axis), "follows")
    return [result] * site.n_outputs


def pool(site: Site) -> list[Ids]:
    """Each channel by itself; the axes that are pooled over can't lose any."""
    ids = site.ids(0)
    assert ids is not None
    if site.n_outputs > 1:
        site.pin(ids, "the indices that this MaxPool returns count channels")
        return [nothing(ids.ndim)] * site.n_outputs
    return [pin_axes(site, 0, range(2, ids.ndim), f"{site.op} pools over the axis it lies on")] * site.n_outputs


def reduce(site: Site) -> list[Ids]:
    """Each channel by itself; those that are reduced away must stay."""
    return _reduced(site, None)


def reduce_sum(site: Site) -> list[Ids]:
    """Each channel by itself; a sum over channels, of powers too, is exact without those that go."""
    return _reduced(site, "sum")


def reduce_mean(site: Site) -> list[Ids]:
    """Each channel by itself; a mean over channels holds them, unless norms may be cut: then it runs over those that are left."""
    return _reduced(site, "mean" if site.cut_norms else None)


def _reduced(site: Site, statistic: Statistic | None) -> list[Ids]:
    ids = site.ids(0)
    assert ids is not None
    rank = ids.ndim
    axes = site.value(1) if site.has(1) else site.attr("axes")
    if site.has(1) and axes is None:
        site.pin(ids, f"the axes of this {site.op} are not known")
        return [nothing(len(site.out_shape()))]
    if axes is None or len(axes) == 0:
        axes = [] if site.attr("noop_with_empty_axes", 0) else list(range(rank))
    reduced = sorted({int(axis) % rank for axis in axes})
    if statistic is not None and len(varying(ids)) == 1 and varying(ids)[0] in reduced:
        axis = varying(ids)[0]
        site.summed(0, axis, rows(ids, axis), statistic)
        ids = nothing(rank)
    else:
        hint = CUT if site.op == "ReduceMean" else ""
        ids = pin_axes(site, 0, reduced, f"{site.op} runs over its channels{hint}")
    if not site.attr("keepdims", 1):
        ids = np.squeeze(ids, axis=tuple(reduced))
    return [ids]


UNARY = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
]
"""Operators that treat each element by itself; further inputs (bounds, ratios) are scalars."""

BROADCAST = [
    "Add",
    "And",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Sum",
    "Where",
    "Xor",
]
"""Element-wise operators on several tensors, broadcast as in numpy."""

POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
REDUCTIONS = ("ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd")
SUMS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSum", "ReduceSumSquare")
"""Reductions to which a zero adds nothing."""


def along(site: Site) -> list[Ids]:
    """Channels on the axis it works along must stay; on other axes they pass through."""
    ids = site.ids(0)
    assert ids is not None
    rank = ids.ndim
    if site.op in ("CumSum", "CumProd"):
        value = site.value(1)
        axes = list(range(rank)) if value is None else [int(np.asarray(value).reshape(-1)[0]) % rank]
    else:
        # before opset 13 Softmax flattens all axes from `axis` on into one
        flat = site.op in FLAT_SOFTMAX and site.opset < 13
        axis = int(site.attr("axis", 1 if flat else -1)) % rank
        axes = list(range(axis, rank)) if flat else [axis]
    ids = pin_axes(site, 0, axes, f"{site.op} mixes the channels on its axis")
    return [ids] * site.n_outputs


def lp_norm(site: Site) -> list[Ids]:
    """Channels pass through; the norm over those on its axis is exact without those that go."""
    ids = site.ids(0)
    assert ids is not None
    axis = int(site.attr("axis", -1)) % ids.ndim
    if varying(ids) == [axis]:
        site.summed(0, axis, rows(ids, axis))
        return [ids]
    return [pin_axes(site, 0, [axis], f"{site.op} mixes the channels on its axis")]


def argmax(site: Site) -> list[Ids]:
    """Channels on its axis must stay, since it returns their positions; on other axes they pass through."""
    ids = site.ids(0)
    assert ids is not None
    axis = int(site.attr("axis", 0)) % ids.ndim
    ids = pin_axes(site, 0, [axis], f"{site.op} returns positions of its channels")
    return [ids if site.attr("keepdims", 1) else np.squeeze(ids, axis=axis)]


def diagonal(site: Site) -> list[Ids]:
    """Channels on the last two axes must stay; on others they pass through."""
    ids = site.ids(0)
    assert ids is not None
    return [pin_axes(site, 0, [ids.ndim - 2, ids.ndim - 1], "Trilu needs their positions")]


def quantise(site: Site) -> list[Ids]:
    """Channels pass through; a scale and zero point per channel follow them. Dequantised constants are weights of their readers."""
    ids = site.ids(0)
    assert ids is not None
    scale = site.const(1)
    if scale is None:
        site.pin(ids, f"the scale of this {site.op} is not a constant")
        return [nothing(ids.ndim)]
    if scale.ndim == 1 and scale.size > 1:
        axis = int(site.attr("axis", 1)) % ids.ndim
        if axis in varying(ids):
            for i in (1, 2):
                if site.const(i) is not None:
                    site.slice(i, 0, rows(ids, axis), "follows")
    elif scale.ndim > 1:
        site.pin(ids, f"this {site.op} has a scale per block")
        return [nothing(ids.ndim)]
    return [ids]


FLAT_SOFTMAX = ("Softmax", "LogSoftmax", "Hardmax")
RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY, passthrough),
    **dict.fromkeys(BROADCAST, elementwise),
    **dict.fromkeys(POOLS, pool),
    **dict.fromkeys(REDUCTIONS, reduce),
    **dict.fromkeys(SUMS, reduce_sum),
    "ReduceMean": reduce_mean,
    "LpNormalization": lp_norm,
    **dict.fromkeys((*FLAT_SOFTMAX, "CumSum", "CumProd", "TopK"), along),
    **dict.fromkeys(("ArgMax", "ArgMin"), argmax),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantise),
    "Trilu": diagonal,
}

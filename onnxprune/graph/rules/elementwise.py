"""Operators on each element by itself, pools and reductions."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.graph.ids import Ids, aligned, nothing, on_axis, rows, varying
from onnxprune.graph.rule_context import CUT, JOINS, RuleContext, follow, lane, match_axes, pin_axes, tie_broadcast
from onnxprune.types import Statistic


def passthrough(ctx: RuleContext) -> list[Ids]:
    """Every element by itself: channels pass through."""
    return [ctx.activation()] * ctx.n_outputs


def elementwise(ctx: RuleContext) -> list[Ids]:
    """Channels of all inputs are tied, broadcast as in numpy; constants with a value per channel are sliced."""
    rank = len(ctx.out_shape())
    result = nothing(rank)
    dims = (1,) * rank
    for i in range(ctx.n_inputs):
        ids = ctx.ids(i)
        if ids is not None:
            shape = (1,) * (rank - ids.ndim) + ctx.shape(i)
            result, dims = tie_broadcast(ctx, result, dims, aligned(ids, rank), shape)
    if ctx.op == "Mul" and (result < 0).all():
        result = _spread(ctx, result, dims)
    for i in range(ctx.n_inputs):
        follow(ctx, i, result)
    return [result] * ctx.n_outputs


def _spread(ctx: RuleContext, result: Ids, dims: tuple[int, ...]) -> Ids:
    """Give a number per position that is multiplied with a constant per channel the channels of the constant.

    `dims` are the sizes of the operands that are computed, broadcast. Flax multiplies 1 / deviation with the scale first.
    """
    constants = [value for i in range(2) if (value := ctx.const(i)) is not None and value.dtype.kind == "f"]
    shapes = [(1,) * (result.ndim - value.ndim) + value.shape for value in constants]
    wide = [axis for shape in shapes for axis, size in enumerate(shape) if size > dims[axis] == 1]
    return on_axis(ctx.mint(ctx.out_shape()[wide[0]]), wide[0], result.ndim) if len(wide) == 1 else result


def pool(ctx: RuleContext) -> list[Ids]:
    """Each channel by itself; channels on an axis that is pooled over are pinned."""
    ids = ctx.activation()
    if ctx.n_outputs > 1 and (ctx.is_result(1) or any(node.op != "MaxUnpool" for node in ctx.readers(1))):
        return ctx.refuse("the indices that this MaxPool returns count channels")
    return [pin_axes(ctx, 0, range(2, ids.ndim), f"{ctx.op} pools over the channel axis")] * ctx.n_outputs


def unpool(ctx: RuleContext) -> list[Ids]:
    """Each channel by itself, tied to the MaxPool that returned the indices; the number of channels is rewritten."""
    pool = ctx.source(1)
    if pool is None or pool.op != "MaxPool" or ctx.state.shapes[pool.inputs[0].name] != ctx.out_shape():
        return ctx.refuse(
            f"this {ctx.op} has another size than the input of a MaxPool, whose indices count channels", (0, 1)
        )
    ids = lane(ctx, 0, 1)
    ctx.tie(ids, lane(ctx, 1, 1), f"{ctx.op} {JOINS}")
    out = on_axis(ids, 1, len(ctx.out_shape()))
    if ctx.has(2):
        match_axes(ctx, 2, out, lambda axis, literal: False)
    return [out]


def cast_like(ctx: RuleContext) -> list[Ids]:
    """Every element by itself: channels pass through; of the second input only the type counts."""
    ctx.ids(1)
    return [ctx.activation()]


def reverse_sequence(ctx: RuleContext) -> list[Ids]:
    """Channels on the axes of samples and of positions are pinned; on other axes they pass through."""
    axes = [int(ctx.attr("batch_axis", 1)), int(ctx.attr("time_axis", 0))]
    return [pin_axes(ctx, 0, axes, f"{ctx.op} needs the positions of channels")]


def tensor_scatter(ctx: RuleContext) -> list[Ids]:
    """Channels of both tensors are tied; those on the axis that is written to are pinned."""
    shape = ctx.shape(0)
    axis = int(ctx.attr("axis", -2)) % len(shape)
    why = f"{ctx.op} needs the positions of channels"
    old, new = (pin_axes(ctx, i, [axis], why) if ctx.is_activation(i) else nothing(len(shape)) for i in range(2))
    result = tie_broadcast(ctx, old, shape, new, shape)[0]
    for i in range(2):
        follow(ctx, i, result)
    return [result]


def reduce(ctx: RuleContext) -> list[Ids]:
    """Each channel by itself; channels that are reduced are pinned."""
    return _reduced(ctx, None)


def reduce_sum(ctx: RuleContext) -> list[Ids]:
    """Each channel by itself; a sum over channels, of powers too, is exact without deleted channels."""
    return _reduced(ctx, "sum")


def reduce_mean(ctx: RuleContext) -> list[Ids]:
    """Each channel by itself; a mean over channels pins them, or runs over the survivors (`--norms cut`)."""
    return _reduced(ctx, "mean" if ctx.state.cut_norms else None)


def _reduced(ctx: RuleContext, statistic: Statistic | None) -> list[Ids]:
    ids = ctx.activation()
    rank = ids.ndim
    axes = ctx.value(1) if ctx.has(1) else ctx.attr("axes")
    if ctx.has(1) and axes is None:
        return ctx.refuse(f"the axes of this {ctx.op} are not known")
    if axes is None or len(axes) == 0:
        axes = [] if ctx.attr("noop_with_empty_axes", 0) else list(range(rank))
    reduced = sorted({int(axis) % rank for axis in axes})
    if statistic is not None and len(varying(ids)) == 1 and varying(ids)[0] in reduced:
        axis = varying(ids)[0]
        ctx.summed(0, axis, rows(ids, axis), statistic)
        ids = nothing(rank)
    else:
        what = "a normalization in primitives: " if ctx.op == "ReduceMean" and _is_below_root(ctx) else ""
        hint = CUT if ctx.op == "ReduceMean" else ""
        ids = pin_axes(ctx, 0, reduced, f"{what}{ctx.op} runs over the channels{hint}")
    if not ctx.attr("keepdims", 1):
        ids = np.squeeze(ids, axis=tuple(reduced))
    return [ids]


ON_THE_WAY = ("Add", "Cast", "Clip", "Identity", "Max", "Mul", "Neg", "Pow", "ReduceMean", "Relu", "Sub")
"""Operators between a mean and the root of a variance."""


def _is_below_root(ctx: RuleContext) -> bool:
    """Tell whether a mean goes into a square root, as the mean and the variance of a normalization do."""
    for node in ctx.behind(lambda node: node.op in ON_THE_WAY):
        power = node.inputs[1] if node.op == "Pow" else None
        if node.op == "Sqrt" or (isinstance(power, gs.Constant) and abs(float(power.values.reshape(-1)[0])) == HALF):
            return True
    return False


HALF = 0.5
"""Exponent of a square root."""
FLAT_SOFTMAX = ("Softmax", "LogSoftmax", "Hardmax")


def along(ctx: RuleContext) -> list[Ids]:
    """Channels on the axis of the operator are pinned; on other axes they pass through."""
    ids = ctx.activation()
    rank = ids.ndim
    if ctx.op in ("CumSum", "CumProd"):
        value = ctx.value(1)
        axes = list(range(rank)) if value is None else [int(np.asarray(value).reshape(-1)[0]) % rank]
    else:
        # before opset 13 Softmax flattens all axes from `axis` on into one
        flat = ctx.op in FLAT_SOFTMAX and ctx.state.opset < 13
        axis = int(ctx.attr("axis", 1 if flat else -1)) % rank
        axes = list(range(axis, rank)) if flat else [axis]
    ids = pin_axes(ctx, 0, axes, f"{ctx.op} mixes the channels")
    return [ids] * ctx.n_outputs


def lp_norm(ctx: RuleContext) -> list[Ids]:
    """Channels pass through; the norm over channels is exact without deleted channels."""
    ids = ctx.activation()
    axis = int(ctx.attr("axis", -1)) % ids.ndim
    if varying(ids) == [axis]:
        ctx.summed(0, axis, rows(ids, axis))
        return [ids]
    return [pin_axes(ctx, 0, [axis], f"{ctx.op} mixes the channels")]


def argmax(ctx: RuleContext) -> list[Ids]:
    """Channels on the axis of the operator are pinned, as positions are returned; on other axes they pass through."""
    ids = ctx.activation()
    axis = int(ctx.attr("axis", 0)) % ids.ndim
    ids = pin_axes(ctx, 0, [axis], f"{ctx.op} returns positions of channels")
    return [ids if ctx.attr("keepdims", 1) else np.squeeze(ids, axis=axis)]


def diagonal(ctx: RuleContext) -> list[Ids]:
    """Channels on the last two axes are pinned; on others they pass through."""
    ids = ctx.activation()
    return [pin_axes(ctx, 0, [ids.ndim - 2, ids.ndim - 1], "Trilu needs the positions of channels")]


def quantize(ctx: RuleContext) -> list[Ids]:
    """Channels pass through; scales and zero points follow. Dequantized constants are weights of their readers."""
    ids = ctx.activation()
    scale = ctx.const(1)
    if scale is None:
        return ctx.refuse(f"the scale of this {ctx.op} is not a constant")
    if scale.ndim == 1 and scale.size > 1:
        axis = int(ctx.attr("axis", 1)) % ids.ndim
        if axis in varying(ids):
            for i in (1, 2):
                if ctx.const(i) is not None:
                    ctx.slice(i, 0, rows(ids, axis), "follows")
    elif scale.ndim > 1:
        return ctx.refuse(f"this {ctx.op} has a scale per block")
    return [ids]

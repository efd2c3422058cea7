"""Convolutions, recurrences and normalizations: layers that read channels and write new ones, or follow each channel."""

from __future__ import annotations

import math

import numpy as np

from onnxprune.graph.ids import FIXED, Ids, nothing, on_axis, rows, varying
from onnxprune.graph.rule_context import CUT, RuleContext, follow, lane, pin_axes
from onnxprune.types import Role, Statistic


def conv(ctx: RuleContext) -> list[Ids]:
    """Reads channels and writes new ones; grouped: positions are tied across groups; depthwise: filters follow.

    Any rank, and depthwise with a multiplier, too. The weight of a Conv is (out, in / groups, ...), that of a
    ConvTranspose (in, out / groups, ...).
    """
    return _convolved(ctx, lane(ctx, 0, 1), bias=2)


def deform_conv(ctx: RuleContext) -> list[Ids]:
    """Reads channels and writes new ones, at positions from other inputs, whose channels are pinned."""
    ctx.refuse(f"{ctx.op} reads positions from the channel", (2, 4))
    ids = lane(ctx, 0, 1)
    blocks = ids.reshape(int(ctx.attr("offset_group", 1)), -1)
    ctx.tie(blocks, blocks[:1], f"another offset group of this {ctx.op} reads a pinned channel")
    return _convolved(ctx, ids, bias=3)


def _convolved(ctx: RuleContext, ids: Ids, bias: int) -> list[Ids]:
    transposed = ctx.op == "ConvTranspose"
    n, n_out, *spatial = ctx.out_shape()
    groups = int(ctx.attr("group", 1))
    if ctx.const(1) is None:
        out = _computed_kernel(ctx, ids, n_out, groups)
    elif ids.size == groups > 1:  # depthwise: a filter follows the channel it filters
        out = np.repeat(ids, n_out // groups)
        ctx.slice(1, 0, ids if transposed else out, "follows")
        ctx.count("group", ids)
    elif groups >= max(2, ctx.state.whole_from):
        out = _whole_groups(ctx, ids, n_out, groups)
        ctx.slice(1, 0, ids if transposed else out, "follows" if transposed else "writes")
    else:
        reads = ids.reshape(groups, -1)
        ctx.tie(reads, reads[:1], f"another group of this {ctx.op} reads a pinned channel")
        out = ctx.mint(n_out)
        writes = out.reshape(groups, -1)
        ctx.tie(writes, writes[:1], "")
        ctx.slice(1, 1 - transposed, ids if transposed else reads[0], "reads")
        ctx.slice(1, int(transposed), writes[0] if transposed else out, "writes")
    if ctx.const(1) is not None:
        ctx.work(1, n * math.prod(ctx.shape(0)[2:] if transposed else spatial))
    _parameter(ctx, bias, out, "the bias")
    return [on_axis(out, 1, 2 + len(spatial))]


def _computed_kernel(ctx: RuleContext, ids: Ids, n_out: int, groups: int) -> Ids:
    """Follow the channels of a weight that is computed at run time; return the ids that the convolution writes.

    Depthwise, as in the correlation with the template of a tracker, each filter is tied to its channel. Without groups,
    filters are channels of the output. Inputs of the weight are tied to the channels that they multiply.
    """
    why = f"the weight of this {ctx.op} is not a constant"
    on = varying(ctx.activation(1)) if ctx.op != "ConvTranspose" and groups in (1, ids.size) else []
    if on and groups > 1:
        out = np.repeat(ids, n_out // groups)
        ctx.tie(out, lane(ctx, 1, 0), why)
        ctx.count("group", ids)
        return out
    if on == [1]:
        ctx.tie(ids, lane(ctx, 1, 1), why)
        ctx.summed(0, 1, ids)
        return np.full(n_out, FIXED)
    ctx.pin(ids, why)
    if on:
        return lane(ctx, 1, 0)
    out = ctx.mint(n_out)
    ctx.pin(out, why)
    return out


def _parameter(ctx: RuleContext, i: int, ids: Ids, what: str, role: Role = "follows") -> None:
    """Slice the value per channel at input i; tie the channels of a value that is computed at run time."""
    if ctx.const(i) is not None:
        ctx.slice(i, 0, ids, role)
    elif ctx.has(i):
        ctx.tie(ids, lane(ctx, i, 0), f"{what} of this {ctx.op} is not a constant")


def batchnorm(ctx: RuleContext) -> list[Ids]:
    """Folded where exact; else the parameters follow each channel."""
    ids = lane(ctx, 0, 1)
    rank = len(ctx.shape(0))
    if int(ctx.attr("training_mode", 0)):
        ctx.pin(ids, "this BatchNormalization computes statistics of the batch")
        return ctx.nothing()
    for i in range(1, 5):
        _parameter(ctx, i, ids, "a parameter", "scales" if i == 1 else "follows")
    return [on_axis(ids, 1, rank)] + [nothing(1)] * (ctx.n_outputs - 1)


def _whole_groups(ctx: RuleContext, ids: Ids, n_out: int, groups: int) -> Ids:
    """Tie all channels that a group of a convolution reads and writes; return the ids that the convolution writes."""
    out = ctx.mint(n_out)
    reads, writes = ids.reshape(groups, -1), out.reshape(groups, -1)
    for blocks in (reads, writes):
        ctx.tie(blocks, writes[:, :1], f"another channel of the same group of this {ctx.op} is pinned")
    ctx.count("group", writes[:, 0])
    return out


def instance_norm(ctx: RuleContext) -> list[Ids]:
    """Each channel by itself; parameters follow. One group of channels in one map is prunable with `--norms cut`."""
    rank = len(ctx.shape(0))
    whole, maps = ctx.ids(0), list(range(2, rank))
    on = [] if whole is None else varying(whole)
    if whole is not None and ctx.state.cut_norms and len(on) == 1 and on[0] in maps:
        ctx.summed(0, on[0], rows(whole, on[0]), "variance", maps, scale=1)
        return [whole]
    if whole is not None and len(on) == 1 and on[0] in maps:
        return ctx.refuse(f"{ctx.op} normalizes over the channels{CUT}")
    ids = lane(ctx, 0, 1)
    _parameter(ctx, 1, ids, "a parameter", "scales")
    _parameter(ctx, 2, ids, "a parameter")
    return [on_axis(ids, 1, rank)]


def channel_norm(ctx: RuleContext) -> list[Ids]:
    """Statistics run over channels, so deleting one changes all others: pinned without `--norms cut`."""
    ids = ctx.activation()
    rank = ids.ndim
    if ctx.op in ("LayerNormalization", "RMSNormalization"):
        axes = list(range(int(ctx.attr("axis", -1)) % rank, rank))
    else:
        axes = [int(axis) % rank for axis in ctx.attr("axes", [0, 2, 3])]
    rest = [nothing(rank)] * (ctx.n_outputs - 1)
    statistic = STATISTICS.get(ctx.op)
    on = varying(ids)
    constant = all(ctx.const(i) is not None or not ctx.has(i) for i in (1, 2))
    if statistic is None or not ctx.state.cut_norms or len(on) != 1 or on[0] not in axes or not constant:
        hint = CUT if statistic is not None else ""
        return [pin_axes(ctx, 0, axes, f"{ctx.op} normalizes over the channels{hint}"), *rest]
    ctx.summed(0, on[0], rows(ids, on[0]), statistic, axes, scale=1)
    follow(ctx, 1, ids, "scales")
    follow(ctx, 2, ids)
    return [ids, *rest]


def local_response_norm(ctx: RuleContext) -> list[Ids]:
    """Each channel is divided by its neighbors, so deleting one changes them: pinned without `--norms cut`."""
    ids = ctx.activation()
    if ctx.state.cut_norms and varying(ids) == [1]:
        ctx.summed(0, 1, rows(ids, 1), "window")
        return [ids]
    return [pin_axes(ctx, 0, [1], f"{ctx.op} normalizes over the channels{CUT}")]


def group_norm(ctx: RuleContext) -> list[Ids]:
    """Channels of a group share statistics and are deleted together; a single group is pinned without `--norms cut`."""
    ids = lane(ctx, 0, 1)
    rank = len(ctx.shape(0))
    groups = int(ctx.attr("num_groups"))
    per_channel = [i for i in (1, 2) if ctx.shape(i)[0] == ids.size]  # before opset 21: one value per group
    if groups == 1 and ctx.state.cut_norms:
        ctx.summed(0, 1, ids, "variance", range(1, rank), scale=1)
        for i in per_channel:
            _parameter(ctx, i, ids, "a parameter", "scales" if i == 1 else "follows")
        return [on_axis(ids, 1, rank)]
    if groups == 1:
        return ctx.refuse(f"{ctx.op} normalizes over the channels{CUT}")
    blocks = ids.reshape(groups, -1)
    ctx.tie(blocks, blocks[:, :1], "this GroupNormalization needs every channel of a group")
    first = np.ascontiguousarray(blocks[:, 0])
    ctx.count("num_groups", first)
    for i in (1, 2):
        _parameter(ctx, i, ids if i in per_channel else first, "a parameter")
    return [on_axis(ids, 1, rank)]


def roi_align(ctx: RuleContext) -> list[Ids]:
    """Each channel by itself, at positions from another input."""
    ctx.refuse(f"{ctx.op} reads positions from the channel", range(1, ctx.n_inputs))
    return [on_axis(lane(ctx, 0, 1), 1, len(ctx.out_shape()))]


STATISTICS: dict[str, Statistic] = {"LayerNormalization": "variance", "RMSNormalization": "mean square"}
"""Of normalizations over channels that may be cut."""

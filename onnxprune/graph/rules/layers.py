"""Layers with a weight: they read the channels of their input and write new ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxprune.graph.ids import Ids, aligned, nothing, on_axis, rows, varying
from onnxprune.graph.rule_context import CUT, RuleContext, follow, lane, pin_axes, tie_broadcast, together
from onnxprune.types import Statistic


def conv(ctx: RuleContext) -> list[Ids]:
    """Reads channels and writes new ones; grouped: positions are tied across groups; depthwise: filters follow.

    Any rank, and depthwise with a multiplier, too. The weight of a Conv is (out, in / groups, ...), that of a
    ConvTranspose (in, out / groups, ...).
    """
    ids = lane(ctx, 0, 1)
    transposed = ctx.op == "ConvTranspose"
    n, n_out, *spatial = ctx.out_shape()
    if ctx.const(1) is None:
        out = ctx.mint(n_out)
        for some in (ids, out):
            ctx.pin(some, f"the weight of this {ctx.op} is not a constant")
        return [on_axis(out, 1, 2 + len(spatial))]
    groups = int(ctx.attr("group", 1))
    ctx.work(1, n * math.prod(ctx.shape(0)[2:] if transposed else spatial))
    if ids.size == groups > 1:  # depthwise: a filter follows the channel it filters
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
    if ctx.has(2) and ctx.const(2) is None:
        ctx.pin(out, f"the bias of this {ctx.op} is not a constant")
    elif ctx.has(2):
        ctx.slice(2, 0, out, "follows")
    return [on_axis(out, 1, 2 + len(spatial))]


def gemm(ctx: RuleContext) -> list[Ids]:
    """Reads channels with a constant matrix on either side; the added tensor is tied."""
    side = next((i for i in (1, 0) if ctx.const(i) is not None and ctx.ids(1 - i) is not None), None)
    if side is None:
        return ctx.refuse("this Gemm has no constant weight", range(3))
    weight, x = ctx.const(side), 1 - side
    assert weight is not None
    summed = {0: 1, 1: 0}  # the axis that is summed over, of A and of B as they are multiplied
    flipped = {i: bool(ctx.attr(("transA", "transB")[i], 0)) for i in (0, 1)}
    reads, axis = (summed[i] ^ flipped[i] for i in (side, x))
    out = ctx.mint(weight.shape[1 - reads])
    ctx.slice(side, reads, lane(ctx, x, axis), "reads")
    ctx.slice(side, 1 - reads, out, "writes")
    ctx.work(side, ctx.shape(x)[1 - axis])
    place = side  # a matrix on the right writes columns, one on the left writes rows
    result = on_axis(out, place, 2)
    follow(ctx, 2, result)
    other = ctx.ids(2)
    if other is not None:
        dims = (1,) * (2 - other.ndim) + ctx.shape(2)
        result = tie_broadcast(ctx, result, ctx.out_shape(), aligned(other, 2), dims)[0]
    return [result]


def matmul(ctx: RuleContext) -> list[Ids]:
    """Reads channels with a constant matrix, on either side; two activations tie their attention heads."""
    rank = len(ctx.out_shape())
    for w, x, contracted in ((1, 0, -1), (0, 1, -2)):
        weight, ids = ctx.const(w), ctx.ids(x)
        if weight is None or ids is None or weight.ndim != 2 or ids.ndim < 2:
            continue
        shape = ctx.shape(x)
        axis = len(shape) + contracted
        positions = math.prod(shape) // shape[axis]
        on = varying(ids)
        if len(on) == 1 and on[0] != axis:
            ctx.work(w, positions, rows(ids, on[0]))
            return [ids]  # the matrix mixes another axis: channels pass through
        ctx.slice(w, 1 - w, lane(ctx, x, axis), "reads")
        out = ctx.mint(weight.shape[w])
        ctx.slice(w, w, out, "writes")
        ctx.work(w, positions)
        return [on_axis(out, rank + contracted, rank)]
    ranks = [len(ctx.shape(i)) for i in range(2) if ctx.ids(i) is not None]
    if len(ranks) == 2 and min(ranks) >= 2:
        batch = LABELS[: rank - 2]
        terms = (batch[rank - ranks[0] :] + "ik", batch[rank - ranks[1] :] + "kj")
        return [_product(ctx, terms, batch + "ij")]
    return ctx.refuse("this MatMul's weight is no constant matrix", range(2))


def _product(ctx: RuleContext, terms: tuple[str, str], result: str) -> Ids:
    """Multiply two activations, given the labels of their axes as in Einsum.

    Channels on a label that both factors share and the result keeps (attention heads) are tied, so that whole heads are
    deleted. With `head_width`, or without heads, channels that are summed over are tied between the factors. Both are
    exact.
    """
    shared = [label for label in terms[0] if label in terms[1]]
    summed = [label for label in shared if label not in result]
    factors = [nothing(len(term)) if (ids := ctx.ids(i)) is None else ids for i, term in enumerate(terms)]
    for i, term in enumerate(terms):
        on = {term[axis] for axis in varying(factors[i])}
        heads = [label for label in shared if label in on and label in result]
        if heads and on.intersection(summed) and not ctx.state.head_width:
            factors[i] = together(ctx, factors[i], [term.index(label) for label in summed if label in on])
        elif heads and ctx.state.head_width and len(on) > len(heads):
            factors[i] = together(ctx, factors[i], [term.index(label) for label in heads])
    if any(term[axis] in summed for ids, term in zip(factors, terms, strict=True) for axis in varying(ids)):
        _tie_summed(ctx, factors, terms, summed)
        factors = [nothing(ids.ndim) for ids in factors]
    operands: list[Any] = []  # ids and sizes of both factors, on the axes of the result
    for i, (ids, term) in enumerate(zip(factors, terms, strict=True)):
        order = [term.index(label) for label in result if label in term]
        order += [axis for axis, label in enumerate(term) if label not in result]
        lengths, sizes = (dict(zip(term, shape, strict=True)) for shape in (ids.shape, ctx.shape(i)))
        operands.append(np.transpose(ids, order).reshape([lengths.get(label, 1) for label in result]))
        operands.append(tuple(sizes.get(label, 1) for label in result))
    return tie_broadcast(ctx, *operands)[0]


def _tie_summed(ctx: RuleContext, factors: Sequence[Ids], terms: tuple[str, str], summed: list[str]) -> None:
    """Tie channels that two activations are summed over; pin channels that lie on other axes, too."""
    lie_on = {term[axis] for ids, term in zip(factors, terms, strict=True) for axis in varying(ids)}
    if len(lie_on) > 1 or len(summed) > 1:
        for ids in factors:
            ctx.pin(ids, f"this {ctx.op} sums over more than the channels")
        return
    (label,) = lie_on
    axes = [term.index(label) for term in terms]
    lanes = [
        np.broadcast_to(rows(ids, axis), (ctx.shape(i)[axis],))
        for i, (ids, axis) in enumerate(zip(factors, axes, strict=True))
    ]
    ctx.tie(lanes[0], lanes[1], f"this {ctx.op} sums over the channel and a tensor whose channels are pinned")
    ctx.summed(0, axes[0], lanes[0])


def batchnorm(ctx: RuleContext) -> list[Ids]:
    """Folded where exact; else the parameters follow each channel."""
    ids = lane(ctx, 0, 1)
    rank = len(ctx.shape(0))
    if not _constant_parameters(ctx, ids, 5):
        return ctx.nothing()
    if int(ctx.attr("training_mode", 0)):
        ctx.pin(ids, "this BatchNormalization computes statistics of the batch")
        return ctx.nothing()
    ctx.slice(1, 0, ids, "scales")
    for i in range(2, 5):
        ctx.slice(i, 0, ids, "follows")
    return [on_axis(ids, 1, rank)] + [nothing(1)] * (ctx.n_outputs - 1)


def _constant_parameters(ctx: RuleContext, ids: Ids, end: int) -> bool:
    """Tell whether inputs 1 to end - 1 are constants; pin the ids where one is not."""
    constant = all(ctx.const(i) is not None for i in range(1, end))
    if not constant:
        ctx.pin(ids, f"a parameter of this {ctx.op} is not a constant")
    return constant


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
    ids = lane(ctx, 0, 1)
    if not _constant_parameters(ctx, ids, 3):
        return ctx.nothing()
    ctx.slice(1, 0, ids, "scales")
    ctx.slice(2, 0, ids, "follows")
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
    if not _constant_parameters(ctx, ids, 3):
        return ctx.nothing()
    per_channel = [i for i in (1, 2) if ctx.shape(i)[0] == ids.size]  # before opset 21: one value per group
    if groups == 1 and ctx.state.cut_norms:
        ctx.summed(0, 1, ids, "variance", range(1, rank), scale=1)
        for i in per_channel:
            ctx.slice(i, 0, ids, "scales" if i == 1 else "follows")
        return [on_axis(ids, 1, rank)]
    blocks = ids.reshape(groups, -1)
    ctx.tie(blocks, blocks[:, :1], "this GroupNormalization needs every channel of a group")
    first = np.ascontiguousarray(blocks[:, 0])
    ctx.count("num_groups", first)
    for i in (1, 2):
        ctx.slice(i, 0, ids if i in per_channel else first, "follows")
    return [on_axis(ids, 1, rank)]


def roi_align(ctx: RuleContext) -> list[Ids]:
    """Each channel by itself, at positions from another input."""
    ctx.refuse(f"{ctx.op} reads positions from the channel", range(1, ctx.n_inputs))
    return [on_axis(lane(ctx, 0, 1), 1, len(ctx.out_shape()))]


def einsum(ctx: RuleContext) -> list[Ids]:
    """Contracted labels of a constant read, its own labels write; two activations are tied as in MatMul."""
    equation = str(ctx.attr("equation")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    active = [i for i in range(ctx.n_inputs) if ctx.ids(i) is not None]
    plain = arrow and "." not in equation and len(terms) == 2 and all(len(set(t)) == len(t) for t in (*terms, right))
    if plain and len(active) == 2:
        return [_product(ctx, (terms[0], terms[1]), right)]
    if not plain or len(active) != 1 or ctx.const(1 - active[0]) is None:
        return ctx.refuse("this Einsum has an equation that is not understood", active)
    x, w = active[0], 1 - active[0]
    ids, weight = ctx.activation(x), ctx.const(w)
    assert weight is not None
    on = varying(ids)
    lost = [axis for axis in on if terms[x][axis] not in right and terms[x][axis] not in terms[w]]
    if len(on) > 1 or lost:
        ctx.pin(ids, "this Einsum sums over the channels" if lost else "this Einsum reads channels on two axes")
        on = []
    result = nothing(len(right))
    if on:
        label, own = terms[x][on[0]], rows(ids, on[0])
        if label in terms[w]:
            ctx.slice(w, terms[w].index(label), own, "follows" if label in right else "reads")
        if label in right:
            result = on_axis(own, right.index(label), len(right))
    minted = [label for label in terms[w] if label in right and label not in terms[x]]
    if len(minted) == 1 and not varying(result):
        out = ctx.mint(weight.shape[terms[w].index(minted[0])])
        ctx.slice(w, terms[w].index(minted[0]), out, "writes")
        result = on_axis(out, right.index(minted[0]), len(right))
    sizes = dict(zip(terms[x], ctx.shape(x), strict=True))
    positions = math.prod(size for label, size in sizes.items() if label not in terms[w])
    over = rows(ids, on[0]) if on and terms[x][on[0]] not in terms[w] else None
    ctx.work(w, positions, over)
    return [result]


STATISTICS: dict[str, Statistic] = {"LayerNormalization": "variance", "RMSNormalization": "mean square"}
"""Of normalizations over channels that may be cut."""
LABELS = "ABCDEFGHIJKLMNOP"
"""Names for the batch axes of a MatMul."""

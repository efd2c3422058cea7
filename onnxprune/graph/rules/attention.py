"""Attention as one operator, and the rotation of its queries and keys: whole heads, or the width of every head."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.ids import Ids, nothing, on_axis, reshape_ids
from onnxprune.graph.rule_context import JOINS, RuleContext, follow, pin_axes, tie_broadcast, together


def attention(ctx: RuleContext) -> list[Ids]:
    """Whole heads, or the width of every head; heads of keys and values go with the queries that share them.

    Queries, keys and values are (samples, heads, positions, width), or (samples, positions, heads x width).
    """
    if any(ctx.has(i) for i in (4, 5, 6)) or ctx.n_outputs > 1 or not all(ctx.is_activation(i) for i in range(3)):
        return ctx.refuse(f"this {ctx.op} takes or returns more than queries, keys and values", range(ctx.n_inputs))
    (query, heads), (key, shared), (value, _) = (
        _by_head(ctx, i, name) for i, name in enumerate(("q_num_heads", "kv_num_heads", "kv_num_heads"))
    )
    rank = len(ctx.out_shape())
    width = ctx.out_shape()[-1] // (heads if rank == 3 else 1)
    if heads == 1 or ctx.state.head_width:
        out = _tie_widths(ctx, query, key, value)
        return [on_axis(np.tile(out, heads if rank == 3 else 1), rank - 1, rank)]
    out = _tie_heads(ctx, query, key, value, heads // shared)
    mask = ctx.ids(3)
    follow(ctx, 3, on_axis(out, 1, 4))
    if mask is not None:
        dims = (1,) * (4 - mask.ndim) + ctx.shape(3)
        scores = tie_broadcast(
            ctx, on_axis(out, 1, 4), (1, heads, 1, 1), mask.reshape((1,) * (4 - mask.ndim) + mask.shape), dims
        )
        out = scores[0].reshape(-1)
    return [on_axis(np.repeat(out, width), 2, 3) if rank == 3 else on_axis(out, 1, 4)]


def _by_head(ctx: RuleContext, i: int, name: str) -> tuple[Ids, int]:
    """Return the ids of input i as (1, heads, 1, width), and the number of heads; channels on other axes are pinned."""
    shape = ctx.shape(i)
    ids = pin_axes(ctx, i, [0, len(shape) - 2], f"{ctx.op} mixes the channels")
    if len(shape) == 4:
        return np.broadcast_to(ids, (1, shape[1], 1, shape[3])), shape[1]
    heads = int(ctx.attr(name))
    split = reshape_ids(ids, shape, (*shape[:2], heads, shape[2] // heads))
    return np.broadcast_to(np.transpose(split, (0, 2, 1, 3)), (1, heads, 1, shape[2] // heads)), heads


def _tie_heads(ctx: RuleContext, query: Ids, key: Ids, value: Ids, share: int) -> Ids:
    """Make each head one channel, `share` heads of queries with the head of keys and values they read; return the heads."""
    heads = together(ctx, query, [3]).reshape(-1)
    if key.shape[1] == 1:
        for ids in (key, value):
            ctx.pin(ids, f"all heads of this {ctx.op} share the channel")
    else:
        keys, values = (together(ctx, ids, [3]).reshape(-1) for ids in (key, value))
        ctx.tie(heads, np.repeat(keys, share), f"{ctx.op} {JOINS}")
        ctx.tie(keys, values, f"{ctx.op} {JOINS}")
        _count(ctx, "kv_num_heads", keys)
    _count(ctx, "q_num_heads", heads)
    return heads


def _count(ctx: RuleContext, name: str, heads: Ids) -> None:
    """Report a number of heads where an attribute holds it; tensors of rank 4 have an axis of heads."""
    if ctx.attr(name) is not None:
        ctx.count(name, heads)


def _tie_widths(ctx: RuleContext, query: Ids, key: Ids, value: Ids) -> Ids:
    """Make each position within a head one channel across all heads, of queries and keys together; return those of values."""
    queries, keys, values = (together(ctx, ids, [1]).reshape(-1) for ids in (query, key, value))
    if ctx.attr("scale") is None:
        for ids in (queries, keys):
            ctx.pin(ids, f"the scale of this {ctx.op} follows from the width of a head")
        return values
    ctx.tie(queries, keys, f"{ctx.op} {JOINS}")
    axis = len(ctx.shape(0)) - 1
    ctx.summed(0, axis, np.tile(queries, ctx.shape(0)[axis] // queries.size))
    return values


def rotary_embedding(ctx: RuleContext) -> list[Ids]:
    """Pairs of channels of a head are rotated by the position: whole heads pass through."""
    why = f"{ctx.op} rotates the channels of a head by their place"
    shape = ctx.shape(0)
    if len(shape) == 4:
        return [pin_axes(ctx, 0, [3], why)]
    ids, heads = _by_head(ctx, 0, "num_heads")
    if heads == 1:
        ctx.pin(ids, why)
        return [nothing(3)]
    whole = together(ctx, ids, [3]).reshape(-1)
    ctx.count("num_heads", whole)
    return [on_axis(np.repeat(whole, shape[2] // heads), 2, 3)]

"""Operators that move elements: the same movement on ids."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.ids import FIXED, Ids, aligned, compress, nothing, on_axis, reshape_ids, rows, varying
from onnxprune.graph.rule_context import JOINS, RuleContext, follow, lane, match_axes, pin_axes, tie_broadcast


def reshape(ctx: RuleContext) -> list[Ids]:
    """Channels are reshaped; numbers of channels in the target shape are rewritten."""
    ids = ctx.activation()
    before = ctx.shape(0)
    out = reshape_ids(ids, before, ctx.out_shape())

    def keeps(axis: int, literal: float) -> bool:
        # 0 copies the size of the same axis, which must then lose the same channels
        copied = (
            literal == 0 and axis < len(before) and rows(out, axis).shape == (before[axis],) and ids.shape[axis] > 1
        )
        return literal == -1 or (copied and bool((rows(ids, axis) == rows(out, axis)).all()))

    match_axes(ctx, 1, out, keeps)
    return [out]


def flatten(ctx: RuleContext) -> list[Ids]:
    """Channels are reshaped."""
    ids = ctx.activation()
    if ctx.op == "Squeeze" and not ctx.has(1) and ctx.attr("axes") is None:
        return ctx.refuse("this Squeeze names no axes, and would drop the axis of a single channel")
    return [reshape_ids(ids, ctx.shape(0), ctx.out_shape())]


def transpose(ctx: RuleContext) -> list[Ids]:
    """Channels are transposed."""
    ids = ctx.activation()
    perm = ctx.attr("perm") or list(reversed(range(ids.ndim)))
    return [np.transpose(ids, perm)]


def concat(ctx: RuleContext) -> list[Ids]:
    """Channels are joined on the axis of the operator, and tied on other axes."""
    rank = len(ctx.out_shape())
    axis = int(ctx.attr("axis", 1)) % rank
    arrays = [ctx.ids(i) for i in range(ctx.n_inputs)]
    along = [ids for ids in arrays if ids is not None and ids.shape[axis] > 1]
    across = [ids for ids in arrays if ids is not None and any(a != axis for a in varying(ids))]
    if along and across:
        return ctx.refuse("Concat joins channels that lie on different axes", range(ctx.n_inputs))
    if across:
        result = across[0]
        for i, other in enumerate(arrays):
            if other is None:
                for a in varying(result):
                    ctx.slice(i, a, rows(result, a), "follows")
            elif varying(other) != varying(result):
                ctx.pin_unmet(result, f"Concat {JOINS}")
                ctx.pin_unmet(other, f"Concat {JOINS}")
            else:
                ctx.tie(result, other, f"Concat {JOINS}")
        return [result]
    parts = []
    for i, array in enumerate(arrays):
        part = nothing(rank) if array is None else array
        constant = ctx.const(i) if along else None
        if constant is not None and constant.dtype.kind == "f":
            part = on_axis(ctx.mint(constant.shape[axis]), axis, rank)
            ctx.slice(i, axis, part.reshape(-1), "follows")
        shape = list(part.shape)
        shape[axis] = ctx.shape(i)[axis]
        parts.append(np.broadcast_to(part, shape))
    return [np.concatenate(parts, axis=axis)]


def pad(ctx: RuleContext) -> list[Ids]:
    """Channels pass through; padding on a channel axis adds channels, and its widths are rewritten."""
    ids = ctx.activation()
    pads = ctx.value(1) if ctx.has(1) else ctx.attr("pads")
    if pads is None:
        return ctx.refuse("the widths of this Pad are not known")
    rank = ids.ndim
    given = ctx.value(3)
    axes = range(rank) if given is None else [int(axis) % rank for axis in given]
    pads = [int(p) for p in np.asarray(pads).reshape(-1)]
    begin, end = [0] * rank, [0] * rank
    for position, axis in enumerate(axes):
        begin[axis], end[axis] = pads[position], pads[position + len(axes)]
    touched = [axis for axis in varying(ids) if begin[axis] or end[axis]]
    if not touched:
        return [ids]
    if ctx.attr("mode", "constant") != "constant" or min(*begin, *end) < 0:
        return ctx.refuse("this Pad repeats or crops channels")
    if len(varying(ids)) > 1 or (ctx.has(1) and ctx.const(1) is None):
        widths = [(begin[a], end[a]) if a in touched else (0, 0) for a in range(rank)]
        return [np.pad(ids, widths, constant_values=FIXED)]
    (axis,) = touched
    place = list(axes).index(axis)
    return [_padded(ctx, ids, axis, [(begin[axis], place), (end[axis], place + len(axes))])]


def _padded(ctx: RuleContext, ids: Ids, axis: int, edges: list[tuple[int, int]]) -> Ids:
    """Add new channels on both sides; `edges` holds width and index in the pads. The widths follow the deletion."""
    new = np.split(ctx.mint(sum(width for width, _ in edges)), [edges[0][0]])
    for edge, (_, index) in zip(new, edges, strict=True):
        ctx.count("pads", edge, input=1 if ctx.has(1) else None, index=index)
    before, after = (on_axis(edge, axis, ids.ndim) for edge in new)
    return np.concatenate([before, ids, after], axis=axis)


def expand(ctx: RuleContext) -> list[Ids]:
    """Channels pass through; numbers of channels in the target shape are rewritten."""
    if not ctx.is_activation(0):
        return [_filled(ctx, 1)]
    ids = aligned(ctx.activation(), len(ctx.out_shape()))
    shape = ctx.source(1)
    if shape is not None and shape.op == "Shape" and "start" not in shape.attrs and "end" not in shape.attrs:
        other = shape.inputs[0].name
        if other in ctx.state.ids and ctx.state.shapes[other] == ctx.out_shape():
            ones = (1,) * (ids.ndim - len(ctx.shape(0)))
            return [tie_broadcast(ctx, ids, (*ones, *ctx.shape(0)), ctx.state.ids[other], ctx.out_shape())[0]]
    ids = _spread(ctx, ids)
    match_axes(ctx, 1, ids, lambda axis, literal: literal == 1)
    return [ids]


def _spread(ctx: RuleContext, ids: Ids) -> Ids:
    """Return the ids of an activation without channels that is repeated as often as another tensor has channels: those of the other.

    The number follows by itself, since it is computed from the other tensor.
    """
    sizes, before = ctx.sizes(1), (1,) * (len(ctx.out_shape()) - len(ctx.shape(0))) + ctx.shape(0)
    if varying(ids) or sizes is None or len(sizes) != ids.ndim:
        return ids
    whole = {
        axis: size.ids
        for axis, size in enumerate(sizes)
        if size.ids is not None and size.ids.shape == (size.value,) and size.num == size.den and before[axis] == 1
    }
    if len(whole) != 1:
        return ids
    ((axis, other),) = whole.items()
    return on_axis(other, axis, ids.ndim)


def constant_of_shape(ctx: RuleContext) -> list[Ids]:
    """One value everywhere: channels of its own, whose number in the shape is rewritten."""
    return [_filled(ctx, 0)]


def _filled(ctx: RuleContext, i: int) -> Ids:
    """Give a constant that is spread to the shape at input `i` channels of its own, on the axis where readers look for some.

    A size that follows other channels makes them the channels of the constant, too.
    """
    rank = len(ctx.out_shape())
    sizes, axis, target = ctx.sizes(i), _filled_axis(ctx), ctx.value(i)
    out = nothing(rank)
    if axis is not None and target is not None and target.size == rank and target.reshape(-1)[axis] == 1:
        out = _minted(ctx, axis)  # the size stays that of the constant
        if sizes is None:
            return out
    elif axis is not None and sizes is not None and len(sizes) == rank:
        size = sizes[axis]
        if size.owner is not None:
            out = _minted(ctx, axis)
        elif size.ids is not None and size.ids.shape == (size.value,):
            out = on_axis(size.ids, axis, rank)
    match_axes(ctx, i, out, lambda axis, literal: literal == 1)
    return out


def _minted(ctx: RuleContext, axis: int) -> Ids:
    """Return an output whose channels are those of the constant at input 0."""
    out = on_axis(ctx.mint(ctx.out_shape()[axis]), axis, len(ctx.out_shape()))
    follow(ctx, 0, out)
    return out


def _filled_axis(ctx: RuleContext) -> int | None:
    """Return the axis on which a constant that is spread or repeated gets channels; None without one.

    That is where readers look for them, else the last axis on which the constant holds more than one value.
    """
    shape, constant = ctx.out_shape(), ctx.const(0)
    axis = _channel_axis(ctx, len(shape))
    if axis is not None and shape[axis] > 1:
        return axis
    own = () if constant is None or ctx.op == "ConstantOfShape" else constant.shape
    several = [len(shape) - len(own) + a for a, size in enumerate(own) if size > 1]
    return several[-1] if several else None


def _channel_axis(ctx: RuleContext, rank: int) -> int | None:
    """Return the axis on which the first layer or Concat behind the node takes channels; None where there is neither.

    A Concat takes them on the axis where its other inputs have some, else where the layer behind it does, else on its own.
    """
    shapes, joined_on = ctx.state.shapes, None
    for node in ctx.behind(lambda node: all(len(shapes.get(tensor.name, ())) == rank for tensor in node.outputs)):
        if node.op == "Concat":
            joined = (ctx.state.ids[t.name] for t in node.inputs if t.name in ctx.state.ids)
            others = {axis for ids in joined if ids.ndim == rank for axis in varying(ids)}
            if len(others) == 1:
                return others.pop()
            joined_on = int(node.attrs.get("axis", 1)) % rank if joined_on is None else joined_on
        if node.op in CHANNEL_AXES:
            return CHANNEL_AXES[node.op] % rank
    return joined_on


CHANNEL_AXES = {
    "BatchNormalization": 1, "Conv": 1, "ConvTranspose": 1, "GRU": -1, "Gemm": -1, "LSTM": -1, "MatMul": -1, "RNN": -1,
}  # fmt: skip
"""The axis on which a layer takes the channels of its input or state."""


def tile(ctx: RuleContext) -> list[Ids]:
    """Channels are repeated; those of a constant are its own where they are not repeated."""
    repeats = ctx.value(1)
    if not ctx.is_activation(0):
        axis = _filled_axis(ctx)
        if axis is None or repeats is None or repeats.reshape(-1)[axis] != 1:
            return [nothing(len(ctx.out_shape()))]
        return [_minted(ctx, axis)]
    ids = ctx.activation()
    if repeats is None:
        return ctx.refuse("the repeats of this Tile are not known")
    return [np.tile(ids, [int(r) if axis in varying(ids) else 1 for axis, r in enumerate(repeats)])]


def resize(ctx: RuleContext) -> list[Ids]:
    """Channels pass through; channels on an axis that changes its size are pinned."""
    ids = ctx.activation()
    before, after = ctx.shape(0), ctx.out_shape()
    changed = [axis for axis in range(ids.ndim) if before[axis] != after[axis]]
    ids = pin_axes(ctx, 0, changed, f"{ctx.op} interpolates between channels")
    axes = ctx.attr("axes")
    if ctx.op == "Resize" and ctx.has(3) and axes is None:
        match_axes(ctx, 3, ids, lambda axis, literal: False)
    elif ctx.op == "Resize" and ctx.has(3):
        ids = pin_axes(ctx, 0, [int(axis) % ids.ndim for axis in axes], f"{ctx.op} sets the size of the channel axis")
    return [ids]


def split(ctx: RuleContext) -> list[Ids]:
    """Channels are cut into parts, and the sizes rewritten."""
    ids = ctx.activation()
    rank = ids.ndim
    axis = int(ctx.attr("axis", 0)) % rank
    if axis not in varying(ids):
        return [ids] * ctx.n_outputs
    ends = np.cumsum([ctx.out_shape(i)[axis] for i in range(ctx.n_outputs)])
    parts = np.split(ids, ends[:-1], axis=axis)
    if ctx.const(1) is not None or ctx.attr("split") is not None:
        for index, part in enumerate(parts):
            ctx.count("split", rows(part, axis), input=1 if ctx.has(1) else None, index=index)
    elif ctx.has(1):
        ctx.pin(ids, "the sizes of this Split are computed at run time")
    elif all(part.shape == parts[0].shape for part in parts):
        for part in parts[1:]:
            ctx.tie(part, parts[0], "this Split cuts into equal parts, and another part is pinned")
    else:
        ctx.pin(ids, "this Split cuts into unequal parts without sizes")
    return [compress(part) for part in parts]


def slice_(ctx: RuleContext) -> list[Ids]:
    """Channels are cut, and the bounds rewritten; a constant that is cut elsewhere has channels of its own."""
    if not ctx.is_activation(0):
        return [_cut_constant(ctx)]
    ids = ctx.activation()
    rank = ids.ndim
    inputs = ctx.n_inputs > 1
    starts, ends = (ctx.value(i) if inputs else ctx.attr(name) for i, name in ((1, "starts"), (2, "ends")))
    axes = (ctx.value(3) if ctx.has(3) else None) if inputs else ctx.attr("axes")
    steps = ctx.value(4) if inputs and ctx.has(4) else None
    if starts is None or ends is None or (inputs and ctx.has(3) and axes is None):
        return ctx.refuse("the bounds of this Slice are not known")
    axes = range(len(starts)) if axes is None else axes
    for position, axis in enumerate(int(a) % rank for a in axes):
        if axis not in varying(ids):
            continue
        size = ids.shape[axis]
        start, end = int(starts[position]), int(ends[position])
        step = 1 if steps is None else int(steps[position])
        whole = len(range(*slice(start, end, step).indices(size))) == size
        if (whole and abs(start) in (0, 1)) or (start == 0 and end >= size and step == 1):
            ids = np.flip(ids, axis) if step < 0 else ids
            if end == size:
                _bound(ctx, "ends", 2, position, end, rows(ids, axis))
            continue
        if step < -1 and end < -size and (start == -1 or start >= size):
            # whole steps from the end go together
            heads = ids.take(size - 1 - np.arange(size)[::-1] // -step * -step, axis=axis)
            ctx.tie(ids, heads, "another channel of the same step of this Slice is pinned")
            ids = ids.take(range(size - 1, -1, step), axis=axis)
            continue
        computed = inputs and (ctx.const(1) is None or ctx.const(2) is None)
        if step > 1 and not computed and (0 <= start < step or start % step == 0 <= start):
            # whole steps of channels go together, so that the channels left keep their place within a step
            heads = ids.take(np.arange(size) // step * step, axis=axis)
            ctx.tie(ids, heads, "another channel of the same step of this Slice is pinned")
            if start >= step:
                _bound(ctx, "starts", 1, position, start, rows(ids, axis))
            _bound(ctx, "ends", 2, position, end, rows(ids, axis))
            ids = ids.take(range(*slice(start, end, step).indices(size)), axis=axis)
            continue
        if step != 1 or computed:
            why = "steps over channels" if step != 1 else "has bounds that are computed at run time"
            ctx.pin(ids, f"this Slice {why}")
            return ctx.nothing()
        lane = rows(ids, axis)
        _bound(ctx, "starts", 1, position, start, lane)
        _bound(ctx, "ends", 2, position, end, lane)
        ids = ids.take(range(*slice(start, end).indices(size)), axis=axis)
    return [compress(ids)]


def _cut_constant(ctx: RuleContext) -> Ids:
    """Give a constant that is cut at positions that are computed channels of its own, on another axis."""
    rank, axis = len(ctx.out_shape()), _filled_axis(ctx)
    axes = ctx.value(3) if ctx.has(3) else ctx.attr("axes", range(rank))
    cut = set(range(rank)) if axes is None else {int(a) % rank for a in axes}
    if axis is None or axis in cut or ctx.out_shape()[axis] < 2:
        return ctx.refuse("a constant is cut at positions that are computed", ())[0]
    return _minted(ctx, axis)


def _bound(ctx: RuleContext, name: str, i: int, position: int, bound: int, ids: Ids) -> None:
    """Count the ids before a bound. A negative bound becomes positive, since -0 would be the start."""
    before = bound if bound >= 0 else len(ids) + bound
    if 0 < before <= len(ids):
        ctx.count(name, ids[:before], input=i if ctx.n_inputs > 1 else None, index=position)


def gather(ctx: RuleContext) -> list[Ids]:
    """Channels are picked, and constant positions renumbered."""
    ids = ctx.ids(0)
    if ids is None:
        return [_columns(ctx)]
    rank = ids.ndim
    axis = int(ctx.attr("axis", 0)) % rank
    index = ctx.const(1)
    added = len(ctx.shape(1))
    if axis not in varying(ids):
        shape = ids.shape[:axis] + (1,) * added + ids.shape[axis + 1 :]
        return [ids.reshape(shape)]
    if index is None:
        return ctx.refuse("this Gather takes channels by positions that are computed")
    if added > 1:
        return ctx.refuse("this Gather takes a table")
    positions = index.astype(np.int64) % ids.shape[axis]
    taken = ids.take(positions, axis=axis)
    lane = rows(ids, axis)
    if added == 0 and lane.ndim == 1:
        ctx.pin(taken, "this Gather takes the one channel")
    ctx.lookup(1, lane)
    return [compress(taken)]


def _columns(ctx: RuleContext) -> Ids:
    """Give the columns of a constant table, of which rows are taken at positions that are computed, channels of their own."""
    table, rank, place = ctx.const(0), len(ctx.out_shape()), _filled_axis(ctx)
    if table is None or table.dtype.kind != "f" or place is None:
        return nothing(rank)
    axis, added = int(ctx.attr("axis", 0)) % table.ndim, len(ctx.shape(1))
    own = place if place < axis else place - added + 1
    if own == axis or own < 0 or axis <= place < axis + added or table.shape[own] < 2:
        return nothing(rank)
    out = on_axis(ctx.mint(table.shape[own]), place, rank)
    ctx.slice(0, own, rows(out, place), "follows")
    return out


def depth_to_space(ctx: RuleContext) -> list[Ids]:
    """The sub-pixels of an output channel are tied."""
    ids = lane(ctx, 0, 1)
    block = int(ctx.attr("blocksize"))
    crd = ctx.attr("mode", "DCR") == "CRD"
    grid = ids.reshape(-1, block * block) if crd else ids.reshape(block * block, -1).T
    ctx.tie(grid, grid[:, :1], "another sub-pixel of this DepthToSpace is pinned")
    return [on_axis(np.ascontiguousarray(grid[:, 0]), 1, 4)]


def space_to_depth(ctx: RuleContext) -> list[Ids]:
    """Each channel is repeated once per sub-pixel."""
    return [on_axis(np.tile(lane(ctx, 0, 1), int(ctx.attr("blocksize")) ** 2), 1, 4)]

"""The rule table: for every operator, what it does to channel ids. The only place that knows operators.

A rule sees one node through a `Site` and returns one id array per output. An id array has the rank of its tensor; its
size is 1 on axes without channels. Rules are the numpy operation that the operator itself would do, on ids; what they find
out on the way (ties, pins, slices, counts) they tell the site. An operator without a rule pins whatever reaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from onnxprune.types import IntArray, Role

FIXED = -1
Ids = IntArray
Rule = Callable[["Site"], Sequence[Ids]]


class Site(Protocol):
    """What a rule may know of a node, and what it may say."""

    op: str
    n_inputs: int
    n_outputs: int

    def attr(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""

    def has(self, i: int) -> bool:
        """Tell whether input i is given."""

    def ids(self, i: int) -> Ids | None:
        """Return the ids of input i; None for constants and absent inputs."""

    def const(self, i: int) -> np.ndarray[Any, Any] | None:
        """Return input i when it is a constant."""

    def value(self, i: int) -> np.ndarray[Any, Any] | None:
        """Return what input i holds while tracing: a constant, or an integer tensor computed from shapes."""

    def shape(self, i: int) -> tuple[int, ...]:
        """Return the shape of input i."""

    def out_shape(self, i: int = 0) -> tuple[int, ...]:
        """Return the shape of output i."""

    def mint(self, n: int) -> Ids:
        """Return n new ids."""

    def tie(self, a: Ids, b: Ids, reason: str) -> None:
        """Make two arrays of ids one, element by element."""

    def pin(self, ids: Ids, reason: str) -> None:
        """Keep ids."""

    def slice(self, i: int, axis: int, ids: Ids, role: Role) -> None:
        """Say that the constant at input i holds ids along an axis."""

    def count(self, field: str, ids: Ids, *, input: int | None = None, index: int | None = None) -> None:
        """Say that an integer equals the number of surviving ids."""

    def work(self, i: int, positions: int) -> None:
        """Say that each element of the weight at input i is multiplied this many times."""


# ---------------------------------------------------------------------------------------------------------------- helpers


def nothing(rank: int) -> Ids:
    """Return ids of a tensor without channels."""
    return np.full((1,) * rank, FIXED, dtype=np.int64)


def on_axis(ids: Ids, axis: int, rank: int) -> Ids:
    """Shape the (n,) ids of a channel axis as a tensor of the given rank."""
    shape = [1] * rank
    shape[axis] = ids.size
    return ids.reshape(shape)


def varying(ids: Ids) -> list[int]:
    """Return the axes that channels lie on."""
    return [axis for axis, size in enumerate(ids.shape) if size > 1]


def compress(ids: Ids) -> Ids:
    """Set each axis along which ids don't change to size 1."""
    for axis in range(ids.ndim):
        if ids.shape[axis] > 1:
            head = ids.take([0], axis=axis)
            if (ids == head).all():
                ids = head
    return ids


def lane(site: Site, i: int, axis: int) -> Ids:
    """Return the (n,) ids along one axis of input i; channels on any other axis are pinned."""
    ids = site.ids(i)
    shape = site.shape(i)
    axis %= len(shape)
    if ids is None:
        return np.full(shape[axis], FIXED, dtype=np.int64)
    others = [a for a in varying(ids) if a != axis]
    if others:
        site.pin(ids, f"{site.op} can't lose channels on axis {others[0]}")
        return np.full(shape[axis], FIXED, dtype=np.int64)
    return np.ascontiguousarray(np.broadcast_to(ids.reshape(-1), (shape[axis],)))


def rows(ids: Ids, axis: int) -> Ids:
    """Return the ids at each index of an axis: (n,) where nothing else varies, else (n, m)."""
    moved = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
    return moved[:, 0] if moved.shape[1] == 1 else moved


def pin_axes(site: Site, i: int, axes: Sequence[int], what: str) -> Ids:
    """Return the ids of input i, after pinning them if any lies on `axes`."""
    ids = site.ids(i)
    assert ids is not None
    if any(ids.shape[axis] > 1 for axis in axes):
        site.pin(ids, what)
        return nothing(ids.ndim)
    return ids


def reshape_ids(ids: Ids, before: tuple[int, ...], after: tuple[int, ...]) -> Ids:
    """Reshape ids as a row-major Reshape from shape `before` to `after` does.

    Dimensions are matched in the smallest runs of equal product, so that ids are only spread out within a run that holds
    channels.
    """
    i = j = 0
    pieces: list[tuple[list[int], list[int]]] = []
    while i < len(before) or j < len(after):
        ins: list[int] = []
        outs: list[int] = []
        left = right = 1
        while True:
            if left == right and (ins or outs) and not (ins and not outs) and not (outs and not ins):
                break
            if left <= right and i < len(before):
                ins.append(i)
                left *= before[i]
                i += 1
            elif j < len(after):
                outs.append(j)
                right *= after[j]
                j += 1
            elif i < len(before):
                ins.append(i)
                left *= before[i]
                i += 1
            else:
                break
        pieces.append((ins, outs))
    # walk the runs from left to right; `work` has the runs done as output axes, then the input axes to come
    work = ids
    done = 0
    for ins, outs in pieces:
        here = work.shape[done : done + len(ins)]
        if all(size == 1 for size in here):
            work = work.reshape(work.shape[:done] + (1,) * len(outs) + work.shape[done + len(ins) :])
        else:
            full = work.shape[:done] + tuple(before[a] for a in ins) + work.shape[done + len(ins) :]
            new = work.shape[:done] + tuple(after[a] for a in outs) + work.shape[done + len(ins) :]
            work = compress(np.broadcast_to(work, full).reshape(new))
        done += len(outs)
    return work


# ------------------------------------------------------------------------------------------------------------------ rules


def passthrough(site: Site) -> list[Ids]:
    """Keep the ids of the first input on every output."""
    ids = site.ids(0)
    assert ids is not None
    return [ids] * site.n_outputs


def elementwise(site: Site) -> list[Ids]:
    """Tie the ids of all inputs, broadcast as numpy broadcasts; slice constants that have one value per channel."""
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
        result, dims = _tie_broadcast(site, result, dims, aligned, shape)
    for i in range(site.n_inputs):
        constant = site.const(i)
        if constant is None:
            continue
        for axis in varying(result):
            own = axis - (rank - constant.ndim)
            if own >= 0 and constant.shape[own] > 1:
                site.slice(i, own, rows(result, axis), "follows")
    return [result] * site.n_outputs


def _tie_broadcast(
    site: Site, a: Ids, a_dims: tuple[int, ...], b: Ids, b_dims: tuple[int, ...]
) -> tuple[Ids, tuple[int, ...]]:
    """Combine the ids of two operands of real sizes `a_dims`, `b_dims`; return ids and sizes of the result."""
    dims = tuple(np.broadcast_shapes(a_dims, b_dims))
    on_a, on_b = varying(a), varying(b)
    # an operand that is 1 wide wherever the other has channels is the same for all of them: no tie
    a_is_wide = any(a_dims[axis] > 1 for axis in on_b)
    b_is_wide = any(b_dims[axis] > 1 for axis in on_a)
    if not on_b and not b_is_wide:
        if not on_a and a.size == b.size == 1 and b.flat[0] >= 0:  # two single channels meet
            if a.flat[0] >= 0:
                site.tie(a, b, "")
            return b, dims
        return a, dims
    if not on_a and not a_is_wide:
        return b, dims
    if (on_a and not b_is_wide) or (on_b and not a_is_wide):  # channels on different axes: an outer product
        site.pin(a, f"{site.op} spreads two sets of channels over two axes")
        site.pin(b, f"{site.op} spreads two sets of channels over two axes")
        return nothing(len(dims)), dims
    wide_a, wide_b = np.broadcast_arrays(a, b)
    site.tie(wide_a, wide_b, f"{site.op} joins it with a tensor whose channels stay")
    return compress(np.where((wide_a >= 0) & (wide_b >= 0), wide_a, FIXED)), dims


def conv(site: Site) -> list[Ids]:
    """Conv of any rank, dense, grouped or depthwise (with a multiplier, too)."""
    weight = site.const(1)
    rank = len(site.out_shape())
    ids = lane(site, 0, 1)
    if weight is None:
        site.pin(ids, "the weight of this Conv is not a constant")
        return [nothing(rank)]
    n_out, per_group = weight.shape[:2]
    groups = int(site.attr("group", 1))
    positions = int(np.prod(site.out_shape()[2:], dtype=np.int64)) * site.out_shape()[0]
    site.work(1, positions)
    if groups == 1:
        out = site.mint(n_out)
        site.slice(1, 1, ids, "reads")
        site.slice(1, 0, out, "writes")
    elif per_group == 1:  # depthwise: a filter follows the channel it filters
        out = np.repeat(ids, n_out // groups)
        site.slice(1, 0, out, "follows")
        site.count("group", ids)
    else:
        blocks = ids.reshape(groups, per_group)
        site.tie(
            blocks, np.broadcast_to(blocks[:1], blocks.shape), "another group of this Conv reads a channel that stays"
        )
        out = site.mint(n_out)
        out_blocks = out.reshape(groups, n_out // groups)
        site.tie(out_blocks, np.broadcast_to(out_blocks[:1], out_blocks.shape), "")
        site.slice(1, 1, blocks[0], "reads")
        site.slice(1, 0, out, "writes")
    if site.const(2) is not None:
        site.slice(2, 0, out, "follows")
    elif site.has(2):
        site.pin(out, "the bias of this Conv is not a constant")
    return [on_axis(out, 1, rank)]


def gemm(site: Site) -> list[Ids]:
    """Y = alpha A' B' + beta C with a constant B; A's rows don't hold channels."""
    weight = site.const(1)
    if weight is None or site.attr("transA", 0):
        for i in range(2):
            ids = site.ids(i)
            if ids is not None:
                site.pin(
                    ids,
                    "this Gemm has no constant weight" if weight is None else "this Gemm reads its input transposed",
                )
        return [nothing(2)]
    reads, writes = (1, 0) if site.attr("transB", 0) else (0, 1)
    out = site.mint(weight.shape[writes])
    site.slice(1, reads, lane(site, 0, 1), "reads")
    site.slice(1, writes, out, "writes")
    site.work(1, site.shape(0)[0])
    bias = site.const(2)
    if bias is not None:
        if bias.ndim and bias.shape[-1] > 1:
            site.slice(2, bias.ndim - 1, out, "follows")
    elif site.has(2):
        other = site.ids(2)
        assert other is not None
        wide = np.broadcast_to(other, (1, out.size)) if other.shape[0] == 1 else other
        site.pin(wide, "Gemm adds it to its product")
        site.pin(out, "this Gemm adds an activation to it")
    return [on_axis(out, 1, 2)]


def matmul(site: Site) -> list[Ids]:
    """MatMul with one constant matrix; two activations pin each other."""
    a, b = site.const(0), site.const(1)
    rank = len(site.out_shape())
    if b is not None and b.ndim == 2 and site.ids(0) is not None and len(site.shape(0)) >= 2:
        last = len(site.shape(0)) - 1
        site.slice(1, 0, lane(site, 0, last), "reads")
        out = site.mint(b.shape[1])
        site.slice(1, 1, out, "writes")
        site.work(1, int(np.prod(site.shape(0)[:-1], dtype=np.int64)))
        return [on_axis(out, rank - 1, rank)]
    if a is not None and a.ndim == 2 and site.ids(1) is not None and len(site.shape(1)) >= 2:
        shape = site.shape(1)
        site.slice(0, 1, lane(site, 1, len(shape) - 2), "reads")
        out = site.mint(a.shape[0])
        site.slice(0, 0, out, "writes")
        site.work(0, int(np.prod(shape[:-2], dtype=np.int64)) * shape[-1])
        return [on_axis(out, rank - 2, rank)]
    for i in range(2):
        ids = site.ids(i)
        if ids is not None:
            site.pin(
                ids,
                "this MatMul multiplies two activations"
                if a is None and b is None
                else "this MatMul's weight is no matrix",
            )
    return [nothing(rank)]


def batchnorm(site: Site) -> list[Ids]:
    """BatchNormalization that stayed in the graph."""
    ids = lane(site, 0, 1)
    rank = len(site.shape(0))
    if any(site.const(i) is None for i in range(1, 5)):
        site.pin(ids, "a parameter of this BatchNormalization is not a constant")
        return [nothing(rank)] * site.n_outputs
    if int(site.attr("training_mode", 0)):
        site.pin(ids, "this BatchNormalization computes statistics of the batch")
        return [nothing(rank)] + [nothing(1)] * (site.n_outputs - 1)
    site.slice(1, 0, ids, "scales")
    for i in range(2, 5):
        site.slice(i, 0, ids, "follows")
    return [on_axis(ids, 1, rank)] + [nothing(1)] * (site.n_outputs - 1)


def pool(site: Site) -> list[Ids]:
    """Pools, also global ones: each channel by itself."""
    ids = site.ids(0)
    assert ids is not None
    if site.n_outputs > 1:
        site.pin(ids, "the indices that this MaxPool returns count channels")
        return [nothing(ids.ndim)] * site.n_outputs
    return [pin_axes(site, 0, range(2, ids.ndim), f"{site.op} pools over the axis it lies on")] * site.n_outputs


def reduce(site: Site) -> list[Ids]:
    """Reductions; channels that are reduced away must stay."""
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
    ids = pin_axes(site, 0, reduced, f"{site.op} runs over its channels")
    if not site.attr("keepdims", 1):
        ids = np.squeeze(ids, axis=tuple(reduced))
    return [ids]


def reshape(site: Site) -> list[Ids]:
    """Reshape to a constant shape, or to one computed at run time when that leaves the channels on their own axis."""
    ids = site.ids(0)
    assert ids is not None
    before, after = site.shape(0), site.out_shape()
    out = reshape_ids(ids, before, after)
    axes = varying(out)
    target = site.const(1) if site.has(1) else np.asarray(site.attr("shape"))  # opsets before 5 have an attribute
    if target is None:
        if axes:
            site.pin(out, "the shape of this Reshape is computed at run time")
        return [nothing(len(after))]
    for axis in axes:
        literal = int(target.reshape(-1)[axis])
        if literal > 0:
            site.count("shape", rows(out, axis), input=1, index=axis)
        elif literal == 0 and (axis >= len(before) or before[axis] != after[axis] or ids.shape[axis] == 1):
            site.pin(out, "this Reshape copies a size from an axis that keeps it")
    return [out]


def flatten(site: Site) -> list[Ids]:
    """Flatten: a Reshape to two axes."""
    ids = site.ids(0)
    assert ids is not None
    return [reshape_ids(ids, site.shape(0), site.out_shape())]


def transpose(site: Site) -> list[Ids]:
    """Transpose the ids."""
    ids = site.ids(0)
    assert ids is not None
    perm = site.attr("perm") or list(reversed(range(ids.ndim)))
    return [np.transpose(ids, perm)]


def concat(site: Site) -> list[Ids]:
    """Concat: join ids on its own axis, tie them on the others."""
    rank = len(site.out_shape())
    axis = int(site.attr("axis", 1)) % rank
    arrays = [site.ids(i) for i in range(site.n_inputs)]
    along = [ids for ids in arrays if ids is not None and ids.shape[axis] > 1]
    across = [ids for ids in arrays if ids is not None and any(a != axis for a in varying(ids))]
    if along and across:
        for ids in (*along, *across):
            site.pin(ids, "Concat joins channels that lie on different axes")
        return [nothing(rank)]
    if across:
        result = across[0]
        for i, other in enumerate(arrays):
            if other is None:
                for a in varying(result):
                    site.slice(i, a, rows(result, a), "follows")
            elif varying(other) != varying(result):
                site.pin(result, "Concat joins it with a tensor whose channels stay")
                site.pin(other, "Concat joins it with a tensor whose channels stay")
            else:
                wide_a, wide_b = np.broadcast_arrays(result, other)
                site.tie(wide_a, wide_b, "Concat joins it with a tensor whose channels stay")
        return [result]
    parts = []
    for i, array in enumerate(arrays):
        part = nothing(rank) if array is None else array
        shape = list(part.shape)
        shape[axis] = site.shape(i)[axis]
        parts.append(np.broadcast_to(part, shape))
    return [np.concatenate(parts, axis=axis)]


def pad(site: Site) -> list[Ids]:
    """Pad: constant padding of a channel axis adds indices that stay."""
    ids = site.ids(0)
    assert ids is not None
    pads = site.value(1) if site.has(1) else site.attr("pads")
    if pads is None:
        site.pin(ids, "the widths of this Pad are not known")
        return [nothing(ids.ndim)]
    rank = ids.ndim
    given = site.value(3)
    axes = range(rank) if given is None else [int(axis) % rank for axis in given]
    pads = [int(p) for p in np.asarray(pads).reshape(-1)]
    begin, end = [0] * rank, [0] * rank
    for position, axis in enumerate(axes):
        begin[axis], end[axis] = pads[position], pads[position + len(axes)]
    touched = [axis for axis in varying(ids) if begin[axis] or end[axis]]
    if not touched:
        return [ids]
    if site.attr("mode", "constant") != "constant" or min(*begin, *end) < 0:
        site.pin(ids, "this Pad repeats or crops channels")
        return [nothing(rank)]
    widths = [(begin[a], end[a]) if a in touched else (0, 0) for a in range(rank)]
    return [np.pad(ids, widths, constant_values=FIXED)]


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
REDUCTIONS = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
]

RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY, passthrough),
    **dict.fromkeys(BROADCAST, elementwise),
    **dict.fromkeys(POOLS, pool),
    **dict.fromkeys(REDUCTIONS, reduce),
    "BatchNormalization": batchnorm,
    "Concat": concat,
    "Conv": conv,
    "Flatten": flatten,
    "Gemm": gemm,
    "MatMul": matmul,
    "Pad": pad,
    "Reshape": reshape,
    "Transpose": transpose,
}
"""Operators of the ONNX domain, by name. An operator that is not here pins its inputs."""

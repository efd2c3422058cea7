"""What a rule sees of a node, and helpers on id arrays that rules share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnxprune.types import IntArray, Role, Statistic

FIXED = -1
CUT = " (free with --norms cut, which takes data and repair)"
"""End of the reason to stay of what a normalisation runs over."""
Ids = IntArray
Rule = Callable[["Site"], Sequence[Ids]]


@dataclass(frozen=True)
class Size:
    """One integer of a shape, and where it comes from.

    Attributes:
        value: what it is while tracing; a float within arithmetic on floats.
        owner: (node, input, element) of the constant that holds it, `num` times smaller; None when it is computed at run time.
        ids: channels whose number it follows, as (survivors of ids) * num / den; None when it follows none.
    """

    value: float
    owner: tuple[int, int, int] | None = None
    ids: Ids | None = None
    num: int = 1
    den: int = 1


class Site(Protocol):
    """What a rule may know of a node, and what it may say."""

    op: str
    n_inputs: int
    n_outputs: int
    opset: int
    whole_from: float
    head_width: bool
    cut_norms: bool

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

    def lookup(self, i: int, ids: Ids) -> None:
        """Say that the constant at input i holds positions on an axis with ids."""

    def summed(
        self,
        i: int,
        axis: int,
        ids: Ids,
        statistic: Statistic = "sum",
        axes: Sequence[int] = (),
        scale: int | None = None,
    ) -> None:
        """Say that a statistic of activation i runs over an axis that holds ids; see `onnxprune.types.Summed`."""

    def sizes(self, i: int) -> list[Size] | None:
        """Return where the integers at input i come from; None where that is not known."""

    def size(self, size: Size, ids: Ids) -> None:
        """Say that an integer of a shape is the size of an axis that holds ids."""

    def work(self, i: int, positions: int, over: Ids | None = None) -> None:
        """Say that each element of the weight at input i is multiplied this many times, in proportion to what of `over` is left."""


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


def together(site: Site, ids: Ids, axes: Sequence[int]) -> Ids:
    """Tie all ids that differ only in their place on `axes`; return ids that don't lie on these axes any more."""
    head = ids
    for axis in axes:
        head = head.take([0], axis=axis)
    site.tie(ids, np.broadcast_to(head, ids.shape), f"{site.op} needs what belongs to it on another axis")
    return head


def lane(site: Site, i: int, axis: int) -> Ids:
    """Return the (n,) ids along one axis of input i.

    Channels that lie on other axes, too, are tied there; those that lie on another axis alone are pinned.
    """
    ids = site.ids(i)
    shape = site.shape(i)
    axis %= len(shape)
    if ids is None:
        return np.full(shape[axis], FIXED, dtype=np.int64)
    on = varying(ids)
    others = [a for a in on if a != axis]
    if others and axis not in on:
        site.pin(ids, f"{site.op} can't lose channels on axis {others[0]}")
        return np.full(shape[axis], FIXED, dtype=np.int64)
    ids = together(site, ids, others) if others else ids
    return np.ascontiguousarray(np.broadcast_to(ids.reshape(-1), (shape[axis],)))


def rows(ids: Ids, axis: int) -> Ids:
    """Return the ids at each index of an axis: (n,) where nothing else varies, else (n, m)."""
    moved = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
    return moved[:, 0] if moved.shape[1] == 1 else moved


def pin_axes(site: Site, i: int, axes: Sequence[int], what: str) -> Ids:
    """Return the ids of input i when none may be lost on `axes`: tied there if they lie on others, too, else pinned."""
    ids = site.ids(i)
    assert ids is not None
    touched = [axis for axis in varying(ids) if axis in axes]
    if not touched:
        return ids
    if len(touched) < len(varying(ids)):
        return together(site, ids, touched)
    site.pin(ids, what)
    return nothing(ids.ndim)


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


def match_axes(site: Site, i: int, ids: Ids, keeps: Callable[[int, float], bool]) -> None:
    """Hold the target shape at input i against the ids of the output, axis by axis from the last one.

    Args:
        site: the node.
        i: its input that holds one integer per axis of `ids`, or fewer for the last axes.
        ids: of the output.
        keeps: whether an integer at an axis needs no change whatever survives (0 or -1 in a Reshape).
    """
    sizes = site.sizes(i)
    axes = varying(ids)
    if sizes is None or len(sizes) > ids.ndim:
        if axes:
            site.pin(ids, f"the target shape of this {site.op} is computed at run time")
        return
    for axis, size in enumerate(sizes, start=ids.ndim - len(sizes)):
        if axis in axes and not (size.owner is not None and keeps(axis, size.value)):
            site.size(size, rows(ids, axis))
        elif axis not in axes and size.ids is not None:
            site.pin(size.ids, f"the number of channels sets another size at this {site.op}")


def tie_broadcast(
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

"""Id arrays: the channel that lives at each index of a tensor, with size 1 on the axes without channels, and -1 where none is."""

from __future__ import annotations

import numpy as np

from onnxprune.types import IntArray

FIXED = -1
Ids = IntArray


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


def rows(ids: Ids, axis: int) -> Ids:
    """Return the ids at each index of an axis: (n,) where nothing else varies, else (n, m)."""
    moved = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
    return moved[:, 0] if moved.shape[1] == 1 else moved


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

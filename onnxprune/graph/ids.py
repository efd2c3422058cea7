"""Id arrays: the channel at each index of a tensor, -1 for none; size 1 on the axes without channels."""

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


def aligned(ids: Ids, rank: int) -> Ids:
    """Put axes of size 1 in front, as broadcasting to a higher rank does."""
    return ids.reshape((1,) * (rank - ids.ndim) + ids.shape)


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

    Dimensions are matched in the smallest runs of equal product, and ids spread out only in a run that holds channels.
    """
    i = j = 0
    pieces: list[tuple[list[int], list[int]]] = []
    while i < len(before) or j < len(after):
        ins: list[int] = []
        outs: list[int] = []
        left = right = 1
        while not (ins and outs and left == right):
            if i < len(before) and (left <= right or j == len(after)):
                ins.append(i)
                left *= before[i]
                i += 1
            elif j < len(after):
                outs.append(j)
                right *= after[j]
                j += 1
            else:
                break
        pieces.append((ins, outs))
    # walk the runs from left to right; `work` has the output axes of the runs done, then the input axes of the others
    work = ids
    done = 0
    for ins, outs in pieces:
        front, here, back = work.shape[:done], work.shape[done : done + len(ins)], work.shape[done + len(ins) :]
        if all(size == 1 for size in here):
            work = work.reshape(front + (1,) * len(outs) + back)
        else:
            wide = np.broadcast_to(work, front + tuple(before[a] for a in ins) + back)
            work = compress(wide.reshape(front + tuple(after[a] for a in outs) + back))
        done += len(outs)
    return work

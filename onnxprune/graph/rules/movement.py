"""Operators that move elements: the same movement on ids."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.rule_context import (
    FIXED,
    Ids,
    Rule,
    Site,
    compress,
    lane,
    match_axes,
    nothing,
    on_axis,
    pin_axes,
    reshape_ids,
    rows,
    varying,
)


def reshape(site: Site) -> list[Ids]:
    """Channels are reshaped; numbers of channels in its target are rewritten."""
    ids = site.ids(0)
    assert ids is not None
    before = site.shape(0)
    out = reshape_ids(ids, before, site.out_shape())

    def keeps(axis: int, literal: float) -> bool:
        # 0 copies the size of the same axis, which must then lose the same channels
        copied = (
            literal == 0 and axis < len(before) and rows(out, axis).shape == (before[axis],) and ids.shape[axis] > 1
        )
        return literal == -1 or (copied and bool((rows(ids, axis) == rows(out, axis)).all()))

    match_axes(site, 1, out, keeps)
    return [out]


def flatten(site: Site) -> list[Ids]:
    """Channels are reshaped."""
    ids = site.ids(0)
    assert ids is not None
    if site.op == "Squeeze" and not site.has(1) and site.attr("axes") is None:
        site.pin(ids, "this Squeeze names no axes, and would drop that of a single channel")
        return [nothing(len(site.out_shape()))]
    return [reshape_ids(ids, site.shape(0), site.out_shape())]


def transpose(site: Site) -> list[Ids]:
    """Channels are transposed."""
    ids = site.ids(0)
    assert ids is not None
    perm = site.attr("perm") or list(reversed(range(ids.ndim)))
    return [np.transpose(ids, perm)]


def concat(site: Site) -> list[Ids]:
    """Channels are joined on its axis, and tied on the others."""
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
    """Channels pass through; what it adds to a channel axis stays."""
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


def expand(site: Site) -> list[Ids]:
    """Channels pass through; numbers of channels in its target are rewritten."""
    ids = site.ids(0)
    assert ids is not None
    shape = site.out_shape()
    aligned = ids.reshape((1,) * (len(shape) - ids.ndim) + ids.shape)
    match_axes(site, 1, aligned, lambda axis, literal: literal == 1)
    return [aligned]


def tile(site: Site) -> list[Ids]:
    """Channels are repeated."""
    ids = site.ids(0)
    assert ids is not None
    repeats = site.value(1)
    if repeats is None:
        site.pin(ids, "the repeats of this Tile are not known")
        return [nothing(ids.ndim)]
    return [np.tile(ids, [int(r) if axis in varying(ids) else 1 for axis, r in enumerate(repeats)])]


def resize(site: Site) -> list[Ids]:
    """Channels pass through; those on an axis that changes its size must stay."""
    ids = site.ids(0)
    assert ids is not None
    before, after = site.shape(0), site.out_shape()
    changed = [axis for axis in range(ids.ndim) if before[axis] != after[axis]]
    ids = pin_axes(site, 0, changed, f"{site.op} interpolates between them")
    if site.op == "Resize" and site.has(3) and site.attr("axes") is None:
        match_axes(site, 3, ids, lambda axis, literal: False)
    elif site.op == "Resize" and site.has(3):
        axes = [int(axis) % ids.ndim for axis in site.attr("axes")]
        ids = pin_axes(site, 0, axes, f"{site.op} sets the size of their axis")
    return [ids]


def split(site: Site) -> list[Ids]:
    """Channels are cut into parts, and the sizes rewritten."""
    ids = site.ids(0)
    assert ids is not None
    rank = ids.ndim
    axis = int(site.attr("axis", 0)) % rank
    if axis not in varying(ids):
        return [ids] * site.n_outputs
    ends = np.cumsum([site.out_shape(i)[axis] for i in range(site.n_outputs)])
    parts = np.split(ids, ends[:-1], axis=axis)
    if site.const(1) is not None or site.attr("split") is not None:
        for index, part in enumerate(parts):
            site.count("split", rows(part, axis), input=1 if site.has(1) else None, index=index)
    elif site.has(1):
        site.pin(ids, "the sizes of this Split are computed at run time")
    elif all(part.shape == parts[0].shape for part in parts):
        for part in parts[1:]:
            site.tie(part, parts[0], "this Split cuts into equal parts, another of which stays")
    else:
        site.pin(ids, "this Split cuts into unequal parts without sizes")
    return [compress(part) for part in parts]


def slice_(site: Site) -> list[Ids]:
    """Channels are cut, and the bounds rewritten."""
    ids = site.ids(0)
    assert ids is not None
    rank = ids.ndim
    inputs = site.n_inputs > 1
    starts, ends = (site.value(i) if inputs else site.attr(name) for i, name in ((1, "starts"), (2, "ends")))
    axes = (site.value(3) if site.has(3) else None) if inputs else site.attr("axes")
    steps = site.value(4) if inputs and site.has(4) else None
    if starts is None or ends is None or (inputs and site.has(3) and axes is None):
        site.pin(ids, "the bounds of this Slice are not known")
        return [nothing(rank)]
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
                _bound(site, "ends", 2, position, end, rows(ids, axis))
            continue
        fixed = inputs and (site.const(1) is None or site.const(2) is None)
        if step != 1 or fixed:
            site.pin(
                ids,
                "this Slice steps over channels" if step != 1 else "the bounds of this Slice are computed at run time",
            )
            return [nothing(rank)]
        lane = rows(ids, axis)
        _bound(site, "starts", 1, position, start, lane)
        _bound(site, "ends", 2, position, end, lane)
        ids = ids.take(range(*slice(start, end).indices(size)), axis=axis)
    return [compress(ids)]


def _bound(site: Site, name: str, i: int, position: int, bound: int, ids: Ids) -> None:
    """Count what lies before a bound; one that counts from the end becomes positive, since -0 would be the start."""
    size = len(ids)
    before = bound if bound >= 0 else size + bound
    if 0 < before <= size:
        site.count(name, ids[:before], input=i if site.n_inputs > 1 else None, index=position)


def gather(site: Site) -> list[Ids]:
    """Channels are picked, and constant positions renumbered."""
    ids = site.ids(0)
    if ids is None:  # rows of a constant table
        return [nothing(len(site.out_shape()))]
    rank = ids.ndim
    axis = int(site.attr("axis", 0)) % rank
    index = site.const(1)
    added = len(site.shape(1))
    if axis not in varying(ids):
        shape = ids.shape[:axis] + (1,) * added + ids.shape[axis + 1 :]
        return [ids.reshape(shape)]
    if index is None or added > 1:
        site.pin(
            ids,
            "this Gather takes channels by positions that are computed"
            if index is None
            else "this Gather takes a table",
        )
        return [nothing(rank - 1 + added)]
    positions = index.astype(np.int64) % ids.shape[axis]
    taken = ids.take(positions, axis=axis)
    lane = rows(ids, axis)
    if added == 0 and lane.ndim == 1:
        site.pin(taken, "this Gather takes the one channel")
    site.lookup(1, lane)
    return [compress(taken)]


def depth_to_space(site: Site) -> list[Ids]:
    """The sub-pixels of an output channel go together."""
    ids = lane(site, 0, 1)
    block = int(site.attr("blocksize"))
    crd = site.attr("mode", "DCR") == "CRD"
    grid = ids.reshape(-1, block * block) if crd else ids.reshape(block * block, -1).T
    site.tie(grid, np.broadcast_to(grid[:, :1], grid.shape), "another sub-pixel of its DepthToSpace stays")
    return [on_axis(np.ascontiguousarray(grid[:, 0]), 1, 4)]


def space_to_depth(site: Site) -> list[Ids]:
    """Each channel comes out once per sub-pixel."""
    return [on_axis(np.tile(lane(site, 0, 1), int(site.attr("blocksize")) ** 2), 1, 4)]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Flatten", "Squeeze", "Unsqueeze"), flatten),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    "Concat": concat,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Gather": gather,
    "Pad": pad,
    "Reshape": reshape,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Tile": tile,
    "Transpose": transpose,
}

"""Layers with a weight: they read the channels of their input and write new ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxprune.graph.rule_context import (
    CUT,
    Ids,
    Rule,
    Site,
    lane,
    nothing,
    on_axis,
    pin_axes,
    rows,
    tie_broadcast,
    together,
    varying,
)
from onnxprune.types import Statistic


def conv(site: Site) -> list[Ids]:
    """Reads channels and writes new ones; grouped: positions are tied across groups; depthwise: filters follow.

    Any rank, and depthwise with a multiplier, too.
    """
    weight = site.const(1)
    rank = len(site.out_shape())
    ids = lane(site, 0, 1)
    if weight is None:
        return [_computed_weight(site, ids)]
    n_out, per_group = weight.shape[:2]
    groups = int(site.attr("group", 1))
    positions = math.prod(site.out_shape()[2:]) * site.out_shape()[0]
    site.work(1, positions)
    if groups == 1:
        out = site.mint(n_out)
        site.slice(1, 1, ids, "reads")
        site.slice(1, 0, out, "writes")
    elif per_group == 1:  # depthwise: a filter follows the channel it filters
        out = np.repeat(ids, n_out // groups)
        site.slice(1, 0, out, "follows")
        site.count("group", ids)
    elif groups >= site.whole_from:
        out = _whole_groups(site, ids, n_out, groups)
        site.slice(1, 0, out, "writes")
    else:
        blocks = ids.reshape(groups, per_group)
        _tie_groups(site, blocks, "another group of this Conv reads a channel that stays")
        out = site.mint(n_out)
        _tie_groups(site, out.reshape(groups, n_out // groups), "")
        site.slice(1, 1, blocks[0], "reads")
        site.slice(1, 0, out, "writes")
    _bias(site, 2, out)
    return [on_axis(out, 1, rank)]


def gemm(site: Site) -> list[Ids]:
    """Reads channels with a constant matrix on either side, with any transA, transB, alpha and beta; what it adds is tied."""
    side = next((i for i in (1, 0) if site.const(i) is not None and site.ids(1 - i) is not None), None)
    if side is None:
        for i in range(3):
            ids = site.ids(i)
            if ids is not None:
                site.pin(ids, "this Gemm has no constant weight")
        return [nothing(2)]
    weight, x = site.const(side), 1 - side
    assert weight is not None
    summed = {0: 1, 1: 0}  # the axis that is summed over, of A and of B as they are multiplied
    flipped = {i: bool(site.attr(("transA", "transB")[i], 0)) for i in (0, 1)}
    reads, axis = (summed[i] ^ flipped[i] for i in (side, x))
    out = site.mint(weight.shape[1 - reads])
    site.slice(side, reads, lane(site, x, axis), "reads")
    site.slice(side, 1 - reads, out, "writes")
    site.work(side, site.shape(x)[1 - axis])
    place = side  # a matrix on the right writes columns, one on the left writes rows
    result = on_axis(out, place, 2)
    bias, other = site.const(2), site.ids(2)
    if bias is not None and bias.ndim > 1 - place:
        own = place - (2 - bias.ndim)
        if bias.shape[own] > 1:
            site.slice(2, own, out, "follows")
    elif other is not None:
        aligned = other.reshape((1,) * (2 - other.ndim) + other.shape)
        dims = (1,) * (2 - other.ndim) + site.shape(2)
        result = tie_broadcast(site, result, site.out_shape(), aligned, dims)[0]
    return [result]


def matmul(site: Site) -> list[Ids]:
    """Reads channels with a constant matrix, on either side; two activations tie their attention heads."""
    a, b = site.const(0), site.const(1)
    rank = len(site.out_shape())
    for w, x, contracted in ((1, 0, -1), (0, 1, -2)):
        weight, ids = site.const(w), site.ids(x)
        if weight is None or ids is None or weight.ndim != 2 or ids.ndim < 2:
            continue
        shape = site.shape(x)
        axis = len(shape) + contracted
        positions = math.prod(shape) // shape[axis]
        on = varying(ids)
        if len(on) == 1 and on[0] != axis:
            site.work(w, positions, rows(ids, on[0]))
            return [ids]  # the matrix mixes another axis: channels pass through
        site.slice(w, 1 - w, lane(site, x, axis), "reads")
        out = site.mint(weight.shape[w])
        site.slice(w, w, out, "writes")
        site.work(w, positions)
        return [on_axis(out, rank + contracted, rank)]
    if a is None and b is None and site.ids(0) is not None and site.ids(1) is not None:
        ranks = [len(site.shape(i)) for i in range(2)]
        if min(ranks) >= 2:
            batch = LABELS[: rank - 2]
            terms = (batch[rank - ranks[0] :] + "ik", batch[rank - ranks[1] :] + "kj")
            return [_product(site, terms, batch + "ij")]
    for i in range(2):
        ids = site.ids(i)
        if ids is not None:
            site.pin(ids, "this MatMul's weight is no constant matrix")
    return [nothing(rank)]


def _product(site: Site, terms: tuple[str, str], result: str) -> Ids:
    """Multiply two activations, given the labels of their axes as in Einsum.

    Channels on a label that both share and keep (attention heads) are tied and go whole: removing head h removes all that is
    computed from it. With `head_width`, or where there are no heads, channels that are summed over are tied between the two
    factors, and go together. Both are exact.
    """
    shared = [label for label in terms[0] if label in terms[1]]
    summed = [label for label in shared if label not in result]
    both = [site.ids(0), site.ids(1)]
    a, b = (ids if ids is not None else nothing(len(term)) for ids, term in zip(both, terms, strict=True))
    factors = [a, b]
    for i, term in enumerate(terms):
        on = {term[axis] for axis in varying(factors[i])}
        heads = [label for label in shared if label in on and label in result]
        if heads and on.intersection(summed) and not site.head_width:
            factors[i] = together(site, factors[i], [term.index(label) for label in summed if label in on])
        elif heads and site.head_width and len(on) > len(heads):
            factors[i] = together(site, factors[i], [term.index(label) for label in heads])
    if any(term[axis] in summed for ids, term in zip(factors, terms, strict=True) for axis in varying(ids)):
        _tie_summed(site, factors, terms, summed)
        factors = [nothing(ids.ndim) for ids in factors]
    operands = []
    for i, (ids, term) in enumerate(zip(factors, terms, strict=True)):
        order = [term.index(label) for label in result if label in term]
        rest = tuple(axis for axis, label in enumerate(term) if label not in result)
        arranged = np.transpose(ids, [*order, *rest])
        present = iter(arranged.shape)
        shape = [next(present) if label in term else 1 for label in result]
        sizes = dict(zip(term, site.shape(i), strict=True))
        operands.append((arranged.reshape(shape), tuple(sizes.get(label, 1) for label in result)))
    (a, a_dims), (b, b_dims) = operands
    return tie_broadcast(site, a, a_dims, b, b_dims)[0]


def _tie_summed(site: Site, factors: Sequence[Ids], terms: tuple[str, str], summed: list[str]) -> None:
    """Tie channels that two activations are summed over; pin those that lie on other axes at the same time."""
    reason = f"this {site.op} sums them up with a tensor whose channels stay"
    lie_on = {term[axis] for ids, term in zip(factors, terms, strict=True) for axis in varying(ids)}
    if len(lie_on) > 1 or len(summed) > 1:
        for ids in factors:
            site.pin(ids, f"this {site.op} sums over them, and over more")
        return
    (label,) = lie_on
    axes = [term.index(label) for term in terms]
    lanes = [
        np.broadcast_to(rows(ids, axis), (site.shape(i)[axis],))
        for i, (ids, axis) in enumerate(zip(factors, axes, strict=True))
    ]
    site.tie(lanes[0], lanes[1], reason)
    site.summed(0, axes[0], lanes[0])


def batchnorm(site: Site) -> list[Ids]:
    """Folded where exact; else its parameters follow each channel."""
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


def conv_transpose(site: Site) -> list[Ids]:
    """Reads channels and writes new ones; grouped and depthwise as Conv.

    Its weight is (channels in, channels out / groups, ...).
    """
    weight = site.const(1)
    rank = len(site.out_shape())
    ids = lane(site, 0, 1)
    if weight is None:
        return [_computed_weight(site, ids)]
    n_in, per_group = weight.shape[:2]
    groups = int(site.attr("group", 1))
    site.work(1, math.prod(site.shape(0)[2:]) * site.shape(0)[0])
    if groups == 1:
        out = site.mint(per_group)
        site.slice(1, 0, ids, "reads")
        site.slice(1, 1, out, "writes")
    elif n_in == groups:
        out = np.repeat(ids, per_group)
        site.slice(1, 0, ids, "follows")
        site.count("group", ids)
    elif groups >= site.whole_from:
        out = _whole_groups(site, ids, per_group * groups, groups)
        site.slice(1, 0, ids, "follows")
    else:
        _tie_groups(site, ids.reshape(groups, -1), "another group of this ConvTranspose reads a channel that stays")
        out = site.mint(per_group * groups)
        blocks = out.reshape(groups, per_group)
        _tie_groups(site, blocks, "")
        site.slice(1, 0, ids, "reads")
        site.slice(1, 1, blocks[0], "writes")
    _bias(site, 2, out)
    return [on_axis(out, 1, rank)]


def _computed_weight(site: Site, ids: Ids) -> Ids:
    """Pin what a layer without a constant weight reads and writes."""
    out = site.mint(site.out_shape()[1])
    for some in (ids, out):
        site.pin(some, f"the weight of this {site.op} is not a constant")
    return on_axis(out, 1, len(site.out_shape()))


def _whole_groups(site: Site, ids: Ids, n_out: int, groups: int) -> Ids:
    """Tie everything that a group of a convolution reads and writes; return the ids it writes.

    Nothing else is left that reads what a removed group read, so this is exact.
    """
    out = site.mint(n_out)
    reads, writes = ids.reshape(groups, -1), out.reshape(groups, -1)
    for blocks in (reads, writes):
        whole = np.broadcast_to(writes[:, :1], blocks.shape)
        site.tie(blocks, whole, f"another channel of its group of this {site.op} stays")
    site.count("group", writes[:, 0])
    return out


def _tie_groups(site: Site, blocks: Ids, reason: str) -> None:
    """Tie the same positions of all groups, (groups, channels per group)."""
    site.tie(blocks, np.broadcast_to(blocks[:1], blocks.shape), reason)


def _bias(site: Site, i: int, out: Ids) -> None:
    if site.const(i) is not None:
        site.slice(i, 0, out, "follows")
    elif site.has(i):
        site.pin(out, f"the bias of this {site.op} is not a constant")


def instance_norm(site: Site) -> list[Ids]:
    """Each channel by itself; its parameters follow. A GroupNormalization of one group, written as one map, may be cut."""
    rank = len(site.shape(0))
    whole, maps = site.ids(0), list(range(2, rank))
    if whole is not None and site.cut_norms and len(varying(whole)) == 1 and varying(whole)[0] in maps:
        axis = varying(whole)[0]
        site.summed(0, axis, rows(whole, axis), "variance", maps, scale=1)
        return [whole]
    ids = lane(site, 0, 1)
    if site.const(1) is None or site.const(2) is None:
        site.pin(ids, "a parameter of this InstanceNormalization is not a constant")
        return [nothing(rank)]
    site.slice(1, 0, ids, "scales")
    site.slice(2, 0, ids, "follows")
    return [on_axis(ids, 1, rank)]


def channel_norm(site: Site) -> list[Ids]:
    """Statistics run over channels, so that all others change when one goes: they must stay, unless norms may be cut."""
    ids = site.ids(0)
    assert ids is not None
    rank = ids.ndim
    if site.op in ("LayerNormalization", "RMSNormalization"):
        axes = list(range(int(site.attr("axis", -1)) % rank, rank))
    else:
        axes = [int(axis) % rank for axis in site.attr("axes", [0, 2, 3])]
    rest = [nothing(rank)] * (site.n_outputs - 1)
    statistic = STATISTICS.get(site.op)
    on = varying(ids)
    if statistic is None or not site.cut_norms or len(on) != 1 or on[0] not in axes or not _constant_scale(site):
        hint = CUT if statistic is not None else ""
        return [pin_axes(site, 0, axes, f"{site.op} normalises over its channels{hint}"), *rest]
    own = rows(ids, on[0])
    site.summed(0, on[0], own, statistic, axes, scale=1)
    for i in (1, 2):
        value = site.const(i)
        axis = on[0] - rank + (0 if value is None else value.ndim)
        if value is not None and axis >= 0 and value.shape[axis] > 1:
            site.slice(i, axis, own, "scales" if i == 1 else "follows")
    return [ids, *rest]


def local_response_norm(site: Site) -> list[Ids]:
    """Each channel is divided by what its neighbours hold: they must stay, unless norms may be cut, which makes others neighbours."""
    ids = site.ids(0)
    assert ids is not None
    if site.cut_norms and varying(ids) == [1]:
        site.summed(0, 1, rows(ids, 1), "window")
        return [ids]
    return [pin_axes(site, 0, [1], f"{site.op} normalises over its channels{CUT}")]


def _constant_scale(site: Site) -> bool:
    return all(site.const(i) is not None or not site.has(i) for i in (1, 2))


def group_norm(site: Site) -> list[Ids]:
    """Channels of a group share statistics and go together, a whole group at a time; of a single group only if norms may be cut."""
    ids = lane(site, 0, 1)
    rank = len(site.shape(0))
    groups = int(site.attr("num_groups"))
    scale, bias = site.const(1), site.const(2)
    if scale is None or bias is None:
        site.pin(ids, "a parameter of this GroupNormalization is not a constant")
        return [nothing(rank)]
    if groups == 1 and site.cut_norms:
        site.summed(0, 1, ids, "variance", range(1, rank), scale=1)
        for i, value in ((1, scale), (2, bias)):
            if value.size == ids.size:
                site.slice(i, 0, ids, "scales" if i == 1 else "follows")
        return [on_axis(ids, 1, rank)]
    blocks = ids.reshape(groups, -1)
    site.tie(blocks, np.broadcast_to(blocks[:, :1], blocks.shape), "its GroupNormalization needs all of its group")
    first = np.ascontiguousarray(blocks[:, 0])
    site.count("num_groups", first)
    for i, value in ((1, scale), (2, bias)):  # one value per group before opset 21
        site.slice(i, 0, ids if value.size == ids.size else first, "follows")
    return [on_axis(ids, 1, rank)]


def recurrent(site: Site) -> list[Ids]:
    """Reads the channels of its input; its own state stays.

    The input weight is (directions, gates x hidden, inputs).
    """
    ids = lane(site, 0, 2)
    if site.const(1) is None:
        site.pin(ids, f"the weight of this {site.op} is not a constant")
    else:
        site.slice(1, 2, ids, "reads")
        site.work(1, math.prod(site.shape(0)[:2]))
    if site.const(2) is not None:
        site.work(2, math.prod(site.shape(0)[:2]))
    for i in range(3, site.n_inputs):
        other = site.ids(i)
        if other is not None:
            site.pin(other, f"it is a state of this {site.op}")
    return [nothing(rank) for rank in (4, 3, 3)[: site.n_outputs]]


def roi_align(site: Site) -> list[Ids]:
    """Each channel by itself, at positions that another input gives."""
    for i in range(1, site.n_inputs):
        other = site.ids(i)
        if other is not None:
            site.pin(other, f"{site.op} reads positions from it")
    return [on_axis(lane(site, 0, 1), 1, len(site.out_shape()))]


def einsum(site: Site) -> list[Ids]:
    """Contracted labels of a constant read, its own labels write; two activations tie as in MatMul."""
    equation = str(site.attr("equation")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    active = [i for i in range(site.n_inputs) if site.ids(i) is not None]
    if len(active) == 2 and arrow and "." not in equation and all(len(set(t)) == len(t) for t in (*terms, right)):
        return [_product(site, (terms[0], terms[1]), right)]
    plain = arrow and "." not in equation and len(terms) == 2 and all(len(set(t)) == len(t) for t in (*terms, right))
    if not plain or len(active) != 1 or site.const(1 - active[0]) is None:
        for i in active:
            ids = site.ids(i)
            assert ids is not None
            site.pin(ids, "this Einsum has an equation that is not understood")
        return [nothing(len(site.out_shape()))]
    x, w = active[0], 1 - active[0]
    ids, weight = site.ids(x), site.const(w)
    assert ids is not None
    assert weight is not None
    on = varying(ids)
    lost = [axis for axis in on if terms[x][axis] not in right and terms[x][axis] not in terms[w]]
    if len(on) > 1 or lost:
        site.pin(ids, "this Einsum sums over them" if lost else "this Einsum reads channels on two axes")
        on = []
    result = nothing(len(right))
    if on:
        label, own = terms[x][on[0]], rows(ids, on[0])
        if label in terms[w]:
            site.slice(w, terms[w].index(label), own, "follows" if label in right else "reads")
        if label in right:
            result = on_axis(own, right.index(label), len(right))
    minted = [label for label in terms[w] if label in right and label not in terms[x]]
    if len(minted) == 1 and not varying(result):
        out = site.mint(weight.shape[terms[w].index(minted[0])])
        site.slice(w, terms[w].index(minted[0]), out, "writes")
        result = on_axis(out, right.index(minted[0]), len(right))
    sizes = dict(zip(terms[x], site.shape(x), strict=True))
    positions = math.prod(size for label, size in sizes.items() if label not in terms[w])
    over = rows(ids, on[0]) if on and terms[x][on[0]] not in terms[w] else None
    site.work(w, positions, over)
    return [result]


STATISTICS: dict[str, Statistic] = {
    "LayerNormalization": "variance",
    "RMSNormalization": "mean square",
}
"""Of normalisations over channels that may be cut."""
LABELS = "ABCDEFGHIJKLMNOP"
"""Names for the batch axes of a MatMul."""

RULES: dict[str, Rule] = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent),
    **dict.fromkeys(("LayerNormalization", "MeanVarianceNormalization", "RMSNormalization"), channel_norm),
    **dict.fromkeys(("GridSample", "MaxRoiPool", "RoiAlign"), roi_align),
    "BatchNormalization": batchnorm,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Einsum": einsum,
    "Gemm": gemm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "LRN": local_response_norm,
    "MatMul": matmul,
}

"""Products of two tensors: Gemm, MatMul and Einsum, of an activation with a stored weight or with another activation.

The axes of both factors have labels, as in Einsum. A label of the activation that the weight shares and the result lacks
is read, a label of the weight alone is written, a label of the result passes through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxprune.graph.ids import Ids, aligned, nothing, rows, varying
from onnxprune.graph.rule_context import RuleContext, follow, tie_broadcast, together

BATCH_LABELS = "0123456789"
"""Labels of axes that no letter names: the batch axes of a MatMul, and the ellipsis of an Einsum."""
BROADCAST = ""
"""Label of an axis of size 1 that is broadcast."""
Term = Sequence[str]
"""The label of each axis of a tensor."""


def gemm(ctx: RuleContext) -> list[Ids]:
    """Reads channels with a constant matrix on either side; the added tensor is tied."""
    terms = ("ki" if ctx.attr("transA", 0) else "ik", "jk" if ctx.attr("transB", 0) else "kj")
    result = _multiplied(ctx, terms, "ij")
    if result is None:
        return ctx.refuse("this Gemm multiplies constants", range(3))
    follow(ctx, 2, result)
    added = ctx.ids(2)
    if added is not None:
        dims = (1,) * (2 - added.ndim) + ctx.shape(2)
        result = tie_broadcast(ctx, result, ctx.out_shape(), aligned(added, 2), dims)[0]
    return [result]


def matmul(ctx: RuleContext) -> list[Ids]:
    """Reads channels with a constant matrix, on either side; two activations tie their attention heads."""
    left, right = (len(ctx.shape(i)) for i in range(2))
    batch = BATCH_LABELS[: max(left, right, 2) - 2]
    terms = (
        batch[len(batch) + 2 - left :] + "ik" if left > 1 else "k",
        batch[len(batch) + 2 - right :] + "kj" if right > 1 else "k",
    )
    result = _multiplied(ctx, terms, batch + "i" * (left > 1) + "j" * (right > 1))
    return ctx.refuse("this MatMul multiplies constants", range(2)) if result is None else [result]


def einsum(ctx: RuleContext) -> list[Ids]:
    """Contracted labels of a constant read, its own labels write; two activations are tied as in MatMul."""
    labels = _labels(ctx)
    if labels is None:
        return ctx.refuse("this Einsum has an equation that is not understood", range(ctx.n_inputs))
    terms, right = labels
    if len(terms) == 1:
        result = _moved(ctx, terms[0], right) if ctx.is_activation(0) else None
    else:
        result = _multiplied(ctx, (terms[0], terms[1]), right)
    return ctx.refuse("this Einsum reads constants alone", range(ctx.n_inputs)) if result is None else [result]


def _labels(ctx: RuleContext) -> tuple[list[str], str] | None:
    """Return the labels of the axes of one or two operands and of the result; None for repeated labels of one tensor."""
    left, arrow, right = str(ctx.attr("equation")).replace(" ", "").partition("->")
    terms = left.split(",")
    covered = [len(ctx.shape(i)) - len(term.replace("...", "")) for i, term in enumerate(terms)]
    spread = BATCH_LABELS[: max(n if "..." in term else 0 for n, term in zip(covered, terms, strict=True))]
    terms = [term.replace("...", spread[len(spread) - n :]) for n, term in zip(covered, terms, strict=True)]
    if not arrow:
        right = "..." * ("..." in left) + "".join(
            label for label in sorted(set(left)) if label.isalpha() and left.count(label) == 1
        )
    right = right.replace("...", spread)
    return (terms, right) if len(terms) <= 2 and all(len(set(t)) == len(t) for t in (*terms, right)) else None


def _moved(ctx: RuleContext, term: str, result: str) -> Ids:
    """Transpose a single operand; a sum over channels is exact without deleted channels."""
    ids = ctx.activation()
    summed = [axis for axis in varying(ids) if term[axis] not in result]
    if len(summed) == len(varying(ids)) == 1:
        ctx.summed(0, summed[0], rows(ids, summed[0]))
        return nothing(len(result))
    if summed:
        ctx.pin(ids, f"this {ctx.op} sums over the channels")
        return nothing(len(result))
    return _ordered(ids, term, result)


def _ordered(ids: Ids, term: Term, result: str) -> Ids:
    """Put ids on the axes of a result; axes whose label the result lacks hold no channels."""
    order = [term.index(label) for label in result if label in term]
    order += [axis for axis, label in enumerate(term) if label not in result]
    lengths = dict(zip(term, ids.shape, strict=True))
    return np.transpose(ids, order).reshape([lengths.get(label, 1) for label in result])


def _multiplied(ctx: RuleContext, terms: tuple[str, str], result: str) -> Ids | None:
    """Multiply two factors, one of which may be constant; None where both are."""
    if ctx.is_activation(0) and ctx.is_activation(1):
        return _product(ctx, terms, result)
    for x, w in ((0, 1), (1, 0)):
        if ctx.is_activation(x) and ctx.const(w) is not None:
            sizes = dict(zip(terms[x], ctx.shape(x), strict=True))
            own = [
                label if n > 1 or sizes.get(label, n) == n else BROADCAST
                for label, n in zip(terms[w], ctx.shape(w), strict=True)
            ]
            return _contracted(ctx, x, terms[x], own, result)
    return None


def _contracted(ctx: RuleContext, x: int, term: str, own: Term, result: str) -> Ids:
    """Multiply activation `x`, of labels `term`, and a constant of labels `own`.

    Where channels lie on several axes of the activation, of which only some are summed over, whole heads are the units,
    or positions of every head with `head_width` and where the heads share a weight.
    """
    ids, w = ctx.activation(x), 1 - x
    at = {label: axis for axis, label in enumerate(own) if label}
    if any(term[axis] not in result and term[axis] not in at for axis in varying(ids)):
        ctx.pin(ids, f"this {ctx.op} sums over the channels")
        ids = nothing(ids.ndim)
    kept = [axis for axis in varying(ids) if term[axis] in result]
    read = [axis for axis in varying(ids) if term[axis] not in result]
    if read and kept:
        heads = all(term[axis] in at for axis in kept) and not ctx.state.head_width
        ids = together(ctx, ids, read if heads else kept)
        kept = kept if heads else []
    for axis in varying(ids):
        if term[axis] in at:
            ctx.slice(w, at[term[axis]], rows(ids, axis), "follows" if axis in kept else "reads")
    shape = ctx.shape(w)
    written = [label for label in result if label in at and label not in term]
    if kept:
        out = _ordered(ids, term, result)
    elif written:
        grid = ctx.mint(math.prod(shape[at[label]] for label in written))
        out = grid.reshape([shape[at[label]] if label in written else 1 for label in result])
        for label in written:
            ctx.slice(w, at[label], rows(out, result.index(label)), "writes")
    else:
        out = nothing(len(result))
    positions = math.prod(n for label, n in zip(term, ctx.shape(x), strict=True) if label not in at)
    over = [axis for axis in kept if term[axis] not in at]
    ctx.work(w, positions, rows(ids, over[0]) if over else None)
    return out


def _product(ctx: RuleContext, terms: tuple[str, str], result: str) -> Ids:
    """Multiply two activations, given the labels of their axes as in Einsum.

    Channels on a label that both factors share and the result keeps (attention heads) are tied, so that whole heads are
    deleted. With `head_width`, or without heads, channels that are summed over are tied between the factors. Both are
    exact.
    """
    shared = [label for label in terms[0] if label in terms[1]]
    summed = [label for label in shared if label not in result]
    factors = [ctx.activation(i) for i in range(2)]
    for i, term in enumerate(terms):
        on = {term[axis] for axis in varying(factors[i])}
        if not on.issubset({*shared, *result}):
            ctx.pin(factors[i], f"this {ctx.op} sums over the channels")
            factors[i] = nothing(len(term))
            continue
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
        sizes = dict(zip(term, ctx.shape(i), strict=True))
        operands.append(_ordered(ids, term, result))
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

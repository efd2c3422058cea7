"""One importance per channel: how much the network would miss it.

Every method here looks at the weights alone. A channel is scored over *all* members of its group: the filters that write it and
the weight slices that read it. Scores are divided by the mean of their group, so that groups can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.graph.model import Model
from onnxprune.graph.qdq import values_at
from onnxprune.types import BoolArray, FloatArray, Slice, Trace

FloatTensor = np.ndarray[Any, Any]
CHUNK = 2**24
"""Entries of a distance matrix held at once by FPGM."""


@dataclass(frozen=True)
class Context:
    """What a method may look at. `alive` is `keep` with True at its end, for ids of -1."""

    model: Model
    trace: Trace
    keep: BoolArray
    alive: BoolArray
    seed: int


Method = Callable[[Context], FloatArray]


def score(model: Model, trace: Trace, method: str, keep: BoolArray | None = None, seed: int = 0) -> FloatArray:
    """Return the normalised importance of every channel.

    Args:
        model: the traced model.
        trace: its facts.
        method: a key of `METHODS`.
        keep: (n_channels,) channels that are left; weights of the others don't count. All of them when None.
        seed: for the random method.

    Returns:
        (n_channels,) importance, divided by the mean over the channels of the group that are left; NaN where the method has
        nothing to say (a group without BatchNormalization), which keeps the channel.

    Raises:
        OptionError: an unknown method, or one that finds nothing to look at in the whole model.
    """
    if method not in METHODS:
        raise OptionError(f"unknown importance {method!r}", hint=f"choose one of {', '.join(METHODS)}")
    keep = np.ones(trace.n_channels, dtype=bool) if keep is None else keep
    raw = METHODS[method](Context(model, trace, keep, np.append(keep, True), seed))
    result = relative(trace, raw, keep)
    if trace.n_channels and np.isnan(result[~trace.pinned]).all() and (~trace.pinned).any():
        raise OptionError(
            f"--importance {method} finds nothing to rank",
            why="no BatchNormalization with a scale per channel is left in this export",
            hint="use --importance l2, or export without folding BatchNormalization",
        )
    return result


def relative(trace: Trace, raw: FloatArray, keep: BoolArray) -> FloatArray:
    """Divide each importance by the mean over what is left of its group; NaN for a channel of no group."""
    result = np.full(trace.n_channels, np.nan)
    for group in trace.groups:
        left = group.channels[keep[group.channels]]
        mean = raw[left].mean() if left.size else 0.0
        result[group.channels] = raw[group.channels] / mean if mean > 0 else raw[group.channels]
    return result


def _left(context: Context, fact: Slice, others: dict[tuple[int, int], list[Slice]]) -> FloatTensor:
    """Return the weight with the axis of `fact` in front, and only what is left along the other axes; no copy if all is."""
    weight = values_at(context.model.graph.nodes[fact.node], fact.input)
    alive = context.alive
    for other in others[fact.node, fact.input]:
        if other.axis != fact.axis and not alive[other.channels].all():
            weight = np.compress(alive[other.channels], weight, axis=other.axis)
    return np.moveaxis(weight, fact.axis, 0)


def _add(total: FloatArray, fact: Slice, values: FloatArray) -> None:
    """Add the values along the axis of a slice to the channels that live there."""
    here = fact.channels >= 0
    channels, first = fact.channels[here], fact.channels[here].min()
    sums = np.bincount(
        channels - first, weights=values[here]
    )  # over the span of these channels, not over all there are
    total[first : first + sums.size] += sums


def _norm(power: int) -> Method:
    def method(context: Context) -> FloatArray:
        others = context.trace.slices_by_use()
        sums = {role: np.zeros(context.trace.n_channels) for role in ("writes", "reads")}
        read = np.zeros(context.trace.n_channels, dtype=bool)
        for fact in context.trace.slices:
            if fact.role in sums:
                weight = _left(context, fact, others)
                axes = list(range(weight.ndim))
                if power == 1:
                    values = np.abs(weight).sum(axis=tuple(axes[1:]), dtype=np.float64)
                else:
                    values = np.einsum(weight, axes, weight, axes, [0], dtype=np.float64)
                _add(sums[fact.role], fact, values)
                if fact.role == "reads":
                    read[fact.channels[fact.channels >= 0]] = True
        writes, reads = (np.power(total, 1.0 / power) for total in sums.values())
        return np.where(read, writes * reads, writes)

    return method


def _fpgm(context: Context) -> FloatArray:
    """Sum of distances to all other filters of the layer: He et al., 2019, "Filter Pruning via Geometric Median", eq. 6."""
    others = context.trace.slices_by_use()
    total = np.zeros(context.trace.n_channels)
    for fact in context.trace.slices:
        if fact.role != "writes":
            continue
        matrix = _left(context, fact, others).astype(np.float64)
        matrix = matrix.reshape(len(matrix), -1)
        alive = context.keep[fact.channels] | (fact.channels < 0)
        squares = np.einsum("ij,ij->i", matrix, matrix)
        distances = np.zeros(len(matrix))
        rows = max(1, CHUNK // len(matrix))
        for start in range(0, len(matrix), rows):
            part = slice(start, start + rows)
            gap = squares[part, None] + squares[None, alive] - 2 * matrix[part] @ matrix[alive].T
            distances[part] = np.sqrt(np.maximum(gap, 0)).sum(axis=1)
        _add(total, fact, distances)
    return total


def _bn_scale(context: Context) -> FloatArray:
    """Magnitude of the scale of BatchNormalization: Liu et al., 2017, "Network Slimming"; mean over the group's members."""
    total, members = np.zeros((2, context.trace.n_channels))
    for fact in context.trace.slices:
        if fact.role == "scales":
            scale = values_at(context.model.graph.nodes[fact.node], fact.input)
        elif fact.role == "writes" and fact.tensor in context.model.batchnorms:
            scale = context.model.batchnorms[fact.tensor].scale
        else:
            continue
        _add(total, fact, np.abs(scale).astype(np.float64))
        _add(members, fact, np.ones(len(scale)))
    return np.where(members > 0, total / np.maximum(members, 1), np.nan)


def _random(context: Context) -> FloatArray:
    return np.random.default_rng(context.seed).random(context.trace.n_channels)


METHODS: dict[str, Method] = {
    "l1": _norm(1),
    "l2": _norm(2),
    "fpgm": _fpgm,
    "bn_scale": _bn_scale,
    "random": _random,
}
"""Methods by the name that `--importance` takes.

l1 and l2 multiply the norm of all filters that write a channel by the norm of all weights that read it. The product does not
change when a layer is scaled up and its reader down, which does not change the network either, and it is zero when a channel
is never written or never read; a sum of the two has neither property.
"""

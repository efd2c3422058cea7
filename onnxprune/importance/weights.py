"""Importances of the weights alone.

A channel is scored over *all* members of its group: the filters that write it and the weight slices that read it. Scores are divided by
the mean of their group, so that groups can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.calibration.workspace import Workspace
from onnxprune.errors import OptionError
from onnxprune.graph.model import Model
from onnxprune.graph.qdq import values_at
from onnxprune.importance.methods import METHODS
from onnxprune.types import BoolArray, FloatArray, Slice, Trace

FloatTensor = np.ndarray[Any, Any]
CHUNK = 2**24
"""Largest number of entries of a distance matrix of FPGM in memory."""


@dataclass(frozen=True)
class ScoringInputs:
    """Inputs of the function of a method.

    Attributes:
        method: name of the method.
        model, trace: the traced model.
        keep: (n_channels,) channels that are left.
        seed: seed of everything random.
        workspace: calibration samples without augmentation, store and memory; None for methods of the weights alone.
        progress: called with the share that is done.
    """

    method: str
    model: Model
    trace: Trace
    keep: BoolArray
    seed: int
    workspace: Workspace | None = None
    progress: Callable[[float], None] | None = None

    def weights(self, *roles: str) -> Iterator[tuple[Slice, FloatTensor]]:
        """Yield each slice with one of these roles, and its weight: the axis of the slice in front, the others without deleted channels."""
        alive = np.append(self.keep, True)  # an id of -1 is never deleted
        others = self.trace.slices_by_use()
        for fact in self.trace.slices:
            if fact.role in roles:
                weight = values_at(self.model.graph.nodes[fact.node], fact.input)
                for other in others[fact.node, fact.input]:
                    if other.axis != fact.axis and not alive[other.channels].all():
                        weight = np.compress(alive[other.channels], weight, axis=other.axis)
                yield fact, np.moveaxis(weight, fact.axis, 0)


def score(model: Model, trace: Trace, method: str, keep: BoolArray | None = None, seed: int = 0) -> FloatArray:
    """Return the normalized importance of every channel.

    Args:
        model: the traced model.
        trace: its facts.
        method: a key of `METHODS` that needs no calibration samples.
        keep: (n_channels,) channels that are left; weights of the others do not count. All of them when None.
        seed: for the random method.

    Returns:
        (n_channels,) importance, divided by the mean over the channels of the group that are left; NaN where the method does not
        apply (a group without BatchNormalization), which keeps the channel.

    Raises:
        OptionError: the method applies to no prunable channel of the model.
    """
    keep = np.ones(trace.n_channels, dtype=bool) if keep is None else keep
    result = relative(trace, METHODS[method].load()(ScoringInputs(method, model, trace, keep, seed)), keep)
    if trace.n_channels and np.isnan(result[~trace.pinned]).all() and (~trace.pinned).any():
        raise OptionError(
            f"--importance {method} finds nothing to rank",
            why="no BatchNormalization with a scale per channel is left in this export",
            hint="use --importance l2, or export without folding BatchNormalization",
        )
    return result


def relative(trace: Trace, raw: FloatArray, keep: BoolArray) -> FloatArray:
    """Divide each importance by the mean over the remaining channels of its group; NaN for a channel of no group."""
    result = np.full(trace.n_channels, np.nan)
    for group in trace.groups:
        left = group.channels[keep[group.channels]]
        mean = raw[left].mean() if left.size else 0.0
        result[group.channels] = raw[group.channels] / mean if mean > 0 else raw[group.channels]
    return result


def _add(total: FloatArray, fact: Slice, values: FloatArray) -> None:
    """Add the values along the axis of a slice to the channels that live there."""
    here = fact.channels >= 0
    channels, first = fact.channels[here], fact.channels[here].min()
    sums = np.bincount(channels - first, weights=values[here])  # over the span of these channels, not over all
    total[first : first + sums.size] += sums


def _norm(inputs: ScoringInputs, power: int) -> FloatArray:
    """Return the norm of the filters that write a channel times the norm of the weights that read it.

    The product does not change when a layer is scaled up and its reader down, which does not change the network either, and it is 0
    for a channel that is never written or never read; a sum of the two norms has neither property.
    """
    sums = {role: np.zeros(inputs.trace.n_channels) for role in ("writes", "reads")}
    read = np.zeros(inputs.trace.n_channels, dtype=bool)
    for fact, weight in inputs.weights(*sums):
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


def l1(inputs: ScoringInputs) -> FloatArray:
    """L1 norms; Li et al., 2017, "Pruning Filters for Efficient ConvNets", section 3.1."""
    return _norm(inputs, 1)


def l2(inputs: ScoringInputs) -> FloatArray:
    """L2 norms; He et al., 2018, "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", eq. 2."""
    return _norm(inputs, 2)


def fpgm(inputs: ScoringInputs) -> FloatArray:
    """Sum of distances to all other filters of the layer: He et al., 2019, "Filter Pruning via Geometric Median", eq. 6."""
    total = np.zeros(inputs.trace.n_channels)
    for fact, weight in inputs.weights("writes"):
        matrix = weight.astype(np.float64).reshape(len(weight), -1)
        alive = inputs.keep[fact.channels] | (fact.channels < 0)
        squares = np.einsum("ij,ij->i", matrix, matrix)
        distances = np.zeros(len(matrix))
        rows = max(1, CHUNK // len(matrix))
        for start in range(0, len(matrix), rows):
            part = slice(start, start + rows)
            gap = squares[part, None] + squares[None, alive] - 2 * matrix[part] @ matrix[alive].T
            distances[part] = np.sqrt(np.maximum(gap, 0)).sum(axis=1)
        _add(total, fact, distances)
    return total


def bn_scale(inputs: ScoringInputs) -> FloatArray:
    """Magnitude of the scale of BatchNormalization: Liu et al., 2017, "Network Slimming"; mean over the group's members."""
    total, members = np.zeros((2, inputs.trace.n_channels))
    for fact in inputs.trace.slices:
        if fact.role == "scales":
            scale = values_at(inputs.model.graph.nodes[fact.node], fact.input)
        elif fact.role == "writes" and fact.tensor in inputs.model.batchnorms:
            scale = inputs.model.batchnorms[fact.tensor].scale
        else:
            continue
        _add(total, fact, np.abs(scale).astype(np.float64))
        _add(members, fact, np.ones(len(scale)))
    return np.where(members > 0, total / np.maximum(members, 1), np.nan)


def random(inputs: ScoringInputs) -> FloatArray:
    """Return random numbers between 0 and 1."""
    return np.random.default_rng(inputs.seed).random(inputs.trace.n_channels)

"""The least squares fit of a layer, or of layers that share a weight, to their targets, on sampled rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.calibration.batches import Calibration
from onnxprune.calibration.capture import LayerwiseRunner
from onnxprune.calibration.moments import ROWS_TOGETHER, Moments, Rows, choose, ridge
from onnxprune.graph.linear import Linear, write_together
from onnxprune.graph.readers import Unit
from onnxprune.graph.saturation import UNBOUNDED, Flat
from onnxprune.types import Array, BoolArray, FloatArray

LEAST_ROWS, LEAST_ROWS_OF_GROUPS = 20_000, 4_000
"""Smallest number of rows for a fit, where the samples have so many: of plain layers, and of grouped ones."""
ROWS_PER_FEATURE = 40
FEWEST_ROWS = 512
"""Smallest number of rows for any memory, where the samples have so many."""
TURNS = 6
"""Number of times that targets on flat parts of an activation are moved."""
LEAST_SPREAD = 1e-2
"""Least variance of the target of a layer, as a share of the largest among the layers that share the weight."""
TINY = 1e-30
STRIDE = 1.5
"""Over-relaxation of each turn. Between 1 and 2 the turns converge, and faster than with 1."""
Weights = tuple[FloatArray, FloatArray]
"""A matrix (groups, outputs, features) and a bias (groups, outputs)."""


@dataclass(frozen=True)
class LayerTarget:
    """One layer to fit, and its target: an output, or a sum less the other term.

    Attributes:
        node: number of the layer's node.
        layer: the layer.
        x: name of its input.
        target: name of the tensor of the original that is fitted to.
        other: name of the other term of the sum; None where the target is an output of the layer.
        flat: bounds beyond which no reader of the target distinguishes values.
    """

    node: int
    layer: Linear
    x: str
    target: str
    other: str | None
    flat: Flat


@dataclass(frozen=True)
class Sampled:
    """Some rows of a layer.

    Attributes:
        x: inputs, (groups, n, features).
        wanted: targets, (groups, n, outputs).
        other: the other term of the sum, as `wanted`, or 0.
        flat: bounds beyond which targets are not distinguished.
        weight: number of rows that each of them counts as.
        given: outputs with the first weights, the other term added.
    """

    x: Array
    wanted: Array
    other: Array | float
    flat: Flat
    weight: float = 1.0
    given: Array | None = None


def row_budget(layer: Linear, memory: float) -> tuple[int, bool]:
    """Return the number of rows for a fit, and whether its sums exceed `memory` bytes: rows are kept then instead."""
    groups, outputs, features = layer.matrix(layer.values).shape
    wide = 8.0 * groups * features * (features * 4 + outputs * 3) > memory
    least = LEAST_ROWS if groups == 1 else LEAST_ROWS_OF_GROUPS
    total = int(np.sqrt(memory / (32.0 * groups))) if wide else max(least, ROWS_PER_FEATURE * features)
    return max(FEWEST_ROWS, min(total, int(memory / (8.0 * groups * (features + 3 * outputs))))), wide


class LayerFit:
    """The regression of layers that share a weight, mostly of one, on sampled rows, which are shifted by their mean.

    Args:
        unit: the layers; biases that are stored apart change by the same amounts.
        layers: their views, in the order of `unit.nodes`.
        train, held: rows of all layers, with the biases that `sample_rows` puts into the other term.
        wide: whether rows are kept instead of sums.
    """

    def __init__(
        self, unit: Unit, layers: Sequence[Linear], train: list[Sampled], held: list[Sampled], wide: bool
    ) -> None:
        self.unit, self.layers, self.kind = unit, layers, Rows if wide else Moments
        self.has_bias = not unit.fixed_bias and all(layer.has_bias for layer in layers)
        self.bounded = any(seen.flat != UNBOUNDED for seen in train)
        matrix, bias = self.first = layers[0].effective()
        self.shift = train[0].x.mean(axis=1, keepdims=True) if self.has_bias else np.zeros_like(train[0].x[:, :1])
        self.start: Weights = (matrix, bias + np.einsum("gof,gf->go", matrix, self.shift[:, 0]))
        self.train, self.held = ([_started(seen, self.shift, self.start) for seen in part] for part in (train, held))

    def sums(self, parts: list[Sampled], at: Weights | None, like: Any = None) -> Any:
        """Sum the errors of the first weights, targets on flat parts moved onto the outputs of the weights `at`."""
        outputs = self.start[0].shape[1]
        result = self.kind(np.zeros_like(self.shift), outputs, center=self.has_bias, like=like)
        for seen in parts:
            there = None if at is None else seen.given if at is self.start else _given(seen, at)
            result.add(seen.x, _missed(seen, seen.given, there), seen.weight)
        return result

    def error(self, weights: Weights) -> float:
        """Return the mean squared error of some weights on held-out rows, errors on flat parts excluded."""
        square = rows = 0.0
        for seen in self.held:
            given = seen.given if weights is self.start else _given(seen, weights)
            missed = _missed(seen, given, given)
            square += seen.weight * float(np.einsum("gno,gno->", missed, missed, dtype=np.float64))
            rows += seen.weight * missed.shape[1]
        return square / rows

    def solve(self, only_bias: bool) -> tuple[Weights | None, float]:
        """Return the best weights and their penalty; no weights where no penalty predicts the held-out rows better."""
        # targets are not moved in the first fit: moved ones would hold it at the pruned weights
        seen_sums = self.sums(self.train, None)
        fit = ridge(seen_sums, self.sums(self.held, None), only_bias=only_bias)
        if self.bounded and not fit.after < fit.before:
            seen_sums = self.sums(self.train, self.start)
            fit = ridge(seen_sums, self.sums(self.held, self.start), only_bias=only_bias)
        if not fit.after < fit.before:
            return None, np.inf
        solve = None if np.isinf(fit.penalty) else seen_sums.solver(fit.penalty)

        def solution(sums: Any) -> Weights:
            change = np.zeros_like(self.start[0]) if solve is None else solve(sums)
            return self.start[0] + change, self.start[1] + sums.bias(change)

        weights = solution(seen_sums)
        for _ in range(1, TURNS if self.bounded else 1):
            further = solution(self.sums(self.train, weights, seen_sums))
            matrix, bias = (old + STRIDE * (new - old) for old, new in zip(weights, further, strict=True))
            weights = matrix, bias
        return weights, fit.penalty

    def write(self, weights: Weights) -> None:
        """Write weights into the layers."""
        matrix, bias = weights
        change = bias - np.einsum("gof,gf->go", matrix, self.shift[:, 0]) - self.first[1]
        write_together(self.layers, None if self.unit.fixed else matrix, change if self.has_bias else None)


def sample_rows(
    job: LayerTarget,
    before: LayerwiseRunner,
    after: LayerwiseRunner,
    survivors: BoolArray,
    calibration: Calibration,
    total: int,
    bias: Array,
) -> tuple[list[Sampled], list[Sampled]]:
    """Return rows at `total` positions, spread over the batches: those to fit, and those held out.

    `bias`, (groups, outputs), is what the layer adds beyond the bias of the layer that the fit starts from.
    """
    layer = job.layer
    rng = np.random.default_rng((calibration.seed, job.node))
    per_batch = -(-total // before.n_batches)
    parts: tuple[list[Sampled], list[Sampled]] = ([], [])
    for batch in range(before.n_batches):
        y = before.read(job.target, batch)
        if not survivors.all():
            y = np.compress(survivors, y, axis=layer.channel_axis)
        pick = choose(layer.positions(y), per_batch, rng)
        for part, chosen in zip(parts, calibration.split(batch, pick.size), strict=True):
            here = pick[chosen]
            if here.size:
                x = layer.rows(after.read(job.x, batch), here).astype(np.float32, copy=False)
                wanted = layer.outputs(y, here).astype(np.float32, copy=False)
                other = 0.0 if job.other is None else layer.outputs(after.read(job.other, batch), here)
                if bias.any():
                    other = np.broadcast_to(other + bias[:, None], wanted.shape)
                part.append(Sampled(x, wanted, other, job.flat))
    return _joined(parts[0]), _joined(parts[1])


def balanced(parts: Sequence[list[Sampled]]) -> list[Sampled]:
    """Join the rows of several layers, each of which counts by its error as a share of its target's variance."""
    if len(parts) == 1:
        return parts[0]
    rows = np.array([sum(seen.x.shape[1] for seen in part) for part in parts], dtype=np.float64)
    spread = np.array([float(np.mean([seen.wanted.var(axis=1).sum() for seen in part] or [0.0])) for part in parts])
    weights = 1 / np.maximum(rows * np.maximum(spread, LEAST_SPREAD * spread.max()), TINY)
    weights *= rows.sum() / max(float(rows @ weights), TINY)
    return [replace(seen, weight=float(w)) for part, w in zip(parts, weights, strict=True) for seen in part]


def _joined(parts: list[Sampled]) -> list[Sampled]:
    """Concatenate small parts, since a product of few rows costs as much as one of many."""
    result: list[Sampled] = []
    waiting: list[Sampled] = []
    for number, seen in enumerate(parts, start=1):
        waiting.append(seen)
        if sum(part.x.shape[1] for part in waiting) >= ROWS_TOGETHER or number == len(parts):
            x, wanted = (np.concatenate([getattr(part, name) for part in waiting], axis=1) for name in ("x", "wanted"))
            others = [part.other for part in waiting]
            other = 0.0 if isinstance(others[0], float) else np.concatenate(others, axis=1)
            result.append(Sampled(x, wanted, other, seen.flat))
            waiting = []
    return result


def _started(seen: Sampled, shift: Array, start: Weights) -> Sampled:
    """Shift rows in place, and keep the outputs of the first weights, which are read often."""
    np.subtract(seen.x, shift, out=seen.x)
    return replace(seen, given=_given(seen, start))


def _given(seen: Sampled, weights: Weights) -> Array:
    matrix, bias = (part.astype(np.float32) for part in weights)
    return np.asarray(seen.x @ np.swapaxes(matrix, 1, 2) + bias[:, None, :] + seen.other)


def _missed(seen: Sampled, given: Array | None, there: Array | None) -> Array:
    """Return targets less outputs; a target on a flat part moves onto `there` where that lies on the same part."""
    wanted = seen.wanted
    if there is not None and seen.flat != UNBOUNDED:
        low, high = seen.flat
        wanted = np.where(wanted <= low, np.minimum(there, low), wanted)
        wanted = np.where(wanted >= high, np.maximum(there, high), wanted)
    return np.asarray(wanted - given)

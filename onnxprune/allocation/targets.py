"""Select channels so that the measured costs of the result meet the targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.knapsack import Amounts, Budget
from onnxprune.errors import TargetError
from onnxprune.graph.model import Model
from onnxprune.metrics.table import METRICS
from onnxprune.types import BoolArray

ATTEMPTS = 6
"""How often a selection is measured and corrected."""
HALVINGS = 8
"""Models that are tried to find the smallest one within a loss: the removed share is then known to 1/256. As many middles between bounds."""
NEAR = 0.02
"""Share below a bound that needs no further correction: about what two measurements of one model differ by."""


class Estimator(Protocol):
    """Predicts and measures what a selection costs; `CostEstimator` does, for channels."""

    measured: tuple[str, ...]

    @property
    def whole(self) -> Amounts:
        """Amounts of the original."""

    def budget(self) -> Budget:
        """Return the targets as absolute amounts."""

    def predict(self, keep: BoolArray, /) -> Amounts:
        """Predict the costs of a selection."""

    def measure(self, candidate: Model) -> Amounts:
        """Measure a model."""


@dataclass(frozen=True)
class _Measurement:
    """A measured selection: its amounts, the largest of them as a share of what is aimed at, and the corrected bounds on predictions."""

    amounts: Amounts
    largest: float
    corrected: Budget


def _aims(estimator: Estimator) -> Budget:
    budget = estimator.budget()
    return {name: budget[name] * METRICS[name].margin for name in estimator.measured}


def _measured(estimator: Estimator, candidate: Model, predicted: Amounts) -> _Measurement:
    found, aims = estimator.measure(candidate), _aims(estimator)
    shares = {name: found[name] / aim for name, aim in aims.items()}
    return _Measurement(found, max(shares.values()), {name: predicted[name] / shares[name] for name in aims})


def too_far(estimator: Estimator, candidate: Model, predicted: Amounts) -> Budget | None:
    """Measure a model; return a budget for predictions that is enough, where the model goes further than every measured target asks for."""
    if not estimator.measured:
        return None
    found = _measured(estimator, candidate, predicted)
    return None if found.largest >= 1 - NEAR else {**estimator.budget(), **found.corrected}


def _between(
    allocate: Callable[[Budget], BoolArray], budget: Budget, around: dict[bool, Budget], seen: Mapping[bytes, bool]
) -> tuple[BoolArray, Budget] | None:
    """Return a selection that was not measured, between bounds that held and bounds that did not, and its bounds; None where there is none.

    Args:
        allocate: selects channels under bounds on predicted amounts.
        budget: other bounds.
        around: the last bounds that held (True), and that did not (False); brought closer together.
        seen: which of the measured selections held.
    """
    if len(around) < 2:
        return None
    for _ in range(HALVINGS):
        bounds = {name: math.sqrt(around[True][name] * around[False][name]) for name in around[True]}
        keep = allocate({**budget, **bounds})
        held = seen.get(keep.tobytes())
        if held is None:
            return keep, bounds
        around[held] = bounds
    return None


def meet(
    allocate: Callable[[Budget], BoolArray], build: Callable[[BoolArray], Model], estimator: Estimator
) -> BoolArray:
    """Select channels so that the measured result meets every target: select, measure, correct, repeat.

    A bound on predicted amounts is moved by as much as the last measurement differs from its prediction; where that leads back to a
    measured selection, to a middle between bounds that held and bounds that did not. Of the selections that were measured to hold, the
    one with the most FLOPs is taken.

    Args:
        allocate: selects channels under bounds on predicted amounts.
        build: makes the model of a selection.
        estimator: with the targets.

    Raises:
        TargetError: no selection that was tried holds; the message gives the nearest amounts.
    """
    budget = estimator.budget()
    if not estimator.measured:
        return allocate(budget)
    bounds = _aims(estimator)
    best: tuple[float, BoolArray] | None = None
    nearest: _Measurement | None = None
    around: dict[bool, Budget] = {}  # the last bounds that held, and that did not
    seen: dict[bytes, bool] = {}
    for _ in range(ATTEMPTS):
        try:
            keep = allocate({**budget, **bounds})
            if keep.tobytes() in seen:
                between = _between(allocate, budget, around, seen)
                if between is None:
                    break
                keep, bounds = between
        except TargetError:
            if nearest is None:
                raise
            break
        predicted = estimator.predict(keep)
        found = _measured(estimator, build(keep), predicted)
        holds = seen[keep.tobytes()] = found.largest <= 1
        around[holds] = bounds
        if holds:
            if best is None or predicted["flops"] > best[0]:
                best = predicted["flops"], keep
            if found.largest >= 1 - NEAR:
                break
        if nearest is None or found.largest < nearest.largest:
            nearest = found
        bounds = found.corrected
    if best is None:
        assert nearest is not None
        raise _unmet(estimator, nearest.amounts, len(seen))
    return best[1]


def _unmet(estimator: Estimator, nearest: Amounts, attempts: int) -> TargetError:
    budget = estimator.budget()
    parts = [
        f"{name} came to {nearest[name]:.4g}, {budget[name]:.4g} was asked ({estimator.whole[name]:.4g} before)"
        for name, aim in _aims(estimator).items()
        if nearest[name] > aim
    ]
    return TargetError(
        "the target cannot be reached",
        why=f"{'; '.join(parts)}, after {attempts} attempts",
        hint="ask for less, or relax --min-channels, --max-ratio, --round-to or --ignore",
    )


def within(
    allocate: Callable[[Budget], BoolArray],
    lost: Callable[[BoolArray], float],
    estimator: CostEstimator,
    max_drop: float,
) -> BoolArray:
    """Select channels so that the result is as small (or fast) as possible while it loses no more than `max_drop`, by bisection.

    Args:
        allocate: selects channels under bounds on predicted amounts.
        lost: measures the points that a selection loses.
        estimator: with the other targets, and with the metric to minimize.
        max_drop: points that may be lost.

    Raises:
        TargetError: another target cannot be met, or not without losing more.
    """
    name, budget = estimator.options.minimise, estimator.budget()
    whole = estimator.predict(np.ones(estimator.analysis.trace.n_channels, dtype=bool))[name]
    best, drop = allocate(budget), 0.0
    if not best.all() and (drop := lost(best)) > max_drop:
        raise TargetError(
            "the target cannot be reached",
            why=f"the model that keeps the other limits loses {drop:.2f} points, {max_drop:g} are allowed",
            hint="ask for less, allow a larger --max-drop, or give more data or --finetune",
        )
    low, high = 1 - estimator.predict(best)[name] / whole, 1.0
    seen: dict[bytes, float] = {}
    for _ in range(HALVINGS):
        share = (low + high) / 2
        try:
            keep = allocate({**budget, name: whole * (1 - share)})
        except TargetError:
            high = share
            continue
        drop = seen[keep.tobytes()] if keep.tobytes() in seen else lost(keep)
        seen[keep.tobytes()] = drop
        if drop <= max_drop:
            best, low = keep, share
        else:
            high = share
    return best

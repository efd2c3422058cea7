"""Select channels so that the measured costs of the result meet the targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.knapsack import Amounts, Budget, unreachable
from onnxprune.errors import TargetError
from onnxprune.graph.model import Model
from onnxprune.metrics.table import METRICS
from onnxprune.types import BoolArray

ATTEMPTS = 6
"""Largest number of selections that are measured."""
HALVINGS = 8
"""Steps of a bisection: a removed share is then known to 1/256."""
NEAR = 0.02
"""Share below a bound that needs no further correction: two measurements of one model differ by about as much."""


class Estimator(Protocol):
    """Predicts the costs of selections, and measures those of models, as `CostEstimator` does for channels."""

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
    """Measured amounts, the largest of them as a share of its aim, and the corrected bounds on predictions."""

    amounts: Amounts
    largest: float
    corrected: Budget


def _aims(estimator: Estimator) -> Budget:
    """Return the bounds on measured amounts, less a margin for the noise of measurements."""
    budget = estimator.budget()
    return {name: budget[name] * METRICS[name].margin for name in estimator.measured}


def _measured(estimator: Estimator, candidate: Model, predicted: Amounts) -> _Measurement:
    found = estimator.measure(candidate)
    shares = {name: found[name] / aim for name, aim in _aims(estimator).items()}
    return _Measurement(found, max(shares.values()), {name: predicted[name] / share for name, share in shares.items()})


def too_far(estimator: Estimator, candidate: Model, predicted: Amounts) -> Budget | None:
    """Return a looser budget for predictions, where a model lies further below its bounds than `NEAR`; else None."""
    if not estimator.measured:
        return None
    found = _measured(estimator, candidate, predicted)
    return None if found.largest >= 1 - NEAR else {**estimator.budget(), **found.corrected}


def _between(
    allocate: Callable[[Budget], BoolArray], budget: Budget, around: dict[bool, Budget], seen: Mapping[bytes, bool]
) -> tuple[BoolArray, Budget] | None:
    """Return an unmeasured selection between bounds that held and bounds that did not, and its bounds; else None.

    `around` holds the last bounds that held (True) and that did not (False), and is brought closer together; `seen`
    says whether each measured selection held.
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
    """Select so that the measured result meets every target: select, measure, correct, repeat.

    The bound on predicted amounts is corrected by the ratio of the last measurement and its prediction. Where this
    leads back to a measured selection, a middle between bounds that held and bounds that did not is taken. The result
    is the selection with the most FLOPs among those that are measured to hold.

    `allocate` selects under bounds on predicted amounts, and `build` makes the model of a selection.

    Raises:
        TargetError: no measured selection holds; the message gives the nearest amounts.
    """
    budget = estimator.budget()
    if not estimator.measured:
        return allocate(budget)
    bounds = _aims(estimator)
    best: tuple[float, BoolArray] | None = None
    nearest: _Measurement | None = None
    around: dict[bool, Budget] = {}
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
        parts = [
            f"{name} came to {nearest.amounts[name]:.4g}, {budget[name]:.4g} was asked "
            f"({estimator.whole[name]:.4g} before)"
            for name, aim in _aims(estimator).items()
            if nearest.amounts[name] > aim
        ]
        raise unreachable(f"{'; '.join(parts)}, after {len(seen)} attempts")
    return best[1]


def within(
    allocate: Callable[[Budget], BoolArray],
    lost: Callable[[BoolArray], float],
    estimator: CostEstimator,
    max_drop: float,
) -> BoolArray:
    """Select channels by bisection so that the result is as small as possible and loses at most `max_drop` points.

    `allocate` selects under bounds on predicted amounts, and `lost` measures the points that a selection loses.

    Raises:
        TargetError: another target cannot be met, or only with a larger loss.
    """
    name, budget = estimator.options.minimise, estimator.budget()
    whole = estimator.start[name]
    best, drop = allocate(budget), 0.0
    if not best.all() and (drop := lost(best)) > max_drop:
        raise unreachable(
            f"the model that keeps the other limits loses {drop:.2f} points, {max_drop:g} are allowed",
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
        key = keep.tobytes()
        drop = seen[key] = seen[key] if key in seen else lost(keep)
        if drop <= max_drop:
            best, low = keep, share
        else:
            high = share
    return best

"""What edits save and cost, and which of them are worth a price."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from onnxprune.allocation import knapsack
from onnxprune.allocation.targets import CostEstimator
from onnxprune.granularity.edits import Depth, Merged
from onnxprune.graph.model import Model
from onnxprune.reforming.base import Scored
from onnxprune.types import BoolArray, FloatArray, Plan

LOWEST, HIGHEST = 1e-9, 1e9
"""Prices between which edits are chosen."""
HALVINGS = 60


class BlockMeter:
    """Predicts and measures what a choice of edits costs, as `Meter` does for channels.

    Args:
        meter: of the base.
        scored: edits, of which some are chosen.
    """

    def __init__(self, meter: CostEstimator, scored: Sequence[Scored]) -> None:
        self.meter, self.wanted, self.whole = meter, meter.wanted, meter.whole
        self.scored = scored
        self.start = np.array(meter.totals(np.ones(meter.analysis.trace.n_channels, dtype=bool)))
        size = self.start[2] / max(self.start[1], 1.0)
        self._saves = np.array(
            [
                [s.saving.macs, s.saving.params, s.saving.params * size, 0.0, s.saving.before - s.saving.after]
                for s in scored
            ]
        ).reshape(len(scored), 5)

    def goals(self) -> knapsack.Limits:
        """Return the bounds."""
        return self.meter.goals()

    def totals(self, chosen: BoolArray) -> tuple[float, ...]:
        """Predict amounts in the order of `budget.Limits`."""
        return tuple(np.maximum(self.start - self._saves[chosen].sum(axis=0), 0.0).tolist())

    def of(self, candidate: Model) -> dict[str, float]:
        """Measure a model."""
        return self.meter.of(candidate)

    def gains(self, limits: knapsack.Limits | None = None) -> FloatArray:
        """Return what each edit saves of what is bound, as shares of the whole, added up."""
        bounds = (limits or self.goals()).bounds
        whole = np.maximum(self.start, 1e-30)
        here = [n for n, bound in enumerate(bounds) if bound is not None]
        if not here:
            here = [0]
        return np.asarray((self._saves[:, here] / whole[here]).sum(axis=1))


def pick(scored: Sequence[Scored], gains: FloatArray, price: float) -> BoolArray:
    """Choose edits for a price: what a share of the cost is worth in divergence of the output. At most one in each layer.

    Of each layer the edit with the largest surplus (price times gain, less loss); a branch goes where that is worth more than all that
    would be done within it.
    """
    chosen = np.zeros(len(scored), dtype=bool)
    surplus = price * gains - np.array([s.loss for s in scored])
    at_node: dict[int, int] = {}
    order = np.argsort(-surplus, kind="stable")
    for number in order:
        if surplus[number] <= 0:
            break
        if isinstance(scored[number].edit, Depth | Merged):
            continue
        nodes = scored[number].candidate.nodes
        if not any(n in at_node for n in nodes):
            at_node.update(dict.fromkeys(nodes, int(number)))
    for number in order:
        if surplus[number] <= 0:
            break
        if not isinstance(scored[number].edit, Depth | Merged):
            continue
        inside = {at_node[n] for n in scored[number].candidate.nodes if n in at_node}
        if surplus[number] > sum(float(surplus[i]) for i in inside):
            at_node = {n: i for n, i in at_node.items() if i not in inside}
            at_node.update(dict.fromkeys(scored[number].candidate.nodes, int(number)))
    chosen[sorted(set(at_node.values()))] = True
    return chosen


def cheapest(gauge: BlockMeter, limits: knapsack.Limits, price: float = HIGHEST) -> BoolArray:
    """Choose edits for the least price, up to some, at which limits hold as predicted; at that price, where they do at none."""
    gains = gauge.gains()
    low, high = min(LOWEST, price), price
    if limits.hold(*gauge.totals(pick(gauge.scored, gains, high))):
        for _ in range(HALVINGS):
            middle = math.sqrt(low * high)
            holds = limits.hold(*gauge.totals(pick(gauge.scored, gains, middle)))
            low, high = (low, middle) if holds else (middle, high)
    return pick(gauge.scored, gains, high)


def taken(scored: Sequence[Scored], chosen: BoolArray) -> tuple[Scored, ...]:
    """Return what was chosen."""
    return tuple(itertools.compress(scored, chosen))


def price_of(plan: Plan, meter: CostEstimator) -> float:
    """Return what the last channels to go have cost: divergence of the output per share of what is bound, the median over the groups."""
    curves = {curve.group: curve for curve in plan.curves}
    whole = np.maximum(BlockMeter(meter, ()).start, 1e-30)
    bound = [n for n, limit in enumerate(meter.goals().bounds) if limit is not None] or [0]

    def cost(keep: BoolArray) -> float:
        return float((np.array(meter.totals(keep))[bound] / whole[bound]).sum())

    here = cost(plan.keep)
    ratios = []
    for group in meter.analysis.trace.groups:
        curve = curves.get(group.name)
        gone = 0 if curve is None else int((~plan.keep[curve.order]).sum())
        if curve is None or not gone:
            continue
        back = max(1, min(gone, curve.order.size // 8))
        more = plan.keep.copy()
        more[curve.order[gone - back : gone]] = True
        lost = curve.at(np.array([gone - back, gone]))
        saved = cost(more) - here
        if saved > 0:
            ratios.append(float(lost[1] - lost[0]) / saved)
    return float(np.median(ratios)) if ratios else DEFAULT_PRICE


DEFAULT_PRICE = 0.1
"""Divergence per share of the cost, where the channels' own price is not known."""

"""What edits save and cost, and which of them are worth a price."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from onnxprune.allocation import knapsack
from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.granularity.edits import Depth, Merged
from onnxprune.graph.model import Model
from onnxprune.reforming.base import Scored
from onnxprune.types import BoolArray, FloatArray, Plan

LOWEST, HIGHEST = 1e-9, 1e9
"""Prices between which edits are chosen."""
HALVINGS = 60


class BlockMeter:
    """Predicts and measures what a choice of edits costs, as `CostEstimator` does for channels.

    Args:
        meter: of the base.
        scored: edits, of which some are chosen.
    """

    def __init__(self, meter: CostEstimator, scored: Sequence[Scored]) -> None:
        self.meter, self.measured, self.whole = meter, meter.measured, meter.whole
        self.scored = scored
        self.start = meter.predict(np.ones(meter.analysis.trace.n_channels, dtype=bool))
        per_param = self.start.get("size", 0.0) / max(self.start["params"], 1.0)
        savings = [s.saving for s in scored]
        saves = {
            "flops": [2 * saving.macs for saving in savings],
            "params": [saving.params for saving in savings],
            "size": [saving.params * per_param for saving in savings],
            "latency": [saving.before - saving.after for saving in savings],
        }
        self._saves = {name: np.array(saves.get(name, [0.0] * len(scored)), dtype=float) for name in self.start}

    def budget(self) -> knapsack.Budget:
        """Return the bounds."""
        return self.meter.budget()

    def predict(self, chosen: BoolArray) -> knapsack.Amounts:
        """Predict the costs of a selection of edits."""
        return {name: max(whole - float(self._saves[name][chosen].sum()), 0.0) for name, whole in self.start.items()}

    def measure(self, candidate: Model) -> knapsack.Amounts:
        """Measure a model."""
        return self.meter.measure(candidate)

    def gains(self) -> FloatArray:
        """Return what each edit saves of what is bound, as shares of the whole, added up."""
        bound = self.budget() or ["flops"]
        return np.asarray(np.sum([self._saves[name] / max(self.start[name], 1e-30) for name in bound], axis=0))


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


def cheapest(gauge: BlockMeter, limits: knapsack.Budget, price: float = HIGHEST) -> BoolArray:
    """Choose edits for the least price, up to some, at which limits hold as predicted; at that price, where they do at none."""
    gains = gauge.gains()
    low, high = min(LOWEST, price), price
    if knapsack.holds(gauge.predict(pick(gauge.scored, gains, high)), limits):
        for _ in range(HALVINGS):
            middle = math.sqrt(low * high)
            holds = knapsack.holds(gauge.predict(pick(gauge.scored, gains, middle)), limits)
            low, high = (low, middle) if holds else (middle, high)
    return pick(gauge.scored, gains, high)


def taken(scored: Sequence[Scored], chosen: BoolArray) -> tuple[Scored, ...]:
    """Return what was chosen."""
    return tuple(itertools.compress(scored, chosen))


def price_of(plan: Plan, meter: CostEstimator) -> float:
    """Return what the last channels to go have cost: divergence of the output per share of what is bound, the median over the groups."""
    curves = {curve.group: curve for curve in plan.curves}
    whole = BlockMeter(meter, ()).start
    bound = list(meter.budget()) or ["flops"]

    def cost(keep: BoolArray) -> float:
        found = meter.predict(keep)
        return sum(found[name] / max(whole[name], 1e-30) for name in bound)

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

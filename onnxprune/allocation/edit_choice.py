"""Choose edits: at most one for each node, with the least expected loss of the output under all budgets.

This is a multiple-choice knapsack, which `scipy.optimize.milp` solves. Where channels are pruned as well, edits and
channels share the budgets through a Lagrange multiplier: the loss of the last removed channels per share of the cost
that they save.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from math import inf, nan
from typing import Any

import numpy as np

from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.edit_timing import Saving
from onnxprune.allocation.knapsack import Amounts, Budget, PruningRules, allocate_by_loss, holds, unreachable
from onnxprune.errors import TargetError
from onnxprune.graph.model import Model
from onnxprune.metrics import activation_memory as memory
from onnxprune.options import QUANTITIES
from onnxprune.surgery.edits.apply import apply_edits
from onnxprune.surgery.edits.protocol import Edit
from onnxprune.types import BoolArray, FloatArray, Plan

DEFAULT_MULTIPLIER = 0.1
"""Divergence per share of the cost, where channels alone cannot meet the target."""
FREE = 1e-9
"""Multiplier that decides between edits without any loss."""
SCALE = 1e4
"""Largest coefficient of the objective, large beside the absolute tolerance of the solver."""
MARGINS = (0.0, 1e-6, 1e-5)
"""Shares by which budgets are tightened in turn, because the solver keeps constraints only within a tolerance."""
SOLVER = {"mip_rel_gap": 1e-7, "node_limit": 20_000}


@dataclass(frozen=True)
class ScoredEdit:
    """An edit, with its saving and loss where it was chosen from data.

    Attributes:
        edit: the edit.
        nodes: numbers of the nodes that it replaces.
        layers: labels of these nodes.
        saving: what the edit saves; None: the edit was read from a plan.
        error: of the layer, as a share of the variance of its output, with the other weights refitted; 0: exact.
        loss: expected divergence of the output.
    """

    edit: Edit
    nodes: tuple[int, ...] = ()
    layers: frozenset[str] = frozenset()
    saving: Saving | None = None
    error: float = nan
    loss: float = nan

    def to_dict(self) -> dict[str, Any]:
        """Return the edit as it stands in a plan, with its loss and saving where they are known."""
        content = {**self.edit.to_dict(), "what": str(self.edit)}
        if self.saving is None:
            return content
        why = {
            "error": self.error,
            "divergence": self.loss,
            "milliseconds": [self.saving.before, self.saving.after],
            "macs_removed": self.saving.macs,
            "params_removed": self.saving.params,
        }
        return {**content, "why": why}


class EditEstimator:
    """Predicts and measures the costs of selections of edits, as `CostEstimator` does for channels.

    A predicted amount is the largest of some rows, in each of which savings add up: one row for most metrics, and for
    memory one row for each node of a run.

    Args:
        costs: estimator of the model that is edited.
        scored: the edits to choose from.
        model: the model that the edits were scored on; None: the one of `costs`.
    """

    def __init__(self, costs: CostEstimator, scored: Sequence[ScoredEdit], model: Model | None = None) -> None:
        self.costs, self.measured, self.whole, self.scored = costs, costs.measured, costs.whole, scored
        self.budget, self.measure, self.start = costs.budget, costs.measure, costs.start
        self.losses = np.array([s.loss for s in scored])
        known = [s.saving for s in scored if s.saving is not None]
        params = np.array([s.params for s in known])
        savings = {
            "flops": 2 * np.array([s.macs for s in known]),
            "params": params,
            "size": params * self.start.get("size", 0.0) / max(self.start["params"], 1.0),
            "latency": np.array([s.before - s.after for s in known]),
        }
        self.rows = {
            name: (np.array([amount]), savings[name][None]) for name, amount in self.start.items() if name in savings
        }
        if "memory" in self.budget():
            self.rows["memory"] = _alive(costs, model or costs.analysis.model, [s.edit for s in scored])

    def predict(self, chosen: BoolArray) -> Amounts:
        """Predict the costs of a selection of edits, by metric."""
        return {name: max(float((base - saved @ chosen).max()), 0.0) for name, (base, saved) in self.rows.items()}

    def taken(self, chosen: BoolArray) -> tuple[ScoredEdit, ...]:
        """Return the edits of a selection."""
        return tuple(compress(self.scored, chosen))

    def gains(self) -> FloatArray:
        """Return the saving of each edit as a share of the whole, summed over the metrics of the budget or FLOPs."""
        gains = np.zeros(len(self.scored))
        for name in self.budget() or QUANTITIES[:1]:
            base, saved = self.rows[name]
            gains += saved[base.argmax()] / max(base.max(), 1e-30)
        return gains

    def needed(self, budget: Budget) -> tuple[FloatArray, FloatArray]:
        """Return savings, (n, edits), as shares of the bounds, and the shares that must be saved, (n,)."""
        shares, needed = [np.zeros((0, len(self.scored)))], [np.zeros(0)]
        for name, bound in budget.items():
            base, saved = self.rows[name]
            shares.append(saved / bound)
            needed.append(base / bound - 1)
        return np.concatenate(shares), np.concatenate(needed)


def _alive(costs: CostEstimator, model: Model, edits: Sequence[Edit]) -> tuple[FloatArray, FloatArray]:
    """Return the bytes of activations alive at each node, (nodes,), and the savings of each edit, (nodes, edits)."""
    start, before = memory.alive(costs.analysis.model, costs.shapes), memory.alive(model, costs.shapes)
    after = [memory.alive(apply_edits(model, [edit]).model, costs.shapes) for edit in edits]
    names = list(dict.fromkeys(name for alive in (start, before, *after) for name in alive))
    amounts = np.array([[alive.get(name, 0.0) for alive in (start, before, *after)] for name in names])
    return amounts[:, 0], amounts[:, 1:2] - amounts[:, 2:]


def least_loss(costs: EditEstimator, budget: Budget) -> BoolArray:
    """Choose the edits with the least expected loss with which a budget holds, as predicted.

    Raises:
        TargetError: no selection keeps the budget.
    """
    shares, needed = costs.needed(budget)
    gains = FREE * costs.gains()
    objective = costs.losses - gains
    for margin in MARGINS:
        chosen = _solved(objective, costs.scored, shares, needed + margin)
        if chosen is None:
            break
        worst = float(objective[chosen].clip(0).sum() + gains.clip(0).sum())
        # solved again without edits that lose more: losses of very different size exceed the precision of the solver
        again = _solved(np.where(objective > worst, np.inf, objective), costs.scored, shares, needed + margin)
        chosen = chosen if again is None else again
        if holds(costs.predict(chosen), budget):
            return chosen
    least = costs.predict(net_gain(costs, np.inf))
    parts = [f"{least[n]:.4g} is the least, {bound:.4g} was asked" for n, bound in budget.items() if least[n] > bound]
    raise unreachable(
        *(parts or ["no selection of edits keeps all limits at once"]),
        hint="ask for less, or prune channels as well: --granularity all",
    )


def net_gain(costs: EditEstimator, multiplier: float) -> BoolArray:
    """Choose the edits with the largest net gain: their saving times a Lagrange multiplier, less their loss."""
    gains = costs.gains()
    objective = -gains if np.isinf(multiplier) else costs.losses - multiplier * gains
    chosen = _solved(objective, costs.scored, np.zeros((0, len(gains))), np.zeros(0))
    assert chosen is not None
    return chosen


def worth(costs: EditEstimator, budget: Budget, multiplier: float) -> BoolArray:
    """Choose the edits with the largest net gain; where they keep the budget, those with the least loss."""
    chosen = net_gain(costs, multiplier)
    return least_loss(costs, budget) if holds(costs.predict(chosen), budget) else chosen


def expected_loss(costs: EditEstimator, chosen: BoolArray, plan: Plan, channels: CostEstimator) -> float:
    """Return the loss to expect of a selection of edits with as many channels removed as the targets then still need.

    Edits save a share of each cost, and channels have to save the rest of what the targets ask for. Losses of edits and
    measured losses of channels, the curves of `plan`, are added. `channels` estimates the model that `plan` is for.
    """
    trace = channels.analysis.trace
    before, after = costs.predict(np.zeros(chosen.size, dtype=bool)), costs.predict(chosen)
    budget = {name: bound * before[name] / max(after[name], 1e-30) for name, bound in channels.budget().items()}
    lost = float(costs.losses[chosen].sum())
    keep = np.ones(trace.n_channels, dtype=bool)
    if not holds(channels.start, budget):
        rules = PruningRules.of(trace, channels.options, channels.options.scope)
        try:
            keep = allocate_by_loss(trace, channels.predict, plan.curves, keep, rules, budget)
        except TargetError:
            return inf
    gone = [(curve, np.array([(~keep[curve.order]).sum()])) for curve in plan.curves]
    return lost + sum(float(curve.at(count)[0]) for curve, count in gone)


def _solved(
    objective: FloatArray, scored: Sequence[ScoredEdit], shares: FloatArray, needed: FloatArray
) -> BoolArray | None:
    """Minimize an objective over selections that save enough, with at most one edit for each node; else None.

    An infinite coefficient forbids an edit.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    allowed = np.isfinite(objective) & ((objective < 0) | (needed.max(initial=0) > 0))
    chosen = np.zeros(len(scored), dtype=bool)
    if not allowed.any():
        return chosen if needed.max(initial=0) <= 0 else None
    index = np.flatnonzero(allowed)
    rows, columns = np.array([(node, at) for at, n in enumerate(index.tolist()) for node in scored[n].nodes]).T
    once = csr_array((np.ones(rows.size), (rows, columns)), shape=(rows.max() + 1, index.size))
    cost = objective[index]
    found = milp(
        cost * (SCALE / max(np.abs(cost).max(), 1e-30)),
        integrality=np.ones(index.size),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(once, ub=1),
            *([LinearConstraint(shares[:, index], lb=needed)] if needed.size else []),
        ],
        options=SOLVER,
    )
    if found.x is None:
        return None
    chosen[index[found.x > 0.5]] = True
    return chosen


def multiplier_of(plan: Plan, costs: CostEstimator) -> float:
    """Return the median over the groups of the last removed channels' loss per share of the bound cost."""
    curves = {curve.group: curve for curve in plan.curves}
    bound = list(costs.budget() or QUANTITIES[:1])

    def cost(keep: BoolArray) -> float:
        amounts = costs.predict(keep)
        return sum(amounts[name] / max(costs.start[name], 1e-30) for name in bound)

    here = cost(plan.keep)
    ratios = []
    for group in costs.analysis.trace.groups:
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
    return float(np.median(ratios)) if ratios else DEFAULT_MULTIPLIER

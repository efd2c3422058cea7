"""Choose edits: at most one for each node, with the least expected loss of the output under all budgets.

That is a multiple-choice knapsack, solved by `scipy.optimize.milp`. Where channels are pruned as well, edits and channels share the budgets through a
Lagrange multiplier: the loss of the last channels that went, per share of the cost that they saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from math import nan
from typing import Any

import numpy as np

from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.edit_timing import Saving
from onnxprune.allocation.knapsack import Amounts, Budget, holds
from onnxprune.errors import TargetError
from onnxprune.graph.model import Model
from onnxprune.graph.shapes import concrete_shapes
from onnxprune.metrics import activation_memory as memory
from onnxprune.options import QUANTITIES
from onnxprune.surgery.edits.apply import apply_edits
from onnxprune.surgery.edits.protocol import Edit
from onnxprune.types import BoolArray, FloatArray, Plan

DEFAULT_MULTIPLIER = 0.1
"""Divergence per share of the cost, where channels alone cannot meet the target."""
FREE = 1e-9
"""Multiplier at which edits without any loss are taken."""
SCALE = 1e4
"""Largest coefficient of the objective, large beside the absolute tolerance of the solver."""
MARGINS = (0.0, 1e-6, 1e-5)
"""Shares by which budgets are tightened in turn: the solver keeps them within a tolerance only."""
SOLVER = {"mip_rel_gap": 1e-7, "node_limit": 20_000}


@dataclass(frozen=True)
class ScoredEdit:
    """An edit, and where it was chosen from data what it saves and costs.

    Attributes:
        edit: the edit.
        nodes: numbers of the nodes that it replaces.
        layers: labels of these nodes.
        saving: milliseconds, multiplications, parameters; None: the edit was read from a plan.
        error: of the layer, as a share of the variance of its output, with the other weights adjusted; 0: exact.
        loss: expected divergence of the output.
    """

    edit: Edit
    nodes: tuple[int, ...] = ()
    layers: frozenset[str] = frozenset()
    saving: Saving | None = field(default=None)
    error: float = nan
    loss: float = nan

    def to_dict(self) -> dict[str, Any]:
        """Return the edit as it stands in a plan, with what it costs and saves where that is known."""
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


class EditMeter:
    """Predicts and measures what a selection of edits costs, as `CostEstimator` does for channels.

    Each quantity is the largest of some rows, in each of which savings add up: one row, but for memory one for each moment of a run.

    Args:
        meter: of the model that is edited.
        scored: edits, of which some are chosen.
        model: the model that the edits were scored on; None: that of the meter.
    """

    def __init__(self, meter: CostEstimator, scored: Sequence[ScoredEdit], model: Model | None = None) -> None:
        self.meter, self.measured, self.whole, self.scored = meter, meter.measured, meter.whole, scored
        self.losses = np.array([s.loss for s in scored])
        self.start = meter.predict(np.ones(meter.analysis.trace.n_channels, dtype=bool))
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
            self.rows["memory"] = _alive(meter, model or meter.analysis.model, [s.edit for s in scored])

    def budget(self) -> Budget:
        """Return the targets as absolute amounts."""
        return self.meter.budget()

    def predict(self, chosen: BoolArray) -> Amounts:
        """Predict the costs of a selection of edits, by metric."""
        return {name: max(float((base - saved @ chosen).max()), 0.0) for name, (base, saved) in self.rows.items()}

    def measure(self, candidate: Model) -> Amounts:
        """Measure a model."""
        return self.meter.measure(candidate)

    def gains(self) -> FloatArray:
        """Return what each edit saves of what is bound (of FLOPs where nothing is), as shares of the whole, added up."""
        gains = np.zeros(len(self.scored))
        for name in self.budget() or QUANTITIES[:1]:
            base, saved = self.rows[name]
            gains += saved[base.argmax()] / max(base.max(), 1e-30)
        return gains

    def needed(self, budget: Budget) -> tuple[FloatArray, FloatArray]:
        """Return (n, edits) savings, as shares of the bounds, and the (n,) shares that must be saved of them."""
        shares, needed = [np.zeros((0, len(self.scored)))], [np.zeros(0)]
        for name, bound in budget.items():
            base, saved = self.rows[name]
            shares.append(saved / bound)
            needed.append(base / bound - 1)
        return np.concatenate(shares), np.concatenate(needed)


def _alive(meter: CostEstimator, model: Model, edits: Sequence[Edit]) -> tuple[FloatArray, FloatArray]:
    """Return the bytes of activations that are alive at each node, and what each edit saves of them, (nodes,) and (nodes, edits)."""
    whole = meter.analysis.model
    shapes = concrete_shapes(whole.header, meter.how.batch, known=meter.analysis.trace.input_shapes)
    start, before = memory.alive(whole, shapes), memory.alive(model, shapes)
    after = [memory.alive(apply_edits(model, [edit]).model, shapes) for edit in edits]
    names = list(dict.fromkeys(name for alive in (start, before, *after) for name in alive))
    amounts = np.array([[alive.get(name, 0.0) for alive in (start, before, *after)] for name in names])
    return amounts[:, 0], amounts[:, 1:2] - amounts[:, 2:]


def least_loss(meter: EditMeter, budget: Budget) -> BoolArray:
    """Choose the edits with the least expected loss that keep a budget, as predicted.

    Raises:
        TargetError: no selection keeps them.
    """
    shares, needed = meter.needed(budget)
    gains = FREE * meter.gains()
    objective = meter.losses - gains
    for margin in MARGINS:
        chosen = _solved(objective, meter.scored, shares, needed + margin)
        if chosen is None:
            break
        worst = float(objective[chosen].clip(0).sum() + gains.clip(0).sum())
        # solved again without what costs more than that, as losses of very different size exceed the precision of the solver
        again = _solved(np.where(objective > worst, np.inf, objective), meter.scored, shares, needed + margin)
        chosen = chosen if again is None else again
        if holds(meter.predict(chosen), budget):
            return chosen
    least = meter.predict(net_gain(meter, np.inf))
    raise TargetError(
        "the target cannot be reached",
        why="; ".join(
            f"{least[name]:.4g} is the least, {bound:.4g} was asked"
            for name, bound in budget.items()
            if least[name] > bound
        )
        or "no selection of edits keeps all limits at once",
        hint="ask for less, or prune channels as well: --granularity auto",
    )


def net_gain(meter: EditMeter, multiplier: float) -> BoolArray:
    """Choose the edits with the largest net gain: what they save times a Lagrange multiplier, less what they lose."""
    gains = meter.gains()
    objective = -gains if np.isinf(multiplier) else meter.losses - multiplier * gains
    chosen = _solved(objective, meter.scored, np.zeros((0, len(gains))), np.zeros(0))
    assert chosen is not None
    return chosen


def worth(meter: EditMeter, budget: Budget, multiplier: float) -> BoolArray:
    """Choose the edits with the largest net gain; where fewer keep the budget, those with the least loss that keep them."""
    chosen = net_gain(meter, multiplier)
    return least_loss(meter, budget) if holds(meter.predict(chosen), budget) else chosen


def _solved(
    objective: FloatArray, scored: Sequence[ScoredEdit], shares: FloatArray, needed: FloatArray
) -> BoolArray | None:
    """Minimize an objective over selections that save enough, with at most one edit for each node; None where there is none.

    An infinite coefficient forbids the edit.
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


def taken(scored: Sequence[ScoredEdit], chosen: BoolArray) -> tuple[ScoredEdit, ...]:
    """Return the edits that were chosen."""
    return tuple(compress(scored, chosen))


def multiplier_of(plan: Plan, meter: CostEstimator) -> float:
    """Return the loss of the last channels that went per share of the bound cost that they saved, the median over the groups."""
    curves = {curve.group: curve for curve in plan.curves}
    whole = meter.predict(np.ones(meter.analysis.trace.n_channels, dtype=bool))
    bound = list(meter.budget() or QUANTITIES[:1])

    def cost(keep: BoolArray) -> float:
        amounts = meter.predict(keep)
        return sum(amounts[name] / max(whole[name], 1e-30) for name in bound)

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
    return float(np.median(ratios)) if ratios else DEFAULT_MULTIPLIER

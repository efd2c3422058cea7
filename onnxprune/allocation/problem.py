"""The choice of channels as one problem: scores, measured losses, costs and rules, all in channels of one model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxprune.allocation import channel_multiple, knapsack, sensitivity
from onnxprune.allocation.cost_estimator import CostEstimator, rules_of
from onnxprune.calibration.workspace import Workspace
from onnxprune.errors import ModelError, TargetError
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.model import Model
from onnxprune.graph.operators import OPERATORS, UNKNOWN
from onnxprune.importance import weights as importance
from onnxprune.importance.obs import Removal
from onnxprune.importance.registry import calibrated_scores
from onnxprune.options import WITH_DATA, WITH_GRADIENTS, ResolvedOptions
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.surgery import channels as rewrite
from onnxprune.types import BoolArray, Curve, FloatArray

SAVES_NOTHING = 1e-12
"""Share of what is limited below which a channel saves nothing."""


@dataclass(frozen=True)
class AllocationProblem:
    """Which channels of a model stay within a budget.

    Scores may come from a model that holds fewer channels: an earlier step of a schedule has deleted the others, and repaired what is
    left. They are given in channels of the model that the budget is meant for.

    Attributes:
        analysis: of the model that the budget is meant for.
        scored: of the model that scores come from.
        held: (n_channels,) channels that `scored` holds.
        meter: predicts costs.
        keep: (n_channels,) channels that are left before.
        rules: what a group must keep.
        scores: (n_channels,) importance; NaN where a channel has gone.
        savings: of MACs and of parameters, (n_channels,) each, to divide the scores by; None: scores are ranked as they are.
        curves: measured losses of the groups; empty where they are not measured.
        by_loss: whether channels go by the curves.
    """

    analysis: Analysis
    scored: Analysis
    held: BoolArray
    meter: CostEstimator
    keep: BoolArray
    rules: knapsack.PruningRules
    scores: FloatArray
    savings: tuple[FloatArray, FloatArray] | None = None
    curves: tuple[Curve, ...] = ()
    by_loss: bool = False

    def allocate(self, budget: knapsack.Budget) -> BoolArray:
        """Return the channels that stay, (n_channels,).

        Raises:
            TargetError: the budget cannot be reached.
        """
        trace = self.analysis.trace
        if knapsack.holds(self.meter.predict(self.keep), budget):
            return self.keep.copy()
        if self.by_loss:
            return knapsack.allocate_by_loss(trace, self.meter.predict, self.curves, self.keep, self.rules, budget)
        scores = self.scores if self.savings is None else _per_saving(self.scores, self.savings, budget)
        return knapsack.allocate(trace, self.meter.predict, scores, self.keep, self.rules, budget)

    def build(self, keep: BoolArray) -> Model:
        """Return the scored model without the channels that are not in `keep`."""
        return rewrite.delete(self.scored.model, self.scored.trace, keep[self.held])

    def rounded_to(self, multiple: int) -> AllocationProblem:
        """Return the same problem with another channel multiple."""
        return replace(self, rules=replace(self.rules, round_to=multiple, multiples={}))


@dataclass(frozen=True)
class Scorer:
    """How channels are scored.

    Attributes:
        options: of the run, resolved.
        meter: predicts costs.
        workspace: calibration samples; None where scores come from weights.
        on_stage: progress callback.
    """

    options: ResolvedOptions
    meter: CostEstimator
    workspace: Workspace | None = None
    on_stage: ProgressCallback = quiet

    def problem(
        self, analysis: Analysis, keep: BoolArray, scored: Analysis, held: BoolArray, *, first: bool = True
    ) -> AllocationProblem:
        """Score the channels that are left.

        Args:
            analysis: of the model that the budget is meant for.
            keep: (n_channels,) channels that are left.
            scored: of the model that scores come from.
            held: (n_channels,) channels of `analysis` that `scored` holds, in the same order.
            first: whether nothing has gone yet: --threshold counts then.
        """
        options, trace = self.options, analysis.trace
        rules = rules_of(scored.trace, options, options.scope)
        local = keep[held]
        removals: list[Removal] = []
        if options.importance in WITH_DATA or options.scope == "sensitivity":
            assert self.workspace is not None
            scores, removals = calibrated_scores(scored, options, local, self.on_stage, self.workspace)
        else:
            scores = importance.score(scored.model, scored.trace, options.importance, local, options.seed)
        if options.threshold is not None and first:
            normed = (
                importance.relative(trace, scores, keep) if options.importance in WITH_GRADIENTS else scores
            )  # the others are relative already
            keep = knapsack.below(trace, normed, keep, rules, options.threshold)
        by_loss = options.scope == "sensitivity" and bool(
            options.reduce or options.limit or options.max_drop is not None
        )
        curves: tuple[Curve, ...] = ()
        if by_loss:
            assert self.workspace is not None
            curves = self._curves(scored, removals, self.workspace)
        if self.workspace is not None:
            for removal in removals:
                removal.drop(self.workspace.store)
        ids = np.flatnonzero(held)
        savings = None
        if options.importance in WITH_GRADIENTS and options.scope == "global":
            macs, params = scored.cost.savings()
            savings = _spread(macs, held), _spread(params, held)
        curves = tuple(replace(curve, order=ids[curve.order]) for curve in curves)
        return AllocationProblem(
            analysis, scored, held, self.meter, keep, rules, _spread(scores, held), savings, curves, by_loss
        )

    def _curves(self, scored: Analysis, removals: list[Removal], workspace: Workspace) -> tuple[Curve, ...]:
        macs = scored.cost.totals(np.ones(scored.trace.n_channels, dtype=bool))[0]
        return sensitivity.curves(
            scored.model,
            scored.trace,
            removals,
            workspace.calibration.plain,
            macs,
            workspace.store,
            share_of(self.on_stage, "measure"),
        )


def _spread(values: FloatArray, held: BoolArray) -> FloatArray:
    """Return values of the channels that are held in place of all channels; NaN for the others."""
    result = np.full(held.size, np.nan)
    result[held] = values
    return result


def _per_saving(scores: FloatArray, savings: tuple[FloatArray, FloatArray], budget: knapsack.Budget) -> FloatArray:
    """Divide losses by what a channel saves of what is limited: Liu et al., 2021, "Group Fisher Pruning", section 3.3.

    Scores in one unit over the whole network are the prices of a knapsack; without this, a cheap layer would lose all its channels.
    """
    macs, params = savings
    of_params = bool({"params", "size"} & budget.keys())
    of_macs = bool({"flops", "latency", "memory"} & budget.keys()) or not of_params
    saved = (macs if of_macs else 0) + (params if of_params else 0)  # time and activations fall about as MACs do
    return np.asarray(scores / np.maximum(saved, SAVES_NOTHING))


def refuse_unprunable(analysis: Analysis) -> None:
    """Raise ModelError, with the reasons, when no channel is prunable."""
    trace = analysis.trace
    if (~trace.pinned).any():
        return
    ops = {node.op for node in analysis.model.graph.nodes}
    layers = sorted(op for op in ops if OPERATORS.get(op, UNKNOWN).quantized_layer)
    if layers:
        raise ModelError(
            "the model is quantised: there is nothing to prune",
            where=str(analysis.model.path),
            why=f"its layers are {', '.join(layers)}",
            hint="prune the float model, then quantise the result",
        )
    reasons = knapsack.holders(trace, knapsack.PruningRules())
    raise ModelError(
        "nothing can be pruned",
        where=str(analysis.model.path),
        why="; ".join(reasons) or "it has no layer with a constant weight",
        hint="`onnxprune inspect` lists every reason",
    )


def with_multiple(meter: CostEstimator, options: ResolvedOptions) -> ResolvedOptions:
    """Replace the measured channel multiples by one finer multiple, where the target cannot be reached with them.

    Raises:
        TargetError: no multiple reaches the target.
    """
    trace = meter.analysis.trace
    everything = np.ones(trace.n_channels, dtype=bool)
    first = rules_of(trace, options)
    try:
        knapsack.refuse_unreachable(trace, meter.predict, everything, first, meter.budget())
        return options
    except TargetError:
        if options.round_to is not None:
            raise
    for multiple in (first.round_to, *(finer for finer in channel_multiple.FINER if finer < first.round_to)):
        try:
            rules = replace(first, round_to=multiple, multiples={})
            knapsack.refuse_unreachable(trace, meter.predict, everything, rules, meter.budget())
        except TargetError:
            if multiple == 1:
                raise
        else:
            return replace(options, round_to=multiple)
    raise AssertionError("unreachable")


def paced(options: ResolvedOptions, share: float) -> float:
    """Return the share of the way to the goals after a share of the steps.

    Source: Zhu and Gupta, 2017, "To prune, or not to prune", equation 1, for the cubic pace, which removes most in the first steps.
    """
    return 1 - (1 - share) ** 3 if options.pace == "cubic" else share


def part_of_the_way(meter: CostEstimator, options: ResolvedOptions, share: float) -> knapsack.Budget:
    """Return bounds between the original and the goals, after a share of the steps."""
    whole = meter.predict(np.ones(meter.analysis.trace.n_channels, dtype=bool))
    return knapsack.part_way(whole, meter.budget(), paced(options, share))


def settings(analysis: Analysis, options: ResolvedOptions) -> dict[str, object]:
    """Return what a plan says of how it was made: the options, and the channel multiple."""
    return {**options.settings, "step": rules_of(analysis.trace, options).round_to}

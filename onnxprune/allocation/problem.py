"""The selection of channels as one problem: scores, measured losses, costs and rules, all in channels of one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.allocation import knapsack, sensitivity
from onnxprune.allocation.carried_curves import KnownCurves
from onnxprune.allocation.channel_multiple import FINER
from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.knapsack import Budget, PruningRules
from onnxprune.calibration.workspace import Workspace
from onnxprune.errors import ModelError, TargetError
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.model import Model
from onnxprune.graph.operators import OPERATORS, UNKNOWN
from onnxprune.importance import weights as importance
from onnxprune.importance.obs import points_of
from onnxprune.importance.registry import calibrated_scores
from onnxprune.options import WITH_DATA, WITH_GRADIENTS, ResolvedOptions
from onnxprune.progress import ProgressCallback, share_of
from onnxprune.surgery import channels as rewrite
from onnxprune.types import BoolArray, Curve, FloatArray, Group, Trace

BEYOND = 0.03
"""Share of the model beyond the budget from which a finer channel multiple is tried."""
COUNTED = {"flops", "params", "size", "memory"}
"""Quantities that are counted: latency is measured, and depends on whole channel multiples."""
SAVES_NOTHING = 1e-12
"""Least share of the cost that a channel is taken to save."""


@dataclass(frozen=True)
class AllocationProblem:
    """Which channels of a model stay within a budget.

    Scores may come from a model with fewer channels, which an earlier step of a schedule has pruned and repaired. They
    are indexed by channels of the model that the budget is meant for.

    Attributes:
        estimator: of the model that the budget is meant for.
        scored: the model that scores come from.
        held: (n_channels,) channels that `scored` holds.
        keep: (n_channels,) channels that are left before.
        rules: what a group must keep.
        scores: (n_channels,) importance; NaN where a channel is removed.
        savings: of MACs and of parameters, (n_channels,) each, to divide the scores by; None: scores are ranked as they
            are.
        curves: measured losses of the groups; empty where they are not measured.
        by_loss: whether the curves, and not the scores, decide.
    """

    estimator: CostEstimator
    scored: Analysis
    held: BoolArray
    keep: BoolArray
    rules: PruningRules
    scores: FloatArray
    savings: tuple[FloatArray, FloatArray] | None = None
    curves: tuple[Curve, ...] = ()
    by_loss: bool = False

    def allocate(self, budget: Budget) -> BoolArray:
        """Return the channels that stay, (n_channels,).

        Raises:
            TargetError: the budget cannot be met.
        """
        trace, predict = self.estimator.analysis.trace, self.estimator.predict
        if knapsack.holds(predict(self.keep), budget):
            return self.keep.copy()

        def select(rules: PruningRules) -> BoolArray:
            if self.by_loss:
                return knapsack.allocate_by_loss(trace, predict, self.curves, self.keep, rules, budget)
            scores = self.scores if self.savings is None else _per_saving(self.scores, self.savings, budget)
            return knapsack.allocate(trace, predict, scores, self.keep, rules, budget)

        found = select(self.rules)
        whole = predict(np.ones(trace.n_channels, dtype=bool))
        beyond = knapsack.points_beyond(predict(found), budget, whole)
        if beyond <= BEYOND or not self.rules.may_refine or not budget.keys() <= COUNTED:
            return found
        coarse = self._coarse_groups(budget, whole)
        for multiple in FINER:
            finer = select(self.rules.refined(multiple, coarse))
            points = knapsack.points_beyond(predict(finer), budget, whole)
            if points < beyond:
                found, beyond = finer, points
            if beyond <= BEYOND:
                break
        return found

    def _coarse_groups(self, budget: Budget, whole: knapsack.Amounts) -> list[Group]:
        """Return the groups of which one channel batch removes more than `BEYOND` of a quantity with a bound."""
        trace, predict, coarse = self.estimator.analysis.trace, self.estimator.predict, []
        for group in trace.groups:
            free = group.channels[self.keep[group.channels] & ~trace.pinned[group.channels]]
            without = self.keep.copy()
            without[free[: self.rules.multiple(group)]] = False
            less = predict(without)
            if any(whole[name] - less[name] > BEYOND * whole[name] for name in budget):
                coarse.append(group)
        return coarse

    @property
    def is_blind(self) -> bool:
        """Whether the measured losses tell nothing: no removal changes the output, or every one breaks it."""
        losses = np.concatenate([curve.losses[1:] for curve in self.curves]) if self.curves else np.zeros(0)
        return self.by_loss and bool(losses.size) and float(np.ptp(losses)) == 0.0 and losses.size > 1

    def by_score(self) -> AllocationProblem:
        """Return the same problem, decided by the scores in one ranking of all channels."""
        return replace(self, by_loss=False, rules=replace(self.rules, scope="global"))

    def build(self, keep: BoolArray) -> Model:
        """Return the scored model without the channels that are not in `keep`."""
        return rewrite.delete(self.scored.model, self.scored.trace, keep[self.held])

    def rounded_to(self, multiple: int) -> AllocationProblem:
        """Return the same problem with another channel multiple."""
        return replace(self, rules=self.rules.rounded_to(multiple))


def score(
    estimator: CostEstimator,
    options: ResolvedOptions,
    workspace: Workspace | None,
    keep: BoolArray,
    scored: Analysis,
    held: BoolArray,
    *,
    first: bool = True,
    known: KnownCurves | None = None,
) -> AllocationProblem:
    """Score the channels that are left.

    Args:
        estimator: of the model that the budget is meant for.
        options: of the run.
        workspace: calibration samples; None where scores come from weights.
        keep: (n_channels,) channels that are left.
        scored: the model that scores come from.
        held: (n_channels,) channels that `scored` holds, in the same order.
        first: whether this is the first step: only then the threshold applies.
        known: measured loss curves of the model before edits; those of groups that edits leave as they were are not measured again.
    """
    trace, on_stage = estimator.analysis.trace, estimator.on_stage
    asked = estimator.options.round_to is not None  # `with_multiple` may have set another one
    may_refine = estimator.refines and not asked
    rules = replace(PruningRules.of(scored.trace, options, options.scope), may_refine=may_refine)
    with_target = bool(options.reduce or options.limit or options.max_drop is not None)
    by_loss = options.scope == "sensitivity" and with_target
    carried = {} if known is None or not by_loss or not keep.all() else known.carried(scored)
    scores, curves = _measured(scored, options, keep[held], workspace, on_stage, by_loss, carried)
    with_gradients = options.importance in WITH_GRADIENTS
    if options.threshold is not None and first:
        # the scores of the other importances are relative already
        relative = importance.relative(trace, scores, keep) if with_gradients else scores
        keep = knapsack.below(trace, relative, keep, rules, options.threshold)
    ids = np.flatnonzero(held)
    curves = tuple(replace(curve, order=ids[curve.order]) for curve in curves)
    savings = None
    if with_gradients and options.scope == "global":
        macs, params = scored.cost.savings()
        savings = _spread(macs, held), _spread(params, held)
    return AllocationProblem(estimator, scored, held, keep, rules, _spread(scores, held), savings, curves, by_loss)


def _measured(
    scored: Analysis,
    options: ResolvedOptions,
    keep: BoolArray,
    workspace: Workspace | None,
    on_stage: ProgressCallback,
    by_loss: bool,
    carried: Mapping[str, Curve],
) -> tuple[FloatArray, tuple[Curve, ...]]:
    """Return the scores, and with `by_loss` the loss curves, in channels of the scored model.

    Groups with a carried curve are not measured, and their scores are those of their weights: where curves decide, nothing asks for them.
    """
    if options.importance not in WITH_DATA and options.scope != "sensitivity":
        return importance.score(scored.model, scored.trace, options.importance, keep, options.seed), ()
    assert workspace is not None

    def measured() -> tuple[FloatArray, tuple[Curve, ...]]:
        names = {group.name for group in scored.trace.groups} - carried.keys() if carried else None
        scores, removals = calibrated_scores(scored, options, keep, on_stage, workspace, names)
        progress, of = share_of(on_stage, "measure"), points_of(scored.trace) if carried else None
        curves = sensitivity.curves(scored, removals, workspace, progress, of) if by_loss else ()
        for removal in removals:
            removal.drop(workspace.store)
        return scores, (*curves, *carried.values())

    return workspace.results.of(
        "scores",
        lambda: (scored.model.content_digest(), keep, options, workspace.identity, *carried.values()),
        measured,
        types=(Curve,),
    )


def _spread(values: FloatArray, held: BoolArray) -> FloatArray:
    """Return values of the held channels in place of all channels; NaN for the others."""
    result = np.full(held.size, np.nan)
    result[held] = values
    return result


def _per_saving(scores: FloatArray, savings: tuple[FloatArray, FloatArray], budget: Budget) -> FloatArray:
    """Divide losses by what a channel saves of the budget: Liu et al., 2021, "Group Fisher Pruning", section 3.3.

    Losses in one unit over the whole network are the values of a knapsack. Undivided, they would remove all channels of
    a cheap layer.
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
            "the model is quantized: there is nothing to prune",
            where=str(analysis.model.path),
            why=f"its layers are {', '.join(layers)}",
            hint="prune the float model, then quantize the result",
        )
    opaque = sorted({one.operator for one in trace.opaque})
    rest = (
        f"its weights are in {', '.join(opaque)}, which no rule prunes"
        if opaque
        else "it has no layer with a constant weight"
    )
    raise ModelError(
        "nothing can be pruned",
        where=str(analysis.model.path),
        why="; ".join(knapsack.holders(trace, PruningRules())) or rest,
        hint="`onnxprune inspect` lists every reason",
    )


def with_multiple(estimator: CostEstimator, options: ResolvedOptions) -> ResolvedOptions:
    """Replace the measured channel multiples by one finer multiple, where the target cannot be met with them.

    Raises:
        TargetError: no multiple meets the target.
    """
    trace, budget = estimator.analysis.trace, estimator.budget()
    measured = PruningRules.of(trace, options)
    finer = [multiple for multiple in FINER if multiple < measured.round_to]
    found = [(options, measured)]
    if options.round_to is None:
        found += [(replace(options, round_to=m), measured.rounded_to(m)) for m in (measured.round_to, *finer)]
    for changed, rules in found:
        try:
            knapsack.refuse_unreachable(trace, estimator.predict, rules, budget)
            return changed
        except TargetError as error:
            unmet = error
    raise unmet


def paced(options: ResolvedOptions, share: float) -> float:
    """Return the share of the way to the target after a share of the steps.

    Source: Zhu and Gupta, 2017, "To prune, or not to prune", equation 1, for the cubic pace, which removes most in the
    first steps.
    """
    return 1 - (1 - share) ** 3 if options.pace == "cubic" else share


def part_of_the_way(estimator: CostEstimator, options: ResolvedOptions, share: float) -> Budget:
    """Return the budget after a share of the steps."""
    return knapsack.part_way(estimator.start, estimator.budget(), paced(options, share))


def finer_groups(trace: Trace, keep: BoolArray, options: ResolvedOptions) -> list[str]:
    """Return the groups that were cut to a finer channel multiple than that of the rules."""
    rules = PruningRules.of(trace, options)
    left = {group.name: (int(keep[group.channels].sum()), rules.multiple(group)) for group in trace.groups}
    cut = {group.name for group in trace.groups if not keep[group.channels].all()}
    return [name for name, (survivors, multiple) in left.items() if name in cut and survivors % multiple]


def settings(analysis: Analysis, options: ResolvedOptions) -> dict[str, object]:
    """Return the settings of a plan: the options, and the channel multiple."""
    return {**options.settings, "step": PruningRules.of(analysis.trace, options).round_to}

"""Choose what goes: score, measure, allocate."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import numpy as np

from onnxprune.allocation import channel_multiple, knapsack, sensitivity
from onnxprune.allocation.targets import CostEstimator, Lifted, lift, meet, rules_of, within
from onnxprune.analysis import Analysis, analysed, refuse_unprunable, removed, unless_it_does_not_run
from onnxprune.errors import OptionError, TargetError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.graph.model import Model
from onnxprune.importance import weights as importance
from onnxprune.mending import repaired
from onnxprune.options import AUTO, WITH_DATA, WITH_GRADIENTS, Options
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.recovery import Recovery
from onnxprune.scoring import calibrated_scores, per_saving
from onnxprune.surgery import channels as rewrite
from onnxprune.types import BoolArray, Curve, Plan
from onnxprune.workspace import Workspace


@dataclass(frozen=True)
class Choice:
    """What goes, and from what.

    Attributes:
        plan: which channels of the original stay.
        start: what the last step starts from: the original, or after steps with training what these left of it.
        keep: (channels of `start`,) which of them stay.
    """

    plan: Plan
    start: Analysis
    keep: BoolArray


def make_plan(
    analysis: Analysis,
    options: Options,
    on_stage: ProgressCallback = quiet,
    workspace: Workspace | None = None,
    meter: CostEstimator | None = None,
) -> Plan:
    """Score and allocate; see `choose`."""
    return choose(analysis, options, on_stage, workspace, meter=meter).plan


def choose(
    analysis: Analysis,
    options: Options,
    on_stage: ProgressCallback = quiet,
    workspace: Workspace | None = None,
    recovery: Recovery | None = None,
    meter: CostEstimator | None = None,
    lost: Callable[[BoolArray], float] | None = None,
    reference: Model | None = None,
) -> Choice:
    """Score and allocate, and where what is asked for is measured, measure and correct.

    Progressive steps each aim at an absolute share of the way to the target, so they don't compound: at equal distances, or as
    the cubic schedule of Zhu and Gupta, 2017, "To prune, or not to prune", equation 1, which goes fast at first. With data, the
    pruned model is repaired after each, trained where there is a recovery, and what follows is chosen by looking at that.

    Args:
        analysis: of the model.
        options: the dials; `auto` is resolved here.
        on_stage: called as the run goes on.
        workspace: calibration data; None without.
        recovery: trains between steps; None: nothing does.
        meter: predicts and measures; None: one is made.
        lost: points that are lost, as measured, when only these channels of the original stay; needed for `max_drop`.
        reference: what steps are repaired towards, where that is not the model itself.

    Raises:
        ModelError: nothing can be pruned.
        OptionError: no target, or a method that needs data.
        TargetError: the target cannot be reached.
    """
    refuse_unprunable(analysis)
    if not options.has_target:
        raise OptionError(
            "nothing says how much to remove", hint="give --reduce flops=50%, a --limit, or a --threshold"
        )
    options = options.resolved(workspace is not None)
    keep = np.ones(analysis.trace.n_channels, dtype=bool)
    meter = meter or CostEstimator(analysis, options, BenchmarkConfig(), on_stage=on_stage)
    options = _rounded(meter, options)
    steps = options.rounds
    path = []
    curves: tuple[Curve, ...] = ()
    current = _Step(analysis, keep, _sizes(analysis))
    for step in range(1, steps + 1):
        on_stage("score", step / steps)
        start = current
        with unless_it_does_not_run(analysis.model, analysis.trace.input_shapes):
            allocate, found = _allocator(current, options, meter, step == 1, on_stage, workspace)
            if step < steps:
                keep = allocate(part_of_the_way(meter, options, step / steps))
            elif options.max_drop is None:
                keep = meet(allocate, functools.partial(_without, current), meter)
            elif lost is not None:
                keep = within(allocate, lost, meter, options.max_drop)
            else:
                raise OptionError("--max-drop needs data to measure it on", hint="give --data to `prune`")
        curves = curves or found
        path.append(removed(analysis, keep))
        if workspace is None:
            current = replace(current, keep=keep)
        elif step < steps:
            current = _next(start, keep, analysis, workspace, options, on_stage, recovery, step, reference)
    plan = Plan(keep, analysis.model.digest, settings(analysis, options), tuple(path), curves)
    if recovery is None or start.analysis is analysis:
        return Choice(plan, analysis, keep)
    return Choice(plan, start.analysis, keep[start.keep])


def settings(analysis: Analysis, options: Options) -> dict[str, object]:
    """Return what a plan says of how it was made: the options, and the step that channels were rounded to."""
    plain = asdict(replace(options, reduce=dict(options.reduce), limit=dict(options.limit)))
    return {**plain, "step": rules_of(analysis.trace, options).round_to}


@dataclass(frozen=True)
class _Step:
    """Where a progressive search stands: a model to look at, and which channels of the original are left.

    Without data the model is the original itself, and `keep` says what doesn't count any more; with data it is pruned and
    repaired, and holds just the channels in `keep`, in the same order. `sizes` are those of the groups in the original.
    """

    analysis: Analysis
    keep: BoolArray
    sizes: Mapping[str, int]

    @property
    def is_whole(self) -> bool:
        """Whether the model is the original, whatever of it counts."""
        return self.analysis.trace.n_channels == self.keep.size


def _rounded(meter: CostEstimator, options: Options) -> Options:
    """Replace `auto` by the step that channels are rounded to: the one that is measured to be cheap, or finer where the target asks for it.

    Raises:
        TargetError: the target cannot be reached with any.
    """
    trace = meter.analysis.trace
    everything = np.ones(trace.n_channels, dtype=bool)
    first = rules_of(trace, options)
    try:
        knapsack.refuse_unreachable(trace, meter, everything, first, meter.goals())
        return options
    except TargetError:
        if options.round_to != AUTO:
            raise
    for step in (first.round_to, *(step for step in channel_multiple.FINER if step < first.round_to)):
        try:
            rules = replace(first, round_to=step, steps={})
            knapsack.refuse_unreachable(trace, meter, everything, rules, meter.goals())
        except TargetError:
            if step == 1:
                raise
        else:
            return replace(options, round_to=step)
    raise AssertionError("unreachable")


def _without(current: _Step, keep: BoolArray) -> Model:
    """Return the model of a step without the channels of the original that are not in `keep`."""
    trace = current.analysis.trace
    return rewrite.delete(current.analysis.model, trace, keep if current.is_whole else keep[current.keep])


class Allocate(Protocol):
    """Says which channels of the original are left under some limits, rounded to a step in place of that of the options."""

    def __call__(self, limits: knapsack.Limits, step: int | None = None) -> BoolArray:
        """See the class; raises TargetError where they cannot be reached."""


def _allocator(
    current: _Step,
    options: Options,
    meter: CostEstimator,
    first: bool,
    on_stage: ProgressCallback,
    workspace: Workspace | None,
) -> tuple[Allocate, tuple[Curve, ...]]:
    """Look at a model as a step has it; return what says which channels of the original are left under some limits, and what was measured."""
    analysis = current.analysis
    model, trace = analysis.model, analysis.trace
    whole = current.is_whole
    costs: knapsack.Costs = meter if whole else Lifted(meter, current.keep)
    before = current.keep if whole else np.ones(trace.n_channels, dtype=bool)
    rules = rules_of(trace, options, options.scope, current.sizes)
    curves: tuple[Curve, ...] = ()
    if options.importance in WITH_DATA or options.scope == "sensitivity":
        assert workspace is not None
        scores, removals = calibrated_scores(analysis, options, before, on_stage, workspace)
    else:
        scores, removals = importance.score(model, trace, options.importance, before, options.seed), []
    if options.threshold is not None and first:
        told = importance.relative(trace, scores, before) if options.importance in WITH_GRADIENTS else scores
        before = knapsack.below(trace, told, before, rules, options.threshold)
    by_loss = options.scope == "sensitivity" and bool(options.reduce or options.limit or options.max_drop is not None)
    if by_loss:
        assert workspace is not None
        macs = analysis.cost.totals(np.ones(trace.n_channels, dtype=bool))[0]
        curves = sensitivity.curves(
            model, trace, removals, workspace.calibration.plain, macs, workspace.store, share_of(on_stage, "measure")
        )
    if workspace is not None:
        for removal in removals:
            removal.drop(workspace.store)

    def allocate(limits: knapsack.Limits, step: int | None = None) -> BoolArray:
        held = rules if step is None else replace(rules, round_to=step, steps={})
        if limits.hold(*costs.totals(before)):
            left = before.copy()
        elif by_loss:
            left = knapsack.allocate_by_loss(trace, costs, curves, before, held, limits)
        else:
            weighed = options.importance in WITH_GRADIENTS and options.scope == "global"
            ranks = per_saving(analysis, scores, limits) if weighed else scores
            left = knapsack.allocate(trace, costs, ranks, before, held, limits)
        return left if whole else lift(left, current.keep)

    return allocate, curves


def _next(
    start: _Step,
    keep: BoolArray,
    analysis: Analysis,
    workspace: Workspace,
    options: Options,
    on_stage: ProgressCallback,
    recovery: Recovery | None,
    step: int,
    reference: Model | None = None,
) -> _Step:
    """Return the model without what has gone so far, repaired, to look at next; where it is trained, from the model before."""
    trace = analysis.trace
    before, left = (analysis, keep) if recovery is None else (start.analysis, keep[start.keep])
    if before is not analysis:
        reference = before.model  # what was trained has fewer channels than the original
    pruned = rewrite.delete(before.model, before.trace, left)
    result, _ = repaired(before, pruned, left, workspace, options, on_stage, reference or before.model)
    if recovery is not None:
        result = recovery.between(result, keep, step)
    again = analysed(result, options, trace.input_shapes)
    if again.trace.n_channels != int(keep.sum()):
        raise TargetError(
            "the progressive schedule cannot follow this model",
            why="after a step its channels are coupled in another way than before",
            hint="use --schedule block",
        )
    return _Step(again, keep, _sizes(analysis))


def _sizes(analysis: Analysis) -> dict[str, int]:
    return {group.name: group.channels.size for group in analysis.trace.groups}


def paced(options: Options, share: float) -> float:
    """Return how far the way to the goals is, when some share of the steps is done."""
    return 1 - (1 - share) ** 3 if options.pace == "cubic" else share


def part_of_the_way(meter: CostEstimator, options: Options, share: float) -> knapsack.Limits:
    """Return bounds between the original and the goals, when some share of the steps is done."""
    whole = meter.totals(np.ones(meter.analysis.trace.n_channels, dtype=bool))
    return meter.goals().part(whole, paced(options, share))


def plans(
    analysis: Analysis,
    options: Options,
    quantity: str,
    shares: Sequence[float],
    take: Callable[[float, Plan | TargetError], None],
    workspace: Workspace | None,
    measure: BenchmarkConfig,
    latency_table: str | os.PathLike[str] | None = None,
    on_stage: ProgressCallback = quiet,
) -> None:
    """Choose what goes for several targets, in one shot each, from one look at the model.

    Args:
        analysis: of the model.
        options: the dials, without targets.
        quantity: what the shares are of.
        shares: to remove.
        take: called with each share, and its plan, or why there is none.
        workspace: calibration data; None without.
        measure: how to measure latency.
        latency_table: file with a table; None: one is measured where it is needed.
        on_stage: called as it goes on.
    """
    refuse_unprunable(analysis)
    options = options.resolved(workspace is not None)
    hardest = replace(options, reduce={quantity: max(shares)})
    meter = CostEstimator(analysis, hardest, measure, table=latency_table, on_stage=on_stage)
    everything = np.ones(analysis.trace.n_channels, dtype=bool)
    current = _Step(analysis, everything, _sizes(analysis))
    with unless_it_does_not_run(analysis.model, analysis.trace.input_shapes):
        allocate, curves = _allocator(current, hardest, meter, True, on_stage, workspace)
    for number, share in enumerate(shares):
        on_stage("plan", number / len(shares))
        goal = meter.aimed_at(replace(options, reduce={quantity: share}))
        try:
            rounded = _rounded(goal, goal.options)
            step = None if rounded.round_to == AUTO else int(rounded.round_to)
            keep = meet(functools.partial(allocate, step=step), functools.partial(_without, current), goal)
        except TargetError as error:
            take(share, error)
            continue
        take(share, Plan(keep, analysis.model.digest, settings(analysis, rounded), (removed(analysis, keep),), curves))

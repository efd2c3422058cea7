"""Choose what goes: channels, edits of layers, or what the two come to together."""

from __future__ import annotations

from dataclasses import replace

from onnxprune.allocation import knapsack
from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.problem import part_of_the_way, settings
from onnxprune.allocation.targets import meet
from onnxprune.calibration.workspace import Workspace
from onnxprune.errors import OptionError, TargetError
from onnxprune.graph.analysis import removed
from onnxprune.graph.model import Model
from onnxprune.options import ResolvedOptions
from onnxprune.pipeline.opening import from_model
from onnxprune.pipeline.run import Run
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.reforming.base import Base, apply, edited
from onnxprune.reforming.contest import contend
from onnxprune.reforming.prices import BlockMeter, cheapest, taken
from onnxprune.reforming.study import Study, study
from onnxprune.types import BoolArray, Plan


def decide(run: Run) -> Run:
    """Choose what goes, of what the options let go, where that is more than channels.

    Raises:
        OptionError: a latency table of another machine.
        TargetError: the targets cannot be met.
    """
    assert run.workspace is not None  # `ResolvedOptions.resolved` has seen to it
    assert run.meter is not None
    if run.meter.is_elsewhere:
        raise OptionError(
            "--latency-table does not go with other granularities than filter",
            why="layers of another form are timed on this machine, the table says what channels take on another one",
            hint="run it on the target machine without --latency-table, or leave out --granularity",
        )
    if "filter" in run.options.granularity:
        found = contend(run, run.meter)
    else:
        base = alone(run.edited, run.options, run.workspace, run.meter, run.on_stage)
        found = replace(from_model(run, base), meter=run.meter.for_model(base.analysis))
        plan = Plan(found.keep, run.original.model.digest, settings(run.original, run.options))
        found = replace(found, plan=plan)
    path = (*found.path[:-1], removed(found.edited.analysis, found.keep, run.original))
    return replace(found, path=path, plan=replace(found.plan, path=path, blocks=found.edited.blocks))


def alone(
    base: Base, options: ResolvedOptions, workspace: Workspace, meter: CostEstimator, on_stage: ProgressCallback = quiet
) -> Base:
    """Choose edits so that they meet the targets without any channel going: at once, or in steps, each chosen by looking at what the
    one before has left.

    Raises:
        TargetError: they cannot.
    """
    rounds = options.rounds
    original = meter
    for number in range(1, rounds + 1):
        found = study(base, options, workspace, meter, on_stage)
        limits = None if number == rounds else part_of_the_way(original, options, number / rounds)
        base = _round(base, found, options, workspace, meter, limits, on_stage)
        meter = original.for_model(base.analysis)
    return base


def _round(
    base: Base,
    found: Study,
    options: ResolvedOptions,
    workspace: Workspace,
    meter: CostEstimator,
    limits: knapsack.Budget | None,
    on_stage: ProgressCallback,
) -> Base:
    """Choose edits that keep some limits as predicted, or without any the goals as measured."""
    gauge = BlockMeter(meter, found.scored)

    def allocate(limits: knapsack.Budget) -> BoolArray:
        chosen = cheapest(gauge, limits)
        reached = gauge.predict(chosen)
        if not knapsack.holds(reached, limits):
            raise TargetError(
                "the target cannot be reached",
                why="; ".join(
                    f"{reached[name]:.4g} is the least, {bound:.4g} was asked"
                    for name, bound in limits.items()
                    if reached[name] > bound
                )
                + f", with {int(chosen.sum())} layers of another form",
                hint="ask for less, or let channels go as well: --granularity auto",
            )
        return chosen

    def build(chosen: BoolArray) -> Model:
        return edited(base, taken(found.scored, chosen), found.bases, options)[0].analysis.model

    chosen = allocate(limits) if limits is not None else meet(allocate, build, gauge)
    return apply(base, taken(found.scored, chosen), found.bases, options, workspace, on_stage)

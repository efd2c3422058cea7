"""Choose what goes: channels, edits of layers, or what the two come to together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from onnxprune.allocation import knapsack
from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.targets import meet
from onnxprune.analysis import Analysis, removed
from onnxprune.data.dataset import DataLike
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import OptionError, TargetError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.graph.model import Model
from onnxprune.options import Options, ResolvedOptions
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.reforming.base import Base, apply, edited
from onnxprune.reforming.contest import Contender, contend
from onnxprune.reforming.prices import BlockMeter, cheapest, taken
from onnxprune.reforming.study import Study, study
from onnxprune.search import Choice, choose, part_of_the_way, settings
from onnxprune.types import BoolArray, Plan
from onnxprune.workspace import Workspace, opened, workspace_for


def decide(
    base: Base,
    options: ResolvedOptions,
    workspace: Workspace | None,
    meter: CostEstimator,
    choose_from: Callable[[Base, CostEstimator], Choice],
    on_stage: ProgressCallback = quiet,
) -> Contender:
    """Choose what goes, of what the options let go.

    Args:
        base: the original.
        options: the dials, resolved.
        workspace: calibration data; None without.
        meter: of the original.
        choose_from: chooses channels from a base so that the targets are met.
        on_stage: called as it goes on.

    Raises:
        TargetError: the targets cannot be met.
    """
    if not options.blocks:
        return Contender(base, choose_from(base, meter), meter)
    assert workspace is not None  # `Options.resolved` has seen to it
    if meter.is_elsewhere:
        raise OptionError(
            "--latency-table does not go with other granularities than filter",
            why="layers of another form are timed on this machine, the table says what channels take on another one",
            hint="run it on the target machine without --latency-table, or leave out --granularity",
        )
    if "filter" in options.granularity:
        found = contend(base, options, workspace, meter, choose_from, on_stage)
    else:
        last = alone(base, options, workspace, meter, on_stage)
        keep = np.ones(last.analysis.trace.n_channels, dtype=bool)
        plan = Plan(keep, base.analysis.model.digest, settings(base.analysis, options))
        found = Contender(last, Choice(plan, last.analysis, keep), meter.for_model(last.analysis))
    plan = found.choice.plan
    path = (*plan.path[:-1], removed(found.base.analysis, plan.keep, base.analysis))
    plan = replace(plan, path=path, blocks=found.base.blocks)
    return replace(found, choice=replace(found.choice, plan=plan))


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


def plan(
    model: str | os.PathLike[str],
    options: Options,
    data: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    on_stage: ProgressCallback = quiet,
    measure: BenchmarkConfig | None = None,
    latency_table: str | os.PathLike[str] | None = None,
) -> tuple[Analysis, Contender]:
    """Load a model and choose what would go; return both."""
    analysis, given, resolved = opened(model, options, data, preprocess, on_stage)
    shapes = None if given is None else given.shapes()
    meter = CostEstimator(
        analysis, resolved, measure or BenchmarkConfig(), shapes=shapes, table=latency_table, on_stage=on_stage
    )
    with contextlib.ExitStack() as scope:
        workspace = None if given is None else scope.enter_context(workspace_for(given, analysis, resolved))

        def choose_from(base: Base, meter: CostEstimator) -> Choice:
            return choose(base.analysis, meter.options, on_stage, workspace, meter=meter, reference=base.reference)

        return analysis, decide(Base(analysis, analysis.model), resolved, workspace, meter, choose_from, on_stage)

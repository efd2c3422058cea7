"""Choose what goes: channels, edits of layers, or what the two come to together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from onnxprune.analysis import Analysis, removed
from onnxprune.comparison import Measure, Stage, quiet
from onnxprune.data import DataLike, Preprocess
from onnxprune.errors import OptionError, TargetError
from onnxprune.model import Model
from onnxprune.options import Options, ResolvedOptions
from onnxprune.pruning import budget
from onnxprune.reforming.base import Base, apply, edited
from onnxprune.reforming.contest import Contender, contend
from onnxprune.reforming.prices import BlockMeter, cheapest, taken
from onnxprune.reforming.study import Study, study
from onnxprune.search import Choice, choose, part_of_the_way, settings
from onnxprune.targets import Meter, meet
from onnxprune.types import BoolArray, Plan
from onnxprune.workspace import Workspace, opened, workspace_for


def decide(
    base: Base,
    options: ResolvedOptions,
    workspace: Workspace | None,
    meter: Meter,
    choose_from: Callable[[Base, Meter], Choice],
    on_stage: Stage = quiet,
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
        found = Contender(last, Choice(plan, last.analysis, keep), meter.on(last.analysis))
    plan = found.choice.plan
    path = (*plan.path[:-1], removed(found.base.analysis, plan.keep, base.analysis))
    plan = replace(plan, path=path, blocks=found.base.blocks)
    return replace(found, choice=replace(found.choice, plan=plan))


def alone(base: Base, options: ResolvedOptions, workspace: Workspace, meter: Meter, on_stage: Stage = quiet) -> Base:
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
        meter = original.on(base.analysis)
    return base


def _round(
    base: Base,
    found: Study,
    options: ResolvedOptions,
    workspace: Workspace,
    meter: Meter,
    limits: budget.Limits | None,
    on_stage: Stage,
) -> Base:
    """Choose edits that keep some limits as predicted, or without any the goals as measured."""
    gauge = BlockMeter(meter, found.scored)

    def allocate(limits: budget.Limits) -> BoolArray:
        chosen = cheapest(gauge, limits)
        reached = gauge.totals(chosen)
        if not limits.hold(*reached):
            raise TargetError(
                "the target cannot be reached",
                why="; ".join(
                    f"{value:.4g} is the least, {bound:.4g} was asked"
                    for value, bound in limits.pairs(reached)
                    if value > bound
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
    on_stage: Stage = quiet,
    measure: Measure | None = None,
    latency_table: str | os.PathLike[str] | None = None,
) -> tuple[Analysis, Contender]:
    """Load a model and choose what would go; return both."""
    analysis, given, resolved = opened(model, options, data, preprocess, on_stage)
    shapes = None if given is None else given.shapes()
    meter = Meter(analysis, resolved, measure or Measure(), shapes=shapes, table=latency_table, on_stage=on_stage)
    with contextlib.ExitStack() as scope:
        workspace = None if given is None else scope.enter_context(workspace_for(given, analysis, resolved))

        def choose_from(base: Base, meter: Meter) -> Choice:
            return choose(base.analysis, meter.options, on_stage, workspace, meter=meter, reference=base.reference)

        return analysis, decide(Base(analysis, analysis.model), resolved, workspace, meter, choose_from, on_stage)

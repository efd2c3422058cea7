"""Choose channels, edits, or both."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.edit_choice import EditMeter, least_loss, taken
from onnxprune.allocation.edit_study import study
from onnxprune.allocation.targets import meet
from onnxprune.analysis import Analysis, removed
from onnxprune.data.dataset import DataLike
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import OptionError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.graph.model import Model
from onnxprune.options import Options, ResolvedOptions
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.reforming.base import EditedModel, apply, edited
from onnxprune.reforming.contest import Solution, best_solution
from onnxprune.search import Choice, choose, part_of_the_way, settings
from onnxprune.types import BoolArray, Plan
from onnxprune.workspace import Workspace, opened, workspace_for


def decide(
    base: EditedModel,
    options: ResolvedOptions,
    workspace: Workspace | None,
    meter: CostEstimator,
    choose_from: Callable[[EditedModel, CostEstimator], Choice],
    on_stage: ProgressCallback = quiet,
) -> Solution:
    """Choose channels and edits, as the granularities allow.

    Args:
        base: the original.
        options: the dials, resolved.
        workspace: calibration data; None without.
        meter: of the original.
        choose_from: chooses channels so that the targets are met.
        on_stage: called as it goes on.

    Raises:
        TargetError: the targets cannot be met.
    """
    if not options.blocks:
        return Solution(base, choose_from(base, meter), meter)
    assert workspace is not None  # `Options.resolved` has seen to it
    if meter.is_elsewhere:
        raise OptionError(
            "--latency-table does not go with other granularities than filter",
            why="edits are timed on this machine, the table holds the times of channels on another one",
            hint="run it on the target machine without --latency-table, or leave out --granularity",
        )
    if "filter" in options.granularity:
        found = best_solution(base, options, workspace, meter, choose_from, on_stage)
    else:
        last = edits_alone(base, options, workspace, meter, on_stage)
        keep = np.ones(last.analysis.trace.n_channels, dtype=bool)
        plan = Plan(keep, base.analysis.model.digest, settings(base.analysis, options))
        found = Solution(last, Choice(plan, last.analysis, keep), meter.for_model(last.analysis))
    plan = found.choice.plan
    path = (*plan.path[:-1], removed(found.base.analysis, plan.keep, base.analysis))
    plan = replace(plan, path=path, blocks=found.base.blocks)
    return replace(found, choice=replace(found.choice, plan=plan))


def edits_alone(
    base: EditedModel,
    options: ResolvedOptions,
    workspace: Workspace,
    meter: CostEstimator,
    on_stage: ProgressCallback = quiet,
) -> EditedModel:
    """Choose edits that meet the targets, while all channels stay; with the progressive schedule in rounds, each scored on what the last one left.

    Raises:
        TargetError: the targets cannot be met.
    """
    original = meter
    for number in range(1, options.rounds + 1):
        found = study(base.analysis, options, workspace, meter.how, on_stage)
        costs = EditMeter(meter, found.scored)

        def build(chosen: BoolArray, base: EditedModel = base, costs: EditMeter = costs) -> Model:
            return edited(base, taken(costs.scored, chosen), options)[0].analysis.model

        if number == options.rounds:
            chosen = meet(partial(least_loss, costs), build, costs)
        else:
            chosen = least_loss(costs, part_of_the_way(original, options, number / options.rounds))
        base = apply(base, taken(found.scored, chosen), options, workspace, on_stage)
        meter = original.for_model(base.analysis)
    return base


def plan(
    model: str | os.PathLike[str],
    options: Options,
    data: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    on_stage: ProgressCallback = quiet,
    measure: BenchmarkConfig | None = None,
    latency_table: str | os.PathLike[str] | None = None,
) -> tuple[Analysis, Solution]:
    """Load a model and choose what would go; return both."""
    analysis, given, resolved = opened(model, options, data, preprocess, on_stage)
    shapes = None if given is None else given.shapes()
    meter = CostEstimator(
        analysis, resolved, measure or BenchmarkConfig(), shapes=shapes, table=latency_table, on_stage=on_stage
    )
    with contextlib.ExitStack() as scope:
        workspace = None if given is None else scope.enter_context(workspace_for(given, analysis, resolved))

        def choose_from(base: EditedModel, meter: CostEstimator) -> Choice:
            return choose(base.analysis, meter.options, on_stage, workspace, meter=meter, reference=base.reference)

        return analysis, decide(
            EditedModel(analysis, analysis.model), resolved, workspace, meter, choose_from, on_stage
        )

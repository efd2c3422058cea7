"""Select edits, alone or together with channels."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from onnxprune.allocation.edit_choice import EditEstimator, least_loss
from onnxprune.allocation.edit_study import study
from onnxprune.allocation.problem import part_of_the_way, settings
from onnxprune.allocation.targets import meet
from onnxprune.errors import OptionError
from onnxprune.graph.analysis import removed
from onnxprune.graph.model import Model
from onnxprune.pipeline.contest import best_solution
from onnxprune.pipeline.edited_model import EditedModel, apply, edited
from onnxprune.pipeline.opening import from_model
from onnxprune.pipeline.run import Run
from onnxprune.types import BoolArray, Plan


def select_edits(run: Run) -> Run:
    """Select edits, and channels where `filter` is among the granularities.

    Raises:
        OptionError: the latency table may be of another machine.
        TargetError: the targets cannot be met.
    """
    assert run.estimator is not None
    if run.sources.latency_table is not None:
        raise OptionError(
            "--latency-table does not go with other granularities than filter",
            why="edits are timed on this machine, the table holds the times of channels on another one",
            hint="run it on the target machine without --latency-table, or leave out --granularity",
        )
    found = best_solution(run) if "filter" in run.options.granularity else edits_alone(run)
    path = (*found.path[:-1], removed(found.edited.analysis, found.keep, run.original))
    return replace(found, path=path, plan=replace(found.plan, path=path, blocks=found.edited.edit_dicts))


def edits_alone(run: Run) -> Run:
    """Select edits that meet the targets, while all channels stay.

    With the progressive schedule each round is scored on the result of the last.

    Raises:
        TargetError: the targets cannot be met.
    """
    options, workspace, original = run.options, run.workspace, run.estimator
    assert workspace is not None  # `Options.resolved` refuses edits without data
    assert original is not None
    base, estimator = run.edited, original
    for number in range(1, options.rounds + 1):
        scored, _ = study(base.analysis, options, workspace, estimator.config, estimator.timings, run.on_stage)
        costs = EditEstimator(estimator, scored)

        def build(chosen: BoolArray, base: EditedModel = base, costs: EditEstimator = costs) -> Model:
            return edited(base, costs.taken(chosen), options)[0].analysis.model

        if number == options.rounds:
            chosen = meet(partial(least_loss, costs), build, costs)
        else:
            chosen = least_loss(costs, part_of_the_way(original, options, number / options.rounds))
        base = apply(base, costs.taken(chosen), options, workspace, run.on_stage)
        estimator = original.for_model(base.analysis)
    run = replace(from_model(run, base), estimator=estimator)
    return replace(run, plan=Plan(run.keep, run.original.model.digest, settings(run.original, options)))

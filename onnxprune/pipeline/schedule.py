"""Select channels, in one step or by a schedule whose steps score, allocate, rewrite, repair and trace again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.problem import (
    finer_groups,
    part_of_the_way,
    refuse_unprunable,
    score,
    settings,
    with_multiple,
)
from onnxprune.allocation.targets import meet, within
from onnxprune.calibration.workspace import Workspace
from onnxprune.errors import OptionError
from onnxprune.evaluation.benchmark import BenchmarkConfig, median_times, timing_key
from onnxprune.evaluation.compare import Predicted, fidelity, predict, predict_task, runner
from onnxprune.graph.analysis import Analysis, removed
from onnxprune.graph.comparison_points import measured_tensors
from onnxprune.graph.model import Model
from onnxprune.metrics.outputs import OutputPair, lost
from onnxprune.metrics.tasks import amounts
from onnxprune.options import Options
from onnxprune.pipeline.distillation import TRAIN
from onnxprune.pipeline.edited_model import EditedModel
from onnxprune.pipeline.opening import from_model
from onnxprune.pipeline.rewriting import DELETE, RECONSTRUCT, RESCORE, RESTART, REWRITE
from onnxprune.pipeline.run import Run, Sources, Stage, execute
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.runtime.session import random_feeds
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.cuts import Pair, Subject
from onnxprune.types import BoolArray, Plan


def select_channels(run: Run) -> Run:
    """Select channels of `Run.edited` by the schedule of the options, so that the targets of `Run.estimator` are met.

    Each step has its part of the way from the original to the targets, so that the shares of steps do not compound.

    Raises:
        ModelError: nothing can be pruned.
        OptionError: no target, or a method that needs data.
        TargetError: the target cannot be reached.
    """
    analysis = run.edited.analysis
    refuse_unprunable(analysis)
    if not run.options.has_target:
        raise OptionError("no target is given", hint="give --reduce flops=50%, a --limit, or a --threshold")
    assert run.estimator is not None
    start = replace(run, options=with_multiple(run.estimator, run.options))
    run = _all_steps(start)
    finer = finer_groups(analysis.trace, run.keep, run.options)
    if finer:
        more = f" and {len(finer) - NAMED_GROUPS} more" if len(finer) > NAMED_GROUPS else ""
        told = f"finer channel multiples in {', '.join(finer[:NAMED_GROUPS])}{more}"
        if _is_slower(run):
            assert run.estimator is not None
            estimator = run.estimator.without_finer_multiples()
            run = _all_steps(replace(start, estimator=estimator, tuned=run.tuned, attempt=2))
            run = run.noted(f"{told} would be slower than the original: the usual ones go beyond the target instead")
        else:
            run = run.noted(f"{told}: the usual ones go more than 3 points beyond the target")
    plan = Plan(run.keep, run.original.model.digest, settings(analysis, run.options), run.path, run.curves)
    return replace(run, plan=plan)


def _all_steps(run: Run) -> Run:
    """Take all steps of the schedule."""
    for step in range(1, run.options.rounds + 1):
        run = once(replace(run, step=step))
    return run


def _is_slower(run: Run) -> bool:
    """Tell whether the selection is slower than the original, where a file is written that must not be."""
    if run.destinations.model is None or not run.measure.latency:
        return False
    assert run.estimator is not None
    original, config = run.estimator.original, run.measure
    model = rewrite.delete(run.edited.analysis.model, run.edited.analysis.trace, run.keep)

    def medians() -> list[float]:
        feeds = random_feeds(run.original.model.header, original.shapes, 0)
        return median_times((original.session, model.session(config.session)), feeds, config, 1 / 4)

    key = timing_key("finer multiples", [original.analysis.model, model], original.shapes, config)
    before, after = run.timings.of(key, 2, medians)
    return before < FASTER * after


BLIND = (
    "the loss of the output could not be measured: it is the same whatever is removed (saturated outputs?); "
    "channels were ranked by their scores instead"
)
FASTER = 1.02
"""Speed-up below which finer channel multiples are no gain: they may cost onnxruntime its blocked layout."""
NAMED_GROUPS = 4
"""Number of groups that a note names."""


def once(run: Run) -> Run:
    """Take one step of the schedule.

    With data, the result of the step is repaired, and the next step is scored on it. The last step deletes channels of
    the original weights, or where the run trains between steps, of the trained ones.
    """
    run = ALLOCATE(run)
    if run.step == run.options.rounds or run.workspace is None:
        return run
    if run.training is None:
        return execute(run, (DELETE, RECONSTRUCT, RESCORE))
    return execute(run, (REWRITE, RECONSTRUCT, TRAIN, RESTART))


def allocate(run: Run) -> Run:
    """Score the channels that are left, and select those that stay after this step."""
    options, estimator, share = run.options, run.estimator, run.step / run.options.rounds
    assert estimator is not None
    run.on_stage("score", share)
    data, scored = run.workspace, run.scored
    problem = score(
        estimator, options, data, run.keep, scored.model.analysis, scored.held, first=run.step == 1, known=run.known
    )
    if problem.is_blind:
        run, problem = run.noted(BLIND), problem.by_score()
    if share < 1:
        keep = problem.allocate(part_of_the_way(estimator, options, share))
    elif options.max_drop is None:
        keep = meet(problem.allocate, problem.build, estimator)
    elif run.workspace is not None and run.evaluation is not None:
        keep = within(problem.allocate, _measured_drop(run), estimator, options.max_drop)
    else:
        raise OptionError("--max-drop needs data to measure it on", hint="give --data, or `--data generated`")
    path = (*run.path, removed(run.edited.analysis, keep))
    return replace(run, keep=keep, path=path, curves=run.curves or problem.curves)


ALLOCATE = Stage(allocate, requires=("original", "edited", "scored", "keep", "estimator"))


def _measured_drop(run: Run) -> Callable[[BoolArray], float]:
    """Return a function of a selection: its loss after repair, in the unit of the task's metric, without labels in points of agreement, explained variance or cosine."""
    edited, workspace, data = run.edited, run.workspace, run.evaluation
    assert workspace is not None
    assert data is not None

    original, config, task = run.original.model, replace(run.measure.session, threads=0), run.task
    found, signature = measured_tensors(original.graph), original.signature
    one, names = found.is_one or not found.points, found.names
    size = signature.per_evaluation(run.evaluating.eval_batch)
    lead = None if task is None else task.lead

    def plain(model: Model) -> Predicted:
        if lead is not None and task is not None and task.is_of_outputs:
            return predict_task(runner(model.session(config), str(model.path)), data, size, signature, task)
        run_names = runner(model.session(config, outputs=names), str(model.path), names)
        return predict_task(run_names, data, size, signature, task, names=names)

    reference = plain(original)

    def predicted(model: Model) -> Predicted:
        if not found.points or (task is not None and task.is_of_outputs and lead is not None):
            return plain(model)
        first, second = (Subject(each, str(each.path)) for each in (original, model))
        both = predict(Pair(first, second, names, found.points, config), data, size, signature, names=names * 2)
        outputs = both[len(names) :]
        return Predicted(outputs, task.decode(outputs) if task is not None and task.decode is not None else None)

    def amount(of: Predicted) -> float:
        assert lead is not None
        assert task is not None
        assert data.labels is not None
        found = amounts(task.statistics(of.outputs, of.decoded, data.labels), len(data)).get(lead.name)
        if found is None:
            raise OptionError(
                "--max-drop needs a metric that is defined on the samples",
                why=f"{lead.label} is not: do the labels hold anything?",
                hint="check the labels, or give --reduce or --limit",
            )
        return found

    before = amount(reference) if lead is not None else 0.0

    def drop(keep: BoolArray) -> float:
        pruned = rewrite.delete(edited.analysis.model, edited.analysis.trace, keep)
        result = edited.repaired(pruned, keep, workspace, run.options, run.on_stage).model
        run.on_stage("evaluate", None)
        after = predicted(result)
        if lead is not None:
            gone = (amount(after) - before) * (1 if lead.direction == "lower" else -1)
            labels = data.class_labels if task is not None and task.name == "classify" else None
            beside = None if labels is None else OutputPair(after.outputs, reference.outputs, labels, one).explained()
            return max(gone, 0.0 if beside is None else 100 - beside)
        kept = lost(fidelity(reference, after, task, classes=one), "" if task is None else task.name)
        if kept is None:
            raise OptionError(
                "--max-drop needs outputs that can be compared",
                why="no output of numbers has the same shape for every sample",
                hint="give --reduce or --limit",
            )
        return kept

    return drop


def make_plan(
    analysis: Analysis,
    options: Options,
    on_stage: ProgressCallback = quiet,
    workspace: Workspace | None = None,
    estimator: CostEstimator | None = None,
) -> Plan:
    """Select channels of a traced model, without edits; see `select_channels`."""
    resolved = options.resolved(workspace is not None)
    estimator = estimator or CostEstimator(analysis, resolved, BenchmarkConfig(), on_stage=on_stage)
    run = Run(
        Sources(analysis.model.path),
        options=resolved,
        on_stage=on_stage,
        original=analysis,
        shapes=analysis.trace.input_shapes,
        workspace=workspace,
        estimator=estimator,
    )
    return select_channels(from_model(run, EditedModel(analysis, analysis.model))).plan

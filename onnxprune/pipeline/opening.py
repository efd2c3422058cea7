"""Stages that open a run: load and trace the model, load its data, prepare calibration."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from onnxprune import plan_file
from onnxprune.calibration.batches import AUTOMATIC, hold_out, is_enlarged_data
from onnxprune.calibration.workspace import opened, workspace_for
from onnxprune.data import sanity as data_sanity
from onnxprune.data.dataset import Data, hint_of, load_data
from onnxprune.data.sanity import Look, look
from onnxprune.data.synthetic import NAME as GENERATED_NAME
from onnxprune.errors import DataError, DataWarning, ModelError, OptionError
from onnxprune.evaluation import sanity, structure
from onnxprune.evaluation.compare import Found, runner, task_of
from onnxprune.evaluation.gate import ORIGINAL
from onnxprune.evaluation.label_sanity import label_doubts
from onnxprune.graph import io
from onnxprune.graph.analysis import analyse
from onnxprune.graph.comparison_points import measured_tensors
from onnxprune.graph.model import Model, inputs_of
from onnxprune.metrics.distances import OF_TASK
from onnxprune.metrics.outputs import all_finite
from onnxprune.metrics.tasks import find_task, prepared
from onnxprune.options import ResolvedTraining, Training
from onnxprune.options.metadata import AUTO
from onnxprune.pipeline.edited_model import EditedModel
from onnxprune.pipeline.rejection import refuse_foreign
from onnxprune.pipeline.run import PartialModel, Run, Stage
from onnxprune.progress import share_of
from onnxprune.runtime.memory_limit import PRUNED
from onnxprune.runtime.session import SessionConfig, open_session
from onnxprune.surgery.random_models import check_repeatable
from onnxprune.torch_backend import require_torch
from onnxprune.types import Check, doubt

WARN_BELOW = 0.5
"""Prunable share of the FLOPs below which a run warns."""


def load(run: Run) -> Run:
    """Load and trace the model, load the data, resolve the options."""
    sources = run.sources
    run.destinations.check(sources)
    refuse_foreign(run.destinations)
    structure = {} if sources.plan is None else plan_file.structure(sources.plan)  # channels are those of the plan
    judging = sources.judging
    labels = judging.labels if sources.evaluation is None else None  # of the samples that quality is measured on
    original, data, options = opened(
        sources.model,
        run.asked,
        sources.data,
        sources.preprocess,
        run.on_stage,
        structure,
        labels=labels,
        task=judging.task,
    )
    run.destinations.check(sources, *original.model.files)
    check_repeatable(original.model, original.trace.input_shapes)
    evaluation = data
    if sources.evaluation is not None:
        specs = inputs_of(original.model)
        evaluation = load_data(sources.evaluation, specs, sources.preprocess, judging.labels, judging.task)
    if run.training is not None:
        if sources.data is None:
            raise OptionError(
                "training needs inputs of the model",
                hint="give --data; `--data generated` generates inputs",
            )
        require_torch("training")
        _refuse_foreign_states(run)
    run = replace(
        run,
        options=options,
        original=original,
        data=data,
        evaluation=evaluation,
        shapes=original.trace.input_shapes if evaluation is None else evaluation.shapes(),
        notes=original.notes,
    )
    share = original.cost.prunable_share()
    if share < WARN_BELOW:
        run = run.noted(f"only {share:.0%} of the FLOPs are prunable; `onnxprune inspect` says why")
    return from_model(run, EditedModel(original, original.model))


def from_model(run: Run, edited: EditedModel) -> Run:
    """Return the run with all channels of a model, before any is selected."""
    keep = np.ones(edited.analysis.trace.n_channels, dtype=bool)
    start = PartialModel(edited, keep)
    return replace(
        run, edited=edited, start=start, scored=start, keep=keep, proof=edited.proof, step=1, path=(), curves=()
    )


def load_pair(run: Run) -> Run:
    """Load and trace a model and its teacher, and load the samples to train on."""
    sources, teacher_path = run.sources, run.sources.teacher
    assert teacher_path is not None
    assert sources.data is not None
    run.destinations.check(sources)
    refuse_foreign(run.destinations)
    run.on_stage("load", None)
    hint = hint_of(sources.data, sources.preprocess)
    student, teacher = (io.load(path, run.asked.shape, hint, factor=PRUNED) for path in (sources.model, teacher_path))
    run.destinations.check(sources, *student.files, *teacher.files)
    _refuse_unlike(student, teacher)
    if sources.plan is not None:
        plan_file.refuse_other(sources.plan, teacher.digest, student.path, student.metadata(plan_file.ENTRY))
    inputs = inputs_of(teacher)
    judging, evaluation = sources.judging, None
    if sources.evaluation is not None:
        evaluation = load_data(sources.evaluation, inputs, sources.preprocess, judging.labels, judging.task)
    labels = judging.labels if evaluation is None else None
    data = load_data(sources.data, inputs, sources.preprocess, labels, judging.task)
    evaluation = evaluation or data
    if not len(data):
        raise DataError("there are no samples to train on", where=data.name, hint="give some")
    original, shapes = analyse(teacher, known=data.shapes()), data.shapes()
    for model in (student, teacher):
        check_repeatable(model, shapes)
    assert run.training is not None
    _refuse_foreign_states(run)
    run = replace(
        run,
        training=with_augmentation(run.training, data),
        options=run.asked.resolved(True),
        original=original,
        data=data,
        evaluation=evaluation,
        shapes=shapes,
        model=student,
    )
    return from_model(run, EditedModel(analyse(student, known=shapes), teacher))


def _refuse_foreign_states(run: Run) -> None:
    """Refuse a path of the checkpoint where another file lies: it would be overwritten, step by step of the schedule."""
    from onnxprune.training import checkpoint  # only here: torch is an extra, and takes seconds to load

    path, rounds = run.destinations.checkpoint, run.asked.rounds
    if path is not None:
        for step in range(1, rounds + 1):
            checkpoint.refuse_foreign(checkpoint.file_of(path, step, rounds))


def _refuse_unlike(student: Model, teacher: Model) -> None:
    failed = [check for check in structure.check_structure(student, teacher, strict=False) if not check]
    if failed:
        raise ModelError(
            "the model does not have the inputs and outputs of its teacher",
            where=str(student.path),
            why="; ".join(check.detail for check in failed),
            hint="give the model that it was pruned from with --teacher",
        )


def with_augmentation(training: Training, data: Data) -> ResolvedTraining:
    """Return the training settings with `augment="auto"` resolved; generated samples are not augmented."""
    kinds: tuple[str, ...] = ()
    if training.augment == AUTO and data.name != GENERATED_NAME:
        kinds = (*AUTOMATIC, "detail") if is_enlarged_data(data) else AUTOMATIC
    return training.resolved(kinds)


def calibration(scope: contextlib.ExitStack) -> Stage:
    """Return the stage that prepares calibration, without the samples that training holds out; `scope` closes it."""

    def calibrate(run: Run) -> Run:
        data, training = run.data, run.training
        if data is None:
            return run
        if training is not None:
            data = data.take(hold_out(len(data), training.hold_out, data.fixed or 1, run.options.seed)[0])
        return replace(
            run,
            workspace=scope.enter_context(workspace_for(data, run.original, run.options, run.distance, run.results)),
        )

    return Stage(calibrate, requires=("original",))


def look_at_data(run: Run) -> Run:
    """Read all samples before anything is computed; warn where figures on them would say little.

    Raises:
        DataError: a sample cannot be used.
    """
    known, judging = run.data, run.evaluation
    found: list[Check] = list(_already_pruned(run))
    earlier: Look | None = None
    for data in _distinct(known, judging):
        looked = look(data, share_of(run.on_stage, "look"))
        found += data_sanity.doubts(data, looked, earlier)
        earlier = looked
    warned, task = found, None
    if judging is not None and not judging.is_generated:
        stored = io.read(run.original.model.path)
        found += sanity.normalization(stored.proto, judging, stored.weights)
        seen = _outputs_first(run, judging)
        task = seen.task
        is_selected = bool(measured_tensors(run.original.model.graph).points)
        warned = found if is_selected else [*found, *_doubtful_outputs(seen)]
    elif run.sources.judging.task is not None or run.sources.judging.metric is not None:
        task = find_task(run.sources.judging, None, [])
    told = [f"{each.name}: {each.value}; {each.detail}" for each in warned]
    without_effect = list(_without_effect(run))
    for text in (*told, *without_effect):
        warnings.warn(DataWarning(text), stacklevel=2)
    distance = AUTO if task is None else OF_TASK.get(task.name, AUTO)
    return replace(run, doubts=tuple(found), task=task, distance=distance).noted(*without_effect)


def _already_pruned(run: Run) -> Iterator[Check]:
    """Say that the original is a result itself."""
    if run.sources.teacher is None and any(entry.key == ORIGINAL for entry in run.original.model.header.metadata_props):
        why = "figures are against this file, not against the model that it was pruned from"
        yield doubt("original", "pruned already", f"{why}: start from that one, or `finetune` with it as --teacher")


def _without_effect(run: Run) -> Iterator[str]:
    """Say which options have no effect."""
    asked, cost = run.asked, run.original.cost
    if run.sources.plan is not None:
        given = [f"--{n.replace('_', '-')}" for n in ("reduce", "limit", "max_drop", "threshold") if getattr(asked, n)]
        if given:
            yield f"{', '.join(given)}: no effect, the plan decides which channels stay; leave out --plan, or these options"
    macs, params = cost.totals(np.ones(run.original.trace.n_channels, dtype=bool))
    amounts = {"flops": 2 * macs, "macs": macs, "params": params, "size": run.original.model.size}
    for name, limit in asked.limit.items():
        if name in amounts and amounts[name] <= limit:
            yield f"--limit {name}={limit:.6g}: the original holds it already, with {amounts[name]:.6g}; give a smaller one, or --reduce"


def _distinct(*parts: Data | None) -> list[Data]:
    """Return the data of a user, each once."""
    given = [part for part in parts if part is not None and not part.is_generated]
    return [part for n, part in enumerate(given) if not any(part is earlier for earlier in given[:n])]


def _outputs_first(run: Run, data: Data) -> Found:
    """Run the original on some samples, and find its task."""
    model, session = (
        run.original.model,
        SessionConfig(threads=run.measure.threads),
    )  # figures are measured later, on the provider
    names = measured_tensors(model.graph).names
    where = str(model.path)
    plain = runner(open_session(where, session, where=where), "the original")
    in_front = None
    if measured_tensors(model.graph).points:
        in_front = runner(model.session(session, outputs=names), "the original", names)
    size = model.signature.per_evaluation(run.evaluating.eval_batch)
    return task_of(run.sources.judging, data, (plain, in_front), names, model.signature, size)


def _doubtful_outputs(seen: Found) -> Iterator[Check]:
    """Say why the outputs of the original on some of the samples say nothing; the verdict says it of all samples."""
    if all_finite(seen.outputs):
        labels = seen.some.class_labels if seen.task is not None and seen.task.name == "classify" else None
        yield from sanity.doubts(seen.outputs, labels, classes=seen.task is None or seen.task.has_classes)
        task, truth = seen.task, seen.some.labels
        if task is not None and task.measures and task.decode is not None and task.is_of_outputs and truth is not None:
            yield from label_doubts(task.name, task.decode(seen.outputs), prepared(task.name, truth), seen.outputs)


LOAD = Stage(load)
LOOK_AT_DATA = Stage(look_at_data, requires=("original",))
LOAD_PAIR = Stage(load_pair)

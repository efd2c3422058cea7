"""Stages that open a run: load and trace the model, load its data, prepare calibration."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import replace

import numpy as np

from onnxprune import plan_file
from onnxprune.calibration.batches import AUTOMATIC, hold_out, is_enlarged_data
from onnxprune.calibration.workspace import opened, workspace_for
from onnxprune.data.dataset import Data, inputs_of, load_data
from onnxprune.data.synthetic import NAME as GENERATED_NAME
from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.evaluation import structure
from onnxprune.graph import io
from onnxprune.graph.analysis import analyse
from onnxprune.graph.model import Model
from onnxprune.options import ResolvedTraining, Training
from onnxprune.options.metadata import AUTO
from onnxprune.pipeline.edited_model import EditedModel
from onnxprune.pipeline.run import PartialModel, Run, Stage
from onnxprune.torch_backend import require_torch

WARN_BELOW = 0.5
"""Prunable share of the FLOPs below which a run warns."""


def load(run: Run) -> Run:
    """Load and trace the model, load the data, resolve the options."""
    sources = run.sources
    run.destinations.check(*sources.paths)
    structure = {} if sources.plan is None else plan_file.structure(sources.plan)  # channels are those of the plan
    original, data, options = opened(
        sources.model, run.asked, sources.data, sources.preprocess, run.on_stage, structure
    )
    run.destinations.check(*sources.paths, *original.model.files)  # external data as well
    evaluation = data
    if sources.evaluation is not None:
        evaluation = load_data(sources.evaluation, inputs_of(original.model.header), sources.preprocess)
    if run.training is not None:
        if sources.data is None:
            raise OptionError(
                "training needs inputs of the model",
                hint="give --data; `--data generated` makes some up where there are none",
            )
        require_torch("training")
    share = original.cost.prunable_share()
    few = f"only {share:.0%} of the FLOPs can move; `onnxprune inspect` says why"
    run = replace(
        run,
        options=options,
        original=original,
        data=data,
        evaluation=evaluation,
        shapes=original.trace.input_shapes if evaluation is None else evaluation.shapes(),
        notes=(*original.model.notes, *((few,) if share < WARN_BELOW else ())),
    )
    return from_model(run, EditedModel(original, original.model))


def from_model(run: Run, edited: EditedModel) -> Run:
    """Return the run at its beginning: all channels of a model are there."""
    keep = np.ones(edited.analysis.trace.n_channels, dtype=bool)
    start = PartialModel(edited, keep)
    return replace(
        run,
        edited=edited,
        start=start,
        scored=start,
        keep=keep,
        facts=edited.analysis.trace,
        proof=edited.proof,
        step=1,
        path=(),
        curves=(),
    )


def load_pair(run: Run) -> Run:
    """Load and trace a model and its teacher, and the samples to train on."""
    sources, teacher_path = run.sources, run.sources.teacher
    assert teacher_path is not None
    assert sources.data is not None
    run.destinations.check(*sources.paths)
    run.on_stage("load", None)
    student, teacher = io.load(sources.model), io.load(teacher_path)
    run.destinations.check(*sources.paths, *student.files, *teacher.files)
    _refuse_unlike(student, teacher)
    read = functools.partial(load_data, inputs=inputs_of(teacher.header), preprocess=sources.preprocess)
    data = read(sources.data)
    evaluation = data if sources.evaluation is None else read(sources.evaluation)
    if not len(data):
        raise DataError("there are no samples to train on", where=data.name, hint="give some")
    original, shapes = analyse(teacher, known=data.shapes()), data.shapes()
    assert run.training is not None
    run = replace(
        run,
        training=with_augmentation(run.training, data),
        options=run.asked.resolved(True),
        original=original,
        data=data,
        evaluation=evaluation,
        shapes=shapes,
        model=student,
        strict=structure.full_check(teacher) is None,
    )
    edited = EditedModel(analyse(student, known=shapes), teacher)
    return replace(from_model(run, edited), facts=original.trace)


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
    """Return how to train with its augmentation resolved."""
    kinds: tuple[str, ...] = ()
    if training.augment == AUTO and data.name != GENERATED_NAME:
        kinds = (*AUTOMATIC, "detail") if is_enlarged_data(data) else AUTOMATIC
    return training.resolved(kinds)


def calibrate(run: Run, scope: contextlib.ExitStack) -> Run:
    """Prepare calibration on the data, without samples that training holds out; `scope` closes it."""
    if run.data is None:
        return run
    seen = run.data if run.training is None else _trained_on(run.data, run.training, run.options.seed)
    return replace(run, workspace=scope.enter_context(workspace_for(seen, run.original, run.options)))


def _trained_on(data: Data, training: Training, seed: int) -> Data:
    shape = data.inputs[0].shape
    multiple = (shape[0] if shape else None) or 1
    return data.take(hold_out(len(data), training.hold_out, multiple, seed)[0])


LOAD = Stage(load)
LOAD_PAIR = Stage(load_pair)


def calibration(scope: contextlib.ExitStack) -> Stage:
    """Return the stage that prepares calibration, until `scope` closes."""

    def prepare(run: Run) -> Run:
        return calibrate(run, scope)

    return Stage(prepare, requires=("original",))

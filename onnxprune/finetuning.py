"""`finetune`: train any pruned model towards the one it came from, by itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import output as outputs
from onnxprune import plan_file
from onnxprune.analysis import Analysis, analyse, layers_of, pinned_of, versions
from onnxprune.data.dataset import Data, DataLike, inputs_of, load_data
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError, ModelError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.evaluation.compare import compare
from onnxprune.evaluation.structure import check_structure, full_check
from onnxprune.graph import io
from onnxprune.graph import model as models
from onnxprune.graph.model import Model
from onnxprune.options import Options, Training
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.recovery import augmented, boundaries, without_gated
from onnxprune.report import grouping, saving
from onnxprune.report.details import details
from onnxprune.report.document import Report, figures
from onnxprune.runtime.session import open_session
from onnxprune.torch_backend import require_torch
from onnxprune.types import Check, IntArray, Verdict


def finetune(
    model: str | os.PathLike[str],
    teacher: str | os.PathLike[str],
    *,
    data: DataLike,
    output: str | os.PathLike[str] | None = None,
    evaluation: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    plan: str | os.PathLike[str] | None = None,
    training: Training | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    memory: float = Options.memory,
    measure: BenchmarkConfig | None = None,
    on_stage: ProgressCallback = quiet,
    report_output: str | os.PathLike[str] | None = None,
    command: str | None = None,
) -> tuple[Model, Report]:
    """Train a model towards the outputs of another one, verify it, and write it when `output` is given.

    Args:
        model: path of the model to train; it is not changed.
        teacher: path of the model that it should do as.
        data: samples to train on; labels are used where there are some.
        output: where to write the result.
        evaluation: data to verify on; `data` when None.
        preprocess: a `Preprocess`, a preset, or a TOML file.
        plan: the plan.json that the model was pruned by: says which of the teacher's channels it still has, for `Training.features`.
        training: how.
        checkpoint: file that the state is kept in, so that the same call goes on after an interrupt.
        seed: for everything random.
        memory: bytes for preprocessed samples.
        measure: how to measure.
        on_stage: called as the run goes on.
        report_output: where to write the report: .html, .md or .json.
        command: what it says it was made by; this call when None.

    Returns:
        The trained model, and the report: "before" in it is the teacher.

    Raises:
        OnnxPruneError: with a reason; nothing is written then.
    """
    command = command or saving.call("finetune", locals())
    require_torch("finetune")
    training, measure = training or Training(), measure or BenchmarkConfig()
    destination, state, page = (None if path is None else Path(path) for path in (output, checkpoint, report_output))
    if page is not None:
        saving.check_format(page)
    paths = [Path(p) for p in (model, teacher, plan, data, evaluation, preprocess) if isinstance(p, str | os.PathLike)]
    for target in (destination, state, page):
        if target is not None:
            outputs.check_destination(target, *(path for path in paths if path.exists()))
    saving.refuse_same(page, destination, state)
    on_stage("load", None)
    structure = {} if plan is None else plan_file.structure(Path(plan))
    student_model, teacher_model = io.load(model), io.load(teacher)
    for target in (destination, state, page):
        if target is not None:
            outputs.check_destination(target, *student_model.files, *teacher_model.files)
    _refuse_unlike(student_model, teacher_model)
    given = load_data(data, inputs_of(teacher_model.header), preprocess)
    checked_on = given if evaluation is None else load_data(evaluation, inputs_of(teacher_model.header), preprocess)
    if not len(given):
        raise DataError("there are no samples to train on", where=given.name, hint="give some")
    student, original = analyse(student_model, known=given.shapes()), analyse(teacher_model, known=given.shapes())
    training = augmented(training, given)

    from onnxprune.training.distill import Setting, distill  # only here: torch takes seconds to load

    setting = Setting(
        seed=seed,
        features=_features(original, student, given, plan, structure) if training.features else {},
        trace=student.trace if training.gate_below is not None else None,
        checkpoint=state,
        memory=memory / 2,
        on_progress=lambda share, text: on_stage("train", share, text),
    )
    tuned = distill(student_model, teacher_model, given, training, setting)
    result, keep = tuned.model, np.ones(student.trace.n_channels, dtype=bool)
    proof = None
    if tuned.gated is not None and tuned.gated.any():
        on_stage("prove", None)
        result, proof = without_gated(tuned, student.trace, given.shapes(), seed)
        keep = ~tuned.gated
    on_stage("verify", None)
    checks = check_structure(result, teacher_model, strict=full_check(teacher_model) is None)
    opened = open_session(str(teacher_model.path), threads=measure.threads, where=str(teacher_model.path))
    candidate = result.session(threads=measure.threads, where="the trained model")
    found = compare(opened, candidate, result.header, checked_on, measure, on_stage, seed)
    checks.append(Check("finite outputs", found.finite, None, found.finite))
    closer = None
    if page is not None:
        on_stage("profile", None)
        around = grouping.groups(original.trace, grouping.survivors(student.trace, keep))
        closer = details((str(teacher_model.path), result), found, checked_on, measure.threads, around)
    whole = np.ones(original.trace.n_channels, dtype=bool)
    (macs0, _), (macs1, params1) = original.cost.totals(whole), student.cost.totals(keep)
    before, after = figures(
        found, (macs0, teacher_model.params, teacher_model.size), (macs1, round(params1), result.byte_size())
    )
    notes = list(tuned.notes)
    if evaluation is None:
        notes.append("accuracy and agreement were measured on the samples that were trained on; --eval takes others")
    report = Report(
        model=str(teacher_model.path),
        sha256=teacher_model.digest,
        output=None,
        settings={"training": asdict(training), "seed": seed},
        before=before,
        after=after,
        fidelity=found.fidelity,
        data=found.data,
        samples=found.samples,
        latency=found.latency,
        layers=layers_of(student, keep, original),
        prunable_share=original.cost.prunable_share(),
        pinned=pinned_of(original.trace),
        proof=proof,
        verdict=Verdict(tuple(checks)),
        notes=tuple(notes),
        training=tuned.to_dict(),
        versions=versions(),
        details=closer,
    )
    if destination is not None and report.verdict:
        on_stage("write", None)
        size = io.save(result, destination, models.provenance(teacher_model.digest))
        report = replace(report, output=str(destination), after=replace(report.after, size=size))
    if page is not None:
        saving.save(page, report, command)
    if state is not None:
        state.unlink(missing_ok=True)
    return result, report


def _refuse_unlike(student: Model, teacher: Model) -> None:
    failed = [check for check in check_structure(student, teacher, strict=False) if not check]
    if failed:
        raise ModelError(
            "the model does not have the inputs and outputs of its teacher",
            where=str(student.path),
            why="; ".join(check.detail for check in failed),
            hint="give the model that it was pruned from with --teacher",
        )


def _features(
    original: Analysis, student: Analysis, data: Data, plan: str | os.PathLike[str] | None, structure: Mapping[str, Any]
) -> Mapping[str, tuple[int, IntArray | None]]:
    """Return the activations to compare: with a plan at the end of every group, without those that have the same shape in both."""
    if plan is not None:
        traced = analyse(original.model, known=data.shapes(), **structure)
        chosen = plan_file.read(Path(plan), traced.trace, original.model.digest)
        return boundaries(traced, chosen.keep, student.model)
    everything = np.ones(original.trace.n_channels, dtype=bool)
    found = boundaries(original, everything, student.model)
    ours, theirs = student.trace.shapes, original.trace.shapes
    return {name: (axis, None) for name, (axis, _) in found.items() if ours.get(name) == theirs[name]}

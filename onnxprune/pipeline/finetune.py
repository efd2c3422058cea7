"""`finetune`: train a pruned model towards the one it was pruned from."""

from __future__ import annotations

import os
from pathlib import Path

from onnxprune.data.dataset import DataLike
from onnxprune.data.preprocess import Preprocess
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.options import Options, Training
from onnxprune.pipeline.distillation import DELETE_GATED, TRAIN_STUDENT
from onnxprune.pipeline.opening import LOAD_PAIR
from onnxprune.pipeline.reporting import CHECK_FINITE, CHECK_TRAINED, MEASURE, NOTE_SAMPLES, REPORT, WRITE
from onnxprune.pipeline.results import ModelResult
from onnxprune.pipeline.run import Destinations, Run, Sources, execute, path_of
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.report import saving
from onnxprune.torch_backend import require_torch


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
) -> ModelResult:
    """Train a model towards the outputs of another one, verify it, and write it when `output` is given.

    Args:
        model: path of the model to train; it is not changed.
        teacher: path of the model to train towards; "before" in the report is this one.
        data: samples to train on; labels are used where there are some.
        output: where to write the result.
        evaluation: samples to verify on; `data` when None.
        preprocess: a `Preprocess`, a preset, or a TOML file.
        plan: the plan.json that the model was pruned by: says which of the teacher's channels are left, for `Training.features`.
        training: how to train.
        checkpoint: file that keeps the state, so that the same call goes on after an interrupt.
        seed: for everything random.
        memory: bytes for preprocessed samples.
        measure: benchmark config.
        on_stage: progress callback.
        report_output: where to write the report: .html, .md or .json.
        command: what the report says it was made by; this call when None.

    Raises:
        OnnxPruneError: with a reason; nothing is written then.
    """
    command = command or saving.call("finetune", locals())
    require_torch("finetune")
    run = Run(
        Sources(Path(model), data, evaluation, preprocess, path_of(plan), Path(teacher)),
        Destinations(path_of(output), None, path_of(report_output), path_of(checkpoint)),
        Options(seed=seed, memory=memory),
        training or Training(),
        measure or BenchmarkConfig(),
        on_stage,
        command,
        "the trained model",
    )
    run = execute(
        run, (LOAD_PAIR, TRAIN_STUDENT, DELETE_GATED, CHECK_TRAINED, MEASURE, CHECK_FINITE, NOTE_SAMPLES, REPORT, WRITE)
    )
    return ModelResult(run.model, run.report, None, run.edited.analysis.trace)

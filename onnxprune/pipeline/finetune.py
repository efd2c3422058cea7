"""`finetune`: train a pruned model towards the one it was pruned from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.calibration.stage_results import StageResults
from onnxprune.data.dataset import DataLike
from onnxprune.data.preprocess import Preprocess
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.options import Options, Training
from onnxprune.options.judging import Judging
from onnxprune.pipeline.arguments import parted
from onnxprune.pipeline.delivery import deliver
from onnxprune.pipeline.distillation import TRAIN
from onnxprune.pipeline.identity import OPEN_RESULTS
from onnxprune.pipeline.opening import LOAD_PAIR, LOOK_AT_DATA
from onnxprune.pipeline.reporting import (
    CHECK_FINITE,
    CHECK_TRAINED,
    JUDGE_QUALITY,
    MEASURE,
    NOTE_SAMPLES,
    REPORT,
)
from onnxprune.pipeline.results import ModelResult
from onnxprune.pipeline.run import Destinations, Run, Sources, execute, path_of
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.report import saving
from onnxprune.torch_backend import require_torch

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnxprune.pipeline.arguments import MeasuringFields


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
    resume: bool = False,
    shape: Mapping[str, tuple[int, ...]] | None = None,
    tolerate: float | None = None,
    seed: int = 0,
    memory: float = Options.memory,
    measure: BenchmarkConfig | None = None,
    on_stage: ProgressCallback = quiet,
    report_output: str | os.PathLike[str] | None = None,
    command: str | None = None,
    judging: Judging | None = None,
    **fields: Unpack[MeasuringFields],
) -> ModelResult:
    """Train a model towards the outputs of its teacher, verify it, and write it where `output` is given.

    The loss is the distillation of Hinton et al., 2015, "Distilling the Knowledge in a Neural Network", with a term for
    the labels and one for activations; see `Training`. Needs torch.

    Args:
        model: path of the model to train; it is not changed.
        teacher: path of the model to train towards, as a rule the one that `model` was pruned from; "before" in the
            report.
        data: samples to train on, as for `onnxprune.prune`; their labels are used where there are some.
        output: path of the result; None: nothing is written. A result whose integrity failed is kept as
            `<name>.rejected.onnx`.
        evaluation: samples to verify the result on; None: `data`, which training has seen.
        preprocess: as for `onnxprune.prune`.
        plan: path of the plan.json that the model was pruned by: names the channels of the teacher for
            `Training.features`; None: only activations of equal shape are compared.
        training: length, loss and optimizer; None: `Training()`, two epochs.
        checkpoint: as for `onnxprune.prune`.
        resume: as for `onnxprune.prune`.
        shape: as for `onnxprune.inspect`.
        tolerate: points that the result may lose against the teacher; None: 2; see `onnxprune.Options`.
        seed: of everything random; default 0.
        memory: bytes for preprocessed samples; half of them for the training.
        measure: as for `onnxprune.prune`.
        on_stage: as for `onnxprune.prune`.
        report_output: as for `onnxprune.prune`.
        command: as for `onnxprune.prune`.
        judging: as for `onnxprune.prune`.
        **fields: in place of `measure` and `judging`, their fields.

    Returns:
        The trained model and its report.

    Raises:
        OptionError: torch is not installed.
        ModelError: `model` and `teacher` differ in inputs or outputs.
        DataError: there are no samples.
        OnnxPruneError: base of all errors; nothing is written then.

    Examples:
        >>> import onnxprune
        >>> short = onnxprune.Training(amount=3, unit="steps", batch=8)
        >>> trained = onnxprune.finetune(  # doctest: +SKIP
        ...     "pruned.onnx", "model.onnx", data="samples.npz", training=short
        ... )
        >>> trained.save("trained.onnx")  # doctest: +SKIP
    """
    command = command or saving.call("finetune", locals())
    require_torch("finetune")
    _, measure, judging = parted(fields, None, measure, judging, prunes=False)
    run = Run(
        Sources(Path(model), data, evaluation, preprocess, path_of(plan), Path(teacher), judging=judging),
        Destinations(path_of(output), None, path_of(report_output), path_of(checkpoint)),
        Options(seed=seed, memory=memory, shape=shape or {}, tolerate=tolerate),
        training or Training(),
        measure,
        on_stage,
        command,
    )
    run = replace(run, results=StageResults(run.destinations.state, resume=resume))
    trained = (LOAD_PAIR, OPEN_RESULTS, LOOK_AT_DATA, TRAIN)
    judged = (CHECK_TRAINED, MEASURE, CHECK_FINITE, JUDGE_QUALITY, NOTE_SAMPLES, REPORT)
    with run.results.kept_on_error():
        return deliver(execute(run, (*trained, *judged)))

"""`prune`: the whole run, from a model file to a smaller one that is proven and measured."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune import fileio
from onnxprune.data.dataset import DataLike
from onnxprune.data.preprocess import Preprocess
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.options import Options, Training
from onnxprune.pipeline.arguments import parted
from onnxprune.pipeline.distillation import DELETE_GATED, TRAIN
from onnxprune.pipeline.opening import LOAD, calibration
from onnxprune.pipeline.reporting import (
    CHECK_ORIGINAL,
    CHECK_PRUNED,
    FINISH_PLAN,
    HOLD_TARGETS,
    MEASURE,
    NOTE_SAMPLES,
    REPORT,
    WRITE,
    provenance,
)
from onnxprune.pipeline.results import ModelResult
from onnxprune.pipeline.rewriting import REPAIR, REWRITE
from onnxprune.pipeline.run import Destinations, Run, Sources, execute, path_of
from onnxprune.pipeline.selection import REPLAY, SELECT
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.report import saving

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnxprune.pipeline.arguments import Fields


def prune(
    model: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    data: DataLike | None = None,
    evaluation: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    plan: str | os.PathLike[str] | None = None,
    plan_output: str | os.PathLike[str] | None = None,
    measure: BenchmarkConfig | None = None,
    on_stage: ProgressCallback = quiet,
    options: Options | None = None,
    training: Training | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    latency_table: str | os.PathLike[str] | None = None,
    force: bool = False,
    report_output: str | os.PathLike[str] | None = None,
    command: str | None = None,
    **fields: Unpack[Fields],
) -> ModelResult:
    """Prune a model, prove it, verify it, and write it when `output` is given.

    Args:
        model: path of an ONNX file; it is not changed.
        output: where to write the result; the plan goes beside it as `<name>.plan.json` unless `plan_output` says otherwise.
        data: calibration samples: a path as for `--data`, or arrays.
        evaluation: samples to verify on; `data` when None.
        preprocess: a `Preprocess`, a preset, or a TOML file.
        plan: a plan.json to replay; options that choose channels have no say then.
        plan_output: where to write the plan.
        measure: benchmark config.
        on_stage: progress callback.
        options: all options of the selection and the repair in one value.
        training: how to train what is left towards the original, on all of `data`; None: not at all.
        checkpoint: file that keeps the state of the training, so that the same call goes on after an interrupt.
        latency_table: file with a table that was measured on the target machine; None: one is measured here where latency is a target.
        force: write a result even where it is measured to be slower than the original.
        report_output: where to write the report: .html, .md or .json.
        command: what the report says it was made by; this call when None.
        fields: in place of `options` and `measure`, their fields one by one: reduce={"flops": 0.5}, importance="l2", …

    Raises:
        OnnxPruneError: with a reason; nothing is written then. `LatencyError`: the result is slower.
    """
    command = command or saving.call("prune", locals())
    options, measure = parted(fields, options, measure)
    sources = Sources(Path(model), data, evaluation, preprocess, path_of(plan), None, path_of(latency_table))
    files = (path_of(path) for path in (output, plan_output, report_output, checkpoint))
    destinations = _with_plan(Destinations(*files), sources.plan)
    run = Run(sources, destinations, options, training, measure, on_stage, command, force=force)
    with contextlib.ExitStack() as scope:
        run = execute(run, (LOAD, calibration(scope), CHECK_ORIGINAL, REPLAY if plan else SELECT, REWRITE, REPAIR))
    run = execute(run, TRAINED_AND_WRITTEN)
    return ModelResult(run.model, run.report, run.plan, run.edited.analysis.trace, provenance(run))


TRAINED_AND_WRITTEN = (
    TRAIN,
    DELETE_GATED,
    FINISH_PLAN,
    CHECK_PRUNED,
    MEASURE,
    HOLD_TARGETS,
    NOTE_SAMPLES,
    REPORT,
    WRITE,
)
"""Stages after the repair, when calibration is over."""


def _with_plan(destinations: Destinations, replayed: Path | None) -> Destinations:
    """Let the plan lie beside the model; one that lies there already is replayed, and left as it is."""
    if destinations.model is None or destinations.plan is not None:
        return destinations
    plan = destinations.model.with_suffix(".plan.json")
    return (
        destinations if replayed is not None and fileio.same_file(plan, replayed) else replace(destinations, plan=plan)
    )

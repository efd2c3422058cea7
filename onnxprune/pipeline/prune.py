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
from onnxprune.options.judging import Judging
from onnxprune.pipeline.arguments import parted
from onnxprune.pipeline.delivery import deliver
from onnxprune.pipeline.distillation import TRAIN
from onnxprune.pipeline.identity import OPEN_RESULTS, opened
from onnxprune.pipeline.opening import LOAD, LOOK_AT_DATA, calibration
from onnxprune.pipeline.reporting import (
    CHECK_FINITE,
    CHECK_PRUNED,
    FINISH_PLAN,
    HOLD_TARGETS,
    JUDGE_QUALITY,
    MEASURE,
    NEVER_SLOWER,
    NOTE_SAMPLES,
    REPORT,
)
from onnxprune.pipeline.results import ModelResult
from onnxprune.pipeline.rewriting import REPAIR, REWRITE
from onnxprune.pipeline.run import PLAN, Destinations, Run, Sources, execute, path_of
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
    judging: Judging | None = None,
    training: Training | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    latency_table: str | os.PathLike[str] | None = None,
    timings: str | os.PathLike[str] | None = None,
    force: bool = False,
    resume: bool = False,
    report_output: str | os.PathLike[str] | None = None,
    command: str | None = None,
    **fields: Unpack[Fields],
) -> ModelResult:
    """Prune a model, prove the deletion, repair and verify the result, and write it where `output` is given.

    The stages: load, trace, calibrate, select (or replay a plan), rewrite and prove, repair, optionally train, check,
    measure, report, write. Repair is the least squares reconstruction of He et al., 2017, "Channel Pruning for
    Accelerating Very Deep Neural Networks", eq. 2, and the default importance with data is Optimal Brain Surgeon
    (Hassibi and Stork, 1993, eq. 5).

    Args:
        model: path of an ONNX file; it is not changed.
        output: path of the result; None: nothing is written. The plan goes beside it as `<name>.plan.json`, unless
            `plan_output` is given.
        data: calibration samples: a path as for `--data`, an array (samples, …), or arrays by input; None: generated
            inputs, or none with `repair="none"`. Below some hundred samples the repair overfits.
        evaluation: samples to verify the result on; None: `data`, which repair has seen.
        preprocess: a `Preprocess`, the name of a preset, or the path of a TOML file; None: samples stay as they are.
        plan: path of a plan.json to replay; the options that select channels are not used then.
        plan_output: path of the plan; None: beside `output`.
        measure: how to time models; default: `BenchmarkConfig()`.
        on_stage: progress callback: name of a stage, share that is done (0 to 1, or None), detail.
        options: all options of selection and repair as one value; None: they are taken from `fields`.
        judging: how quality is judged, as one value: the task, labels in files, a metric of your own; None: taken from `fields`.
        training: how to train the pruned model towards the original, on `data`; None: no training. Needs torch.
        checkpoint: path of a file for the state of the training, from which the same call continues after an interrupt.
        latency_table: path of a latency table of the target machine, written by `bench`; None: measured here where
            latency is a target.
        timings: path of a table of the times that decisions are taken from. Where the file exists, its times are taken, and
            what it lacks is measured and added; otherwise it is written. Equal inputs, options and timings give equal
            bytes. None: all is measured.
        force: write a result even where it is measured to be slower than the original.
        resume: go on from the work of an earlier call with the same arguments that broke off, in the folder `<output>.state`; the
            folder is removed when a call succeeds. Results of work that took less than a second are not kept.
        report_output: path of the report, .html, .md or .json; None: no report is written.
        command: command line for the report; None: this call.
        **fields: fields of `Options`, `BenchmarkConfig` and `Judging`, one by one. `reduce={"flops": 0.5}` removes at least half
            of the FLOPs (a share above 0 and below 1); `limit={"size": 4e6}` bounds FLOPs, parameters, bytes or
            milliseconds absolutely.

    Returns:
        The model, its plan and its report; `save(path)` writes the model.

    Raises:
        ModelError: the model cannot be read, run or pruned.
        DataError, OptionError, PlanError: samples, an option or a plan do not fit the model or each other.
        TargetError: the targets cannot be met.
        ProofError: the deleted channels change the outputs.
        LatencyError: `timings` is no timing table; or the result is slower than the original, and `force` is not set: it
            is kept as `<name>.rejected.onnx` then.
        OutputError: a file cannot be written; where the work was done, `result` of the error has the result.

    Examples:
        >>> import onnxprune
        >>> options = onnxprune.Options(reduce={"flops": 0.4}, round_to=1)
        >>> result = onnxprune.prune("model.onnx", output="pruned.onnx", options=options, latency=False)
        >>> result.report.after.flops < 0.6 * result.report.before.flops
        True
        >>> bool(result.report.verdict)
        True
    """
    command = command or saving.call("prune", locals())
    options, measure, judging = parted(fields, options, measure, judging)
    table = path_of(latency_table)
    sources = Sources(Path(model), data, evaluation, preprocess, path_of(plan), latency_table=table, judging=judging)
    model_path, plan_path, report_path, state, times = map(
        path_of, (output, plan_output, report_output, checkpoint, timings)
    )
    given = Destinations(model_path, plan_path, report_path, state, timings=times, force=force)
    destinations = _with_plan(given, sources.plan)
    results, measured = opened(destinations, destinations.state, resume=resume)
    run = Run(sources, destinations, options, training, measure, on_stage, command, results=results, timings=measured)
    decided = (FINISH_PLAN, CHECK_PRUNED, MEASURE, CHECK_FINITE, HOLD_TARGETS, NEVER_SLOWER)
    with results.kept_on_error():
        with measured.kept():
            with contextlib.ExitStack() as scope:
                opening = (LOAD, OPEN_RESULTS, LOOK_AT_DATA, calibration(scope))
                run = execute(run, (*opening, REPLAY if plan else SELECT, REWRITE, REPAIR))
            run = execute(run, (TRAIN, *decided))
        return deliver(execute(run, (JUDGE_QUALITY, NOTE_SAMPLES, REPORT)))


def _with_plan(destinations: Destinations, replayed: Path | None) -> Destinations:
    """Put the plan beside the model, unless the replayed plan lies there already."""
    if destinations.model is None or destinations.plan is not None:
        return destinations
    plan = destinations.model.with_suffix(PLAN)
    if replayed is not None and fileio.same_file(plan, replayed):
        return destinations
    return replace(destinations, plan=plan)

"""`sweep`: a family of models of several sizes, planned from one analysis."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from onnxprune import plan_file
from onnxprune.allocation.channel_multiple import multiple_for
from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.problem import refuse_unprunable, score, settings, with_multiple
from onnxprune.allocation.targets import meet
from onnxprune.data.dataset import DataLike
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataWarning, OnnxPruneError, OptionError, TargetError
from onnxprune.evaluation.benchmark import BenchmarkConfig, bench
from onnxprune.fileio import write_json
from onnxprune.graph.analysis import removed
from onnxprune.options import CHANNELS, QUANTITIES, Options, Training
from onnxprune.options.judging import Judging
from onnxprune.options.metadata import AUTO
from onnxprune.pipeline.arguments import parted
from onnxprune.pipeline.delivery import unlost
from onnxprune.pipeline.identity import OPEN_RESULTS, identity, opened
from onnxprune.pipeline.opening import LOAD, LOOK_AT_DATA, calibration
from onnxprune.pipeline.prune import prune
from onnxprune.pipeline.results import SweepResult
from onnxprune.pipeline.run import Destinations, Run, Sources, Stage, execute, path_of
from onnxprune.pipeline.sweep_state import Family
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.report import saving
from onnxprune.runtime import workers
from onnxprune.types import Plan

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnxprune.pipeline.arguments import Fields


PLANNING = "planning.state"
"""Folder of the work on plans, within the folder of the sweep; it is there until all plans are."""
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def sweep(
    model: str | os.PathLike[str],
    output_folder: str | os.PathLike[str],
    *,
    data: DataLike | None = None,
    evaluation: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    quantity: str = QUANTITIES[0],
    shares: Sequence[float] = SHARES,
    options: Options | None = None,
    judging: Judging | None = None,
    training: Training | None = None,
    measure: BenchmarkConfig | None = None,
    latency_table: str | os.PathLike[str] | None = None,
    timings: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    on_stage: ProgressCallback = quiet,
    report_output: str | os.PathLike[str] | None = None,
    command: str | None = None,
    **fields: Unpack[Fields],
) -> SweepResult:
    """Make a family of models of several sizes, each pruned, repaired, proven and measured.

    All plans come from one analysis of the model; each member is then an independent job. The same call continues an
    interrupted sweep.

    Args:
        model: path of an ONNX file.
        output_folder: folder of all files, which is made: `<member>.onnx`, `<member>.plan.json`, `<member>.json`, and
            `sweep.json`.
        data: as for `onnxprune.prune`.
        evaluation: as for `onnxprune.prune`.
        preprocess: as for `onnxprune.prune`.
        quantity: quantity that is removed, one of `QUANTITIES`; default "flops".
        shares: shares to remove, one member each, above 0 and below 1; default 0.1 to 0.8. A share that no plan reaches
            gets a note.
        options: options of selection and repair, without targets; None: they are taken from `fields`.
        judging: as for `onnxprune.prune`.
        training: how to train each member; None: no training.
        measure: as for `onnxprune.prune`.
        latency_table: as for `onnxprune.prune`.
        timings: as for `onnxprune.prune`.
        jobs: number of processes that make members; default 1. Results do not depend on it.
        scheduler: address of a Dask scheduler that makes the members instead; None: processes on this machine.
        on_stage: as for `onnxprune.prune`.
        report_output: as for `onnxprune.prune`.
        command: as for `onnxprune.prune`.
        **fields: in place of `options` and `measure`, their fields.

    Returns:
        Figures of all members, those of the Pareto set marked.

    Raises:
        OptionError: a share, the quantity, the schedule or a target is refused.
        OutputError: the folder holds another sweep.
        OnnxPruneError: base of all errors; members that were made stay.

    Examples:
        >>> import onnxprune
        >>> family = onnxprune.sweep("model.onnx", "sizes", shares=(0.2, 0.4), round_to=1, repair="none", latency=False)
        >>> [member.name for member in family.report.members]
        ['flops-21', 'flops-40']
    """
    command = command or saving.call("sweep", locals())
    options, measure, judging = parted(fields, options, measure, judging)
    _refuse(options, quantity, shares, jobs)
    page = path_of(report_output)
    table, replayed = path_of(latency_table), path_of(timings)
    sources = Sources(Path(model), data, evaluation, preprocess, latency_table=table, judging=judging)
    Destinations(report=page, family=Path(output_folder), timings=replayed).check(sources)
    run = Run(sources, asked=options, training=training, measure=measure, on_stage=on_stage)
    run = execute(run, (LOAD,))
    family = Family(Path(output_folder), quantity, sorted(set(shares)), {**identity(run), "quantity": quantity})
    if family.unplanned:
        results, measured = opened(Destinations(timings=replayed), family.folder / PLANNING, resume=True)
        plan = Stage(lambda run: plan_members(run, family), requires=("original",))
        with results.kept_on_error(), measured.kept(), contextlib.ExitStack() as scope:
            planning = replace(run, training=None, results=results, timings=measured)
            execute(planning, (OPEN_RESULTS, LOOK_AT_DATA, calibration(scope), plan))
    make_members(run, family, jobs, scheduler)
    time_members(run, family)
    found = family.finished(str(run.sources.model))
    result = SweepResult(found, family.folder)
    if page is not None:
        with unlost(result, family.folder):
            saving.save(page, found, command)
    return result


def _refuse(options: Options, quantity: str, shares: Sequence[float], jobs: int) -> None:
    if quantity not in QUANTITIES:
        raise OptionError(f"unknown quantity {quantity!r}", hint=f"choose one of {', '.join(QUANTITIES)}")
    if not shares or not all(0 < share < 1 for share in shares):
        raise OptionError("a target of the sweep is out of range", hint="give shares above 0 % and below 100 %")
    if jobs < 1:
        raise OptionError(f"--jobs {jobs} is out of range", hint="give 1 or more")
    if options.has_target:
        raise OptionError(
            "a sweep has targets of its own", hint="give --targets, and no --reduce, --limit or --max-drop"
        )
    if options.granularity not in (AUTO, CHANNELS):
        raise OptionError(
            "a sweep deletes channels alone",
            why="edits of layers change what channels there are, so that the members share no analysis",
            hint="leave granularity out, or prune for one target at a time",
        )
    if options.schedule != "block":
        raise OptionError(
            "a sweep takes the block schedule",
            why="each progressive step scores a different model, so that the members share no analysis",
            hint="leave --schedule out",
        )


def plan_members(run: Run, family: Family) -> Run:
    """Select the channels of every member from one problem, and write the plans."""
    analysis, options, shares = run.original, multiple_for(run.options, run.timings), family.unplanned
    refuse_unprunable(analysis)
    hardest = replace(options, reduce={family.quantity: max(shares)})
    table = run.sources.latency_table
    estimator = CostEstimator(analysis, hardest, run.measure, table=table, on_stage=run.on_stage, timings=run.timings)
    everything = np.ones(analysis.trace.n_channels, dtype=bool)
    problem = score(estimator, hardest, run.workspace, everything, analysis, everything)
    for number, share in enumerate(shares):
        run.on_stage("plan", number / len(shares))
        goal = estimator.with_targets(replace(options, reduce={family.quantity: share}))
        try:
            rounded = with_multiple(goal, goal.options)
            here = problem if rounded.round_to is None else problem.rounded_to(rounded.round_to)
            keep = meet(here.allocate, here.build, goal)
        except TargetError as error:
            family.set(share, note=f"{error.what}: {error.why}")
            continue
        gone = removed(analysis, keep)
        found = Plan(keep, analysis.model.digest, settings(analysis, rounded), (gone,), problem.curves)
        family.reached(share, gone)
        plan_file.write(family.path(share, ".plan.json"), found, analysis.trace, analysis.model.path.name)
    run.on_stage("plan", 1.0, "; ".join(run.timings.notes))
    return run


def make_members(run: Run, family: Family, jobs: int, scheduler: str | None) -> None:
    """Make the members that are not there, each by its plan, on some processes or a Dask cluster."""
    waiting = [share for share in family.planned if not family.is_made(share)]
    plain = replace(run.asked, reduce={}, limit={}, max_drop=None)
    measure = BenchmarkConfig(latency=False, eval_batch=run.measure.eval_batch)
    work = [Job(family.name(share), family.folder, run.sources, plain, run.training, measure) for share in waiting]
    run.on_stage("prune", 0.0 if work else None, f"0 of {len(waiting)}" if work else "")

    def made(number: int, report: dict[str, Any]) -> None:
        family.made(waiting[number], report)
        done = sum(family.is_made(share) for share in waiting)
        run.on_stage("prune", done / len(waiting), f"{done} of {len(waiting)}")

    try:
        workers.run(make_member, work, workers=jobs, scheduler=scheduler, done=made)
    except OnnxPruneError as error:
        error.result = None  # it is that of a member, and the sweep has none yet
        raise


def time_members(run: Run, family: Family) -> None:
    """Time each member interleaved with the original."""
    planned = family.planned if run.measure.latency else []
    for number, share in enumerate(planned):
        run.on_stage("time", number / len(planned))
        if "latency" not in family.of(share):
            pair = (run.sources.model, family.path(share, ".onnx"))
            family.set(share, latency=asdict(bench(pair, run.measure, layers=False).latency))


@dataclass(frozen=True)
class Job:
    """The arguments of one member, for a worker."""

    name: str
    folder: Path
    sources: Sources
    options: Options
    training: Training | None
    measure: BenchmarkConfig


def make_member(job: Job) -> dict[str, Any]:
    """Make one member by its plan, and write it and its report; return the report."""
    with (
        threadpool_limits(1),
        warnings.catch_warnings(),
    ):  # sums come out the same, however many members are made at a time
        warnings.simplefilter("ignore", DataWarning)  # told once, before the plans; each report has it
        result = prune(
            job.sources.model,
            output=job.folder / f"{job.name}.onnx",
            plan=job.folder / f"{job.name}.plan.json",
            data=job.sources.data,
            evaluation=job.sources.evaluation,
            preprocess=job.sources.preprocess,
            options=job.options,
            judging=job.sources.judging,
            training=job.training,
            measure=job.measure,
            resume=True,
        )
    report = result.report.to_dict()
    write_json(job.folder / f"{job.name}.json", report)
    return report

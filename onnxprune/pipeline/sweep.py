"""`sweep`: a family of models of several sizes, from one analysis and one look at the data."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from onnxprune import fileio, plan_file
from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.problem import refuse_unprunable, score, settings, with_multiple
from onnxprune.allocation.targets import meet
from onnxprune.data.dataset import DataLike
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import OptionError, TargetError
from onnxprune.evaluation.benchmark import BenchmarkConfig, bench
from onnxprune.graph.analysis import removed
from onnxprune.options import QUANTITIES, Options, Training
from onnxprune.pipeline.arguments import parted
from onnxprune.pipeline.opening import LOAD, calibration
from onnxprune.pipeline.prune import prune
from onnxprune.pipeline.results import SweepResult
from onnxprune.pipeline.run import Destinations, Run, Sources, Stage, execute, path_of
from onnxprune.pipeline.sweep_state import SweepState, name_of
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.report import saving
from onnxprune.report.document import Sweep
from onnxprune.runtime import workers
from onnxprune.types import Plan

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnxprune.pipeline.arguments import Fields


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
    training: Training | None = None,
    measure: BenchmarkConfig | None = None,
    latency_table: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    on_stage: ProgressCallback = quiet,
    report_output: str | os.PathLike[str] | None = None,
    command: str | None = None,
    **fields: Unpack[Fields],
) -> SweepResult:
    """Make a family of models, each repaired and measured.

    An interrupted sweep goes on where it stopped. All plans come from one analysis; each member is then one independent job.

    Args:
        model: path of an ONNX file.
        output_folder: where all files go; it is made.
        data: as for `onnxprune.prune`.
        evaluation: as for `onnxprune.prune`.
        preprocess: as for `onnxprune.prune`.
        latency_table: as for `onnxprune.prune`.
        measure: as for `onnxprune.prune`.
        on_stage: as for `onnxprune.prune`.
        report_output: as for `onnxprune.prune`.
        command: as for `onnxprune.prune`.
        quantity: what shares are of, one of `QUANTITIES`.
        shares: to remove, each above 0 and below 1.
        options: of the selection and the repair; without targets.
        training: how to train each member; None: not at all.
        jobs: processes that work at a time.
        scheduler: address of a Dask scheduler, in place of them.
        fields: in place of `options` and `measure`, their fields one by one.

    Raises:
        OnnxPruneError: with a reason; members that were made stay.
    """
    command = command or saving.call("sweep", locals())
    options, measure = parted(fields, options, measure)
    _refuse(options, quantity, shares, jobs)
    Destinations(report=path_of(report_output)).check(Path(model))
    sources = Sources(Path(model), data, evaluation, preprocess, None, None, path_of(latency_table))
    run = Run(sources, asked=options, training=training, measure=measure, on_stage=on_stage)
    state = SweepState(Path(output_folder), quantity, _digest(run, quantity))
    family = Family(state, Path(output_folder), quantity, sorted(set(shares)), jobs, scheduler)
    with contextlib.ExitStack() as scope:
        planned = (LOAD, calibration(scope), Stage(family.plan, ("original",))) if family.unplanned else ()
        execute(replace(run, training=None), planned)
    execute(run, (Stage(family.make), Stage(family.time)))
    return SweepResult(family.finished(run, path_of(report_output), command), family.folder)


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
    if options.schedule != "block":
        raise OptionError(
            "a sweep takes the block schedule",
            why="progressive steps look at the model anew, each on its own way to its target",
            hint="leave --schedule out",
        )


@dataclass(frozen=True)
class Family:
    """The members of a sweep; its methods are the stages that plan, make and time them.

    Attributes:
        state: what is done.
        folder: where all files go.
        quantity: what shares are of.
        shares: to remove, ascending.
        jobs: processes that work at a time.
        scheduler: address of a Dask scheduler, in place of them.
    """

    state: SweepState
    folder: Path
    quantity: str
    shares: Sequence[float]
    jobs: int
    scheduler: str | None

    @property
    def unplanned(self) -> list[float]:
        """Shares that have no plan yet."""
        return [share for share in self.shares if not self.state.is_planned(share)]

    @property
    def planned(self) -> list[float]:
        """Shares that have a plan."""
        return [share for share in self.shares if self.state.has_plan(share)]

    def plan(self, run: Run) -> Run:
        """Choose what goes for every target, from one look at the model, and write the plans."""
        analysis, options, shares = run.original, run.options, self.unplanned
        refuse_unprunable(analysis)
        hardest = replace(options, reduce={self.quantity: max(shares)})
        meter = CostEstimator(analysis, hardest, run.measure, table=run.sources.latency_table, on_stage=run.on_stage)
        everything = np.ones(analysis.trace.n_channels, dtype=bool)
        problem = score(meter, hardest, run.workspace, everything, analysis, everything)
        for number, share in enumerate(shares):
            run.on_stage("plan", number / len(shares))
            goal = meter.with_targets(replace(options, reduce={self.quantity: share}))
            try:
                rounded = with_multiple(goal, goal.options)
                here = problem if rounded.round_to is None else problem.rounded_to(rounded.round_to)
                keep = meet(here.allocate, here.build, goal)
            except TargetError as error:
                self.state.set(share, note=f"{error.what}: {error.why}")
                continue
            gone = removed(analysis, keep)
            found = Plan(keep, analysis.model.digest, settings(analysis, rounded), (gone,), problem.curves)
            plan_file.write(self.state.path(share, ".plan.json"), found, analysis.trace, analysis.model.path.name)
            self.state.set(share, removed=gone)
        return run

    def make(self, run: Run) -> Run:
        """Make the members that are not there, each by its plan."""
        waiting = [share for share in self.planned if not self.state.is_made(share)]
        plain = replace(run.asked, reduce={}, limit={}, max_drop=None)
        measure = BenchmarkConfig(latency=False, eval_batch=run.measure.eval_batch)
        work = [
            Job(name_of(self.quantity, share), self.folder, run.sources, plain, run.training, measure)
            for share in waiting
        ]
        run.on_stage("prune", 0.0 if work else None, f"0 of {len(waiting)}" if work else "")

        def made(number: int, report: dict[str, Any]) -> None:
            self.state.made(waiting[number], report)
            done = sum(self.state.is_made(share) for share in waiting)
            run.on_stage("prune", done / len(waiting), f"{done} of {len(waiting)}")

        workers.run(make_member, work, workers=self.jobs, scheduler=self.scheduler, done=made)
        return run

    def time(self, run: Run) -> Run:
        """Time each member in turn with the original."""
        planned = self.planned if run.measure.latency else []
        for number, share in enumerate(planned):
            run.on_stage("time", number / len(planned))
            if not self.state.is_timed(share):
                pair = (run.sources.model, self.state.path(share, ".onnx"))
                self.state.set(share, latency=asdict(bench(pair, run.measure, layers=False).latency))
        return run

    def finished(self, run: Run, report: Path | None, command: str) -> Sweep:
        """Write all figures beside the state, and into a report where one is asked for."""
        found = self.state.family(str(run.sources.model), self.quantity, self.shares)
        self.state.save(found)
        if report is not None:
            saving.save(report, found, command)
        return found


@dataclass(frozen=True)
class Job:
    """What a worker needs to make one member."""

    name: str
    folder: Path
    sources: Sources
    options: Options
    training: Training | None
    measure: BenchmarkConfig


def make_member(job: Job) -> dict[str, Any]:
    """Prune by a plan, repair, prove, verify and write one member; return its report."""
    with threadpool_limits(1):  # sums come out the same, however many members are made at a time
        result = prune(
            job.sources.model,
            output=job.folder / f"{job.name}.onnx",
            plan=job.folder / f"{job.name}.plan.json",
            data=job.sources.data,
            evaluation=job.sources.evaluation,
            preprocess=job.sources.preprocess,
            options=job.options,
            training=job.training,
            measure=job.measure,
        )
    report = result.report.to_dict()
    with fileio.atomic_write(job.folder / f"{job.name}.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def _digest(run: Run, quantity: str) -> str:
    """Return a digest of what members depend on; the shares have no say, so that some can be added."""
    sources, training = run.sources, run.training
    digest = hashlib.sha256(sources.model.read_bytes())
    identities = [_identity(value) for value in (sources.data, sources.evaluation, sources.preprocess)]
    values = [quantity, asdict(run.asked), None if training is None else asdict(training), *identities]
    digest.update(json.dumps(values, default=str, sort_keys=True).encode())
    return digest.hexdigest()


def _identity(value: Any) -> str:
    """Identify data: files by path, size and time of change; arrays by their bytes."""
    if isinstance(value, str | os.PathLike) and os.path.exists(value):
        status = os.stat(value)
        return f"{os.path.abspath(value)} {status.st_size} {status.st_mtime_ns}"
    if isinstance(value, Mapping):
        return " ".join(
            f"{key} {hashlib.sha256(np.asarray(value[key]).tobytes()).hexdigest()}" for key in sorted(value)
        )
    return repr(value)

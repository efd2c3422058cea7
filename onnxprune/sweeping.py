"""`sweep`: a family of models of several sizes, from one analysis and one look at the data."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from onnxprune import output, plan_file
from onnxprune.analysis import Analysis, removed
from onnxprune.data.dataset import Data, DataLike
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import OptionError, OutputError, TargetError
from onnxprune.evaluation.benchmark import BenchmarkConfig, bench
from onnxprune.options import QUANTITIES, Options, Training
from onnxprune.pipeline import prune
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.report import saving
from onnxprune.report.document import SWEEP_SCHEMA, Member, Sweep
from onnxprune.runtime import workers
from onnxprune.runtime.timing import Latency
from onnxprune.search import plans
from onnxprune.types import Plan
from onnxprune.workspace import opened, workspace_for

STATE = "sweep.json"
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class _Job:
    """What a worker needs to make one member."""

    model: str
    folder: str
    name: str
    data: Any
    evaluation: Any
    preprocess: Any
    options: Options
    training: Training | None
    eval_batch: int


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
) -> Sweep:
    """Make a family of models, each repaired and measured.

    What is done lies in the folder, and is not done again: an interrupted sweep goes on where it stopped. Plans of all members come from
    one analysis and are written first; each member is then one independent job. Latency is measured at the end, one member at a time.

    Args:
        model: path of an ONNX file.
        output_folder: where all files go; it is made.
        data: for calibration, as for `prune`.
        evaluation: as for `prune`.
        preprocess: as for `prune`.
        quantity: what shares are of, one of `QUANTITIES`.
        shares: to remove, each above 0 and below 1.
        options: the dials; without targets.
        training: how to fine-tune each member; None: not at all.
        measure: how to measure.
        latency_table: as for `prune`.
        jobs: processes.
        scheduler: address of a Dask scheduler, in place of them.
        on_stage: called as it goes on.
        report_output: where to write a report of all members: .html, .md or .json.
        command: what it says it was made by; this call when None.

    Raises:
        OnnxPruneError: with a reason; members that were made stay.
    """
    command = command or saving.call("sweep", locals())
    options, measure = options or Options(), measure or BenchmarkConfig()
    _refuse(options, quantity, shares, jobs)
    page = None if report_output is None else Path(report_output)
    if page is not None:
        saving.check_format(page)
        output.check_destination(page, Path(model))
    folder, shares = Path(output_folder), sorted(set(shares))
    _make(folder)
    state = _State(folder, quantity, _settings(model, data, evaluation, preprocess, quantity, options, training))
    left = [share for share in shares if not state.is_planned(share)]
    if left:
        analysis, given = opened(model, options, data, preprocess, on_stage)
        _plan(analysis, given, state, quantity, left, options, measure, latency_table, on_stage)
    made = [share for share in shares if state.has_plan(share)]
    waiting = [share for share in made if not state.is_made(share)]
    plain = replace(options, reduce={}, limit={}, max_drop=None)
    work = [
        _Job(
            os.fspath(model),
            str(folder),
            _name(quantity, share),
            data,
            evaluation,
            preprocess,
            plain,
            training,
            measure.eval_batch,
        )
        for share in waiting
    ]
    on_stage("prune", 0.0 if work else None, f"0 of {len(waiting)}" if work else "")

    def told(number: int, report: dict[str, Any]) -> None:
        state.made(waiting[number], report)
        done = sum(state.is_made(share) for share in waiting)
        on_stage("prune", done / len(waiting), f"{done} of {len(waiting)}")

    workers.run(_make_member, work, workers=jobs, scheduler=scheduler, done=told)
    if measure.latency:
        for number, share in enumerate(made):
            on_stage("time", number / len(made))
            if not state.is_timed(share):
                state.timed(share, bench([model, state.path(share, ".onnx")], measure, layers=False).latency)
    found = state.family(os.fspath(model), quantity, shares)
    state.save(found)
    if page is not None:
        saving.save(page, found, command)
    return found


def _refuse(options: Options, quantity: str, shares: Sequence[float], jobs: int) -> None:
    if quantity not in QUANTITIES:
        raise OptionError(f"unknown quantity {quantity!r}", hint=f"choose one of {', '.join(QUANTITIES)}")
    if not shares or not all(0 < share < 1 for share in shares):
        raise OptionError("a target of the sweep is out of range", hint="give shares above 0 % and below 100 %")
    if jobs < 1:
        raise OptionError(f"--jobs {jobs} is out of range", hint="give 1 or more")
    if options.reduce or options.limit or options.threshold is not None or options.max_drop is not None:
        raise OptionError(
            "a sweep has targets of its own", hint="give --targets, and no --reduce, --limit or --max-drop"
        )
    if options.schedule != "block":
        raise OptionError(
            "a sweep takes the block schedule",
            why="progressive steps look at the model anew, each on its own way to its target",
            hint="leave --schedule out",
        )


def _plan(
    analysis: Analysis,
    given: Data | None,
    state: _State,
    quantity: str,
    shares: Sequence[float],
    options: Options,
    measure: BenchmarkConfig,
    latency_table: str | os.PathLike[str] | None,
    on_stage: ProgressCallback,
) -> None:
    """Choose what goes for every target, and write the plans."""

    def take(share: float, found: Plan | TargetError) -> None:
        if isinstance(found, TargetError):
            state.unreachable(share, f"{found.what}: {found.why}")
            return
        plan_file.write(state.path(share, ".plan.json"), found, analysis.trace, analysis.model.path.name)
        state.planned(share, removed(analysis, found.keep))

    if given is None:
        plans(analysis, options, quantity, shares, take, None, measure, latency_table, on_stage)
        return
    with workspace_for(given, analysis, options) as workspace:
        plans(analysis, options, quantity, shares, take, workspace, measure, latency_table, on_stage)


def _make_member(job: _Job) -> dict[str, Any]:
    """Prune by a plan, repair, prove, verify and write one member; return its report."""
    folder = Path(job.folder)
    with threadpool_limits(1):  # sums come out the same, however many members are made at a time
        result = prune(
            job.model,
            output=folder / f"{job.name}.onnx",
            plan=folder / f"{job.name}.plan.json",
            data=job.data,
            evaluation=job.evaluation,
            preprocess=job.preprocess,
            options=job.options,
            training=job.training,
            measure=BenchmarkConfig(latency=False, eval_batch=job.eval_batch),
        )
    report = result.report.to_dict()
    with output.staged(folder / f"{job.name}.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def _name(quantity: str, share: float) -> str:
    return f"{quantity}-{100 * share:g}".replace(".", "_")


def _settings(
    model: str | os.PathLike[str],
    data: Any,
    evaluation: Any,
    preprocess: Any,
    quantity: str,
    options: Options,
    training: Training | None,
) -> str:
    """Return a digest of what members depend on; the shares have no say, so that some can be added."""
    digest = hashlib.sha256(Path(model).read_bytes())
    told = [_told(value) for value in (data, evaluation, preprocess)]
    values = [quantity, asdict(options), None if training is None else asdict(training), *told]
    digest.update(json.dumps(values, default=str, sort_keys=True).encode())
    return digest.hexdigest()


def _told(value: Any) -> str:
    """Identify data: files by path, size and time of change; arrays by their bytes."""
    if isinstance(value, str | os.PathLike) and os.path.exists(value):
        status = os.stat(value)
        return f"{os.path.abspath(value)} {status.st_size} {status.st_mtime_ns}"
    if isinstance(value, Mapping):
        return " ".join(
            f"{key} {hashlib.sha256(np.asarray(value[key]).tobytes()).hexdigest()}" for key in sorted(value)
        )
    return repr(value)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            "the folder cannot be made", where=str(folder), why=error.strerror or str(error), hint="give another one"
        ) from error


class _State:
    """What of a sweep is done, kept in its folder after every step."""

    def __init__(self, folder: Path, quantity: str, settings: str) -> None:
        self._folder, self._file, self._quantity = folder, folder / STATE, quantity
        self._content: dict[str, Any] = {"schema": SWEEP_SCHEMA, "settings": settings, "state": {}}
        if not self._file.exists():
            return
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            same = found["schema"] == SWEEP_SCHEMA and found["settings"] == settings
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise OutputError(
                "the folder holds another sweep",
                where=str(folder),
                why="its model, data or dials are others",
                hint="give another folder, or remove this one",
            )
        self._content["state"] = found["state"]

    def path(self, share: float, ending: str) -> Path:
        """Return a file of a member."""
        return self._folder / f"{_name(self._quantity, share)}{ending}"

    def _of(self, share: float) -> dict[str, Any]:
        members: dict[str, dict[str, Any]] = self._content["state"]
        return members.setdefault(_name(self._quantity, share), {"target": share})

    def _set(self, share: float, **values: Any) -> None:
        self._of(share).update(values)
        self._write()

    def _write(self) -> None:
        with output.staged(self._file) as temporary:
            temporary.write_text(json.dumps(self._content, indent=1), encoding="utf-8")

    def is_planned(self, share: float) -> bool:
        """Whether it is known what goes, or that the target cannot be reached."""
        return "note" in self._of(share) or self.has_plan(share)

    def has_plan(self, share: float) -> bool:
        """Whether there is a plan."""
        return "removed" in self._of(share) and self.path(share, ".plan.json").exists()

    def is_made(self, share: float) -> bool:
        """Whether the model is there, with its report."""
        return "report" in self._of(share) and self.path(share, ".onnx").exists()

    def is_timed(self, share: float) -> bool:
        """Whether its latency is known."""
        return "latency" in self._of(share)

    def planned(self, share: float, gone: tuple[float, float]) -> None:
        """Note that the plan is there."""
        self._set(share, removed=gone)

    def unreachable(self, share: float, why: str) -> None:
        """Note why there is no plan."""
        self._set(share, note=why)

    def made(self, share: float, report: dict[str, Any]) -> None:
        """Note the figures of a model."""
        before, after, fidelity = report["before"], report["after"], report["fidelity"]
        drop = None if before["top1"] is None else before["top1"] - after["top1"]
        if drop is None and "agreement" in fidelity:
            drop = 100 - fidelity["agreement"]
        figures = {
            "size": after["size"],
            "drop": drop,
            "kl": fidelity.get("kl"),
            "verdict": report["verdict"]["passed"],
        }
        self._set(
            share,
            report=figures,
            before={"size": before["size"]},
            data=f"{report['samples']} samples of {report['data']}",
        )

    def timed(self, share: float, found: Latency) -> None:
        """Note what was timed."""
        self._set(share, latency=asdict(found))

    def family(self, model: str, quantity: str, shares: Sequence[float]) -> Sweep:
        """Return all members, with the Pareto set marked."""
        members = []
        for share in shares:
            state = self._of(share)
            member = Member(_name(quantity, share), share, note=state.get("note", ""))
            if "report" in state:
                timed = state.get("latency", {})
                member = replace(
                    member,
                    flops_removed=state["removed"][0],
                    params_removed=state["removed"][1],
                    latency_ms=timed.get("b"),
                    speedup=timed.get("speedup"),
                    speedup_interval=tuple(timed["speedup_interval"]) if timed else None,
                    **state["report"],
                )
            members.append(member)
        first: dict[str, Any] = next((self._of(share) for share in shares if "report" in self._of(share)), {})
        return Sweep(
            model,
            quantity,
            tuple(replace(member, pareto=_leads(member, members)) for member in members),
            first.get("before", {}).get("size", 0),
            first.get("latency", {}).get("a"),
            first.get("data", ""),
        )

    def save(self, found: Sweep) -> None:
        """Write the result beside what is done."""
        self._content.update(found.to_dict())
        self._write()


def _leads(member: Member, others: Sequence[Member]) -> bool:
    """Tell whether no other member is at least as good in both respects, and better in one."""

    def costs(one: Member) -> tuple[float, float]:
        return (
            1 - one.flops_removed if one.latency_ms is None else one.latency_ms,
            one.drop if one.drop is not None else one.kl or 0.0,
        )

    if member.note:
        return False
    mine = costs(member)
    for other in others:
        theirs = costs(other)
        if other is not member and not other.note and theirs != mine and theirs[0] <= mine[0] and theirs[1] <= mine[1]:
            return False
    return True

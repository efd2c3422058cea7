"""`Run`, the value that the stages of a command build up, and `Stage`, which takes a run and returns a changed copy."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune import paths
from onnxprune.allocation.carried_curves import KnownCurves
from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.calibration.stage_results import StageResults
from onnxprune.calibration.workspace import ALIVE, ITEMSIZE, Workspace, largest_activation, room_beside
from onnxprune.data.dataset import Data, DataLike
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import OnnxPruneError, OptionError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.evaluation.compare import Comparison
from onnxprune.graph.analysis import Analysis, unless_it_does_not_run
from onnxprune.graph.model import Model
from onnxprune.metrics.distances import AUTO
from onnxprune.metrics.tasks import Task
from onnxprune.options import Options, ResolvedOptions, Training
from onnxprune.options.judging import Judging
from onnxprune.pipeline.edited_model import EditedModel
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.repair.network import RepairResult
from onnxprune.report import saving
from onnxprune.report.document import Report
from onnxprune.runtime.timings import Timings
from onnxprune.runtime.weight_files import release
from onnxprune.surgery.proof import Proof
from onnxprune.types import BoolArray, Check, Curve, Plan, Repaired, Trace

if TYPE_CHECKING:
    from onnxprune.training.distill import TrainingResult


EVALUATION_BYTES, EVALUATED = 256e6, 0.25
"""Bytes of the activations of an evaluation run, and their share of `--memory`, at most."""
PLAN = ".plan.json"
"""Ending of the plan that lies beside a model."""
UNSET: Any = None
"""Value of a field of `Run` before the stage that sets it."""


def path_of(path: str | os.PathLike[str] | None) -> Path | None:
    """Return the path of a file, or None.

    Raises:
        OptionError: the path is empty, or has no name.
    """
    found = None if path is None else Path(path)
    if found is not None and not found.name:
        raise OptionError("a path names no file", why=f"it is {os.fspath(found)!r}", hint="name a file")
    return found


@dataclass(frozen=True)
class Destinations:
    """Files that a run writes, and the folder of the members of a sweep; None where one is not asked for.

    Attributes:
        model, plan, report, checkpoint: of the result.
        family: folder of a sweep.
        timings: times that decisions were taken from; read first, where the file exists.
        force: whether a result that is refused is written as `model` all the same, and not under a name of its own.
    """

    model: Path | None = None
    plan: Path | None = None
    report: Path | None = None
    checkpoint: Path | None = None
    family: Path | None = None
    timings: Path | None = None
    force: bool = False

    @property
    def rejected(self) -> Destinations:
        """The destinations of a result that is refused: `o.rejected.onnx` and `o.rejected.plan.json` for `o.onnx`."""

        def named(path: Path) -> Path:
            return path.with_name(f"{path.stem}.rejected{path.suffix}")

        model, plan = (None if path is None else named(path) for path in (self.model, self.plan))
        if self.model is not None and self.plan == self.model.with_suffix(PLAN):
            plan = self.model.with_name(f"{self.model.stem}.rejected{PLAN}")  # also where the model has no suffix
        return replace(self, model=model, plan=plan)

    @property
    def state(self) -> Path | None:
        """The folder of what a run that breaks off leaves to go on from."""
        return None if self.model is None else self.model.with_name(f"{self.model.name}.state")

    def check(self, sources: Sources, *external: Path) -> None:
        """Refuse destinations that cannot be written, that the run reads, or that are one file.

        Args:
            sources: files and data that the run reads.
            external: data files of the models.

        Raises:
            OptionError: the report is of an unknown format.
            OutputError: with the reason.
        """
        if self.report is not None:
            saving.check_format(self.report)
        given = (
            ("the model", self.model),
            ("the plan", self.plan),
            ("the report", self.report),
            ("the training state", self.checkpoint),
            ("the timings", self.timings),
            ("the refused model", self.rejected.model),
            ("the plan of the refused model", self.rejected.plan),
        )
        written = [*paths.outputs(given)]
        if self.checkpoint is not None:
            written.append(paths.numbered("the training state", self.checkpoint))
        if self.state is not None:
            written.append(paths.Output("the state of the run", self.state, ("*",)))
        if self.family is not None:
            written.append(paths.Output("the sweep", self.family, paths.FAMILY))
        paths.check_outputs(written, (*sources.inputs, *(paths.Input("a model", file) for file in external)))


@dataclass(frozen=True)
class Sources:
    """Files and data that a run reads; see `onnxprune.prune` and, for `teacher`, `onnxprune.finetune`."""

    model: Path
    data: DataLike | None = None
    evaluation: DataLike | None = None
    preprocess: Preprocess | str | None = None
    plan: Path | None = None
    teacher: Path | None = None
    latency_table: Path | None = None
    judging: Judging = field(default_factory=Judging)

    @property
    def inputs(self) -> tuple[paths.Input, ...]:
        """All files and folders that are read, with the options that name them."""
        judging = self.judging
        given = {
            "MODEL": self.model,
            "--data": self.data,
            "--eval": self.evaluation,
            "--preprocess": self.preprocess,
            "--plan": self.plan,
            "--teacher": self.teacher,
            "--latency-table": self.latency_table,
            "--labels": judging.labels,
            "--characters": judging.characters,
            "--metric": judging.metric,
        }
        return paths.inputs(given.items())


@dataclass(frozen=True)
class PartialModel:
    """A model, and the mask over the channels of `Run.edited` that says which of them the model still holds."""

    model: EditedModel
    held: BoolArray


@dataclass(frozen=True)
class Run:
    """All that a command knows, from its arguments to its report; stages return changed copies.

    Attributes:
        sources, destinations: files that are read and written.
        asked: options as given.
        training: settings of the training; None: no training.
        measure: benchmark config.
        distance: kind of the distance of outputs by which losses are measured, of `onnxprune.metrics.distances`.
        on_stage: progress callback.
        results: results of long steps, which a run that broke off goes on from.
        command: command line or call, for the report.
        timings: times that decisions are taken from.
        options: without `auto`.
        original: the model as loaded, its trace and its costs.
        data, evaluation: calibration samples, and the samples that the result is verified on.
        shapes: of the inputs, from the data or else from the trace.
        doubts: what is doubtful about the data.
        task: what the model does; None: not known, outputs are compared by their form.
        workspace: calibration samples and activations; None without data.
        estimator: predicts and measures costs; None where a plan is replayed.
        edited: the original after layer edits: the model that the plan speaks of.
        start: the model that channels are deleted from: `edited`, or the result of training it.
        scored: the model that scores come from: `start`, or the result of a step of the schedule.
        keep: (n_channels of `edited`,) True where a channel stays.
        step: step of the schedule, from 1.
        attempt: how often the steps of the schedule were begun; the second time is with other channel multiples.
        path: removed shares of FLOPs and of parameters, after each step.
        curves: measured losses of the groups.
        known: those of the model before edits, which its unedited groups keep.
        plan: content of plan.json; None where a model is only trained.
        model: the result so far.
        proof: comparison of the deleted with the masked channels.
        ready: repair of the selection that won against others; None: repair is still to be done.
        repaired: one record for each repaired layer.
        tuned: result of the training.
        checks: of the verdict.
        comparison: of the result with the original.
        refusal: error that ends the run once the result is kept under another name; None: the result is not refused.
        notes, report: notes of the stages, and the report.
    """

    sources: Sources
    destinations: Destinations = field(default_factory=Destinations)
    asked: Options = field(default_factory=Options)
    training: Training | None = None
    measure: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    on_stage: ProgressCallback = quiet
    command: str = ""
    results: StageResults = field(default_factory=StageResults)
    timings: Timings = field(default_factory=Timings)
    distance: str = AUTO
    options: ResolvedOptions = UNSET
    original: Analysis = UNSET
    data: Data | None = None
    evaluation: Data | None = None
    shapes: dict[str, tuple[int, ...]] = UNSET
    doubts: tuple[Check, ...] = ()
    task: Task | None = None
    workspace: Workspace | None = None
    estimator: CostEstimator | None = None
    edited: EditedModel = UNSET
    start: PartialModel = UNSET
    scored: PartialModel = UNSET
    keep: BoolArray = UNSET
    step: int = 1
    attempt: int = 1
    path: tuple[tuple[float, float], ...] = ()
    curves: tuple[Curve, ...] = ()
    known: KnownCurves | None = None
    plan: Plan = UNSET
    model: Model = UNSET
    proof: Proof | None = None
    ready: RepairResult | None = None
    repaired: tuple[Repaired, ...] = ()
    tuned: TrainingResult | None = None
    checks: tuple[Check, ...] = ()
    comparison: Comparison = UNSET
    refusal: OnnxPruneError | None = None
    notes: tuple[str, ...] = ()
    report: Report = UNSET

    @property
    def left(self) -> BoolArray:
        """Channels of `start` that stay."""
        return self.keep[self.start.held]

    @property
    def evaluating(self) -> BenchmarkConfig:
        """The benchmark config with as many samples per evaluation run as fit into `EVALUATION_BYTES` and `--memory`."""
        room = min(EVALUATION_BYTES, EVALUATED * room_beside(self.data, self.options.memory))
        fitting = int(room // (ALIVE * ITEMSIZE * largest_activation(self.original)))
        return replace(self.measure, eval_batch=max(1, min(self.measure.eval_batch, fitting)))

    @property
    def traced(self) -> Trace:
        """The trace whose groups and pins the report shows: of the model that the plan speaks of, or of the teacher."""
        return (self.edited.analysis if self.sources.teacher is None else self.original).trace

    def noted(self, *notes: str) -> Run:
        """Return the run with more notes."""
        return replace(self, notes=(*self.notes, *notes))


@dataclass(frozen=True)
class Stage:
    """One step of a run, as a value.

    Attributes:
        call: takes the run, returns a changed copy.
        requires: fields of the run that earlier stages set.
        ensures: postcondition: checks the run that `call` returns and adds the evidence; raises where the check fails.
    """

    call: Callable[[Run], Run]
    requires: tuple[str, ...] = ()
    ensures: Callable[[Run], Run] | None = None

    def __call__(self, run: Run) -> Run:
        """Check what is required, do the step, ensure its result.

        Raises:
            RuntimeError: a stage that has to come before is missing from the list.
        """
        missing = [name for name in self.requires if getattr(run, name) is UNSET]
        if missing:
            raise RuntimeError(f"{self.call.__name__} comes before a stage that sets {', '.join(missing)}")
        loaded = run.original is not UNSET
        with unless_it_does_not_run(run.original.model, run.shapes) if loaded else contextlib.nullcontext():
            run = self.call(run)
            run = run if self.ensures is None else self.ensures(run)
        if run.original is not UNSET:
            release(run.original.model.size)
        return run


def execute(run: Run, stages: Iterable[Stage]) -> Run:
    """Pass a run through stages, one after the other."""
    return functools.reduce(lambda run, stage: stage(run), stages, run)

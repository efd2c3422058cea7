"""`Run`, the value that the stages of a command build up, and `Stage`, which takes a run and returns a changed copy."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune import fileio
from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.calibration.workspace import ALIVE, ITEMSIZE, Workspace, largest_activation
from onnxprune.data.dataset import Data, DataLike
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import OutputError
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
from onnxprune.runtime.weight_files import release
from onnxprune.surgery.proof import Proof
from onnxprune.types import BoolArray, Check, Curve, Plan, Repaired, Trace

if TYPE_CHECKING:
    from onnxprune.training.distill import TrainingResult


EVALUATION_BYTES, EVALUATED = 256e6, 0.25
"""Bytes of the activations of an evaluation run, and their share of `--memory`, at most."""
UNSET: Any = None
"""Value of a field of `Run` before the stage that sets it."""


def path_of(path: str | os.PathLike[str] | None) -> Path | None:
    """Return a path, or None."""
    return None if path is None else Path(path)


@dataclass(frozen=True)
class Destinations:
    """Files that a run writes; None where one is not asked for."""

    model: Path | None = None
    plan: Path | None = None
    report: Path | None = None
    checkpoint: Path | None = None

    def check(self, *inputs: Path) -> None:
        """Refuse destinations that cannot be written, that are inputs, or that are one file.

        Raises:
            OptionError: the report is of an unknown format.
            OutputError: with the reason.
        """
        if self.report is not None:
            saving.check_format(self.report)
        for target in (self.model, self.plan, self.checkpoint, self.report):
            if target is not None:
                fileio.check_destination(target, *(path for path in inputs if path.exists()))
        if self.model is not None and self.plan is not None and fileio.same_file(self.model, self.plan):
            raise OutputError(
                "the plan would overwrite the model", where=str(self.model), hint="give the two different paths"
            )
        saving.refuse_same(self.report, self.model, self.plan, self.checkpoint)


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
    def paths(self) -> tuple[Path, ...]:
        """All files and folders that are read."""
        given = (self.data, self.evaluation, self.preprocess, self.judging.labels, self.judging.characters)
        data = (Path(v) for v in given if isinstance(v, str | os.PathLike))
        return (self.model, *(path for path in (self.teacher, self.plan) if path is not None), *data)


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
        command: command line or call, for the report.
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
        path: removed shares of FLOPs and of parameters, after each step.
        curves: measured losses of the groups.
        plan: content of plan.json; None where a model is only trained.
        model: the result so far.
        proof: comparison of the deleted with the masked channels.
        ready: repair of the selection that won against others; None: repair is still to be done.
        repaired: one record for each repaired layer.
        tuned: result of the training.
        checks: of the verdict.
        comparison: of the result with the original.
        notes, report: notes of the stages, and the report.
    """

    sources: Sources
    destinations: Destinations = field(default_factory=Destinations)
    asked: Options = field(default_factory=Options)
    training: Training | None = None
    measure: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    on_stage: ProgressCallback = quiet
    command: str = ""
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
    path: tuple[tuple[float, float], ...] = ()
    curves: tuple[Curve, ...] = ()
    plan: Plan = UNSET
    model: Model = UNSET
    proof: Proof | None = None
    ready: RepairResult | None = None
    repaired: tuple[Repaired, ...] = ()
    tuned: TrainingResult | None = None
    checks: tuple[Check, ...] = ()
    comparison: Comparison = UNSET
    notes: tuple[str, ...] = ()
    report: Report = UNSET

    @property
    def left(self) -> BoolArray:
        """Channels of `start` that stay."""
        return self.keep[self.start.held]

    @property
    def evaluating(self) -> BenchmarkConfig:
        """The benchmark config with as many samples per evaluation run as fit into `EVALUATION_BYTES` and `--memory`."""
        room = min(EVALUATION_BYTES, EVALUATED * self.options.memory)
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

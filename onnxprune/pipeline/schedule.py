"""Choose channels, in one step or by a schedule: score, allocate, and where another step follows, look at what is left."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.problem import part_of_the_way, refuse_unprunable, score, settings, with_multiple
from onnxprune.allocation.targets import meet, within
from onnxprune.calibration.workspace import Workspace
from onnxprune.data.dataset import Data
from onnxprune.errors import OptionError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.evaluation.compare import predict
from onnxprune.graph.analysis import Analysis, removed
from onnxprune.graph.model import Model
from onnxprune.metrics.outputs import Outputs, classification_accuracy, compare_outputs
from onnxprune.options import Options
from onnxprune.pipeline.distillation import TRAIN
from onnxprune.pipeline.edited_model import EditedModel
from onnxprune.pipeline.opening import from_model
from onnxprune.pipeline.rewriting import DELETE, RECONSTRUCT, RESCORE, RESTART, REWRITE
from onnxprune.pipeline.run import Run, Sources, Stage, execute
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.surgery import channels as rewrite
from onnxprune.types import BoolArray, Plan


def select_channels(run: Run) -> Run:
    """Choose channels of `Run.edited` by the schedule of the options, so that the goals of `Run.meter` are met.

    Each step goes a part of the way from the original to the goals, so that steps do not compound.

    Raises:
        ModelError: nothing can be pruned.
        OptionError: no target, or a method that needs data.
        TargetError: the target cannot be reached.
    """
    analysis = run.edited.analysis
    refuse_unprunable(analysis)
    if not run.options.has_target:
        raise OptionError(
            "nothing says how much to remove", hint="give --reduce flops=50%, a --limit, or a --threshold"
        )
    assert run.meter is not None
    run = replace(run, options=with_multiple(run.meter, run.options))
    for step in range(1, run.options.rounds + 1):
        run = once(replace(run, step=step))
    plan = Plan(run.keep, run.original.model.digest, settings(analysis, run.options), run.path, run.curves)
    return replace(run, plan=plan)


def once(run: Run) -> Run:
    """Take one step of the schedule.

    With data, what the step leaves is repaired, and the next step takes its scores from that. The result of the last step alone is
    written: it starts from the original weights, or where the run trains between steps, from the trained ones.
    """
    run = ALLOCATE(run)
    if run.step == run.options.rounds or run.workspace is None:
        return run
    if run.training is None:
        return execute(run, (DELETE, RECONSTRUCT, RESCORE))
    return execute(run, (REWRITE, RECONSTRUCT, TRAIN, RESTART))


def allocate(run: Run) -> Run:
    """Score the channels that are left, and choose which of them stay after this step."""
    options, meter, share = run.options, run.meter, run.step / run.options.rounds
    assert meter is not None
    run.on_stage("score", share)
    scored = run.scored
    problem = score(meter, options, run.workspace, run.keep, scored.model.analysis, scored.held, first=run.step == 1)
    if share < 1:
        keep = problem.allocate(part_of_the_way(meter, options, share))
    elif options.max_drop is None:
        keep = meet(problem.allocate, problem.build, meter)
    elif run.workspace is not None and run.evaluation is not None:
        keep = within(problem.allocate, MeasuredDrop.of(run, run.workspace, run.evaluation), meter, options.max_drop)
    else:
        raise OptionError("--max-drop needs data to measure it on", hint="give --data to `prune`")
    path = (*run.path, removed(run.edited.analysis, keep))
    return replace(run, keep=keep, path=path, curves=run.curves or problem.curves)


ALLOCATE = Stage(allocate, requires=("original", "edited", "scored", "keep", "meter"))


@dataclass(frozen=True)
class MeasuredDrop:
    """Points of top-1, or without labels of agreement, that a selection loses after repair.

    Attributes:
        run: whose channels are selected.
        workspace: calibration samples.
        data: evaluation samples.
        reference: outputs of the original on them.
    """

    run: Run
    workspace: Workspace
    data: Data
    reference: Outputs

    @classmethod
    def of(cls, run: Run, workspace: Workspace, data: Data) -> MeasuredDrop:
        """Run the original on the evaluation samples."""
        return cls(run, workspace, data, _outputs(run.original.model, run, data))

    def __call__(self, keep: BoolArray) -> float:
        """Return the points."""
        run = self.run
        edited = run.edited
        pruned = rewrite.delete(edited.analysis.model, edited.analysis.trace, keep)
        result = edited.repaired(pruned, keep, self.workspace, run.options, run.on_stage).model
        run.on_stage("evaluate", None)
        outputs = _outputs(result, run, self.data)
        if self.data.labels is not None:
            before, after = (
                classification_accuracy(found, self.data.labels)["top1"] for found in (self.reference, outputs)
            )
            return before - after
        agreement = compare_outputs(self.reference, outputs).get("agreement")
        if agreement is None:
            raise OptionError(
                "there is nothing to hold --max-drop against",
                why="no output of the form (samples, classes)",
                hint="give --reduce or --limit",
            )
        return 100 - agreement


def _outputs(model: Model, run: Run, data: Data) -> Outputs:
    return predict(model.session(), data, run.measure.eval_batch, str(model.path))


def make_plan(
    analysis: Analysis,
    options: Options,
    on_stage: ProgressCallback = quiet,
    workspace: Workspace | None = None,
    meter: CostEstimator | None = None,
) -> Plan:
    """Choose the channels of a model that is traced already, without edits; see `select_channels`."""
    resolved = options.resolved(workspace is not None)
    meter = meter or CostEstimator(analysis, resolved, BenchmarkConfig(), on_stage=on_stage)
    run = Run(
        Sources(analysis.model.path),
        options=resolved,
        on_stage=on_stage,
        original=analysis,
        shapes=analysis.trace.input_shapes,
        workspace=workspace,
        meter=meter,
    )
    return select_channels(from_model(run, EditedModel(analysis, analysis.model))).plan

"""Stages that select channels and edits, by the targets or from a plan."""

from __future__ import annotations

from dataclasses import replace

from onnxprune import plan_file
from onnxprune.allocation.channel_multiple import multiple_for
from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.problem import refuse_unprunable
from onnxprune.errors import PlanError
from onnxprune.graph.analysis import removed
from onnxprune.options import CHANNELS
from onnxprune.options.metadata import AUTO
from onnxprune.pipeline.edit_selection import select_edits
from onnxprune.pipeline.edited_model import replayed
from onnxprune.pipeline.opening import from_model
from onnxprune.pipeline.run import Run, Stage
from onnxprune.pipeline.schedule import select_channels
from onnxprune.surgery import edits


def select(run: Run) -> Run:
    """Select channels, edits, or both, so that the targets are met."""
    options, table = multiple_for(run.options, run.timings), run.sources.latency_table
    if table is not None and run.asked.granularity == AUTO:
        options = replace(options, granularity=CHANNELS)  # a table has no edits, and may be of another machine
    estimator = CostEstimator(
        run.original, options, run.measure, shapes=run.shapes, table=table, on_stage=run.on_stage, timings=run.timings
    )
    run = replace(run, estimator=estimator, options=options)
    found = select_edits(run) if options.edits else select_channels(run)
    return _noted(replace(found, options=options, step=options.rounds))


def replay(run: Run) -> Run:
    """Take the selection and the edits from a plan."""
    path = run.sources.plan
    assert path is not None
    digest = run.original.model.digest
    rounds = [[edits.from_dict(entry, str(path)) for entry in part] for part in plan_file.blocks(path, digest)]
    edited = replayed(run.edited, rounds, run.options, run.workspace, run.on_stage)
    if not edited.chosen:
        refuse_unprunable(run.original)
    trace = edited.analysis.trace
    plan = plan_file.read(path, trace, digest)
    inexact = int((trace.inexact() & ~plan.keep).sum())
    if run.options.repair != "lstsq" and inexact:
        raise PlanError(
            "the plan cuts channels that a normalization runs over, which needs --repair lstsq",
            where=str(path),
            why=f"without {inexact} of them all others change",
            hint="give --data, and --repair lstsq or auto",
        )
    gone = (removed(edited.analysis, plan.keep, run.original),)  # counted, as the plan may have been edited by hand
    return _noted(replace(from_model(run, edited), keep=plan.keep, plan=plan, path=gone, step=run.options.rounds))


def _noted(run: Run) -> Run:
    """Return the run with notes on inexact channels and missing repair."""
    keep, notes = run.keep, []
    cut = int((run.edited.analysis.trace.inexact() & ~keep).sum())
    if cut:
        notes.append(
            f"inexact: {cut} of the deleted channels lie under a normalization, whose statistics now run over the kept "
            "ones: the result equals the masked model with statistics over the same channels, and repair reduces the "
            "difference; --norms keep pins such channels"
        )
    if run.options.repair == "none" and not (keep.all() and not run.plan.blocks):
        notes.append("nothing was repaired: the remaining weights are unchanged")
    return run.noted(*notes)


SELECT = Stage(select, requires=("original", "edited"))
REPLAY = Stage(replay, requires=("original", "edited"))

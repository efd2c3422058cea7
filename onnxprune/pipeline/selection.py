"""Stages that choose what goes: channels, edits of layers or both, or what a plan says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxprune import plan_file
from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.problem import refuse_unprunable
from onnxprune.errors import PlanError
from onnxprune.graph.analysis import removed
from onnxprune.pipeline.edit_selection import select_edits
from onnxprune.pipeline.edited_model import replayed
from onnxprune.pipeline.opening import from_model
from onnxprune.pipeline.run import Run, Stage
from onnxprune.pipeline.schedule import select_channels
from onnxprune.surgery import edits


def select(run: Run) -> Run:
    """Choose channels, edits, or what the two come to together, so that the targets are met."""
    options, table = run.options, run.sources.latency_table
    meter = CostEstimator(run.original, options, run.measure, shapes=run.shapes, table=table, on_stage=run.on_stage)
    run = replace(run, meter=meter)
    found = select_edits(run) if options.edits else select_channels(run)
    return _with_facts(replace(found, options=options, step=options.rounds))


def replay(run: Run) -> Run:
    """Take the selection and the edits of a plan."""
    path = run.sources.plan
    assert path is not None
    digest = run.original.model.digest
    rounds = [[edits.from_dict(entry, str(path)) for entry in part] for part in plan_file.blocks(path, digest)]
    edited = replayed(run.edited, rounds, run.options, run.workspace, run.on_stage)
    if not edited.chosen:
        refuse_unprunable(run.original)
    trace = edited.analysis.trace
    plan = plan_file.read(path, trace, digest)
    gone = np.flatnonzero(trace.inexact() & ~plan.keep)
    if run.options.repair != "lstsq" and gone.size:
        raise PlanError(
            "the plan cuts channels that a normalisation runs over, which takes repair",
            where=str(path),
            why=f"without {gone.size} of them all others change",
            hint="give --data, and --repair lstsq or auto",
        )
    gone_shares = removed(edited.analysis, plan.keep, run.original)  # the plan may have been edited
    run = replace(from_model(run, edited), keep=plan.keep, plan=plan, path=(gone_shares,), step=run.options.rounds)
    return _with_facts(run)


def _with_facts(run: Run) -> Run:
    """Return the run with what a report says of the selection."""
    keep, notes = run.keep, []
    cut = int((run.edited.analysis.trace.inexact() & ~keep).sum())
    if cut:
        notes.append(
            f"inexact: {cut} of the channels that went lie under a normalisation, whose statistics now run over what is left: that "
            "equals the masked model with its statistics over the same channels, and repair makes up for it; --norms keep leaves them"
        )
    if run.options.repair == "none" and not (keep.all() and not run.plan.blocks):
        notes.append("nothing was repaired: the weights that survive are as they were")
    return run.noted(*notes)


SELECT = Stage(select, requires=("original", "edited"))
REPLAY = Stage(replay, requires=("original", "edited"))

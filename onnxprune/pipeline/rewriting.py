"""Stages that delete channels, prove the deletion, and repair the weights that are left."""

from __future__ import annotations

from dataclasses import replace

from onnxprune.errors import TargetError
from onnxprune.graph.analysis import analysed
from onnxprune.graph.weight_changes import changed, changes
from onnxprune.pipeline.edited_model import EditedModel, worst
from onnxprune.pipeline.run import PartialModel, Run, Stage
from onnxprune.repair.least_squares import RepairTask
from onnxprune.repair.network import refit
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.mask import mask
from onnxprune.surgery.proof import prove


def delete(run: Run) -> Run:
    """Delete the channels that do not stay."""
    run.on_stage("rewrite", None)
    start = run.start.model.analysis
    return replace(run, model=rewrite.delete(start.model, start.trace, run.left))


def proven(run: Run) -> Run:
    """Prove that the model without the channels has the outputs of the masked model.

    Raises:
        ProofError: the outputs differ.
    """
    if run.left.all() and run.proof is not None:
        return run
    run.on_stage("prove", None)
    start = run.start.model.analysis
    masked = mask(start.model, start.trace, run.left)
    changed = run.proof is not None  # by edits or training, so that the file holds other weights
    samples = None if run.workspace is None else run.workspace.some
    found = prove(start.model, run.model, masked, run.shapes, run.options.seed, loaded=changed, samples=samples)
    return replace(run, proof=worst(run.proof, found))


def repair(run: Run) -> Run:
    """Repair the result on the calibration samples, unless that increases the divergence on held-out samples."""
    layers, notes = run.edited.layers, run.edited.notes
    run = replace(run, repaired=layers).noted(*notes)
    if run.workspace is None:
        return run
    result = run.ready or run.start.model.repaired(run.model, run.left, run.workspace, run.options, run.on_stage)
    again = {layer.label for layer in result.layers}
    layers = (*(layer for layer in layers if layer.label not in again), *result.layers)
    return replace(run, model=result.model, repaired=layers).noted(*result.notes)


def reconstruct(run: Run) -> Run:
    """Repair the result of a step that another one follows, without a look at held-out samples."""
    assert run.workspace is not None
    start = run.start.model
    pruned, workspace, left = run.model, run.workspace, run.left
    task = RepairTask(start.reference, pruned, start.analysis.trace, left)
    model = workspace.results.of(
        "reconstruct",
        lambda: (start.reference.content_digest(), pruned.content_digest(), left, run.options, workspace.identity),
        lambda: refit(task, workspace, run.options, run.on_stage)[0],
        pack=lambda found: changes(pruned, found),
        unpack=lambda packed: changed(pruned, packed),
    )
    return replace(run, model=model)


def rescore(run: Run) -> Run:
    """Score the next step on the result of this one.

    Raises:
        TargetError: the channels of the result are coupled in another way than before.
    """
    analysis = analysed(run.model, run.options, run.edited.analysis.trace.input_shapes)
    if analysis.trace.n_channels != int(run.keep.sum()):
        raise TargetError(
            "the progressive schedule cannot follow this model",
            why="after a step its channels are coupled in another way than before",
            hint="use --schedule block",
        )
    return replace(run, scored=PartialModel(EditedModel(analysis, run.model), run.keep))


def restart(run: Run) -> Run:
    """Start the next step from the trained result of this one; repair then aims at that."""
    run = rescore(run)
    return replace(run, start=run.scored)


DELETE = Stage(delete, requires=("start", "keep"))
REWRITE = Stage(delete, requires=("start", "keep"), ensures=proven)
REPAIR = Stage(repair, requires=("model", "edited"))
RECONSTRUCT = Stage(reconstruct, requires=("model", "workspace"))
RESCORE = Stage(rescore, requires=("model", "edited"))
RESTART = Stage(restart, requires=("model", "edited"))

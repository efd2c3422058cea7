"""Stages that train what is left of a network towards the original, and delete the channels that training has gated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from onnxprune import plan_file
from onnxprune.errors import TargetError
from onnxprune.graph.analysis import Analysis, analyse, analysed, removed
from onnxprune.graph.model import Model
from onnxprune.options import Training
from onnxprune.pipeline.opening import with_augmentation
from onnxprune.pipeline.rewriting import with_proof
from onnxprune.pipeline.run import Run, Stage
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.proof import prove
from onnxprune.types import BoolArray, IntArray

LAST_SHARE = 0.5
"""Share of the training that comes after the last step of a progressive schedule; the rest is spread evenly between the steps."""
Features = Mapping[str, tuple[int, IntArray | None]]
"""Activations to compare: their axis of channels, and the positions of the teacher's channels; None: all."""


def train(run: Run) -> Run:
    """Train the result towards the original: after the last step with gates, between steps for a part of the time."""
    training, rounds = run.training, run.options.rounds
    if training is None:
        return run
    is_last = run.step == rounds
    share = 1.0 if rounds == 1 else LAST_SHARE if is_last else (1 - LAST_SHARE) / (rounds - 1)
    training = replace(training, amount=training.amount * share)
    if not is_last:
        training = replace(training, gate_below=None)
    gates = None
    if training.gate_below is not None:
        gates = analysed(run.model, replace(run.options, ignore=()), run.original.trace.input_shapes).trace
        if gates.n_channels != int(run.keep.sum()):
            raise TargetError(
                "--gate-below cannot follow this model",
                why="pruned, its channels are coupled in another way than before",
                hint="leave it out",
            )
    features = boundaries(run.edited.teacher, run.keep, run.model) if training.features else {}
    run = _trained(replace(run, gates=gates), training, features)
    return run.noted(*run.tuned.notes) if run.tuned is not None and is_last else run


def train_student(run: Run) -> Run:
    """Train a model towards its teacher."""
    assert run.training is not None
    features = _features(run) if run.training.features else {}
    gates = run.edited.analysis.trace if run.training.gate_below is not None else None
    run = _trained(replace(run, gates=gates), run.training, features)
    return run if run.tuned is None else run.noted(*run.tuned.notes)


def _trained(run: Run, training: Training, features: Features) -> Run:
    from onnxprune.training.distill import Setting, distill  # only here: torch takes seconds to load

    assert run.data is not None
    setting = Setting(
        run.options.seed,
        features,
        run.gates,
        state_file(run, run.step),
        run.options.memory / 2,
        lambda share, text: run.on_stage("train", share, text),
    )
    tuned = distill(run.model, run.edited.reference, run.data, with_augmentation(training, run.data), setting)
    return replace(run, model=tuned.model, tuned=tuned)


def delete_gated(run: Run) -> Run:
    """Delete the channels that training has gated."""
    gated = None if run.tuned is None else run.tuned.gated
    if gated is None or run.gates is None or not gated.any():
        return run
    keep = run.keep.copy()
    keep[np.flatnonzero(keep)[gated]] = False
    model = rewrite.delete(run.model, run.gates, ~gated)
    return replace(run, model=model, keep=keep, path=(*run.path, removed(run.edited.analysis, keep, run.original)))


def gates_proven(run: Run) -> Run:
    """Prove that deleting the gated channels changes nothing: training has set them to zero.

    Raises:
        ProofError: the outputs differ.
    """
    if run.tuned is None or run.model is run.tuned.model:
        return run
    run.on_stage("prove", None)
    tuned = run.tuned.model
    return with_proof(run, prove(tuned, run.model, tuned, run.shapes, run.options.seed, loaded=True))


def state_file(run: Run, step: int) -> Path | None:
    """Return the file that keeps the state of the training after a step; that of the last step has no number."""
    path = run.destinations.checkpoint
    return path if path is None or step == run.options.rounds else path.with_name(f"{path.name}.{step}")


def forget_states(run: Run) -> None:
    """Remove the states of the training: the run is over."""
    for step in range(1, run.options.rounds + 1):
        path = state_file(run, step)
        if path is not None:
            path.unlink(missing_ok=True)


def boundaries(original: Analysis, keep: BoolArray, model: Model) -> Features:
    """Return the last activation of every group that both models have, with its axis and the positions of the channels that are left."""
    order = {tensor.name: n for n, node in enumerate(original.model.graph.nodes) for tensor in node.outputs}
    there = {tensor.name for node in model.graph.nodes for tensor in node.outputs}
    group_of = np.full(original.trace.n_channels, -1)
    for number, group in enumerate(original.trace.groups):
        group_of[group.channels] = number
    last: dict[int, str] = {}
    for name, (_, channels) in original.trace.carried.items():
        if name not in order or name not in there or (channels < 0).any():
            continue
        groups = np.unique(group_of[channels])
        if groups.size == 1 and (groups[0] not in last or order[name] > order[last[int(groups[0])]]):
            last[int(groups[0])] = name
    found: dict[str, tuple[int, IntArray | None]] = {}
    for name in last.values():
        axis, channels = original.trace.carried[name]
        found[name] = (axis, np.flatnonzero(keep[channels]))
    return found


def _features(run: Run) -> Features:
    """Return the activations to compare: with a plan at the end of every group, without those that have the same shape in both."""
    teacher, student, plan = run.original, run.edited.analysis, run.sources.plan
    if plan is not None:
        traced = analyse(teacher.model, known=run.shapes, **plan_file.structure(plan))
        chosen = plan_file.read(plan, traced.trace, teacher.model.digest)
        return boundaries(traced, chosen.keep, student.model)
    everything = np.ones(teacher.trace.n_channels, dtype=bool)
    found = boundaries(teacher, everything, student.model)
    ours, theirs = student.trace.shapes, teacher.trace.shapes
    return {name: (axis, None) for name, (axis, _) in found.items() if ours.get(name) == theirs[name]}


TRAIN = Stage(train, requires=("original", "model"))
TRAIN_STUDENT = Stage(train_student, requires=("original", "model"))
DELETE_GATED = Stage(delete_gated, requires=("edited", "model"), ensures=gates_proven)

"""The stage that trains a pruned model towards the original, and deletes the channels that training gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from onnxprune import plan_file
from onnxprune.calibration.stage_results import TRAINING
from onnxprune.errors import TargetError
from onnxprune.graph.analysis import Analysis, analyse, analysed, removed
from onnxprune.graph.model import Model
from onnxprune.pipeline.edited_model import worst
from onnxprune.pipeline.opening import with_augmentation
from onnxprune.pipeline.run import Run, Stage
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.proof import prove
from onnxprune.types import BoolArray, IntArray, Trace

LAST_SHARE = 0.5
"""Share of the training after the last step of a progressive schedule; the rest is spread evenly between the steps."""
Features = Mapping[str, tuple[int, IntArray | None]]
"""Activations to compare: channel axis, and positions of the teacher's channels; None: all."""


def train(run: Run) -> Run:
    """Train the result towards the original, then delete the gated channels.

    Between steps of a schedule training takes a part of the time, and gates nothing.

    Raises:
        TargetError: the channels of the pruned model are coupled in another way than before.
    """
    training, rounds = run.training, run.options.rounds
    if training is None:
        return run
    from onnxprune.training.distill import Setting, distill  # only here: torch is an extra, and takes seconds to load

    assert run.data is not None
    is_last = run.step == rounds
    share = 1.0 if rounds == 1 else LAST_SHARE if is_last else (1 - LAST_SHARE) / (rounds - 1)
    training = replace(training, amount=training.amount * share, gate_below=training.gate_below if is_last else None)
    gates = None if training.gate_below is None else _gates(run)
    setting = Setting(
        run.options.seed,
        _features(run) if training.features else {},
        gates,
        state_file(run, run.step),
        run.options.memory / 2,
        lambda share, text: run.on_stage("train", share, text),
        run.distance,
    )
    tuned = distill(run.model, run.edited.reference, run.data, with_augmentation(training, run.data), setting)
    earlier = () if run.tuned is None else run.tuned.states
    run = replace(run, model=tuned.model, tuned=replace(tuned, states=(*earlier, *tuned.states)))
    if is_last:
        run = run.noted(*tuned.notes)
    if gates is None or tuned.gated is None or not tuned.gated.any():
        return run
    keep = run.keep.copy()
    keep[np.flatnonzero(keep)[tuned.gated]] = False
    model = rewrite.delete(tuned.model, gates, ~tuned.gated)
    return replace(run, model=model, keep=keep, path=(*run.path, removed(run.edited.analysis, keep, run.original)))


def _gates(run: Run) -> Trace:
    """Return the trace of the model that is trained."""
    if run.sources.teacher is not None:
        return run.edited.analysis.trace
    found = analysed(run.model, replace(run.options, ignore=()), run.original.trace.input_shapes).trace
    if found.n_channels != int(run.keep.sum()):
        raise TargetError(
            "--gate-below cannot follow this model",
            why="pruned, its channels are coupled in another way than before",
            hint="leave it out",
        )
    return found


def gates_proven(run: Run) -> Run:
    """Prove that deleting the gated channels changes nothing: training has set their weights to zero.

    Raises:
        ProofError: the outputs differ.
    """
    if run.tuned is None or run.model is run.tuned.model:
        return run
    run.on_stage("prove", None)
    tuned = run.tuned.model
    found = prove(tuned, run.model, tuned, run.shapes, run.options.seed, loaded=True)
    return replace(run, proof=worst(run.proof, found))


def state_file(run: Run, step: int) -> Path | None:
    """Return the file of the training state after a step; that of the last step has no number."""
    from onnxprune.training.checkpoint import file_of  # only here: torch is an extra, and takes seconds to load

    path = run.destinations.checkpoint or run.results.file(TRAINING)
    rounds = run.options.rounds
    number = step if step == rounds else step + rounds * (run.attempt - 1)
    return None if path is None else file_of(path, number, rounds)


def forget_states(run: Run) -> None:
    """Remove the training states of this run, and no other file: the run is over."""
    from onnxprune.training import checkpoint  # only here, as above

    for path, key in () if run.tuned is None else run.tuned.states:
        checkpoint.forget(path, key)


def boundaries(original: Analysis, keep: BoolArray, model: Model) -> Features:
    """Return the last common activation of every group: its channel axis, and the positions of the kept channels."""
    order = {tensor.name: n for n, node in enumerate(original.model.graph.nodes) for tensor in node.outputs}
    there = {tensor.name for node in model.graph.nodes for tensor in node.outputs}
    trace = original.trace
    group_of = np.full(trace.n_channels, -1)
    for number, group in enumerate(trace.groups):
        group_of[group.channels] = number
    last: dict[int, str] = {}
    for name in sorted((order.keys() & there) & trace.carried.keys(), key=order.__getitem__):
        channels = trace.carried[name][1]
        if not (channels < 0).any() and (groups := np.unique(group_of[channels])).size == 1:
            last[int(groups[0])] = name
    return {
        name: (axis, np.flatnonzero(keep[channels]))
        for name in last.values()
        for axis, channels in [trace.carried[name]]
    }


def _features(run: Run) -> Features:
    """Return the activations to compare; those of equal shape for a student whose plan is not given."""
    if run.sources.teacher is None:
        return boundaries(run.edited.teacher, run.keep, run.model)
    teacher, student, plan = run.original, run.edited.analysis, run.sources.plan
    if plan is not None:
        traced = analyse(teacher.model, known=run.shapes, **plan_file.structure(plan))
        chosen = plan_file.read(plan, traced.trace, teacher.model.digest)
        return boundaries(traced, chosen.keep, student.model)
    found = boundaries(teacher, np.ones(teacher.trace.n_channels, dtype=bool), student.model)
    ours, theirs = student.trace.shapes, teacher.trace.shapes
    return {name: (axis, None) for name, (axis, _) in found.items() if ours.get(name) == theirs[name]}


TRAIN = Stage(train, requires=("original", "model"), ensures=gates_proven)

"""Repair a pruned network, and undo the repair where it increases the divergence on held-out samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxprune.calibration.batches import Calibration
from onnxprune.calibration.workspace import Workspace
from onnxprune.graph.comparison_points import Measured, measured_tensors
from onnxprune.graph.model import Model, count_params
from onnxprune.graph.readers import linear_layers, units_of
from onnxprune.metrics.distances import AUTO
from onnxprune.metrics.outputs import Outputs, output_divergence
from onnxprune.options import ResolvedOptions
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.repair import least_squares
from onnxprune.repair.least_squares import RepairTask
from onnxprune.runtime.session import DEFAULT, Feeds, SessionConfig, run_batch
from onnxprune.surgery.cuts import Pair, Subject
from onnxprune.types import Repaired

MOST_SAMPLES = 256
HEADER_BYTES = 200
"""Bytes that a stored bias takes beside its values: its name, twice, and its shape."""


@dataclass(frozen=True)
class RepairResult:
    """A pruned model after repair.

    Attributes:
        model: with the repaired weights, or as it was pruned where repair was undone.
        layers: one record for each repaired layer.
        notes: for the report.
        loss: divergence of the output from the reference on held-out samples; NaN where it was not measured.
    """

    model: Model
    layers: tuple[Repaired, ...] = ()
    notes: tuple[str, ...] = ()
    loss: float = math.nan


def refit(
    task: RepairTask, workspace: Workspace, options: ResolvedOptions, on_stage: ProgressCallback = quiet
) -> tuple[Model, tuple[Repaired, ...]]:
    """Refit all layers, without a look at held-out samples; see `onnxprune.repair.least_squares.repair`."""
    progress = share_of(on_stage, "repair")
    task = replace(task, adds_biases=_may_add_biases(task, options))
    return least_squares.repair(task, workspace, only_bias=options.repair == "bias", progress=progress)


def _may_add_biases(task: RepairTask, options: ResolvedOptions) -> bool:
    """Tell whether layers without a bias may get one: they are not counted before, and the file never exceeds the original's."""
    if {"params", "size"} & {*options.reduce, *options.limit}:
        return False
    layers = linear_layers(task.pruned.graph).values()
    new = [layer for layer in layers if layer.bias is not None and not layer.bias_place]
    outputs = [math.prod(layer.matrix(layer.values).shape[:2]) for layer in new]
    size = sum(n * layer.values.itemsize + HEADER_BYTES for n, layer in zip(outputs, new, strict=True))
    original, pruned = task.reference, task.pruned
    fits = count_params(pruned.stub()[0]) + sum(outputs) <= original.params
    return fits and bool(pruned.byte_size() + size <= original.size)


def refit_if_better(
    task: RepairTask, workspace: Workspace, options: ResolvedOptions, on_stage: ProgressCallback = quiet
) -> RepairResult:
    """Refit all layers, unless that increases the divergence of the output from the reference on held-out samples."""
    model, layers = refit(task, workspace, options, on_stage)
    before, after = divergences(task.reference, (task.pruned, model), workspace.calibration, workspace.distance)
    notes = list(workspace.notes)
    if before == math.inf == after:
        notes.append("the repair was not judged: no output of the result is comparable with one of the original")
    if after > before:
        rise = f"({after:.3g} after {before:.3g})"
        text = f"repair was undone: on held-out samples it moves the output further from the original {rise}"
        return RepairResult(task.pruned, (), (*notes, text), before)
    if not layers:
        notes.append(
            "nothing was repaired: no layer behind a cut has weights that can be refitted; quantized ones stay"
        )
    graph = task.pruned.graph
    fixed = sum(unit.fixed for unit in units_of(graph, linear_layers(graph)))
    if fixed:
        notes.append(f"{fixed} layers keep their weights as they were cut: other nodes read these as another matrix")
    kept = sum(1 for layer in layers if layer.after >= layer.before)
    if kept:
        notes.append(f"{kept} of {len(layers)} layers keep their weights: no change predicts held-out rows better")
    return RepairResult(model, layers, tuple(notes), after)


def divergences(
    model: Model, candidates: Sequence[Model], calibration: Calibration, distance: str = AUTO
) -> list[float]:
    """Return the divergence of each candidate's output from the model's, on held-out samples, by a kind of distance."""
    batches = held_batches(calibration, MOST_SAMPLES)
    found = measured_tensors(model.graph)
    names = [name for name in found.names if all(_has(one, name) for one in candidates)]
    measured = Measured(tuple(names), found.points)
    reference = outputs_of(model, batches, names)
    found_of = (measured_of(model, one, batches, measured) for one in candidates)
    return [output_divergence(reference, outputs, scores=not found.points, kind=distance) for outputs in found_of]


def _has(model: Model, name: str) -> bool:
    """Tell whether a model computes a tensor of a name; edits remove some."""
    return any(tensor.name == name for node in model.graph.nodes for tensor in node.outputs)


def held_batches(calibration: Calibration, samples: int) -> list[Feeds]:
    """Return held-out batches, up to a number of samples, augmented ones included."""
    numbers = [batch for batch in range(len(calibration)) if calibration.is_held(batch)]
    wanted = max(1, min(len(numbers), samples // calibration.batch))
    chosen = {numbers[i * len(numbers) // wanted] for i in range(wanted)}
    return [feeds for batch, feeds in enumerate(calibration) if batch in chosen]


def outputs_of(
    model: Model, batches: Sequence[Feeds], names: Sequence[str], config: SessionConfig = DEFAULT
) -> Outputs:
    """Return outputs and other tensors of a model, joined over the batches."""
    opened = model.session(config, outputs=names)
    return model.signature.join([run_batch(opened, feeds, names=list(names)) for feeds in batches], names)


def measured_of(
    original: Model,
    changed: Model,
    batches: Sequence[Feeds],
    measured: Measured,
    config: SessionConfig = DEFAULT,
) -> Outputs:
    """Return the measured tensors of a changed model that selects what the original selects, joined over the batches."""
    if not measured.points:
        return outputs_of(changed, batches, measured.names, config)
    first, second = (Subject(model, str(model.path)) for model in (original, changed))
    run, names = Pair(first, second, measured.names, measured.points, config), measured.names
    both = original.signature.join([run(feeds) for feeds in batches], names * 2)
    return both[len(names) :]

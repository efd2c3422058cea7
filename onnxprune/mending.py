"""Repair a pruned model, and keep that only where it is better on samples held out."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass

from onnxprune.allocation import sensitivity
from onnxprune.analysis import Analysis
from onnxprune.graph.model import Model
from onnxprune.options import Options
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.repair import least_squares as repair
from onnxprune.types import BoolArray, Repaired
from onnxprune.workspace import Workspace


@dataclass(frozen=True)
class Mended:
    """A pruned model after repair.

    Attributes:
        model: what came of it.
        layers: what was done at each layer.
        notes: what a reader should know.
        loss: divergence of its output from what it was repaired towards, on samples held out; NaN where that was not measured.
    """

    model: Model
    layers: tuple[Repaired, ...] = ()
    notes: tuple[str, ...] = ()
    loss: float = math.nan


def mend(
    analysis: Analysis,
    pruned: Model,
    keep: BoolArray,
    workspace: Workspace,
    options: Options,
    on_stage: ProgressCallback = quiet,
    *,
    reference: Model | None = None,
    changed: Set[str] = frozenset(),
    depth: int = repair.DEPTH,
) -> Mended:
    """Repair a pruned model as the options say, and keep that only where the output held out says that it is better.

    Args:
        analysis: of the model that was pruned.
        pruned: what is left.
        keep: what that is.
        workspace: calibration data.
        options: the dials.
        on_stage: called as it goes on.
        reference: what to repair towards, where that is not the model that was analysed.
        changed: tensors of other layers than those of the reference, where nothing has repaired them yet.
        depth: how many layers are fitted together, at most.
    """
    reference = reference or analysis.model
    model, layers = repaired(analysis, pruned, keep, workspace, options, on_stage, reference, changed, depth)
    before, after = sensitivity.losses(reference, (pruned, model), workspace.calibration)
    notes = list(workspace.notes)
    if after > before:
        text = f"repair was undone: on inputs held out it moves the output further from the original ({after:.3g} after {before:.3g})"
        return Mended(pruned, (), (*notes, text), before)
    kept = sum(1 for layer in layers if layer.after >= layer.before)
    if kept:
        notes.append(f"{kept} of {len(layers)} layers keep their weights: no change predicted the rows held out better")
    return Mended(model, layers, tuple(notes), after)


def repaired(
    analysis: Analysis,
    pruned: Model,
    keep: BoolArray,
    workspace: Workspace,
    options: Options,
    on_stage: ProgressCallback,
    reference: Model,
    changed: Set[str] = frozenset(),
    depth: int = repair.DEPTH,
) -> tuple[Model, tuple[Repaired, ...]]:
    """Repair a pruned model as the options say, whatever comes of it; see `mend`, and `onnxprune.repair.least_squares.repair`."""
    return repair.repair(
        reference,
        pruned,
        analysis.trace,
        keep,
        workspace.calibration,
        store=workspace.store,
        memory=workspace.memory,
        only_bias=options.repair == "bias",
        depth=depth,
        seed=options.seed,
        changed=changed,
        progress=share_of(on_stage, "repair"),
    )

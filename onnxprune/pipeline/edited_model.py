"""Apply edits to a model, prove them, and repair the result: once, or in rounds."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.allocation.edit_choice import ScoredEdit
from onnxprune.allocation.edit_study import grams
from onnxprune.calibration.workspace import Workspace
from onnxprune.graph.analysis import Analysis, analysed, unless_it_does_not_run
from onnxprune.graph.model import Model
from onnxprune.graph.readers import linear_layers
from onnxprune.graph.weight_changes import changed, changes
from onnxprune.options import ResolvedOptions
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.repair.least_squares import DEPTH, RepairTask
from onnxprune.repair.network import RepairResult, refit_if_better
from onnxprune.surgery.edits.apply import apply_edits
from onnxprune.surgery.edits.protocol import Edit, RefusalError
from onnxprune.surgery.proof import Proof, prove
from onnxprune.types import BoolArray, Repaired


@dataclass(frozen=True)
class EditedModel:
    """The model that channel pruning starts from: the original, or the original after layer edits.

    Attributes:
        analysis: of the repaired model.
        reference: the original, the target of the repair.
        chosen: the edits, in rounds; each round names layers of the result of the round before.
        proof: the largest difference between rewritten and masked models; None without edits.
        changed: tensors that edited layers write; these layers are not yet fitted together.
        layers: one record for each repaired layer.
        notes: for the report.
        loss: divergence of the output from the original on held-out samples; NaN where not measured.
    """

    analysis: Analysis
    reference: Model
    chosen: tuple[tuple[ScoredEdit, ...], ...] = ()
    proof: Proof | None = None
    changed: frozenset[str] = frozenset()
    layers: tuple[Repaired, ...] = ()
    notes: tuple[str, ...] = ()
    loss: float = math.nan

    @property
    def teacher(self) -> Analysis:
        """The original as the target of training, with the trace of the edited model."""
        return replace(self.analysis, model=self.reference)

    @property
    def edits(self) -> tuple[ScoredEdit, ...]:
        """The edits of all rounds."""
        return tuple(edit for part in self.chosen for edit in part)

    @property
    def edit_dicts(self) -> tuple[tuple[dict[str, Any], ...], ...]:
        """The edits as a plan holds them."""
        return tuple(tuple(edit.to_dict() for edit in part) for part in self.chosen)

    def repaired(
        self,
        pruned: Model,
        keep: BoolArray,
        workspace: Workspace,
        options: ResolvedOptions,
        on_stage: ProgressCallback = quiet,
        *,
        depth: int = DEPTH,
    ) -> RepairResult:
        """Repair `pruned`, which is this model with the channels of `keep` alone; see `onnxprune.repair.network`."""
        if options.repair not in ("lstsq", "bias") or (keep.all() and not self.changed):
            return RepairResult(pruned, notes=workspace.notes)
        task = RepairTask(self.reference, pruned, self.analysis.trace, keep, self.changed, depth)
        return workspace.results.of(
            "repair",
            lambda: (
                self.reference.content_digest(),
                pruned.content_digest(),
                keep,
                self.changed,
                depth,
                options,
                workspace.identity,
            ),
            lambda: refit_if_better(task, workspace, options, on_stage),
            pack=lambda found: _packed(pruned, found),
            unpack=lambda packed: RepairResult(changed(pruned, packed[0]), *packed[1:]),
            types=(Repaired,),
        )


def _packed(pruned: Model, found: RepairResult) -> tuple[Any, ...] | None:
    """Return the repair of a pruned model as plain values; None where it cannot be told by changed constants."""
    weights = changes(pruned, found.model)
    return None if weights is None else (weights, found.layers, found.notes, found.loss)


def edited(base: EditedModel, chosen: Sequence[ScoredEdit], options: ResolvedOptions) -> tuple[EditedModel, Model]:
    """Apply one round of edits; return the unproven, unrepaired result, and the masked model that it must equal.

    Raises:
        PlanError: an edit cannot be made.
    """
    made = apply_edits(base.analysis.model, [scored.edit for scored in chosen])
    analysis = analysed(made.model, options, base.analysis.trace.input_shapes)
    after = replace(base, analysis=analysis, chosen=(*base.chosen, tuple(chosen)), changed=made.changed)
    return replace(after, layers=(), loss=math.nan), made.masked


def apply(
    base: EditedModel,
    chosen: Sequence[ScoredEdit],
    options: ResolvedOptions,
    workspace: Workspace | None,
    on_stage: ProgressCallback = quiet,
) -> EditedModel:
    """Apply one round of edits, prove them, and repair the result layer by layer, without augmented samples.

    Raises:
        PlanError: an edit cannot be made.
        ProofError: the result differs from the masked model.
    """
    if not chosen:
        return base
    on_stage("edit layers", None)
    after, masked = edited(base, chosen, options)
    known = base.analysis.trace.input_shapes
    on_stage("prove", None)
    before, model = base.analysis.model, after.analysis.model
    with unless_it_does_not_run(before, known):
        samples = None if workspace is None else workspace.some
        proof = prove(before, model, masked, known, options.seed, loaded=bool(base.chosen), samples=samples)
    proof = worst(base.proof, proof)
    changed = base.changed | after.changed
    if workspace is None or options.repair not in ("lstsq", "bias"):
        return replace(after, proof=proof, changed=changed)
    keep = np.ones(after.analysis.trace.n_channels, dtype=bool)
    result = after.repaired(model, keep, workspace.plain, options, on_stage, depth=1)
    return replace(
        after,
        analysis=analysed(result.model, options, known),
        proof=proof,
        changed=changed,
        layers=result.layers,
        notes=(*base.notes, *(note for note in result.notes if note not in (*base.notes, *workspace.notes))),
        loss=result.loss,
    )


def worst(one: Proof | None, two: Proof) -> Proof:
    """Return one proof of two changes, with the larger differences."""
    if one is None:
        return two
    difference, normalized = max(one.difference, two.difference), max(one.normalized, two.normalized)
    return replace(one, difference=difference, normalized=normalized)


def replayed(
    base: EditedModel,
    rounds: Sequence[Sequence[Edit]],
    options: ResolvedOptions,
    workspace: Workspace | None,
    on_stage: ProgressCallback = quiet,
) -> EditedModel:
    """Apply the edits of a plan; directions of low-rank edits come from the data, or without data from the weights.

    Raises:
        PlanError: an edit cannot be made.
    """
    for edits in rounds:
        chosen = [ScoredEdit(edit) for edit in edits]
        if workspace is not None:
            chosen = refitted(base.analysis, chosen, options, workspace)
        base = apply(base, chosen, options, workspace, on_stage)
    return base


def refitted(
    analysis: Analysis, chosen: Sequence[ScoredEdit], options: ResolvedOptions, workspace: Workspace
) -> list[ScoredEdit]:
    """Return edits refitted to the layer inputs of a model; an edit that does not fit the model stays as it is."""
    layers = linear_layers(analysis.model.graph)
    numbers = {label: n for n, label in enumerate(analysis.trace.labels)}
    wanted = {numbers.get(scored.edit.layer, -1): scored for scored in chosen if scored.edit.needs_data}
    wanted = {n: scored for n, scored in wanted.items() if n in layers}
    found: dict[str, ScoredEdit] = {}
    for n, gram in grams(analysis, {n: layers[n] for n in wanted}, options, workspace):
        with contextlib.suppress(RefusalError):  # `apply` raises with the reason
            found[wanted[n].edit.layer] = replace(wanted[n], edit=wanted[n].edit.refit(gram)[0])
    return [found.get(scored.edit.layer, scored) if scored.edit.needs_data else scored for scored in chosen]

"""Make edits to a model, prove them, repair what is left: once, or one round after the other."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.calibration.moments import threads_for
from onnxprune.calibration.workspace import Workspace
from onnxprune.granularity.candidates import Candidate
from onnxprune.granularity.edits import Edit, Grouped, Rank, Split, to_dict
from onnxprune.granularity.losses import Gram
from onnxprune.granularity.refusal import RefusalError
from onnxprune.granularity.rewriting import Bases, reform
from onnxprune.granularity.timing import Saving
from onnxprune.graph.analysis import Analysis, analysed, unless_it_does_not_run
from onnxprune.graph.model import Model
from onnxprune.graph.readers import linear_layers
from onnxprune.options import ResolvedOptions
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.reforming.statistics import collected, reader_of, weighing
from onnxprune.repair.least_squares import DEPTH, RepairTask
from onnxprune.repair.network import RepairResult, refit_if_better
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.proof import Proof, prove
from onnxprune.types import BoolArray, FloatArray, IntArray, Repaired, Trace


@dataclass(frozen=True)
class Scored:
    """An edit that is measured to be faster, and what it costs.

    Attributes:
        candidate: which.
        saving: milliseconds, multiplications, parameters.
        error: of the layer, as a share of the variance of its output, after the rest has made up for what goes; 0: exact.
        loss: divergence of the output, expected from one measurement for each kind of edit in a layer.
        layers: labels of all nodes that it concerns.
    """

    candidate: Candidate
    saving: Saving
    error: float
    loss: float
    layers: frozenset[str] = frozenset()

    @property
    def edit(self) -> Edit:
        """The edit."""
        return self.candidate.edit


@dataclass(frozen=True)
class Base:
    """What channels are chosen from: the original, or what edits have made of it.

    Attributes:
        analysis: of it, repaired.
        reference: the original with its channels in the order of `analysis`: what to repair towards.
        chosen: the edits, in rounds; each round in the terms of what the one before left.
        proof: that each gave what the dense layers give with what went set to zero; None without edits.
        changed: names of tensors that layers of another form give: those have been fitted one by one, and are to be fitted together.
        layers: what repair did.
        notes: what a reader should know.
        loss: divergence of its output from the original on samples held out; NaN where that was not measured.
    """

    analysis: Analysis
    reference: Model
    chosen: tuple[tuple[Scored | Edit, ...], ...] = ()
    proof: Proof | None = None
    changed: frozenset[str] = frozenset()
    layers: tuple[Repaired, ...] = ()
    notes: tuple[str, ...] = ()
    loss: float = math.nan

    @property
    def teacher(self) -> Analysis:
        """What to train towards: the original, with the facts of what is left of it."""
        return replace(self.analysis, model=self.reference)

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
        """Repair this model without the channels that are not in `keep`; see `onnxprune.repair.network`."""
        if options.repair not in ("lstsq", "bias") or (keep.all() and not self.changed):
            return RepairResult(pruned, notes=workspace.notes)
        task = RepairTask(self.reference, pruned, self.analysis.trace, keep, self.changed, depth)
        return refit_if_better(task, workspace, options, on_stage)

    @property
    def blocks(self) -> tuple[tuple[dict[str, Any], ...], ...]:
        """The edits as they stand in a plan, with what each costs and saves."""
        return tuple(tuple(_entry(choice) for choice in part) for part in self.chosen)


def _entry(choice: Scored | Edit) -> dict[str, Any]:
    if not isinstance(choice, Scored):
        return {**to_dict(choice), "what": str(choice)}
    saving = choice.saving
    why = {
        "error": choice.error,
        "divergence": choice.loss,
        "milliseconds": [saving.before, saving.after],
        "macs_removed": saving.macs,
        "params_removed": saving.params,
    }
    return {**to_dict(choice.edit), "what": str(choice.edit), "why": why}


@dataclass(frozen=True)
class _Made:
    masked: Model
    changed: frozenset[str]
    folded: str = ""


def apply(
    base: Base,
    chosen: Sequence[Scored | Edit],
    bases: Mapping[tuple[str, str], FloatArray],
    options: ResolvedOptions,
    workspace: Workspace | None,
    on_stage: ProgressCallback = quiet,
) -> Base:
    """Make one round of edits, prove it, and repair what is left, layer by layer and without augmented samples: when channels have gone,
    more is done.

    Raises:
        PlanError: an edit that cannot be made.
        ProofError: the result does not give what the dense layers give with what went set to zero.
    """
    if not chosen:
        return base
    on_stage("reform", None)
    after, made = edited(base, chosen, bases, options)
    model, known = after.analysis.model, base.analysis.trace.input_shapes
    on_stage("prove", None)
    with unless_it_does_not_run(base.analysis.model, known):
        proof = prove(base.analysis.model, model, made.masked, known, options.seed, loaded=bool(base.chosen))
        if made.folded:
            again = prove(base.analysis.model, after.reference, base.analysis.model, known, options.seed, loaded=True)
            proof = replace(proof, difference=max(proof.difference, again.difference))
    if base.proof is not None:
        proof = replace(
            proof,
            difference=max(proof.difference, base.proof.difference),
            normalised=max(proof.normalised, base.proof.normalised),
        )
    notes = [*base.notes, *((made.folded,) if made.folded else ())]
    layers: tuple[Repaired, ...] = ()
    loss = math.nan
    analysis = after.analysis
    if workspace is not None and options.repair in ("lstsq", "bias"):
        keep = np.ones(analysis.trace.n_channels, dtype=bool)
        task = RepairTask(after.reference, model, analysis.trace, keep, made.changed, depth=1)
        mended = refit_if_better(task, workspace.plain, options, on_stage)
        notes += [note for note in mended.notes if note not in (*notes, *workspace.notes)]
        layers, loss = mended.layers, mended.loss
        analysis = analysed(mended.model, options, known)
    changed = base.changed | made.changed
    return replace(after, analysis=analysis, proof=proof, changed=changed, layers=layers, notes=tuple(notes), loss=loss)


def edited(
    base: Base, chosen: Sequence[Scored | Edit], bases: Mapping[tuple[str, str], FloatArray], options: ResolvedOptions
) -> tuple[Base, _Made]:
    """Make edits, unproven and unrepaired."""
    edits: list[Edit] = [c.edit if isinstance(c, Scored) else c for c in chosen]
    model, reference, edits, folded = _fold(base, edits)
    of_layer: Bases = {
        edit.layer: bases[edit.layer, edit.form]
        for edit in edits
        if isinstance(edit, Rank) and (edit.layer, edit.form) in bases
    }
    made = reform(model, edits, of_layer)
    trace = base.analysis.trace
    analysis = analysed(made.model, options, trace.input_shapes)
    reference = _with_parts(reference, made.parts)
    after = replace(base, analysis=analysis, reference=reference, chosen=(*base.chosen, tuple(chosen)))
    return after, _Made(made.masked, made.changed, folded)


def _with_parts(reference: Model, parts: Sequence[tuple[str, str, IntArray]]) -> Model:
    """Let a reference hold what layers side by side give: some channels of what one layer gave, under a name of its own."""
    if not parts:
        return reference
    result = reference.copy()
    known = result.graph.tensors()
    for name, whole, channels in parts:
        if whole in known and name not in known:
            index = gs.Constant(f"{name}__channels", channels)
            node = gs.Node("Gather", f"{name}__taken", {"axis": 1}, [known[whole], index], [gs.Variable(name)])
            result.graph.nodes.append(node)
    result.graph.toposort()
    return result


def _fold(base: Base, edits: Sequence[Edit]) -> tuple[Model, Model, list[Edit], str]:
    """Put channels in the order that their blocks want, wherever they are stored, so that nothing is left to do at run time.

    Returns:
        The model and the reference in that order, the edits in the terms of these, and what was done.
    """
    model, reference, trace = base.analysis.model, base.reference, base.analysis.trace
    grouped = [edit for edit in edits if isinstance(edit, Grouped | Split)]
    if not grouped or base.chosen:  # later the reference has other layers than the model
        return model, reference, list(edits), ""
    order = np.arange(trace.n_channels)
    claimed = np.zeros(trace.n_channels, dtype=bool)
    done: dict[str, Grouped | Split] = {}
    left: list[str] = []
    for edit in grouped:
        sides = sides_of(trace, edit.layer)
        plain: Grouped | Split = edit
        wishes = (
            (("inputs", edit.inputs), ("outputs", edit.outputs))
            if isinstance(edit, Grouped)
            else (("outputs", edit.filters),)
        )
        for name, wanted in wishes:
            channels = sides.get(name)
            if channels is None or claimed[channels].any():
                left.append(edit.layer)
                continue
            trial = order.copy()
            trial[channels] = channels[list(wanted)]
            if not rewrite.may_permute(trace, trial):
                left.append(edit.layer)
                continue
            order = trial
            claimed[channels] = True
            ordered = tuple(range(len(wanted)))
            if isinstance(plain, Split):
                plain = replace(plain, filters=ordered)
            else:
                plain = replace(plain, inputs=ordered) if name == "inputs" else replace(plain, outputs=ordered)
        done[edit.layer] = plain
    note = f"channels were put in order for {len(grouped)} layers that fell into blocks"
    if left:
        note += (
            f"; at {', '.join(dict.fromkeys(left))} that is done at run time, as the same channels are in use elsewhere"
        )
    result = rewrite.permute(model, trace, order)
    assert result is not None
    return result, result, [done.get(edit.layer, edit) for edit in edits], note


def sides_of(trace: Trace, label: str) -> dict[str, Any]:
    """Return the channels that a layer reads (`inputs`) and writes (`outputs`), where these may change places; absent where not."""
    n = trace.labels.index(label)
    found = {}
    for fact in trace.slices:
        name = {"reads": "inputs", "writes": "outputs", "follows": "outputs"}.get(fact.role)
        if fact.layer != n or name is None or (name in found and fact.role == "follows"):
            continue
        channels = fact.channels
        free = (channels >= 0).all() and np.unique(channels).size == channels.size and not trace.pinned[channels].any()
        if free:
            found[name] = channels
    return found


def replayed(
    base: Base,
    rounds: Sequence[Sequence[Edit]],
    options: ResolvedOptions,
    workspace: Workspace | None,
    on_stage: ProgressCallback = quiet,
) -> Base:
    """Make the edits of a plan; directions follow from the data, without any from the weights.

    Raises:
        PlanError: an edit that cannot be made.
    """
    for edits in rounds:
        bases: Mapping[tuple[str, str], FloatArray] = {}
        if workspace is not None:
            _, bases = fitted(base.analysis, edits, options, workspace)
        base = apply(base, edits, bases, options, workspace, on_stage)
    return base


def fitted(
    analysis: Analysis, edits: Sequence[Edit], options: ResolvedOptions, workspace: Workspace, *, anew: bool = False
) -> tuple[list[Edit | None], dict[tuple[str, str], FloatArray]]:
    """Find what edits take from the data of a model: directions, and where they are chosen anew, filters and orders of channels.

    Args:
        analysis: of the model.
        edits: of its layers.
        options: the dials.
        workspace: calibration data.
        anew: whether the edits were chosen in the same network with fewer channels, and are to be put in the terms of this one.

    Returns:
        The edits, without those that this model has no place for, and directions.
    """
    layers = linear_layers(analysis.model.graph)
    numbers = {label: n for n, label in enumerate(analysis.trace.labels)}
    kinds = (Rank, Split, Grouped) if anew else (Rank,)
    wanted = {numbers[e.layer]: e for e in edits if isinstance(e, kinds) and numbers.get(e.layer) in layers}
    readers = {n: reader_of(n, layers[n]) for n in wanted}
    found: dict[tuple[str, str], FloatArray] = {}
    again: dict[int, Edit | None] = {}
    for n, seen in collected(analysis, readers, options, workspace):
        edit = wanted[n]
        with threads_for(seen.mean.shape[1]), contextlib.suppress(RefusalError):  # the edit itself will say why
            gram = Gram(layers[n], weighing(seen, options.importance), seen.mean)
            if isinstance(edit, Rank):
                basis, _ = gram.directions() if edit.form == "channel" else gram.separable()
                found[edit.layer, edit.form] = basis[:, :, : edit.rank]
            else:
                again[id(edit)] = gram.anew(edit)
    return [again.get(id(edit), edit) for edit in edits], found

"""Time and score every edit that comes into question."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from onnxprune.allocation import sensitivity
from onnxprune.allocation.channel_multiple import FINER, multiples
from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.calibration.moments import threads_for
from onnxprune.calibration.workspace import Workspace
from onnxprune.granularity import candidates
from onnxprune.granularity.candidates import Candidate
from onnxprune.granularity.edits import Depth, Edit, Grouped, Kernel, Merged, Rank, Split
from onnxprune.granularity.losses import Gram
from onnxprune.granularity.rewriting import masked_matrix
from onnxprune.granularity.timing import Saving, Timer
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.readers import Reader, linear_layers
from onnxprune.graph.shapes import concrete_shapes
from onnxprune.graph.trace import matching
from onnxprune.options import WITH_GRADIENTS, ResolvedOptions
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.reforming.base import Base, Scored
from onnxprune.reforming.statistics import collected, reader_of, weighing
from onnxprune.torch_backend import require_torch
from onnxprune.types import FloatArray, Trace

USUAL = 0.03
"""Error of a layer, as a share of its output's variance, of the edit that is measured for all of its kind: about what will be chosen."""
Slope = Callable[[FloatArray], float]
MOST_LOST = 1e3
"""Loss of the output from which an edit is not looked at."""


@dataclass(frozen=True)
class Study:
    """What came into question, what is needed to do it, and what was left out, and why.

    Attributes:
        scored: edits that are faster.
        bases: directions of layers, see `onnxprune.granularity.rewriting.Bases`.
        notes: what a reader should know.
    """

    scored: tuple[Scored, ...]
    bases: Mapping[tuple[str, str], FloatArray]
    notes: tuple[str, ...]


def study(
    base: Base, options: ResolvedOptions, workspace: Workspace, meter: CostEstimator, on_stage: ProgressCallback = quiet
) -> Study:
    """Time and score every edit that comes into question.

    Each layer is timed by itself before and after; what is not faster is not looked at further. The error of those that are left follows
    from the Gram matrix of the layer's input, the weights that stay being adjusted; for one edit of each kind in each layer the loss
    of the output is measured, and those of the others are taken to be in the same proportion as their errors.

    Args:
        base: the model.
        options: the dials.
        workspace: calibration data.
        meter: says how to time.
        on_stage: called as it goes on.
    """
    analysis = base.analysis
    model, trace = analysis.model, analysis.trace
    layers = linear_layers(model.graph)
    ignored = {n for pattern in options.ignore for n in matching(model.graph, trace.labels, pattern)}
    shapes = concrete_shapes(model.header, meter.how.batch, known=trace.input_shapes)
    timer = Timer(model, trace, shapes, meter.how.batch, meter.how.session)
    found: list[Candidate] = []
    kinds, step = options.blocks, _step(trace, options)
    for n, layer in layers.items():
        if n not in ignored:
            found += candidates.layer_candidates(layer, trace.labels[n], n, kinds, step)
    if "depth" in kinds:
        whole = itertools.chain(candidates.branches(model), candidates.pairs(model))
        found += (candidate for candidate in whole if ignored.isdisjoint(candidate.nodes))
    faster: list[tuple[Candidate, Saving]] = []
    slower = 0
    for number, candidate in enumerate(found):
        on_stage("time layers", number / len(found))
        saving = timer.saving(candidate.edit, candidate.nodes)
        if saving is not None and saving.is_faster:
            faster.append((candidate, saving))
        elif saving is not None:
            slower += 1
    notes = []
    if slower:
        notes.append(
            f"{slower} of {len(found)} edits of layers that came into question were measured not to be faster, and were left"
        )
    scored, bases = _scored(analysis, faster, options, workspace, on_stage)
    named = (replace(s, layers=frozenset(trace.labels[m] for m in s.candidate.nodes)) for s in scored)
    return Study(tuple(named), bases, tuple(notes))


def _step(trace: Trace, options: ResolvedOptions) -> int:
    return options.round_to if options.round_to is not None else max(multiples(trace)[0], FINER[0])


def _scored(
    analysis: Analysis,
    faster: Sequence[tuple[Candidate, Saving]],
    options: ResolvedOptions,
    workspace: Workspace,
    on_stage: ProgressCallback,
) -> tuple[list[Scored], dict[tuple[str, str], FloatArray]]:
    model, trace = analysis.model, analysis.trace
    layers = linear_layers(model.graph)
    by_node: dict[int, list[tuple[Candidate, Saving]]] = {}
    exact = [Scored(c, saving, 0.0, 0.0) for c, saving in faster if isinstance(c.edit, Merged)]
    for candidate, saving in faster:
        if not isinstance(candidate.edit, Merged):
            by_node.setdefault(candidate.nodes[-1], []).append((candidate, saving))
    readers = {n: reader_of(n, layers[n]) for n in by_node if n in layers}
    slopes = _slopes(analysis, readers, options, workspace, on_stage)
    macs = analysis.cost.totals(np.ones(trace.n_channels, dtype=bool))[0]
    points = len({(n, type(c.edit), getattr(c.edit, "form", "")) for n, found in by_node.items() for c, _ in found})
    probe = sensitivity.Probe(model, workspace.calibration.plain, macs * max(points, 1), workspace.store)
    statistics = collected(analysis, readers, options, workspace)
    scored: list[Scored] = []
    bases: dict[tuple[str, str], FloatArray] = {}
    for number, n in enumerate(sorted(by_node)):
        on_stage("score layers", number / len(by_node))
        probe.advance(n)
        if n in layers:
            at, seen = next(statistics)
            assert at == n
            with threads_for(seen.mean.shape[1]):
                gram = Gram(layers[n], weighing(seen, options.importance), seen.mean)
                scored += _of_layer(analysis, n, gram, by_node[n], probe, bases, slopes.get(n))
        else:
            scored += _of_branch(analysis, n, by_node[n], probe)
    probe.close()
    return [*exact, *(found for found in scored if found.loss < MOST_LOST)], bases


def _of_layer(
    analysis: Analysis,
    n: int,
    gram: Gram,
    found: Sequence[tuple[Candidate, Saving]],
    probe: sensitivity.Probe,
    bases: dict[tuple[str, str], FloatArray],
    slope: Slope | None,
) -> list[Scored]:
    """Score the edits of one layer: by the error of its output, or where there are gradients by what the loss rises by."""
    by_kind: dict[str, list[tuple[Candidate, Saving, float, FloatArray | None]]] = {}
    label = analysis.trace.labels[n]
    errors: dict[str, FloatArray] = {}
    for candidate, saving in found:
        edit = candidate.edit
        if isinstance(edit, Rank):
            if edit.form not in errors:
                basis, errors[edit.form] = gram.directions() if edit.form == "channel" else gram.separable()
                most = max(c.edit.rank for c, _ in found if isinstance(c.edit, Rank) and c.edit.form == edit.form)
                bases[label, edit.form] = basis[:, :, :most]
            by_kind.setdefault(edit.form, []).append((candidate, saving, float(errors[edit.form][edit.rank]), None))
            continue
        assert isinstance(edit, Kernel | Split | Grouped)
        if isinstance(edit, Split):
            edit = replace(edit, filters=gram.dispensable(edit))
        if isinstance(edit, Grouped):
            inputs, outputs = gram.blocks(edit.groups)
            edit = replace(edit, inputs=inputs, outputs=outputs)
        matrix, error = gram.without(edit)
        by_kind.setdefault(type(edit).__name__, []).append((replace(candidate, edit=edit), saving, error, matrix))
    scored = []
    for kind, rows in by_kind.items():
        rows = _undominated(rows)
        candidate, _, error, fitted = min(rows, key=lambda row: abs(math.log(max(row[2], 1e-9) / USUAL)))
        if fitted is None:
            assert isinstance(candidate.edit, Rank)
            fitted = gram.projected(bases[label, kind], candidate.edit.rank, kind == "spatial")
        variant = analysis.model.copy()
        layer = replace(gram.layer, node=variant.graph.nodes[n])
        layer.write(fitted, gram.bias(fitted) if gram.layer.holds_bias and not _adds(gram.layer) else None)
        loss = probe.loss(variant)
        if slope is None:
            scored += [Scored(c, saving, e, loss * e / max(error, 1e-12)) for c, saving, e, _ in rows]
            continue
        risen = {id(c): slope(_change(gram, c.edit, bases)) for c, _, _, _ in rows}
        scored += [Scored(c, s, e, loss * risen[id(c)] / max(risen[id(candidate)], 1e-30)) for c, s, e, _ in rows]
    return scored


def _change(gram: Gram, edit: Edit, bases: Mapping[tuple[str, str], FloatArray]) -> FloatArray:
    """Return what an edit adds to a weight, nothing making up for it."""
    assert isinstance(edit, Kernel | Split | Grouped | Rank)
    basis = bases[edit.layer, edit.form] if isinstance(edit, Rank) else None
    return np.asarray(gram.layer.unmatrix((masked_matrix(edit, gram.layer, basis) - gram.matrix) / gram.layer.alpha))


def _slopes(
    analysis: Analysis,
    readers: Mapping[int, Reader],
    options: ResolvedOptions,
    workspace: Workspace,
    on_stage: ProgressCallback,
) -> dict[int, Slope]:
    """Return what says how much the loss rises with a change of the weight of each layer, where gradients are asked for."""
    if options.importance not in WITH_GRADIENTS:
        return {}
    require_torch(f"--importance {options.importance}")
    from onnxprune.importance import gradients

    found, samples = gradients.of_weights(
        analysis.model,
        analysis.trace,
        workspace.calibration.plain,
        options.importance,
        {n: reader.layer.weight for n, reader in readers.items()},
        memory=workspace.memory,
        seed=options.seed,
        progress=share_of(on_stage, "gradients"),
    )
    return {n: partial(gradients.of_change, directions, samples=samples) for n, directions in found.items()}


def _adds(layer: Any) -> bool:
    return getattr(layer, "adds", None) is not None


def _undominated(rows: list[tuple[Candidate, Saving, float, Any]]) -> list[tuple[Candidate, Saving, float, Any]]:
    """Leave out what saves less time than another one that loses no more."""
    best: list[tuple[Candidate, Saving, float, Any]] = []
    for row in sorted(rows, key=lambda row: (row[2], row[1].after)):
        if not best or row[1].after < best[-1][1].after:
            best.append(row)
    return best


def _of_branch(
    analysis: Analysis, n: int, found: Sequence[tuple[Candidate, Saving]], probe: sensitivity.Probe
) -> list[Scored]:
    """Score the branches of one sum: each is replaced by its mean, which is what later layers can make up for at least."""
    import onnx_graphsurgeon as gs

    scored = []
    for candidate, saving in found:
        edit = candidate.edit
        assert isinstance(edit, Depth)
        variant = analysis.model.copy()
        node = variant.graph.nodes[n]
        branch = node.inputs[1 - edit.stays]
        shape = analysis.trace.shapes[branch.name]
        axis = analysis.trace.carried.get(branch.name, (1 if len(shape) > 1 else 0, None))[0]
        mean = probe.mean(branch.name, axis)
        around = [1] * len(shape)
        around[axis] = -1
        node.inputs[1 - edit.stays] = gs.Constant(
            f"{node.outputs[0].name}__mean", mean.reshape(around).astype(np.float32)
        )
        scored.append(Scored(candidate, saving, 1.0, probe.loss(variant)))
    return scored

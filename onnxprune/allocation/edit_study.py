"""Time and score every edit that a model allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.allocation import sensitivity
from onnxprune.allocation.channel_multiple import FINER, multiples
from onnxprune.allocation.edit_choice import ScoredEdit
from onnxprune.allocation.edit_timing import EditTimer, Saving
from onnxprune.calibration.moments import threads_for
from onnxprune.calibration.workspace import Workspace
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.linear import Linear
from onnxprune.graph.readers import Reader, linear_layers
from onnxprune.graph.trace import matching
from onnxprune.importance import obs as second_order
from onnxprune.importance.edit_error import Gram, weighing
from onnxprune.options import WITH_GRADIENTS, ResolvedOptions
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.runtime.timings import Timings
from onnxprune.surgery.edits import KINDS, candidates
from onnxprune.surgery.edits.protocol import Candidate, Edit, LayerEdit
from onnxprune.torch_backend import require_torch
from onnxprune.types import FloatArray

USUAL = 0.03
"""Typical error of a chosen edit, as a share of its output's variance. The nearest edit of a family is measured."""
MOST_LOST = 1e3
"""Loss of the output from which an edit is left out."""
ROOM = 1.25
"""Factor on the memory for sums: here a covariance has fewer copies beside it than where its inverse is needed."""
Slope = Callable[[FloatArray], float]


def study(
    analysis: Analysis,
    options: ResolvedOptions,
    workspace: Workspace,
    config: BenchmarkConfig,
    timings: Timings,
    on_stage: ProgressCallback = quiet,
) -> tuple[tuple[ScoredEdit, ...], tuple[str, ...]]:
    """Return the edits that are measured to be faster, scored, and notes on the others.

    Each layer is timed by itself before and after its edit; an edit that is not faster is left out. The error of the
    others follows from the Gram matrix of the layer's input, with the remaining weights refitted. For one edit of each
    family in each layer the loss of the output is measured; the losses of the others are taken to be proportional to
    their errors. `config` is that of the timing, and times come from `timings`.
    """
    model, trace = analysis.model, analysis.trace
    ignored = {n for pattern in options.ignore for n in matching(model.graph, trace.labels, pattern)}
    multiple = max(multiples(trace, options.multiple)[0], FINER[0]) if options.round_to is None else options.round_to
    found = [c for c in candidates(model, options.edits, multiple) if ignored.isdisjoint(c.nodes)]
    found.sort(key=lambda candidate: candidate.nodes)
    timer = EditTimer(analysis, config, timings)
    timed: list[tuple[Candidate, Saving]] = []
    slower = 0
    with timer.kept.kept():
        for number, candidate in enumerate(found):
            on_stage("time layers", number / len(found))
            saving = timer.saving(candidate)
            if saving is not None and saving.is_faster:
                timed.append((candidate, saving))
            elif saving is not None:
                slower += 1
    notes = (f"{slower} of {len(found)} edits are left out: they are not measured to be faster",) if slower else ()
    scored = workspace.results.of(
        "edits",
        lambda: (model.content_digest(), timed, options, workspace.identity),
        lambda: _scored(analysis, timed, options, workspace, on_stage),
        types=(ScoredEdit, Saving, *KINDS.values()),
    )
    return tuple(edit for edit in scored if edit.loss < MOST_LOST), notes


def _scored(
    analysis: Analysis,
    timed: Sequence[tuple[Candidate, Saving]],
    options: ResolvedOptions,
    workspace: Workspace,
    on_stage: ProgressCallback,
) -> list[ScoredEdit]:
    model, trace = analysis.model, analysis.trace
    by_node: dict[int, list[ScoredEdit]] = {}
    scored: list[ScoredEdit] = []
    for candidate, saving in timed:
        labels = frozenset(trace.labels[n] for n in candidate.nodes)
        edit = ScoredEdit(candidate.edit, candidate.nodes, labels, saving, 0.0, 0.0)
        (scored if edit.edit.is_exact else by_node.setdefault(candidate.nodes[-1], [])).append(edit)
    layers = {n: layer for n, layer in linear_layers(model.graph).items() if n in by_node}
    slopes = _slopes(analysis, layers, options, workspace, on_stage)
    points = sum(len({s.edit.family for s in found}) for found in by_node.values())
    probe = sensitivity.Probe(analysis, workspace, max(points, 1))
    statistics = grams(analysis, layers, options, workspace)
    for number, n in enumerate(sorted(by_node)):
        on_stage("score layers", number / len(by_node))
        probe.advance(n)
        gram = next(statistics)[1] if n in layers else None
        fitted = []
        for found in by_node[n]:
            refit, error = found.edit.refit(gram)
            fitted.append(replace(found, edit=refit, error=error))
        scored += _of_node(analysis, n, fitted, gram, probe, slopes.get(n))
    probe.close()
    return scored


def _of_node(
    analysis: Analysis,
    n: int,
    found: Sequence[ScoredEdit],
    gram: Gram | None,
    probe: sensitivity.Probe,
    slope: Slope | None,
) -> list[ScoredEdit]:
    """Measure the loss of one edit of each family; scale it by error, or by the rise of the loss, for the others."""

    def mean_of(tensor: gs.Tensor) -> FloatArray:
        usual = min(1, len(analysis.trace.shapes[tensor.name]) - 1)
        return probe.mean(tensor.name, analysis.trace.carried.get(tensor.name, (usual, None))[0])

    families: dict[str, list[ScoredEdit]] = {}
    for edit in found:
        families.setdefault(edit.edit.family, []).append(edit)
    scored = []
    for family in families.values():
        measured = min(family, key=lambda s: abs(math.log(max(s.error, 1e-9) / USUAL)))
        variant = analysis.model.copy()
        measured.edit.substitute(variant.graph.nodes[n], gram, mean_of)
        loss = probe.loss(variant)
        sizes = [s.error if slope is None or gram is None else slope(_change(gram, s.edit)) for s in family]
        least = 1e-12 if slope is None else 1e-30
        whole = max(sizes[family.index(measured)], least)
        scored += [replace(edit, loss=loss * size / whole) for edit, size in zip(family, sizes, strict=True)]
    return scored


def _change(gram: Gram, edit: Edit) -> FloatArray:
    """Return the change of a layer's weight by an edit, without a refit."""
    assert isinstance(edit, LayerEdit)
    return np.asarray(gram.layer.unmatrix((edit.masked(gram.layer) - gram.matrix) / gram.layer.alpha))


def _slopes(
    analysis: Analysis,
    layers: Mapping[int, Linear],
    options: ResolvedOptions,
    workspace: Workspace,
    on_stage: ProgressCallback,
) -> dict[int, Slope]:
    """Return the rise of the loss as a function of the change of each layer's weight, for gradient importances."""
    if options.importance not in WITH_GRADIENTS:
        return {}
    require_torch(f"--importance {options.importance}")
    from onnxprune.importance import gradients  # only here: torch takes seconds to load

    found, samples = gradients.of_weights(
        analysis.model,
        analysis.trace,
        workspace.calibration.plain,
        options.importance,
        {n: layer.weight for n, layer in layers.items()},
        memory=workspace.memory,
        seed=options.seed,
        progress=share_of(on_stage, "gradients"),
        distance=workspace.distance,
    )
    return {n: partial(gradients.of_change, directions, samples=samples) for n, directions in found.items()}


def grams(
    analysis: Analysis, layers: Mapping[int, Linear], options: ResolvedOptions, workspace: Workspace
) -> Iterator[tuple[int, Gram]]:
    """Yield (node, Gram) of some layers in graph order; the thread pool fits the work of the caller meanwhile."""
    readers = {}
    for n, layer in layers.items():
        parts, _, features = layer.matrix(layer.values).shape
        readers[n] = Reader(((n, layer),), np.zeros((parts, features), dtype=np.int64))  # the whole input is observed
    roomy = replace(workspace.plain, memory=workspace.memory * ROOM)
    for n, seen in second_order.collect(analysis.model, analysis.trace, roomy, readers, hold_out=True, apart=True):
        with threads_for(seen.mean.shape[1]):
            yield n, Gram(layers[n], weighing(seen, options.importance), seen.mean)

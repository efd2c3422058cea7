"""Say how important each channel is, by the method that the options name."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from onnxprune.allocation import knapsack
from onnxprune.analysis import Analysis
from onnxprune.importance import obs as second_order
from onnxprune.importance import weights as importance
from onnxprune.options import WITH_DATA, WITH_GRADIENTS, Options
from onnxprune.progress import ProgressCallback, share_of
from onnxprune.torch_backend import require_torch
from onnxprune.types import BoolArray, FloatArray
from onnxprune.workspace import Workspace

SAVES_NOTHING = 1e-12
"""Share of what is limited below which a channel saves nothing."""


def calibrated_scores(
    analysis: Analysis,
    options: Options,
    keep: BoolArray,
    on_stage: ProgressCallback,
    workspace: Workspace,
    names: Container[str] | None = None,
) -> tuple[FloatArray, list[second_order.Removal]]:
    """Return the importance of every channel, and how each group loses its channels where the scope asks for it."""
    model, trace = analysis.model, analysis.trace
    plain = options.importance not in WITH_DATA
    fallback = importance.score(model, trace, options.importance if plain else "l2", keep, options.seed)
    given: FloatArray | None = fallback
    if not plain:
        kind = options.importance
        given = None
        if kind in WITH_GRADIENTS:
            given = _gradient_scores(analysis, options, on_stage, workspace)
            if options.scope != "sensitivity":
                return given, []
        elif kind != "obs":
            given = second_order.activation_scores(
                model,
                trace,
                workspace.calibration.plain,
                kind,
                store=workspace.store,
                memory=workspace.memory,
                seed=options.seed,
            )
            given = np.where(np.isnan(given), fallback, given)
            if options.scope != "sensitivity":
                return given, []
    found = list(
        second_order.removals(
            model,
            trace,
            workspace.calibration.plain,
            scores=given,
            fallback=fallback,
            store=workspace.store,
            memory=workspace.memory,
            seed=options.seed,
            hold_out=options.scope == "sensitivity",
            names=names,
            progress=share_of(on_stage, "capture"),
        )
    )
    if given is None:
        given = second_order.scores_of(trace, found, fallback)
    return given, found


def _gradient_scores(
    analysis: Analysis, options: Options, on_stage: ProgressCallback, workspace: Workspace
) -> FloatArray:
    require_torch(f"--importance {options.importance}")
    from onnxprune.importance import gradients

    return gradients.scores(
        analysis.model,
        analysis.trace,
        workspace.calibration.plain,
        options.importance,
        memory=workspace.memory,
        seed=options.seed,
        progress=share_of(on_stage, "gradients"),
    )


def per_saving(analysis: Analysis, scores: FloatArray, limits: knapsack.Limits) -> FloatArray:
    """Divide losses by what a channel saves of what is limited: Liu et al., 2021, "Group Fisher Pruning", section 3.3.

    Scores in one unit over the whole network are the prices of a knapsack; without this, a cheap layer would lose all its channels.
    """
    macs, params = analysis.cost.savings()
    of_params = limits.params is not None or limits.size is not None
    of_macs = limits.macs is not None or limits.latency is not None or limits.memory is not None or not of_params
    saved = (macs if of_macs else 0) + (params if of_params else 0)  # time and activations fall about as MACs do
    return np.asarray(scores / np.maximum(saved, SAVES_NOTHING))

"""Say how important each channel is, by the method that the options name."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from onnxprune.allocation import knapsack
from onnxprune.analysis import Analysis
from onnxprune.importance import obs as second_order
from onnxprune.importance import weights as importance
from onnxprune.importance.methods import METHODS
from onnxprune.options import ResolvedOptions
from onnxprune.progress import ProgressCallback, share_of
from onnxprune.torch_backend import require_torch
from onnxprune.types import BoolArray, FloatArray
from onnxprune.workspace import Workspace

SAVES_NOTHING = 1e-12
"""Share of what is limited below which a channel saves nothing."""


def calibrated_scores(
    analysis: Analysis,
    options: ResolvedOptions,
    keep: BoolArray,
    on_stage: ProgressCallback,
    workspace: Workspace,
    names: Container[str] | None = None,
) -> tuple[FloatArray, list[second_order.Removal]]:
    """Return the importance of every channel, and how each group loses its channels where the scope asks for it."""
    model, trace, method = analysis.model, analysis.trace, METHODS[options.importance]
    fallback = importance.score(model, trace, "l2" if method.data else options.importance, keep, options.seed)
    given: FloatArray | None = None if method.data else fallback
    if method.data and method.function:
        given = _from_data(analysis, options, keep, on_stage, workspace)
        given = np.where(np.isnan(given), fallback, given)
    if given is not None and options.scope != "sensitivity":
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


def _from_data(
    analysis: Analysis, options: ResolvedOptions, keep: BoolArray, on_stage: ProgressCallback, workspace: Workspace
) -> FloatArray:
    """Call the function of the method on the calibration samples."""
    method = METHODS[options.importance]
    if method.torch:
        require_torch(f"--importance {options.importance}")
    inputs = importance.ScoringInputs(
        options.importance,
        analysis.model,
        analysis.trace,
        keep,
        options.seed,
        calibration=workspace.calibration.plain,
        store=workspace.store,
        memory=workspace.memory,
        progress=share_of(on_stage, "gradients" if method.torch else "capture"),
    )
    return np.asarray(method.load()(inputs))


def per_saving(analysis: Analysis, scores: FloatArray, budget: knapsack.Budget) -> FloatArray:
    """Divide losses by what a channel saves of what is limited: Liu et al., 2021, "Group Fisher Pruning", section 3.3.

    Scores in one unit over the whole network are the prices of a knapsack; without this, a cheap layer would lose all its channels.
    """
    macs, params = analysis.cost.savings()
    of_params = bool({"params", "size"} & budget.keys())
    of_macs = bool({"flops", "latency", "memory"} & budget.keys()) or not of_params
    saved = (macs if of_macs else 0) + (params if of_params else 0)  # time and activations fall about as MACs do
    return np.asarray(scores / np.maximum(saved, SAVES_NOTHING))

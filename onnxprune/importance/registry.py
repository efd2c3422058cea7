"""Say how important each channel is, by the method that the options name."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from onnxprune.calibration.workspace import Workspace
from onnxprune.graph.analysis import Analysis
from onnxprune.importance import obs as second_order
from onnxprune.importance import weights as importance
from onnxprune.options import WITH_DATA, WITH_GRADIENTS, ResolvedOptions
from onnxprune.progress import ProgressCallback, share_of
from onnxprune.torch_backend import require_torch
from onnxprune.types import BoolArray, FloatArray


def calibrated_scores(
    analysis: Analysis,
    options: ResolvedOptions,
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
            given = second_order.activation_scores(model, trace, workspace.plain, kind)
            given = np.where(np.isnan(given), fallback, given)
            if options.scope != "sensitivity":
                return given, []
    found = list(
        second_order.removals(
            model,
            trace,
            workspace.plain,
            given,
            fallback,
            hold_out=options.scope == "sensitivity",
            names=names,
            progress=share_of(on_stage, "capture"),
        )
    )
    if given is None:
        given = second_order.scores_of(trace, found, fallback)
    return given, found


def _gradient_scores(
    analysis: Analysis, options: ResolvedOptions, on_stage: ProgressCallback, workspace: Workspace
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

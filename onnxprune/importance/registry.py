"""Scores of all channels, by the importance that the options name."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from onnxprune.calibration.workspace import Workspace
from onnxprune.graph.analysis import Analysis
from onnxprune.importance import obs as second_order
from onnxprune.importance import recurrent
from onnxprune.importance import weights as importance
from onnxprune.importance.methods import METHODS
from onnxprune.options import ResolvedOptions
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
    """Return the importance of every channel, (n_channels,), and the removals of each group where the scope needs them."""
    model, trace, method = analysis.model, analysis.trace, METHODS[options.importance]
    fallback = importance.score(model, trace, "l2" if method.data else options.importance, keep, options.seed)
    if method.data:
        fallback = recurrent.scores(model, trace, workspace.plain, keep, fallback)
    given: FloatArray | None = None if method.data else fallback
    if method.data and method.function:
        if method.torch:
            require_torch(f"--importance {options.importance}")
        progress = share_of(on_stage, "gradients" if method.torch else "capture")
        inputs = importance.ScoringInputs(
            options.importance, model, trace, keep, options.seed, workspace.plain, progress
        )
        given = method.load()(inputs)
        given = np.where(np.isnan(given), fallback, given)
    if given is not None and options.scope != "sensitivity":
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
    return (second_order.scores_of(trace, found, fallback) if given is None else given), found

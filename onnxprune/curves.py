"""Measure what each group loses by itself, on one worker or several."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from onnxprune.allocation import sensitivity
from onnxprune.analysis import Analysis, refuse_unprunable
from onnxprune.data.dataset import Data, DataLike
from onnxprune.data.preprocess import Preprocess
from onnxprune.importance import obs as second_order
from onnxprune.options import Options
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.report.document import curve_dict
from onnxprune.runtime import workers
from onnxprune.scoring import calibrated_scores
from onnxprune.types import Curve
from onnxprune.workspace import opened, workspace_for

SCHEMA = "onnxprune.sensitivity/1"
PARTS = 2
"""Parts that a worker gets, about: the last ones then don't wait long for each other."""


def study(
    model: str | os.PathLike[str],
    options: Options,
    data: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    on_stage: ProgressCallback = quiet,
    jobs: int = 1,
    scheduler: str | None = None,
) -> tuple[Analysis, tuple[Curve, ...]]:
    """Load a model and measure what each group loses, by second order, some groups at a time on each of several workers.

    Raises:
        OptionError: no data.
        ModelError: nothing can be pruned.
    """
    options = replace(options, importance="obs", scope="sensitivity")
    analysis, given = opened(model, options, data, preprocess, on_stage)
    options = options.resolved(given is not None)
    refuse_unprunable(analysis)
    assert given is not None
    with threadpool_limits(1):  # sums come out the same, however many workers there are
        if jobs == 1 and scheduler is None:
            return analysis, _curves(analysis, given, options, None, on_stage)
        free = [group.name for group in analysis.trace.groups if not analysis.trace.pinned[group.channels].all()]
        parts = [
            part.tolist() for part in np.array_split(np.array(free, dtype=object), PARTS * max(jobs, 1)) if part.size
        ]
        work = [_Part(os.fspath(model), options, data, preprocess, tuple(part)) for part in parts]
        left = len(work)

        def done(number: int, found: tuple[Curve, ...]) -> None:
            nonlocal left
            left -= 1
            on_stage("measure", 1 - left / len(work))

        found = workers.run(_study_part, work, workers=jobs, scheduler=scheduler, done=done)
    return analysis, tuple(curve for curves in found for curve in curves)


@dataclass(frozen=True)
class _Part:
    """What a worker needs to measure some groups."""

    model: str
    options: Options
    data: Any
    preprocess: Any
    names: tuple[str, ...]


def _study_part(part: _Part) -> tuple[Curve, ...]:
    with threadpool_limits(1):
        analysis, given = opened(part.model, part.options, part.data, part.preprocess, quiet)
        assert given is not None
        return _curves(analysis, given, part.options, part.names, quiet)


def _curves(
    analysis: Analysis, given: Data, options: Options, names: tuple[str, ...] | None, on_stage: ProgressCallback
) -> tuple[Curve, ...]:
    """Measure what some groups lose; None: all."""
    model, trace = analysis.model, analysis.trace
    with workspace_for(given, analysis, options) as workspace:
        keep = np.ones(trace.n_channels, dtype=bool)
        _, removals = calibrated_scores(analysis, options, keep, on_stage, workspace, names)
        macs, samples = analysis.cost.totals(keep)[0], workspace.calibration.plain
        progress = share_of(on_stage, "measure")
        points = second_order.points_of(trace)
        return sensitivity.curves(model, trace, removals, samples, macs, workspace.store, progress, points)


def curves_dict(analysis: Analysis, curves: tuple[Curve, ...]) -> dict[str, object]:
    """Return what `sensitivity --json` prints."""
    return {
        "schema": SCHEMA,
        "model": {"path": str(analysis.model.path), "sha256": analysis.model.digest},
        "groups": [curve_dict(curve) for curve in curves],
        "held": [
            {"node": p.node, "operator": p.op, "reason": p.reason, "channels": int(p.channels.size)}
            for p in analysis.trace.pins
        ],
    }

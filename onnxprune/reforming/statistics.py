"""What layers see, and what errors there are weighed by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from onnxprune.calibration.workspace import Workspace
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.linear import Linear
from onnxprune.graph.readers import Reader
from onnxprune.importance import obs as second_order
from onnxprune.options import WITH_DATA, Options
from onnxprune.types import FloatArray

ROOM = 1.25
"""Of the memory for sums: here a covariance lies beside fewer copies of itself than where its inverse is needed."""


def weighing(seen: second_order.Statistics, importance: str) -> FloatArray:
    """Return what errors of the input are weighed by: its covariance, damped; its diagonal, or for a norm of the weights nothing."""
    groups, features = seen.variance.shape
    mean = seen.variance.mean(axis=1, keepdims=True)
    damping = seen.damping * mean + 1e-12
    if importance not in WITH_DATA:
        return np.ones((groups, features))
    if seen.covariance is None or importance in ("activation", "apoz"):
        return np.asarray(seen.variance + damping)
    lifted = seen.covariance.copy()
    lifted[:, np.arange(features), np.arange(features)] += damping
    return lifted


def reader_of(n: int, layer: Linear) -> Reader:
    """Return a layer as one whose input is looked at, whatever channels it holds."""
    groups, _, features = layer.matrix(layer.values).shape
    return Reader(n, layer, np.zeros((groups, features), dtype=np.int64))


def collected(
    analysis: Analysis, readers: dict[int, Reader], options: Options, workspace: Workspace
) -> Iterator[tuple[int, second_order.Statistics]]:
    """Yield what is seen of the input of each layer, in graph order, on samples that are not held out."""
    roomy = replace(workspace.plain, memory=workspace.memory * ROOM)
    return second_order.collect(analysis.model, analysis.trace, roomy, readers, hold_out=True, apart=True)

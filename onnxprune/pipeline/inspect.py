"""`inspect`: groups, what must stay and why, and what each layer costs."""

from __future__ import annotations

import os

from onnxprune.graph import analysis
from onnxprune.graph.io import load
from onnxprune.pipeline.results import InspectResult
from onnxprune.progress import ProgressCallback, quiet


def inspect(
    model: str | os.PathLike[str], *, ignore: tuple[str, ...] = (), on_stage: ProgressCallback = quiet
) -> InspectResult:
    """Trace a model, and count what it costs.

    Args:
        model: path of an ONNX file.
        ignore: glob patterns of layers that keep all channels.
        on_stage: progress callback.

    Raises:
        OnnxPruneError: the model cannot be read or traced.
    """
    on_stage("load", None)
    loaded = load(model)
    on_stage("trace", None)
    return InspectResult(analysis.inspect(analysis.analyse(loaded, ignore)))

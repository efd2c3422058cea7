"""`inspect`: groups, pins with their reasons, and the cost of each layer."""

from __future__ import annotations

import os
from collections.abc import Mapping

from onnxprune.graph import analysis
from onnxprune.graph.io import load
from onnxprune.options import Options
from onnxprune.pipeline.results import InspectResult
from onnxprune.progress import ProgressCallback, quiet


def inspect(
    model: str | os.PathLike[str],
    *,
    ignore: tuple[str, ...] = (),
    shape: Mapping[str, tuple[int, ...]] | None = None,
    on_stage: ProgressCallback = quiet,
) -> InspectResult:
    """Trace a model: groups of coupled channels, pins with their reasons, and the cost of each layer.

    Args:
        model: path of an ONNX file.
        ignore: glob patterns of layers or weights that keep all channels; default: none.
        shape: shapes of inputs, samples included, for axes that have no size; default: usual sizes are tried.
        on_stage: as for `onnxprune.prune`.

    Returns:
        The facts: `report.macs` are multiply-accumulates for one sample (FLOPs are twice that);
        `report.analysis.trace` has groups and pins.

    Raises:
        ModelError: the model cannot be read or traced.
        OptionError: a pattern matches no layer.

    Examples:
        >>> import onnxprune
        >>> found = onnxprune.inspect("model.onnx").report
        >>> [(group.name, group.channels.size) for group in found.analysis.trace.groups][0]
        ('conv1', 16)
    """
    on_stage("load", None)
    options = Options(ignore=ignore, shape=shape or {})
    loaded = load(model, options.shape)
    on_stage("trace", None)
    return InspectResult(analysis.inspect(analysis.analyse(loaded, options.ignore)))

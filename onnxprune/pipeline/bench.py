"""`bench`: the latency of a model, or of two in turn."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune import paths
from onnxprune.allocation import latency_model
from onnxprune.allocation.cost_estimator import measured_elsewhere, measured_table
from onnxprune.errors import OptionError
from onnxprune.evaluation import benchmark
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.pipeline.arguments import parted
from onnxprune.pipeline.delivery import unlost
from onnxprune.pipeline.results import BenchResult
from onnxprune.pipeline.run import path_of
from onnxprune.progress import ProgressCallback, quiet

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnxprune.pipeline.arguments import BenchmarkFields


def bench(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str] | None = None,
    *,
    latency_table: str | os.PathLike[str] | None = None,
    profile_on: str | os.PathLike[str] | None = None,
    shape: Mapping[str, tuple[int, ...]] | None = None,
    measure: BenchmarkConfig | None = None,
    on_stage: ProgressCallback = quiet,
    **fields: Unpack[BenchmarkFields],
) -> BenchResult:
    """Time a model, or two in turn, on random inputs, as a whole and layer by layer.

    Two models are timed interleaved, so that machine noise affects both equally.

    Args:
        a: path of an ONNX file.
        b: path of another one; None: `a` alone.
        latency_table: path of a latency table of the layers of `a` to write, for `prune`; None: not measured.
        profile_on: path of times of `a` that were measured elsewhere, in place of a measurement: a latency table, a profile
            of onnxruntime, of `trtexec --exportProfile`, or a CSV of `node,microseconds`; a `latency_table` follows
            from a latency table only.
        shape: as for `onnxprune.inspect`.
        measure: as for `onnxprune.prune`; default: `BenchmarkConfig()`.
        on_stage: as for `onnxprune.prune`.
        **fields: in place of `measure`, its fields: threads=2, batch=8, runs=50, …; few runs give wide intervals.

    Returns:
        Median latencies in milliseconds (`report.latency.a`, `.b`), and the speed-up of b over a with its interval.

    Raises:
        OptionError: a field is unknown, or `profile_on` stands beside a second model.
        LatencyError: the file of `profile_on` cannot be read, or is of another model.
        OnnxPruneError: a model cannot be read or run.

    Examples:
        >>> import onnxprune
        >>> timed = onnxprune.bench("model.onnx", runs=2, warmup=0)
        >>> timed.report.latency.a > 0
        True
    """
    measure = parted(fields, None, measure, prunes=False)[1]
    models = [Path(path) for path in (a, b) if path is not None]
    read = paths.inputs([*(("a model", model) for model in models), ("--profile-on", profile_on)])
    paths.check_outputs(paths.outputs([("--latency-table", path_of(latency_table))]), read)
    if profile_on is not None:
        if b is not None:
            raise OptionError("--profile-on has times of one model", hint="leave out the second model")
        result = BenchResult(*measured_elsewhere(a, Path(profile_on), shape, table=latency_table is not None))
    else:
        found = benchmark.bench(models, measure, shape=shape, on_stage=on_stage)
        table = None if latency_table is None else measured_table(a, measure, shape, on_stage)
        result = BenchResult(found, table)
    if latency_table is not None and result.table is not None:
        with unlost(result):
            latency_model.write(result.table, Path(latency_table))
    return result

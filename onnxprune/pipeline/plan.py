"""`plan`: choose what would go, and write nothing but the plan."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.calibration.workspace import DATA_FREE
from onnxprune.data.dataset import DataLike
from onnxprune.data.preprocess import Preprocess
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.options import Options
from onnxprune.pipeline.arguments import parted
from onnxprune.pipeline.opening import LOAD, calibration
from onnxprune.pipeline.results import PlanResult
from onnxprune.pipeline.run import Destinations, Run, Sources, execute, path_of
from onnxprune.pipeline.selection import SELECT
from onnxprune.progress import ProgressCallback, quiet

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnxprune.pipeline.arguments import Fields


def plan(
    model: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    data: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    latency_table: str | os.PathLike[str] | None = None,
    measure: BenchmarkConfig | None = None,
    on_stage: ProgressCallback = quiet,
    options: Options | None = None,
    **fields: Unpack[Fields],
) -> PlanResult:
    """Choose what would go; `prune(model, plan=…)` replays it.

    Args:
        model: path of an ONNX file.
        output: where to write plan.json; None: nowhere.
        data: as for `onnxprune.prune`.
        preprocess: as for `onnxprune.prune`.
        latency_table: as for `onnxprune.prune`.
        measure: as for `onnxprune.prune`.
        on_stage: as for `onnxprune.prune`.
        options: as for `onnxprune.prune`.
        fields: as for `onnxprune.prune`.

    Raises:
        OnnxPruneError: with a reason; nothing is written then.
    """
    options, measure = parted(fields, options, measure)
    run = Run(
        Sources(Path(model), data, preprocess=preprocess, latency_table=path_of(latency_table)),
        Destinations(plan=path_of(output)),
        options,
        measure=measure,
        on_stage=on_stage,
    )
    with contextlib.ExitStack() as scope:
        run = execute(run, (LOAD, calibration(scope), SELECT))
    generated = [DATA_FREE] if data is None and run.data is not None else []
    result = PlanResult(run.plan, run.original, run.edited.analysis, (*run.original.model.notes, *generated))
    if output is not None:
        result.save(output)
    return result

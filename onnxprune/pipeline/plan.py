"""`plan`: select channels and edits, and write nothing but the plan."""

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
from onnxprune.options.judging import Judging
from onnxprune.pipeline.arguments import parted
from onnxprune.pipeline.delivery import unlost
from onnxprune.pipeline.opening import LOAD, LOOK_AT_DATA, calibration
from onnxprune.pipeline.results import PlanResult
from onnxprune.pipeline.run import Destinations, Run, Sources, execute, path_of
from onnxprune.pipeline.selection import SELECT
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.runtime.timings import Timings

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
    timings: str | os.PathLike[str] | None = None,
    measure: BenchmarkConfig | None = None,
    on_stage: ProgressCallback = quiet,
    options: Options | None = None,
    judging: Judging | None = None,
    **fields: Unpack[Fields],
) -> PlanResult:
    """Select the channels and edits that `prune` would delete and make, and write nothing but the plan.

    `prune(model, plan=…)` replays the plan.

    Args:
        model: path of an ONNX file.
        output: path of plan.json; None: nothing is written.
        data: as for `onnxprune.prune`.
        preprocess: as for `onnxprune.prune`.
        latency_table: as for `onnxprune.prune`.
        timings: as for `onnxprune.prune`.
        measure: as for `onnxprune.prune`.
        on_stage: as for `onnxprune.prune`.
        options: as for `onnxprune.prune`.
        judging: as for `onnxprune.prune`.
        **fields: as for `onnxprune.prune`.

    Returns:
        The plan; `layers` lists every layer before and after, `report` is the content of plan.json.

    Raises:
        TargetError: the targets cannot be met.
        OnnxPruneError: base of all errors; nothing is written then.

    Examples:
        >>> import onnxprune
        >>> planned = onnxprune.plan("model.onnx", output="plan.json", reduce={"flops": 0.4}, round_to=1)
        >>> flops_removed, params_removed = planned.plan.path[-1]
        >>> flops_removed >= 0.4
        True
    """
    options, measure, judging = parted(fields, options, measure, judging)
    run = Run(
        Sources(Path(model), data, preprocess=preprocess, latency_table=path_of(latency_table), judging=judging),
        Destinations(plan=path_of(output), timings=path_of(timings)),
        options,
        measure=measure,
        on_stage=on_stage,
        timings=Timings(path_of(timings)),
    )
    with contextlib.ExitStack() as scope:
        scope.enter_context(run.timings.kept())
        run = execute(run, (LOAD, LOOK_AT_DATA, calibration(scope), SELECT))
    generated = [DATA_FREE] if data is None and run.data is not None else []
    result = PlanResult(run.plan, run.original, run.edited.analysis, (*run.notes, *generated, *run.timings.notes))
    if output is not None:
        with unlost(result):
            result.save(output)
    return result

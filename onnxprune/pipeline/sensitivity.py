"""`sensitivity`: the loss of the output as each group by itself loses channels, on one worker or several."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from onnxprune.allocation import sensitivity as losses
from onnxprune.allocation.problem import refuse_unprunable
from onnxprune.data.dataset import DataLike
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import OptionError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.importance import obs as second_order
from onnxprune.importance.registry import calibrated_scores
from onnxprune.options import Options
from onnxprune.options.judging import Judging
from onnxprune.pipeline.arguments import parted
from onnxprune.pipeline.opening import LOAD, LOOK_AT_DATA, calibration
from onnxprune.pipeline.results import SensitivityResult
from onnxprune.pipeline.run import Run, Sources, Stage, execute
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.runtime import workers
from onnxprune.runtime.providers import CPU_PROVIDER
from onnxprune.types import Curve

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnxprune.pipeline.arguments import Fields


PARTS = 2
"""Parts of the work per worker: several, so that no worker idles long at the end."""


def sensitivity(
    model: str | os.PathLike[str],
    *,
    data: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    on_stage: ProgressCallback = quiet,
    options: Options | None = None,
    judging: Judging | None = None,
    measure: BenchmarkConfig | None = None,
    **fields: Unpack[Fields],
) -> SensitivityResult:
    """Measure the loss of the output as each group by itself loses channels, while its readers are refitted.

    Channels go in the order of Optimal Brain Surgeon (Hassibi and Stork, 1993, eq. 5); the loss is the divergence of
    the output from that of the model, on held-out samples.

    Args:
        model: path of an ONNX file.
        data: samples, as for `onnxprune.prune`; required, `"generated"` makes some.
        preprocess: as for `onnxprune.prune`.
        jobs: number of processes; default 1. Results do not depend on it.
        scheduler: address of a Dask scheduler that runs the work instead; None: processes on this machine.
        on_stage: as for `onnxprune.prune`.
        options: as for `onnxprune.prune`.
        judging: as for `onnxprune.prune`.
        measure: the execution provider that computes the outputs that are compared, where it is not the CPU; nothing is timed.
        **fields: as for `onnxprune.prune`.

    Returns:
        One curve per group: numbers of channels that are gone, and the loss at each.

    Raises:
        OptionError: no data.
        ModelError: nothing can be pruned.

    Examples:
        >>> import onnxprune
        >>> found = onnxprune.sensitivity("model.onnx", data="samples.npz", augment=())
        >>> [curve.group for curve in found.curves]
        ['conv1', 'conv2']
    """
    options, measure, judging = parted(fields, options, measure, judging)
    options = replace(options, importance="obs", scope="sensitivity")
    if data is None:
        raise OptionError("sensitivity needs inputs of the model", hint="give --data, or `--data generated`")
    sources = Sources(Path(model), data, preprocess=preprocess, judging=judging)
    run = Run(sources, asked=options, measure=measure, on_stage=on_stage)
    run = execute(run, (LOAD, LOOK_AT_DATA))
    refuse_unprunable(run.original)
    with threadpool_limits(1):  # sums come out the same, however many workers there are
        found = _curves(run) if jobs == 1 and scheduler is None else _shared_out(run, jobs, scheduler)
    return SensitivityResult(found, run.original, run.distance)


def _shared_out(run: Run, jobs: int, scheduler: str | None) -> tuple[Curve, ...]:
    """Measure the groups on several workers, some at a time on each."""
    trace = run.original.trace
    free = [group.name for group in trace.groups if not trace.pinned[group.channels].all()]
    parts = [part.tolist() for part in np.array_split(np.array(free, dtype=object), PARTS * max(jobs, 1)) if part.size]
    work = [(run.sources, run.asked, run.measure, run.distance, tuple(part)) for part in parts]
    left = len(work)

    def done(number: int, found: tuple[Curve, ...]) -> None:
        nonlocal left
        left -= 1
        run.on_stage("measure", 1 - left / len(work))

    found = workers.run(_study_part, work, workers=jobs, scheduler=scheduler, done=done)
    return tuple(curve for curves in found for curve in curves)


def _study_part(part: tuple[Sources, Options, BenchmarkConfig, str, tuple[str, ...]]) -> tuple[Curve, ...]:
    sources, options, measured, distance, names = part
    with threadpool_limits(1):
        return _curves(execute(Run(sources, asked=options, measure=measured, distance=distance), (LOAD,)), names)


def _curves(run: Run, names: tuple[str, ...] | None = None) -> tuple[Curve, ...]:
    """Measure some groups; None: all."""

    def measure(run: Run) -> Run:
        workspace, original = run.workspace, run.original
        assert workspace is not None
        keep = np.ones(original.trace.n_channels, dtype=bool)
        _, removals = calibrated_scores(original, run.options, keep, run.on_stage, workspace, names)
        progress, of = share_of(run.on_stage, "measure"), second_order.points_of(original.trace)
        config = None if run.measure.provider == CPU_PROVIDER else run.measure.session
        curves = losses.curves(original, removals, workspace, progress, of, config)
        return replace(run, curves=curves)

    with contextlib.ExitStack() as scope:
        return execute(run, (calibration(scope), Stage(measure, requires=("original", "workspace")))).curves

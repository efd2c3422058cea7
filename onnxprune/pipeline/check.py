"""`check`: may a candidate replace a baseline?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from onnxprune.data.dataset import DataLike
from onnxprune.data.preprocess import Preprocess
from onnxprune.evaluation import gate
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.evaluation.gate import Judgement
from onnxprune.evaluation.policy import GateLimits
from onnxprune.pipeline.arguments import parted
from onnxprune.pipeline.results import CheckResult
from onnxprune.progress import ProgressCallback, quiet

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnxprune.pipeline.arguments import Fields


def check(
    candidate: str | os.PathLike[str],
    baseline: str | os.PathLike[str],
    *,
    data: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    limits: GateLimits | None = None,
    strict: bool = False,
    providers: tuple[str, ...] = ("CPU",),
    measure: BenchmarkConfig | None = None,
    on_stage: ProgressCallback = quiet,
    **fields: Unpack[Fields],
) -> CheckResult:
    """Hold a candidate against the model that it should replace.

    Args:
        candidate: path of the model to judge.
        baseline: path of the model that it should replace.
        data: samples to run both on; None: seeded random inputs.
        preprocess: a `Preprocess`, a preset, or a TOML file.
        limits: what the candidate must keep.
        strict: let undecided checks fail as well.
        providers: of onnxruntime, on which the candidate must load; the first one runs the comparison.
        measure: benchmark config.
        on_stage: progress callback.
        fields: in place of `measure`, its fields one by one: threads=2, runs=50, …

    Raises:
        OnnxPruneError: a file or the data cannot be used at all, or a limit has nothing to be held against.
    """
    verdict = gate.check(
        candidate,
        baseline,
        data=data,
        preprocess=preprocess,
        limits=limits,
        measure=parted(fields, None, measure)[1],
        providers=tuple(f"{name.removesuffix('ExecutionProvider')}ExecutionProvider" for name in providers),
        on_stage=on_stage,
    )
    verdict = gate.strict(verdict) if strict else verdict
    return CheckResult(Judgement(os.fspath(candidate), os.fspath(baseline), verdict))

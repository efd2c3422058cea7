"""`check`: may a candidate replace a baseline?"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from onnxprune.data.dataset import DataLike
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import OptionError
from onnxprune.evaluation import gate
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.evaluation.gate import Judgement
from onnxprune.evaluation.policy import GateLimits
from onnxprune.options.judging import Judging
from onnxprune.pipeline.arguments import parted
from onnxprune.pipeline.results import CheckResult
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.runtime.providers import normal_provider

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnxprune.pipeline.arguments import MeasuringFields


def check(
    candidate: str | os.PathLike[str],
    baseline: str | os.PathLike[str] | None = None,
    *,
    data: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    judging: Judging | None = None,
    limits: GateLimits | None = None,
    strict: bool = False,
    providers: Sequence[str] = (),
    shape: Mapping[str, tuple[int, ...]] | None = None,
    measure: BenchmarkConfig | None = None,
    on_stage: ProgressCallback = quiet,
    **fields: Unpack[MeasuringFields],
) -> CheckResult:
    """Check a candidate against the model that it should replace.

    Args:
        candidate: path of the model to judge.
        baseline: path of the model that it should replace; None: there is none, and limits are on amounts of the candidate
            (`GateLimits.min`, `GateLimits.max`).
        data: samples to run both models on, as for `onnxprune.prune`; None: seeded random inputs, on which no accuracy
            is measured.
        preprocess: as for `onnxprune.prune`.
        judging: as for `onnxprune.prune`.
        limits: limits on accuracy, fidelity, latency and cost; None: structure and finite outputs alone are checked.
        strict: let undecided checks fail as well: those whose interval holds the limit.
        providers: execution providers that must load the candidate, `NAME[,key=value…]`, with or without `ExecutionProvider`;
            the first one runs both models; default: that of the benchmark config.
        shape: as for `onnxprune.inspect`.
        measure: as for `onnxprune.prune`.
        on_stage: as for `onnxprune.prune`.
        **fields: in place of `measure` and `judging`, their fields: threads=2, runs=50, …

    Returns:
        The verdict: truthy when every check passed; `checks` holds each measured value beside its limit.

    Raises:
        OptionError: a limit needs data or timings that are not there.
        OnnxPruneError: a file or the data cannot be used at all.

    Examples:
        >>> import onnxprune
        >>> limits = onnxprune.GateLimits(max_size=1e6)
        >>> verdict = onnxprune.check("model.onnx", "model.onnx", limits=limits, latency=False)
        >>> bool(verdict)
        True
    """
    _, measure, judging = parted(fields, None, measure, judging, prunes=False)
    if isinstance(providers, str):
        raise OptionError(f"providers is {providers!r}", hint="give a list of names")
    verdict = gate.check(
        candidate,
        baseline,
        data=data,
        preprocess=preprocess,
        judging=judging,
        limits=limits,
        measure=measure,
        providers=tuple(map(normal_provider, providers or (measure.provider,))),
        shape=shape,
        on_stage=on_stage,
    )
    verdict = gate.strict(verdict) if strict else verdict
    return CheckResult(Judgement(os.fspath(candidate), "" if baseline is None else os.fspath(baseline), verdict))

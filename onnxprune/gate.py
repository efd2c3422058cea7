"""`check`: may this candidate replace that baseline?"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from typing import Any

from onnxprune import files, runtime, verify
from onnxprune.comparison import Comparison, Measure, Stage, compare, quiet
from onnxprune.data import DataLike, Preprocess, inputs_of, load_data
from onnxprune.errors import OptionError
from onnxprune.types import Check, Verdict

SCHEMA = "onnxprune.check/1"


@dataclass(frozen=True)
class Limits:
    """What a candidate must keep; None: only told.

    Attributes:
        max_drop: points of top-1 that may be lost; without labels, points of agreement with the baseline below 100.
        min_agreement: percent of samples with the same top-1.
        min_speedup: median latency of the baseline / median latency of the candidate.
        max_size: bytes on disk.
    """

    max_drop: float | None = None
    min_agreement: float | None = None
    min_speedup: float | None = None
    max_size: float | None = None

    def __post_init__(self) -> None:
        for name, most, unit in (
            ("max_drop", 100, "points from 0 to 100"),
            ("min_agreement", 100, "percent from 0 to 100"),
            ("min_speedup", math.inf, "a ratio of 0 or more"),
            ("max_size", math.inf, "a size of 0 or more"),
        ):
            value = getattr(self, name)
            if value is not None and not (0 <= value <= most and math.isfinite(value)):
                raise OptionError(f"--{name.replace('_', '-')} {value:g} is out of range", hint=f"give {unit}")


def check(
    candidate: str | os.PathLike[str],
    baseline: str | os.PathLike[str],
    *,
    data: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    limits: Limits | None = None,
    measure: Measure | None = None,
    on_stage: Stage = quiet,
) -> Verdict:
    """Hold any candidate against a baseline.

    Args:
        candidate: path of the model to judge.
        baseline: path of the model it should replace.
        data: what to run both on; seeded random inputs when None.
        preprocess: as for `prune`.
        limits: what the candidate must keep.
        measure: how to measure.
        on_stage: called as the run goes on.

    Raises:
        OnnxPruneError: a file or the data cannot be used at all, or a limit has nothing to be held against.
    """
    limits, measure = limits or Limits(), measure or Measure()
    if limits.max_drop is not None and data is None:
        raise OptionError("--max-drop needs data", hint="give --data")
    on_stage("load", None)
    (ours, size), (theirs, _) = files.read(candidate), files.read(baseline)
    checks = verify.structure(ours, theirs, strict=verify.full_check(theirs) is None)
    if not all(checks):
        return Verdict(tuple(checks))
    loaded = load_data(data, inputs_of(theirs), preprocess) if data is not None else None
    original, ran = (
        runtime.session(os.fspath(path), threads=measure.threads, where=os.fspath(path))
        for path in (baseline, candidate)
    )
    found = compare(original, ran, ours, loaded, measure, on_stage)
    checks += [
        Check("finite outputs", found.finite, None, found.finite),
        *_accuracy(found, limits),
        *_speed(found, limits),
        Check("size (bytes)", float(size), limits.max_size, limits.max_size is None or size <= limits.max_size),
    ]
    return Verdict(tuple(checks))


def _accuracy(found: Comparison, limits: Limits) -> list[Check]:
    checks = []
    where = f"{found.samples} samples of {found.data}"
    before, after, agreement = found.accuracy_a[0], found.accuracy_b[0], found.fidelity.get("agreement")
    if agreement is None and (limits.min_agreement is not None or (limits.max_drop is not None and before is None)):
        raise OptionError(
            "there is nothing to hold the accuracy limit against",
            why="no output of the form (samples, classes)",
            hint="leave the limit out",
        )
    if before is not None and after is not None:
        checks.append(
            _at_most("top-1 drop (points)", before - after, limits.max_drop, f"{before:.2f} -> {after:.2f} %, {where}")
        )
    elif agreement is not None and limits.max_drop is not None:
        checks.append(_at_most("agreement drop (points)", 100 - agreement, limits.max_drop, where))
    if agreement is not None:
        checks.append(_at_least("agreement (%)", agreement, limits.min_agreement, where))
    if "cosine" in found.fidelity:
        checks.append(_at_least("cosine", found.fidelity["cosine"], None, where))
    return checks


def _speed(found: Comparison, limits: Limits) -> list[Check]:
    latency = found.latency
    if latency is None or latency.speedup is None or latency.speedup_interval is None:
        return []
    low, high = latency.speedup_interval
    detail = f"95 % interval {low:.2f} to {high:.2f}, batch {latency.batch}, threads {latency.threads or 'default'}"
    return [_at_least("speed-up", latency.speedup, limits.min_speedup, detail)]


ROUNDING = 1e-9
"""A value this much beyond its limit still counts as equal to it: 92.5 - 92.0 is not quite 0.5."""


def _at_most(name: str, value: float, limit: float | None, detail: str) -> Check:
    return Check(name, value, limit, limit is None or value <= limit + ROUNDING, detail)


def _at_least(name: str, value: float, limit: float | None, detail: str) -> Check:
    return Check(name, value, limit, limit is None or value >= limit - ROUNDING, detail)


def to_dict(verdict: Verdict) -> dict[str, Any]:
    """Return plain values for JSON."""
    return {"schema": SCHEMA, "passed": bool(verdict), "checks": [asdict(check) for check in verdict.checks]}

"""The measured checks of the gate: one row per check, and one rule that decides all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import onnx

from onnxprune.errors import OnnxPruneError, OptionError
from onnxprune.evaluation import sanity
from onnxprune.evaluation.compare import Comparison
from onnxprune.evaluation.policy import GateLimits
from onnxprune.graph.model import count_params
from onnxprune.metrics import activation_memory, paired_tests
from onnxprune.metrics.outputs import OutputPair, log_probabilities
from onnxprune.metrics.statistics import mean
from onnxprune.metrics.table import METRICS, SCORES, Metric, of_kind
from onnxprune.runtime import paired_timing, process_memory
from onnxprune.runtime.session import SessionConfig
from onnxprune.types import Check, FloatArray, IntArray, doubt

NOISY = 0.25
"""Range of the speed-up over the rounds, as a share of the median, above which the machine is noisy."""
DEFAULT_DROP = 2.0
"""Points of the task's metric (without labels of agreement, of explained variance, or of the cosine) that may be lost where no limit is
given; percent of the original's amount where the metric of the user's own has another unit."""
ROUNDING = 1e-9
"""Difference up to which a value equals its limit: 92.5 - 92.0 is not exactly 0.5."""


@dataclass(frozen=True)
class Judged:
    """A comparison, and the limits on it.

    Attributes:
        compared: both models on the same inputs.
        limits: limits on quality and costs.
        doubts: what was seen in the data before.
        is_asked: whether the limits were asked for. A drop beyond a limit that was asked for fails, also where chance may be the cause.
    """

    compared: Comparison
    limits: GateLimits
    doubts: tuple[Check, ...] = field(default=(), kw_only=True)
    is_asked: bool = field(default=True, kw_only=True)

    @property
    def where(self) -> str:
        """Samples of accuracy and fidelity."""
        return f"{self.compared.samples} samples of {self.compared.data}"

    def scores(self) -> tuple[FloatArray, FloatArray] | None:
        """Return the class scores of both models; None where there are none."""
        original, candidate = self.compared.judged
        return OutputPair(candidate, original, self.compared.class_labels, self.compared.classes).scores()

    def labelled(self) -> tuple[FloatArray, FloatArray, IntArray] | None:
        """Return class scores and labels; None where there are none, or outputs are not finite."""
        scores, labels = self.scores(), self.compared.class_labels
        return None if scores is None or labels is None or not self.compared.finite else (*scores, labels)


@dataclass(frozen=True)
class Measurements(Judged):
    """Measurements of a baseline and a candidate, in that order.

    Attributes:
        compared: both models on the same inputs.
        limits: limits of the gate.
        paths, protos: of both models.
        size: bytes of the candidate.
        timed: latency of both models; None where it is not measured.
        config: how the models are executed.
    """

    paths: tuple[str | os.PathLike[str], str | os.PathLike[str]]
    protos: tuple[onnx.ModelProto, onnx.ModelProto]
    size: float
    timed: paired_timing.PairedTiming | None
    config: SessionConfig

    @property
    def batch(self) -> int:
        """Samples per timed run."""
        return self.compared.batch


@dataclass(frozen=True)
class Measured:
    """A value, its interval where known, and a name that replaces the one of the check."""

    value: float
    detail: str
    low: float | None = None
    high: float | None = None
    name: str = ""


@dataclass(frozen=True)
class LimitCheck:
    """A measured value with a limit: the smallest value that passes where `at_least`, else the largest.

    Where the value cannot be measured, a limit is an error if `needs` says what the measurement requires; else the check is left out.
    """

    name: str
    limit: str
    measure: Callable[[Any], Measured | None]
    at_least: bool = False
    needs: str = ""
    kind: str = "cost"

    def held(self, found: Measured, limit: float | None) -> Check:
        """Decide the check where the whole interval is on one side of the limit; else the check is undecided."""
        name = found.name or self.name
        if limit is None:
            return Check(name, found.value, None, True, found.detail, kind=self.kind)
        bounds = [found.value if bound is None else bound for bound in (found.low, found.high)]
        passes = [b >= limit - ROUNDING if self.at_least else b <= limit + ROUNDING for b in bounds]
        return Check(name, found.value, limit, any(passes), found.detail, any(passes) and not all(passes), self.kind)


def hold(measured: Measurements) -> Iterator[Check]:
    """Decide all checks.

    Raises:
        OptionError: there is a limit on a value that cannot be measured.
    """
    yield from hold_quality(measured)
    yield from _held(COSTS, measured, measured.limits)


def hold_quality(judged: Judged) -> Iterator[Check]:
    """Decide the checks of quality; with samples of the user and no limit, `DEFAULT_DROP` points may be lost.

    Raises:
        OptionError: there is a limit on a value that cannot be measured.
    """
    limits = judged.limits
    asked = any(getattr(limits, check.limit) is not None for check in QUALITY)
    if not asked and judged.compared.is_real:
        limits = replace(limits, max_drop=_default_drop(judged.compared))
    found = list(_held(QUALITY, replace(judged, limits=limits, is_asked=asked), judged.limits))
    if all(check.limit is None for check in found):
        why = "give samples with --data" if not judged.compared.is_real else "no output can be compared"
        yield Check("quality", "not measured", None, True, why, kind="quality")
    yield from judged.doubts
    if judged.compared.is_real:
        yield from _doubts(judged)
    yield from found


def _default_drop(compared: Comparison) -> float:
    """Return the default limit in the unit of the leading metric: points, or a share of the original's amount."""
    lead = compared.lead
    return (
        DEFAULT_DROP if lead is None or lead.unit == "%" else DEFAULT_DROP / 100 * abs(compared.accuracy[0][lead.name])
    )


def _held(checks: Iterable[LimitCheck], measured: Judged, asked: GateLimits) -> Iterator[Check]:
    for check_ in checks:
        found = check_.measure(measured)
        if found is not None:
            yield check_.held(found, getattr(measured.limits, check_.limit))
        elif getattr(asked, check_.limit) is not None and check_.needs and measured.compared.finite:
            option = check_.limit.replace("_", "-")
            raise OptionError(
                f"--{option} needs {check_.needs}", hint=f"provide {check_.needs}, or leave the limit out"
            )


def paired_drop(found: paired_tests.Paired, where: str, name: str = "", *, is_asked: bool = True) -> Measured:
    """Return a drop with the bounds of its confidence interval that decide; see `Judged.is_asked`."""
    detail = f"no worse than {found.upper:.2f} at 95 %, interval {found.low:.2f} to {found.high:.2f}"
    detail += f", {found.lost} lost and {found.gained} gained, McNemar p {found.p:.2g}, {where}"
    return Measured(found.drop, detail, found.drop if is_asked else found.low, found.upper, name)


def _doubts(judged: Judged) -> Iterator[Check]:
    """Say why the outputs of the original, or the number of samples, say little."""
    compared = judged.compared
    if compared.finite:
        yield from sanity.doubts(compared.judged[0], compared.class_labels, classes=compared.classes)
        yield from sanity.near_chance(compared.task, compared.statistics[0], compared.shuffled, compared.samples)
    if compared.samples < sanity.FEW and not all(map(np.array_equal, *compared.judged)):
        yield doubt("samples", str(compared.samples), f"too few for a word on quality: give {sanity.FEW} or more")


def _drop(measured: Judged) -> Measured | None:
    """Return the drop of the leading metric; without labels that of agreement, of the cosine, or of explained variance."""
    compared = measured.compared
    if not compared.finite or (not compared.fidelity and not compared.accuracy[1]):
        return None  # a check of its own
    if compared.lead is not None and compared.lead.name != "top1":
        return _drop_of(compared.lead, measured)
    scores, labels = measured.scores(), compared.class_labels
    if scores is not None and labels is not None:
        first, second = (paired_tests.right(one, labels) for one in scores)
        found = paired_drop(paired_tests.paired(first, second), measured.where, is_asked=measured.is_asked)
        before, after = (each["top1"] for each in compared.accuracy)
        change = f"{before:.2f} -> {after:.2f} %"
        return replace(found, detail=f"{change}, {found.detail}")
    if measured.limits.max_drop is None:
        return None
    if compared.agreeing is not None:
        found = (mean(np.full(compared.samples, 100.0)), mean(100 * compared.agreeing))
        return _bounded(paired_tests.difference(*found, compared.samples), measured, "agreement drop (points)")
    if scores is not None:
        same = scores[0].argmax(axis=1) == scores[1].argmax(axis=1)
        paired = paired_tests.paired(np.ones_like(same), same)
        return paired_drop(paired, measured.where, "agreement drop (points)", is_asked=measured.is_asked)
    label = METRICS["cosine" if compared.task is not None and compared.task.name == "embed" else "explained"].label
    return None if compared.lost is None else Measured(compared.lost, measured.where, name=f"{label}, drop (points)")


def _drop_of(lead: Metric, measured: Judged) -> Measured:
    """Return the drop of a metric, in its unit, with the interval of the paired bootstrap."""
    compared = measured.compared
    first, second = (statistics[lead.name] for statistics in compared.statistics)
    if lead.direction == "lower":
        first, second = second, first
    found = paired_tests.difference(first, second, compared.samples)
    before, after = (each[lead.name] for each in compared.accuracy)
    unit = "points" if lead.unit == "%" else lead.unit
    what = "rise" if lead.direction == "lower" else "drop"
    name = f"{lead.label} {what} ({unit})" if unit else f"{lead.label} {what}"
    return _bounded(found, measured, name, f"{lead.text(before)} -> {lead.text(after)}, ")


def _bounded(found: paired_tests.Interval, measured: Judged, name: str, change: str = "") -> Measured:
    """Return a drop with the bounds that decide; see `Judged.is_asked`."""
    told = f"no worse than {found.upper:.4g} at 95 %, interval {found.low:.4g} to {found.high:.4g}"
    low = found.drop if measured.is_asked else found.low
    return Measured(found.drop, f"{change}{told}, {measured.where}", low, max(found.drop, found.upper), name)


def _beside_drop(measured: Judged) -> Measured | None:
    """Return the drop of the outputs beside the class scores; None where there are none, or no limit."""
    if (
        not measured.compared.classes
        or measured.scores() is None
        or measured.limits.max_drop is None
        or not measured.compared.finite
    ):
        return None
    explained = measured.compared.fidelity.get("explained")
    return None if explained is None else Measured(100 - explained, measured.where)


def _fidelity_check(metric: Metric) -> LimitCheck:
    """Return the check of a metric of fidelity; its limit is `min_<name>` or `max_<name>`."""
    at_least = metric.direction == "higher"

    def measure(measured: Judged) -> Measured | None:
        value = measured.compared.fidelity.get(metric.name)
        return None if value is None else Measured(value, measured.where)

    return LimitCheck(
        metric.title, f"{'min' if at_least else 'max'}_{metric.name}", measure, at_least, metric.needs, kind="quality"
    )


def _class_drop(measured: Judged) -> Measured | None:
    """Return the largest drop of a class; with a limit, the one with the largest lower bound."""
    known = measured.labelled()
    if known is None:
        return None
    first, second, labels = known
    drops = paired_tests.class_drops(paired_tests.right(first, labels), paired_tests.right(second, labels), labels)
    worst = max(drops, key=lambda one: one.low if measured.limits.max_class_drop is not None else one.drop)
    change = f"class {worst.label}: {worst.before:.1f} -> {worst.after:.1f} % of {worst.samples} samples"
    return Measured(worst.drop, f"{change}, {worst.low:.1f} at least at 95 %", worst.low, worst.drop)


def _calibration_rise(measured: Judged) -> Measured | None:
    known = measured.labelled()
    if known is None:
        return None
    first, second, labels = known
    before, after = (paired_tests.calibration_error(log_probabilities(scores), labels) for scores in (first, second))
    return Measured(after - before, f"{before:.2f} -> {after:.2f}")


def _speedup(measured: Measurements) -> Measured | None:
    timed = measured.timed
    if timed is None:
        return None
    ratio, low, high = (float(of(timed.ratios)) for of in (np.median, np.min, np.max))
    setting = f"batch {measured.batch}, threads {measured.config.threads or 'default'}"
    detail = f"{low:.2f} to {high:.2f} in {len(timed.ratios)} rounds, {timed.runs} runs, {setting}"
    detail += "; the machine is noisy" if high - low > NOISY * ratio else ""
    detail += f"; other processes kept {timed.others:.1f} processors busy" if timed.busy else ""
    return Measured(ratio, detail, low, high)


def _latency(measured: Measurements) -> Measured | None:
    """Return milliseconds, where there is a limit; the interval allows for the load of other processes."""
    timed = measured.timed
    if timed is None or measured.limits.max_latency is None:
        return None
    low, high = min(timed.b), max(timed.b)
    idle = low / (1 + (timed.others or 0.0)) if timed.busy else low
    detail = f"{low:.3f} to {high:.3f}" + (f"; {idle:.3f} perhaps on a quiet machine" if timed.busy else "")
    return Measured(float(np.median(timed.b)), detail, idle, high)


def _parameters(measured: Measurements) -> Measured:
    return Measured(float(count_params(measured.protos[1])), "in the file: floats, and quantized weights")


def _activation_memory(measured: Measurements) -> Measured | None:
    shapes = {name: value.shape for name, value in measured.compared.feeds.items()}
    try:
        before, after = (float(activation_memory.peak(proto, shapes)) for proto in measured.protos)
    except OnnxPruneError:
        if measured.limits.max_memory is not None:
            raise
        return None
    return Measured(after, f"activations alive at once, batch {measured.batch}; {before:.6g} in the baseline")


def _peak_memory(measured: Measurements) -> Measured | None:
    with ThreadPoolExecutor() as pool:
        opens = partial(process_memory.measure, feeds=measured.compared.feeds, config=measured.config)
        before, after = pool.map(opens, measured.paths)
    if before is None or after is None:
        return None
    detail = f"of a process that loads and runs it, batch {measured.batch}; {before:.6g} for the baseline"
    return Measured(float(after), detail)


DROP = LimitCheck("top-1 drop (points)", "max_drop", _drop, needs=SCORES, kind="quality")
QUALITY = (
    DROP,
    LimitCheck("explained variance of the other outputs, drop (points)", "max_drop", _beside_drop, kind="quality"),
    *map(_fidelity_check, of_kind("fidelity")),
    LimitCheck("largest class drop (points)", "max_class_drop", _class_drop, needs="labels", kind="quality"),
    LimitCheck(
        "calibration error, rise (points)", "max_calibration_rise", _calibration_rise, needs="labels", kind="quality"
    ),
)
COSTS = (
    LimitCheck("speed-up", "min_speedup", _speedup, at_least=True),
    LimitCheck(METRICS["latency"].title, "max_latency", _latency),
    LimitCheck("size (bytes)", "max_size", lambda of: Measured(of.size, "of the file and of the weights beside it")),
    LimitCheck(METRICS["params"].title, "max_params", _parameters),
    LimitCheck(METRICS["memory"].title, "max_memory", _activation_memory),
    LimitCheck("peak memory (bytes)", "max_peak_memory", _peak_memory, needs="Linux, which tells what a process takes"),
)
"""All measured checks, in the order of a verdict."""

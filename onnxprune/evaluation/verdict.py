"""The checks of quality: one row per check, and one rule that decides all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.evaluation import sanity
from onnxprune.evaluation.compare import Comparison
from onnxprune.evaluation.label_sanity import label_doubts
from onnxprune.evaluation.policy import OWN, GateLimits
from onnxprune.metrics import paired_tests
from onnxprune.metrics.outputs import OutputPair, log_probabilities
from onnxprune.metrics.statistics import mean, on_all
from onnxprune.metrics.table import METRICS, Metric, named, of_kind
from onnxprune.metrics.tasks import prepared
from onnxprune.types import Check, FloatArray, IntArray, doubt

DEFAULT_DROP = 2.0
"""Points of the task's metric (without labels of agreement, of explained variance, or of the cosine) that may be lost where no limit is
given; percent of the original's amount where the metric of the user's own has another unit."""
COMPARED = (
    "max_drop",
    "max_class_drop",
    "max_calibration_rise",
    "min_agreement",
    "min_cosine",
    "min_explained",
    "max_kl",
    "min_speedup",
)
"""Limits on what a candidate has against its baseline."""
EVERY_CLASS, WORST_CLASSES = 20, 5
"""Number of classes up to which each has a row, and number of rows of more classes."""
NO_INTERVAL = "no interval: the metric is not defined on resamples, in which samples occur more than once"
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

    Values and limits are divided by `scale`, for the unit in the name. Where the value cannot be measured, a limit is an error
    if `needs` says what the measurement requires; else the check is left out.
    """

    name: str
    limit: str
    measure: Callable[[Any], Measured | None]
    at_least: bool = False
    needs: str = ""
    kind: str = "cost"
    scale: float = 1.0

    def held(self, found: Measured, limit: float | None) -> Check:
        """Decide the check where the whole interval is on one side of the limit; else the check is undecided."""
        name, value = found.name or self.name, found.value / self.scale
        if limit is None:
            return Check(name, value, None, True, found.detail, kind=self.kind)
        bounds = [found.value if bound is None else bound for bound in (found.low, found.high)]
        passes = [b >= limit - ROUNDING if self.at_least else b <= limit + ROUNDING for b in bounds]
        undecided = any(passes) and not all(passes)
        return Check(name, value, limit / self.scale, any(passes), found.detail, undecided, self.kind)


def hold_quality(judged: Judged) -> Iterator[Check]:
    """Decide the checks of quality; with samples of the user and no limit, `DEFAULT_DROP` points may be lost.

    Raises:
        OptionError: there is a limit on a value that cannot be measured.
    """
    limits = judged.limits
    _refuse_alone(judged)
    asked = any(limits.of(check.limit) is not None for check in QUALITY) or any(
        limits.amounts(side).keys() & judged.compared.accuracy[1].keys() for side in ("min", "max")
    )
    if not asked and judged.compared.is_real and not judged.compared.alone:
        limits = replace(limits, max_drop=_default_drop(judged.compared))
    paired = () if judged.compared.alone else QUALITY
    found = list(held(paired, replace(judged, limits=limits, is_asked=asked), judged.limits))
    found += absolute(judged)
    if all(check.limit is None for check in found):
        why = "no output can be compared" if judged.compared.finite else "outputs are not finite"
        if judged.compared.alone and judged.compared.finite:
            lead = judged.compared.lead
            why = f"give a limit, for instance --min {'top1' if lead is None else lead.name}=…, or --baseline"
        if not judged.compared.is_real:
            why = "give samples with --data"
        yield Check("quality", "not measured", None, True, why, kind="quality")
    yield from judged.doubts
    if judged.compared.is_real:
        yield from _doubts(judged)
    if asked and all(found):
        yield from _wide_limit(judged)
    yield from found


def absolute(judged: Judged) -> Iterator[Check]:
    """Decide the limits on amounts of the candidate, with the bootstrap's interval; metrics without a limit are told.

    Raises:
        OptionError: there is a limit on a metric that was not measured.
    """
    compared, limits = judged.compared, judged.limits
    asked = {side: limits.amounts(side) for side in ("min", "max")}
    own = compared.lead.name if compared.lead is not None and compared.lead.name not in METRICS else OWN
    known = {**compared.accuracy[1]}
    for side, wanted in asked.items():
        for name in wanted:
            measured_elsewhere = METRICS[name].kind != "accuracy" if name in METRICS else False
            if (own if name == OWN else name) not in known and not measured_elsewhere and compared.finite:
                raise OptionError(
                    f"--{side} {name} was not measured",
                    why=f"measured were {', '.join(known) or 'none, there are no labels'}",
                    hint="give --task and labels that have this metric, or leave the limit out",
                )
    for name, amount in known.items():
        metric, alias = named(name), OWN if name == own else name
        limit = next(((side, of[alias]) for side, of in asked.items() if alias in of), None)
        if limit is None and compared.lead is not None and name == compared.lead.name and not compared.alone:
            continue  # the drop tells it
        change = (
            judged.where
            if compared.alone
            else f"{metric.text(compared.accuracy[0][name])} -> {metric.text(amount)}, {judged.where}"
        )
        if limit is None:
            yield Check(metric.title, amount, None, True, change, kind="quality")
            continue
        found = paired_tests.interval(compared.statistics[1][name], compared.samples)
        told = f"{found.low:.4g} to {found.high:.4g} at 95 %" if np.isfinite(found.high) else NO_INTERVAL
        told = f"{told}, {change}"
        row = LimitCheck(metric.title, "", lambda _: None, at_least=limit[0] == "min", kind="quality")
        low, high = (found.low, amount) if row.at_least else (amount, found.high)  # an amount beyond the limit fails
        yield row.held(Measured(amount, told, low, high), limit[1])


def _refuse_alone(judged: Judged) -> None:
    """Refuse limits on a comparison where there is no baseline.

    Raises:
        OptionError: there is one.
    """
    if not judged.compared.alone:
        return
    for name in COMPARED:
        if judged.limits.of(name) is not None:
            raise OptionError(
                f"--{name.replace('_', '-')} needs a baseline",
                hint="give --baseline MODEL, or a limit on an amount: --min top1=90%",
            )


def _default_drop(compared: Comparison) -> float:
    """Return the default limit in the unit of the leading metric: points, or a share of the original's amount."""
    lead = compared.lead
    return (
        DEFAULT_DROP if lead is None or lead.unit == "%" else DEFAULT_DROP / 100 * abs(compared.accuracy[0][lead.name])
    )


def held(checks: Iterable[LimitCheck], measured: Judged, asked: GateLimits) -> Iterator[Check]:
    """Decide checks; `asked` are the limits that must be measured.

    Raises:
        OptionError: a limit is on a value that cannot be measured.
    """
    for check_ in checks:
        found = check_.measure(measured)
        if found is not None:
            yield check_.held(found, measured.limits.of(check_.limit))
        elif asked.of(check_.limit) is not None and check_.needs and measured.compared.finite:
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
        if compared.task is not None and compared.labels is not None and compared.task.measures:
            truth = prepared(compared.task.name, compared.labels)
            yield from label_doubts(compared.task.name, compared.predictions, truth, compared.outputs[0])
        yield from compared.doubts
    if compared.samples < sanity.FEW and (compared.alone or not all(map(np.array_equal, *compared.judged))):
        yield doubt("samples", str(compared.samples), f"too few for a word on quality: give {sanity.FEW} or more")


def _wide_limit(judged: Judged) -> Iterator[Check]:
    """Say that a candidate within its limits has lost more than half of what the original has above chance."""
    compared, lead = judged.compared, judged.compared.lead
    if lead is None or compared.shuffled is None or compared.alone or compared.lost is None:
        return
    before, chance = compared.accuracy[0][lead.name], on_all(compared.shuffled, compared.samples)
    above = chance - before if lead.direction == "lower" else before - chance
    if 0 < above < 2 * compared.lost:
        amounts = f"the original has {lead.text(before)}, with the labels of other samples {lead.text(chance)}"
        told = f"of {lead.label} are lost, more than half of what is above chance ({amounts}): give a smaller limit"
        yield doubt("limit", lead.text(compared.lost), told)


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
    if measured.limits.of("max_drop") is None:
        return None
    if compared.agreeing is not None:
        gone = paired_tests.difference(
            mean(np.full(compared.samples, 100.0)), mean(100 * compared.agreeing), compared.samples
        )
        return _bounded(gone, measured, "agreement drop (points)")
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
    if not np.isfinite(found.upper):
        told = NO_INTERVAL
    if not measured.is_asked and measured.limits.max_drop != DEFAULT_DROP:
        told += f", limit by default: {DEFAULT_DROP:g} % of the original's amount"
    low = found.drop if measured.is_asked else found.low
    return Measured(found.drop, f"{change}{told}, {measured.where}", low, max(found.drop, found.upper), name)


def _beside_drop(measured: Judged) -> Measured | None:
    """Return the drop of the outputs beside the class scores; None where there are none, or no limit."""
    if (
        not measured.compared.classes
        or measured.scores() is None
        or measured.limits.of("max_drop") is None
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
    worst = max(drops, key=lambda one: one.low if measured.limits.of("max_class_drop") is not None else one.drop)
    change = f"class {measured.compared.class_name(worst.label)}: {worst.before:.1f} -> {worst.after:.1f} % of {worst.samples} samples"
    return Measured(worst.drop, f"{change}, {worst.low:.1f} at least at 95 %", worst.low, worst.drop)


def class_rows(judged: Judged) -> Iterator[Check]:
    """Tell the recall of each class; of many classes, of those that lose most."""
    known = judged.labelled()
    if known is None or judged.compared.alone:
        return
    first, second, labels = known
    drops = paired_tests.class_drops(paired_tests.right(first, labels), paired_tests.right(second, labels), labels)
    told = sorted(drops, key=lambda one: one.label) if len(drops) <= EVERY_CLASS else drops[:WORST_CLASSES]
    for one in told:
        name = f"recall of {judged.compared.class_name(one.label)} (%)"
        yield Check(name, one.after, None, True, f"{one.before:.2f} before, {one.samples} samples", kind="quality")


def _calibration_rise(measured: Judged) -> Measured | None:
    known = measured.labelled()
    if known is None:
        return None
    first, second, labels = known
    before, after = (paired_tests.calibration_error(log_probabilities(scores), labels) for scores in (first, second))
    return Measured(after - before, f"{before:.2f} -> {after:.2f}")


DROP = LimitCheck("top-1 drop (points)", "max_drop", _drop, needs="outputs that can be compared", kind="quality")
QUALITY = (
    DROP,
    LimitCheck("explained variance of the other outputs, drop (points)", "max_drop", _beside_drop, kind="quality"),
    *map(_fidelity_check, of_kind("fidelity")),
    LimitCheck("largest class drop (points)", "max_class_drop", _class_drop, needs="labels", kind="quality"),
    LimitCheck(
        "calibration error, rise (points)", "max_calibration_rise", _calibration_rise, needs="labels", kind="quality"
    ),
)

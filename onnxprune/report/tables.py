"""The tables of a report as values, which the console, HTML and Markdown are rendered from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.evaluation.benchmark import Bench, LayerTime
from onnxprune.graph.analysis import Inspection, Layer
from onnxprune.metrics.table import METRICS, named, of_kind
from onnxprune.report.details import Details
from onnxprune.report.document import Member, Report, Sweep
from onnxprune.report.text import human, option_value, relative, size, speedup
from onnxprune.runtime.cache_entries import Entry
from onnxprune.types import Curve, Trace, Verdict

SHOWN = (0.125, 0.25, 0.5, 0.75, 0.875)
"""Shares of the prunable channels of a group at which its loss is shown."""
LEVELS = " ▁▂▃▄▅▆▇█"
STATUSES = {"FAILED": "✗ FAILED", "UNDECIDED": "? UNDECIDED", "PASSED": "✓ PASSED", "INFO": "i INFO"}
"""Statuses of checks in the order of a table, with signs that are legible without color."""


@dataclass(frozen=True)
class Names:
    """Several names in one cell; the page folds long lists."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.names)


AGES = (("days", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
"""Units of an age, in seconds."""
Cell = str | tuple[str, float] | Names
"""A text, a text with the number that the column is sorted by, or names."""
Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Rows under a caption; `name` is unique on the page."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def texts(self) -> list[list[str]]:
        """Return the rows as text."""
        return [[cell[0] if isinstance(cell, tuple) else str(cell) for cell in row] for row in self.rows]

    def numeric(self) -> list[bool]:
        """Return whether each column holds numbers."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.columns)
        return [any(isinstance(cell, tuple) for cell in column) for column in columns]

    def only(self, columns: slice) -> Table:
        """Return some of the columns."""
        return replace(self, columns=self.columns[columns], rows=tuple(row[columns] for row in self.rows))


Column = tuple[str, Callable[[Any], Any], str]
"""A heading, the function that returns the value of a row, and the format of numbers; without a format, the value is a cell."""


def number(value: float | None, spec: str = ",") -> Cell:
    """Return the cell of a formatted number; an empty cell where it is not known."""
    return "" if value is None else (format(value, spec), float(value))


def build(name: str, caption: str, items: Iterable[Any], columns: Sequence[Column]) -> Table:
    """Return a table with a row for each item."""
    rows = tuple(tuple(number(show(item), spec) if spec else show(item) for _, show, spec in columns) for item in items)
    return Table(name, caption, tuple(heading for heading, _, _ in columns), rows)


def figures(report: Report) -> Table:
    """Return the figures of both models: quality, then latency, size and FLOPs."""
    a, b, latency = report.before, report.after, report.latency
    rows: list[Row] = []
    change: Any
    for metric in map(named, a.accuracy):
        if metric.name in b.accuracy:
            old, new = a.accuracy[metric.name], b.accuracy[metric.name]
            change = (metric.change(old, new), new - old)
            rows.append((metric.label, (metric.text(old), old), (metric.text(new), new), change))
    for metric in of_kind("fidelity"):
        if metric.name in report.fidelity:
            old, new = metric.ideal, report.fidelity[metric.name]
            rows.append((metric.label, (metric.text(old), old), (metric.text(new), new), ""))
    if latency is not None and latency.b is not None:
        old, new, change = latency.a, latency.b, speedup(latency.speedup, latency.speedup_interval)
        rows.append(("latency", (f"{old:.3f} ms", old), (f"{new:.3f} ms", new), change))
    rows += [
        (name, (show(old), old), (show(new), new), (relative(old, new), new - old))
        for name, show, old, new in (
            ("file size", size, a.size, b.size),
            ("parameters", "{:,}".format, a.params, b.params),
            ("FLOPs", human, a.flops, b.flops),
            ("MACs", human, a.macs, b.macs),
        )
    ]
    return Table("figures", "Before and after", ("figure", "before", "after", "change"), tuple(rows))


def layers(found: Sequence[Layer], times: Sequence[LayerTime] = ()) -> Table:
    """Return channels, FLOPs, parameters and, where measured, latency of each layer."""
    of_layer = {row.name: row for row in times}
    none = LayerTime("", "", None, None)
    columns: tuple[Column, ...] = (
        ("#", lambda row: row[0], ","),
        ("layer", lambda row: row[1].name, ""),
        ("operator", lambda row: row[1].op, ""),
        ("channels", lambda row: row[1].channels_before, ","),
        ("after", lambda row: row[1].channels_after, ","),
        ("FLOPs", lambda row: (human(2 * row[1].macs_before), row[1].macs_before), ""),
        ("after", lambda row: (human(2 * row[1].macs_after), row[1].macs_after), ""),
        ("change", lambda row: _change(row[1].macs_before, row[1].macs_after), ""),
        ("parameters", lambda row: row[1].params_before, ","),
        ("after", lambda row: row[1].params_after, ","),
    )
    if times:
        measured = ((heading, lambda row, show=show: show(row[2]), spec) for heading, show, spec in TIMES)
        columns = (*columns, *measured)
    rows = ((place, layer, of_layer.get(layer.name, none)) for place, layer in enumerate(found, 1))
    return build("layers", "Layers with a weight, in graph order", rows, columns)


def _change(before: float, after: float | None) -> Cell:
    return "" if after is None else (relative(before, after), after / before if before else 1.0)


TIMES: tuple[Column, ...] = (
    ("latency, µs", lambda row: row.a, ".0f"),
    ("after", lambda row: row.b, ".0f"),
    ("speed-up", lambda row: (f"{row.a / row.b:.2f}x", row.a / row.b) if row.a and row.b else "", ""),
)


def layer_times(found: Sequence[LayerTime], *, two: bool) -> Table:
    """Return the latency of each layer in one or two models."""
    named: tuple[Column, ...] = (("layer", lambda row: row.name, ""), ("operator", lambda row: row.op, ""))
    return build("times", "Latency of each layer", found, (*named, *(TIMES if two else TIMES[:1])))


def latencies(found: Bench, names: Sequence[str]) -> Table:
    """Return the latency of one or two models."""
    latency, rows = found.latency, list[Row]()
    pairs = ((latency.a, latency.a_interval), (latency.b, latency.b_interval))
    for name, (median, interval) in zip(names, pairs, strict=False):
        if median is not None and interval is not None:
            ratio = speedup(latency.speedup, latency.speedup_interval) if rows else ""
            span = f"{interval[0]:.3f} to {interval[1]:.3f} ms" if latency.runs > 1 else ""
            rows.append((name, (f"{median:.3f} ms", median), (span, median), (ratio, latency.speedup or 1.0)))
    return Table("latency", "Latency", ("model", "median", "95 % interval", "speed-up"), tuple(rows))


def classes(found: Details) -> Table:
    """Return the accuracy, or the agreement, of each class."""
    columns: tuple[Column, ...] = (
        ("class", lambda one: one.name, ""),
        ("samples", lambda one: one.samples, ","),
        ("before, %", lambda one: one.before, ".2f"),
        ("after, %", lambda one: one.after, ".2f"),
        ("change, points", lambda one: one.after - one.before, "+.2f"),
        ("lost at least, at 95 %", lambda one: max(one.low, 0.0), ".2f"),
    )
    caption = "Accuracy per class" if found.labelled else "Agreement with the original, per class that it predicts"
    return build("classes", caption, found.classes, columns)


def changed(found: Details) -> Table:
    """Return samples whose prediction changed."""
    columns: tuple[Column, ...] = (
        ("sample", lambda one: one.sample, ","),
        ("label", lambda one: one.label or "", ""),
        ("before", lambda one: one.before, ""),
        ("after", lambda one: one.after, ""),
        ("sure before, %", lambda one: one.confidence_before, ".1f"),
        ("sure after, %", lambda one: one.confidence_after, ".1f"),
    )
    shown = f"{len(found.changed)} of {found.changes:,}" if found.changes > len(found.changed) else str(found.changes)
    caption = f"Samples whose prediction changed ({shown}), the largest changes first"
    return build("changed", caption, found.changed, columns)


def groups(found: Details) -> Table:
    """Return the channel groups of a run."""
    columns: tuple[Column, ...] = (
        ("#", lambda row: row[0], ","),
        ("group", lambda row: row[1].name, ""),
        ("writers", lambda row: Names(row[1].writers), ""),
        ("channels", lambda row: row[1].before, ","),
        ("after", lambda row: row[1].after, ","),
        ("change", lambda row: _change(row[1].before, row[1].after), ""),
        ("pinned", lambda row: row[1].pinned, ","),
        ("reasons", lambda row: Names(row[1].reasons), ""),
    )
    return build("groups", "Groups, in graph order", enumerate(found.groups, 1), columns)


def pins(pinned: Iterable[tuple[str, str, int]]) -> Table:
    """Return the pinned channels, from (reason, node, channels)."""
    rows = tuple((node, reason, number(channels)) for reason, node, channels in pinned)
    return Table("pins", "Pinned channels", ("node", "reason", "channels"), rows)


def costs(found: Inspection) -> Table:
    """Return the costs of each layer of a model."""
    columns: tuple[Column, ...] = (
        ("layer", lambda layer: layer.label, ""),
        ("operator", lambda layer: layer.op, ""),
        ("channels", lambda layer: layer.channels, ","),
        ("MACs", lambda layer: (human(layer.macs), layer.macs), ""),
        ("parameters", lambda layer: layer.params, ","),
    )
    return build("costs", "Layers", found.layers, columns)


def opaque(trace: Trace) -> Table:
    """Return the nodes with weights that no rule counts."""
    columns: tuple[Column, ...] = (
        ("node", lambda one: trace.labels[one.node], ""),
        ("operator", lambda one: one.operator, ""),
        ("MACs", lambda one: "unknown" if one.macs is None else (human(one.macs), one.macs), ""),
        ("parameters", lambda one: one.params, ","),
        ("counted", lambda one: one.note, ""),
    )
    return build("opaque", "Weights that no rule counts", trace.opaque, columns)


def traced(trace: Trace) -> Table:
    """Return the channel groups of a trace."""
    columns: tuple[Column, ...] = (
        ("group", lambda group: group.name, ""),
        ("channels", lambda group: group.channels.size, ","),
        ("prunable", lambda group: int((~trace.pinned[group.channels]).sum()), ","),
        ("writers", lambda group: Names(group.layers), ""),
    )
    return build("traced", "Groups", trace.groups, columns)


def edits(report: Report) -> Table:
    """Return the edited layers, with the estimated loss and the measured latency of each edit by itself."""
    columns = ("layer", "edit", "error of the layer", "divergence of the output", "ms before", "ms after")
    rows = []
    for entry in (entry for part in report.blocks for entry in part):
        why = entry.get("why", {})
        values = (why.get("error"), why.get("divergence"), *why.get("milliseconds", (None, None)))
        rows.append((entry["layer"], entry["what"], *(number(value, ".3g") for value in values)))
    return Table("blocks", "Layer edits; loss and latency of each edit by itself", columns, tuple(rows))


def repair(report: Report) -> Table:
    """Return the error of each layer before and after repair."""
    columns: tuple[Column, ...] = (
        ("#", lambda row: row[0], ","),
        ("layer", lambda row: row[1].label, ""),
        ("rows", lambda row: row[1].rows, ","),
        ("unknowns", lambda row: row[1].features, ","),
        ("error before", lambda row: row[1].before, ".4g"),
        ("error after", lambda row: row[1].after, ".4g"),
        ("error left", lambda row: row[1].after / row[1].before if row[1].before else None, ".0%"),
    )
    caption = "Repair, in the order of its steps; squared errors on held-out rows"
    return build("repair", caption, enumerate(report.repair, 1), columns)


def curves(found: Sequence[Curve]) -> Table:
    """Return the loss of each group at some shares of its prunable channels, the most sensitive group first."""
    columns = ("group", "prunable", *(f"-{share:.1%}" for share in SHOWN), "loss")
    highest = max((float(curve.losses[-1]) for curve in found), default=1.0)
    rows = []
    for curve in sorted(found, key=lambda one: -float(one.losses[-1])):
        prunable, reach = int(curve.order.size), int(curve.counts[-1])
        gone = [round(share * prunable) for share in SHOWN]
        losses = [float(curve.at(np.array(count))) if count <= reach else None for count in gone]
        heights = np.clip(8 + 2 * np.log10(np.maximum(curve.losses[1:], 1e-30) / highest), 0, 8)
        bars = "".join(LEVELS[int(height)] for height in heights)
        rows.append((curve.group, number(prunable), *(number(loss, ".3g") for loss in losses), bars))
    return Table("curves", "Loss of each group, by the share of its channels that is removed", columns, tuple(rows))


def looks(training: Mapping[str, Any]) -> Table:
    """Return each evaluation of a training on the held-out samples."""
    keys = ("step", "seconds", "loss", "divergence", "agreement", "top1")
    columns = ("step", "seconds", "loss", "divergence", "agreement, %", "top-1, %")
    rows = tuple(tuple(number(look[key], ".4g") for key in keys) for look in training["looks"])
    return Table("training", "Training, measured on held-out samples", columns, rows)


def pairs(name: str, caption: str, values: Mapping[str, Any]) -> Table:
    """Return names and values; a nested mapping gives one row per entry."""
    flat: list[Row] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += [(f"{key}.{inner}", option_value(entry)) for inner, entry in value.items()]
        else:
            flat.append((key, option_value(value)))
    return Table(name, caption, ("name", "value"), tuple(flat))


def checks(verdict: Verdict) -> Table:
    """Return all checks, failed ones first."""
    columns: tuple[Column, ...] = (
        ("status", lambda check: STATUSES[check.status], ""),
        ("check", lambda check: check.name, ""),
        ("value", lambda check: option_value(check.value), ""),
        ("limit", lambda check: "" if check.limit is None else option_value(check.limit), ""),
        ("detail", lambda check: check.detail, ""),
    )
    order = list(STATUSES)
    ranked = sorted(verdict.checks, key=lambda check: order.index(check.status))
    return build("checks", "Checks, those that failed first", ranked, columns)


def members(found: Sweep) -> Table:
    """Return the original and the models of a sweep; a model that does not exist has a note in place of the verdict."""
    columns: tuple[Column, ...] = (
        ("model", lambda one: one.name, ""),
        (METRICS["flops"].label, lambda one: -one.flops_removed if one.size and one.target else None, ".1%"),
        (METRICS["params"].label, lambda one: -one.params_removed if one.size and one.target else None, ".1%"),
        ("size", lambda one: (size(one.size), one.size) if one.size else "", ""),
        ("lost", lambda one: one.drop, ".2f"),
        (METRICS["kl"].label, lambda one: one.kl, METRICS["kl"].format),
        ("latency, ms", lambda one: one.latency_ms, ".3f"),
        ("speed-up", lambda one: (speedup(one.speedup, one.speedup_interval), one.speedup or 0.0), ""),
        ("verdict", lambda one: one.note or one.verdict, ""),
        ("front", lambda one: "*" if one.pareto else "", ""),
    )
    original = Member("the original", 0.0, size=found.size, latency_ms=found.latency_ms, note="not pruned")
    return build("members", "Models, from the largest on", (original, *found.members), columns)


def operators(support: Iterable[tuple[str, str]]) -> Table:
    """Return what happens to channels at each operator."""
    return Table("operators", "Operators", ("operator", "what becomes of channels there"), tuple(support))


def cache(entries: Iterable[Entry]) -> Table:
    """Return what is kept in the cache."""
    rows = tuple(
        (entry.kind, entry.path.name, entry.machine, _ago(entry.age), (f"{entry.size / 1e3:,.1f}", entry.size))
        for entry in entries
    )
    return Table("cache", "Cache", ("what", "file", "machine", "age", "kB"), rows)


def _ago(seconds: float) -> tuple[str, float]:
    """Return an age in its largest unit that fills.

    >>> _ago(7300)[0], _ago(3)[0]
    ('2 h', '3 s')
    """
    unit, each = next(((unit, each) for unit, each in AGES if seconds >= each), AGES[-1])
    return f"{seconds / each:.0f} {unit}", seconds

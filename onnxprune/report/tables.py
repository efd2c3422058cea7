"""The tables of a report, as values; the console, HTML and Markdown are rendered from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.analysis import Inspection, Layer
from onnxprune.evaluation.benchmark import Bench, LayerTime
from onnxprune.report.details import Details
from onnxprune.report.document import Report, Sweep
from onnxprune.report.text import human, relative, size, speedup, told
from onnxprune.types import Curve, Trace, Verdict

SHOWN = (0.125, 0.25, 0.5, 0.75, 0.875)
"""Shares of the prunable channels of a group at which its loss is told."""
LEVELS = " ▁▂▃▄▅▆▇█"
STATUSES = {"FAILED": "✗ FAILED", "UNDECIDED": "? UNDECIDED", "PASSED": "✓ PASSED"}
"""In the order of a table, each with a sign, which needs no color."""


@dataclass(frozen=True)
class Names:
    """Several names in one cell; the page folds them where there are many."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.names)


Cell = str | tuple[str, float] | Names
"""A text, a text and the number that its column is sorted by, or names."""
Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Rows under a caption; `name` is unique on the page."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def texts(self) -> list[list[str]]:
        """Return the rows as they are read."""
        return [[cell[0] if isinstance(cell, tuple) else str(cell) for cell in row] for row in self.rows]

    def numeric(self) -> list[bool]:
        """Tell of each column whether it holds numbers."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.columns)
        return [any(isinstance(cell, tuple) for cell in column) for column in columns]

    def only(self, columns: slice) -> Table:
        """Return some of the columns."""
        return replace(self, columns=self.columns[columns], rows=tuple(row[columns] for row in self.rows))


def number(value: float | None, spec: str = ",") -> Cell:
    """Return the cell of a number, by its format; an empty one where it is not known."""
    return "" if value is None else (format(value, spec), float(value))


def _pair(name: str, before: float, after: float, spec: str, change: Cell) -> Row:
    return (name, (spec.format(before), before), (spec.format(after), after), change)


def figures(report: Report) -> Table:
    """Return every figure of both models."""
    a, b, latency = report.before, report.after, report.latency
    rows: list[Row] = [
        (name, (show(old), old), (show(new), new), (relative(old, new), new - old))
        for name, show, old, new in (
            ("FLOPs", human, a.flops, b.flops),
            ("MACs", human, a.macs, b.macs),
            ("parameters", "{:,}".format, a.params, b.params),
            ("file size", size, a.size, b.size),
        )
    ]
    for name, old, new in (("top-1", a.top1, b.top1), ("top-5", a.top5, b.top5)):
        if old is not None and new is not None:
            rows.append(_pair(name, old, new, "{:.2f} %", (f"{new - old:+.2f} points", new - old)))
    if latency is not None and latency.b is not None:
        change = speedup(latency.speedup, latency.speedup_interval)
        rows.append(_pair("latency", latency.a, latency.b, "{:.3f} ms", change))
    for name, same, spec in (("agreement", 100.0, "{:.2f} %"), ("cosine", 1.0, "{:.4f}"), ("KL", 0.0, "{:.4f} nats")):
        if name.lower() in report.fidelity:
            rows.append(_pair(name, same, report.fidelity[name.lower()], spec, ""))
    return Table("figures", "Before and after", ("figure", "before", "after", "change"), tuple(rows))


def layers(found: Sequence[Layer], times: Sequence[LayerTime] = ()) -> Table:
    """Return channels, FLOPs, parameters and, where it was measured, latency of each layer."""
    columns = ("#", "layer", "operator", "channels", "after", "FLOPs", "after", "change", "parameters", "after")
    of_layer = {row.name: row for row in times}
    rows: list[Row] = []
    for place, layer in enumerate(found, 1):
        before, after = 2 * layer.macs_before, 2 * layer.macs_after
        row: Row = (
            number(place),
            layer.name,
            layer.op,
            number(layer.channels_before),
            number(layer.channels_after),
            (human(before), before),
            (human(after), after),
            (relative(before, after), after / before if before else 1.0),
            number(layer.params_before),
            number(layer.params_after),
        )
        rows.append((*row, *_times(of_layer.get(layer.name))) if times else row)
    return Table("layers", "Layers with a weight, in graph order", columns + (TIMES if times else ()), tuple(rows))


TIMES = ("latency, µs", "after", "speed-up")


def _times(found: LayerTime | None) -> Row:
    if found is None:
        return ("", "", "")
    ratio: Cell = (f"{found.a / found.b:.2f}x", found.a / found.b) if found.a and found.b else ""
    return (number(found.a, ".0f"), number(found.b, ".0f"), ratio)


def layer_times(found: Sequence[LayerTime], *, two: bool) -> Table:
    """Return the latency of each layer in one model or in two."""
    rows = tuple((row.name, row.op, *_times(row)) for row in found)
    table = Table("times", "Latency of each layer", ("layer", "operator", *TIMES), rows)
    return table if two else table.only(slice(0, 3))


def latencies(found: Bench, names: Sequence[str]) -> Table:
    """Return the latency of one model or of two."""
    latency = found.latency
    rows: list[Row] = []
    for name, median, interval in zip(
        names, (latency.a, latency.b), (latency.a_interval, latency.b_interval), strict=False
    ):
        if median is not None and interval is not None:
            ratio = speedup(latency.speedup, latency.speedup_interval) if rows else ""
            span = f"{interval[0]:.3f} to {interval[1]:.3f} ms"
            rows.append((name, (f"{median:.3f} ms", median), (span, median), (ratio, latency.speedup or 1.0)))
    return Table("latency", "Latency", ("model", "median", "95 % interval", "speed-up"), tuple(rows))


def classes(found: Details) -> Table:
    """Return how often each class is recognized."""
    columns = ("class", "samples", "before, %", "after, %", "change, points", "lost at least, at 95 %")
    rows = tuple(
        (
            one.name,
            number(one.samples),
            number(one.before, ".2f"),
            number(one.after, ".2f"),
            number(one.after - one.before, "+.2f"),
            number(max(one.low, 0.0), ".2f"),
        )
        for one in found.classes
    )
    caption = "Accuracy per class" if found.labelled else "Agreement with the original, per class that it predicts"
    return Table("classes", caption, columns, rows)


def changed(found: Details) -> Table:
    """Return the samples whose prediction changed."""
    columns = ("sample", "label", "before", "after", "sure before, %", "sure after, %")
    rows = tuple(
        (
            number(one.sample),
            one.label or "",
            one.before,
            one.after,
            number(one.confidence_before, ".1f"),
            number(one.confidence_after, ".1f"),
        )
        for one in found.changed
    )
    shown = f"{len(found.changed)} of {found.changes:,}" if found.changes > len(found.changed) else str(found.changes)
    return Table("changed", f"Samples whose prediction changed ({shown}), the largest changes first", columns, rows)


def groups(found: Details) -> Table:
    """Return the channel groups of a run."""
    columns = ("#", "group", "writers", "channels", "after", "change", "pinned", "reasons")
    rows = tuple(
        (
            number(place),
            one.name,
            Names(one.writers),
            number(one.before),
            number(one.after),
            "" if one.after is None else (relative(one.before, one.after), one.after / one.before),
            number(one.pinned),
            Names(one.reasons),
        )
        for place, one in enumerate(found.groups, 1)
    )
    return Table("groups", "Groups, in graph order", columns, rows)


def pins(pinned: Iterable[tuple[str, str, int]]) -> Table:
    """Return the pinned channels, from (reason, node, channels)."""
    rows = tuple((node, reason, number(channels)) for reason, node, channels in pinned)
    return Table("pins", "Pinned channels", ("node", "reason", "channels"), rows)


def costs(found: Inspection) -> Table:
    """Return what each layer of a model costs."""
    rows = tuple(
        (layer.label, layer.op, number(layer.channels), (human(layer.macs), layer.macs), number(layer.params))
        for layer in found.layers
    )
    return Table("costs", "Layers", ("layer", "operator", "channels", "MACs", "parameters"), rows)


def traced(trace: Trace) -> Table:
    """Return the channel groups of a trace."""
    rows = tuple(
        (
            group.name,
            number(group.channels.size),
            number(int((~trace.pinned[group.channels]).sum())),
            Names(group.layers),
        )
        for group in trace.groups
    )
    return Table("traced", "Groups", ("group", "channels", "prunable", "writers"), rows)


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
    """Return what repair did at each layer."""
    columns = ("#", "layer", "rows", "unknowns", "error before", "error after", "error left")
    rows = tuple(
        (
            number(place),
            layer.label,
            number(layer.rows),
            number(layer.features),
            number(layer.before, ".4g"),
            number(layer.after, ".4g"),
            number(layer.after / layer.before if layer.before else None, ".0%"),
        )
        for place, layer in enumerate(report.repair, 1)
    )
    return Table("repair", "Repair, in the order of its steps; squared errors on held-out rows", columns, rows)


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
            flat += [(f"{key}.{inner}", told(entry)) for inner, entry in value.items()]
        else:
            flat.append((key, told(value)))
    return Table(name, caption, ("name", "value"), tuple(flat))


def checks(verdict: Verdict) -> Table:
    """Return all checks, those that failed first."""
    order = list(STATUSES)
    rows = tuple(
        (
            STATUSES[check.status],
            check.name,
            told(check.value),
            "" if check.limit is None else told(check.limit),
            check.detail,
        )
        for check in sorted(verdict.checks, key=lambda one: order.index(one.status))
    )
    return Table("checks", "Checks, those that failed first", ("status", "check", "value", "limit", "detail"), rows)


def members(found: Sweep) -> Table:
    """Return the original and the models of a sweep."""
    columns = ("model", "FLOPs", "parameters", "size", "lost", "KL", "latency, ms", "speed-up", "verdict", "front")
    original = ("the original", "", "", (size(found.size), found.size), "", "")
    rows: list[Row] = [(*original, number(found.latency_ms, ".3f"), "", "", "")]
    for one in found.members:
        if one.note:
            rows.append((one.name, *[""] * 7, one.note, ""))
            continue
        rows.append(
            (
                one.name,
                (f"-{one.flops_removed:.1%}", one.flops_removed),
                (f"-{one.params_removed:.1%}", one.params_removed),
                (size(one.size), one.size),
                number(one.drop, ".2f"),
                number(one.kl, ".4f"),
                number(one.latency_ms, ".3f"),
                (speedup(one.speedup, one.speedup_interval), one.speedup or 0.0),
                "PASSED" if one.verdict else "FAILED",
                "*" if one.pareto else "",
            )
        )
    return Table("members", "Models, from the largest on", columns, tuple(rows))


def operators(support: Iterable[tuple[str, str]]) -> Table:
    """Return what becomes of channels at each operator."""
    return Table("operators", "Operators", ("operator", "what becomes of channels there"), tuple(support))

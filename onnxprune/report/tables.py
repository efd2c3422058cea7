"""The tables of a report, as values; HTML and Markdown are made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.analysis import Layer
from onnxprune.evaluation.benchmark import LayerTime
from onnxprune.report.console import SHOWN, figure_rows, human, relative
from onnxprune.report.details import Details
from onnxprune.report.document import Member, Report
from onnxprune.types import Verdict


@dataclass(frozen=True)
class Names:
    """Several names in one cell; the page folds them where there are many."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.names)


Cell = str | tuple[str, float] | Names
"""A text, a text and the number that its column is sorted by, or names."""


@dataclass(frozen=True)
class Table:
    """Rows under a caption; `name` is unique on the page."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def texts(self) -> list[list[str]]:
        """Return the rows as they are read."""
        return [[cell[0] if isinstance(cell, tuple) else str(cell) for cell in row] for row in self.rows]

    def numeric(self) -> list[bool]:
        """Tell of each column whether it holds numbers."""
        return [any(isinstance(cell, tuple) for cell in column) for column in zip(*self.rows, strict=True)]


def figures(report: Report) -> Table:
    """Before, after, change."""
    columns = ("figure", "before", "after", "change")
    return Table("figures", "Before and after", columns, tuple(figure_rows(report)))


def layers(report: Report) -> Table:
    """Channels, FLOPs, parameters and, where it was measured, latency of each layer."""
    columns: tuple[str, ...] = ("#", "layer", "operator", "channels", "after", "FLOPs", "after", "change")
    columns += ("parameters", "after")
    rows = [_layer(number, layer) for number, layer in enumerate(report.layers, 1)]
    if report.details is not None and report.details.layer_times:
        times = {row.name: row for row in report.details.layer_times}
        columns += ("latency, µs", "after", "speed-up")
        rows = [(*row, *_times(times.get(layer.name))) for row, layer in zip(rows, report.layers, strict=True)]
    return Table("layers", "Layers with a weight, in the order of the graph", columns, tuple(rows))


def _times(found: LayerTime | None) -> tuple[Cell, ...]:
    if found is None:
        return ("", "", "")
    ratio: Cell = (f"{found.a / found.b:.2f}x", found.a / found.b) if found.a and found.b else ""
    return (_microseconds(found.a), _microseconds(found.b), ratio)


def _microseconds(value: float | None) -> Cell:
    return "" if value is None else (f"{value:.0f}", value)


def classes(found: Details) -> Table:
    """How often each class is recognised."""
    columns = ("class", "samples", "before, %", "after, %", "change, points", "lost at least, at 95 %")
    rows = tuple(
        (
            one.name,
            _count(one.samples),
            (f"{one.before:.2f}", one.before),
            (f"{one.after:.2f}", one.after),
            (f"{one.after - one.before:+.2f}", one.after - one.before),
            (f"{max(one.low, 0.0):.2f}", max(one.low, 0.0)),
        )
        for one in found.classes
    )
    caption = "Accuracy per class" if found.labelled else "Agreement with the original, per class that it predicts"
    return Table("classes", caption, columns, rows)


def changed(found: Details) -> Table:
    """The samples whose prediction changed."""
    labelled = any(one.label is not None for one in found.changed)
    columns = ("sample", *(("label",) if labelled else ()), "before", "after", "sure before, %", "sure after, %")
    rows = tuple(
        (
            _count(one.sample),
            *((one.label or "",) if labelled else ()),
            one.before,
            one.after,
            (f"{one.confidence_before:.1f}", one.confidence_before),
            (f"{one.confidence_after:.1f}", one.confidence_after),
        )
        for one in found.changed
    )
    shown = f"{len(found.changed)} of {found.changes:,}" if found.changes > len(found.changed) else str(found.changes)
    return Table("changed", f"Samples whose prediction changed ({shown}), those that changed most first", columns, rows)


def groups(found: Details) -> Table:
    """Layers that belong together."""
    columns = ("#", "group", "layers that write it", "channels", "after", "change", "must stay", "because")
    rows = tuple(
        (
            _count(number),
            one.name,
            Names(one.writers),
            _count(one.before),
            "" if one.after is None else _count(one.after),
            "" if one.after is None else (relative(one.before, one.after), one.after / one.before),
            _count(one.pinned),
            Names(one.reasons),
        )
        for number, one in enumerate(found.groups, 1)
    )
    return Table("groups", "Groups, in the order of the graph", columns, rows)


def _layer(number: int, layer: Layer) -> tuple[Cell, ...]:
    before, after = 2 * layer.macs_before, 2 * layer.macs_after
    return (
        _count(number),
        layer.name,
        layer.op,
        _count(layer.channels_before),
        _count(layer.channels_after),
        (human(before), before),
        (human(after), after),
        (relative(before, after), after / before if before else 1.0),
        _count(layer.params_before),
        _count(layer.params_after),
    )


def pins(report: Report) -> Table:
    """What had to stay, and why."""
    rows = tuple((node, reason, _count(channels)) for reason, node, channels in report.pinned)
    return Table("pins", "Channels that must stay", ("node", "because", "channels"), rows)


def blocks(report: Report) -> Table:
    """Layers that were given another form, what that was thought to cost, and what it was measured to save by itself."""
    columns = ("layer", "form", "error of the layer", "divergence of the output", "ms before", "ms after")
    rows = []
    for entry in (entry for part in report.blocks for entry in part):
        why = entry.get("why", {})
        before, after = why.get("milliseconds", (None, None))
        values = (why.get("error"), why.get("divergence"), before, after)
        rows.append((entry["layer"], entry["what"], *(("", 0.0) if v is None else (f"{v:.3g}", v) for v in values)))
    return Table(
        "blocks", "Layers of another form; each cost and time is that of the layer by itself", columns, tuple(rows)
    )


def repair(report: Report) -> Table:
    """What repair did at each layer."""
    columns = ("#", "layer", "rows", "unknowns", "error before", "error after", "error left")
    rows = tuple(
        (
            _count(number),
            layer.label,
            _count(layer.rows),
            _count(layer.features),
            _figure(layer.before),
            _figure(layer.after),
            (f"{layer.after / layer.before:.0%}", layer.after / layer.before) if layer.before else ("", 0.0),
        )
        for number, layer in enumerate(report.repair, 1)
    )
    return Table("repair", "Repair, in the order of its steps; squared errors on rows held out", columns, rows)


def curves(report: Report) -> Table:
    """What each group loses with some shares of its channels gone, most sensitive first."""
    columns = ("group", "may go", *(f"-{share:.1%}" for share in SHOWN))
    rows = []
    for curve in sorted(report.curves, key=lambda one: -float(one.losses[-1])):
        free, reach = int(curve.order.size), int(curve.counts[-1])
        gone = [round(share * free) for share in SHOWN]
        losses = [float(curve.at(np.array(count))) if count <= reach else None for count in gone]
        rows.append((curve.group, _count(free), *map(_figure, losses)))
    return Table("curves", "Loss of each group, with a share of its channels gone", columns, tuple(rows))


def looks(training: Mapping[str, Any]) -> Table:
    """What training was like at each look at the samples held out."""
    keys = ("step", "seconds", "loss", "divergence", "agreement", "top1")
    columns = ("step", "seconds", "loss", "divergence", "agreement, %", "top-1, %")
    rows = tuple(tuple(_figure(look[key]) for key in keys) for look in training["looks"])
    return Table("training", "Training, as seen on the samples held out", columns, rows)


def pairs(name: str, caption: str, values: Mapping[str, Any]) -> Table:
    """Names and values; a mapping within is named by both keys."""
    flat: list[tuple[Cell, ...]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += [(f"{key}.{inner}", told(entry)) for inner, entry in value.items()]
        else:
            flat.append((key, told(value)))
    return Table(name, caption, ("name", "value"), tuple(flat))


STATUSES = {"PASSED": "✓ PASSED", "FAILED": "✗ FAILED", "UNDECIDED": "? UNDECIDED"}
"""Each with a sign, which needs no colour."""


def checks(verdict: Verdict) -> Table:
    """All checks, those that failed first."""
    order = {"FAILED": 0, "UNDECIDED": 1, "PASSED": 2}
    rows = tuple(
        (
            STATUSES[check.status],
            check.name,
            told(check.value),
            "" if check.limit is None else told(check.limit),
            check.detail,
        )
        for check in sorted(verdict.checks, key=lambda one: order[one.status])
    )
    return Table(
        "checks", "Checks, those that failed first", ("status", "check", "value", "limit", "how sure, and why"), rows
    )


def members(found: tuple[Member, ...]) -> Table:
    """The models of a sweep."""
    columns = ("model", "FLOPs", "parameters", "size", "lost", "KL", "latency, ms", "speed-up", "verdict", "front")
    return Table("members", "Models, from the largest on", columns, tuple(_member(one) for one in found))


def _member(one: Member) -> tuple[Cell, ...]:
    if one.note:
        return (one.name, *("" for _ in range(7)), one.note, "")
    speedup: Cell = ""
    if one.speedup is not None and one.speedup_interval is not None:
        low, high = one.speedup_interval
        speedup = (f"{one.speedup:.2f}x ({low:.2f} to {high:.2f})", one.speedup)
    return (
        one.name,
        (f"-{one.flops_removed:.1%}", one.flops_removed),
        (f"-{one.params_removed:.1%}", one.params_removed),
        (human(one.size, "B"), one.size),
        _figure(one.drop),
        _figure(one.kl),
        _figure(one.latency_ms),
        speedup,
        "PASSED" if one.verdict else "FAILED",
        "yes" if one.pareto else "",
    )


def told(value: Any) -> str:
    """Write the value of an option."""
    if value is None or value in ("", (), []) or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(told, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _count(value: int) -> Cell:
    return f"{value:,}", value


def _figure(value: float | None) -> Cell:
    return "" if value is None else (f"{value:.4g}", float(value))

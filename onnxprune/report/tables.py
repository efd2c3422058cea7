"""The tables of a report, as values; HTML and Markdown are made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.report.console import figure_rows, human, relative
from onnxprune.report.document import Layer, Member, Report

Cell = str | tuple[str, float]
"""A text, or a text and the number that its column is sorted by."""


@dataclass(frozen=True)
class Table:
    """Rows under a caption; `name` is unique on the page."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def texts(self) -> list[list[str]]:
        """Return the rows as they are read."""
        return [[cell if isinstance(cell, str) else cell[0] for cell in row] for row in self.rows]

    def numeric(self) -> list[bool]:
        """Tell of each column whether it holds numbers."""
        return [any(isinstance(cell, tuple) for cell in column) for column in zip(*self.rows, strict=True)]


def figures(report: Report) -> Table:
    """Before, after, change."""
    columns = ("figure", "before", "after", "change")
    return Table("figures", "Before and after", columns, tuple(figure_rows(report)))


def layers(report: Report) -> Table:
    """Channels, FLOPs and parameters of each layer."""
    columns = ("#", "layer", "operator", "channels", "after", "FLOPs", "after", "change", "parameters", "after")
    rows = tuple(_layer(number, layer) for number, layer in enumerate(report.layers, 1))
    return Table("layers", "Layers with a weight, in the order of the graph", columns, rows)


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

"""Plots of bars, two for each layer or class: before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.report.console import human, relative
from onnxprune.report.details import Details
from onnxprune.report.document import Report
from onnxprune.report.interactive import AFTER, BEFORE, Plot, blank, embedded, scale, short

MOST_NAMED = 40
"""Bars whose names stand at the axis, at most; numbers do where there are more."""
BEHIND, BESIDE = (0.8, 0.8, 0.0), (0.4, 0.4, 0.2)
"""Width of the first and of the second bar, and how far they are moved apart."""
HATCH = "right_diagonal_line"
"""Of bars of before: told apart without colours."""
Amount = float | None


@dataclass(frozen=True)
class _Bars:
    """What is drawn: a pair of amounts for each name, and what kind of thing it is; None where an amount is not known."""

    names: Sequence[str]
    kinds: Sequence[str]
    pairs: Sequence[tuple[Amount, Amount]]
    shape: tuple[float, float, float]
    axis: str
    kind: str
    unit: str
    changes: Sequence[str] | None = None


def layer_plots(report: Report) -> list[Plot]:
    """Return channels, FLOPs and, where it was measured, latency of each layer."""
    layers = report.layers
    if not layers:
        return []
    names, ops = [layer.name for layer in layers], [layer.op for layer in layers]
    axis, kind = "layer, in the order of the graph", "operator"
    channels: list[tuple[Amount, Amount]] = [(layer.channels_before, layer.channels_after) for layer in layers]
    flops: list[tuple[Amount, Amount]] = [(2 * layer.macs_before, 2 * layer.macs_after) for layer in layers]
    plots = [
        _drawn(
            _Bars(names, ops, channels, BEHIND, axis, kind, "channels"),
            Plot("channels", "Channels per layer", "Grey and hatched: before; blue, in front of it: what is left.", {}),
        ),
        _drawn(
            _Bars(names, ops, flops, BESIDE, axis, kind, "FLOPs"),
            Plot("flops", "FLOPs per layer", f"{SIDES}", {}),
        ),
    ]
    times = {} if report.details is None else {row.name: (row.a, row.b) for row in report.details.layer_times}
    if times:
        latency = [times.get(name, (None, None)) for name in names]
        text = f"{SIDES} From onnxruntime's profiler: mean of the middle half of the runs, the lower one of two turns. {_rest(times, names)}"
        plots.append(
            _drawn(_Bars(names, ops, latency, BESIDE, axis, kind, "µs"), Plot("latency", "Latency per layer", text, {}))
        )
    return plots


SIDES = "Side by side: before in grey and hatched on the left, after in blue on the right."


def _rest(times: dict[str, tuple[Amount, Amount]], names: Sequence[str]) -> str:
    """Say what share of the time the layers with a weight take."""
    known = set(names)
    sums = [
        [sum(pair[i] or 0.0 for name, pair in times.items() if name in some) for i in (0, 1)] for some in (known, times)
    ]
    (a, b), (all_a, all_b) = sums
    return f"These layers take {a:,.0f} of {all_a:,.0f} µs before and {b:,.0f} of {all_b:,.0f} µs after; activations, additions, pools and what onnxruntime puts in take the rest."


def class_plots(found: Details) -> list[Plot]:
    """Return how often each class is recognised."""
    if not found.classes:
        return []
    names = [one.name for one in found.classes]
    bars = _Bars(
        names,
        [str(one.samples) for one in found.classes],
        [(one.before, one.after) for one in found.classes],
        BESIDE,
        "class",
        "samples",
        "percent",
        [f"{one.after - one.before:+.1f} points" for one in found.classes],
    )
    title = "Accuracy per class" if found.labelled else "Agreement per predicted class"
    return [_drawn(bars, Plot("per-class", title, SIDES, {}))]


def _drawn(bars: _Bars, plot: Plot) -> Plot:
    from bokeh.models import ColumnDataSource, FixedTicker, HoverTool

    first, second, apart = bars.shape
    highest = max((amount or 0.0 for pair in bars.pairs for amount in pair), default=0.0)
    factor, prefix = scale(highest) if bars.unit == "FLOPs" else (1, "")
    numbers = list(range(1, len(bars.names) + 1))
    percent = bars.unit == "percent"

    def told(amount: Amount) -> str:
        if amount is None:
            return "not by itself"
        return f"{amount:.1f} %" if percent else human(amount, bars.unit if bars.unit == "µs" else "")

    changes = bars.changes or [relative(a, b) if a is not None and b is not None else "" for a, b in bars.pairs]
    columns = {
        "number": numbers,
        "left": [number - apart for number in numbers],
        "right": [number + apart for number in numbers],
        "name": list(bars.names),
        "kind": list(bars.kinds),
        "before": [(a or 0.0) / factor for a, _ in bars.pairs],
        "after": [(b or 0.0) / factor for _, b in bars.pairs],
        "was": [told(a) for a, _ in bars.pairs],
        "is": [told(b) for _, b in bars.pairs],
        "change": list(changes),
    }
    source = ColumnDataSource(columns)
    unit = f"{prefix}FLOPs per sample" if bars.unit == "FLOPs" else bars.unit
    figure = blank(bars.axis, unit)
    figure.x_range.start, figure.x_range.end = 0.3, len(numbers) + 0.7
    figure.y_range.start = 0
    for x, top, width, colour, hatch in (
        ("left", "before", first, BEFORE, HATCH),
        ("right", "after", second, AFTER, None),
    ):
        figure.vbar(
            x=x, top=top, width=width, color=colour, hatch_pattern=hatch, hatch_color="white", hatch_alpha=0.45,
            hatch_scale=6, legend_label=top, source=source,
        )  # fmt: skip
    whole = figure.vbar(x="number", top="before", width=1, alpha=0, source=source)  # both bars, and what lies between
    tips = [("layer" if bars.kind == "operator" else "class", "@name"), (bars.kind, "@kind")]
    tips += [("before", "@was"), ("after", "@is"), ("change", "@change")]
    figure.add_tools(HoverTool(renderers=[whole], tooltips=tips, mode="vline", point_policy="follow_mouse"))
    figure.xgrid.visible = False
    if len(numbers) <= MOST_NAMED:
        named = [name.removesuffix(f"/{kind}") for name, kind in zip(bars.names, bars.kinds, strict=True)]
        figure.xaxis.ticker = FixedTicker(ticks=numbers)
        figure.xaxis.major_label_overrides = dict(enumerate(short(named), 1))
        if max(map(len, named)) > 2:
            figure.xaxis.major_label_orientation = math.pi / 2
            figure.height += 100
    return embedded(figure, plot)

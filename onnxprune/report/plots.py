"""What the plots of a report show, as values; Bokeh draws them on a page, matplotlib into a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.report.details import Details
from onnxprune.report.document import Report, Sweep
from onnxprune.types import Curve

LONGEST = 20
"""Characters of a name at the axis or in a legend; names differ at their ends."""
MOST_NAMED = 8
"""Curves that the legend names, the most sensitive ones."""
LEAST = 1e-12
"""Of a loss on a logarithmic scale."""
Amount = float | None


@dataclass(frozen=True)
class Series:
    """Points of one name.

    Attributes:
        label: of the legend.
        x, y: of the points; NaN breaks the line.
        tips: what is told of each point, beside x and y.
        line: whether a line joins them.
        muted: whether they are drawn in grey, behind the others.
        cross: whether they are one reference point.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    tips: Mapping[str, Sequence[str]]
    line: bool = True
    muted: bool = False
    cross: bool = False


@dataclass(frozen=True)
class Plot:
    """Points over two axes.

    Attributes:
        name: unique on the page.
        title, text: what is seen.
        x, y: labels of the axes.
        series: what is drawn.
        logarithmic: whether y is.
        mark: where a vertical line stands; None: nowhere.
    """

    name: str
    title: str
    text: str
    x: str
    y: str
    series: tuple[Series, ...]
    logarithmic: bool = False
    mark: float | None = None


@dataclass(frozen=True)
class Bars:
    """Two bars for each name, before and after; None where an amount is not known.

    Attributes:
        name, title, text: as of a `Plot`.
        axis: label of the axis with the names.
        unit: of the amounts.
        names: of what is shown.
        kind, kinds: what else is told of each, and its heading.
        pairs: amounts before and after.
        beside: whether the bars stand side by side, or the second one in front of the first.
    """

    name: str
    title: str
    text: str
    axis: str
    unit: str
    names: Sequence[str]
    kind: str
    kinds: Sequence[str]
    pairs: Sequence[tuple[Amount, Amount]]
    beside: bool = True


def curve_plots(curves: Sequence[Curve]) -> list[Plot]:
    """Return the loss of each group against the share of its channels that is removed; the most sensitive groups by name."""
    ranked = sorted((curve for curve in curves if curve.counts.size > 1), key=lambda curve: -float(curve.losses[-1]))
    if not ranked:
        return []
    labels = short([curve.group for curve in ranked])
    series = [_curve(curve, label) for curve, label in zip(ranked, labels, strict=True)]
    named, others = series[:MOST_NAMED], series[MOST_NAMED:]
    if others:
        named.insert(0, _joined(others))
    text = "Each group by itself, its readers repaired; the most sensitive groups by name. A click on a name hides its curve."
    x = "channels removed, percent of the prunable ones"
    return [Plot("curves", "Loss of each group", text, x, "loss at the output", tuple(named), logarithmic=True)]


def _curve(curve: Curve, label: str) -> Series:
    counts, prunable = curve.counts[1:].tolist(), max(1, int(curve.order.size))
    tips = {"group": [curve.group] * len(counts), "removed": [f"{count} of {prunable}" for count in counts]}
    losses = [max(float(loss), LEAST) for loss in curve.losses[1:]]
    return Series(label, [100 * count / prunable for count in counts], losses, tips)


def _joined(series: Sequence[Series]) -> Series:
    """Return many lines as a single muted one, with breaks between them."""
    x = [value for one in series for value in (*one.x, math.nan)]
    y = [value for one in series for value in (*one.y, math.nan)]
    tips = {key: [value for one in series for value in (*one.tips[key], "")] for key in series[0].tips}
    return Series(f"{len(series)} more", x, y, tips, muted=True)


def training_plots(report: Report) -> list[Plot]:
    """Return divergence, agreement and accuracy over the steps of a training."""
    if report.training is None:
        return []
    looks, best = report.training["looks"], report.training["best_step"]
    text = f"On held-out samples; the weights are those of step {best}, at the dashed line."
    found = []
    for name, title, keys in (
        ("divergence", "Divergence while training", {"divergence": "divergence"}),
        ("percent", "Agreement while training", {"agreement": "agreement with the original", "top1": "top-1"}),
    ):
        series = []
        for key, label in keys.items():
            points = [(float(look["step"]), max(look[key], LEAST)) for look in looks if look[key] is not None]
            if points:
                steps, values = zip(*points, strict=True)
                series.append(Series(label, steps, values, {"of": [label] * len(points)}))
        if series:
            found.append(Plot(name, title, text, "step", name, tuple(series), name == "divergence", best))
    return found


def front_plots(found: Sweep) -> list[Plot]:
    """Return the loss of each model of a sweep against its latency, where that was measured, and against its FLOPs."""
    members = [member for member in found.members if not member.note]
    if not members:
        return []
    timed = all(member.latency_ms is not None for member in members)
    dropped = all(member.drop is not None for member in members)
    lost = [(member.drop if dropped else member.kl) or 0.0 for member in members]

    def front(name: str, quantity: str, axis: str, better: str, costs: list[float], original: float | None) -> Plot:
        own = timed == (quantity == "latency")  # whether the Pareto set is that of this cost: then a line joins it
        points = sorted(zip(costs, lost, members, strict=True), key=lambda point: point[0])
        series = []
        for pareto, label in ((True, "Pareto set"), (False, "others")):
            some = [(cost, loss, one.name) for cost, loss, one in points if one.pareto == pareto]
            if some:
                x, y, names = map(list, zip(*some, strict=True))
                series.append(Series(label, x, y, {"model": names}, line=pareto and own, muted=not pareto))
        if original is not None:
            series.append(Series("original", [original], [0.0], {"model": ["the original"]}, line=False, cross=True))
        text = f"Further left is {better}, further down is more accurate; the cross is the original."
        text += "" if own else " The Pareto set is that of latency."
        return Plot(
            name, f"Loss against {quantity}", text, axis, "points lost" if dropped else "KL, nats", tuple(series)
        )

    flops = [100 * (1 - member.flops_removed) for member in members]
    plots = [front("front-flops", "FLOPs", "FLOPs left, %", "smaller", flops, 100.0)]
    if timed:
        latency = [member.latency_ms or 0.0 for member in members]
        plots.insert(0, front("front", "latency", "latency, ms", "faster", latency, found.latency_ms))
    return plots


SIDES = "Side by side: before in grey and hatched on the left, after in blue on the right."


def layer_plots(report: Report) -> list[Bars]:
    """Return channels, FLOPs and, where it was measured, latency of each layer."""
    layers = report.layers
    if not layers:
        return []
    names, ops = [layer.name for layer in layers], [layer.op for layer in layers]

    def bars(
        name: str, title: str, text: str, unit: str, pairs: Sequence[tuple[Amount, Amount]], *, beside: bool = True
    ) -> Bars:
        axis = "layer, in graph order"
        return Bars(name, f"{title} per layer", text, axis, unit, names, "operator", ops, pairs, beside)

    front = "Grey and hatched: before; blue, in front of it: after."
    channels = [(layer.channels_before, layer.channels_after) for layer in layers]
    flops = [(2 * layer.macs_before, 2 * layer.macs_after) for layer in layers]
    plots = [
        bars("channels", "Channels", front, "channels", channels, beside=False),
        bars("flops", "FLOPs", SIDES, "FLOPs", flops),
    ]
    times = {} if report.details is None else {row.name: (row.a, row.b) for row in report.details.layer_times}
    if times:
        how = "From onnxruntime's profiler: mean of the middle half of the runs, the lower one of two turns."
        latency = [times.get(name, (None, None)) for name in names]
        plots.append(bars("latency", "Latency", f"{SIDES} {how} {_rest(times, latency)}", "µs", latency))
    return plots


def _rest(times: Mapping[str, tuple[Amount, Amount]], shown: Sequence[tuple[Amount, Amount]]) -> str:
    """Say what share of the time the layers with a weight take."""
    (a, b), (all_a, all_b) = (
        [sum(pair[i] or 0.0 for pair in some) for i in (0, 1)] for some in (shown, times.values())
    )
    rest = "activations, additions, pools and nodes that onnxruntime inserts take the rest"
    return f"These layers take {a:,.0f} of {all_a:,.0f} µs before and {b:,.0f} of {all_b:,.0f} µs after; {rest}."


def class_plots(found: Details) -> list[Bars]:
    """Return how often each class is recognized."""
    if not found.classes:
        return []
    title = "Accuracy per class" if found.labelled else "Agreement per predicted class"
    names, samples = [one.name for one in found.classes], [str(one.samples) for one in found.classes]
    pairs = [(one.before, one.after) for one in found.classes]
    return [Bars("per-class", title, SIDES, "class", "percent", names, "samples", samples, pairs)]


def short(names: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Return the ends of names without the parts of the path that they share; no two are alike, since a legend would merge them.

    Two dollar signs would make Bokeh look for a typesetter in the network.
    """
    paths = [name.replace("$$", "$ $").strip("/").split("/") for name in names]
    for end in (0, -1):
        while len({path[end] for path in paths}) == 1 and all(len(path) > 1 for path in paths):
            for path in paths:
                del path[end]
    found: dict[str, Any] = {}
    for place, name in enumerate(map("/".join, paths), 1):
        cut = name if len(name) <= longest else "…" + name[-longest + 1 :]
        found[f"{cut} ({place})" if cut in found else cut] = None
    return list(found)

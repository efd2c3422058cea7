"""The plots of a report as values; Bokeh draws them on a page, matplotlib into a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from onnxprune.report.details import Details
from onnxprune.report.document import Report, Sweep
from onnxprune.types import Curve

LONGEST = 20
"""Characters of a name at an axis or in a legend."""
MOST_NAMED = 8
"""Number of curves in the legend: the most sensitive ones."""
LEAST = 1e-12
"""Smallest loss on a logarithmic scale."""
Amount = float | None


@dataclass(frozen=True)
class Series:
    """Points with a label in the legend.

    Attributes:
        x, y: coordinates; NaN breaks the line.
        tips: further values of each point in the tooltip, by name.
        line: whether a line joins the points.
        muted: whether the points are gray and behind the others.
        cross: whether the series is one reference point.
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
    """Series over two axes.

    Attributes:
        name: unique on the page.
        title, text: caption.
        x, y: labels of the axes.
        logarithmic: whether the y axis is logarithmic.
        mark: position of a vertical line; None: no line.
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
    """Two bars, before and after, for each name.

    Attributes:
        name, title, text: as in `Plot`.
        axis: label of the axis of names.
        unit: of the amounts.
        kind, kinds: heading and value, per name, of a further line of the tooltip.
        pairs: amounts before and after; None where an amount is not known.
        beside: whether the bars are side by side, or the second one is in front of the first.
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
    """Return a plot of the loss of each group against the share of channels that is removed."""
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
    """Join many lines into a muted one with breaks."""
    x = [value for one in series for value in (*one.x, math.nan)]
    y = [value for one in series for value in (*one.y, math.nan)]
    tips = {key: [value for one in series for value in (*one.tips[key], "")] for key in series[0].tips}
    return Series(f"{len(series)} more", x, y, tips, muted=True)


def training_plots(report: Report) -> list[Plot]:
    """Return plots of divergence, agreement and accuracy over the steps of a training."""
    if report.training is None:
        return []
    looks, best = report.training["looks"], report.training["best_step"]
    text = f"On held-out samples; the weights are those of step {best}, at the dashed line."
    found = []
    percent = {"agreement": "agreement with the original", "top1": "top-1"}
    for name, title, keys in (
        ("divergence", "Divergence", {"divergence": "divergence"}),
        ("percent", "Agreement", percent),
    ):
        series = []
        for key, label in keys.items():
            points = [(float(look["step"]), max(look[key], LEAST)) for look in looks if look[key] is not None]
            if points:
                steps, values = zip(*points, strict=True)
                series.append(Series(label, steps, values, {"of": [label] * len(points)}))
        if series:
            found.append(
                Plot(name, f"{title} while training", text, "step", name, tuple(series), name == "divergence", best)
            )
    return found


def front_plots(found: Sweep) -> list[Plot]:
    """Return plots of the loss of the models of a sweep against latency, where measured, and against FLOPs."""
    members = [member for member in found.members if not member.note]
    if not members:
        return []
    timed = all(member.latency_ms is not None for member in members)
    dropped = all(member.drop is not None for member in members)
    lost = [(member.drop if dropped else member.kl) or 0.0 for member in members]

    def front(name: str, quantity: str, axis: str, better: str, costs: list[float], original: float | None) -> Plot:
        own = timed == (quantity == "latency")  # whether the Pareto set is that of this cost
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
        lost_in = "points lost" if dropped else "KL, nats"
        return Plot(name, f"Loss against {quantity}", text, axis, lost_in, tuple(series))

    flops = [100 * (1 - member.flops_removed) for member in members]
    plots = [front("front-flops", "FLOPs", "FLOPs left, %", "smaller", flops, 100.0)]
    if timed:
        latency = [member.latency_ms or 0.0 for member in members]
        plots.insert(0, front("front", "latency", "latency, ms", "faster", latency, found.latency_ms))
    return plots


SIDES = "Side by side: before in gray and hatched on the left, after in blue on the right."


def layer_plots(report: Report) -> list[Bars]:
    """Return plots of channels, FLOPs and, where measured, latency of each layer."""
    layers = report.layers
    if not layers:
        return []
    names = [layer.name for layer in layers]
    bars = partial(
        Bars, axis="layer, in graph order", names=names, kind="operator", kinds=[layer.op for layer in layers]
    )
    front = "Gray and hatched: before; blue, in front of it: after."
    channels = [(layer.channels_before, layer.channels_after) for layer in layers]
    flops = [(2 * layer.macs_before, 2 * layer.macs_after) for layer in layers]
    plots = [
        bars("channels", "Channels per layer", front, unit="channels", pairs=channels, beside=False),
        bars("flops", "FLOPs per layer", SIDES, unit="FLOPs", pairs=flops),
    ]
    times = {} if report.details is None else {row.name: (row.a, row.b) for row in report.details.layer_times}
    if times:
        how = "From onnxruntime's profiler: mean of the middle half of the runs, the lower one of two turns."
        latency = [times.get(name, (None, None)) for name in names]
        text = f"{SIDES} {how} {_rest(times, latency)}"
        plots.append(bars("latency", "Latency per layer", text, unit="µs", pairs=latency))
    return plots


def _rest(times: Mapping[str, tuple[Amount, Amount]], shown: Sequence[tuple[Amount, Amount]]) -> str:
    """Return a sentence on the share of time that the layers with a weight take."""
    (a, b), (all_a, all_b) = (
        [sum(pair[i] or 0.0 for pair in some) for i in (0, 1)] for some in (shown, times.values())
    )
    rest = "activations, additions, pools and nodes that onnxruntime inserts take the rest"
    return f"These layers take {a:,.0f} of {all_a:,.0f} µs before and {b:,.0f} of {all_b:,.0f} µs after; {rest}."


def class_plots(found: Details) -> list[Bars]:
    """Return a plot of the accuracy, or the agreement, of each class."""
    if not found.classes:
        return []
    title = "Accuracy per class" if found.labelled else "Agreement per predicted class"
    names, samples = [one.name for one in found.classes], [str(one.samples) for one in found.classes]
    pairs = [(one.before, one.after) for one in found.classes]
    return [Bars("per-class", title, SIDES, "class", "percent", names, "samples", samples, pairs)]


def short(names: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Return the ends of names without the parts of the path that they share, made unique for a legend.

    Two dollar signs are set apart: they would make Bokeh load a typesetter.
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

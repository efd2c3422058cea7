"""Plots of a report that answer to the pointer: values of Bokeh, which the page embeds with Bokeh's own script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import OptionError
from onnxprune.report.document import Report, Sweep
from onnxprune.types import Curve

HEIGHT = 340
LONGEST = 20
"""Characters of a name at the axis or in a legend; what is unlike lies at its end."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#bf6f9b", "#b87a00", "#3a94c9", "#9a6fd0", "#8c8c00")
"""Of curves: near Okabe and Ito's, told apart by the colour-blind, and with a contrast of 3 at least on light and dark pages."""
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "plus", "x", "star")
BEFORE, AFTER, OTHERS = "#7d8894", "#2f7fc4", "#7d8894"
LEAST = 1e-12
"""Of a loss on a logarithmic scale."""


@dataclass(frozen=True)
class Plot:
    """A figure: `item` is what Bokeh's script embeds in the element `name`; `text` says what is seen."""

    name: str
    title: str
    text: str
    item: dict[str, Any]


def script() -> str:
    """Return Bokeh's script, without widgets and tables.

    Raises:
        OptionError: Bokeh is missing.
    """
    try:
        from bokeh.resources import Resources
    except ImportError as error:
        raise OptionError("a report in HTML needs Bokeh", hint="pip install 'onnxprune[report]'") from error
    return str(Resources(mode="inline", components=["bokeh"], log_level="warn").js_raw[0])


def curve_plots(curves: Sequence[Curve]) -> list[Plot]:
    """Return what each group loses against the share of its channels that is gone; the most sensitive ones are named."""
    from bokeh.models import HoverTool

    ranked = sorted((curve for curve in curves if curve.counts.size > 1), key=lambda curve: -float(curve.losses[-1]))
    if not ranked:
        return []
    figure = blank("channels removed, percent of those that may go", "loss at the output", logarithmic=True)
    points = []
    named, others = ranked[: len(COLOURS)], ranked[len(COLOURS) :]
    if others:
        lines = [_curve(curve) for curve in others]
        figure.multi_line(
            xs=[line["share"] for line in lines], ys=[line["loss"] for line in lines], color=OTHERS, line_alpha=0.5
        )
        joined = {key: [value for line in lines for value in line[key]] for key in lines[0]}
        label = f"{len(others)} more"
        points.append(
            figure.scatter("share", "loss", source=joined, size=5, color=OTHERS, alpha=0.5, legend_label=label)
        )
    labels = short([curve.group for curve in ranked])
    for curve, label, colour, marker in zip(named, labels, COLOURS, MARKERS, strict=False):
        look = {"source": _curve(curve), "color": colour, "legend_label": label}
        figure.line("share", "loss", line_width=2, **look)
        points.append(figure.scatter("share", "loss", size=7, marker=marker, **look))
    told = [("group", "@group"), ("removed", "@removed of @channels (@share{0.0} %)"), ("loss", "@loss{0.000e+0}")]
    figure.add_tools(HoverTool(renderers=points, tooltips=told))
    figure.height += 80
    figure.add_layout(figure.legend[0], "below")
    figure.legend.ncols = 2
    figure.legend.location = "left"
    figure.legend.label_text_font_size = "11px"  # two columns fit a telephone
    figure.legend.glyph_width = 14
    figure.legend.click_policy = "hide"
    text = "Each by itself, its readers repaired; the most sensitive ones by name. A click on a name hides its curve."
    return [embedded(figure, Plot("curves", "Loss of each group", text, {}))]


def _curve(curve: Curve) -> dict[str, list[Any]]:
    counts = curve.counts[1:].tolist()
    free = max(1, int(curve.order.size))
    return {
        "group": [curve.group] * len(counts),
        "removed": counts,
        "channels": [free] * len(counts),
        "share": [100 * count / free for count in counts],
        "loss": [max(float(loss), LEAST) for loss in curve.losses[1:]],
    }


def training_plots(report: Report) -> list[Plot]:
    """Return how far the model was from the original as it was trained, and how often it agreed with it or was right."""
    if report.training is None:
        return []
    looks, best = report.training["looks"], report.training["best_step"]
    found = []
    for name, title, keys in (
        ("divergence", "Divergence while training", {"divergence": "divergence"}),
        ("percent", "Agreement while training", {"agreement": "agreement with the original", "top1": "top-1"}),
    ):
        lines = {key: label for key, label in keys.items() if any(look[key] is not None for look in looks)}
        if not lines:
            continue
        figure = blank("step", "percent" if name == "percent" else "divergence", logarithmic=name == "divergence")
        for (key, label), colour, marker in zip(lines.items(), COLOURS, MARKERS, strict=False):
            rows = [(look["step"], look[key]) for look in looks if look[key] is not None]
            source = {"step": [step for step, _ in rows], "value": [max(value, LEAST) for _, value in rows]}
            look = {"source": source, "color": colour, "legend_label": label}
            figure.line("step", "value", line_width=2, **look)
            _point_out(figure, figure.scatter("step", "value", size=6, marker=marker, **look), label)
        figure.vspan(x=[best], color=OTHERS, line_dash="dashed")
        text = f"On the samples held out; the weights are those of step {best}, at the dashed line."
        found.append(embedded(figure, Plot(name, title, text, {})))
    return found


def front_plots(found: Sweep) -> list[Plot]:
    """Return what each model of a sweep loses, against its FLOPs and, where that was measured, its latency."""
    members = [member for member in found.members if not member.note]
    if not members:
        return []
    timed = all(member.latency_ms is not None for member in members)
    dropped = all(member.drop is not None for member in members)
    loss = "points lost" if dropped else "KL, nats"

    def rows(costs: Sequence[float]) -> list[tuple[str, float, float, bool]]:
        lost = [(member.drop if dropped else member.kl) or 0.0 for member in members]
        return [(one.name, x, y, one.pareto) for one, x, y in zip(members, costs, lost, strict=True)]

    flops = rows([100 * (1 - member.flops_removed) for member in members])
    text = "Further left is smaller, further down is better; the cross is the original."
    text += " The Pareto set is that of latency." if timed else ""
    plots = [
        _front(
            Plot("front-flops", "What is lost against FLOPs", text, {}), flops, "FLOPs left, %", loss, 100.0, not timed
        )
    ]
    if timed:
        latency = rows([member.latency_ms or 0.0 for member in members])
        text = "Further left is faster, further down is better; the cross is the original."
        named = Plot("front", "What is lost against latency", text, {})
        plots.insert(0, _front(named, latency, "latency, ms", loss, found.latency_ms, True))
    return plots


def _front(
    plot: Plot,
    rows: Sequence[tuple[str, float, float, bool]],
    cost: str,
    loss: str,
    original: float | None,
    joined: bool,
) -> Plot:
    """Draw (name, cost, loss, on the front); `joined`: whether the front is one of these costs, so that a line makes sense."""
    from bokeh.models import HoverTool

    figure = blank(cost, loss)
    keys = ("model", "x", "lost")
    shown = []
    for on_front, label, colour, marker in ((True, "Pareto set", AFTER, "circle"), (False, "others", OTHERS, "square")):
        some = sorted((row[:3] for row in rows if row[3] is on_front), key=lambda row: row[1])
        if some:
            look = {"source": dict(zip(keys, map(list, zip(*some, strict=True)), strict=True)), "color": colour}
            if on_front and joined:
                figure.line("x", "lost", line_width=2, legend_label=label, **look)
            shown.append(figure.scatter("x", "lost", size=9, marker=marker, legend_label=label, **look))
    if original is not None:
        source = {"model": ["the original"], "x": [original], "lost": [0.0]}
        shown.append(
            figure.scatter(
                "x",
                "lost",
                size=11,
                marker="cross",
                line_width=2,
                color=COLOURS[1],
                source=source,
                legend_label="original",
            )
        )
    told = [("model", "@model"), (cost, "@x{0.000}"), (loss, "@lost{0.0000}")]
    figure.add_tools(HoverTool(renderers=shown, tooltips=told))
    return embedded(figure, plot)


def scale(highest: float) -> tuple[float, str]:
    """Return what numbers are divided by so that the highest one is short, and the prefix of the unit."""
    return next(
        ((factor, prefix) for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if highest >= factor), (1, "")
    )


def short(names: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Return the ends of names without the parts of the path that they share; no two are alike, as a legend would make one of them.

    Two dollar signs would make Bokeh look for a typesetter in the network.
    """
    paths = [name.replace("$$", "$ $").strip("/").split("/") for name in names]
    for end in (0, -1):
        while len({path[end] for path in paths}) == 1 and all(len(path) > 1 for path in paths):
            for path in paths:
                del path[end]
    found: dict[str, None] = {}
    for number, name in enumerate(map("/".join, paths), 1):
        cut = name if len(name) <= longest else "…" + name[-longest + 1 :]
        found[f"{cut} ({number})" if cut in found else cut] = None
    return list(found)


def _point_out(figure: Any, points: Any, label: str) -> None:
    from bokeh.models import HoverTool

    figure.add_tools(HoverTool(renderers=[points], tooltips=[("step", "@step"), (label, "@value{0.0000}")]))


def blank(x: str, y: str, *, logarithmic: bool = False) -> Any:
    """Return a figure without anything in it, by the labels of its axes."""
    from bokeh.models import NoOverlap
    from bokeh.plotting import figure

    made: Any = figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        tools="xpan,xbox_zoom,xwheel_zoom,reset,save",
        active_drag=None,
        x_axis_label=x,
        y_axis_label=y,
        y_axis_type="log" if logarithmic else "linear",
        background_fill_color=None,
        outline_line_color=None,
    )
    made.toolbar.logo = None
    made.toolbar.stylesheets = [".bk-divider { opacity: 0.3; }"]
    made.xaxis.major_label_policy = NoOverlap(min_distance=3)
    made.axis.axis_label_text_font_style = "normal"
    made.axis.minor_tick_line_color = None
    return made


def embedded(figure: Any, plot: Plot) -> Plot:
    """Return a plot with what the page embeds."""
    from bokeh.core.types import ID
    from bokeh.embed import json_item

    if (
        len(figure.legend) and figure.legend[0] in figure.center
    ):  # beside the bars there would be no room on a telephone
        figure.add_layout(figure.legend[0], "above")
        figure.legend.orientation = "horizontal"
    figure.legend.border_line_color = None
    return Plot(plot.name, plot.title, plot.text, dict(json_item(figure, ID(plot.name))))

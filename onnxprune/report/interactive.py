"""Plots of a report that answer to the pointer: values of Bokeh, which the page embeds with Bokeh's own script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import OptionError
from onnxprune.report.console import human
from onnxprune.report.document import Layer, Report, Sweep
from onnxprune.types import Curve

HEIGHT = 340
NAMED_LAYERS = 40
"""Layers whose names stand at the axis, at most; numbers do where there are more."""
LONGEST = 20
"""Characters of a name at the axis or in a legend; what is unlike lies at its end."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#9a6fd0", "#8c8c00")
"""Of curves: Okabe and Ito's, told apart by the colour-blind; two that vanish on black or white have others in their place."""
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "plus", "x", "star")
BEFORE, AFTER, OTHERS = "#9aa7b5", "#2f7fc4", "#8a939c"
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


def layer_plots(layers: Sequence[Layer]) -> list[Plot]:
    """Return channels per layer, and FLOPs per layer."""
    if not layers:
        return []
    return [
        _bars(
            layers,
            Plot("channels", "Channels per layer", "Grey: before; blue, in front of it: what is left.", {}),
            [(layer.channels_before, layer.channels_after) for layer in layers],
            "channels",
            (0.8, 0.8, 0.0),
        ),
        _bars(
            layers,
            Plot("flops", "FLOPs per layer", "Side by side: before in grey on the left, after in blue on the right.", {}),
            [(2 * layer.macs_before, 2 * layer.macs_after) for layer in layers],
            "FLOPs",
            (0.4, 0.4, 0.2),
        ),
    ]  # fmt: skip


def _bars(
    layers: Sequence[Layer], plot: Plot, pairs: Sequence[tuple[float, float]], unit: str, shape: tuple[float, ...]
) -> Plot:
    """Draw two bars per layer; `shape`: width of the first and of the second, and how far they are moved apart."""
    from bokeh.models import FixedTicker, HoverTool

    first, second, apart = shape
    factor, prefix = scale(max(before for before, _ in pairs)) if unit == "FLOPs" else (1, "")
    numbers = list(range(1, len(layers) + 1))
    source = {
        "number": numbers,
        "left": [number - apart for number in numbers],
        "right": [number + apart for number in numbers],
        "layer": [layer.name for layer in layers],
        "operator": [layer.op for layer in layers],
        "before": [before / factor for before, _ in pairs],
        "after": [after / factor for _, after in pairs],
        "was": [human(before) for before, _ in pairs],
        "is": [human(after) for _, after in pairs],
        "change": [f"{100 * (after / before - 1):+.1f} %" if before else "" for before, after in pairs],
    }
    figure = _figure("layer, in the order of the graph", unit if factor == 1 else f"{prefix}{unit} per sample")
    figure.x_range.start, figure.x_range.end = 0.3, len(layers) + 0.7
    figure.y_range.start = 0
    bars = [
        figure.vbar(x=x, top=top, width=width, color=colour, legend_label=top, source=dict(source))
        for x, top, width, colour in (("left", "before", first, BEFORE), ("right", "after", second, AFTER))
    ]
    told = [(name, f"@{name}") for name in ("layer", "operator")]
    told += [("before", "@was"), ("after", "@is"), ("change", "@change")]
    figure.add_tools(HoverTool(renderers=bars[:1], tooltips=told, mode="vline", point_policy="follow_mouse"))
    figure.xgrid.visible = False
    if len(layers) <= NAMED_LAYERS:
        figure.xaxis.ticker = FixedTicker(ticks=numbers)
        figure.xaxis.major_label_overrides = dict(
            enumerate(short([layer.name.removesuffix(f"/{layer.op}") for layer in layers]), 1)
        )
        figure.xaxis.major_label_orientation = math.pi / 2
        figure.height += 100
    return _embedded(figure, plot)


def curve_plots(curves: Sequence[Curve]) -> list[Plot]:
    """Return what each group loses against the share of its channels that is gone; the most sensitive ones are named."""
    from bokeh.models import HoverTool

    ranked = sorted((curve for curve in curves if curve.counts.size > 1), key=lambda curve: -float(curve.losses[-1]))
    if not ranked:
        return []
    figure = _figure("channels removed, percent of those that may go", "loss at the output", logarithmic=True)
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
    return [_embedded(figure, Plot("curves", "Loss of each group", text, {}))]


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
        figure = _figure("step", "percent" if name == "percent" else "divergence", logarithmic=name == "divergence")
        for (key, label), colour, marker in zip(lines.items(), COLOURS, MARKERS, strict=False):
            rows = [(look["step"], look[key]) for look in looks if look[key] is not None]
            source = {"step": [step for step, _ in rows], "value": [max(value, LEAST) for _, value in rows]}
            look = {"source": source, "color": colour, "legend_label": label}
            figure.line("step", "value", line_width=2, **look)
            _point_out(figure, figure.scatter("step", "value", size=6, marker=marker, **look), label)
        figure.vspan(x=[best], color=OTHERS, line_dash="dashed")
        text = f"On the samples held out; the weights are those of step {best}, at the dashed line."
        found.append(_embedded(figure, Plot(name, title, text, {})))
    return found


def front_plots(found: Sweep) -> list[Plot]:
    """Return what each model of a sweep loses, against its latency or, where that was not measured, its FLOPs."""
    from bokeh.models import HoverTool

    members = [member for member in found.members if not member.note]
    if not members:
        return []
    timed = all(member.latency_ms is not None for member in members)
    dropped = all(member.drop is not None for member in members)
    rows = [
        (
            member.name,
            (member.latency_ms if timed else 100 * (1 - member.flops_removed)) or 0.0,
            (member.drop if dropped else member.kl) or 0.0,
            member.pareto,
        )
        for member in members
    ]
    figure = _figure("latency, ms" if timed else "FLOPs left, percent", "points lost" if dropped else "KL, nats")
    keys = ("model", "x", "lost")
    front = sorted((row[:3] for row in rows if row[3]), key=lambda row: row[1])
    behind = [row[:3] for row in rows if not row[3]]
    shown = []
    for some, label, colour, marker in ((front, "Pareto set", AFTER, "circle"), (behind, "others", OTHERS, "x")):
        if some:
            look = {"source": dict(zip(keys, map(list, zip(*some, strict=True)), strict=True)), "color": colour}
            if marker == "circle":
                figure.line("x", "lost", line_width=2, legend_label=label, **look)
            shown.append(figure.scatter("x", "lost", size=9, marker=marker, legend_label=label, **look))
    told = [("model", "@model"), ("latency, ms" if timed else "FLOPs left, %", "@x{0.000}"), ("lost", "@lost{0.0000}")]
    figure.add_tools(HoverTool(renderers=shown, tooltips=told))
    text = "Further left is faster, further down is better."
    return [_embedded(figure, Plot("front", "What is lost against what it takes", text, {}))]


def scale(highest: float) -> tuple[float, str]:
    """Return what numbers are divided by so that the highest one is short, and the prefix of the unit."""
    return next(
        ((factor, prefix) for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if highest >= factor), (1, "")
    )


def short(names: Sequence[str]) -> list[str]:
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
        cut = name if len(name) <= LONGEST else "…" + name[-LONGEST + 1 :]
        found[f"{cut} ({number})" if cut in found else cut] = None
    return list(found)


def _point_out(figure: Any, points: Any, label: str) -> None:
    from bokeh.models import HoverTool

    figure.add_tools(HoverTool(renderers=[points], tooltips=[("step", "@step"), (label, "@value{0.0000}")]))


def _figure(x: str, y: str, *, logarithmic: bool = False) -> Any:
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


def _embedded(figure: Any, plot: Plot) -> Plot:
    from bokeh.core.types import ID
    from bokeh.embed import json_item

    if (
        len(figure.legend) and figure.legend[0] in figure.center
    ):  # beside the bars there would be no room on a telephone
        figure.add_layout(figure.legend[0], "above")
        figure.legend.orientation = "horizontal"
    figure.legend.border_line_color = None
    return Plot(plot.name, plot.title, plot.text, dict(json_item(figure, ID(plot.name))))

"""Interactive plots, which the page embeds as JSON and Bokeh's script draws."""

from __future__ import annotations

import math
from typing import Any

from onnxprune.errors import OptionError
from onnxprune.report.plots import Amount, Bars, Plot, Series, short
from onnxprune.report.text import PREFIXES, human, relative

HEIGHT = 340
COLORS = ("#0072b2", "#d55e00", "#009e73", "#bf6f9b", "#b87a00", "#3a94c9", "#9a6fd0", "#8c8c00")
"""Colors of series: close to Okabe and Ito's for the color-blind, with a contrast of at least 3 on light and dark pages."""
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "plus", "x", "star")
BEFORE, AFTER, MUTED = "#7d8894", "#2f7fc4", "#7d8894"
MOST_NAMED = 40
"""Largest number of bars with names at the axis; more bars have numbers."""
MANY = 4
"""Largest number of names in a legend above the plot; longer legends are below it, in two columns."""
BEHIND, BESIDE = (0.8, 0.8, 0.0), (0.4, 0.4, 0.2)
"""Width of the first and of the second bar, and the shift of each from the center."""


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


def embedded(plot: Plot | Bars) -> dict[str, Any]:
    """Return a plot as JSON; Bokeh's script draws it into the element whose id is the name of the plot."""
    from bokeh.core.types import ID
    from bokeh.embed import json_item

    figure = _bars(plot) if isinstance(plot, Bars) else _points(plot)
    if len(figure.legend):  # beside the plot there is no room on a phone
        legend = figure.legend[0]
        if len(legend.items) > MANY:
            figure.height += 80
            figure.add_layout(legend, "below")
            legend.update(ncols=2, location="left", label_text_font_size="11px", glyph_width=14, click_policy="hide")
        else:
            figure.add_layout(legend, "above")
            legend.orientation = "horizontal"
        legend.border_line_color = None
    return dict(json_item(figure, ID(plot.name)))


def _points(plot: Plot) -> Any:
    figure = _blank(plot.x, plot.y, logarithmic=plot.logarithmic)
    looks = list(zip(COLORS, MARKERS, strict=True))
    for series in plot.series:
        color, marker = (MUTED, "square") if series.muted else looks.pop(0)
        _draw(figure, plot, series, color, "cross" if series.cross else marker)
    if plot.mark is not None:
        figure.vspan(x=[plot.mark], color=MUTED, line_dash="dashed")
    return figure


def _draw(figure: Any, plot: Plot, series: Series, color: str, marker: str) -> None:
    from bokeh.models import HoverTool

    source = {"x": list(series.x), "y": list(series.y), **{key: list(values) for key, values in series.tips.items()}}
    look = {"source": source, "color": color, "legend_label": series.label}
    if series.line:
        figure.line("x", "y", line_width=1 if series.muted else 2, line_alpha=0.5 if series.muted else 1, **look)
    points = figure.scatter("x", "y", size=5 if series.muted and series.line else 8, marker=marker, **look)
    if series.cross:
        points.glyph.update(size=11, line_width=2)
    digits = "0.000e+0" if plot.logarithmic else "0.0000"
    tips = [(key, f"@{key}") for key in series.tips]
    tips += [(plot.x, "@x{0.[000]}"), (plot.y, f"@y{{{digits}}}")]
    figure.add_tools(HoverTool(renderers=[points], tooltips=tips))


def _bars(bars: Bars) -> Any:
    from bokeh.models import ColumnDataSource, FixedTicker, HoverTool

    first, second, apart = BESIDE if bars.beside else BEHIND
    highest = max((amount or 0.0 for pair in bars.pairs for amount in pair), default=0.0)
    factor, unit = 1.0, bars.unit
    if bars.unit == "FLOPs":
        factor, prefix = next((one for one in PREFIXES if highest >= one[0]), (1.0, ""))
        unit = f"{prefix}FLOPs per sample"
    places = list(range(1, len(bars.names) + 1))
    columns = {
        "place": places,
        "left": [place - apart for place in places],
        "right": [place + apart for place in places],
        "name": list(bars.names),
        "kind": list(bars.kinds),
        "before": [(a or 0.0) / factor for a, _ in bars.pairs],
        "after": [(b or 0.0) / factor for _, b in bars.pairs],
        "was": [_amount(a, bars.unit) for a, _ in bars.pairs],
        "is": [_amount(b, bars.unit) for _, b in bars.pairs],
        "change": [_change(a, b, bars.unit) for a, b in bars.pairs],
    }
    source = ColumnDataSource(columns)
    figure = _blank(bars.axis, unit)
    figure.x_range.start, figure.x_range.end = 0.3, len(places) + 0.7
    figure.y_range.start = 0
    hatch = {"hatch_pattern": "right_diagonal_line", "hatch_color": "white", "hatch_alpha": 0.45, "hatch_scale": 6}
    figure.vbar(x="left", top="before", width=first, color=BEFORE, legend_label="before", source=source, **hatch)
    figure.vbar(x="right", top="after", width=second, color=AFTER, legend_label="after", source=source)
    whole = figure.vbar(
        x="place", top="before", width=1, alpha=0, source=source
    )  # both bars and the space between them
    tips = [("layer" if bars.kind == "operator" else "class", "@name"), (bars.kind, "@kind")]
    tips += [("before", "@was"), ("after", "@is"), ("change", "@change")]
    figure.add_tools(HoverTool(renderers=[whole], tooltips=tips, mode="vline", point_policy="follow_mouse"))
    figure.xgrid.visible = False
    if len(places) <= MOST_NAMED:
        named = [name.removesuffix(f"/{kind}") for name, kind in zip(bars.names, bars.kinds, strict=True)]
        figure.xaxis.ticker = FixedTicker(ticks=places)
        figure.xaxis.major_label_overrides = dict(enumerate(short(named), 1))
        if max(map(len, named)) > 2:
            figure.xaxis.major_label_orientation = math.pi / 2
            figure.height += 100
    return figure


def _amount(amount: Amount, unit: str) -> str:
    if amount is None:
        return "not by itself"
    return f"{amount:.1f} %" if unit == "percent" else human(amount, unit if unit == "µs" else "")


def _change(before: Amount, after: Amount, unit: str) -> str:
    if before is None or after is None:
        return ""
    return f"{after - before:+.1f} points" if unit == "percent" else relative(before, after)


def _blank(x: str, y: str, *, logarithmic: bool = False) -> Any:
    """Return an empty figure with labels at the axes."""
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

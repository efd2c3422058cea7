"""Plots in a file, for `--plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxprune.errors import OptionError
from onnxprune.escaping import visible
from onnxprune.fileio import atomic_write
from onnxprune.report.plots import Plot


def check_format(path: Path) -> None:
    """Refuse a plot that cannot be drawn, before the run starts.

    Raises:
        OptionError: matplotlib is missing, or the format is unknown.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise OptionError("--plot needs matplotlib", hint="pip install 'onnxprune[plot]'") from error
    matplotlib.use("agg")
    from matplotlib.backend_bases import FigureCanvasBase

    if path.suffix.lower().lstrip(".") not in FigureCanvasBase.get_supported_filetypes():
        hint = "give a name that ends in .svg, .png or .pdf"
        raise OptionError(f"--plot {path} is of an unknown format", hint=hint)


def draw(plots: Sequence[Plot], path: Path) -> None:
    """Draw the first of some plots into a file, whose ending selects the format.

    Raises:
        OptionError: matplotlib is missing, or the format is unknown.
        OutputError: the file cannot be written.
    """
    check_format(path)
    from matplotlib import pyplot

    plot = plots[0] if plots else Plot("", "nothing was measured", "", "", "", ())
    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    try:
        markers = iter("os^dvPX*")
        for series in plot.series:
            (line,) = axes.plot(series.x, series.y, linewidth=1.2, markersize=5, label=_literal(series.label))
            line.set_marker("x" if series.muted else "+" if series.cross else next(markers))
            line.set_linestyle("-" if series.line else "none")
            if series.muted:
                line.set_color("0.7")
            for x, y, name in zip(series.x, series.y, series.tips.get("model", ()), strict=False):
                axes.annotate(_literal(name), (x, y), xytext=(5, 5), textcoords="offset points", fontsize="small")
        axes.set(xlabel=plot.x, ylabel=plot.y, title=plot.title, yscale="log" if plot.logarithmic else "linear")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format=path.suffix.lower().lstrip("."), dpi=150)
    finally:
        pyplot.close(figure)


def _literal(name: str) -> str:
    """Make a name visible, and escape it so that matplotlib reads no formula."""
    return visible(name).replace("$", r"\$")

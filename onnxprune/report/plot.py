"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxprune.errors import OptionError
from onnxprune.output import staged
from onnxprune.types import Curve

MOST_NAMED = 12
"""Groups that the legend names, the most sensitive ones."""


def draw_curves(curves: Sequence[Curve], path: Path) -> None:
    """Draw what each group loses against the share of its channels that is gone; the loss is logarithmic.

    Raises:
        OptionError: matplotlib is missing, or does not know the format.
        OutputError: the file cannot be written.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise OptionError("--plot needs matplotlib", hint="pip install 'onnxprune[plot]'") from error
    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.markers import MarkerStyle

    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    known = figure.canvas.get_supported_filetypes()
    kind = path.suffix.lower().lstrip(".")
    if kind not in known:
        raise OptionError(f"--plot {path} is of an unknown format", hint="give a name that ends in .svg, .png or .pdf")
    marks = [mark for mark in MarkerStyle.filled_markers if mark not in (",", ".")]
    ranked = sorted(curves, key=lambda curve: -float(curve.losses[-1]))
    for number, curve in enumerate(ranked):
        named = number < MOST_NAMED
        shares = 100 * curve.counts[1:] / max(1, curve.order.size)
        style = {"marker": marks[number % len(marks)], "label": curve.group} if named else {"color": "0.8", "zorder": 0}
        axes.plot(shares, curve.losses[1:], linewidth=1.2, markersize=4, **style)
    axes.set_yscale("log")
    axes.set_xlabel("channels removed, percent of those that may go")
    axes.set_ylabel("loss at the output")
    axes.set_title("What each group loses by itself, its readers repaired")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0), title="most sensitive first")
    with staged(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=150)
    pyplot.close(figure)

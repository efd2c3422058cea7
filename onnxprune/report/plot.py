"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxprune.errors import OptionError
from onnxprune.output import staged
from onnxprune.report.document import Member, Sweep
from onnxprune.types import Curve

MOST_NAMED = 12
"""Groups that the legend names, the most sensitive ones."""


def draw_curves(curves: Sequence[Curve], path: Path) -> None:
    """Draw what each group loses against the share of its channels that is gone; the loss is logarithmic.

    Raises:
        OptionError: matplotlib is missing, or does not know the format.
        OutputError: the file cannot be written.
    """
    pyplot = _pyplot()
    from matplotlib.markers import MarkerStyle

    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
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
    _save(figure, path)


def draw_front(found: Sweep, path: Path) -> None:
    """Draw what each member of a sweep loses against its latency (where that was not measured: against FLOPs), and the Pareto set.

    Raises:
        OptionError: matplotlib is missing, or does not know the format.
        OutputError: the file cannot be written.
    """
    pyplot = _pyplot()
    members = [member for member in found.members if not member.note]
    timed = all(member.latency_ms is not None for member in members)
    lost = all(member.drop is not None for member in members)
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")

    def point(member: Member) -> tuple[float, float]:
        x = member.latency_ms if timed else 100 * (1 - member.flops_removed)
        return float(x or 0.0), float((member.drop if lost else member.kl) or 0.0)

    front = sorted(point(member) for member in members if member.pareto)
    axes.plot(*zip(*front, strict=True), color="tab:blue", linewidth=1.2, zorder=1, label="Pareto set")
    for pareto, style in ((True, {"marker": "o"}), (False, {"marker": "x", "color": "0.5"})):
        some = [point(member) for member in members if member.pareto == pareto]
        if some:
            axes.scatter(
                *zip(*some, strict=True), zorder=2, label=None if pareto else "another is better in both", **style
            )
    for member in members:
        axes.annotate(
            f"-{100 * member.target:g} %", point(member), xytext=(5, 5), textcoords="offset points", fontsize="small"
        )
    if timed and found.latency_ms is not None:
        axes.axvline(found.latency_ms, color="0.6", linestyle=":", label="the original")
    axes.set_xlabel("latency, ms" if timed else "FLOPs left, percent")
    axes.set_ylabel("points lost" if lost else "KL divergence, nats")
    axes.set_title(f"{Path(found.model).name}: targets of {found.quantity}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    _save(figure, path)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise OptionError("--plot needs matplotlib", hint="pip install 'onnxprune[plot]'") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    kind = path.suffix.lower().lstrip(".")
    try:
        if kind not in figure.canvas.get_supported_filetypes():
            raise OptionError(
                f"--plot {path} is of an unknown format", hint="give a name that ends in .svg, .png or .pdf"
            )
        with staged(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=150)
    finally:
        _pyplot().close(figure)

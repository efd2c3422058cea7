"""The report at the terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from onnxprune.analysis import Inspection, Layer
from onnxprune.report.document import Report, Sweep
from onnxprune.runtime.timing import Latency
from onnxprune.types import Curve, Pin, Plan, Repaired, Trace, Verdict

if TYPE_CHECKING:
    from onnxprune.allocation import latency_model as latencies
    from onnxprune.evaluation.benchmark import Bench, LayerTime


def human(value: float, unit: str = "") -> str:
    """Write a number with a decimal prefix: 20.2 M."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.4g} {unit}".rstrip()


def size(value: float) -> str:
    """Write bytes in decimal units."""
    return human(value, "B")


def relative(before: float, after: float) -> str:
    """Write a change in percent."""
    return f"{100 * (after / before - 1):+.1f} %" if before else ""


def figure_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Return what was measured: (name, before, after, change)."""
    a, b = report.before, report.after
    rows = [
        ("FLOPs", human(a.flops), human(b.flops), relative(a.flops, b.flops)),
        ("MACs", human(a.macs), human(b.macs), relative(a.macs, b.macs)),
        ("parameters", f"{a.params:,}", f"{b.params:,}", relative(a.params, b.params)),
        ("file size", size(a.size), size(b.size), relative(a.size, b.size)),
    ]
    for name, old, new in (("top-1", a.top1, b.top1), ("top-5", a.top5, b.top5)):
        if old is not None and new is not None:
            rows.append((name, f"{old:.2f} %", f"{new:.2f} %", f"{new - old:+.2f} points"))
    latency = report.latency
    if latency is not None and latency.b is not None:
        rows.append(("latency", f"{latency.a:.3f} ms", f"{latency.b:.3f} ms", speedup_text(latency)))
    fidelity = report.fidelity
    if "agreement" in fidelity:
        rows.append(("agreement", "100.00 %", f"{fidelity['agreement']:.2f} %", ""))
    if "cosine" in fidelity:
        rows.append(("cosine", "1", f"{fidelity['cosine']:.4f}", ""))
    if "kl" in fidelity:
        rows.append(("KL", "0", f"{fidelity['kl']:.4f} nats", ""))
    return rows


def figures_table(report: Report) -> Table:
    """Before, after, change."""
    table = Table(title=None, show_edge=False, pad_edge=False)
    for column in ("", "before", "after", "change"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for row in figure_rows(report):
        table.add_row(*row)
    return table


def speedup_text(latency: Latency) -> str:
    """Write a speed-up with its interval."""
    if latency.speedup is None or latency.speedup_interval is None:
        return ""
    low, high = latency.speedup_interval
    return f"{latency.speedup:.2f}x ({low:.2f} to {high:.2f})"


def layers_table(layers: Sequence[Layer]) -> Table:
    """Channels and MACs of each layer, before and after."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("operator")
    for column in ("channels", "after", "MACs", "after", "change"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer in layers:
        table.add_row(
            Text(layer.name),
            Text(layer.op),
            str(layer.channels_before),
            str(layer.channels_after),
            human(layer.macs_before),
            human(layer.macs_after),
            relative(layer.macs_before, layer.macs_after),
        )
    return table


BARS = " ▁▂▃▄▅▆▇█"


def curve_parts(curves: Sequence[Curve], trace: Trace, plot: str | None) -> list[RenderableType]:
    """Return what `sensitivity` prints: the loss of each group at some shares, and a bar for each on a common logarithmic scale."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("group", overflow="fold")
    for column in ("channels", "free", *(f"-{share:.0%}" for share in SHOWN)):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("loss", no_wrap=True)
    groups = {group.name: group.channels for group in trace.groups}
    highest = max((float(curve.losses[-1]) for curve in curves), default=1.0)
    for curve in curves:
        size_ = groups[curve.group].size
        wanted = [round(share * size_) for share in SHOWN]
        reach = int(curve.counts[-1])
        losses = [float(curve.at(np.array(count))) if count <= reach else None for count in wanted]
        levels = [int(np.clip(8 + np.log10(max(loss, 1e-30) / highest) * 2, 0, 8)) for loss in curve.losses[1:]]
        table.add_row(
            Text(curve.group),
            str(size_),
            str(int((~trace.pinned[groups[curve.group]]).sum())),
            *("" if loss is None else f"{loss:.2g}" for loss in losses),
            "".join(BARS[level] for level in levels),
        )
    held = [group.name for group in trace.groups if trace.pinned[group.channels].all()]
    parts: list[RenderableType] = [table, ""]
    parts.append(
        Text(
            "loss: KL divergence of the output in nats (squared error / variance, where it is no classifier)",
            style="dim",
        )
    )
    if held:
        parts.append(Text(f"not measured, as all their channels must stay: {', '.join(held)}", style="dim"))
    if plot is not None:
        parts.append(Text(f"written: {plot}"))
    return parts


SHOWN = (0.125, 0.25, 0.5, 0.75, 0.875)
"""Shares of a group at which `sensitivity` prints the loss."""


def plan_parts(layers: Sequence[Layer], plan: Plan, path: str) -> list[RenderableType]:
    """Return what `plan` prints."""
    flops, params = plan.path[-1]
    line = f"FLOPs -{flops:.1%}, parameters -{params:.1%}; {int((~plan.keep).sum())} of {plan.keep.size} channels go"
    return [layers_table(layers), "", *block_lines(plan.blocks), Text(line), Text(f"written: {path}")]


def bench_parts(found: Bench, a: str, b: str, layers: int) -> list[RenderableType]:
    """Return what `bench` prints: whole runs, and the dearest layers."""
    latency = found.latency
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("model", overflow="fold")
    for column in ("median", "95 % interval", "speed-up"):
        table.add_column(column, justify="right", no_wrap=True)

    def interval(pair: tuple[float, float]) -> str:
        return f"{pair[0]:.3f} to {pair[1]:.3f} ms"

    table.add_row(Text(a), f"{latency.a:.3f} ms", interval(latency.a_interval), "")
    if latency.b is not None and latency.b_interval is not None:
        table.add_row(Text(b), f"{latency.b:.3f} ms", interval(latency.b_interval), speedup_text(latency))
    parts: list[RenderableType] = [table, ""]
    if layers and found.layers:
        parts += [layer_times_table(found.layers[:layers], latency.b is not None)]
        more = len(found.layers) - layers
        parts += (
            [Text(f"and {more} more; --layers {len(found.layers)} shows them all", style="dim")] if more > 0 else []
        )
        parts += [""]
    where = f", on processors {', '.join(map(str, found.pinned))}" if found.pinned else ""
    parts.append(Text(f"{timing_text(latency)}{where}; {found.environment.processor}", style="dim"))
    return parts


def latency_table_parts(table: latencies.Table, path: Path) -> list[RenderableType]:
    """Say what was measured for `--latency-table`, and where it is."""
    variants, seconds = len(table.measured), table.seconds
    return [Text(f"written: {path} ({variants} variants in {seconds:.0f} s, median error {table.error:.1%})")]


def layer_times_table(rows: Sequence[LayerTime], two: bool) -> Table:
    """What layers take, from onnxruntime's profiler."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("operator")
    for column in ("us", *(("after", "speed-up") if two else ())):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells = ["" if value is None else f"{value:.0f}" for value in (row.a, row.b)[: 1 + two]]
        ratio = [f"{row.a / row.b:.2f}x" if row.a and row.b else ""] if two else []
        table.add_row(Text(row.name), Text(row.op), *cells, *ratio)
    return table


def sweep_parts(found: Sweep, folder: str, plot: str | None) -> list[RenderableType]:
    """Return what `sweep` prints: a row per model, the Pareto set marked."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("model")
    for column in ("FLOPs", "parameters", "size", "lost", "KL", "latency", "speed-up"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("front", justify="center", no_wrap=True)
    table.add_row("(original)", "", "", size(found.size), "", "", _ms(found.latency_ms), "", "")
    for member in found.members:
        if member.note:
            table.add_row(Text(member.name), *[""] * 8)
            continue
        low_high = member.speedup_interval
        speedup = (
            ""
            if member.speedup is None or low_high is None
            else f"{member.speedup:.2f}x ({low_high[0]:.2f} to {low_high[1]:.2f})"
        )
        table.add_row(
            Text(member.name),
            f"-{member.flops_removed:.1%}",
            f"-{member.params_removed:.1%}",
            size(member.size),
            "" if member.drop is None else f"{member.drop:.2f}",
            "" if member.kl is None else f"{member.kl:.4f}",
            _ms(member.latency_ms),
            speedup,
            "*" if member.pareto else "",
        )
    parts: list[RenderableType] = [table, ""]
    parts += [Text(f"{member.name}: {member.note}") for member in found.members if member.note]
    parts.append(
        Text(
            f"lost: points of top-1, or without labels of agreement with the original, on {found.data}; KL in nats",
            style="dim",
        )
    )
    parts.append(
        Text("*: no other one is both faster (or smaller, where latency was not measured) and better", style="dim")
    )
    parts.append(Text(f"written: {folder}" + ("" if plot is None else f", {plot}")))
    return parts


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f} ms"


def timing_text(latency: Latency) -> str:
    """Say how a latency was measured."""
    turns = "interleaved runs" if latency.b is not None else "runs"
    threads = (
        f"{latency.threads} thread{'s' if latency.threads > 1 else ''}"
        if latency.threads
        else "onnxruntime's choice of threads"
    )
    return f"latency: median of {latency.runs} {turns}, batch {latency.batch}, {threads}, 95 % bootstrap interval"


def verdict_lines(verdict: Verdict) -> list[str]:
    """Return one line per check and a last one that sums up."""
    failed = sum(not check for check in verdict.checks)
    undecided = sum(check.status == "UNDECIDED" for check in verdict.checks)
    total = (
        f"FAILED: {failed} of {len(verdict.checks)} checks" if failed else f"PASSED: all {len(verdict.checks)} checks"
    )
    if undecided:
        total = f"{total.replace('all ', '')}, {undecided} undecided"
    return [*(str(check) for check in verdict.checks), total]


def verdict_parts(verdict: Verdict) -> list[RenderableType]:
    """Return what `check` prints."""
    return [Text(line) for line in verdict_lines(verdict)]


def report_parts(report: Report, *, layers: bool = True) -> list[RenderableType]:
    """Return everything `prune` prints, in order."""
    parts: list[RenderableType] = []
    if layers:
        parts += [layers_table(report.layers), ""]
    parts += [figures_table(report), ""]
    parts.append(Text(f"measured on {report.samples} samples of {report.data}", style="dim"))
    if report.latency is not None:
        parts.append(Text(timing_text(report.latency), style="dim"))
    parts += block_lines(report.blocks)
    if report.repair:
        parts.append(Text(repair_text(report.repair), style="dim"))
    if report.training is not None:
        parts.append(Text(training_text(report.training), style="dim"))
    if len(report.path) > 1:
        steps = " -> ".join(f"{flops:.1%}" for flops, _ in report.path)
        parts.append(Text(f"FLOPs removed step by step: {steps}", style="dim"))
    parts += [Text(f"note: {note}", style="dim") for note in report.notes]
    parts += [Text(two_figures(report)), *(Text(line) for line in verdict_lines(report.verdict))]
    if report.output:
        parts.append(Text(f"written: {report.output}"))
    return parts


def block_lines(blocks: Sequence[Sequence[Mapping[str, Any]]]) -> list[Text]:
    """Say which layers were given another form, those that were given the same one together."""
    forms: dict[str, list[str]] = {}
    for entry in (entry for part in blocks for entry in part):
        forms.setdefault(str(entry["what"]), []).append(str(entry["layer"]))
    return [Text(f"{what}: {', '.join(layers)}", style="dim") for what, layers in sorted(forms.items())]


def setting_lines(settings: Mapping[str, Any]) -> list[str]:
    """Say what each dial was set to, or chosen to be where it was `auto`."""
    told = {key: value for key, value in settings.items() if value not in (None, "", (), [], {})}
    return [f"decided: {', '.join(f'{key} {_setting(value)}' for key, value in told.items())}"] if told else []


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_setting(entry)}" for key, entry in value.items() if entry is not None)
    if isinstance(value, list | tuple):
        return "+".join(map(_setting, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def pin_lines(pins: Sequence[Pin]) -> list[str]:
    """Say what must stay, and why."""
    return [f"stays: {pin.channels.size} channels at {pin.node} ({pin.op}): {pin.reason}" for pin in pins]


def decisions(report: Report) -> list[str]:
    """Say what a run decided, and why."""
    fitted = [
        f"repaired: {layer.label}, error {layer.before:.3g} -> {layer.after:.3g} on rows held out"
        for layer in report.repair
    ]
    pins = [f"stays: {count} channels at {node}: {reason}" for reason, node, count in report.pinned]
    return [*setting_lines(report.settings), *pins, *fitted]


def written(path: Path | None) -> list[RenderableType]:
    """Say where something else was written, if it was."""
    return [] if path is None else [Text(f"written: {path}")]


def two_figures(report: Report) -> str:
    """Say in a line what went, and what it cost."""
    a, b = report.before, report.after
    removed = f"FLOPs removed: {100 * (1 - b.flops / a.flops):.1f} %" if a.flops else "FLOPs removed: none counted"
    if a.top1 is not None and b.top1 is not None:
        return f"{removed}; accuracy change: {b.top1 - a.top1:+.2f} points"
    if "agreement" in report.fidelity:
        return f"{removed}; agreement with the original: {report.fidelity['agreement']:.2f} %"
    return removed


def training_text(training: dict[str, Any]) -> str:
    """Say what fine-tuning did, as seen on the samples held out from it."""
    first, last = training["looks"][0], min(training["looks"], key=lambda look: look["divergence"])
    best = next((look for look in training["looks"] if look["step"] == training["best_step"]), last)
    text = f"training: {training['steps']} steps, {training['samples']} samples, {training['seconds']:.0f} s"
    text += f"; weights of step {training['best_step']}; on samples held out: divergence {first['divergence']:.3g} -> {best['divergence']:.3g}"
    for name, key in (("agreement", "agreement"), ("top-1", "top1")):
        if first[key] is not None and best[key] is not None:
            text += f", {name} {first[key]:.1f} -> {best[key]:.1f} %"
    return text


def repair_text(layers: Sequence[Repaired]) -> str:
    """Say what repair did: how much of the error on rows held out is left, geometric mean over the layers."""
    better = [layer.after / layer.before for layer in layers if layer.after < layer.before]
    left = f", error left on rows held out: {np.exp(np.mean(np.log(np.maximum(better, 1e-12)))):.0%}" if better else ""
    return f"repaired: {len(better)} of {len(layers)} layers behind a cut{left}"


def inspect_parts(found: Inspection) -> list[RenderableType]:
    """Return what `inspect` prints: layers, groups, pins, and the sum."""
    trace = found.trace
    layers = Table(show_edge=False, pad_edge=False)
    layers.add_column("layer", overflow="fold")
    layers.add_column("operator")
    for column in ("channels", "MACs", "parameters"):
        layers.add_column(column, justify="right", no_wrap=True)
    for layer in found.layers:
        layers.add_row(Text(layer.label), Text(layer.op), str(layer.channels), human(layer.macs), f"{layer.params:,}")
    groups = Table(show_edge=False, pad_edge=False)
    groups.add_column("group", overflow="fold")
    for column in ("channels", "free"):
        groups.add_column(column, justify="right", no_wrap=True)
    groups.add_column("written by", overflow="fold")
    for group in trace.groups:
        free = int((~trace.pinned[group.channels]).sum())
        groups.add_row(Text(group.name), str(group.channels.size), str(free), Text(", ".join(group.layers)))
    pins = Table(show_edge=False, pad_edge=False)
    pins.add_column("channels that must stay", justify="right", no_wrap=True)
    for column in ("node", "operator", "because"):
        pins.add_column(column, overflow="fold")
    for pin in trace.pins:
        pins.add_row(str(pin.channels.size), Text(pin.node), Text(pin.op), Text(pin.reason))
    shapes = ", ".join(f"{name} {shape}" for name, shape in found.inputs.items())
    summary = [
        f"FLOPs {human(2 * found.macs)}, MACs {human(found.macs)} per sample; {found.params:,} parameters; {size(found.size)}",
        f"inputs while tracing: {shapes}",
        f"{found.prunable_share:.1%} of the FLOPs are in layers that can lose channels",
        *(
            f"{h.share:7.1%} would go with {h.channels} channels if not: {h.reason} ({h.nodes} {h.operator})"
            for h in found.held
        ),
        *(f"note: {note}" for note in found.notes),
        *(f"{key}: {value}" for key, value in found.provenance.items()),
    ]
    return [layers, "", groups, "", pins, "", *(Text(line) for line in summary)]


def show(parts: Sequence[RenderableType], console: Console | None = None) -> None:
    """Print to stdout; a pipe gets plain text of a fixed width."""
    console = console or Console(soft_wrap=False)
    plain = not console.is_terminal
    if plain:
        console = Console(width=WIDTH, file=console.file)
    for part in parts:
        if isinstance(part, Table) and least_width(part) > console.width:
            for line in folded(part):
                console.print(wrapped(line, console.width), highlight=False, soft_wrap=True)
        elif isinstance(part, Text):
            console.print(part if plain else wrapped(part, console.width), highlight=False, soft_wrap=True)
        else:
            console.print(part, highlight=False)


WIDTH = 160
"""Columns of what goes into a pipe or a file."""
FOLDABLE = 16
"""Columns that a cell of words should have at least; figures need as many as they are long."""
BETWEEN = 3
"""Columns between two cells."""


def least_width(table: Table) -> int:
    """Return how many columns a table takes whose figures are whole."""
    widths = []
    for column in table.columns:
        longest = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
        widths.append(min(longest, FOLDABLE) if column.overflow == "fold" else longest)
    return sum(widths) + BETWEEN * (len(widths) - 1)


NAMES = ("", "layer", "group", "model", "operator")
"""Headings of a first column that says what a row is about."""
GLUED = re.compile(r"(?<=[\d:]) (?=\S)")
"""Where no line may end: between a figure and its unit, and between a heading and its value."""
WHOLE = 36
"""Columns of a cell and its heading up to which they are not broken."""
GLUE = "\N{NO-BREAK SPACE}"


def folded(table: Table) -> Iterator[Text]:
    """Yield a table as lines for a narrow terminal: what a row is about, and below it the other cells, each behind its heading."""
    heads = [str(column.header) for column in table.columns]
    for number, head in enumerate(heads):
        if (
            head == "after" and heads[number - 1] != "before"
        ):  # says nothing once it does not stand beside what was before
            heads[number] = f"{heads[number - 1]} after"
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        first, *others = (str(cell) for cell in cells)
        yield Text(first if heads[0] in NAMES else f"{heads[0]}: {first}")
        told = [f"{head}: {cell}" if head else cell for head, cell in zip(heads[1:], others, strict=True) if cell]
        if told:
            yield Text(f"  {', '.join(each if len(each) > WHOLE else each.replace(' ', GLUE) for each in told)}")


def wrapped(text: Text, width: int) -> Text:
    """Break a text into lines between words, but not between a figure and its unit."""
    indent = "  " if text.plain.startswith("  ") else ""
    lines = textwrap.wrap(
        GLUED.sub(GLUE, text.plain), width, subsequent_indent=indent, break_on_hyphens=False, drop_whitespace=True
    )
    return Text("\n".join(lines).replace(GLUE, " "), style=text.style)


def operators_table(rows: Sequence[tuple[str, str]]) -> Table:
    """Return what `ops` prints."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("operator", no_wrap=True)
    table.add_column("what becomes of channels there", overflow="fold")
    for operator, text in rows:
        table.add_row(operator, Text(text))
    return table

"""The report on the terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from onnxprune.escaping import log, visible
from onnxprune.graph.analysis import Inspection, Layer, pinned_of
from onnxprune.metrics.distances import AUTO, DISTANCES
from onnxprune.report import tables, text
from onnxprune.report.document import Report, Sweep
from onnxprune.runtime.cache_entries import Entry
from onnxprune.types import Curve, Plan, Trace, Verdict

if TYPE_CHECKING:
    from onnxprune.allocation import latency_model as latencies
    from onnxprune.evaluation.benchmark import Bench


Parts = list[RenderableType]
LAYER_COLUMNS = slice(1, 8)
"""Columns of the table of layers that fit a terminal."""


def grid(table: tables.Table) -> Grid:
    """Return a table of rich: numbers are right-aligned and never broken, words are folded; names are made visible."""
    made = Grid(show_edge=False, pad_edge=False)
    for column, numeric in zip(table.columns, table.numeric(), strict=True):
        made.add_column(
            Text(visible(column)),
            justify="right" if numeric else "left",
            no_wrap=numeric,
            overflow="ellipsis" if numeric else "fold",
        )
    for row in table.texts():
        made.add_row(*(Text(visible(cell)) for cell in row))
    return made


def _dim(lines: Iterable[str]) -> Parts:
    return [Text(line, style="dim") for line in lines]


def written(path: Path | str | None) -> Parts:
    """Return a line with the path of a written file; nothing without one."""
    return [] if path is None else [Text(f"written: {path}")]


def cache_parts(entries: Sequence[Entry], folder: str, *, cleared: bool) -> Parts:
    """Return the output of `cache`."""
    line = Text(f"{'removed' if cleared else 'kept'} in {folder}: {len(entries) or 'nothing'}")
    return [line, *([grid(tables.cache(entries))] if entries else [])]


def verdict_parts(verdict: Verdict) -> Parts:
    """Return the output of `check`."""
    lines = [*map(str, text.ranked(verdict)), text.integrity(verdict), text.summary(verdict)]
    return [Text(line) for line in lines]


def report_parts(report: Report) -> Parts:
    """Return the output of `prune` and `finetune`."""
    remarks = [*text.sources(report), *text.edits(report.blocks), *text.changes(report)]
    return [
        grid(tables.layers(report.layers).only(LAYER_COLUMNS)),
        "",
        grid(tables.figures(report)),
        "",
        *_dim([*remarks, *(f"note: {note}" for note in report.notes)]),
        Text(text.result(report)),
        *verdict_parts(report.verdict),
    ]


def curve_parts(curves: Sequence[Curve], trace: Trace, distance: str = AUTO) -> Parts:
    """Return the output of `sensitivity`."""
    pinned = [group.name for group in trace.groups if trace.pinned[group.channels].all()]
    remarks = [f"loss: {DISTANCES[distance]}; bars are logarithmic"]
    if pinned:
        remarks.append(f"not measured, all channels pinned: {', '.join(pinned)}")
    return [grid(tables.curves(curves)), "", *_dim(remarks)]


def plan_parts(layers: Sequence[Layer], plan: Plan, path: Path | None) -> Parts:
    """Return the output of `plan`."""
    flops, params = plan.path[-1]
    removed = f"{int((~plan.keep).sum())} of {plan.keep.size} channels removed"
    return [
        grid(tables.layers(layers).only(LAYER_COLUMNS)),
        "",
        *_dim(text.edits(plan.blocks)),
        Text(f"FLOPs -{flops:.1%}, parameters -{params:.1%}; {removed}"),
        *written(path),
    ]


def bench_parts(found: Bench, a: str, b: str, layers: int) -> Parts:
    """Return the output of `bench`: the latency of whole runs and of the slowest layers."""
    parts: Parts = [grid(tables.latencies(found, (a, b))), ""]
    if layers and found.layers:
        parts.append(grid(tables.layer_times(found.layers[:layers], two=found.latency.b is not None)))
        more = len(found.layers) - layers
        parts += _dim([f"and {more} more; --layers {len(found.layers)} shows them all"] if more > 0 else [])
        parts.append("")
    if found.source:
        return [*parts, *_dim([f"times from the {found.source}; nothing was run here"])]
    where = f", on processors {', '.join(map(str, found.pinned))}" if found.pinned else ""
    return [*parts, *_dim([f"{text.timing(found.latency)}{where}; {found.environment.processor}"])]


def latency_table_parts(table: latencies.Table, path: Path) -> Parts:
    """Return a line on the measurement and the path of a latency table."""
    cost = f"{len(table.measured)} variants in {table.seconds:.0f} s, median error {table.error:.1%}"
    return written(f"{path} ({cost})")


def sweep_parts(found: Sweep, folder: str) -> Parts:
    """Return the output of `sweep`."""
    remarks = [
        f"lost: of the task's metric in its unit, or without labels points of agreement with the original, on {found.data}; KL in nats",
        "*: no other model is both faster (or smaller, where latency was not measured) and more accurate",
    ]
    return [grid(tables.members(found)), "", *_dim(remarks), *written(folder)]


def inspect_parts(found: Inspection) -> Parts:
    """Return the output of `inspect`: layers, groups, pins and a summary."""
    model, trace, cost = found.analysis.model, found.analysis.trace, found.analysis.cost
    shapes = ", ".join(f"{name} {shape}" for name, shape in found.inputs.items())
    memory = {name: text.size(value) for name, value in found.memory.items()}
    flops = f"FLOPs {text.human(2 * found.macs)}, MACs {text.human(found.macs)} per sample"
    summary = [
        f"{flops}; {model.params:,} parameters; {text.size(model.size)}",
        f"inputs while tracing: {shapes}",
        f"memory to prune: about {memory['prune']} without data, {memory['prune_with_data']} and --memory with data; "
        f"{memory['available']} are available",
        f"{cost.prunable_share():.1%} of the FLOPs are in layers that can lose channels",
        *(
            f"{pin.share:7.1%} more, with {pin.channels} channels, without the pin: {pin.reason} ({pin.nodes} {pin.operator})"
            for pin in found.held
        ),
        *(f"note: {note}" for note in found.analysis.notes),
        *(f"{key}: {value}" for key, value in found.provenance.items()),
    ]
    parts: Parts = []
    for table in (tables.costs(found), tables.opaque(trace), tables.traced(trace), tables.pins(pinned_of(trace))):
        parts += [grid(table), ""] if table.rows or table.name != "opaque" else []
    return [*parts, *map(Text, summary)]


def show(parts: Sequence[RenderableType], console: Console | None = None) -> None:
    """Print to stdout; a pipe or a file gets plain text of a fixed width, in which no line is a command to a CI system."""
    console = console or Console(soft_wrap=False)
    plain = not console.is_terminal
    if plain:
        console = Console(width=WIDTH, file=console.file)
    with console.capture() as captured:
        for part in parts:
            if isinstance(part, Grid) and least_width(part) > console.width:
                for line in folded(part):
                    console.print(wrapped(line, console.width), highlight=False, soft_wrap=True)
            elif isinstance(part, Text | str):
                line = Text(visible(str(part)), style=part.style if isinstance(part, Text) else "")
                console.print(line if plain else wrapped(line, console.width), highlight=False, soft_wrap=True)
            else:
                console.print(part, highlight=False)
    shown = captured.get()
    console.file.write(shown if console.file.isatty() else log(shown))
    console.file.flush()


WIDTH = 160
"""Columns of text in a pipe or a file."""
FOLDABLE = 16
"""Smallest number of columns of a cell of words; numbers need their whole length."""
BETWEEN = 3
"""Columns between cells."""


def least_width(table: Grid) -> int:
    """Return the smallest width of a table, in columns."""
    widths = []
    for column in table.columns:
        longest = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
        widths.append(min(longest, FOLDABLE) if column.overflow == "fold" else longest)
    return sum(widths) + BETWEEN * (len(widths) - 1)


NAMES = ("figure", "layer", "group", "model", "operator", "node")
"""Headings that are left out in a folded table."""
GLUED = re.compile(r"(?<=[\d:]) (?=\S)")
"""Spaces that a line is not broken at: between a number and its unit, and between a heading and its value."""
WHOLE = 36
"""Columns of a cell with its heading up to which it is not broken."""
GLUE = "\N{NO-BREAK SPACE}"


def folded(table: Grid) -> Iterator[Text]:
    """Yield a table for a narrow terminal: the first cell of each row, and below it the other cells with their headings."""
    heads = [str(column.header) for column in table.columns]
    for place, head in enumerate(heads):
        if head == "after" and heads[place - 1] != "before":  # name the quantity
            heads[place] = f"{heads[place - 1]} after"
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        first, *others = (str(cell) for cell in cells)
        yield Text(first if heads[0] in NAMES else f"{heads[0]}: {first}")
        named = [f"{head}: {cell}" for head, cell in zip(heads[1:], others, strict=True) if cell]
        if named:
            yield Text(f"  {', '.join(each if len(each) > WHOLE else each.replace(' ', GLUE) for each in named)}")


def wrapped(line: Text, width: int) -> Text:
    """Wrap a text between words, but not between a number and its unit."""
    indent = "  " if line.plain.startswith("  ") else ""
    lines = textwrap.wrap(GLUED.sub(GLUE, line.plain), width, subsequent_indent=indent, break_on_hyphens=False)
    return Text("\n".join(lines).replace(GLUE, " "), style=line.style)

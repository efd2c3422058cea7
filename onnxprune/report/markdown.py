"""The report in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from onnxprune.escaping import markdown as escaped
from onnxprune.escaping import visible
from onnxprune.report import tables, text
from onnxprune.report.details import Details
from onnxprune.report.document import Report, Sweep
from onnxprune.report.tables import Table
from onnxprune.types import Verdict

MOST_CLASSES = 20
"""Largest number of classes that are listed."""


def report_text(report: Report, command: str) -> str:
    """Return the report of a run."""
    details = report.details or Details()
    lines = [f"# onnxprune: {escaped(report.model)}", "", f"**{escaped(text.summary(report.verdict))}**", ""]
    lines += [
        f"{escaped(text.result(report))}.",
        "",
        *_list(map(str, text.ranked(report.verdict))),
        "",
        f"{escaped(text.integrity(report.verdict))}.",
    ]
    lines += _section("Figures", tables.figures(report))
    lines += ["", *(escaped(f"{line[:1].upper()}{line[1:]}.") for line in text.sources(report))]
    lines += _section("Layers", tables.layers(report.layers, details.layer_times))
    if report.blocks:
        lines += _section("Layer edits", tables.edits(report))
    if details.classes:
        worst = sorted(details.classes, key=lambda one: -one.drop)[:MOST_CLASSES]
        shown = f", the {MOST_CLASSES} largest drops" if len(details.classes) > MOST_CLASSES else ""
        table = tables.classes(replace(details, classes=tuple(worst)))
        lines += _section("Classes", table, f"{table.caption}{shown}.")
    if details.changed:
        table = tables.changed(details)
        lines += _section("Changed", table, f"{table.caption}.")
    if details.groups:
        lines += _section("Groups", tables.groups(details))
    versions = [", ".join(f"{name} {version}" for name, version in report.versions.items())] if report.versions else []
    lines += ["", "## Notes", "", *_list([*report.notes, *text.changes(report), *versions])]
    return "\n".join([*lines, "", *_code(command)])


def sweep_text(found: Sweep, command: str) -> str:
    """Return the report of a sweep."""
    lines = [
        f"# onnxprune sweep: {escaped(found.model)}",
        "",
        f"Targets of {found.quantity}; {escaped(found.data)}.",
        "",
    ]
    return "\n".join([*lines, *_table(tables.members(found)), "", *_code(command)])


def check_text(verdict: Verdict, candidate: str, baseline: str) -> str:
    """Return a verdict for a pull request."""
    of = f" for {escaped(baseline)}" if baseline else ""
    head = [f"### onnxprune check: {escaped(candidate)}{of}", "", f"**{escaped(text.summary(verdict))}**", ""]
    return "\n".join([*head, *_table(tables.checks(verdict)), ""])


def _section(heading: str, table: Table, lead: str = "") -> list[str]:
    return ["", f"## {heading}", "", *([lead, ""] if lead else []), *_table(table)]


def _table(table: Table) -> list[str]:
    marks = ["---:" if numeric else "---" for numeric in table.numeric()]
    rows = [map(escaped, table.columns), marks, *([escaped(cell) for cell in row] for row in table.texts())]
    return [f"| {' | '.join(row)} |" for row in rows]


def _list(lines: Iterable[str]) -> list[str]:
    return [f"- {escaped(line)}" for line in lines]


def _code(command: str) -> list[str]:
    return [f"    {visible(line)}" for line in command.splitlines()] + [""]

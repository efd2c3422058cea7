"""The report as a short page of Markdown."""

from __future__ import annotations

from dataclasses import replace

from onnxprune.report import tables
from onnxprune.report.console import repair_text, timing_text, training_text, two_figures, verdict_lines
from onnxprune.report.details import Details
from onnxprune.report.document import Report, Sweep
from onnxprune.report.tables import Table

MOST_CLASSES = 20
"""Classes that are listed; a pull request is no place for a thousand."""
SIGNIFICANT = ("<", ">", "|", "`", "*", "_", "[", "]", "\\")


def report_text(report: Report, command: str) -> str:
    """Return verdict, figures, layers and notes of a run."""
    lines = [f"# onnxprune: {_plain(report.model)}", "", f"**{verdict_lines(report.verdict)[-1]}**", ""]
    lines += [f"{_plain(two_figures(report))}.", ""]
    lines += [f"- {_plain(str(check))}" for check in report.verdict.checks]
    lines += ["", "## Figures", "", *_table(tables.figures(report)), ""]
    lines.append(_plain(f"Measured on {report.samples} samples of {report.data}."))
    if report.latency is not None:
        lines.append(_plain(f"{timing_text(report.latency)}."))
    lines += ["", "## Layers", "", *_table(tables.layers(report))]
    if report.blocks:
        lines += ["", "## Layers of another form", "", *_table(tables.blocks(report))]
    if report.details is not None:
        lines += _closer(report.details)
    notes = list(report.notes)
    if report.repair:
        notes.append(repair_text(report.repair))
    if report.training is not None:
        notes.append(training_text(report.training))
    notes += [", ".join(f"{name} {version}" for name, version in report.versions.items())] if report.versions else []
    lines += ["", "## Notes", "", *(f"- {_plain(note)}" for note in notes)]
    return "\n".join([*lines, "", *_code(command)])


def _closer(found: Details) -> list[str]:
    """Return classes, samples whose prediction changed, and groups."""
    lines: list[str] = []
    if found.classes:
        worst = replace(found, classes=tuple(sorted(found.classes, key=lambda one: -one.drop)[:MOST_CLASSES]))
        shown = f", the {MOST_CLASSES} that lose most" if len(found.classes) > MOST_CLASSES else ""
        table = tables.classes(worst)
        lines += ["", "## Classes", "", f"{table.caption}{shown}.", "", *_table(table)]
    if found.changed:
        table = tables.changed(found)
        lines += ["", "## Changed", "", f"{table.caption}.", "", *_table(table)]
    if found.groups:
        lines += ["", "## Groups", "", *_table(tables.groups(found))]
    return lines


def sweep_text(found: Sweep, command: str) -> str:
    """Return the members of a sweep."""
    lines = [f"# onnxprune sweep: {_plain(found.model)}", "", f"Targets of {found.quantity}; {_plain(found.data)}.", ""]
    return "\n".join([*lines, *_table(tables.members(found.members)), "", *_code(command)])


def _table(table: Table) -> list[str]:
    marks = ["---:" if numeric else "---" for numeric in table.numeric()] or ["---"] * len(table.columns)
    rows = [table.columns, marks, *([_plain(text) for text in row] for row in table.texts())]
    return [f"| {' | '.join(row)} |" for row in rows]


def _plain(text: str) -> str:
    """Return a text on one line that means nothing in Markdown."""
    return "".join(f"\\{sign}" if sign in SIGNIFICANT else sign for sign in " ".join(text.split()))


def _code(command: str) -> list[str]:
    return [f"    {line}" for line in command.splitlines()] + [""]

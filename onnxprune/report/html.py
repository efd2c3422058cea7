"""The report as one HTML page: it needs no network and no server, and holds the report itself as data."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import PurePath
from typing import Any

from onnxprune.errors import OptionError
from onnxprune.evaluation.gate import Judgement
from onnxprune.output import plain
from onnxprune.report import bars, interactive, tables
from onnxprune.report.console import figure_rows, repair_text, timing_text, training_text, two_figures, verdict_lines
from onnxprune.report.details import Changed, Details
from onnxprune.report.document import Report, Sweep

CARDS = ("FLOPs", "parameters", "file size", "top-1", "latency", "agreement")


def report_page(report: Report, command: str, machine: Mapping[str, str], plan: Mapping[str, Any] | None) -> str:
    """Return the page of a run.

    Args:
        report: of the run.
        command: the command line, or the call, that led to it.
        machine: what is said of the machine.
        plan: the plan as it is written; None where there is none.

    Raises:
        OptionError: Bokeh or Jinja2 is missing.
    """
    sources = [f"measured on {report.samples} samples of {report.data}"]
    if report.latency is not None:
        sources.append(timing_text(report.latency))
    if len(report.path) > 1:
        steps = " → ".join(f"{flops:.1%}" for flops, _ in report.path)
        sources.append(f"FLOPs removed step by step: {steps}")
    return _rendered(
        "report.html.j2",
        title=PurePath(report.model).name,
        passed=bool(report.verdict),
        summary=verdict_lines(report.verdict)[-1],
        lead=two_figures(report),
        report=report,
        told_checks=report.verdict.checks,
        cards=[row for row in figure_rows(report) if row[0] in CARDS],
        figures=tables.figures(report),
        sources=sources,
        shape="Channels, FLOPs and latency" if report.details and report.details.layer_times else "Channels and FLOPs",
        layer_plots=bars.layer_plots(report),
        curve_plots=interactive.curve_plots(report.curves),
        curves=tables.curves(report) if report.curves else None,
        training_plots=interactive.training_plots(report),
        training=None if report.training is None else tables.looks(report.training),
        trained=None if report.training is None else training_text(report.training),
        **_closer(report.details or Details(), {layer.name: layer.op for layer in report.layers}),
        pins=tables.pins(report),
        layers=tables.layers(report),
        blocks=tables.blocks(report) if report.blocks else None,
        repair=tables.repair(report) if report.repair else None,
        repaired=repair_text(report.repair) if report.repair else None,
        settings=tables.pairs("options", "Settings", report.settings),
        made=tables.pairs("made", "Versions and machine", {**report.versions, **machine}),
        seed=report.settings.get("seed"),
        command=command,
        downloads=[
            _download("report", report.model, report.to_dict()),
            *([] if plan is None else [_download("plan", report.model, plan)]),
        ],
    )


def _closer(found: Details, ops: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page shows of classes, samples and groups."""
    return {
        "class_plots": bars.class_plots(found),
        "classes": tables.classes(found) if found.classes else None,
        "changes": found.changes,
        "pictures": [(one, *_told(one)) for one in found.changed if one.picture],
        "changed": tables.changed(found) if found.changed else None,
        "nodes": found.groups,
        "short_names": interactive.short(
            [node.name.removesuffix(f"/{ops.get(node.name)}") for node in found.groups], 48
        ),
        "graph": [asdict(node) for node in found.groups],
        "groups": tables.groups(found) if found.groups else None,
    }


def _told(one: Changed) -> tuple[str, str]:
    """Return what became of a sample, and what its picture shows for those who do not see it."""
    text = f"was {one.before} ({one.confidence_before:.0f} % sure), is {one.after} ({one.confidence_after:.0f} % sure)"
    if one.label is None:
        return "", f"Sample {one.sample}, {text}"
    verdicts = {one.before: "✗ now wrong", one.after: "✓ now right"}
    return verdicts.get(one.label, "≠ wrong both times"), f"Sample {one.sample} of class {one.label}, {text}"


def sweep_page(found: Sweep, command: str, machine: Mapping[str, str]) -> str:
    """Return the page of a sweep; see `report_page`."""
    return _rendered(
        "sweep.html.j2",
        title=PurePath(found.model).name,
        found=found,
        plots=interactive.front_plots(found),
        members=tables.members(found.members),
        made=tables.pairs("made", "Machine", machine),
        command=command,
        downloads=[_download("sweep", found.model, found.to_dict())],
    )


def check_page(found: Judgement, command: str, machine: Mapping[str, str]) -> str:
    """Return the page of a gate's verdict; see `report_page`."""
    return _rendered(
        "check.html.j2",
        title=PurePath(found.candidate).name,
        found=found,
        passed=bool(found.verdict),
        summary=verdict_lines(found.verdict)[-1],
        lead=f"May {PurePath(found.candidate).name} replace {PurePath(found.baseline).name}?",
        told_checks=[check for check in found.verdict.checks if check.status != "PASSED"],
        checks=tables.checks(found.verdict),
        made=tables.pairs("made", "Machine", machine),
        command=command,
        downloads=[_download("check", found.candidate, found.to_dict())],
        bokeh="",  # there are no plots
    )


def _rendered(name: str, **values: Any) -> str:
    try:
        import jinja2
    except ImportError as error:
        raise OptionError("a report in HTML needs Jinja2", hint="pip install 'onnxprune[report]'") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("onnxprune.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["statuses"] = tables.STATUSES
    environment.filters |= {
        "embedded": _embedded,
        "told": tables.told,
        "sentence": lambda text: text[:1].upper() + text[1:].rstrip(".") + ".",
    }
    folder = resources.files("onnxprune.report") / "templates"
    inlined = {one: (folder / f"page.{one}").read_text(encoding="utf-8") for one in ("css", "js")}
    inlined["groups_js"] = (folder / "groups.js").read_text(encoding="utf-8")
    if "bokeh" not in values:
        values["bokeh"] = interactive.script()
    return environment.get_template(name).render(**inlined, **values)


def _embedded(value: Any) -> str:
    """Write JSON that may stand in a script element: nothing in it can end that, or open a comment."""
    text = json.dumps(plain(value), separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _download(kind: str, model: str, content: Mapping[str, Any]) -> dict[str, str]:
    text = json.dumps(plain(content), indent=1, allow_nan=False)
    encoded = base64.b64encode(text.encode()).decode()
    return {
        "kind": kind,
        "file": f"{PurePath(model).stem}.{kind}.json",
        "href": f"data:application/json;base64,{encoded}",
    }

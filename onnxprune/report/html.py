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
from onnxprune.fileio import jsonable
from onnxprune.report import bokeh_plots, plots, tables, text
from onnxprune.report.details import Changed, Details
from onnxprune.report.document import Report, Sweep

CARDS = ("FLOPs", "parameters", "file size", "top-1", "latency", "agreement")


def report_page(report: Report, command: str, machine: Mapping[str, str], plan: Mapping[str, Any] | None) -> str:
    """Return the page of a run.

    Args:
        report: of the run.
        command: the command line, or the call, that led to it.
        machine: names and values that describe the machine.
        plan: the plan as it is written; None where there is none.

    Raises:
        OptionError: Bokeh or Jinja2 is missing.
    """
    details, figures = report.details or Details(), tables.figures(report)
    ops = {layer.name: layer.op for layer in report.layers}
    downloads = {"report": report.to_dict()} | ({} if plan is None else {"plan": dict(plan)})
    return _rendered(
        "report.html.j2",
        report.model,
        command,
        downloads,
        passed=bool(report.verdict),
        summary=text.summary(report.verdict),
        lead=text.result(report),
        told_checks=report.verdict.checks,
        report=report,
        details=details,
        cards=[row for row in figures.texts() if row[0] in CARDS],
        figures=figures,
        sources=text.sources(report),
        shape="Channels, FLOPs and latency" if details.layer_times else "Channels and FLOPs",
        layer_plots=plots.layer_plots(report),
        curve_plots=plots.curve_plots(report.curves),
        curves=tables.curves(report.curves),
        training_plots=plots.training_plots(report),
        training=report.training and tables.looks(report.training),
        trained=report.training and text.training(report.training),
        class_plots=plots.class_plots(details),
        classes=tables.classes(details),
        pictures=[(one, *_told(one)) for one in details.changed if one.picture],
        changed=tables.changed(details),
        short_names=plots.short([one.name.removesuffix(f"/{ops.get(one.name)}") for one in details.groups], 48),
        graph=[asdict(node) for node in details.groups],
        groups=tables.groups(details),
        pins=tables.pins(report.pinned),
        layers=tables.layers(report.layers, details.layer_times),
        edits=tables.edits(report),
        repair=tables.repair(report),
        repaired=text.repair(report.repair),
        settings=tables.pairs("options", "Settings", report.settings),
        made=tables.pairs("made", "Versions and machine", {**report.versions, **machine}),
        bokeh=bokeh_plots.script(),
    )


def _told(one: Changed) -> tuple[str, str]:
    """Return the verdict on a sample, and a text in place of its picture."""
    change = (
        f"was {one.before} ({one.confidence_before:.0f} % sure), is {one.after} ({one.confidence_after:.0f} % sure)"
    )
    if one.label is None:
        return "", f"Sample {one.sample}, {change}"
    verdicts = {one.before: "✗ now wrong", one.after: "✓ now right"}
    return verdicts.get(one.label, "≠ wrong both times"), f"Sample {one.sample} of class {one.label}, {change}"


def sweep_page(found: Sweep, command: str, machine: Mapping[str, str]) -> str:
    """Return the page of a sweep; see `report_page`."""
    return _rendered(
        "sweep.html.j2",
        found.model,
        command,
        {"sweep": found.to_dict()},
        found=found,
        plots=plots.front_plots(found),
        members=tables.members(found),
        made=tables.pairs("made", "Machine", machine),
        bokeh=bokeh_plots.script(),
    )


def check_page(found: Judgement, command: str, machine: Mapping[str, str]) -> str:
    """Return the page of a gate's verdict; see `report_page`."""
    return _rendered(
        "check.html.j2",
        found.candidate,
        command,
        {"check": found.to_dict()},
        found=found,
        passed=bool(found.verdict),
        summary=text.summary(found.verdict),
        lead=f"May {PurePath(found.candidate).name} replace {PurePath(found.baseline).name}?",
        told_checks=[check for check in found.verdict.checks if check.status != "PASSED"],
        checks=tables.checks(found.verdict),
        made=tables.pairs("made", "Machine", machine),
        bokeh="",  # there are no plots
    )


def _rendered(
    template: str, model: str, command: str, downloads: Mapping[str, Mapping[str, Any]], **values: Any
) -> str:
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
        "drawn": bokeh_plots.embedded,
        "embedded": _embedded,
        "told": text.told,
        "sentence": lambda line: line[:1].upper() + line[1:].rstrip(".") + ".",
    }
    folder = resources.files("onnxprune.report") / "templates"
    inlined = {
        name: (folder / file).read_text(encoding="utf-8")
        for name, file in (("css", "page.css"), ("js", "page.js"), ("groups_js", "groups.js"))
    }
    name = PurePath(model)
    files = [_download(kind, name.stem, content) for kind, content in downloads.items()]
    page = environment.get_template(template)
    return page.render(title=name.name, command=command, downloads=files, **inlined, **values)


def _embedded(value: Any) -> str:
    """Write JSON that may stand in a script element: nothing in it can end that, or open a comment."""
    content = json.dumps(jsonable(value), separators=(",", ":"))
    return content.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _download(kind: str, model: str, content: Mapping[str, Any]) -> dict[str, str]:
    encoded = base64.b64encode(json.dumps(jsonable(content), indent=1, allow_nan=False).encode()).decode()
    return {"kind": kind, "file": f"{model}.{kind}.json", "href": f"data:application/json;base64,{encoded}"}

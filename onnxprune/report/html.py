"""The report as one HTML page, which needs no network and contains the report as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import PurePath
from typing import Any

from onnxprune.errors import OptionError
from onnxprune.escaping import visible
from onnxprune.evaluation.gate import Judgement
from onnxprune.fileio import jsonable
from onnxprune.metrics.table import named
from onnxprune.report import bokeh_plots, plots, tables, text
from onnxprune.report.details import Changed, Details
from onnxprune.report.document import Report, Sweep

CARDS = ("agreement", "latency", "file size", "parameters", "FLOPs")
"""Figures that are shown large, beside the leading metric."""


def report_page(report: Report, command: str, machine: Mapping[str, str], plan: Mapping[str, Any] | None) -> str:
    """Return the page of a run.

    Args:
        report: of the run.
        command: the command line, or the call, of the run.
        machine: description of the machine, by name.
        plan: the content of plan.json; None where there is no plan.

    Raises:
        OptionError: Bokeh or Jinja2 is missing.
    """
    details = report.details or Details()
    ops = {layer.name: layer.op for layer in report.layers}
    return _rendered(
        "report.html.j2",
        report.model,
        command,
        {"report": report.to_dict()} | ({} if plan is None else {"plan": dict(plan)}),
        report=report,
        details=details,
        cards=[row for row in tables.figures(report).texts() if row[0] in (*CARDS, named(report.lead).label)],
        pictures=[(one, *_describe(one)) for one in details.changed if one.picture],
        short_names=plots.short([one.name.removesuffix(f"/{ops.get(one.name)}") for one in details.groups], 48),
        graph=[asdict(node) for node in details.groups],
        machine=machine,
        bokeh=bokeh_plots.script(),
    )


def _describe(one: Changed) -> tuple[str, str]:
    """Return the verdict on a sample, and the alternative text of its picture."""
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
        machine=machine,
        bokeh=bokeh_plots.script(),
    )


def check_page(found: Judgement, command: str, machine: Mapping[str, str]) -> str:
    """Return the page of a gate's verdict; see `report_page`."""
    name, baseline = PurePath(found.candidate).name, PurePath(found.baseline).name
    lead = f"May {name} replace {baseline}?" if baseline else f"Does {name} hold its limits?"
    return _rendered(
        "check.html.j2",
        found.candidate,
        command,
        {"check": found.to_dict()},
        found=found,
        lead=lead,
        machine=machine,
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
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"statuses": tables.STATUSES, "tables": tables, "plots": plots, "text": text}
    environment.filters |= {
        "drawn": bokeh_plots.embedded,
        "embedded": _embedded,
        "option_value": text.option_value,
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


def _shown(value: Any) -> Any:
    """Return what a template inserts: names are made visible, what is marked as safe stays."""
    return value if hasattr(value, "__html__") or value is None else visible(str(value))


def _embedded(value: Any) -> str:
    """Return JSON for a script element, escaped so that it can neither end the element nor open a comment."""
    content = json.dumps(_visible(jsonable(value)), separators=(",", ":"))
    return content.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _visible(value: Any) -> Any:
    """Make names in JSON visible, which a script puts into the page."""
    if isinstance(value, dict):
        return {key: _visible(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_visible(entry) for entry in value]
    return visible(value, keep="\n\t") if isinstance(value, str) else value


def _download(kind: str, model: str, content: Mapping[str, Any]) -> dict[str, str]:
    encoded = base64.b64encode(json.dumps(jsonable(content), indent=1, allow_nan=False).encode()).decode()
    return {"kind": kind, "file": f"{model}.{kind}.json", "href": f"data:application/json;base64,{encoded}"}

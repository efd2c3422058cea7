"""Write reports; the ending of the file name selects the format."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from onnxprune.errors import OptionError
from onnxprune.evaluation.gate import Judgement
from onnxprune.fileio import atomic_write, jsonable
from onnxprune.report import markdown
from onnxprune.report.document import Report, Sweep
from onnxprune.runtime import machine
from onnxprune.runtime.session import DEFAULT

ENDINGS = (".html", ".md", ".json")
Found = Report | Sweep | Judgement


def check_format(path: Path) -> None:
    """Refuse a report that cannot be written, before the run starts.

    Raises:
        OptionError: the format is unknown, or a package is missing.
    """
    if path.suffix.lower() not in ENDINGS:
        hint = f"give a name that ends in {', '.join(ENDINGS)}"
        raise OptionError(f"--report {path} is of an unknown format", hint=hint)
    if path.suffix.lower() == ".html":
        missing = [name for name in ("jinja2", "bokeh") if importlib.util.find_spec(name) is None]
        if missing:
            raise OptionError(f"a report in HTML needs {' and '.join(missing)}", hint="pip install 'onnxprune[report]'")


def call(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a call of the Python interface as text, without arguments that are None or False; arrays appear as their type."""
    given = {key: value for key, value in arguments.items() if key not in ("on_stage", "command", "fields")}
    given |= arguments.get("fields", {})
    parts = [f"{key}={_argument(value)}" for key, value in given.items() if value is not None and value is not False]
    return f"onnxprune.{name}({', '.join(parts)})"


def _argument(value: Any) -> str:
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    if isinstance(value, str | int | float) or is_dataclass(value):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_argument(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_argument, value)) + "]"
    return f"<{type(value).__name__}>"


def save(path: Path, found: Found, command: str, plan: Mapping[str, Any] | None = None) -> None:
    """Write a report in the format of the file name, one of `ENDINGS`.

    Args:
        path: of the file.
        found: the result to report.
        command: the command line, or the call, of the run.
        plan: the content of plan.json; None where there is no plan.

    Raises:
        OptionError: the format is unknown, or a package is missing.
        OutputError: the file cannot be written.
    """
    check_format(path)
    with atomic_write(path) as temporary:
        if path.suffix.lower() == ".json":
            content = json.dumps(jsonable(found.to_dict()), indent=1, allow_nan=False) + "\n"
        else:
            content = _markdown(found, command) if path.suffix.lower() == ".md" else _html(found, command, plan)
        temporary.write_text(content, encoding="utf-8")


def _markdown(found: Found, command: str) -> str:
    if isinstance(found, Sweep):
        return markdown.sweep_text(found, command)
    if isinstance(found, Judgement):
        return markdown.check_text(found.verdict, found.candidate, found.baseline)
    return markdown.report_text(found, command)


def _html(found: Found, command: str, plan: Mapping[str, Any] | None) -> str:
    from onnxprune.report import html  # only here: a template and Bokeh take time to load

    where = machine.environment(DEFAULT, 0)
    timed = found.latency if isinstance(found, Report) else None
    about = {
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": where.processor,
        "runtime": f"onnxruntime {where.runtime}, {where.provider if timed is None else timed.provider}",
    }
    if isinstance(found, Sweep):
        return html.sweep_page(found, command, about)
    if isinstance(found, Judgement):
        return html.check_page(found, command, about)
    return html.report_page(found, command, about, plan)

"""`onnxprune check`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import onnxprune
from onnxprune.cli.common import DATA, MEASURE_ON_SEVERAL, PATH, REPORT, TIMEOUT, WRITTEN, command_line
from onnxprune.cli.delivery import Write, finish
from onnxprune.cli.group import Command, examples
from onnxprune.cli.options import JUDGED, LIMITS, SHAPE
from onnxprune.cli.terminal import TERMINAL, Terminal
from onnxprune.errors import FAILED, OptionError
from onnxprune.evaluation.policy import init
from onnxprune.fileio import atomic_write, jsonable

if TYPE_CHECKING:
    from onnxprune.evaluation.policy import Policy


@click.command(
    cls=Command,
    epilog=examples(
        "onnxprune check small.onnx --baseline model.onnx --data eval.npz --max-drop 0.5 --min-speedup 1.3",
        "onnxprune check detector.onnx --data images/ --labels coco.json --preprocess letterbox.toml --min map=0.40 --max latency=5ms",
        "onnxprune check --init policy.toml",
        "onnxprune check quantized.onnx --baseline model.onnx --data images/ --preprocess imagenet --policy policy.toml --junit check.xml",
    ),
)
@click.argument("candidate", type=PATH, required=False)
@click.option(
    "--baseline",
    type=PATH,
    help="Model that the candidate replaces; without it, limits are on amounts: --min map=0.40.",
)
@DATA
@JUDGED
@SHAPE
@click.option("--init", "template", type=WRITTEN, help="Write a commented policy here, and stop.")
@LIMITS
@click.option("--strict", is_flag=True, help="Count undecided checks as failed.")
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME[,KEY=VALUE…]",
    help="Execution provider that must load the candidate; may be repeated. The first one runs both models. "
    "Default: that of the policy, else CPU.",
)
@click.option("--junit", type=WRITTEN, help="Write JUnit XML here.")
@click.option("--sarif", type=WRITTEN, help="Write a SARIF log here.")
@click.option("--markdown", type=WRITTEN, help="Write a Markdown summary for a pull request here.")
@click.option("--github", is_flag=True, help="Print annotations for GitHub Actions as well.")
@REPORT
@MEASURE_ON_SEVERAL
@TIMEOUT
@TERMINAL
def check(
    candidate: Path | None,
    baseline: Path | None,
    template: Path | None,
    policy: Policy,
    strict: bool,
    providers: tuple[str, ...],
    junit: Path | None,
    sarif: Path | None,
    markdown: Path | None,
    github: bool,
    report: Path | None,
    terminal: Terminal,
    **asked: Any,
) -> None:
    """Check a candidate against the model that it replaces.

    Exit code 3 where a limit fails.
    """
    from importlib.metadata import version

    from onnxprune.report import ci_formats, console, saving
    from onnxprune.report.markdown import check_text

    if template is not None:
        init(template)
        terminal.show(lambda: {"written": str(template)}, lambda: console.written(template))
        return
    if candidate is None:
        raise OptionError("Missing model", hint="give a CANDIDATE, and --baseline MODEL where it replaces one")
    if report is not None:
        saving.check_format(report)
    with terminal.progress() as on_stage:
        result = onnxprune.check(
            candidate,
            baseline,
            strict=strict,
            limits=policy.limits,
            providers=providers or (policy.provider or "CPU",),
            on_stage=on_stage,
            **asked,
        )
    verdict = result.verdict
    log = ci_formats.sarif(verdict, str(candidate), version("onnxprune"))

    def show() -> None:
        terminal.show(result.report.to_dict, lambda: console.verdict_parts(verdict))
        for line in ci_formats.github(verdict, str(candidate)) if github else ():
            click.echo(line, err=terminal.as_json)

    finish(
        show,
        [
            (junit, _text(lambda: ci_formats.junit(verdict, str(candidate)))),
            (sarif, _text(lambda: json.dumps(jsonable(log), indent=1))),
            (markdown, _text(lambda: check_text(verdict, str(candidate), str(baseline or "")))),
            (report, terminal.written(lambda path: saving.save(path, result.report, command_line()))),
        ],
    )
    if not verdict:
        sys.exit(FAILED)


def _text(made: Callable[[], str]) -> Write:
    """Return what writes a text."""

    def write(path: Path) -> None:
        with atomic_write(path) as temporary:
            temporary.write_text(made(), encoding="utf-8")

    return write

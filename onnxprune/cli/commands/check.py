"""`onnxprune check`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

import onnxprune
from onnxprune.cli.common import DATA, MEASURE, PATH, REPORT, command_line
from onnxprune.cli.dials import LIMITS
from onnxprune.cli.group import FAILED, examples
from onnxprune.cli.terminal import TERMINAL, Terminal
from onnxprune.errors import OptionError
from onnxprune.evaluation.policy import init
from onnxprune.output import check_destination, plain, staged


@click.command(
    epilog=examples(
        "onnxprune check small.onnx --baseline model.onnx --data eval.npz --max-drop 0.5 --min-speedup 1.3",
        "onnxprune check --init policy.toml",
        "onnxprune check quantised.onnx --baseline model.onnx --data images/ --preprocess imagenet --policy policy.toml --junit check.xml",
    )
)
@click.argument("candidate", type=PATH, required=False)
@click.option("--baseline", type=PATH, help="The model the candidate should replace.")
@DATA
@click.option("--init", "template", type=PATH, help="Write a commented policy here, and do nothing else.")
@LIMITS
@click.option("--strict", is_flag=True, help="Checks that are undecided fail as well.")
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME",
    help="Provider of onnxruntime that it must load on; may be repeated. The first runs it.",
)
@click.option("--junit", type=PATH, help="Write JUnit XML here.")
@click.option("--sarif", type=PATH, help="Write a SARIF log here.")
@click.option("--markdown", type=PATH, help="Write a summary for a pull request here.")
@click.option("--github", is_flag=True, help="Print annotations for GitHub Actions as well.")
@REPORT
@MEASURE
@TERMINAL
def check(
    candidate: Path | None,
    baseline: Path | None,
    template: Path | None,
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
    """Judge a candidate against the model it should replace; exit code 3 when a limit fails."""
    from importlib.metadata import version

    from onnxprune.report import ci_formats, console, saving
    from onnxprune.report import markdown as markdowns

    if template is not None:
        init(template)
        click.echo(f"written: {template}")
        return
    if candidate is None or baseline is None:
        raise OptionError("Missing models: check needs two", hint="give a CANDIDATE and --baseline MODEL")
    for target in (junit, sarif, markdown, report):
        if target is not None:
            check_destination(target, candidate, baseline)
    if report is not None:
        saving.check_format(report)
        saving.refuse_same(report, junit, sarif, markdown)
    with terminal.progress() as on_stage:
        result = onnxprune.check(
            candidate, baseline, strict=strict, providers=providers or ("CPU",), on_stage=on_stage, **asked
        )
    verdict = result.verdict
    log = plain(ci_formats.sarif(verdict, str(candidate), version("onnxprune")))
    _write(junit, ci_formats.junit(verdict, str(candidate)))
    _write(sarif, json.dumps(log, indent=1))
    _write(markdown, markdowns.check_text(verdict, str(candidate), str(baseline)))
    if report is not None:
        saving.save(report, result.report, command_line())
    terminal.show(result.report.to_dict, lambda: [*console.verdict_parts(verdict), *console.written(report)])
    if github:
        for line in ci_formats.github(verdict, str(candidate)):
            click.echo(line, err=terminal.as_json)
    if not verdict:
        sys.exit(FAILED)


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        with staged(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

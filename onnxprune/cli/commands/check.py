"""`onnxprune check`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.common import DATA, MEASURE, PATH, REPORT, command_line
from onnxprune.cli.family import family
from onnxprune.cli.group import FAILED, examples
from onnxprune.cli.terminal import TERMINAL, Terminal
from onnxprune.errors import OptionError
from onnxprune.output import plain

if TYPE_CHECKING:
    from onnxprune.evaluation.benchmark import BenchmarkConfig
    from onnxprune.evaluation.policy import GateLimits
    from onnxprune.types import Verdict


def _limits(values: dict[str, Any]) -> GateLimits:
    from onnxprune.evaluation import policy as policies
    from onnxprune.evaluation.policy import GateLimits

    policy = values.pop("policy")
    for name in ("max_size", "max_memory", "max_peak_memory"):
        values[name] = None if values[name] is None else values[name] * 1e6
    limits = GateLimits(**{**values, "domains": values["domains"] or None})
    return limits if policy is None else policies.merged(policies.read(policy), limits)


LIMITS = family(
    "limits",
    _limits,
    click.option("--policy", type=PATH, help="TOML file with limits; options go before what it says."),
    click.option(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="Points of top-1 (without labels: of agreement) that may be lost.",
    ),
    click.option(
        "--max-class-drop",
        type=float,
        metavar="POINTS",
        help="Points of recall that any class may lose, beyond chance.",
    ),
    click.option("--min-agreement", type=float, metavar="PERCENT", help="Samples with the same top-1, at least."),
    click.option("--min-cosine", type=float, metavar="C", help="Cosine of the outputs, at least."),
    click.option("--max-kl", type=float, metavar="NATS", help="Divergence of the outputs, at most."),
    click.option(
        "--max-calibration-rise", type=float, metavar="POINTS", help="Rise of the expected calibration error, at most."
    ),
    click.option(
        "--min-speedup",
        type=float,
        metavar="RATIO",
        help="Latency of the baseline / latency of the candidate, at least.",
    ),
    click.option("--max-latency", type=float, metavar="MS", help="Milliseconds of a run, at most."),
    click.option("--max-size", type=float, metavar="MB", help="Size of the file in megabytes, at most."),
    click.option("--max-params", type=float, metavar="N", help="Parameters, at most."),
    click.option("--max-memory", type=float, metavar="MB", help="Activations alive at once in megabytes, at most."),
    click.option(
        "--max-peak-memory",
        type=float,
        metavar="MB",
        help="Memory that a process takes to load and run it in megabytes, at most.",
    ),
    click.option("--max-opset", type=int, metavar="N", help="Opset, at most."),
    click.option(
        "--domain",
        "domains",
        multiple=True,
        metavar="NAME",
        help="Operator domain that is allowed beside ai.onnx; may be repeated.",
    ),
)
"""What a candidate must keep: `limits`."""


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
    data: Path | None,
    preprocess: str | None,
    template: Path | None,
    limits: GateLimits,
    strict: bool,
    providers: tuple[str, ...],
    junit: Path | None,
    sarif: Path | None,
    markdown: Path | None,
    github: bool,
    report: Path | None,
    measure: BenchmarkConfig,
    terminal: Terminal,
) -> None:
    """Judge a candidate against the model it should replace; exit code 3 when a limit fails."""
    from onnxprune.evaluation import gate, policy
    from onnxprune.evaluation.gate import Judgement
    from onnxprune.output import check_destination
    from onnxprune.report import ci_formats, console, saving

    if template is not None:
        policy.init(template)
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
    named = tuple(f"{name.removesuffix('ExecutionProvider')}ExecutionProvider" for name in providers or ("CPU",))
    with terminal.progress() as on_stage:
        verdict = gate.check(
            candidate,
            baseline,
            data=data,
            preprocess=preprocess,
            limits=limits,
            measure=measure,
            providers=named,
            on_stage=on_stage,
        )
    verdict = gate.strict(verdict) if strict else verdict
    _write_formats(verdict, str(candidate), str(baseline), junit, sarif, markdown)
    if report is not None:
        saving.save(report, Judgement(str(candidate), str(baseline), verdict), command_line())
    terminal.show(lambda: gate.to_dict(verdict), lambda: [*console.verdict_parts(verdict), *console.written(report)])
    if github:
        for line in ci_formats.github(verdict, str(candidate)):
            click.echo(line, err=terminal.as_json)
    if not verdict:
        sys.exit(FAILED)


def _write_formats(
    verdict: Verdict, candidate: str, baseline: str, junit: Path | None, sarif: Path | None, markdown: Path | None
) -> None:
    from importlib.metadata import version

    from onnxprune.output import staged
    from onnxprune.report import ci_formats
    from onnxprune.report import markdown as markdowns

    texts: dict[Path, str] = {}
    if junit is not None:
        texts[junit] = ci_formats.junit(verdict, candidate)
    if sarif is not None:
        texts[sarif] = json.dumps(plain(ci_formats.sarif(verdict, candidate, version("onnxprune"))), indent=1)
    if markdown is not None:
        texts[markdown] = markdowns.check_text(verdict, candidate, baseline)
    for path, text in texts.items():
        with staged(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

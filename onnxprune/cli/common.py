"""Options of several commands (models, data, timing, workers), and the end of a command with a report."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.group import FAILED
from onnxprune.cli.parameters import Decorator, File, Words, option_group, together
from onnxprune.cli.terminal import Terminal
from onnxprune.options import PRESETS
from onnxprune.runtime.providers import PROVIDERS

if TYPE_CHECKING:
    from onnxprune.data.preprocess import Preprocess
    from onnxprune.evaluation.benchmark import BenchmarkConfig
    from onnxprune.report.document import Report

PATH = File()
MODEL = click.argument("model", type=PATH)
PLOT = click.option("--plot", type=PATH, help="Draw the result: .svg, .png or .pdf; needs matplotlib.")
EVALUATION = click.option("--eval", "evaluation", type=PATH, help="Evaluation data; the default is the --data samples.")


def _preprocess(values: dict[str, Any]) -> Preprocess | str | None:
    """Return the preprocessing, which also says whether images that cannot be read are left out."""
    name: str | None = values["preprocess"]
    if name is None or not values["skip_bad"]:
        return name
    from onnxprune.data.preprocess import load_preprocess

    return replace(load_preprocess(name), skip_bad=True)


DATA = together(
    click.option(
        "--data",
        type=File("generated"),
        help="Samples: a .npz (arrays by input name, optional `labels`), a .npy, a folder of images, FILE.py:FUNCTION that returns "
        "arrays or batches, or `generated`. "
        "Without --data, `prune`, `plan` and `sweep` generate inputs.",
    ),
    option_group(
        "preprocess",
        _preprocess,
        click.option(
            "--preprocess",
            type=Words(PRESETS, file=True),
            metavar="PRESET|TOML",
            help="Scaling of the values: unit, imagenet, tf, or a TOML file.",
        ),
        click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be read; the report counts them."),
    ),
)
LATENCY_TABLE = click.option(
    "--latency-table",
    type=PATH,
    help="Latency table of the target machine, written there by `bench --latency-table`; without it, a latency target "
    "measures one on this machine.",
)
TIMINGS = click.option(
    "--timings",
    type=PATH,
    help="Table of the times that decisions are taken from: read where the file exists, else written. Equal inputs, options and "
    "timings give equal bytes.",
)
WORKERS = together(
    click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Number of parallel processes."),
    click.option(
        "--scheduler", metavar="ADDRESS", help="Dask scheduler, in place of --jobs; its workers need the same files."
    ),
)
REPORT = click.option(
    "--report",
    type=PATH,
    help="Write a report here: .html (one page with plots; pip install 'onnxprune[report]'), .md or .json.",
)


def output(text: str) -> Decorator:
    """Return the option for the output of a command."""
    return click.option("--output", "-o", type=PATH, required=True, help=text)


def _benchmark_config(values: dict[str, Any]) -> BenchmarkConfig:
    from onnxprune.evaluation.benchmark import BenchmarkConfig

    return BenchmarkConfig(latency=not values.pop("no_latency", False), **values)


PROVIDER = click.option(
    "--provider",
    metavar="NAME[,KEY=VALUE…]",
    type=Words(tuple(PROVIDERS)),
    default="CPU",
    show_default=True,
    help=f"Execution provider that runs and times the models, with its options: {', '.join(PROVIDERS)}.",
)
ALLOW_FALLBACK = click.option(
    "--allow-fallback",
    "fallback",
    is_flag=True,
    help="Run nodes that the provider does not take on the CPU; without it, they are an error.",
)
_RUNS = (
    click.option("--batch", type=int, default=1, show_default=True, help="Samples per timed run."),
    click.option("--threads", type=int, default=1, show_default=True, help="Threads of onnxruntime; 0: its default."),
    click.option("--runs", type=int, default=200, show_default=True, help="Timed runs of each model."),
    click.option("--warmup", type=int, default=20, show_default=True, help="Untimed runs before the timed ones."),
)
RUNS = (*_RUNS, PROVIDER, ALLOW_FALLBACK)
TIMING = option_group("measure", _benchmark_config, *RUNS)
"""Benchmark config for timing: argument `measure`."""
_EVALUATED = (
    click.option("--eval-batch", type=int, default=64, show_default=True, help="Samples per batch of the evaluation."),
    click.option("--no-latency", is_flag=True, help="Do not time the models."),
)
MEASURE = option_group("measure", _benchmark_config, *RUNS, *_EVALUATED)
"""Benchmark config for timing and evaluation: argument `measure`."""
MEASURE_ON_SEVERAL = option_group("measure", _benchmark_config, *_RUNS, ALLOW_FALLBACK, *_EVALUATED)
"""The same for a command with a `--provider` of its own."""
EVALUATED_ON = option_group("measure", _benchmark_config, PROVIDER, ALLOW_FALLBACK)
"""Benchmark config of a command that times nothing: argument `measure`."""


def command_line() -> str:
    """Return the command line, quoted for a shell."""
    return shlex.join(["onnxprune", *sys.argv[1:]])


def conclude(terminal: Terminal, found: Report, report: Path | None) -> None:
    """Show the report of a run; exit with `FAILED` where its verdict is FAILED."""
    from onnxprune.report import console, text

    terminal.explain(lambda: text.decisions(found))
    terminal.show(found.to_dict, lambda: [*console.report_parts(found), *console.written(report)])
    if not found.verdict:
        sys.exit(FAILED)


def draw(plots: Any, path: Path | None) -> str | None:
    """Draw plots into a file; return its name, None where there is none."""
    if path is None:
        return None
    from onnxprune.report import matplotlib_plots

    matplotlib_plots.draw(plots(), path)
    return str(path)

"""Options of several commands (models, data, timing, workers), and the end of a command with a report."""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.delivery import Write, attempt, finish
from onnxprune.cli.parameters import Decorator, File, Words, option_group, together
from onnxprune.cli.terminal import Terminal
from onnxprune.errors import FAILED
from onnxprune.options import PRESETS
from onnxprune.runtime.providers import PROVIDERS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from onnxprune.data.preprocess import Preprocess
    from onnxprune.evaluation.benchmark import BenchmarkConfig
    from onnxprune.pipeline.results import ModelResult
    from onnxprune.report.plots import Plot

PATH = File()
WRITTEN = File(written=True)
MODEL = click.argument("model", type=PATH)


def _limit_runs(ctx: click.Context, parameter: click.Parameter, seconds: float | None) -> None:
    """Set the time limit of this command, and of its worker processes."""
    if seconds is None:
        return
    from onnxprune.runtime.limits import VARIABLE

    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(seconds)
    ctx.call_on_close(lambda: os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before}))


TIMEOUT = click.option(
    "--timeout",
    type=click.FloatRange(0),
    metavar="SECONDS",
    expose_value=False,
    callback=_limit_runs,
    help="Seconds after which a run of a model that repeats nodes (Loop, Scan) is ended; 0: never. Default: 60.",
)
PLOT = click.option("--plot", type=WRITTEN, help="Draw the result: .svg, .png or .pdf; needs matplotlib.")
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
    type=WRITTEN,
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
    type=WRITTEN,
    help="Write a report here: .html (one page with plots; pip install 'onnxprune[report]'), .md or .json.",
)


def output(text: str, *holds: str) -> Decorator:
    """Return the option for the output of a command; `holds`: patterns of the names of the files in a folder."""
    return click.option("--output", "-o", type=File(written=True, holds=holds), required=True, help=text)


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


def conclude(terminal: Terminal, call: Callable[[], ModelResult], report: Path | None) -> None:
    """Show the result of a call, whose report is written there; exit with `FAILED` where its verdict is FAILED."""
    from onnxprune.report import console, text

    result, failure = attempt(call)
    found, page = result.report, report if failure is None else None
    terminal.explain(lambda: text.decisions(found))
    written = [*result.files, *([] if page is None else [page])]

    def parts() -> list[RenderableType]:
        return [*console.report_parts(found), *itertools.chain.from_iterable(map(console.written, written))]

    finish(
        lambda: terminal.show(found.to_dict, parts),
        written=written,
        failure=failure,
    )
    if not found.verdict:
        sys.exit(FAILED)


def check_plot(path: Path | None) -> None:
    """Refuse a plot that cannot be drawn, before the run starts."""
    if path is not None:
        from onnxprune.report import matplotlib_plots

        matplotlib_plots.check_format(path)


def drawn(plots: Callable[[], Sequence[Plot]]) -> Write:
    """Return what draws plots into a file."""

    def write(path: Path) -> None:
        from onnxprune.report import matplotlib_plots

        matplotlib_plots.draw(plots(), path)

    return write

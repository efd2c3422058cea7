"""Options of several commands: models, data, timing, workers."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.family import family, together
from onnxprune.cli.values import File, Words
from onnxprune.options import PRESETS, Options

if TYPE_CHECKING:
    from onnxprune.evaluation.benchmark import BenchmarkConfig

PATH = File()
MODEL = click.argument("model", type=PATH)
SEED = click.option("--seed", type=int, default=Options().seed, show_default=True, help="For everything random.")
EVALUATION = click.option("--eval", "evaluation", type=PATH, help="Data to verify on; those of --data when not given.")
DATA = together(
    click.option(
        "--data",
        type=File("generated"),
        help="A .npz (arrays by input name, optional `labels`), a .npy, a folder of images, or `generated`: made-up inputs.",
    ),
    click.option(
        "--preprocess",
        type=Words(PRESETS, file=True),
        metavar="PRESET|TOML",
        help="How values are scaled: unit, imagenet, tf, or a TOML file.",
    ),
)
LATENCY_TABLE = click.option(
    "--latency-table",
    type=PATH,
    help="Table that `bench --latency-table` measured on the target machine; else one is measured here where latency is a target.",
)
WORKERS = together(
    click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes that work at a time."),
    click.option(
        "--scheduler", metavar="ADDRESS", help="Of Dask, in place of --jobs; its workers need to see the same files."
    ),
)
REPORT = click.option(
    "--report",
    type=PATH,
    help="Write a report here: .html (one page with plots; pip install 'onnxprune[report]'), .md or .json.",
)


def _measure(values: dict[str, Any]) -> BenchmarkConfig:
    from onnxprune.evaluation.benchmark import BenchmarkConfig

    return BenchmarkConfig(latency=not values.pop("no_latency", False), **values)


RUNS = (
    click.option("--batch", type=int, default=1, show_default=True, help="Samples per timed run."),
    click.option(
        "--threads", type=int, default=1, show_default=True, help="Threads of onnxruntime; 0: its own choice."
    ),
    click.option("--runs", type=int, default=200, show_default=True, help="Timed runs of each model."),
    click.option("--warmup", type=int, default=20, show_default=True, help="Runs before, not counted."),
)
TIMING = family("measure", _measure, *RUNS)
"""How a model is timed: `measure`."""
MEASURE = family(
    "measure",
    _measure,
    *RUNS,
    click.option(
        "--eval-batch", type=int, default=64, show_default=True, help="Samples per batch when accuracy is measured."
    ),
    click.option("--no-latency", is_flag=True, help="Don't time the models."),
)
"""The same, and how accuracy is measured."""


def command_line() -> str:
    """Return the command line, as a shell takes it."""
    return shlex.join(["onnxprune", *sys.argv[1:]])

"""`onnxprune bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import onnxprune
from onnxprune.cli.common import PATH, TIMEOUT, TIMING, WRITTEN
from onnxprune.cli.delivery import attempt, finish
from onnxprune.cli.group import Command, examples
from onnxprune.cli.options import SHAPE
from onnxprune.cli.terminal import TERMINAL, Terminal

if TYPE_CHECKING:
    from onnxprune.evaluation.benchmark import BenchmarkConfig
    from onnxprune.pipeline.results import BenchResult


@click.command(
    cls=Command,
    epilog=examples(
        "onnxprune bench model.onnx small.onnx --threads 2 --batch 8",
        "onnxprune bench model.onnx --provider OpenVINO,device_type=CPU",
        "onnxprune bench model.onnx --profile-on profile.json    # times that were measured elsewhere",
        "onnxprune bench model.onnx --latency-table table.json    # then, elsewhere: prune model.onnx --latency-table table.json",
    ),
)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH, required=False)
@click.option(
    "--layers", type=click.IntRange(0), default=10, show_default=True, help="Number of layers to show, slowest first."
)
@click.option(
    "--latency-table", type=WRITTEN, help="Time each layer at fewer channels, and write the table here for `prune`."
)
@click.option(
    "--profile-on",
    type=PATH,
    help="Show the times of A that were measured elsewhere: a latency table, an onnxruntime profile (JSON), "
    "a `trtexec --exportProfile` file, or a CSV of node,microseconds.",
)
@SHAPE
@TIMING
@TIMEOUT
@TERMINAL
def bench(
    a: Path,
    b: Path | None,
    layers: int,
    latency_table: Path | None,
    profile_on: Path | None,
    shape: dict[str, tuple[int, ...]],
    measure: BenchmarkConfig,
    terminal: Terminal,
) -> None:
    """Time a model, or two in alternating runs.

    The inputs are random; the result has the latency of the whole model and of each layer.
    """
    from onnxprune.report import console

    def call() -> BenchResult:
        with terminal.progress() as on_stage:
            return onnxprune.bench(
                a,
                b,
                latency_table=latency_table,
                profile_on=profile_on,
                shape=shape,
                measure=measure,
                on_stage=on_stage,
            )

    result, failure = attempt(call)
    found, table = result.report, result.table
    path = latency_table if failure is None else None
    finish(
        lambda: terminal.show(
            lambda: {**found.to_dict(), **({} if table is None else {"latency_table": table.summary()})},
            lambda: [
                *console.bench_parts(found, str(a), str(b), layers),
                *([] if table is None or path is None else console.latency_table_parts(table, path)),
            ],
        ),
        written=[] if path is None else [path],
        failure=failure,
    )

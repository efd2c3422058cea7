"""`onnxprune plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.cli.common import DATA, LATENCY_TABLE, MODEL, PATH, TIMING
from onnxprune.cli.dials import PLANNED
from onnxprune.cli.group import examples
from onnxprune.cli.terminal import TERMINAL, Terminal
from onnxprune.options import Options

if TYPE_CHECKING:
    from onnxprune.evaluation.benchmark import BenchmarkConfig


@click.command(
    epilog=examples(
        "onnxprune plan model.onnx -o plan.json --reduce flops=50%",
        "onnxprune plan model.onnx -o plan.json --threshold 0.2 --round-to 1",
    )
)
@MODEL
@click.option("--output", "-o", type=PATH, required=True, help="Where to write the plan.")
@PLANNED
@DATA
@LATENCY_TABLE
@TIMING
@TERMINAL
def plan(
    model: Path,
    output: Path,
    options: Options,
    data: Path | None,
    preprocess: str | None,
    latency_table: Path | None,
    measure: BenchmarkConfig,
    terminal: Terminal,
) -> None:
    """Choose what would go, and write only the plan; `prune --plan` replays it."""
    from onnxprune import plan_file
    from onnxprune.analysis import layers_of, pinned_of
    from onnxprune.output import check_destination
    from onnxprune.reforming import choose
    from onnxprune.report import console, text

    check_destination(output, model)
    with terminal.progress() as on_stage:
        whole, found = choose.plan(model, options, data, preprocess, on_stage, measure, latency_table)
    chosen, left = found.choice.plan, found.base.analysis
    plan_file.write(output, chosen, left.trace, model.name)
    terminal.explain(lambda: [*text.settings(chosen.settings), *text.pins(pinned_of(left.trace))])
    terminal.show(
        lambda: plan_file.to_dict(chosen, left.trace, model.name),
        lambda: console.plan_parts(layers_of(left, chosen.keep, whole), chosen, str(output)),
    )

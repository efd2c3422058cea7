"""`onnxprune plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import onnxprune
from onnxprune.cli.common import DATA, LATENCY_TABLE, MODEL, TIMING, output
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
@output("Where to write the plan.")
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
    from onnxprune.graph.analysis import pinned_of
    from onnxprune.report import console, text

    with terminal.progress() as on_stage:
        found = onnxprune.plan(
            model,
            output=output,
            data=data,
            preprocess=preprocess,
            latency_table=latency_table,
            measure=measure,
            on_stage=on_stage,
            options=options,
        )
    notes = [f"note: {note}" for note in found.notes]
    terminal.explain(lambda: [*text.settings(found.plan.settings), *text.pins(pinned_of(found.analysis.trace))])
    terminal.show(lambda: found.report, lambda: [*console.plan_parts(found.layers, found.plan, str(output)), *notes])

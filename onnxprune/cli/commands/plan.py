"""`onnxprune plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import onnxprune
from onnxprune.cli.common import DATA, LATENCY_TABLE, MODEL, TIMEOUT, TIMING, TIMINGS, output
from onnxprune.cli.delivery import attempt, finish
from onnxprune.cli.group import Command, examples
from onnxprune.cli.options import JUDGED, PLANNED
from onnxprune.cli.terminal import TERMINAL, Terminal

if TYPE_CHECKING:
    from onnxprune.pipeline.results import PlanResult


@click.command(
    cls=Command,
    epilog=examples(
        "onnxprune plan model.onnx -o plan.json --reduce flops=50%",
        "onnxprune plan model.onnx -o plan.json --threshold 0.2 --round-to 1",
    ),
)
@MODEL
@output("Where to write the plan.")
@PLANNED
@DATA
@JUDGED
@LATENCY_TABLE
@TIMINGS
@TIMING
@TIMEOUT
@TERMINAL
def plan(model: Path, output: Path, terminal: Terminal, **asked: Any) -> None:
    """Select channels and edits, and write only the plan.

    `prune --plan` replays it.
    """
    from onnxprune.graph.analysis import pinned_of
    from onnxprune.report import console, text

    def call() -> PlanResult:
        with terminal.progress() as on_stage:
            return onnxprune.plan(model, output=output, on_stage=on_stage, **asked)

    found, failure = attempt(call)
    path = output if failure is None else None
    notes = [f"note: {note}" for note in found.notes]
    terminal.explain(lambda: [*text.settings(found.plan.settings), *text.pins(pinned_of(found.analysis.trace))])
    finish(
        lambda: terminal.show(
            lambda: found.report, lambda: [*console.plan_parts(found.layers, found.plan, path), *notes]
        ),
        written=[] if path is None else [path],
        failure=failure,
    )

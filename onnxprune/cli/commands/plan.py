"""`onnxprune plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import onnxprune
from onnxprune.cli.common import DATA, LATENCY_TABLE, MODEL, TIMING, TIMINGS, output
from onnxprune.cli.group import examples
from onnxprune.cli.options import JUDGED, PLANNED
from onnxprune.cli.terminal import TERMINAL, Terminal


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
@JUDGED
@LATENCY_TABLE
@TIMINGS
@TIMING
@TERMINAL
def plan(model: Path, output: Path, terminal: Terminal, **asked: Any) -> None:
    """Select channels and edits, and write only the plan.

    `prune --plan` replays it.
    """
    from onnxprune.graph.analysis import pinned_of
    from onnxprune.report import console, text

    with terminal.progress() as on_stage:
        found = onnxprune.plan(model, output=output, on_stage=on_stage, **asked)
    notes = [f"note: {note}" for note in found.notes]
    terminal.explain(lambda: [*text.settings(found.plan.settings), *text.pins(pinned_of(found.analysis.trace))])
    terminal.show(lambda: found.report, lambda: [*console.plan_parts(found.layers, found.plan, str(output)), *notes])

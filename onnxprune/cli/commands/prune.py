"""`onnxprune prune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import onnxprune
from onnxprune.cli.common import (
    DATA,
    EVALUATION,
    LATENCY_TABLE,
    MEASURE,
    MODEL,
    PATH,
    REPORT,
    TIMEOUT,
    TIMINGS,
    WRITTEN,
    command_line,
    conclude,
    output,
)
from onnxprune.cli.group import Command, examples
from onnxprune.cli.options import CHECKPOINT, JUDGED, PLANNED, RESUME, kept, trained
from onnxprune.cli.terminal import TERMINAL, Terminal

if TYPE_CHECKING:
    from onnxprune.pipeline.results import ModelResult


@click.command(
    cls=Command,
    epilog=examples(
        "onnxprune prune model.onnx -o small.onnx --data data.npz --reduce flops=50%",
        "onnxprune prune model.onnx -o small.onnx --data images/ --preprocess imagenet --limit flops=300M --ignore 'head*'",
        "onnxprune prune model.onnx -o small.onnx --schedule progressive --steps 8 --reduce params=40%",
        "onnxprune prune model.onnx -o small.onnx --data data.npz --reduce flops=50% --finetune 3min",
        "onnxprune prune model.onnx -o small.onnx --data data.npz --reduce latency=30% --limit size=4MB",
        "onnxprune prune model.onnx -o small.onnx --data data.npz --max-drop 0.5 --minimise latency",
    ),
)
@MODEL
@output("Where to write the pruned model.")
@DATA
@JUDGED
@EVALUATION
@PLANNED
@click.option("--plan", type=PATH, help="Replay this plan.json; the options that select channels have no effect then.")
@click.option("--plan-output", type=WRITTEN, help="Where to write the plan; the default is beside the output.")
@trained(
    "--finetune",
    help="Distill the original into the pruned model for 300steps, 2epochs or 3min; needs --data and torch.",
)
@CHECKPOINT
@RESUME
@LATENCY_TABLE
@TIMINGS
@MEASURE
@click.option(
    "--force",
    is_flag=True,
    help="Write the result under the name that was asked for even where it is measured to be slower than the original.",
)
@REPORT
@TIMEOUT
@TERMINAL
def prune(model: Path, checkpoint: Path | None, report: Path | None, terminal: Terminal, **asked: Any) -> None:
    """Prune a model, prove and repair the result, and write it.

    The proof: the pruned model equals the model with the same channels masked, before any weight changes.
    """

    def call() -> ModelResult:
        with terminal.progress(lambda: kept(checkpoint)) as on_stage:
            return onnxprune.prune(
                model, checkpoint=checkpoint, on_stage=on_stage, report_output=report, command=command_line(), **asked
            )

    conclude(terminal, call, report)

"""`onnxprune prune`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

import onnxprune
from onnxprune.cli.common import DATA, EVALUATION, LATENCY_TABLE, MEASURE, MODEL, PATH, REPORT, command_line, output
from onnxprune.cli.dials import CHECKPOINT, PLANNED, kept, trained
from onnxprune.cli.group import FAILED, examples
from onnxprune.cli.terminal import TERMINAL, Terminal


@click.command(
    epilog=examples(
        "onnxprune prune model.onnx -o small.onnx --data data.npz --reduce flops=50%",
        "onnxprune prune model.onnx -o small.onnx --data images/ --preprocess imagenet --limit flops=300M --ignore 'head*'",
        "onnxprune prune model.onnx -o small.onnx --schedule progressive --steps 8 --reduce params=40%",
        "onnxprune prune model.onnx -o small.onnx --data data.npz --reduce flops=50% --finetune 3min",
        "onnxprune prune model.onnx -o small.onnx --data data.npz --reduce latency=30% --limit size=4MB",
        "onnxprune prune model.onnx -o small.onnx --data data.npz --max-drop 0.5 --minimise latency",
    )
)
@MODEL
@output("Where to write the pruned model.")
@DATA
@EVALUATION
@PLANNED
@click.option(
    "--plan",
    type=PATH,
    help="Replay this plan.json; options above that select channels have no effect then.",
)
@click.option("--plan-output", type=PATH, help="Where to write the plan; beside the output when not given.")
@trained(
    "--finetune",
    help="Train the pruned model towards the original: 300steps, 2epochs or 3min; needs --data, and torch. Options below say how.",
)
@CHECKPOINT
@LATENCY_TABLE
@MEASURE
@click.option("--force", is_flag=True, help="Write a result even where it is measured to be slower than the original.")
@REPORT
@TERMINAL
def prune(model: Path, checkpoint: Path | None, report: Path | None, terminal: Terminal, **asked: Any) -> None:
    """Prune a model, prove it equal to the masked one, measure it, and write it."""
    from onnxprune.report import console, text

    with terminal.progress(lambda: kept(checkpoint)) as on_stage:
        result = onnxprune.prune(
            model,
            checkpoint=checkpoint,
            on_stage=on_stage,
            report_output=report,
            command=command_line(),
            **asked,
        )
    found = result.report
    terminal.explain(lambda: text.decisions(found))
    terminal.show(found.to_dict, lambda: [*console.report_parts(found), *console.written(report)])
    if not found.verdict:
        sys.exit(FAILED)

"""`onnxprune prune`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.cli.common import DATA, EVALUATION, LATENCY_TABLE, MEASURE, MODEL, PATH, REPORT, command_line
from onnxprune.cli.dials import PRUNED
from onnxprune.cli.group import FAILED, examples
from onnxprune.cli.recipe import CHECKPOINT, kept, trained
from onnxprune.cli.terminal import TERMINAL, Terminal
from onnxprune.options import Options, Training

if TYPE_CHECKING:
    from onnxprune.evaluation.benchmark import BenchmarkConfig


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
@click.option("--output", "-o", type=PATH, required=True, help="Where to write the pruned model.")
@DATA
@EVALUATION
@PRUNED
@click.option(
    "--plan",
    type=PATH,
    help="Replay this plan.json; of the dials above, those that choose channels then have no say.",
)
@click.option("--plan-output", type=PATH, help="Where to write the plan; beside the output when not given.")
@trained(
    click.option(
        "--finetune",
        "amount",
        metavar="AMOUNT",
        help="Train what is left towards the original: 300steps, 2epochs or 3min; needs --data, and torch. Options below say how.",
    )
)
@CHECKPOINT
@LATENCY_TABLE
@MEASURE
@click.option("--force", is_flag=True, help="Write a result even where it is measured to be slower than the original.")
@REPORT
@TERMINAL
def prune(
    model: Path,
    output: Path,
    data: Path | None,
    preprocess: str | None,
    evaluation: Path | None,
    options: Options,
    plan: Path | None,
    plan_output: Path | None,
    training: Training | None,
    checkpoint: Path | None,
    latency_table: Path | None,
    measure: BenchmarkConfig,
    force: bool,
    report: Path | None,
    terminal: Terminal,
) -> None:
    """Prune a model, prove it equal to the masked one, measure it, and write it."""
    from onnxprune import pipeline
    from onnxprune.report import console, text

    with terminal.progress(lambda: kept(checkpoint)) as on_stage:
        result = pipeline.prune(
            model,
            output=output,
            data=data,
            evaluation=evaluation,
            preprocess=preprocess,
            plan=plan,
            plan_output=plan_output,
            measure=measure,
            on_stage=on_stage,
            report_output=report,
            command=command_line(),
            options=options,
            training=training,
            checkpoint=checkpoint,
            latency_table=latency_table,
            force=force,
        )
    found = result.report
    terminal.explain(lambda: text.decisions(found))
    terminal.show(found.to_dict, lambda: [*console.report_parts(found), *console.written(report)])
    if not found.verdict:
        sys.exit(FAILED)

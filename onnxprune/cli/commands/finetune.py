"""`onnxprune finetune`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.cli.common import DATA, EVALUATION, MEASURE, MODEL, PATH, REPORT, SEED, command_line
from onnxprune.cli.group import FAILED, examples
from onnxprune.cli.recipe import CHECKPOINT, kept, trained
from onnxprune.cli.terminal import TERMINAL, Terminal
from onnxprune.errors import OptionError
from onnxprune.options import Options, Training, parse_memory

if TYPE_CHECKING:
    from onnxprune.evaluation.benchmark import BenchmarkConfig


@click.command(
    epilog=examples(
        "onnxprune finetune small.onnx --teacher model.onnx --data data.npz -o tuned.onnx --for 3min",
        "onnxprune finetune small.onnx --teacher model.onnx --data images/ --preprocess imagenet -o tuned.onnx --for 2epochs --train-batch 16 --accumulate 4",
    )
)
@MODEL
@click.option("--teacher", type=PATH, required=True, help="The model that it was pruned from.")
@click.option("--output", "-o", type=PATH, required=True, help="Where to write the trained model.")
@DATA
@EVALUATION
@trained(
    click.option(
        "--for",
        "amount",
        default="2epochs",
        show_default=True,
        metavar="AMOUNT",
        help="How long: 300steps, 2epochs or 3min.",
    )
)
@CHECKPOINT
@click.option(
    "--plan",
    type=PATH,
    help="The plan.json it was pruned by; with it --features compares channels that are left.",
)
@click.option("--memory", default="2GB", show_default=True, help="For preprocessed samples, beside the models.")
@SEED
@MEASURE
@REPORT
@TERMINAL
def finetune(
    model: Path,
    teacher: Path,
    output: Path,
    data: Path | None,
    preprocess: str | None,
    evaluation: Path | None,
    training: Training,
    checkpoint: Path | None,
    plan: Path | None,
    memory: str,
    seed: int,
    measure: BenchmarkConfig,
    report: Path | None,
    terminal: Terminal,
) -> None:
    """Train a pruned model towards the one it came from, without labels or with, and write it."""
    from onnxprune import finetuning
    from onnxprune.report import console, text

    if data is None:
        raise OptionError("finetune needs inputs of the model", hint="give --data")
    with terminal.progress(lambda: kept(checkpoint)) as on_stage:
        _, found = finetuning.finetune(
            model,
            teacher,
            data=data,
            output=output,
            evaluation=evaluation,
            preprocess=preprocess,
            plan=plan,
            training=training,
            checkpoint=checkpoint,
            seed=Options(seed=seed).seed,
            memory=parse_memory(memory),
            measure=measure,
            on_stage=on_stage,
            report_output=report,
            command=command_line(),
        )
    terminal.explain(lambda: text.decisions(found))
    terminal.show(found.to_dict, lambda: [*console.report_parts(found), *console.written(report)])
    if not found.verdict:
        sys.exit(FAILED)

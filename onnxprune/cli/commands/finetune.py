"""`onnxprune finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import onnxprune
from onnxprune.cli.common import DATA, EVALUATION, MEASURE, MODEL, PATH, REPORT, TIMEOUT, command_line, conclude, output
from onnxprune.cli.group import Command, examples
from onnxprune.cli.options import CHECKPOINT, JUDGED, RESUME, SEED, SHAPE, TOLERATE, kept, trained
from onnxprune.cli.parsers import parse_memory
from onnxprune.cli.terminal import TERMINAL, Terminal
from onnxprune.errors import OptionError
from onnxprune.options import Options

if TYPE_CHECKING:
    from onnxprune.pipeline.results import ModelResult


@click.command(
    cls=Command,
    epilog=examples(
        "onnxprune finetune small.onnx --teacher model.onnx --data data.npz -o tuned.onnx --for 3min",
        "onnxprune finetune small.onnx --teacher model.onnx --data images/ --preprocess imagenet -o tuned.onnx --for 2epochs --train-batch 16 --accumulate 4",
    ),
)
@MODEL
@click.option("--teacher", type=PATH, required=True, help="Model that MODEL was pruned from.")
@output("Where to write the trained model.")
@DATA
@JUDGED
@EVALUATION
@trained("--for", default="2epochs", show_default=True, help="Length of the training: 300steps, 2epochs or 3min.")
@CHECKPOINT
@RESUME
@click.option(
    "--plan", type=PATH, help="The plan.json of the pruning; --features needs it to compare the remaining channels."
)
@click.option("--memory", default="2GB", show_default=True, help="Memory for preprocessed samples, beside the models.")
@SHAPE
@TOLERATE
@SEED
@MEASURE
@REPORT
@TIMEOUT
@TERMINAL
def finetune(
    model: Path, checkpoint: Path | None, memory: str, seed: int, report: Path | None, terminal: Terminal, **asked: Any
) -> None:
    """Distill the original model into a pruned one.

    Labels are optional; --label-weight sets their share.
    """
    if asked["data"] is None:
        raise OptionError("finetune needs inputs of the model", hint="give --data")

    def call() -> ModelResult:
        with terminal.progress(lambda: kept(checkpoint)) as on_stage:
            return onnxprune.finetune(
                model,
                checkpoint=checkpoint,
                seed=Options(seed=seed).seed,
                memory=parse_memory(memory),
                on_stage=on_stage,
                report_output=report,
                command=command_line(),
                **asked,
            )

    conclude(terminal, call, report)

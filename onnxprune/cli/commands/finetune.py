"""`onnxprune finetune`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

import onnxprune
from onnxprune.cli.common import DATA, EVALUATION, MEASURE, MODEL, PATH, REPORT, command_line, output
from onnxprune.cli.dials import CHECKPOINT, SEED, kept, trained
from onnxprune.cli.group import FAILED, examples
from onnxprune.cli.terminal import TERMINAL, Terminal
from onnxprune.cli.texts import parse_memory
from onnxprune.errors import OptionError
from onnxprune.options import Options


@click.command(
    epilog=examples(
        "onnxprune finetune small.onnx --teacher model.onnx --data data.npz -o tuned.onnx --for 3min",
        "onnxprune finetune small.onnx --teacher model.onnx --data images/ --preprocess imagenet -o tuned.onnx --for 2epochs --train-batch 16 --accumulate 4",
    )
)
@MODEL
@click.option("--teacher", type=PATH, required=True, help="The model that it was pruned from.")
@output("Where to write the trained model.")
@DATA
@EVALUATION
@trained("--for", default="2epochs", show_default=True, help="How long: 300steps, 2epochs or 3min.")
@CHECKPOINT
@click.option(
    "--plan", type=PATH, help="The plan.json it was pruned by; with it --features compares channels that are left."
)
@click.option("--memory", default="2GB", show_default=True, help="For preprocessed samples, beside the models.")
@SEED
@MEASURE
@REPORT
@TERMINAL
def finetune(
    model: Path,
    checkpoint: Path | None,
    memory: str,
    seed: int,
    report: Path | None,
    terminal: Terminal,
    **asked: Any,
) -> None:
    """Train a pruned model towards the one it came from, without labels or with, and write it."""
    from onnxprune.report import console, text

    if asked["data"] is None:
        raise OptionError("finetune needs inputs of the model", hint="give --data")
    with terminal.progress(lambda: kept(checkpoint)) as on_stage:
        result = onnxprune.finetune(
            model,
            checkpoint=checkpoint,
            seed=Options(seed=seed).seed,
            memory=parse_memory(memory),
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

"""`onnxprune sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.cli.common import (
    DATA,
    EVALUATION,
    LATENCY_TABLE,
    MEASURE,
    MODEL,
    PATH,
    REPORT,
    WORKERS,
    command_line,
)
from onnxprune.cli.dials import SWEPT
from onnxprune.cli.group import examples
from onnxprune.cli.recipe import trained
from onnxprune.cli.terminal import NOTHING, TERMINAL, Terminal
from onnxprune.cli.values import Words
from onnxprune.options import QUANTITIES, Options, Training, parse_shares

if TYPE_CHECKING:
    from onnxprune.evaluation.benchmark import BenchmarkConfig


@click.command(
    epilog=examples(
        "onnxprune sweep model.onnx -o sizes/ --data data.npz --eval test.npz",
        "onnxprune sweep model.onnx -o sizes/ --data images/ --preprocess imagenet --targets latency=20%,40%,60% --jobs 2 --plot front.svg",
    )
)
@MODEL
@click.option(
    "--output",
    "-o",
    type=PATH,
    required=True,
    help="Folder for all models, plans and reports; an interrupted sweep goes on there.",
)
@click.option(
    "--targets",
    type=Words([f"{quantity}=" for quantity in QUANTITIES]),
    default="flops=10%,20%,30%,40%,50%,60%,70%,80%",
    show_default=True,
    metavar="WHAT=SHARES",
    help=f"Shares to remove, one model each; of {', '.join(QUANTITIES)}.",
)
@DATA
@EVALUATION
@SWEPT
@trained(
    click.option(
        "--finetune",
        "amount",
        metavar="AMOUNT",
        help="Train each of them: 300steps, 2epochs or 3min; needs --data, and torch.",
    )
)
@LATENCY_TABLE
@WORKERS
@click.option("--plot", type=PATH, help="Draw what is lost against what is left: .svg, .png or .pdf; needs matplotlib.")
@MEASURE
@REPORT
@TERMINAL
def sweep(
    model: Path,
    output: Path,
    targets: str,
    data: Path | None,
    preprocess: str | None,
    evaluation: Path | None,
    options: Options,
    training: Training | None,
    latency_table: Path | None,
    jobs: int,
    scheduler: str | None,
    plot: Path | None,
    measure: BenchmarkConfig,
    report: Path | None,
    terminal: Terminal,
) -> None:
    """Make models of several sizes in one run, each repaired and measured, and say which of them are worth having."""
    from onnxprune import sweeping
    from onnxprune.output import check_destination
    from onnxprune.report import console

    if plot is not None:
        check_destination(plot, model)
    quantity, shares = parse_shares(targets)
    with terminal.progress(lambda: _left(output, len(shares))) as on_stage:
        found = sweeping.sweep(
            model,
            output,
            data=data,
            evaluation=evaluation,
            preprocess=preprocess,
            quantity=quantity,
            shares=shares,
            options=options,
            training=training,
            measure=measure,
            latency_table=latency_table,
            jobs=jobs,
            scheduler=scheduler,
            on_stage=on_stage,
            report_output=report,
            command=command_line(),
        )
    if plot is not None:
        from onnxprune.report import matplotlib_plots, plots

        matplotlib_plots.draw(plots.front_plots(found), plot)
    drawn = None if plot is None else str(plot)
    terminal.show(found.to_dict, lambda: [*console.sweep_parts(found, str(output), drawn), *console.written(report)])


def _left(folder: Path, wanted: int) -> str:
    """Say what an interrupted sweep leaves behind."""
    whole = len(list(folder.glob("*.onnx")))
    return f"{whole} of {wanted} models are in {folder}; the same command goes on there" if whole else NOTHING

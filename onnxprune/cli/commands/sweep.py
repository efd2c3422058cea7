"""`onnxprune sweep`."""

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
    PLOT,
    REPORT,
    TIMEOUT,
    TIMINGS,
    WORKERS,
    check_plot,
    command_line,
    drawn,
    output,
)
from onnxprune.cli.delivery import attempt, finish
from onnxprune.cli.group import Command, examples
from onnxprune.cli.options import JUDGED, SWEPT, trained
from onnxprune.cli.parameters import Words
from onnxprune.cli.parsers import parse_shares
from onnxprune.cli.terminal import NOTHING, TERMINAL, Terminal
from onnxprune.options import QUANTITIES
from onnxprune.paths import FAMILY

if TYPE_CHECKING:
    from onnxprune.pipeline.results import SweepResult


@click.command(
    cls=Command,
    epilog=examples(
        "onnxprune sweep model.onnx -o sizes/ --data data.npz --eval test.npz",
        "onnxprune sweep model.onnx -o sizes/ --data images/ --preprocess imagenet --targets latency=20%,40%,60% --jobs 2 --plot front.svg",
    ),
)
@MODEL
@output("Folder for all models, plans and reports; an interrupted sweep resumes there.", *FAMILY)
@click.option(
    "--targets",
    type=Words([f"{quantity}=" for quantity in QUANTITIES]),
    default="flops=10%,20%,30%,40%,50%,60%,70%,80%",
    show_default=True,
    metavar="WHAT=SHARES",
    help=f"Shares to remove, one model for each share; of {', '.join(QUANTITIES)}.",
)
@DATA
@JUDGED
@EVALUATION
@SWEPT
@trained(
    "--finetune", help="Distill the original into each model for 300steps, 2epochs or 3min; needs --data and torch."
)
@click.option(
    "--resume",
    is_flag=True,
    expose_value=False,
    help="Go on with the sweep in the folder; a sweep does so without it, too.",
)
@LATENCY_TABLE
@TIMINGS
@WORKERS
@PLOT
@MEASURE
@REPORT
@TIMEOUT
@TERMINAL
def sweep(
    model: Path, output: Path, targets: str, plot: Path | None, report: Path | None, terminal: Terminal, **asked: Any
) -> None:
    """Prune a model to several sizes in one run.

    Each model is repaired and measured; the result shows the Pareto set.
    """
    from onnxprune.report import console, plots

    quantity, shares = parse_shares(targets)
    check_plot(plot)

    def call() -> SweepResult:
        with terminal.progress(lambda: _left(output, len(shares))) as on_stage:
            return onnxprune.sweep(
                model,
                output,
                quantity=quantity,
                shares=shares,
                on_stage=on_stage,
                report_output=report,
                command=command_line(),
                **asked,
            )

    result, failure = attempt(call)
    found, page = result.report, report if failure is None else None
    finish(
        lambda: terminal.show(
            found.to_dict, lambda: [*console.sweep_parts(found, str(output)), *console.written(page)]
        ),
        [(plot, terminal.written(drawn(lambda: plots.front_plots(found))))],
        written=[output, *([] if page is None else [page])],
        failure=failure,
    )


def _left(folder: Path, wanted: int) -> str:
    """Say what an interrupted sweep leaves on disk."""
    whole = len(list(folder.glob("*.onnx")))
    planned = len(list(folder.glob("*.plan.json")))
    found = f"{whole} of {wanted} models" if whole else f"{planned} of {wanted} plans" if planned else ""
    return f"{found} are in {folder}; the same command goes on there" if found else NOTHING

"""`onnxprune sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import onnxprune
from onnxprune.cli.common import DATA, EVALUATED_ON, MODEL, PLOT, TIMEOUT, WORKERS, check_plot, drawn
from onnxprune.cli.delivery import finish
from onnxprune.cli.group import Command, examples
from onnxprune.cli.options import JUDGED, STUDIED
from onnxprune.cli.terminal import TERMINAL, Terminal


@click.command(
    cls=Command,
    epilog=examples(
        "onnxprune sensitivity model.onnx --data data.npz",
        "onnxprune sensitivity model.onnx --data images/ --preprocess imagenet --plot curves.svg",
    ),
)
@MODEL
@DATA
@JUDGED
@PLOT
@STUDIED
@WORKERS
@EVALUATED_ON
@TIMEOUT
@TERMINAL
def sensitivity(model: Path, plot: Path | None, terminal: Terminal, **asked: Any) -> None:
    """Measure the loss against the pruning ratio of each group.

    One group is pruned at a time, and its readers are repaired.
    """
    from onnxprune.report import console, plots

    check_plot(plot)
    with terminal.progress() as on_stage:
        found = onnxprune.sensitivity(model, on_stage=on_stage, **asked)
    finish(
        lambda: terminal.show(
            lambda: found.report, lambda: console.curve_parts(found.curves, found.analysis.trace, found.distance)
        ),
        [(plot, terminal.written(drawn(lambda: plots.curve_plots(found.curves))))],
    )

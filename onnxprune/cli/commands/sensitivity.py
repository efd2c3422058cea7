"""`onnxprune sensitivity`."""

from __future__ import annotations

from pathlib import Path

import click

import onnxprune
from onnxprune.cli.common import DATA, MODEL, PLOT, WORKERS
from onnxprune.cli.dials import STUDIED
from onnxprune.cli.group import examples
from onnxprune.cli.terminal import TERMINAL, Terminal
from onnxprune.options import Options


@click.command(
    epilog=examples(
        "onnxprune sensitivity model.onnx --data data.npz",
        "onnxprune sensitivity model.onnx --data images/ --preprocess imagenet --plot curves.svg",
    )
)
@MODEL
@DATA
@PLOT
@STUDIED
@WORKERS
@TERMINAL
def sensitivity(
    model: Path,
    data: Path | None,
    preprocess: str | None,
    plot: Path | None,
    options: Options,
    jobs: int,
    scheduler: str | None,
    terminal: Terminal,
) -> None:
    """Measure what the output loses as each group by itself loses channels, its readers being repaired."""
    from onnxprune.output import check_destination
    from onnxprune.report import console

    if plot is not None:
        check_destination(plot, model)
    with terminal.progress() as on_stage:
        found = onnxprune.sensitivity(
            model,
            data=data,
            preprocess=preprocess,
            jobs=jobs,
            scheduler=scheduler,
            on_stage=on_stage,
            options=options,
        )
    if plot is not None:
        from onnxprune.report import matplotlib_plots, plots

        matplotlib_plots.draw(plots.curve_plots(found.curves), plot)
    terminal.show(
        lambda: found.report,
        lambda: console.curve_parts(found.curves, found.analysis.trace, None if plot is None else str(plot)),
    )

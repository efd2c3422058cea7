"""`onnxprune inspect`."""

from __future__ import annotations

from pathlib import Path

import click

import onnxprune
from onnxprune.cli.common import MODEL, TIMEOUT
from onnxprune.cli.delivery import finish
from onnxprune.cli.group import Command, examples
from onnxprune.cli.options import IGNORE, SHAPE
from onnxprune.cli.terminal import TERMINAL, Terminal


@click.command(
    cls=Command, epilog=examples("onnxprune inspect model.onnx", "onnxprune inspect model.onnx --json | jq .pins")
)
@MODEL
@IGNORE
@SHAPE
@TIMEOUT
@TERMINAL
def inspect(model: Path, ignore: tuple[str, ...], shape: dict[str, tuple[int, ...]], terminal: Terminal) -> None:
    """Show groups, pinned channels with reasons, and costs."""
    from onnxprune.report import console

    with terminal.progress() as on_stage:
        found = onnxprune.inspect(model, ignore=ignore, shape=shape, on_stage=on_stage).report
    finish(lambda: terminal.show(found.to_dict, lambda: console.inspect_parts(found)))

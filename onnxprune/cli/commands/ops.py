"""`onnxprune ops`."""

from __future__ import annotations

import click

from onnxprune.cli.delivery import finish
from onnxprune.cli.group import Command, examples
from onnxprune.cli.terminal import ANSWER, Terminal


@click.command(cls=Command, epilog=examples("onnxprune ops", "onnxprune ops --json | jq 'keys'"))
@ANSWER
def ops(terminal: Terminal) -> None:
    """Show for each operator what it does to channels."""
    from onnxprune.graph.operators import support
    from onnxprune.report import console, tables

    finish(lambda: terminal.show(lambda: dict(support()), lambda: [console.grid(tables.operators(support()))]))

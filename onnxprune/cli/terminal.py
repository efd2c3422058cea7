"""Where a command says what it found and how far it is: results on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.family import family
from onnxprune.output import plain

if TYPE_CHECKING:
    from rich.console import RenderableType

    from onnxprune.comparison import Stage


@dataclass(frozen=True)
class Terminal:
    """How a command speaks.

    Attributes:
        as_json: the result is JSON instead of tables.
        quiet: no progress.
    """

    as_json: bool = False
    quiet: bool = False

    def show(self, content: Callable[[], dict[str, Any]], parts: Callable[[], Sequence[RenderableType]]) -> None:
        """Print a result: `content` as JSON, or `parts` as tables."""
        if self.as_json:
            click.echo(json.dumps(plain(content()), indent=1, allow_nan=False))
        else:
            from onnxprune.report import console

            console.show(parts())

    @contextmanager
    def progress(self) -> Iterator[Stage]:
        """Show the stage of the run, and the share of it where that is known, on a terminal's stderr."""
        if self.quiet or not sys.stderr.isatty():
            from onnxprune.comparison import quiet as silent

            yield silent
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<9}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("start", total=None, detail="")
            last = ""

            def on_stage(stage: str, share: float | None, detail: str = "") -> None:
                nonlocal last
                if stage != last:
                    progress.reset(task, description=stage, total=None if share is None else 1.0, detail=detail)
                    last = stage
                if share is not None:
                    progress.update(task, completed=share, total=1.0, detail=detail)

            yield on_stage


JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
QUIET = click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
ANSWER = family("terminal", lambda values: Terminal(**values), JSON)
"""Options of a command that answers at once."""
TERMINAL = family("terminal", lambda values: Terminal(**values), JSON, QUIET)
"""Options of a command that takes its time."""

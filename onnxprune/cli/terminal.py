"""Where a command says what it found and how far it is: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.family import family
from onnxprune.output import plain

if TYPE_CHECKING:
    from rich.console import RenderableType

    from onnxprune.progress import ProgressCallback

NOTHING = "nothing was written"
PATIENCE, PAUSE = 5.0, 15.0
"""Seconds until the first plain line about a run, and between it and the next."""
NARROW = 80
"""Columns of a terminal from which there is room for the whole line of progress."""


@dataclass(frozen=True)
class Terminal:
    """How a command speaks.

    Attributes:
        as_json: the result is JSON instead of tables.
        quiet: no progress.
        verbose: also what was decided, and what each stage took.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    def show(self, content: Callable[[], dict[str, Any]], parts: Callable[[], Sequence[RenderableType]]) -> None:
        """Print a result: `content` as JSON, or `parts` as tables."""
        if self.as_json:
            click.echo(json.dumps(plain(content()), indent=1, allow_nan=False))
        else:
            from onnxprune.report import console

            console.show(parts())

    def explain(self, lines: Callable[[], Sequence[str]]) -> None:
        """Print to stderr what only those want to know who ask for it."""
        if self.verbose:
            for line in lines():
                click.echo(line, err=True)

    @contextmanager
    def progress(self, left: Callable[[], str] = lambda: NOTHING) -> Iterator[ProgressCallback]:
        """Show the stage of the run, and the share and the time left of it where they are known, on stderr.

        A terminal gets a bar; anything else a plain line now and then, of runs that take long.

        Args:
            left: says, after an interrupt, what is left on disk.
        """
        with ExitStack() as stack:
            if self.quiet:
                stages = Stages(self.verbose)
            elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
                stages = stack.enter_context(_bar(self.verbose))
            else:
                stages = Lines(self.verbose)
            try:
                yield stages
            except KeyboardInterrupt:
                raise KeyboardInterrupt(left()) from None
            finally:
                stages.end()


class Stages:
    """What goes on in a run, and since when; shows nothing but, where it is verbose, what each stage took."""

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._stage, self._begin = "", time.perf_counter()

    def __call__(self, stage: str, share: float | None, detail: str = "") -> None:
        """See `onnxprune.progress.ProgressCallback`."""
        new = stage != self._stage
        if new:
            self.end()
            self._stage, self._begin = stage, time.perf_counter()
        self.show(stage, share, detail, new)

    def end(self) -> None:
        """End the stage."""
        if self._stage and self._verbose:
            self.say(f"{self.seconds:7.1f} s  {self._stage}")
        self._stage = ""

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return time.perf_counter() - self._begin

    def left(self, share: float | None) -> float | None:
        """Return the seconds that the rest of the stage will take, if it goes on as it went; None where that is not known yet."""
        return self.seconds * (1 - share) / share if share and self.seconds > 1 else None

    def show(self, stage: str, share: float | None, detail: str, new: bool) -> None:
        """Show how far it is."""

    def say(self, line: str) -> None:
        """Print a line."""
        click.echo(line, err=True)


class Lines(Stages):
    """The same in plain lines: none of a short run, few of a long one."""

    def __init__(self, verbose: bool) -> None:
        super().__init__(verbose)
        self._next = time.monotonic() + PATIENCE

    def show(self, stage: str, share: float | None, detail: str, new: bool) -> None:
        """Print a line where it is time to."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PAUSE
        parts = [] if share is None else [f"{share:.0%}"]
        if (left := self.left(share)) is not None:
            parts.append(f"about {_duration(left)} left")
        self.say(f"{stage}: {', '.join([*parts, *([detail] if detail else [])]) or 'begun'}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


@contextmanager
def _bar(verbose: bool) -> Iterator[Stages]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
    from rich.table import Column
    from rich.text import Text

    class TimeLeft(ProgressColumn):
        """Count down to the end of the stage; rich's own column forgets what was more than half a minute ago."""

        def render(self, task: Task) -> Text:
            end = task.fields.get("end")
            return Text("" if end is None else f"{_duration(max(0.0, end - time.monotonic()))} left", no_wrap=True)

    console = Console(stderr=True)
    columns: list[ProgressColumn] = [
        TextColumn("{task.description:<9}", table_column=Column(no_wrap=True)),
        BarColumn(40 if console.width >= NARROW else 10),
        TimeElapsedColumn(),
        TimeLeft(),
        TextColumn("{task.fields[detail]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    ]

    class Bar(Stages):
        def show(self, stage: str, share: float | None, detail: str, new: bool) -> None:
            total = None if share is None else 1.0
            if new:
                for task in progress.task_ids:
                    progress.remove_task(task)
                progress.add_task(stage, total=total, detail=detail)
            left = self.left(share)
            end = None if left is None else time.monotonic() + left
            progress.update(progress.task_ids[-1], completed=share, total=total, detail=detail, end=end)

        def say(self, line: str) -> None:
            progress.console.print(line, highlight=False, markup=False)

    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task("start", total=None, detail="")
        yield Bar(verbose)


JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
QUIET = click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
VERBOSE = click.option(
    "--verbose", "-v", is_flag=True, help="Say on stderr what was decided, and how long each stage took."
)
ANSWER = family("terminal", lambda values: Terminal(**values), JSON)
"""Options of a command that answers at once."""
TERMINAL = family("terminal", lambda values: Terminal(**values), JSON, QUIET, VERBOSE)
"""Options of a command that takes its time."""

"""Output of a command: the result on stdout; progress, decisions and errors on stderr."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from onnxprune.cli.parameters import option_group
from onnxprune.errors import DataWarning
from onnxprune.escaping import log, visible
from onnxprune.fileio import jsonable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from onnxprune.progress import ProgressCallback

NOTHING = "nothing was written"
PATIENCE, PAUSE = 5.0, 15.0
"""Seconds before the first line of plain progress, and between lines."""
NARROW = 80
"""Columns from which a terminal has room for the long progress bar."""


def say(line: str, **style: Any) -> None:
    """Print a line on stderr, with names made visible; a stderr that is full or closed ends no run."""
    with contextlib.suppress(OSError, ValueError):
        click.secho(log(visible(line)), err=True, **style)


def open_streams() -> None:
    """Let no file that is opened later take the place of a closed stream, and no character end a run that a stream has no code for."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Patient:
    """A stream on which what cannot be written is left out."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@dataclass(frozen=True)
class Terminal:
    """Output settings of a command.

    Attributes:
        as_json: print the result as JSON instead of tables.
        quiet: show no progress.
        verbose: also print decisions, and the seconds of each stage.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    def show(self, content: Callable[[], dict[str, Any]], parts: Callable[[], Sequence[RenderableType]]) -> None:
        """Print the result: `content` as JSON, or `parts` as tables.

        Raises:
            OSError: stdout is closed, or full.
        """
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        if self.as_json:
            made = json.dumps(jsonable(content()), indent=1, allow_nan=False)
            sys.stdout.write(made.replace("##", "#\\u0023") + "\n")  # in a log `##[` would begin a command
            sys.stdout.flush()
        else:
            from onnxprune.report import console

            console.show(parts())

    def written(self, write: Callable[[Path], None]) -> Callable[[Path], None]:
        """Return a function that writes a file, and then says so among the tables."""

        def told(path: Path) -> None:
            from onnxprune.report import console

            write(path)
            if not self.as_json:
                with contextlib.suppress(OSError):  # `finish` tells of a closed stdout
                    console.show(console.written(path))

        return told

    def explain(self, lines: Callable[[], Sequence[str]]) -> None:
        """Print lines to stderr with --verbose."""
        if self.verbose:
            for line in lines():
                say(line)

    @contextmanager
    def progress(self, left: Callable[[], str] = lambda: NOTHING) -> Iterator[ProgressCallback]:
        """Show on stderr the current stage and, where known, its share and the time left.

        A terminal gets a bar, anything else a few plain lines. After an interrupt, `left` says what is on disk.
        """
        with ExitStack() as stack:
            if self.quiet:
                stages = Stages(self.verbose)
            elif sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
                stages = stack.enter_context(_bar(self.verbose))
            else:
                stages = Lines(self.verbose)
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("always", DataWarning)
            warnings.showwarning = lambda message, category, *rest: stages.warn(f"warning: {message}")
            try:
                yield stages
            except KeyboardInterrupt as interrupt:
                interrupt.args = (left(),)
                raise
            finally:
                stages.end()


class Stages:
    """Progress callback that shows nothing except, with --verbose, the seconds of each stage."""

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._stage, self._begin = "", time.perf_counter()

    def __call__(self, stage: str, share: float | None, detail: str = "") -> None:
        """See `onnxprune.progress.ProgressCallback`."""
        new = stage != self._stage
        if new:
            self.end()
            self._stage, self._begin = stage, time.perf_counter()
        self.show(stage, share, visible(detail), new)

    def end(self) -> None:
        """End the current stage."""
        if self._stage and self._verbose:
            self.say(f"{self.seconds:7.1f} s  {self._stage}")
        self._stage = ""

    @property
    def seconds(self) -> float:
        """Seconds since the start of the stage."""
        return time.perf_counter() - self._begin

    def left(self, share: float | None) -> float | None:
        """Estimate the seconds left of the stage from its pace so far; None where that is not known yet."""
        return self.seconds * (1 - share) / share if share and self.seconds > 1 else None

    def show(self, stage: str, share: float | None, detail: str, new: bool) -> None:
        """Show the progress of the stage."""

    def say(self, line: str) -> None:
        """Print a line."""
        say(line)

    def warn(self, line: str) -> None:
        """Print a line that nobody should overlook."""
        say(line, fg="yellow", bold=True)


class Lines(Stages):
    """Progress in plain lines: none in a short run, few in a long one."""

    def __init__(self, verbose: bool) -> None:
        super().__init__(verbose)
        self._next = time.monotonic() + PATIENCE

    def show(self, stage: str, share: float | None, detail: str, new: bool) -> None:
        """Print a line if the last one is old enough."""
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
        """Count down to the end of the stage; the column of rich estimates from the last 30 seconds only."""

        def render(self, task: Task) -> Text:
            end = task.fields.get("end")
            return Text("" if end is None else f"{_duration(max(0.0, end - time.monotonic()))} left", no_wrap=True)

    console = Console(file=cast(TextIO, Patient(sys.stderr)))
    columns: list[ProgressColumn] = [
        TextColumn("{task.description:<9}", table_column=Column(no_wrap=True)),
        BarColumn(40 if console.width >= NARROW else 10),
        TimeElapsedColumn(),
        TimeLeft(),
        TextColumn("{task.fields[detail]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
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
            progress.console.print(visible(line), highlight=False, markup=False)

        def warn(self, line: str) -> None:
            progress.console.print(visible(line), highlight=False, markup=False, style="bold yellow")

    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task("start", total=None, detail="")
        yield Bar(verbose)


JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
QUIET = click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
VERBOSE = click.option(
    "--verbose", "-v", is_flag=True, help="Print decisions, and the seconds of each stage, on stderr."
)
ANSWER = option_group("terminal", lambda values: Terminal(**values), JSON)
"""Options of a command that needs no progress."""
TERMINAL = option_group("terminal", lambda values: Terminal(**values), JSON, QUIET, VERBOSE)
"""Options of a command with progress."""

"""The group of all commands: every expected error becomes one message and an exit code."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any

import click

from onnxprune import leftovers, paths
from onnxprune.cli import interrupts
from onnxprune.cli.parameters import File, Words
from onnxprune.cli.terminal import NOTHING, open_streams, say
from onnxprune.errors import OnnxPruneError, first_line
from onnxprune.escaping import visible


class Command(click.Command):
    """A command that refuses, before it does anything, outputs that would overwrite its inputs or one another."""

    def invoke(self, ctx: click.Context) -> Any:
        """Compare the paths, and run the command."""
        read: list[paths.Input] = []
        written: list[paths.Output] = []
        for each in self.params:
            kind, given = each.type, ctx.params.get(each.name or "")
            name = each.opts[0] if isinstance(each, click.Option) else each.human_readable_name
            if isinstance(kind, File) and kind.writes and given is not None:
                written.append(paths.Output(name, given, kind.holds))
            elif isinstance(kind, File | Words) and kind.reads and str(given) not in kind.known:
                read += paths.inputs([(name, given)])
        if any(os.path.isfile(output.path) for output in written):  # unlike `is_file`, False for an impossible name
            read += _external(read)
        paths.check_outputs(written, read)
        return super().invoke(ctx)


def _external(read: Sequence[paths.Input]) -> list[paths.Input]:
    """Return the data files of the models among the inputs."""
    from onnxprune.graph.external_data import data_files

    models = [each for each in read if each.path.suffix == ".onnx" and os.path.isfile(each.path)]
    return [paths.Input(str(each.path), file) for each in models for file in data_files(each.path)]


class Cli(click.Group):
    """A group of commands that turns every error into one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        open_streams()
        try:
            with interrupts.caught():
                leftovers.sweep_temporary()
                return super().invoke(ctx)
        except click.ClickException as error:
            error.message = visible(error.message, keep="\n")  # type: ignore[misc]  # final in name only
            raise  # handled by click
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt as interrupt:
            say(f"interrupted: {'; '.join([*(map(str, interrupt.args or (NOTHING,))), *kept(interrupt)])}")
            ctx.exit(interrupts.exit_code(interrupt))
        except Exception as error:
            told = expected(error)
            if told is None and os.environ.get("ONNXPRUNE_DEBUG"):
                raise
            rows = [*f"error: {told or defect(error)}".split("\n"), *(f"  kept:  {note}" for note in kept(error))]
            for line in rows:
                say(line)
            ctx.exit(error.exit_code if isinstance(error, OnnxPruneError) else 1)


def kept(error: BaseException) -> list[str]:
    """Return what an error says of work that is kept; see `StageResults.kept_on_error`."""
    return [note for note in getattr(error, "__notes__", ()) if note.startswith("the work so far")]


def _memory_limit() -> float:
    """Return the bytes of address space that the process may take; 0: any number."""
    try:
        import resource
    except ImportError:  # on Windows
        return 0.0
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return 0.0 if limit == resource.RLIM_INFINITY else float(limit)


def expected(error: Exception) -> str | None:
    """Return the message of an error that a user can act on; None for a defect of the program."""
    if isinstance(error, OnnxPruneError):
        return str(error)
    if isinstance(error, RecursionError):
        return "an input is nested too deeply\n  why:   bodies within bodies, or lists within lists, beyond what Python follows\n  do:    give a flatter one"
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        limit = _memory_limit()
        why = f"\n  why:   the limit of the process (ulimit -v) is {limit / 1e6:,.0f} MB" if limit else ""
        return f"out of memory{why}\n  do:    {'raise the limit, ' if limit else ''}give a smaller --memory or --eval-batch, or take a machine with more memory"
    if isinstance(error, OSError):
        where = f"\n  where: {visible(os.fsdecode(error.filename))}" if error.filename else ""
        return f"{error.strerror or error}{where}\n  do:    check the path, and the disk"
    return None


def defect(error: Exception) -> str:
    """Return the message of a defect of the program."""
    return (
        f"onnxprune failed: {type(error).__name__}: {first_line(error) if str(error) else ''}\n"
        "  do:    this is a defect; run again with ONNXPRUNE_DEBUG=1 and report what it prints"
    )


def examples(*lines: str) -> str:
    """Format examples so that click keeps the lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)

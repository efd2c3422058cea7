"""The group of all commands: every expected error becomes one message and an exit code."""

from __future__ import annotations

import os
from typing import Any

import click

from onnxprune.cli.terminal import NOTHING
from onnxprune.errors import OnnxPruneError

FAILED = 3
INTERRUPTED = 130


class Cli(click.Group):
    """A group of commands that turns every error into one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # handled by click
        except KeyboardInterrupt as interrupt:
            click.echo(
                f"interrupted: {'; '.join([*(map(str, interrupt.args or (NOTHING,))), *kept(interrupt)])}", err=True
            )
            ctx.exit(INTERRUPTED)
        except Exception as error:
            told = expected(error)
            if told is None and os.environ.get("ONNXPRUNE_DEBUG"):
                raise
            click.echo(
                "\n".join([f"error: {told or defect(error)}", *(f"  kept:  {note}" for note in kept(error))]), err=True
            )
            ctx.exit(error.exit_code if isinstance(error, OnnxPruneError) else 1)


def kept(error: BaseException) -> list[str]:
    """Return what an error says of work that is kept; see `StageResults.kept_on_error`."""
    return [note for note in getattr(error, "__notes__", ()) if note.startswith("the work so far")]


def expected(error: Exception) -> str | None:
    """Return the message of an error that a user can act on; None for a defect of the program."""
    if isinstance(error, OnnxPruneError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory\n  do:    use a smaller --eval-batch, or a machine with more memory"
    if isinstance(error, OSError):
        where = f"\n  where: {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}\n  do:    check the path, and the disk"
    return None


def defect(error: Exception) -> str:
    """Return the message of a defect of the program."""
    return (
        f"onnxprune failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}\n"
        "  do:    this is a defect; run again with ONNXPRUNE_DEBUG=1 and report what it prints"
    )


def examples(*lines: str) -> str:
    """Format examples so that click keeps the lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)

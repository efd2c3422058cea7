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
    """Turn every expected error into one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see the class."""
        try:
            return super().invoke(ctx)
        except OnnxPruneError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt as interrupt:
            click.echo(f"interrupted: {interrupt.args[0] if interrupt.args else NOTHING}", err=True)
            ctx.exit(INTERRUPTED)
        except MemoryError:
            click.echo(
                "error: out of memory\n  do:    use a smaller --eval-batch, or a machine with more memory", err=True
            )
            ctx.exit(1)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click knows what to do
        except OSError as error:
            where = f"\n  where: {error.filename}" if error.filename else ""
            click.echo(f"error: {error.strerror or error}{where}\n  do:    check the path, and the disk", err=True)
            ctx.exit(1)
        except Exception as error:
            if os.environ.get("ONNXPRUNE_DEBUG"):
                raise
            click.echo(
                f"error: onnxprune failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}\n"
                "  do:    this is a defect; run again with ONNXPRUNE_DEBUG=1 and report what it prints",
                err=True,
            )
            ctx.exit(1)


def examples(*lines: str) -> str:
    """Format examples so that click keeps the lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)

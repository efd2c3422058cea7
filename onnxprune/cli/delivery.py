"""The end of a command: the result is shown, then further files are written; what fails is said last, and loses nothing else."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from onnxprune.cli.terminal import say
from onnxprune.errors import OnnxPruneError, OutputError

Result = TypeVar("Result")
Write = Callable[[Path], None]


def attempt(call: Callable[[], Result]) -> tuple[Result, OnnxPruneError | None]:
    """Return the result of a call, and the error that came after the work was done: about a file, or a refused result."""
    try:
        return call(), None
    except OnnxPruneError as error:
        if error.result is None:
            raise
        return error.result, error  # type: ignore[return-value]  # it is the result of the call


def finish(
    show: Callable[[], None],
    files: Sequence[tuple[Path | None, Write]] = (),
    *,
    written: Sequence[Path] = (),
    failure: OnnxPruneError | None = None,
) -> None:
    """Show a result, and write files.

    Args:
        show: prints the result on stdout.
        files: paths, None where a file is not asked for, and what writes them.
        written: files of the result that are written already.
        failure: error about a file of the result.

    Raises:
        OnnxPruneError: something failed; the message says what was written.
        BrokenPipeError: nobody reads the result, and there is nothing to say about files.
    """
    failures, done = [] if failure is None else [failure], [*written]
    closed: OSError | None = None
    try:
        show()
    except OSError as error:
        closed = error
        _discard()
    for path, write in files:
        if path is not None:
            try:
                write(path)
                done.append(path)
            except OnnxPruneError as error:
                failures.append(error)
    names = ", ".join(map(str, done))
    if isinstance(closed, BrokenPipeError) and not failures and not done:
        raise closed
    if closed is not None:
        told = f"; written: {names}" if names else ""
        why, hint = closed.strerror or str(closed), f"give stdout a place to write to{told}"
        failures.append(OutputError("the result cannot be printed", where="stdout", why=why, hint=hint))
    for each in failures[:-1]:
        for line in f"error: {each}".split("\n"):
            say(line)
    if failures:
        raise failures[-1]


def _discard() -> None:
    """Let nothing that is still to be flushed to stdout raise an error at the end of the process."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a closed stdout is None
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)

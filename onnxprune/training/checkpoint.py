"""The state of a training that was interrupted, in one file that is always whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from onnxprune.errors import OutputError, first_line
from onnxprune.fileio import atomic_write

State = dict[str, Any]
VERSION = 2


def save(path: Path, key: str, state: State) -> None:
    """Write a state; it takes the place of the one before at once, so that a kill leaves either of them.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            torch.save({"version": VERSION, "key": key, **state}, temporary)
    except RuntimeError as error:  # what torch makes of a disk that is full
        raise OutputError(
            f"cannot write {path.name}",
            where=str(path.parent),
            why=first_line(error),
            hint="make room there, or give another path",
        ) from error


def load(path: Path, key: str) -> State | None:
    """Return the state of a run; None where there is none.

    Args:
        path: of the file.
        key: what the run depends on: models, data, options. A state of another run is refused.

    Raises:
        OutputError: the file holds something else.
    """
    if not path.exists():
        return None
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
        found = state.get("version"), state.get("key")
    except Exception as error:  # pickle and zipfile raise whatever comes to their mind
        raise OutputError(
            "the checkpoint cannot be read",
            where=str(path),
            why=first_line(error),
            hint="delete it, or give --checkpoint another path",
        ) from error
    if found != (VERSION, key):
        raise OutputError(
            "the checkpoint belongs to another run",
            where=str(path),
            why="the models, the data, the options or the version are not those it was made with",
            hint="delete it to start anew, or give --checkpoint another path",
        )
    return state

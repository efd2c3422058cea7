"""Checkpoint of a training run, in one file that is always complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from onnxprune.errors import OutputError, first_line
from onnxprune.fileio import atomic_write

State = dict[str, Any]
VERSION = 2


def save(path: Path, key: str, state: State) -> None:
    """Write a state; it replaces the previous one atomically.

    Raises:
        OutputError: the state cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            torch.save({"version": VERSION, "key": key, **state}, temporary)
    except RuntimeError as error:  # torch raises it on a full disk
        raise OutputError(
            f"cannot write {path.name}",
            where=str(path.parent),
            why=first_line(error),
            hint="free disk space, or give another path",
        ) from error


def load(path: Path, key: str) -> State | None:
    """Return the state of the run with this key; None without a file.

    Raises:
        OutputError: the file is no checkpoint, or belongs to another run.
    """
    if not path.exists():
        return None
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
        found = state.get("version"), state.get("key")
    except Exception as error:  # pickle and zipfile raise many types
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
            why="its models, data, options or versions are different",
            hint="delete it to start again, or give --checkpoint another path",
        )
    return state

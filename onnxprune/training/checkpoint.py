"""Checkpoint of a training run, in one file that is always complete."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from onnxprune.errors import OutputError, first_line
from onnxprune.fileio import atomic_write

State = dict[str, Any]
VERSION = 3


def file_of(path: Path, step: int, steps: int) -> Path:
    """Return the file of the state of the training after a step of the schedule; that of the last step has no number."""
    return path if step == steps else path.with_name(f"{path.name}.{step}")


def save(path: Path, key: str, state: State) -> None:
    """Write a state; it replaces the previous one atomically.

    Raises:
        OutputError: the state cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            torch.save({"version": VERSION, "key": key, **state, "digest": _digest(state)}, temporary)
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
        OutputError: the file is no checkpoint, is damaged, or belongs to another run.
    """
    if not path.exists():
        return None
    state = _read(path)
    if (state["version"], state["key"]) != (VERSION, key):
        raise OutputError(
            "the checkpoint belongs to another run",
            where=str(path),
            why="its models, data, options or versions are different",
            hint="delete it to start again, or give --checkpoint another path",
        )
    with damaged(path):
        digest = state.pop("digest")
        if digest != _digest({name: value for name, value in state.items() if name not in ("version", "key")}):
            raise ValueError("its content is not what was written")
    return state


def refuse_foreign(path: Path) -> None:
    """Refuse, before any work is done, to write checkpoints over a file that is none.

    Raises:
        OutputError: there is such a file.
    """
    if path.exists():
        _read(path, mapped=True)


def forget(path: Path, key: str) -> None:
    """Delete the state of the run with this key; any other file stays, and so does one that cannot be deleted."""
    with contextlib.suppress(OutputError, OSError):
        if _read(path, mapped=True)["key"] == key:
            path.unlink()


@contextlib.contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Turn any error over the content of a checkpoint into an OutputError."""
    try:
        yield
    except Exception as error:  # torch, pickle and zipfile raise many types
        raise OutputError(
            "the checkpoint cannot be read",
            where=str(path),
            why="it is damaged, or no checkpoint of onnxprune",
            hint="delete it, or give --checkpoint another path",
        ) from error


def _read(path: Path, *, mapped: bool = False) -> State:
    """Return a state; `mapped`: tensors are not read.

    Raises:
        OutputError: the file is no checkpoint.
    """
    with damaged(path):
        state: State = torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=mapped)
        if not {"version", "key"} <= state.keys():
            raise ValueError("it is no checkpoint of onnxprune")
    return state


def _digest(value: Any) -> str:
    """Return a digest of nested mappings, sequences, tensors and plain values."""
    digest = hashlib.sha256(type(value).__name__.encode())
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for name in value:
            digest.update(f"{name!r}{_digest(value[name])}".encode())
    elif isinstance(value, list | tuple):
        digest.update("".join(map(_digest, value)).encode())
    else:
        digest.update(repr(value).encode())
    return digest.hexdigest()

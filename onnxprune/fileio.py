"""Output files: written whole or not at all, checked before a run, and the values that JSON can hold."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnxprune.errors import OutputError


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; the file replaces `target` on success, else it is deleted.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=".onnxprune-", suffix=".part", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp makes private files
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write {target.name}",
            where=str(target.parent),
            why=error.strerror or str(error),
            hint="make room there, or give another path",
        ) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON; NaN and infinity become null.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(jsonable(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def check_destination(target: Path, *originals: Path) -> None:
    """Refuse, before any work is done, a path that cannot be written or is one of `originals`.

    Raises:
        OutputError: with the reason.
    """
    try:
        for original in originals:
            if same_file(target, original):
                raise OutputError(
                    "the output would overwrite an input",
                    where=str(target),
                    why=f"it is the same file as {original}",
                    hint="give another path with -o (for the plan, with --plan-output)",
                )
        if target.is_dir():
            raise OutputError("the output path is a folder", where=str(target), hint="name a file in it")
        if target.exists() and not target.is_file():
            raise OutputError(
                "the output path is not a file", where=str(target), why="it is a device or a pipe", hint="name a file"
            )
        if not target.parent.is_dir():
            raise OutputError("the output folder does not exist", where=str(target.parent), hint="create it first")
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with tempfile.TemporaryFile(dir=target.parent):  # permissions do not tell: root cannot write in /proc
            pass
    except OSError as error:
        raise OutputError(
            "the output cannot be written",
            where=str(target),
            why=error.strerror or str(error),
            hint="give another path, or change the permissions",
        ) from error


def same_file(a: Path, b: Path) -> bool:
    """Tell whether two paths name one file, directly or through links."""
    return os.path.realpath(a) == os.path.realpath(b) or (a.exists() and b.exists() and a.samefile(b))


def jsonable(value: Any) -> Any:
    """Return a value as JSON can hold it: numpy scalars as numbers, NaN and infinity as None.

    >>> jsonable({"loss": float("nan"), "keep": (1, 2)})
    {'loss': None, 'keep': [1, 2]}
    """
    if isinstance(value, Mapping):
        return {key: jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value

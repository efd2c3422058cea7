"""Write files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxprune.errors import OutputError


@contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `target`; on success it takes the place of `target`, else it vanishes.

    An interrupt counts as no success.
    """
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
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


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target` whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        with written_beside(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write {target.name}",
            where=str(target.parent),
            why=error.strerror or str(error),
            hint="give another path",
        ) from error


def check_destination(target: Path, *originals: Path) -> None:
    """Refuse a destination that cannot be written, or that is one of `originals`, before any work is done.

    Raises:
        OutputError: with the reason.
    """
    for original in originals:
        if target.resolve() == original.resolve() or (
            target.exists() and original.exists() and target.samefile(original)
        ):
            raise OutputError(
                "the output would overwrite an input", where=str(target), hint="give another path with -o"
            )
    if target.is_dir():
        raise OutputError("the output path is a folder", where=str(target), hint="name a file in it")
    if not target.parent.is_dir():
        raise OutputError("the output folder does not exist", where=str(target.parent), hint="create it first")
    if not os.access(target.parent, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
        raise OutputError(
            "the output cannot be written", where=str(target), why="permission denied", hint="give another path"
        )

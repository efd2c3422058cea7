"""Output files: written whole or not at all, checked before a run, and the values that JSON can hold."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from onnxprune import leftovers
from onnxprune.errors import OptionError, OutputError

PERMISSIONS = 0o777
"""Bits of a file's mode that a new version of the file keeps."""


@dataclass
class _Part:
    """A file of a transaction.

    Attributes:
        temporary: the file until it takes its place.
        descriptor: keeps the temporary locked.
        target: the place, links resolved.
        mode: permissions of the file that is replaced; None: there is none.
        backup: second name of the file that is replaced.
        is_new: whether the target does not exist yet.
    """

    temporary: Path
    descriptor: int
    target: Path
    mode: int | None
    backup: Path
    is_new: bool = False


class Transaction:
    """Files that change together: all are written to temporaries, and take their places when the `with` block succeeds.

    Whatever fails before leaves all targets as they were. The files take their places in the order of `file`, so the
    last one should be the one that refers to the others. A process that is killed between two of them leaves the
    first ones new and the last one old, each whole; any other failure puts the old ones back. Contents and folders are
    synchronized with the disk before and after. A target that is a link stays one: the file that it points to is
    replaced. An existing file keeps its permissions.

    Raises:
        OutputError: a file cannot be written.

    Examples:
        >>> with tempfile.TemporaryDirectory() as folder, Transaction() as files:
        ...     for name in ("plan.json", "model.onnx"):
        ...         _ = files.file(Path(folder) / name).write_text("new")
        ...     sorted(path.suffix for path in Path(folder).iterdir())
        ['.part', '.part']
    """

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._afterwards: list[Callable[[], None]] = []
        self._current: Path | None = None

    def __enter__(self) -> Transaction:
        return self

    def file(self, target: Path) -> Path:
        """Make a temporary file beside the target; return its path, to be written by the caller."""
        self._current = target
        with self._named():
            resolved = through_links(target)
            leftovers.sweep(resolved.parent)
            mode = resolved.stat().st_mode & PERMISSIONS if resolved.exists() else None
            made = leftovers.new_file(resolved.parent, 0o666 if mode is None else mode | 0o600)
            self._parts.append(_Part(*made, resolved, mode, resolved.with_name(leftovers.new_name())))
        return made[0]

    def aim(self, temporary: Path, name: str) -> None:
        """Give a file another name in its folder, where the name depends on the content."""
        part = next(part for part in self._parts if part.temporary == temporary)
        part.target = part.target.with_name(name)

    def afterwards(self, act: Callable[[], None]) -> None:
        """Do something once all files have taken their places; an OSError in it is ignored."""
        self._afterwards.append(act)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._named():
            try:
                if error is None:
                    self._commit()
                elif isinstance(error, OSError):
                    raise error
            finally:
                self._clean()

    def _commit(self) -> None:
        for part in self._parts:
            self._current = part.target
            if part.mode is not None:
                with contextlib.suppress(PermissionError):  # a file system without permissions
                    part.temporary.chmod(part.mode)
            _synchronize(part.descriptor)
        try:
            for part in self._parts:
                self._current = part.target
                _place(part, is_last=part is self._parts[-1])
        except BaseException:
            if any(not _is_placed(part) for part in self._parts):
                for part in self._parts:
                    _put_back(part)
            raise
        try:
            for folder in dict.fromkeys(part.target.parent for part in self._parts):
                _synchronize_folder(folder)
        finally:
            for act in self._afterwards:
                with contextlib.suppress(OSError):
                    act()

    def _clean(self) -> None:
        """Delete what is left of temporaries, and release their locks."""
        for part in self._parts:
            with contextlib.suppress(OSError):
                os.close(part.descriptor)
            for path in (part.temporary, part.backup):
                with contextlib.suppress(OSError):
                    path.unlink()
        self._parts = []

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the file that cannot be written."""
        try:
            yield
        except OSError as error:
            target = self._current or Path()
            raise OutputError(
                f"cannot write {target.name}",
                where=str(target.parent),
                why=error.strerror or str(error),
                hint="make room there, or give another path",
            ) from error


def _place(part: _Part, *, is_last: bool) -> None:
    """Move a file to its place; all but the last one keep the file that they replace under a second name."""
    if os.name == "nt":
        os.close(part.descriptor)  # an open file cannot be moved there
        part.descriptor = -1
    part.is_new = not part.target.exists()
    if not is_last and not part.is_new:
        with contextlib.suppress(OSError):  # a file system without hard links
            os.link(part.target, part.backup)
    part.temporary.replace(part.target)


def _is_placed(part: _Part) -> bool:
    return not part.temporary.exists()


def _put_back(part: _Part) -> None:
    """Undo `_place`, where it was done."""
    with contextlib.suppress(OSError):
        if part.backup.exists():
            part.backup.replace(part.target)
        elif part.is_new and _is_placed(part):
            part.target.unlink()


def _synchronize(descriptor: int) -> None:
    """Wait until the content of an open file is on the disk."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot
            raise


def _synchronize_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can."""
    if os.name != "nt":
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def joined(together: Transaction | None) -> Iterator[Transaction]:
    """Yield a transaction that is under way, or a new one that ends with the `with` block."""
    if together is not None:
        yield together
        return
    with Transaction() as files:
        yield files


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; the file replaces `target` on success, else it is deleted.

    Raises:
        OutputError: the file cannot be written.
    """
    with Transaction() as files:
        yield files.file(target)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON; NaN and infinity become null.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(jsonable(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def check_destination(target: Path, *originals: Path) -> None:
    """Refuse, before any work is done, a path that cannot be written or is one of `originals`.

    What killed runs have left in the folder is deleted.

    Raises:
        OptionError: the path has no name.
        OutputError: any other reason.
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
        if not target.name:
            raise OptionError("the output path names no file", where=str(target), hint="name a file")
        if target.is_dir():
            raise OutputError("the output path is a folder", where=str(target), hint="name a file in it")
        if (target.exists() and not target.is_file()) or os.path.abspath(target).startswith(
            ("/dev/std", "/dev/fd/", "/proc/self/fd/")
        ):
            raise OutputError(
                "the output path is not a file", where=str(target), why="it is a device or a pipe", hint="name a file"
            )
        target = through_links(target)
        if not target.parent.is_dir():
            raise OutputError("the output folder does not exist", where=str(target.parent), hint="create it first")
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        leftovers.sweep(target.parent)
        with tempfile.TemporaryFile(dir=target.parent):  # permissions do not tell: root cannot write in /proc
            pass
    except OSError as error:
        raise OutputError(
            "the output cannot be written",
            where=str(target),
            why=error.strerror or str(error),
            hint="give another path, or change the permissions",
        ) from error


def through_links(path: Path) -> Path:
    """Return the file that a link points to, which may not exist yet; any other path as it is.

    Raises:
        OutputError: the links lead in a circle.
    """
    if not path.is_symlink():
        return path
    found = Path(os.path.realpath(path))
    if found.is_symlink():
        raise OutputError(
            "the output path is a link that leads nowhere",
            where=str(path),
            why="following it leads back to the same link",
            hint="delete the link, or give another path",
        )
    return found


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

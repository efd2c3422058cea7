"""Temporary files and folders that a later run can tell to be dead: their names, their locks, and the sweep.

A temporary is locked (flock) as long as its run lives, and its name holds a mark of the machine. One that has the mark
of this machine, and can be locked, is left from a run that was killed. Where a lock says less (files of another machine
on NFS; Windows, where instead an open file cannot be moved), the temporary must also be an hour old.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

OWN = re.compile(r"\.onnxprune-(?:(?P<machine>[0-9a-f]{8})-)?[0-9a-zA-Z_]+\.part")
"""Names of temporaries; those of older versions have no mark of the machine."""
OLD = 3600.0
"""Seconds after which a temporary without a lock is dead, even where the lock may be out of sight."""


@functools.cache
def _machine() -> str:
    return hashlib.sha256(platform.node().encode(errors="replace")).hexdigest()[:8]


def new_name() -> str:
    """Return a name for a temporary that no other one has."""
    return f".onnxprune-{_machine()}-{secrets.token_hex(8)}.part"


def new_file(folder: Path, mode: int = 0o666) -> tuple[Path, int]:
    """Make an empty temporary file; return its path, and the descriptor that keeps it locked.

    Args:
        folder: of the file.
        mode: permissions, before the umask of the process is taken off.

    Raises:
        OSError: the file cannot be made.
    """
    while True:
        path = folder / new_name()
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
        try:
            if _lock(descriptor) is not False and path.exists():  # else a sweep came before the lock
                return path, descriptor
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        os.close(descriptor)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new, private, locked folder among the temporary files of the system; delete it at the end.

    What killed runs have left there is deleted first.

    Raises:
        OSError: the folder cannot be made.
    """
    sweep_temporary()
    path, descriptor = _new_folder(Path(tempfile.gettempdir()))
    try:
        yield path
    finally:
        os.close(descriptor)
        shutil.rmtree(path, ignore_errors=True)


def _new_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder; return its path, and the descriptor that keeps it locked."""
    while True:
        path = parent / new_name()
        path.mkdir(mode=0o700)
        try:
            descriptor = os.open(path, os.O_RDONLY) if os.name != "nt" else os.open(path / "open", os.O_CREAT)
        except FileNotFoundError:  # a sweep came before the lock
            continue
        except BaseException:
            with contextlib.suppress(OSError):
                path.rmdir()
            raise
        if _lock(descriptor) is not False and path.exists():
            return path, descriptor
        os.close(descriptor)


def sweep_temporary() -> None:
    """Delete the temporaries that killed runs of this user have left among the temporary files of the system."""
    with contextlib.suppress(OSError):  # there is no folder for them
        sweep(Path(tempfile.gettempdir()))


def sweep(folder: Path) -> None:
    """Delete the temporaries that killed runs of this user have left in a folder; what cannot be deleted stays."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            name = OWN.fullmatch(entry.name)
            if name is not None:
                with contextlib.suppress(OSError):
                    _sweep(Path(entry), entry.stat(follow_symlinks=False), here=name["machine"] == _machine())


def _sweep(path: Path, status: os.stat_result, *, here: bool) -> None:
    is_folder = stat.S_ISDIR(status.st_mode)
    if not is_folder and not stat.S_ISREG(status.st_mode):
        return
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        return
    is_old = time.time() - status.st_mtime > OLD
    with _locked(path) as locked:
        if locked is False or not (is_old or (here and locked)):
            return
        if os.name == "nt":
            path = path.replace(path.with_name(new_name()))  # fails where a file is open
        if is_folder:
            shutil.rmtree(path)  # follows no links
        else:
            path.unlink()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool | None]:
    """Lock a file or a folder; yield what `_lock` returns."""
    if os.name == "nt":
        yield None
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Lock an open file until it is closed; False: another process has locked it, None: there are no locks."""
    if sys.platform == "win32":
        return None
    import fcntl  # not on Windows

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True

"""Input files: regular files only, opened without waiting and read up to a limit; JSON and TOML that no parser chokes on.

Everything that is wrong with a file ends in an `OSError` or a `ValueError`, which the readers turn into messages of their own.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_BYTES = 2**30
"""Bytes of a text, a JSON or a TOML file, at most."""
LARGEST = 2**64
"""Whole numbers of JSON and TOML are smaller than this."""
DEEP = "it is nested too deeply"
KINDS = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file for reading; a pipe without a writer would make a plain `open` wait for ever, a device read without end.

    Raises:
        OSError: there is no such file, it cannot be read, or it is a folder, a pipe, a socket or a device.

    >>> open_regular("/dev/null")
    Traceback (most recent call last):
    OSError: [Errno 22] it is a device; give a regular file: '/dev/null'
    """
    name = os.fspath(path)
    try:
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a null character in the path
        raise OSError(errno.EINVAL, str(error), name) from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    kind = next((kind for test, kind in KINDS if test(mode)), "no file")
    raise OSError(errno.EINVAL, f"it is {kind}; give a regular file", name)


def read_bytes(path: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """Return the content of a file of at most `most` bytes.

    Raises:
        OSError: as of `open_regular`, or the file is larger.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(most + 1) if size <= most else b""
    if size > most or len(content) > most:
        raise OSError(
            errno.EFBIG, f"it has {max(size, len(content)):,} bytes, at most {most:,} are read", os.fspath(path)
        )
    return content


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8") -> str:
    """Return the text of a file, with `\\n` at the ends of lines.

    Raises:
        OSError: as of `read_bytes`.
        ValueError: the bytes are no text in this encoding.
    """
    return read_bytes(path).decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: the text is no JSON, is nested too deeply, or holds a whole number beyond 64 bits.

    >>> parse_json('{"keep": 99999999999999999999999}')
    Traceback (most recent call last):
    ValueError: the number 99999999999999999999999 is beyond 64 bits
    """
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError(DEEP) from None


def read_json(path: str | os.PathLike[str], encoding: str = "utf-8") -> Any:
    """Read a JSON file.

    Raises:
        OSError: as of `read_bytes`.
        ValueError: as of `parse_json`.
    """
    return parse_json(read_text(path, encoding))


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        OSError: as of `read_bytes`.
        ValueError: the text is no TOML, is nested too deeply, or holds a whole number beyond 64 bits.
    """
    try:
        content: dict[str, Any] = tomllib.loads(read_text(path))
        _check_whole(content)
    except RecursionError:
        raise ValueError(DEEP) from None
    return content


def exists(path: Path) -> bool:
    """Tell whether a path names something; a name that no file can have names nothing.

    >>> exists(Path("a\\0b"))
    False
    """
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _whole(digits: str) -> int:
    """Return a whole number; one of many digits is refused before it is computed, which takes time in their square."""
    if len(digits) > len(str(LARGEST)) + 1 or abs(int(digits)) >= LARGEST:
        raise ValueError(f"the number {digits[:30]}{'…' if len(digits) > 30 else ''} is beyond 64 bits")
    return int(digits)


def _check_whole(value: Any) -> None:
    if isinstance(value, int):
        if abs(value) >= LARGEST:
            raise ValueError(f"a whole number of {value.bit_length()} bits is beyond 64 bits")
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_whole(each)

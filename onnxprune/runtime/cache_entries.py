"""What is kept in the cache folder: measurements of this machine, and of others where the folder is shared."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.errors import OutputError, first_line
from onnxprune.reading import read_json
from onnxprune.runtime.machine import cache_folder

KINDS = {
    "latency-*.json": "latency table",
    "layers-*.json": "times of layers",
    "channel-multiple-*.json": "channel multiple",
    "step.json": "channel multiple, of an older version",
}
"""Patterns of the files that are kept, and what they are. No other file of the folder is shown or removed."""
DAMAGED = "not known, the file is damaged"


@dataclass(frozen=True)
class Entry:
    """A file of the cache.

    Attributes:
        path: of the file.
        kind: what it is, in words.
        machine: processor and number of cores that it was measured on.
        age: seconds since it was written, or last found to hold.
        size: bytes.
    """

    path: Path
    kind: str
    machine: str
    age: float
    size: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**vars(self), "path": str(self.path)}


def entries() -> list[Entry]:
    """Return the files of the cache, sorted by path; none where there is no folder."""
    found, now = [], time.time()
    for pattern, kind in KINDS.items():
        for path in cache_folder().glob(pattern):
            try:
                status = path.stat()
            except OSError:  # another process has removed it
                continue
            found.append(Entry(path, kind, _machine_of(path), max(0.0, now - status.st_mtime), status.st_size))
    return sorted(found, key=lambda entry: entry.path)


def _machine_of(path: Path) -> str:
    try:
        return str(read_json(path)["environment"]["processor"])
    except (OSError, ValueError, KeyError, TypeError):
        return DAMAGED


def clear() -> list[Entry]:
    """Remove the files of the cache; return what was removed.

    Raises:
        OutputError: a file cannot be removed.
    """
    found = entries()
    for entry in found:
        try:
            entry.path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                "a file of the cache cannot be removed",
                where=str(entry.path),
                why=first_line(error),
                hint="check the permissions of the folder",
            ) from error
    return found

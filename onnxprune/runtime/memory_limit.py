"""The memory that a run is expected to take, the memory that this process may take, and the refusal where they do not fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from onnxprune.errors import ModelError

CGROUPS = Path("/sys/fs/cgroup")
"""Folder of the control groups of Linux."""
MEMBERSHIP = Path("/proc/self/cgroup")
"""The control groups of this process."""
BASE = 300e6
"""Bytes of Python and its libraries."""
READ, PRUNED, CHECKED, CALIBRATED = 1.2, 2.5, 3.0, 4.0
"""Bytes of a run per byte of the model, at most: that reads the model, that prunes it without data, that checks a candidate of its size, that
prunes it with data (and then takes `--memory` as well). docs/memory.md has the measurements."""
SURE = 0.7
"""Share of the expected memory without which a run surely fails."""


@dataclass(frozen=True)
class Room:
    """Bytes that this process may still take, and what sets them; `mapped` tells whether pages of files count as well."""

    bytes: float
    source: str
    mapped: bool = False


def expected(size: float, factor: float, memory: float = 0.0) -> float:
    """Return the bytes that a run on a model of `size` bytes takes at its peak.

    Args:
        size: bytes of the model and its external data.
        factor: `READ`, `PRUNED`, `CHECKED` or `CALIBRATED`.
        memory: the value of `--memory`, with data.

    >>> f"{expected(1e9, PRUNED) / 1e9:.1f} GB"
    '2.8 GB'
    """
    return BASE + factor * size + memory


def require(size: float, factor: float, where: str, memory: float = 0.0) -> None:
    """Refuse a model that surely does not fit; arguments as for `expected`.

    Raises:
        ModelError: with both figures.
    """
    needed = expected(size, factor, memory)
    for room in rooms():
        surely = SURE * (factor * size + memory) + (size if room.mapped else 0)
        if surely > room.bytes:
            raise ModelError(
                "the model does not fit into the memory of this process",
                where=where,
                why=f"about {needed / 1e9:.2g} GB are needed for {size / 1e9:.2g} GB of weights, {max(room.bytes, 0) / 1e9:.2g} GB are left: {room.source}",
                hint="raise that limit, or run on a machine with more memory"
                + ("; or give less --memory" if memory else ""),
            )


def rooms() -> Iterator[Room]:
    """Yield what bounds the memory of this process: its own limit, those of its control groups, and the machine."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            yield Room(limit - psutil.Process().memory_info().vms, "the limit of address space (ulimit -v)", True)
    for folder, limit_file, used_file in _groups():
        limit_bytes, used = _number(folder / limit_file), _number(folder / used_file)
        if limit_bytes is not None and used is not None and limit_bytes < psutil.virtual_memory().total:
            yield Room(limit_bytes - used + _cache(folder), f"the limit of the control group ({folder / limit_file})")
    with contextlib.suppress(OSError, RuntimeError):
        yield Room(psutil.virtual_memory().available + psutil.swap_memory().free, "the free memory of this machine")


def _groups() -> Iterator[tuple[Path, str, str]]:
    """Yield the folders of the control groups that hold this process, with the files of limit and use; versions 2 and 1."""
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "", "")
        second = number == "0" and not controllers
        if not second and "memory" not in controllers.split(","):
            continue
        top = CGROUPS if second else CGROUPS / "memory"
        names = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        inner = top / path.lstrip("/")
        for folder in dict.fromkeys((inner, *inner.parents)):
            if top == folder or top in folder.parents:
                yield folder, *names


def _number(file: Path) -> float | None:
    """Return the number in a file; None where there is none, as with `max`."""
    try:
        return float(int(file.read_text(encoding="ascii")))
    except (OSError, ValueError):
        return None


def _cache(folder: Path) -> float:
    """Return the bytes of a control group that are pages of files, which the system takes back."""
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return float(value)
    return 0.0

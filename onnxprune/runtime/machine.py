"""The machine at hand: what a latency depends on beside the model, and where measurements are kept."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from onnxprune.errors import OutputError
from onnxprune.output import staged
from onnxprune.runtime.session import ORT_VERSION

LEAST_SECONDS = 0.1
"""The system counts processor time in hundredths of a second; of less than this it says nothing."""


@dataclass(frozen=True)
class Environment:
    """What a latency depends on beside the model."""

    processor: str
    runtime: str
    threads: int
    batch: int
    provider: str = "CPUExecutionProvider"


def environment(threads: int, batch: int) -> Environment:
    """Describe this machine."""
    return Environment(_processor(), ORT_VERSION, threads, batch)


@functools.cache
def _processor() -> str:
    cores = os.cpu_count() or 1
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {cores} cores"


def cache_folder() -> Path:
    """Return where tables are kept from run to run."""
    return Path(os.environ.get("ONNXPRUNE_CACHE") or platformdirs.user_cache_dir("onnxprune", appauthor=False))


def keep(path: Path, text: str) -> None:
    """Write a file of the cache; one that cannot be written costs time at the next run, nothing else."""
    with contextlib.suppress(OSError, OutputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[tuple[int, ...]]:
    """Keep this process on as many processors as it has threads, so that it does not move from one to another while it is timed.

    Sessions opened inside inherit it. Where the system does not allow it, nothing happens.

    Args:
        threads: of onnxruntime; 0: its own choice, which is left alone.

    Yields:
        The processors; empty where nothing was pinned.
    """
    if not hasattr(os, "sched_getaffinity"):
        yield ()
        return
    allowed = sorted(os.sched_getaffinity(0))
    if not 0 < threads < len(allowed):
        yield ()
        return
    chosen = tuple(allowed[-threads:])  # the first one serves most interrupts
    try:
        os.sched_setaffinity(0, chosen)
    except OSError:
        yield ()
        return
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, allowed)


@contextlib.contextmanager
def watched() -> Iterator[Callable[[], float | None]]:
    """Watch what other processes take of the processors.

    Yields:
        A function that returns, at the end, how many processors they kept busy on average; None where the system does not tell.
    """
    begin, first = _processor_seconds(), time.perf_counter()
    last: list[tuple[tuple[float, float] | None, float]] = []
    try:
        yield lambda: _others(begin, last[0][0], last[0][1] - first) if last else None
    finally:
        last.append((_processor_seconds(), time.perf_counter()))


def _others(begin: tuple[float, float] | None, end: tuple[float, float] | None, seconds: float) -> float | None:
    if begin is None or end is None or seconds < LEAST_SECONDS:
        return None
    return max(0.0, (end[0] - begin[0]) - (end[1] - begin[1])) / seconds


def _processor_seconds() -> tuple[float, float] | None:
    """Return how long all processors were busy since the system started, and how long for this process."""
    try:
        words = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        user, nice, system, _, _, irq, softirq = (int(word) / os.sysconf("SC_CLK_TCK") for word in words[1:8])
    except (OSError, ValueError):
        return None
    return user + nice + system + irq + softirq, time.process_time()

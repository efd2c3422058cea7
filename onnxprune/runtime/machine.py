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
import psutil

from onnxprune.errors import OutputError
from onnxprune.fileio import atomic_write
from onnxprune.runtime.session import CPU_PROVIDER, ORT_VERSION, SessionConfig

MIN_SECONDS = 0.1
"""Shortest time of which the system's count of processor time, in hundredths of a second, says anything."""


@dataclass(frozen=True)
class Environment:
    """What a latency depends on beside the model."""

    processor: str
    runtime: str
    threads: int
    batch: int
    provider: str = CPU_PROVIDER


def environment(config: SessionConfig, batch: int) -> Environment:
    """Describe this machine and how a model is executed on it."""
    return Environment(_processor(), ORT_VERSION, config.threads, batch, config.provider)


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
        with atomic_write(path) as temporary:
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
    begin, first = _seconds_of_others(), time.perf_counter()
    found: list[float | None] = [None]
    try:
        yield lambda: found[0]
    finally:
        end, seconds = _seconds_of_others(), time.perf_counter() - first
        if begin is not None and end is not None and seconds >= MIN_SECONDS:
            found[0] = max(0.0, end - begin) / seconds


def _seconds_of_others() -> float | None:
    """Return the processor seconds of all other processes since the system started."""
    try:
        times = psutil.cpu_times()
    except (OSError, RuntimeError):
        return None
    busy = sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq"))
    return float(busy) - time.process_time()

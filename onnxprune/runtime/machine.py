"""The machine: its name, the load of other processes, pinning, and the folder where measurements are cached."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs
import psutil

from onnxprune.errors import OutputError
from onnxprune.fileio import atomic_write
from onnxprune.runtime.providers import CPU_PROVIDER
from onnxprune.runtime.session import ORT_VERSION, SessionConfig

MIN_SECONDS = 0.1
"""Shortest time over which load is measured: the system counts processor time in hundredths of a second."""


@dataclass(frozen=True)
class Environment:
    """What a latency depends on beside the model; `provider` has its options, and `fallback` is as in `SessionConfig`."""

    processor: str
    runtime: str
    threads: int
    batch: int
    provider: str = CPU_PROVIDER
    fallback: bool = False


def environment(config: SessionConfig, batch: int) -> Environment:
    """Return the environment of models that are executed on this machine."""
    return Environment(_processor(), ORT_VERSION, config.threads, batch, config.label, config.fallback)


def environment_from(content: Mapping[str, object]) -> Environment:
    """Return the environment that a file holds.

    Raises:
        TypeError: a value is missing or unknown.
        ValueError: a value is of another type.

    >>> environment_from({"processor": "p", "runtime": "1", "threads": "many", "batch": 1})
    Traceback (most recent call last):
    ValueError: threads of the environment is 'many'
    """
    found = Environment(**content)  # type: ignore[arg-type]
    for name, usual in asdict(Environment("", "", 0, 0)).items():
        if type(getattr(found, name)) is not type(usual):
            raise ValueError(f"{name} of the environment is {getattr(found, name)!r}")
    return found


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
    """Return the folder of tables that are kept from run to run."""
    return Path(os.environ.get("ONNXPRUNE_CACHE") or platformdirs.user_cache_dir("onnxprune", appauthor=False))


def cache_file(kind: str, what: Any) -> Path:
    """Return the path of what is kept under a kind; `what` are JSON values that tell it from others of this kind."""
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]
    return cache_folder() / f"{kind}-{key}.json"


def keep(path: Path, text: str) -> None:
    """Write a file of the cache; if that fails, the next run measures again."""
    with contextlib.suppress(OSError, OutputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[tuple[int, ...]]:
    """Pin this process, and the sessions opened inside, to as many processors as it has threads.

    A process that moves between processors is timed less reliably. Nothing is pinned where `threads` is 0 (onnxruntime's own choice),
    or where the system does not allow it.

    Yields:
        The processors; empty where nothing is pinned.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    chosen = tuple(allowed[-threads:]) if 0 < threads < len(allowed) else ()  # the first one serves most interrupts
    try:
        if chosen:
            os.sched_setaffinity(0, chosen)
    except OSError:
        chosen = ()
    try:
        yield chosen
    finally:
        if chosen:
            os.sched_setaffinity(0, allowed)


def watch_others() -> Callable[[], float | None]:
    """Start to measure the load of other processes.

    Returns:
        A function that returns how many processors they have kept busy since, on average; None where the system does not tell.
    """
    begin, start = _seconds_of_others(), time.perf_counter()

    def busy() -> float | None:
        end, seconds = _seconds_of_others(), time.perf_counter() - start
        return None if begin is None or end is None or seconds < MIN_SECONDS else max(0.0, end - begin) / seconds

    return busy


def _seconds_of_others() -> float | None:
    """Return the processor seconds of all other processes since the system started."""
    try:
        times = psutil.cpu_times()
    except (OSError, RuntimeError):
        return None
    busy = sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq"))
    return float(busy) - time.process_time()

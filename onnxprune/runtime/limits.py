"""Limits of a run of somebody else's graph: seconds, and memory.

A graph without a Loop, a Scan or a SequenceMap ends after its last node. The body of those may be run without end, and that cannot be
told from the graph: their runs alone are watched.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import sys
import threading
import time
from collections.abc import Iterator

import onnxruntime as ort

from onnxprune.errors import OptionError, RunLimitError
from onnxprune.runtime.memory_limit import rooms

VARIABLE = "ONNXPRUNE_TIMEOUT"
"""Environment variable of the time limit; worker processes inherit it."""
SECONDS = 60.0
"""Time limit of a run, unless the variable says another one; 0: none."""
LEAST_FREE = 0.04
"""Share of the free memory that a watched run leaves free."""
TICK = 0.1
"""Seconds between two looks at a watched run."""
REPEATING = (b"Loop", b"Scan", b"SequenceMap")
"""Operators that run a body, whose rounds nothing limits."""
MARKS = tuple(b'"' + bytes([len(name)]) + name for name in REPEATING)
"""Bytes of a file with such an operator: field 4 of a NodeProto, the length, the name."""


def free_memory() -> int:
    """Return the bytes of memory that this process may still take: of the machine, its control group, or its own limit."""
    return max(0, int(min((room.bytes for room in rooms()), default=sys.maxsize)))


def seconds() -> float:
    """Return the time limit of a run; infinity where there is none.

    Raises:
        OptionError: the environment variable is no number from 0.
    """
    text = os.environ.get(VARIABLE) or str(SECONDS)
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not found >= 0:
        raise OptionError(f"{VARIABLE}={text!r} is no time limit", hint="give seconds, for instance 60; 0: no limit")
    return found or math.inf


def may_repeat(source: bytes | str) -> bool:
    """Tell whether a model, its bytes or the path of its file, holds an operator that repeats a body.

    >>> may_repeat(b'..."\\x04Loop...')
    True
    """
    if isinstance(source, bytes):
        return any(mark in source for mark in MARKS)
    with open(source, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(mark) >= 0 for mark in MARKS)


@contextlib.contextmanager
def watched(where: str) -> Iterator[ort.RunOptions]:
    """Yield the options of a run that is ended after `seconds`, or when the memory that was free is nearly used up.

    A run ends between two nodes: one operator on large tensors is waited for.

    Raises:
        RunLimitError: the run was ended.
    """
    options, done, reasons = ort.RunOptions(), threading.Event(), list[str]()
    options.log_severity_level = 4
    limit, memory = seconds(), LEAST_FREE * free_memory()
    end = time.monotonic() + limit

    def watch() -> None:
        while not done.wait(TICK):
            if time.monotonic() >= end:
                reasons.append(f"it did not end within {limit:g} s")
            elif free_memory() < memory:
                reasons.append(f"less than {memory / 1e6:,.0f} MB of memory were left")
            if reasons:
                options.terminate = True
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield options
    except Exception as error:
        if not reasons:
            raise
        raise RunLimitError(
            "a run of the model was ended",
            where=where,
            why=f"{reasons[0]}; it repeats nodes ({', '.join(name.decode() for name in REPEATING[:2])}), perhaps without end",
            hint="--timeout SECONDS allows more, and --timeout 0 any time; or export the model without the loop",
        ) from error
    finally:
        done.set()
        thread.join()

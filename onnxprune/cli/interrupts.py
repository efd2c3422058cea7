"""Signals that end a command: SIGINT, SIGTERM and SIGHUP are one thing, a `KeyboardInterrupt` that deletes what was begun."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
GRACE = 5.0
"""Seconds after a signal in which further ones are ignored, so that files are deleted in peace."""


class Interrupted(KeyboardInterrupt):
    """A signal came.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return the exit code, as a shell has it: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT)


@contextlib.contextmanager
def caught() -> Iterator[None]:
    """Raise `Interrupted` at a signal. One that is ignored stays so, as SIGHUP under `nohup`; other threads have no say."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -GRACE

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last > GRACE:
            last = time.monotonic()
            raise Interrupted(number)

    before = {each: signal.getsignal(each) for each in SIGNALS}
    ours = [each for each, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for each in ours:
        signal.signal(each, handle)
    try:
        yield
    finally:
        if last < 0:  # after a signal the process ends, and what runs then is not disturbed either
            for each in ours:
                signal.signal(each, before[each])

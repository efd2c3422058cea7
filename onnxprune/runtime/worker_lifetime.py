"""Jobs in worker processes end when the run ends, however it ends, and their temporary files go with them.

Each worker has a thread that looks a few times a second whether the process that started it is alive and wants its job. Where it is not, the
job is interrupted as Ctrl-C would, so that it deletes what it has begun; a worker without a parent ends.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from onnxprune import leftovers

POLL = 0.2
"""Seconds between looks at the parent."""
GRACE = 5.0
"""Seconds that an interrupted job has to delete its files."""
STOP = "stop"


@dataclass(frozen=True)
class Crew:
    """The workers of one run.

    Attributes:
        parent: id of the process that started them.
        folder: of their temporary files, which goes with the run; a file `STOP` in it ends their jobs.
    """

    parent: int
    folder: Path

    def stop(self) -> None:
        """Interrupt the jobs; return when they have ended, at the latest after `GRACE`."""
        (self.folder / STOP).touch()
        end = time.monotonic() + GRACE
        while any(_is_running(int(mark.name[4:])) for mark in self.folder.glob("job-*")) and time.monotonic() < end:
            time.sleep(0.02)

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for the jobs."""
        return self.is_orphaned or (self.folder / STOP).exists()

    @property
    def is_orphaned(self) -> bool:
        """Whether the parent is gone."""
        return os.getppid() != self.parent or not psutil.pid_exists(self.parent)


def _is_running(process: int) -> bool:
    try:
        return psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


@contextlib.contextmanager
def crew() -> Iterator[Crew]:
    """Yield the crew of a run in this process; its folder is deleted at the end, or by a later run."""
    with leftovers.temporary_folder() as folder:
        yield Crew(os.getpid(), folder)


@contextlib.contextmanager
def job(crew: Crew) -> Iterator[None]:
    """Run a job in a worker: temporary files go into the folder of the crew, and the job is interrupted when nobody waits for it.

    Raises:
        KeyboardInterrupt: nobody waits for the job.
    """
    mark = crew.folder / f"job-{os.getpid()}"
    before = tempfile.tempdir
    watch = _watch()
    try:
        mark.touch()
        tempfile.tempdir = str(crew.folder)
        with watch.lock:
            watch.crew = crew
        yield
    finally:
        with watch.lock:
            watch.crew = None
        tempfile.tempdir = before
        with contextlib.suppress(OSError):
            mark.unlink(missing_ok=True)


class _Watch(threading.Thread):
    """The thread of a worker that looks whether somebody waits for its job."""

    def __init__(self) -> None:
        super().__init__(name="onnxprune-watch", daemon=True)
        self.lock = threading.Lock()
        self.crew: Crew | None = None

    def run(self) -> None:
        interrupted = last = None
        while True:
            time.sleep(POLL)
            with self.lock:
                now = self.crew
                if now is not None and now is not interrupted and now.is_over:
                    interrupted = now
                    _interrupt()
            last = now or last
            if last is not None and last.is_orphaned:
                self._end(last)

    def _end(self, last: Crew) -> None:
        """End the process, as soon as its job has deleted its files."""
        end = time.monotonic() + GRACE
        while self.crew is not None and time.monotonic() < end:
            time.sleep(POLL / 10)
        shutil.rmtree(last.folder, ignore_errors=True)
        os._exit(1)


def _interrupt() -> None:
    """Raise KeyboardInterrupt in the main thread, also while it waits in a system call."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGINT)
    else:
        _thread.interrupt_main()


@functools.cache
def _watch() -> _Watch:
    """Return the thread of this process."""
    if threading.current_thread() is threading.main_thread():  # also where the command ignores it, as in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    found = _Watch()
    found.start()
    return found

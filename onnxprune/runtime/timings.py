"""A table of the times that decisions are taken from: measured once, written to a file, and replayed from it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from onnxprune.errors import LatencyError, OutputError, content_fault
from onnxprune.fileio import write_json
from onnxprune.reading import read_json
from onnxprune.runtime import machine
from onnxprune.runtime.session import DEFAULT

SCHEMA = "onnxprune.timings/1"


class Timings:
    """The times of a run, by key: a time is measured where it is asked for first, and is the same from then on.

    Whatever is decided by time asks here, so that the same times lead to the same model. Keys name what was timed: its
    operators and shapes, the batch, the execution provider and the threads.

    Args:
        path: file with the times of an earlier run; it gets what is measured in addition, see `kept`. None, or a file
            that does not exist: all is measured.

    Attributes:
        path: the file.
        replayed: number of times that were read from the file and used.
        measured: number of times that were measured.

    Raises:
        LatencyError: the file is no timing table, or a time is not finite and positive.

    >>> timings = Timings()
    >>> timings.of("layer", 2, lambda: [0.5, 0.25])
    (0.5, 0.25)
    >>> timings.of("layer", 2, lambda: [9.0, 9.0])
    (0.5, 0.25)
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.measured = 0
        self.elsewhere = self.unwritten = ""
        self._times: dict[str, tuple[float, ...]] = {}
        self._tables: dict[str, Mapping[str, Any]] = {}
        self._unused: set[str] = set()
        if path is not None and path.exists():
            self._read(path)
        self._from_file = len(self._unused)

    @property
    def replayed(self) -> int:
        """Number of times that were read from the file and used."""
        return self._from_file - len(self._unused)

    def of(self, key: str, count: int, measure: Callable[[], Sequence[float]]) -> tuple[float, ...]:
        """Return `count` times in milliseconds, or another figure that time decides: as recorded, else as `measure` returns.

        Raises:
            LatencyError: the file has another number of times under this key.
        """
        if key not in self._times:
            self._times[key] = tuple(map(float, measure()))
            self.measured += 1
        self._unused.discard(key)
        found = self._times[key]
        if len(found) != count:
            self._refuse(f"`{key}` has {len(found)} times instead of {count}")
        return found

    def table(self, key: str, measure: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return measurements that are more than a few times, as JSON holds them: as recorded, else as `measure` returns."""
        if key not in self._tables:
            self._tables[key] = measure()
            self.measured += 1
        self._unused.discard(key)
        return self._tables[key]

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the file was used, for the report; empty where there is no file."""
        if self.path is None:
            return ()
        used = f"timings {self.path}: {self.replayed} replayed, {self.measured} measured"
        return (used, *(told for told in (self.elsewhere, self.unwritten) if told))

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Write what was measured to the file when the `with` block ends, also by an error.

        Where the file cannot be written the run goes on, and `notes` say so.
        """
        try:
            yield
        finally:
            if self.path is not None and self.measured:
                try:
                    self.save(self.path)
                except OutputError as error:
                    self.unwritten = f"the timings were not written: {error.where}: {error.why}"

    def save(self, path: Path) -> None:
        """Write all times to a file.

        Raises:
            OutputError: the file cannot be written.
        """
        where = machine.environment(DEFAULT, 0)
        about = {"schema": SCHEMA, "processor": where.processor, "runtime": where.runtime}
        write_json(path, {**about, "times": self._times, "tables": self._tables})

    def _read(self, path: Path) -> None:
        try:
            content = read_json(path)
            if content["schema"] != SCHEMA:
                self._refuse(f"its schema is {content['schema']!r}, this version reads {SCHEMA!r}")
            made_on = f"{content['processor']}, onnxruntime {content['runtime']}"
            self._times = {key: tuple(map(_positive, values)) for key, values in content["times"].items()}
            self._tables = {key: dict(table.items()) for key, table in content["tables"].items()}
            _refuse_infinite(self._tables)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            self._refuse(content_fault(error))
        self._unused = {*self._times, *self._tables}
        where = machine.environment(DEFAULT, 0)
        here = f"{where.processor}, onnxruntime {where.runtime}"
        if made_on != here:
            self.elsewhere = f"the timings were measured on {made_on}; this machine is {here}"

    def _refuse(self, why: str) -> NoReturn:
        raise LatencyError(
            "the timing table cannot be used",
            where=str(self.path),
            why=why,
            hint="give the file of an earlier run with --timings, or a path where there is no file yet",
        )


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{str(value)[:40]!r} is no finite and positive time")
    return float(value)


def _refuse_infinite(value: Any) -> None:
    """Raise ValueError where a number within JSON values is not finite."""
    if isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            _refuse_infinite(each)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")

"""Times of layers that are kept from run to run: the same command chooses the same edits on the same machine."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from onnxprune.reading import read_json
from onnxprune.runtime import machine
from onnxprune.runtime.session import SessionConfig

SCHEMA = "onnxprune.layer-times/1"
MOST = 20_000
"""Layers that are kept, the latest ones; a file of so many takes about 1.5 MB."""


class LayerTimes:
    """Milliseconds of layers by key, in a file of the user's cache for each machine and way to run a layer.

    A file that is damaged or of another machine counts as empty.

    Args:
        config: how layers are run; it is part of the machine's environment.
        batch: samples of a run.
    """

    def __init__(self, config: SessionConfig, batch: int) -> None:
        self._where = machine.environment(config, batch)
        self.path: Path = machine.cache_file("layers", asdict(self._where))
        self._times = self._read()
        self._new: dict[str, tuple[float, ...]] = {}

    def of(self, key: str, count: int, measure: Callable[[], Sequence[float]]) -> tuple[float, ...]:
        """Return `count` times under a key: as kept, else as `measure` returns."""
        found = self._new.get(key) or self._times.get(key)
        if found is None or len(found) != count:
            found = self._new[key] = tuple(map(float, measure()))
        return found

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Write what was measured when the `with` block ends, beside what other processes have written meanwhile."""
        try:
            yield
        finally:
            if self._new:
                times = {**self._read(), **self._new}
                content = {
                    "schema": SCHEMA,
                    "environment": asdict(self._where),
                    "times": dict(list(times.items())[-MOST:]),
                }
                machine.keep(self.path, json.dumps(content))
                self._times, self._new = times, {}

    def _read(self) -> dict[str, tuple[float, ...]]:
        try:
            content = read_json(self.path)
            if content["schema"] != SCHEMA or content["environment"] != asdict(self._where):
                return {}
            found = {key: tuple(map(float, times)) for key, times in content["times"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return {}  # there is none, or it is damaged: layers are measured
        return {key: times for key, times in found.items() if all(0 < time < math.inf for time in times)}

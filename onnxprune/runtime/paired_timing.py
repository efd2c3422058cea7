"""Compare the latency of two models so that neither chance nor a busy machine decides.

Two sessions of one and the same model differ, too: by where their memory lies, and by what else the machine does. So each round opens
sessions of its own and runs them in turn, and a ratio is believed as far as the rounds agree. The interval is the range of all of them:
it misses the median with a probability of 2 ** -ROUNDS on each side, whatever the times are distributed like. A model that is as fast as
its rival is thus told slower once in 4,096 times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.runtime import machine
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.timing import time_runs
from onnxprune.types import FloatArray

if TYPE_CHECKING:
    import onnxruntime as ort

ROUNDS = 12
FEWEST_RUNS = 3
"""Runs of each model in a round, at least."""
BUSY = 0.2
"""Processors that others keep busy, from which a time by itself says little."""


@dataclass(frozen=True)
class PairedTiming:
    """Two models, timed in rounds.

    Attributes:
        a, b: median milliseconds per run of each round.
        runs: of each model, in all rounds together.
        others: processors that other processes kept busy meanwhile; None where the system does not tell.
    """

    a: tuple[float, ...]
    b: tuple[float, ...]
    runs: int
    others: float | None

    @property
    def ratios(self) -> FloatArray:
        """How many times as fast b is, by round."""
        return np.asarray(self.a, dtype=np.float64) / np.asarray(self.b, dtype=np.float64)

    @property
    def busy(self) -> bool:
        """Whether other processes took processors from it."""
        return self.others is not None and self.others > BUSY


def time_pair(
    openers: tuple[Callable[[], ort.InferenceSession], Callable[[], ort.InferenceSession]],
    feeds: Feeds,
    *,
    runs: int,
    warmup: int,
    seconds: float,
    progress: Callable[[float], None],
) -> PairedTiming:
    """Time two models.

    Args:
        openers: open a session of each.
        feeds: inputs of both.
        runs: of each model that count, in all rounds together.
        warmup: of each model that do not.
        seconds: what the counted runs should take at most, after three in every round.
        progress: called with the share that is done.
    """
    times: list[Sequence[float]] = []
    count = 0
    with machine.watched() as others:
        for number in range(ROUNDS):
            order = (0, 1) if number % 2 else (1, 0)  # which one is opened and run first must not matter
            opened = [openers[index]() for index in order]
            found = time_runs(
                opened,
                (feeds, feeds),
                runs=max(FEWEST_RUNS, -(-runs // ROUNDS)),
                warmup=max(1, -(-warmup // ROUNDS)),
                threads=0,
                batch=0,
                seconds=seconds / ROUNDS,
                fewest=FEWEST_RUNS,
            )
            assert found.b is not None
            times.append((found.a, found.b) if order == (0, 1) else (found.b, found.a))
            count += found.runs
            progress((number + 1) / ROUNDS)
    a, b = zip(*times, strict=True)
    return PairedTiming(a, b, count, others())

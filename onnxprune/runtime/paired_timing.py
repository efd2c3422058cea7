"""Compare the latency of two models in rounds, with an interval.

Two sessions of the same model differ, too: their memory lies elsewhere, and the machine is not idle. Each round opens new sessions and
interleaves their runs. The interval is the range of the ratios of all rounds. It misses the median with probability 2 ** -ROUNDS on
each side, for any distribution of the times: a model that is as fast as the other one is reported as slower once in 4,096 times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.runtime import machine
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.timing import sample_times
from onnxprune.types import FloatArray

if TYPE_CHECKING:
    import onnxruntime as ort

ROUNDS = 12
MIN_RUNS = 3
"""Runs of each model in a round, at least."""
BUSY = 0.2
"""Processors that other processes keep busy, above which absolute times are unreliable."""


@dataclass(frozen=True)
class PairedTiming:
    """Median milliseconds per run of two models, by round.

    Attributes:
        runs: runs of each model, in all rounds together.
        others: processors that other processes kept busy; None where the system does not tell.
    """

    a: tuple[float, ...]
    b: tuple[float, ...]
    runs: int
    others: float | None

    @property
    def ratios(self) -> FloatArray:
        """Speed-up of b over a, (rounds,)."""
        return np.asarray(self.a, dtype=np.float64) / np.asarray(self.b, dtype=np.float64)

    @property
    def busy(self) -> bool:
        """Whether other processes disturbed the timing."""
        return self.others is not None and self.others > BUSY


def median_interval(values: FloatArray) -> tuple[float, float]:
    """Return an interval of the median of `values`, (rounds,), which it misses with probability 2 ** -ROUNDS on each side, at most.

    It is made of two of the sorted values (David and Nagaraja, 2003, "Order Statistics", section 7.1): of `ROUNDS` values
    the least and the largest, of more values inner ones. Of fewer it is the range, too.

    >>> median_interval(np.arange(12.0)), median_interval(np.arange(36.0))
    ((0.0, 11.0), (7.0, 28.0))
    """
    n = values.size
    place = missed = 0
    while (missed := missed + math.comb(n, place)) <= 2 ** max(n - ROUNDS, 0):
        place += 1
    ordered = np.sort(values)
    first = max(place - 1, 0)
    return float(ordered[first]), float(ordered[n - 1 - first])


def time_pair(
    openers: tuple[Callable[[], ort.InferenceSession], Callable[[], ort.InferenceSession]],
    feeds: Feeds,
    *,
    runs: int,
    warmup: int,
    seconds: float,
    progress: Callable[[float], None],
) -> PairedTiming:
    """Time two models on the same inputs.

    Args:
        openers: functions that open a session of each model.
        feeds: inputs.
        runs: counted runs of each model, in all rounds together.
        warmup: uncounted runs of each model, in all rounds together.
        seconds: time limit of the counted runs; at least `MIN_RUNS` are made in every round.
        progress: called with the share of rounds that is done.
    """
    medians = np.empty((2, ROUNDS))
    count = 0
    others = machine.watch_others()
    for number in range(ROUNDS):
        order = [0, 1] if number % 2 else [1, 0]  # the order of opening and running must not matter
        samples = sample_times(
            [openers[index]() for index in order],
            (feeds, feeds),
            runs=max(MIN_RUNS, -(-runs // ROUNDS)),
            warmup=max(1, -(-warmup // ROUNDS)),
            seconds=seconds / ROUNDS,
            min_runs=MIN_RUNS,
        )
        medians[order, number] = np.median(samples, axis=1)
        count += samples.shape[1]
        progress((number + 1) / ROUNDS)
    a, b = medians.tolist()
    return PairedTiming(tuple(a), tuple(b), count, others())

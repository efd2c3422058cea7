"""Time sessions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.runtime.session import Feeds, run_batch

if TYPE_CHECKING:
    import onnxruntime as ort

RESAMPLES = 2000
TOLD = 0.2
"""Seconds between reports of progress."""


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    def __call__(self) -> float:
        """Return them."""
        return time.perf_counter() - self._begin


@dataclass(frozen=True)
class Latency:
    """Milliseconds per run of one or two models, measured in turn.

    Attributes:
        a, b: median milliseconds of each; `b` is None when only one model was timed.
        a_interval, b_interval: 95 % bootstrap interval of each median.
        speedup: median of a / median of b: above 1, b is faster.
        speedup_interval: 95 % bootstrap interval of it, over pairs of runs.
        runs, batch, threads: how it was measured; threads 0 is onnxruntime's own choice.
    """

    a: float
    a_interval: tuple[float, float]
    b: float | None
    b_interval: tuple[float, float] | None
    speedup: float | None
    speedup_interval: tuple[float, float] | None
    runs: int
    batch: int
    threads: int


def time_runs(
    sessions: Sequence[ort.InferenceSession],
    feeds: Sequence[Feeds],
    *,
    runs: int,
    warmup: int,
    threads: int,
    batch: int,
    seconds: float = 60.0,
    fewest: int = 10,
    progress: Callable[[float], None] | None = None,
) -> Latency:
    """Time one or two sessions, run in turn so that a drift of the machine meets both.

    Args:
        sessions: one or two.
        feeds: inputs of each.
        runs: counted runs of each.
        warmup: runs of each that don't count.
        threads: only told in the result.
        batch: only told in the result.
        seconds: stop early when the counted runs take longer than this.
        fewest: runs of each that are made all the same.
        progress: called now and then, between runs, with the share that is done.
    """
    for _ in range(warmup):
        for opened, inputs in zip(sessions, feeds, strict=True):
            run_batch(opened, inputs)
    times: list[list[float]] = [[] for _ in sessions]
    order = list(range(len(sessions)))
    begin = told = time.perf_counter()
    for count in range(runs):
        for index in order if count % 2 == 0 else reversed(order):
            start = time.perf_counter()
            sessions[index].run(None, feeds[index])
            times[index].append(1e3 * (time.perf_counter() - start))
        if progress and time.perf_counter() - told > TOLD:
            told = time.perf_counter()
            progress(max((count + 1) / runs, min(1.0, (told - begin) / seconds)))
        if count + 1 >= fewest and time.perf_counter() - begin > seconds:
            break
    rows = np.array(times)
    picks = np.random.default_rng(0).integers(0, rows.shape[1], (RESAMPLES, rows.shape[1]))
    medians = np.median(rows[:, picks], axis=2)  # (sessions, resamples)

    def interval(values: np.ndarray[Any, Any]) -> tuple[float, float]:
        low, high = np.percentile(values, [2.5, 97.5])
        return float(low), float(high)

    a = float(np.median(rows[0]))
    if len(sessions) == 1:
        return Latency(a, interval(medians[0]), None, None, None, None, rows.shape[1], batch, threads)
    b = float(np.median(rows[1]))
    return Latency(
        a,
        interval(medians[0]),
        b,
        interval(medians[1]),
        a / b,
        interval(medians[0] / medians[1]),
        rows.shape[1],
        batch,
        threads,
    )

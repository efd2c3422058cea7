"""Time sessions: one primitive, whose runs are interleaved so that machine noise affects all sessions equally."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.runtime.providers import CPU_PROVIDER
from onnxprune.runtime.session import Feeds, run_batch
from onnxprune.types import FloatArray

if TYPE_CHECKING:
    import onnxruntime as ort

RESAMPLES = 2000
PROGRESS_INTERVAL = 0.2
"""Seconds between reports of progress."""


def sample_times(
    sessions: Sequence[ort.InferenceSession],
    feeds: Sequence[Feeds],
    *,
    runs: int,
    warmup: int = 0,
    seconds: float = math.inf,
    min_runs: int = 10,
    progress: Callable[[float], None] | None = None,
) -> FloatArray:
    """Time sessions whose runs are interleaved, in alternating order.

    Args:
        sessions: one or more.
        feeds: inputs of each session.
        runs: counted runs of each session.
        warmup: uncounted runs of each session.
        seconds: time limit of the counted runs.
        min_runs: runs of each session that are made regardless of `seconds`.
        progress: called between runs, every `PROGRESS_INTERVAL`, with the share that is done.

    Returns:
        (sessions, runs) milliseconds.

    Raises:
        ModelError: onnxruntime fails on these inputs.
    """
    for _ in range(warmup):
        for opened, inputs in zip(sessions, feeds, strict=True):
            run_batch(opened, inputs)
    times: list[list[float]] = [[] for _ in sessions]
    order = list(range(len(sessions)))
    begin = reported = time.perf_counter()
    for count in range(1, runs + 1):
        for index in order if count % 2 else reversed(order):
            start = time.perf_counter()
            run_batch(sessions[index], feeds[index])
            times[index].append(1e3 * (time.perf_counter() - start))
        now = time.perf_counter()
        if progress and now - reported > PROGRESS_INTERVAL:
            progress(max(count / runs, min(1.0, (now - begin) / seconds)))
            reported = now
        if count >= min_runs and now - begin > seconds:
            break
    return np.array(times)


@dataclass(frozen=True)
class Latency:
    """Milliseconds per run of one or two models, whose runs are interleaved; the second is None where one model is timed.

    Attributes:
        a, b: median of each model.
        a_interval, b_interval: 95 % bootstrap interval of each median.
        speedup: a / b; above 1, b is faster.
        speedup_interval: 95 % bootstrap interval of the speed-up, over pairs of runs.
        threads: of onnxruntime; 0: its own choice.
        provider: execution provider, with its options.
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
    provider: str = CPU_PROVIDER

    @classmethod
    def from_samples(cls, samples: FloatArray, *, batch: int, threads: int, provider: str = CPU_PROVIDER) -> Latency:
        """Summarize (1 or 2, runs) milliseconds."""
        runs = samples.shape[1]
        picks = np.random.default_rng(0).integers(0, runs, (RESAMPLES, runs))
        medians = np.median(samples[:, picks], axis=2)  # (sessions, resamples)
        a, *others = (float(np.median(row)) for row in samples)
        if not others:
            return cls(a, _interval(medians[0]), None, None, None, None, runs, batch, threads, provider)
        b, ratios = others[0], medians[0] / medians[1]
        intervals = (_interval(medians[0]), _interval(medians[1]), _interval(ratios))
        return cls(a, intervals[0], b, intervals[1], a / b, intervals[2], runs, batch, threads, provider)

    @property
    def figures(self) -> tuple[float, ...]:
        """Medians, speed-up, their intervals and the runs of two models, as `with_figures` takes them."""
        assert self.b is not None
        assert self.b_interval is not None
        assert self.speedup is not None
        assert self.speedup_interval is not None
        intervals = (*self.a_interval, *self.b_interval, *self.speedup_interval)
        return (self.a, self.b, self.speedup, *intervals, self.runs)

    def with_figures(self, figures: Sequence[float]) -> Latency:
        """Return the latency of two models with other `figures`."""
        a, b, speedup, a_low, a_high, b_low, b_high, low, high, runs = figures
        return replace(
            self,
            a=a,
            a_interval=(a_low, a_high),
            b=b,
            b_interval=(b_low, b_high),
            speedup=speedup,
            speedup_interval=(low, high),
            runs=round(runs),
        )


def _interval(values: FloatArray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)

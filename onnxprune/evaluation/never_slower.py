"""Tell whether a result is slower than the original; one that seems slower is measured again, in rounds, before it is refused."""

from __future__ import annotations

import numpy as np

from onnxprune.errors import LatencyError
from onnxprune.evaluation.benchmark import BenchmarkConfig, layer_times, side_by_side, timing_key
from onnxprune.graph.model import Model
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.runtime.paired_timing import median_interval, time_pair
from onnxprune.runtime.session import Feeds, open_session
from onnxprune.runtime.timing import Latency
from onnxprune.runtime.timings import Timings
from onnxprune.types import Check

SLOWER = 0.98
"""Speed-up below which a result is slower, if the whole interval is below 1."""
MIN_RUNS, RESOLUTION = 10, 0.005
"""Runs and milliseconds below which a difference is not significant."""
NAMED = 3
"""Number of layers that the error names."""
REPEATS = 3
"""Largest number of times that a result which seems slower is timed again, each in the rounds of `time_pair`."""
CHECK = "speed-up"
"""Name of the check."""


def speed_check(
    original: Model,
    result: Model,
    timed: Latency | None,
    known: dict[str, tuple[int, ...]],
    measure: BenchmarkConfig,
    timings: Timings,
    on_stage: ProgressCallback = quiet,
) -> Check | None:
    """Time a result that seems slower than the original again, until the interval of the speed-up is clear.

    `timed` is the latency of both, None where nothing was timed; `known` are the shapes of the inputs, and `timings` has what
    was measured before.

    Returns:
        A failed check where the result is slower, an undecided one where the interval holds 1 after all rounds, else None.
    """
    if timed is None or not _seems_slower(timed):
        return None
    feeds = original.signature.random_feeds(original.header, measure.batch, 0, known)
    shapes = {name: value.shape for name, value in feeds.items()}
    key = timing_key("rounds", [original, result], shapes, measure)
    ratio, low, high = timings.of(key, 3, lambda: _in_rounds(original, result, feeds, measure, on_stage))
    if ratio >= SLOWER:
        return None
    detail = f"{low:.2f} to {high:.2f}, measured again; batch {timed.batch}, threads {timed.threads or 'default'}"
    return Check(CHECK, ratio, SLOWER, high >= 1, detail, undecided=high >= 1, kind="cost")


def _seems_slower(timed: Latency) -> bool:
    if timed.b is None or timed.speedup is None or timed.speedup_interval is None:
        return False
    if timed.speedup >= SLOWER or timed.speedup_interval[1] >= 1:
        return False
    return timed.runs >= MIN_RUNS and timed.b - timed.a >= RESOLUTION


def _in_rounds(
    original: Model, result: Model, feeds: Feeds, measure: BenchmarkConfig, on_stage: ProgressCallback
) -> tuple[float, float, float]:
    """Return the median of the speed-up over rounds of timing, and its interval."""
    path, config = str(original.path), measure.session
    openers = (lambda: open_session(path, config, where=path), lambda: result.session(config))
    ratios = np.zeros(0)
    low = high = 1.0
    for _ in range(REPEATS):
        found = time_pair(
            openers,
            feeds,
            runs=measure.runs,
            warmup=measure.warmup,
            seconds=measure.seconds,
            progress=share_of(on_stage, "time again"),
        )
        ratios = np.append(ratios, found.ratios)
        low, high = median_interval(ratios)
        if high < 1 or low >= SLOWER:
            break
    return float(np.median(ratios)), low, high


def slower_error(
    original: Model,
    result: Model,
    check: Check,
    timed: Latency,
    known: dict[str, tuple[int, ...]],
    measure: BenchmarkConfig,
) -> LatencyError:
    """Return the error of a result that is slower; it names the layers that take longer."""
    feeds = original.signature.random_feeds(original.header, measure.batch, 0, known)
    rows = side_by_side([layer_times(model, feeds, measure.session) for model in (original, result)])
    times = sorted(((row.name, row.a or 0.0, row.b or 0.0) for row in rows), key=lambda time: time[1] - time[2])
    layers = [f"{name} takes {a:.0f} -> {b:.0f} us" for name, a, b in times[:NAMED] if b > a]
    why = f"{timed.a:.3f} ms before, {timed.b:.3f} ms after; speed-up {check.value:.3f}, {check.detail}"
    return LatencyError(
        "the result is slower than the original",
        where=str(original.path),
        why="; ".join([why, *layers]),
        hint="leave --round-to at auto, ask for less latency instead of FLOPs, or give --force",
    )

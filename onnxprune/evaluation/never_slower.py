"""Refuse a result that is measured to be slower than the original."""

from __future__ import annotations

from onnxprune.errors import LatencyError
from onnxprune.evaluation.benchmark import BenchmarkConfig, layer_times, side_by_side
from onnxprune.graph.model import Model
from onnxprune.runtime.timing import Latency

SLOWER = 0.98
"""Speed-up below which a result is slower, if the whole interval is below 1."""
MIN_RUNS, RESOLUTION = 10, 0.005
"""Runs and milliseconds below which a difference is not significant."""
NAMED = 3
"""Number of layers that the error names."""


def refuse_slower(
    original: Model, result: Model, timed: Latency | None, known: dict[str, tuple[int, ...]], measure: BenchmarkConfig
) -> None:
    """Refuse a result that is measured to be slower than the original.

    Raises:
        LatencyError: the result is slower; the error names the layers that take longer.
    """
    if timed is None or timed.b is None or timed.speedup is None or timed.speedup_interval is None:
        return
    if timed.speedup >= SLOWER or timed.speedup_interval[1] >= 1:
        return
    if timed.runs < MIN_RUNS or timed.b - timed.a < RESOLUTION:
        return
    feeds = original.signature.random_feeds(original.header, measure.batch, 0, known)
    rows = side_by_side([layer_times(model, feeds, measure.session) for model in (original, result)])
    times = sorted(((row.name, row.a or 0.0, row.b or 0.0) for row in rows), key=lambda time: time[1] - time[2])
    layers = [f"{name} takes {a:.0f} -> {b:.0f} us" for name, a, b in times[:NAMED] if b > a]
    raise LatencyError(
        "the result is slower than the original",
        where=str(original.path),
        why=f"{timed.a:.3f} ms before, {timed.b:.3f} ms after (batch {timed.batch}, threads {timed.threads or 'default'}); "
        + "; ".join(layers),
        hint="nothing was written: leave --round-to at auto, ask for less latency instead of FLOPs, or give --force",
    )

"""Refuse a result that is measured to be slower than the original."""

from __future__ import annotations

from onnxprune.errors import LatencyError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.graph.model import Model
from onnxprune.graph.shapes import concrete_shapes
from onnxprune.graph.trace import node_labels
from onnxprune.runtime import profiler
from onnxprune.runtime.session import SessionConfig, random_feeds
from onnxprune.runtime.timing import Latency

SLOWER = 0.98
"""Speed-up below which a result is slower, if all of its interval lies below 1."""
MIN_RUNS, RESOLUTION = 10, 0.005
"""Runs and milliseconds below which a difference says nothing."""
NAMED = 3
"""Layers that are named where a result is slower."""


def refuse_slower(
    original: Model, result: Model, timed: Latency | None, known: dict[str, tuple[int, ...]], measure: BenchmarkConfig
) -> None:
    """Raise LatencyError where a result is measured to be slower than the original, and name the layers that take longer."""
    if timed is None or timed.speedup is None or timed.speedup_interval is None:
        return
    if timed.speedup >= SLOWER or timed.speedup_interval[1] >= 1:
        return
    if timed.runs < MIN_RUNS or timed.b is None or timed.b - timed.a < RESOLUTION:
        return  # nobody can tell
    shapes = concrete_shapes(original.header, measure.batch, known=known)
    raise LatencyError(
        "the result is slower than the original",
        where=str(original.path),
        why=f"{timed.a:.3f} ms before, {timed.b:.3f} ms after (batch {timed.batch}, threads {timed.threads or 'default'}); "
        + "; ".join(_slower_layers(original, result, shapes, measure.session)),
        hint="nothing was written: leave --round-to at auto, ask for less latency instead of FLOPs, or give --force",
    )


def _slower_layers(
    original: Model, result: Model, shapes: dict[str, tuple[int, ...]], config: SessionConfig
) -> list[str]:
    """Return which layers take longer than before, and by how much."""
    labels = node_labels(original.graph)
    feeds = random_feeds(original.header, shapes, 0)
    costs = []
    for model in (original, result):
        proto, weights = model.stub()
        found = profiler.profile(proto, feeds, config, weights=weights)
        each: dict[str, float] = {}
        for kernel in found.kernels:
            name = labels[kernel.node] if kernel.node is not None else f"all {kernel.op} that onnxruntime put in"
            each[name] = each.get(name, 0.0) + kernel.microseconds
        costs.append(each)
    before, after = costs
    more = sorted(((after[name] - before.get(name, 0.0), name) for name in after), reverse=True)[:NAMED]
    return [f"{name} takes {before.get(name, 0.0):.0f} -> {after[name]:.0f} us" for rise, name in more if rise > 0]

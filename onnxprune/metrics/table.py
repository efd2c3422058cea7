"""The metric table: what targets, limits, sweep columns and report rows are about. A new metric is one row.

Light to import: rows ask what they are given for what they need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

SUFFIXES = {"k": 1e3, "m": 1e6, "g": 1e9}
TIMES = {"us": 1e-3, "ms": 1.0, "s": 1e3}
"""Milliseconds in a unit of time; `s` ends all of them and comes last."""


class Costs(Protocol):
    """A selection of channels whose costs are predicted, or a model whose costs are measured."""

    @property
    def macs(self) -> float:
        """Multiply-accumulates per sample."""

    @property
    def params(self) -> float:
        """Parameters."""

    @property
    def size(self) -> float:
        """Bytes of the file."""

    @property
    def memory(self) -> float:
        """Bytes of the activations that are alive at once."""

    @property
    def latency(self) -> float:
        """Milliseconds of a run."""


def _amount(text: str) -> float:
    """Read 300M as 3e8."""
    factor = SUFFIXES.get(text[-1:])
    return float(text) if factor is None else float(text[:-1]) * factor


def _bytes(text: str) -> float:
    """Read 4MB as 4e6."""
    return _amount(text.removesuffix("b").strip())


def _milliseconds(text: str) -> float:
    """Read 2us as 2e-3."""
    unit = next((unit for unit in TIMES if text.endswith(unit)), "")
    return float(text.removesuffix(unit)) * TIMES.get(unit, 1.0)


@dataclass(frozen=True)
class Metric:
    """What can be said of a model in one number.

    Attributes:
        name: in options, plans and reports.
        unit: of the amounts.
        label: in sentences.
        direction: `lower` or `higher` is better.
        predict: amount of a selection, before its model exists; None: it cannot be a target.
        measure: amount of a model: of its `Costs`, or of an `onnxprune.metrics.outputs.OutputPair`; None where it does not apply.
        parse: reads an absolute amount, in lower case; raises ValueError.
        format: how amounts are written in sentences.
        estimated: whether `predict` is an estimate, which measurements of the result correct.
        margin: share of a bound that is aimed at, where two measurements of one model differ.
        kind: `cost`, `accuracy` (against labels) or `fidelity` (to the outputs of the original).
    """

    name: str
    unit: str
    label: str
    direction: str = "lower"
    predict: Callable[[Costs], float] | None = None
    measure: Callable[[Any], float | None] = lambda subject: None
    parse: Callable[[str], float] = float
    format: str = ".3g"
    estimated: bool = False
    margin: float = 1.0
    kind: str = "cost"


def _row(name: str, unit: str, label: str, get: Callable[[Costs], float], **more: Any) -> Metric:
    return Metric(name, unit, label, predict=get, measure=get, **more)


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        _row("flops", "FLOPs", "FLOPs", lambda s: 2 * s.macs, parse=_amount, format=",.0f"),
        _row("params", "", "parameters", lambda s: s.params, parse=_amount, format=",.0f"),
        _row("size", "bytes", "bytes", lambda s: s.size, parse=_bytes, format=",.0f", estimated=True),
        _row(
            "memory", "bytes", "bytes of activations", lambda s: s.memory, parse=_bytes, format=",.0f", estimated=True
        ),
        _row("latency", "ms", "milliseconds", lambda s: s.latency, parse=_milliseconds, estimated=True, margin=0.985),
        Metric("top1", "%", "top-1", "higher", measure=lambda pair: pair.top(1), kind="accuracy"),
        Metric("top5", "%", "top-5", "higher", measure=lambda pair: pair.top(5), kind="accuracy"),
        Metric("cosine", "", "cosine similarity", "higher", measure=lambda pair: pair.cosine(), kind="fidelity"),
        Metric(
            "agreement", "%", "agreement of top-1", "higher", measure=lambda pair: pair.agreement(), kind="fidelity"
        ),
        Metric("kl", "nats", "Kullback-Leibler divergence", measure=lambda pair: pair.kl(), kind="fidelity"),
    )
}
"""All metrics, by name. FLOPs are 2 x MACs per sample."""
TARGETS = tuple(name for name, metric in METRICS.items() if metric.predict is not None)
"""Metrics that targets can be set for."""
ESTIMATED = tuple(name for name, metric in METRICS.items() if metric.estimated)
"""Targets that are predicted while channels are chosen, and then measured of the result."""

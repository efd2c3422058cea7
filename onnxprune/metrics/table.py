"""The metric table, which targets, limits, sweep columns and report rows read. A new metric is one row.

Light to import: rows call methods of their argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

SUFFIXES = {"k": 1e3, "m": 1e6, "g": 1e9}
TIMES = {"us": 1e-3, "ms": 1.0, "s": 1e3}
"""Milliseconds per unit of time; `s` is the end of the others and comes last."""


class Costs(Protocol):
    """Costs of a model: predicted for a selection, or measured."""

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
        """Largest number of bytes of activations that are alive at once."""

    @property
    def latency(self) -> float:
        """Milliseconds per run."""


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
    """A quantity of a model.

    Attributes:
        name: in options, plans and JSON.
        unit: of the amounts; empty for plain numbers, and where the label says it.
        label: in tables, checks and sentences.
        predict: returns the amount of a selection, before its model exists; None: the metric cannot be a target.
        measure: returns the amount of a model, from its `Costs` or from an `onnxprune.metrics.outputs.OutputPair`; None where the metric
            does not apply.
        parse: reads an absolute amount in lower case; raises ValueError.
        format: format specification of the amounts.
        estimated: whether `predict` is an estimate, which is corrected by measuring the result.
        margin: share of a budget that is aimed at, where two measurements of one model differ.
        kind: `cost`, `accuracy` (against labels) or `fidelity` (to the outputs of the original).
        ideal: amount of a perfect model; larger amounts are better where it is above 0.
        needs: what a limit on the metric requires.
    """

    name: str
    unit: str
    label: str
    predict: Callable[[Costs], float] | None = None
    measure: Callable[[Any], float | None] = lambda subject: None
    parse: Callable[[str], float] = float
    format: str = ".3g"
    estimated: bool = False
    margin: float = 1.0
    kind: str = "cost"
    ideal: float = 0.0
    needs: str = ""

    @property
    def direction(self) -> str:
        """Whether `lower` or `higher` amounts are better."""
        return "higher" if self.ideal > 0 else "lower"

    @property
    def title(self) -> str:
        """Label and unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def change(self, before: float, after: float) -> str:
        """Write a change with its sign: percent change by points."""
        unit = "points" if self.unit == "%" else self.unit
        return f"{after - before:+{self.format}} {unit}".rstrip()

    def text(self, amount: float) -> str:
        """Write an amount with its unit."""
        return f"{amount:{self.format}} {self.unit}".rstrip()


def _cost(name: str, unit: str, label: str, get: Callable[[Costs], float], **more: Any) -> Metric:
    return Metric(name, unit, label, predict=get, measure=get, **more)


def _output(name: str, unit: str, label: str, measure: Callable[[Any], float | None], **more: Any) -> Metric:
    return Metric(name, unit, label, measure=measure, **{"kind": "fidelity", "format": ".4f", **more})


PERCENT: dict[str, Any] = {"ideal": 100.0, "format": ".2f"}


def _labelled(name: str, label: str, unit: str = "%", **more: Any) -> Metric:
    return Metric(name, unit, label, **{**PERCENT, "kind": "accuracy", **more})


SCORES = "outputs of the form (samples, classes)"
METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        _cost("flops", "", "FLOPs", lambda s: 2 * s.macs, parse=_amount, format=",.0f"),
        _cost("params", "", "parameters", lambda s: s.params, parse=_amount, format=",.0f"),
        _cost("size", "bytes", "file size", lambda s: s.size, parse=_bytes, format=",.0f", estimated=True),
        _cost("memory", "bytes", "activation memory", lambda s: s.memory, parse=_bytes, format=",.0f", estimated=True),
        _cost("latency", "ms", "latency", lambda s: s.latency, parse=_milliseconds, estimated=True, margin=0.985),
        _labelled("top1", "top-1"),
        _labelled("top5", "top-5"),
        _labelled("accuracy", "accuracy"),
        _labelled("macro_f1", "macro-F1"),
        _labelled("auc", "AUC"),
        _labelled("label_map", "mAP of labels"),
        _labelled("map", "mAP"),
        _labelled("map50", "mAP at IoU 0.5"),
        _labelled("mask_map", "mAP of masks"),
        _labelled("keypoint_map", "mAP of keypoints"),
        _labelled("miou", "mIoU"),
        _labelled("dice", "Dice"),
        _labelled("r2", "R²"),
        _labelled("mae", "mean absolute error", unit="", ideal=0.0, format=".4g"),
        _labelled("rmse", "root mean squared error", unit="", ideal=0.0, format=".4g"),
        _labelled("recall1", "recall at 1"),
        _labelled("recall5", "recall at 5"),
        _labelled("cer", "character error rate", ideal=0.0),
        _labelled("exact", "exact match"),
        _output("agreement", "%", "agreement", lambda p: p.agreement(), needs=SCORES, **PERCENT),
        _output("cosine", "", "cosine", lambda p: p.mean(p.cosine), needs="outputs of numbers", ideal=1.0),
        _output("explained", "%", "explained variance", lambda p: p.explained(), needs="outputs of numbers", **PERCENT),
        _output("kl", "nats", "KL", lambda p: p.kl(), needs=SCORES),
    )
}
"""All metrics, by name. FLOPs are 2 x MACs per sample."""
TASKS: Mapping[str, tuple[str, ...]] = {
    "classify": ("top1", "top5", "macro_f1"),
    "binary": ("accuracy", "auc"),
    "multilabel": ("label_map", "macro_f1", "auc"),
    "regress": ("r2", "mae", "rmse"),
    "embed": ("recall1", "recall5"),
    "detect": ("map", "map50", "mask_map"),
    "segment": ("miou", "dice"),
    "keypoints": ("keypoint_map", "map"),
    "ctc": ("cer", "exact"),
}
"""Metrics of each task, the one that limits are held against first. Where a metric needs more than a model or the labels give (five
classes, masks), it is left out."""
TARGETS = tuple(name for name, metric in METRICS.items() if metric.predict is not None)
"""Metrics that can be targets."""
ESTIMATED = tuple(name for name, metric in METRICS.items() if metric.estimated)
"""Targets that are estimated during the selection and measured on the result."""


def named(name: str) -> Metric:
    """Return the row of a metric; one without unit for a metric of the user's own."""
    return METRICS.get(name) or Metric(name, "", name.replace("_", " "), format=".4f", kind="accuracy")


def of_kind(kind: str) -> list[Metric]:
    """Return the metrics of a kind."""
    return [metric for metric in METRICS.values() if metric.kind == kind]

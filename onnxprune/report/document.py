"""The result of a run as one value, which every format is rendered from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from onnxprune.allocation.latency_model import Table
from onnxprune.evaluation.compare import Comparison
from onnxprune.graph.analysis import Layer
from onnxprune.report.details import Details
from onnxprune.runtime.timing import Latency
from onnxprune.surgery.proof import Proof
from onnxprune.types import Curve, Repaired, Verdict

SCHEMA = "onnxprune.report/1"
ALWAYS = ("top1", "top5")
"""Metrics that are in every report as JSON."""
SWEEP_SCHEMA = "onnxprune.sweep/1"


@dataclass(frozen=True)
class Figures:
    """Figures of one model: FLOPs and MACs per sample, bytes, accuracy metrics by name, and latency where it is measured."""

    flops: float
    macs: float
    params: int
    size: int
    accuracy: Mapping[str, float] = field(default_factory=dict)
    latency_ms: float | None = None
    latency_interval_ms: tuple[float, float] | None = None

    @property
    def top1(self) -> float | None:
        """Top-1 in percent; None without labels of a classifier."""
        return self.accuracy.get("top1")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: those of metrics that apply, and top-1 and top-5, None where they don't."""
        content = asdict(self)
        accuracy = content.pop("accuracy")
        return {**content, **dict.fromkeys(ALWAYS), **accuracy}


def figures(
    found: Comparison, before: tuple[float, int, int], after: tuple[float, int, int]
) -> tuple[Figures, Figures]:
    """Return the figures of both models, from their MACs, parameters and bytes, and from the comparison."""
    first, second = (
        Figures(2 * c[0], *c, accuracy) for c, accuracy in zip((before, after), found.accuracy, strict=True)
    )
    if (latency := found.latency) is not None:
        first = replace(first, latency_ms=latency.a, latency_interval_ms=latency.a_interval)
        second = replace(second, latency_ms=latency.b, latency_interval_ms=latency.b_interval)
    return first, second


@dataclass(frozen=True)
class Report:
    """A run of `prune`, or of `finetune`, where the original is the teacher.

    Attributes:
        model, sha256: the original.
        output: path of the result; None where it was not written.
        settings: options of the run.
        before, after: figures of the original and of the result.
        fidelity: fidelity metrics of the result, by name.
        data, samples: name and number of the samples of accuracy and fidelity.
        latency: of both models; None where it was not measured.
        layers: layers with a weight, in graph order.
        prunable_share: share of MACs in layers that have prunable channels.
        pinned: (reason, node, channels) of each pin.
        proof: pruned against masked; None where no channel was pruned.
        verdict: all checks.
        path: (share of FLOPs removed, share of parameters removed) after each step.
        notes: remarks for the reader.
        repair: error of each repaired layer, in order.
        curves: sensitivity of each group; empty where it was not measured.
        training: see `onnxprune.training.distill.TrainingResult`; None without training.
        versions: of onnxprune, onnxruntime and onnx.
        latency_table: table that latency was predicted from; None where latency was no target.
        blocks: layer edits, in rounds, as in the plan.
        task: what the model does; empty where it is not known.
        lead: name of the metric that quality is judged by; empty without labels.
        lost: how much the result loses of it, in its unit; without labels in points, as `onnxprune.metrics.outputs.lost` has it.
        details: details that only a report needs; None where no report was asked for.
    """

    model: str
    sha256: str
    output: str | None
    settings: dict[str, Any]
    before: Figures
    after: Figures
    fidelity: dict[str, float]
    data: str
    samples: int
    latency: Latency | None
    layers: tuple[Layer, ...]
    prunable_share: float
    pinned: tuple[tuple[str, str, int], ...]
    proof: Proof | None
    verdict: Verdict
    path: tuple[tuple[float, float], ...] = ()
    notes: tuple[str, ...] = ()
    repair: tuple[Repaired, ...] = ()
    curves: tuple[Curve, ...] = ()
    training: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    latency_table: Table | None = None
    blocks: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    task: str = ""
    lead: str = ""
    lost: float | None = None
    details: Details | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with the relative changes."""
        content = asdict(replace(self, details=None))
        content["before"], content["after"] = self.before.to_dict(), self.after.to_dict()
        content["details"] = None if self.details is None else self.details.to_dict()
        if self.proof is not None:  # the key is part of the schema, spelled as in its first version
            content["proof"]["normalised"] = content["proof"].pop("normalized")
        content["pinned"] = [{"reason": reason, "node": node, "channels": count} for reason, node, count in self.pinned]
        content["path"] = [{"flops_removed": flops, "params_removed": params} for flops, params in self.path]
        content["verdict"] = {
            "headline": self.verdict.headline,
            "quality": self.verdict.quality,
            "integrity": self.verdict.integrity,
            "passed": bool(self.verdict),
            "checks": [{**asdict(check), "status": check.status} for check in self.verdict.checks],
        }
        content["latency_table"] = None if self.latency_table is None else self.latency_table.summary()
        content["curves"] = [curve_dict(curve) for curve in self.curves]
        change: dict[str, float | None] = {"speedup": self.latency.speedup if self.latency else None}
        for key in ("flops", "params", "size"):
            before, after = getattr(self.before, key), getattr(self.after, key)
            change[f"{key}_removed"] = 1 - after / before if before else 0.0
        for name in dict.fromkeys((*ALWAYS, *self.before.accuracy)):
            old, new = self.before.accuracy.get(name), self.after.accuracy.get(name)
            change[f"{name}_points"] = None if old is None or new is None else new - old
        return {"schema": SCHEMA, "change": change, **content}


def curve_dict(curve: Curve) -> dict[str, Any]:
    """Return a sensitivity curve for JSON."""
    points = zip(curve.counts.tolist(), curve.losses.tolist(), strict=True)
    return {
        "group": curve.group,
        "channels": int(curve.order.size),
        "points": [{"removed": removed, "loss": loss} for removed, loss in points],
    }


@dataclass(frozen=True)
class Member:
    """One model of a sweep.

    Attributes:
        name: of its files in the folder: `<name>.onnx`, `<name>.plan.json`, `<name>.json` (the report).
        target: share of the quantity to remove.
        flops_removed, params_removed: shares that were removed.
        size: bytes.
        drop: what was lost of the leading metric, in its unit, without labels in points of agreement or explained variance; None where
            neither is known.
        kl: divergence of the output in nats; None without class scores.
        latency_ms, speedup, speedup_interval: from runs interleaved with those of the original; None where latency was not measured.
        verdict: PASSED, FAILED, UNDECIDED, or NOT MEASURED; empty where the model does not exist.
        pareto: whether no other model is both smaller (or faster, where latency was measured) and as accurate.
        note: why the model does not exist; else empty.
    """

    name: str
    target: float
    flops_removed: float = 0.0
    params_removed: float = 0.0
    size: int = 0
    drop: float | None = None
    kl: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    speedup_interval: tuple[float, float] | None = None
    verdict: str = ""
    pareto: bool = False
    note: str = ""


@dataclass(frozen=True)
class Sweep:
    """The models of a sweep, from the largest to the smallest, the quantity of their targets, and figures of the original."""

    model: str
    quantity: str
    members: tuple[Member, ...]
    size: int
    latency_ms: float | None
    data: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"schema": SWEEP_SCHEMA, **asdict(self)}

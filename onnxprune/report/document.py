"""What a run has found out, as one value; every format is made from it."""

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
SWEEP_SCHEMA = "onnxprune.sweep/1"


@dataclass(frozen=True)
class Figures:
    """One column of the table. FLOPs and MACs per sample, `size` in bytes, accuracies in percent, latency in milliseconds."""

    flops: float
    macs: float
    params: int
    size: int
    top1: float | None = None
    top5: float | None = None
    latency_ms: float | None = None
    latency_interval_ms: tuple[float, float] | None = None


def figures(
    found: Comparison, before: tuple[float, int, int], after: tuple[float, int, int]
) -> tuple[Figures, Figures]:
    """Return both columns: MACs, parameters and bytes of each model as given, the rest as measured."""
    first = Figures(2 * before[0], *before, *found.accuracy_a)
    second = Figures(2 * after[0], *after, *found.accuracy_b)
    if (latency := found.latency) is not None:
        first = replace(first, latency_ms=latency.a, latency_interval_ms=latency.a_interval)
        second = replace(second, latency_ms=latency.b, latency_interval_ms=latency.b_interval)
    return first, second


@dataclass(frozen=True)
class Report:
    """A whole run of `prune`, or of `finetune`: then without a proof, and with the teacher as the original.

    Attributes:
        model, sha256: the original.
        output: where the result was written; None when it was not.
        settings: options of the run.
        before, after: the figures.
        fidelity: candidate against original on the same inputs; see `onnxprune.metrics.outputs.compare_outputs`.
        data: what fidelity and accuracy were measured on.
        samples: how many.
        latency: how latency was measured, with the speed-up; None when it was not.
        layers: in graph order.
        prunable_share: share of MACs in layers that may lose channels.
        pinned: (reason, node, channels) of everything that had to stay.
        proof: pruned against masked.
        verdict: all checks.
        path: (share of FLOPs removed, share of parameters removed) after each step.
        notes: what a reader should know.
        repair: what was done at each layer, in order.
        curves: what each group loses, where that was measured.
        training: what fine-tuning did; see `onnxprune.training.distill.TrainingResult`. None where there was none.
        versions: of onnxprune, onnxruntime and onnx.
        latency_table: what latency was predicted from; None where it was no target.
        blocks: layers that were given another form, in rounds, as they stand in the plan.
        details: what takes time of its own; None where no report was asked for.
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
    details: Details | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with the schema's name and the relative changes."""
        content = asdict(replace(self, details=None))
        content["details"] = None if self.details is None else self.details.to_dict()
        content["pinned"] = [{"reason": reason, "node": node, "channels": count} for reason, node, count in self.pinned]
        content["path"] = [{"flops_removed": flops, "params_removed": params} for flops, params in self.path]
        content["verdict"] = {"passed": bool(self.verdict), "checks": [asdict(check) for check in self.verdict.checks]}
        content["latency_table"] = None if self.latency_table is None else self.latency_table.summary()
        content["curves"] = [curve_dict(curve) for curve in self.curves]
        change = {
            "flops_removed": 1 - self.after.flops / self.before.flops if self.before.flops else 0.0,
            "params_removed": 1 - self.after.params / self.before.params if self.before.params else 0.0,
            "size_removed": 1 - self.after.size / self.before.size if self.before.size else 0.0,
            "speedup": self.latency.speedup if self.latency else None,
        }
        for key in ("top1", "top5"):
            old, new = getattr(self.before, key), getattr(self.after, key)
            change[f"{key}_points"] = None if old is None or new is None else new - old
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
    """One model of a family.

    Attributes:
        name: of its files in the folder: `<name>.onnx`, `<name>.plan.json`, `<name>.json` (its report).
        target: the share of the quantity that was asked to go.
        flops_removed, params_removed: shares that went.
        size: bytes.
        drop: points of top-1 lost, without labels of agreement; None where neither is known.
        kl: divergence of the output in nats; None where it is none of classes.
        latency_ms, speedup, speedup_interval: as measured in turn with the original; None where it was not.
        verdict: whether all checks passed.
        pareto: whether no other one is both smaller (or faster, where latency was measured) and no worse.
        note: why there is no such model; empty where there is one.
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
    verdict: bool = False
    pareto: bool = False
    note: str = ""


@dataclass(frozen=True)
class Sweep:
    """A family: the quantity that its targets are of, its members from the largest on, and the figures of the original."""

    model: str
    quantity: str
    members: tuple[Member, ...]
    size: int
    latency_ms: float | None
    data: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"schema": SWEEP_SCHEMA, **asdict(self)}

"""The results of the public functions."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from onnxprune import fileio, plan_file
from onnxprune.allocation.latency_model import Table
from onnxprune.escaping import visible
from onnxprune.evaluation.benchmark import Bench
from onnxprune.evaluation.gate import Judgement
from onnxprune.graph import io
from onnxprune.graph import model as models
from onnxprune.graph.analysis import Analysis, Inspection, Layer, layers_of
from onnxprune.graph.model import Model
from onnxprune.metrics.distances import AUTO, DISTANCES
from onnxprune.metrics.table import named
from onnxprune.report.document import Report, Sweep, curve_dict
from onnxprune.types import Check, Curve, Plan, Trace, Verdict

SENSITIVITY_SCHEMA = "onnxprune.sensitivity/1"


class Result:
    """Base of all results: a report, one line in a console, a small table in a notebook, and `save`."""

    report: Any

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report to `path` as JSON, where no other file is named.

        Raises:
            OutputError: it cannot be written there.
        """
        fileio.write_json(Path(path), self.report if isinstance(self.report, dict) else self.report.to_dict())

    def _figures(self) -> dict[str, str]:
        """Return the figures of the line and the table, by name."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return visible(
            f"{type(self).__name__}({', '.join(f'{name}: {value}' for name, value in self._figures().items())})"
        )

    def _repr_html_(self) -> str:
        """Return a small table, for notebooks."""
        rows = (f"<tr><th>{escape(k)}</th><td>{escape(visible(v))}</td></tr>" for k, v in self._figures().items())
        return f"<table><caption>{type(self).__name__}</caption>{''.join(rows)}</table>"


@dataclass(frozen=True, repr=False)
class ModelResult(Result):
    """A model that was pruned or trained.

    Attributes:
        model: the result.
        report: of the run.
        plan: the kept channels; None where the model was only trained.
        trace: of the model that the plan speaks of.
        provenance: entries for the metadata of a saved file.
        files: the model and the plan, where they were written.
    """

    model: Model
    report: Report
    plan: Plan | None
    trace: Trace
    provenance: dict[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    def __bool__(self) -> bool:
        """Whether no check failed."""
        return bool(self.report.verdict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to `path`.

        Raises:
            OutputError: it cannot be written there.
        """
        io.save(self.model, path, models.provenance(self.report.sha256, **self.provenance))

    def _figures(self) -> dict[str, str]:
        before, after, latency = self.report.before, self.report.after, self.report.latency
        found = {
            "FLOPs": f"{after.flops:.4g} of {before.flops:.4g}",
            "parameters": f"{after.params:,} of {before.params:,}",
        }
        lead = self.report.lead
        if lead in after.accuracy and lead in before.accuracy:
            metric = named(lead)
            found[metric.label] = f"{metric.text(after.accuracy[lead])} (was {metric.text(before.accuracy[lead])})"
        elif "agreement" in self.report.fidelity:
            found["agreement"] = f"{self.report.fidelity['agreement']:.2f} %"
        if latency is not None and latency.speedup is not None:
            found["speed-up"] = f"{latency.speedup:.2f}x"
        return {**found, "verdict": self.report.verdict.headline}


@dataclass(frozen=True, repr=False)
class PlanResult(Result):
    """A plan that `prune` can replay.

    Attributes:
        plan: the kept channels, and the edits.
        original: the model, its trace and its costs.
        analysis: the model after the edits of the plan, its trace and its costs.
        notes: of the run.
    """

    plan: Plan
    original: Analysis
    analysis: Analysis
    notes: tuple[str, ...] = ()

    @property
    def report(self) -> dict[str, Any]:
        """The content of plan.json."""
        return plan_file.to_dict(self.plan, self.analysis.trace, self.original.model.path.name)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer with a weight, before and after."""
        return layers_of(self.analysis, self.plan.keep, self.original)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write plan.json to `path`.

        Raises:
            OutputError: it cannot be written there.
        """
        plan_file.write(Path(path), self.plan, self.analysis.trace, self.original.model.path.name)

    def _figures(self) -> dict[str, str]:
        flops, params = self.plan.path[-1] if self.plan.path else (0.0, 0.0)
        keep = self.plan.keep
        return {
            "FLOPs": f"-{flops:.1%}",
            "parameters": f"-{params:.1%}",
            "channels": f"{int(keep.sum())} of {keep.size} stay",
            "edits": str(sum(map(len, self.plan.blocks))),
        }


@dataclass(frozen=True, repr=False)
class InspectResult(Result):
    """Groups, pins with their reasons, and costs of a model."""

    report: Inspection

    def _figures(self) -> dict[str, str]:
        found = self.report
        return {
            "FLOPs": f"{2 * found.macs:.4g}",
            "parameters": f"{found.analysis.model.params:,}",
            "groups": str(len(found.analysis.trace.groups)),
            "prunable share": f"{found.analysis.cost.prunable_share():.0%}",
        }


@dataclass(frozen=True, repr=False)
class SensitivityResult(Result):
    """Loss of the output as each group by itself loses channels.

    Attributes:
        curves: one per group.
        analysis: of the model.
        distance: what the losses are, of `onnxprune.metrics.distances`.
    """

    curves: tuple[Curve, ...]
    analysis: Analysis
    distance: str = AUTO

    @property
    def report(self) -> dict[str, Any]:
        """The curves and the pins, as `sensitivity --json` prints them."""
        return {
            "schema": SENSITIVITY_SCHEMA,
            "model": {"path": str(self.analysis.model.path), "sha256": self.analysis.model.digest},
            "loss": DISTANCES[self.distance],
            "groups": [curve_dict(curve) for curve in self.curves],
            "held": [
                {"node": p.node, "operator": p.op, "reason": p.reason, "channels": int(p.channels.size)}
                for p in self.analysis.trace.pins
            ],
        }

    def _figures(self) -> dict[str, str]:
        return {"groups": str(len(self.curves)), "model": self.analysis.model.path.name}


@dataclass(frozen=True, repr=False)
class SweepResult(Result):
    """A family of models: figures of each, and the folder of their files."""

    report: Sweep
    folder: Path

    def _figures(self) -> dict[str, str]:
        members = self.report.members
        best = [member.name for member in members if member.pareto]
        return {
            "models": f"{sum(not member.note for member in members)} of {len(members)}",
            "Pareto set": ", ".join(best) or "empty",
            "folder": str(self.folder),
        }


@dataclass(frozen=True, repr=False)
class BenchResult(Result):
    """Latency of one model, or of two in turn.

    Attributes:
        table: latency of the layers with fewer channels, where it was measured.
    """

    report: Bench
    table: Table | None = None

    def _figures(self) -> dict[str, str]:
        found = self.report.latency
        second = {} if found.b is None else {"B": f"{found.b:.4g} ms", "speed-up": f"{found.speedup:.2f}x"}
        return {"A": f"{found.a:.4g} ms", **second, "batch": str(found.batch), "runs": str(found.runs)}


@dataclass(frozen=True, repr=False)
class CheckResult(Result):
    """A verdict on a candidate; truthy when every check passed."""

    report: Judgement

    @property
    def verdict(self) -> Verdict:
        """All checks."""
        return self.report.verdict

    @property
    def checks(self) -> tuple[Check, ...]:
        """The checks of the verdict."""
        return self.verdict.checks

    def __bool__(self) -> bool:
        return bool(self.verdict)

    def _figures(self) -> dict[str, str]:
        failed = [check.name for check in self.verdict.checks if not check]
        return {
            "verdict": self.verdict.headline,
            "checks": str(len(self.verdict.checks)),
            **({"failed": ", ".join(failed)} if failed else {}),
        }

"""Predict the costs of selections of channels, and measure those of models."""

from __future__ import annotations

import copy
import functools
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.allocation import channel_multiple, latency_model
from onnxprune.allocation.knapsack import Amounts, Budget, PruningRules, part_way
from onnxprune.errors import LatencyError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.graph.activation_cost import ActivationCost
from onnxprune.graph.analysis import Analysis, analysed
from onnxprune.graph.cost import CostModel
from onnxprune.graph.io import load
from onnxprune.graph.model import Model, weightless
from onnxprune.graph.shapes import concrete_shapes, infer_shapes
from onnxprune.graph.trace import trace as trace_model
from onnxprune.metrics import activation_memory
from onnxprune.metrics.table import ESTIMATED, METRICS
from onnxprune.options import Options, ResolvedOptions
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.runtime import machine
from onnxprune.runtime.session import open_session, random_feeds
from onnxprune.runtime.timing import Latency, sample_times
from onnxprune.types import BoolArray, Check, Trace

if TYPE_CHECKING:
    import onnxruntime as ort


@dataclass(frozen=True)
class _Selected:
    """Costs of a selection, as a `CostEstimator` predicts them."""

    estimator: CostEstimator
    keep: BoolArray
    counts: tuple[float, float]

    @property
    def macs(self) -> float:
        return self.counts[0]

    @property
    def params(self) -> float:
        return self.counts[1]

    @property
    def size(self) -> float:
        return self.params * self.estimator.bytes_per_param

    @property
    def memory(self) -> float:
        activations, itemsizes = self.estimator.activations
        return float(activations.peak(self.keep, itemsizes) * self.estimator.how.batch)

    @property
    def latency(self) -> float:
        return self.estimator.predictor.predict(self.keep)


@dataclass(frozen=True)
class _Candidate:
    """Costs of a model, measured beside the original."""

    estimator: CostEstimator
    model: Model

    @property
    def macs(self) -> float:
        known = self.estimator.analysis
        cost = known.cost if self.model is known.model else CostModel(trace_model(self.model))
        return cost.totals(np.ones(cost.trace.n_channels, dtype=bool))[0]

    @property
    def params(self) -> float:
        return float(self.model.params)

    @property
    def size(self) -> float:
        return float(self.model.size if self.estimator.is_original(self.model) else self.model.byte_size())

    @property
    def memory(self) -> float:
        return float(activation_memory.peak(self.model, self.estimator.shapes()))

    @property
    def latency(self) -> float:
        """Milliseconds; runs are interleaved with the original, so that machine noise affects both equally."""
        estimator = self.estimator
        original = estimator.session()
        if estimator.is_original(self.model):
            return float(np.median(estimator.times([original])[0]))
        estimator.on_stage("time", None)
        candidate = self.model.session(estimator.how.session, where="the pruned model")
        a, b = (float(np.median(row)) for row in estimator.times([original, candidate]))
        return estimator.whole["latency"] * b / a if "latency" in estimator.options.reduce else b


@dataclass
class _Original:
    """What is measured of the original model once: its session and its amounts."""

    model: Model
    session: ort.InferenceSession | None = None
    amounts: Amounts = field(default_factory=dict)


class CostEstimator:
    """Predicts the costs of selections of channels, and measures those of models.

    Metrics without a target are neither predicted nor measured: without a target for latency no table is measured.

    Args:
        analysis: of the model that channels are selected from.
        options: with the targets.
        how: to measure latency.
        shapes: of the inputs, where data give them.
        table: file with a latency table; None: one is measured, and kept in the user's cache.
        on_stage: progress callback.
        original: estimator of the original model, where `analysis` is of the model after other edits; it has the same targets.
    """

    def __init__(
        self,
        analysis: Analysis,
        options: ResolvedOptions,
        how: BenchmarkConfig,
        *,
        shapes: dict[str, tuple[int, ...]] | None = None,
        table: str | os.PathLike[str] | None = None,
        on_stage: ProgressCallback = quiet,
        original: CostEstimator | None = None,
    ) -> None:
        self.analysis, self.options, self.how, self.on_stage = analysis, options, how, on_stage
        self.share: float = 1.0 if original is None else original.share
        self._known = shapes or analysis.trace.input_shapes
        self._table_path = table
        self.measured = tuple(name for name in ESTIMATED if name in options.reduce or name in options.limit)
        wanted = {"flops", "params", *self.measured, *((options.minimise,) if options.max_drop is not None else ())}
        self._predicted = tuple(name for name in METRICS if name in wanted)
        self.table = self.read_table() if "latency" in wanted else None
        self._original: _Original = original._original if original else _Original(analysis.model)
        if original is None:
            self._original.amounts = self._measure(analysis.model, ("flops", "params", *self.measured))

    @functools.cached_property
    def activations(self) -> tuple[ActivationCost, np.ndarray[tuple[int], np.dtype[np.float64]]]:
        """The activations of the model, and bytes per element of each."""
        model, trace = self.analysis.model, self.analysis.trace
        activations = ActivationCost(model.graph, trace, self.analysis.cost)
        found = activation_memory.itemsizes(infer_shapes(weightless(model), trace.input_shapes).types)
        return activations, np.array(
            [found.get(name, activation_memory.DEFAULT_ITEMSIZE) for name in activations.names], float
        )

    @functools.cached_property
    def bytes_per_param(self) -> float:
        """Bytes of the file per parameter."""
        cost = self.analysis.cost
        return self.analysis.model.byte_size() / max(cost.totals(np.ones(cost.trace.n_channels, dtype=bool))[1], 1.0)

    @functools.cached_property
    def predictor(self) -> latency_model.Predictor:
        """Predicts latency from the table."""
        assert self.table is not None
        return latency_model.Predictor(self.analysis.model, self.analysis.trace, self.analysis.cost, self.table)

    @property
    def whole(self) -> Amounts:
        """Amounts of the original."""
        return self._original.amounts

    @property
    def is_elsewhere(self) -> bool:
        """Whether the latency table may be of another machine."""
        return self._table_path is not None

    def with_targets(self, options: ResolvedOptions, share: float = 1.0) -> CostEstimator:
        """Return an estimator for other amounts of the same metrics, or for a part of the way there; nothing is measured again."""
        other = copy.copy(self)
        other.options, other.share = options, share
        return other

    def for_model(self, analysis: Analysis) -> CostEstimator:
        """Return an estimator for the model after other edits, with the same targets; its latency table is measured here."""
        return CostEstimator(
            analysis, self.options, self.how, shapes=self._known, on_stage=self.on_stage, original=self
        )

    def predict(self, keep: BoolArray) -> Amounts:
        """Predict the costs of a selection: FLOPs, parameters, and what has a target."""
        selected = _Selected(self, keep, self.analysis.cost.totals(keep))
        return {name: row.predict(selected) for name in self._predicted if (row := METRICS[name]).predict}

    def budget(self) -> Budget:
        """Return the targets as absolute amounts."""
        options, found = self.options, {}
        for name in METRICS:
            bounds = [options.limit[name]] if name in options.limit else []
            if name in options.reduce:
                bounds.append(self.whole[name] * (1 - options.reduce[name]))
            if bounds:
                found[name] = min(bounds)
        return found if self.share == 1 else part_way(self.whole, found, self.share)

    def measure(self, candidate: Model) -> Amounts:
        """Measure the metrics that predictions only estimate."""
        return self._measure(candidate, self.measured)

    def _measure(self, model: Model, names: tuple[str, ...]) -> Amounts:
        found = {name: METRICS[name].measure(_Candidate(self, model)) for name in names}
        return {name: amount for name, amount in found.items() if amount is not None}

    def checks(self, timed: Latency | None, result: Model) -> list[Check]:
        """Hold a result against the targets that are measured.

        A latency passes when its interval reaches down to the bound: a target is met within the noise of the machine.
        """
        budget = self.budget()
        counted = self._measure(result, tuple(name for name in self.measured if name != "latency"))
        found = []
        for name in self.measured:
            bound, before = budget[name], self.whole[name]
            detail = f"{before:.6g} before"
            if name == "latency":
                if timed is None or timed.b is None or timed.b_interval is None:
                    continue
                factor = before / timed.a if "latency" in self.options.reduce else 1.0
                value, low, high = (factor * ms for ms in (timed.b, *timed.b_interval))
                detail += f", 95 % interval {low:.4g} to {high:.4g}"
            else:
                value = low = counted[name]
            detail += f", {1 - value / before:.1%} less"
            title = f"{name} ({METRICS[name].unit})"
            found.append(Check(title, value, float(f"{bound:.6g}"), low <= bound, detail))
        return found

    def is_original(self, model: Model) -> bool:
        """Whether a model is the original."""
        return model is self._original.model

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the inputs of a timed run."""
        return concrete_shapes(self.analysis.model.header, self.how.batch, known=self._known)

    def session(self) -> ort.InferenceSession:
        """Return a session of the original, opened once."""
        original = self._original
        if original.session is None:
            path = str(original.model.path)
            original.session = open_session(path, self.how.session, where=path)
        return original.session

    def times(self, sessions: list[ort.InferenceSession]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """Time sessions on random inputs; return (sessions, runs) milliseconds."""
        how, feeds = self.how, random_feeds(self.analysis.model.header, self.shapes(), 0)
        return sample_times(
            sessions, [feeds] * len(sessions), runs=how.runs, warmup=how.warmup, seconds=how.seconds / 2
        )

    def read_table(self) -> latency_model.Table:
        """Return the latency table: from the file that was named, from the cache, or measured and put there."""
        model, trace = self.analysis.model, self.analysis.trace
        where = machine.environment(self.how.session, self.how.batch)
        rules = rules_of(trace, self.options)
        digest = latency_model.architecture(model, trace)
        if self._table_path is not None:
            table = latency_model.read(Path(self._table_path))
            if table.architecture != digest:
                raise LatencyError(
                    "the latency table is of another model",
                    where=str(self._table_path),
                    why="operators, shapes or connections differ",
                    hint="make one with `onnxprune bench MODEL --latency-table FILE` on the target machine",
                )
            return table
        o = self.options
        path = latency_model.cached(digest, where, rules, (o.grouped, o.heads, o.norms))
        if path.exists():
            try:
                return latency_model.read(path)
            except LatencyError:
                pass  # damaged: it is measured again
        table = _measured_table(self.analysis, self.options, self.how, self.on_stage)
        machine.keep(path, latency_model.text(table))
        return table


def _measured_table(
    analysis: Analysis, options: ResolvedOptions, how: BenchmarkConfig, on_stage: ProgressCallback
) -> latency_model.Table:
    return latency_model.measure(
        analysis.model,
        analysis.trace,
        analysis.cost,
        rules_of(analysis.trace, options),
        config=how.session,
        batch=how.batch,
        progress=share_of(on_stage, "table"),
    )


def write_table(
    path: str | os.PathLike[str],
    output: Path,
    how: BenchmarkConfig,
    on_stage: ProgressCallback = quiet,
    options: Options | None = None,
) -> latency_model.Table:
    """Measure a latency table of a model file, and write it.

    Args:
        path: of the model.
        output: where to write the table.
        how: to measure.
        on_stage: called as it goes on.
        options: with `ignore`, `round_to` and what else says which channels may go.
    """
    resolved = (options or Options()).resolved(True)
    analysis = analysed(load(path), replace(resolved, norms="cut"), None)
    table = _measured_table(analysis, resolved, how, on_stage)
    latency_model.write(table, output)
    return table


def rules_of(trace: Trace, options: ResolvedOptions, scope: str = "global") -> PruningRules:
    """Return what every group must keep."""
    multiple, multiples = channel_multiple.multiples(trace) if options.round_to is None else (options.round_to, {})
    return PruningRules(multiple, options.min_channels, options.max_ratio, scope, multiples)

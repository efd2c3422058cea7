"""Predict the costs of selections of channels, and measure those of models."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.allocation import latency_model, table_cache
from onnxprune.allocation.knapsack import Amounts, Budget, PruningRules, part_way
from onnxprune.errors import OptionError
from onnxprune.evaluation.benchmark import Bench, BenchmarkConfig, elsewhere, median_times, timing_key
from onnxprune.graph.activation_cost import ActivationCost
from onnxprune.graph.analysis import Analysis, analysed
from onnxprune.graph.io import load
from onnxprune.graph.model import Model, weightless
from onnxprune.graph.shapes import infer_shapes
from onnxprune.metrics import activation_memory
from onnxprune.metrics.table import ESTIMATED, METRICS
from onnxprune.options import Options, ResolvedOptions
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.runtime import machine
from onnxprune.runtime.session import open_session, random_feeds
from onnxprune.runtime.timing import Latency
from onnxprune.runtime.timings import Timings
from onnxprune.types import BoolArray, Check, FloatArray

if TYPE_CHECKING:
    import onnxruntime as ort


@dataclass(frozen=True)
class _Selected:
    """Predicted costs of a selection, for the rows of the metric table."""

    estimator: CostEstimator
    keep: BoolArray
    macs: float
    params: float

    @property
    def size(self) -> float:
        return self.params * self.estimator.bytes_per_param

    @property
    def memory(self) -> float:
        activations, itemsizes = self.estimator.activations
        return float(activations.peak(self.keep, itemsizes) * self.estimator.config.batch)

    @property
    def latency(self) -> float:
        return self.estimator.predictor.predict(self.keep)


@dataclass(frozen=True)
class _Candidate:
    """Measured costs of a model, for the rows of the metric table whose predictions are estimates."""

    estimator: CostEstimator
    model: Model

    @property
    def _is_original(self) -> bool:
        return self.model is self.estimator.original.analysis.model

    @property
    def size(self) -> float:
        return float(self.model.size if self._is_original else self.model.byte_size())

    @property
    def memory(self) -> float:
        return float(activation_memory.peak(self.model, self.estimator.shapes))

    @property
    def latency(self) -> float:
        """Milliseconds; runs are interleaved with the original, so that machine noise affects both models equally."""
        estimator, original = self.estimator, self.estimator.original.analysis.model
        models = [original] if self._is_original else [original, self.model]
        key = timing_key("model", models, estimator.shapes, estimator.config)
        medians = estimator.timings.of(key, len(models), self._timed)
        if not self._is_original and "latency" in estimator.options.reduce:
            return estimator.whole["latency"] * medians[1] / medians[0]
        return medians[-1]

    def _timed(self) -> list[float]:
        """Return the median milliseconds of the original, and of the model where it is another one."""
        estimator, config = self.estimator, self.estimator.config
        sessions = [estimator.original.session]
        if not self._is_original:
            estimator.on_stage("time", None)
            sessions.append(self.model.session(config.session, where="the pruned model"))
        feeds = random_feeds(estimator.analysis.model.header, estimator.shapes, 0)
        return median_times(sessions, feeds, config, 1 / 2)


class CostEstimator:
    """Predicts the costs of selections of channels, and measures those of models.

    Only metrics with a target are predicted and measured: without a target for latency no table is measured.

    Args:
        analysis: of the model that channels are selected from.
        options: with the targets.
        config: how latency is measured.
        shapes: of the inputs, where data give them.
        table: file with a latency table; None: the table is measured, and kept in the user's cache.
        on_stage: progress callback.
        original: estimator of the original model with the same targets, where `analysis` is of the model after other
            edits.
        timings: times that were measured, and get what is measured here; None: those of `original`, else none.
    """

    refines: bool = True

    def __init__(
        self,
        analysis: Analysis,
        options: ResolvedOptions,
        config: BenchmarkConfig,
        *,
        shapes: dict[str, tuple[int, ...]] | None = None,
        table: str | os.PathLike[str] | None = None,
        on_stage: ProgressCallback = quiet,
        original: CostEstimator | None = None,
        timings: Timings | None = None,
    ) -> None:
        self.analysis, self.options, self.config, self.on_stage = analysis, options, config, on_stage
        self.timings: Timings = timings or (Timings() if original is None else original.timings)
        self._original = None if original is None else original.original  # None: this one, without a reference cycle
        self.share: float = 1.0 if original is None else original.share
        self._known = shapes or analysis.trace.input_shapes
        self._table_path = table
        self.measured = tuple(name for name in ESTIMATED if name in options.reduce or name in options.limit)
        wanted = {"flops", "params", *self.measured, *((options.minimise,) if options.max_drop is not None else ())}
        self._predicted = tuple(name for name in METRICS if name in wanted)
        self.table = self.read_table() if "latency" in wanted else None
        if original is None:
            # the file may hold parameters that loading has folded away
            self._amounts = {**self.start, "params": float(analysis.model.params), **self.measure(analysis.model)}

    def without_finer_multiples(self) -> CostEstimator:
        """Return the same estimator, for a selection that keeps the usual channel multiples."""
        found = copy.copy(self)
        found.refines = False
        return found

    @functools.cached_property
    def start(self) -> Amounts:
        """Predicted costs of the model that channels are selected from."""
        return self.predict(np.ones(self.analysis.trace.n_channels, dtype=bool))

    @functools.cached_property
    def activations(self) -> tuple[ActivationCost, FloatArray]:
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
        return latency_model.Predictor(self.analysis, self.table)

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs of a timed run."""
        return self.analysis.model.signature.input_shapes(self.config.batch, self._known)

    @functools.cached_property
    def session(self) -> ort.InferenceSession:
        """A session of the model's file."""
        path = str(self.analysis.model.path)
        return open_session(path, self.config.session, where=path)

    @property
    def original(self) -> CostEstimator:
        """Estimator of the original model."""
        return self._original or self

    @property
    def whole(self) -> Amounts:
        """Amounts of the original, measured where predictions are estimates."""
        return self.original._amounts

    def with_targets(self, options: ResolvedOptions, share: float = 1.0) -> CostEstimator:
        """Return an estimator for other targets of the same metrics, or a share of the way to them."""
        other = copy.copy(self)
        other.options, other.share, other._original = options, share, self.original
        return other

    def for_model(self, analysis: Analysis) -> CostEstimator:
        """Return an estimator for the model after other edits, with the same targets and a latency table of its own."""
        return CostEstimator(
            analysis, self.options, self.config, shapes=self._known, on_stage=self.on_stage, original=self
        )

    def predict(self, keep: BoolArray) -> Amounts:
        """Predict the costs of a selection: FLOPs, parameters, and the metrics with a target."""
        selected = _Selected(self, keep, *self.analysis.cost.totals(keep))
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
        """Measure the metrics with a target whose predictions are estimates."""
        return {name: self._measured(name, candidate) for name in self.measured}

    def _measured(self, name: str, model: Model) -> float:
        found = METRICS[name].measure(_Candidate(self, model))
        assert found is not None
        return found

    def checks(self, timed: Latency | None, result: Model) -> list[Check]:
        """Compare a result with the targets that are measured.

        A latency passes when the lower end of its interval meets the bound: a target is met within the noise of the
        machine.
        """
        budget, found = self.budget(), []
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
                value = low = self._measured(name, result)
            detail += f", {1 - value / before:.1%} less"
            title = f"{name} ({METRICS[name].unit})"
            found.append(Check(title, value, float(f"{bound:.6g}"), low <= bound, detail, kind="cost"))
        return found

    def read_table(self) -> latency_model.Table:
        """Return the latency table: from the given file, from the cache, or measured and put there."""
        digest = latency_model.architecture(self.analysis)
        if self._table_path is not None:
            table = latency_model.read(Path(self._table_path))
            latency_model.refuse_flat(table, str(self._table_path))
            latency_model.refuse_other_model(table, digest, str(self._table_path))
            latency_model.refuse_other_provider(table, self.config, str(self._table_path))
            return table
        options, where = self.options, machine.environment(self.config.session, self.config.batch)
        rules = PruningRules.of(self.analysis.trace, options)
        path_on = partial(
            latency_model.cached, digest, rules=rules, structure=(options.grouped, options.heads, options.norms)
        )
        path, key = path_on(where), path_on(replace(where, processor="", runtime="")).stem
        found = self.timings.table(key, lambda: self._measured_table(path, rules).to_dict())
        return latency_model.from_dict(found, str(self.timings.path or path))

    def _measured_table(self, path: Path, rules: PruningRules) -> latency_model.Table:
        """Return the table of this machine: from the cache, or measured and put there."""
        kept = table_cache.read(path, self.analysis, rules, self.config, self.on_stage)
        if kept is not None:
            return kept
        table = latency_model.measure(self.analysis, rules, self.config, share_of(self.on_stage, "table"))
        machine.keep(path, latency_model.text(table))
        return table


def measured_table(
    path: str | os.PathLike[str],
    config: BenchmarkConfig,
    shape: Mapping[str, tuple[int, ...]] | None = None,
    on_stage: ProgressCallback = quiet,
) -> latency_model.Table:
    """Measure a latency table of a model file."""
    analysis, options = _timed(path, shape)
    rules = PruningRules.of(analysis.trace, options)
    return latency_model.measure(analysis, rules, config, share_of(on_stage, "table"))


def measured_elsewhere(
    path: str | os.PathLike[str],
    measured: Path,
    shape: Mapping[str, tuple[int, ...]] | None = None,
    *,
    table: bool = False,
) -> tuple[Bench, latency_model.Table | None]:
    """Read the times of a model file that were measured elsewhere: a latency table or a profile.

    With `table` the table is returned as well. No table follows from a profile: it has one time of each layer, and the time
    of a layer with fewer channels may be nearly the same or a share of it.

    Raises:
        LatencyError: the file cannot be read, or is of another model.
        OptionError: a table is asked for, and the file is a profile.
    """
    if not latency_model.is_table(measured):
        found = elsewhere(path, measured)
        if table:
            raise OptionError(
                "no latency table follows from a single profile",
                where=str(measured),
                why="it has one time of each layer, and none of the layer with fewer channels",
                hint="on the target machine, run `onnxprune bench MODEL --latency-table FILE`",
            )
        return found, None
    analysis, _ = _timed(path, shape)
    found_table = latency_model.read(measured)
    latency_model.refuse_other_model(found_table, latency_model.architecture(analysis), str(measured))
    times = latency_model.at_full_width(analysis, found_table, f"latency table {measured}")
    return times, found_table if table else None


def _timed(
    path: str | os.PathLike[str], shape: Mapping[str, tuple[int, ...]] | None
) -> tuple[Analysis, ResolvedOptions]:
    """Return the analysis of a model file and the options by which a table's variants lose channels."""
    options = replace(Options().resolved(True), norms="cut")
    return analysed(load(path, shape), options, None), options

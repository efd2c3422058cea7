"""What is asked for, what a choice of channels is predicted to come to, and what is measured of the result."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from onnxprune.allocation import channel_multiple, knapsack, latency_model
from onnxprune.analysis import Analysis, analysed
from onnxprune.errors import LatencyError, TargetError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.graph.activation_cost import Traffic
from onnxprune.graph.io import load
from onnxprune.graph.model import Model, weightless
from onnxprune.graph.shapes import concrete_shapes, infer_shapes
from onnxprune.graph.trace import node_labels
from onnxprune.metrics import activation_memory
from onnxprune.options import AUTO, MEASURED, Options
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.runtime import machine, profiler
from onnxprune.runtime.session import open_session, random_feeds
from onnxprune.runtime.timing import Latency, time_runs
from onnxprune.types import BoolArray, Check, Trace

if TYPE_CHECKING:
    import onnxruntime as ort


ATTEMPTS = 6
"""How often a choice is measured and corrected."""
HALVINGS = 8
"""Models that are tried to find the smallest one within a loss: the share that goes is then known to 1/256. As many middles between bounds."""
AIM = 0.985
"""What is aimed at, as a share of a bound on latency: two measurements of one model differ by some percent."""
NEAR = 0.02
"""Share below a bound that needs no further correction: about what two measurements of one model differ by."""
UNITS = {"size": "bytes", "memory": "bytes", "latency": "ms"}
SLOWER = 0.98
"""Speed-up below which a result is slower, if all of its interval lies below 1."""
FEWEST_RUNS, RESOLUTION = 10, 0.005
"""Runs and milliseconds below which a difference says nothing."""
TOLD = 3
"""Layers that are named where a result is slower."""
Amounts = dict[str, float]


class CostEstimator:
    """Predicts and measures what a model costs.

    What nothing is asked of is not looked at: without a target of latency no table is measured.

    Args:
        analysis: of the original.
        options: with the targets.
        how: to measure latency.
        shapes: of the inputs, where data say so.
        table: file with a latency table; None: one is measured, and kept in the user's cache.
        on_stage: called as it goes on.
        original: measures the original, where `analysis` is of what other edits have left of it; it has the same goals.
    """

    def __init__(
        self,
        analysis: Analysis,
        options: Options,
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
        self.wanted = tuple(q for q in MEASURED if q in options.reduce or q in options.limit)
        predicted = {*self.wanted, *((options.minimise,) if options.max_drop is not None else ())}
        self.table: latency_model.Table | None = None
        model, trace = analysis.model, analysis.trace
        self._traffic = self._itemsize = self._predictor = None
        everything = np.ones(trace.n_channels, dtype=bool)
        if "memory" in predicted:
            self._traffic = Traffic(model.graph, trace, analysis.cost)
            found = activation_memory.itemsizes(infer_shapes(weightless(model), trace.input_shapes).types)
            self._itemsize = np.array(
                [found.get(name, activation_memory.DEFAULT_ITEMSIZE) for name in self._traffic.names], float
            )
        dense = analysis.cost.totals(everything)[1]
        self._bytes = model.byte_size() / max(dense, 1.0) if "size" in predicted else 0.0
        if "latency" in predicted:
            self.table = self.read_table()
            self._predictor = latency_model.Predictor(model, trace, analysis.cost, self.table)
        self._original: ort.InferenceSession | None = None
        if original is None:
            self.whole = self._of_the_original()
        else:
            self.whole, self._original = original.whole, original._original

    def aimed_at(self, options: Options, share: float = 1.0) -> CostEstimator:
        """Return one for other amounts of the same quantities, or a part of the way there, without measuring anew."""
        other = copy.copy(self)
        other.options, other.share = options, share
        return other

    @property
    def is_elsewhere(self) -> bool:
        """Whether what layers take was measured on another machine."""
        return self._table_path is not None

    def on(self, analysis: Analysis) -> CostEstimator:
        """Return one for what other edits have made of the original, with the same goals; its latency table is measured here."""
        return CostEstimator(
            analysis, self.options, self.how, shapes=self._known, on_stage=self.on_stage, original=self
        )

    def totals(self, keep: BoolArray) -> tuple[float, ...]:
        """Predict amounts in the order of `budget.Limits`; 0 for what nothing is asked of."""
        macs, params = self.analysis.cost.totals(keep)
        peak = 0.0
        if self._traffic is not None and self._itemsize is not None:
            peak = self._traffic.peak(keep, self._itemsize) * self.how.batch
        milliseconds = 0.0 if self._predictor is None else self._predictor.predict(keep)
        return macs, params, params * self._bytes, peak, milliseconds

    def goals(self) -> knapsack.Limits:
        """Return the bounds, in absolute amounts."""
        bounds: dict[str, float | None] = dict.fromkeys(self.whole)
        for quantity, share in self.options.reduce.items():
            bounds[quantity] = self.whole[quantity] * (1 - share)
        for quantity, amount in self.options.limit.items():
            bound = amount / 2 if quantity == "flops" else amount  # FLOPs are 2 x MACs
            before = bounds[quantity]
            bounds[quantity] = bound if before is None else min(bound, before)
        goals = knapsack.Limits(
            bounds["flops"], bounds["params"], bounds.get("size"), bounds.get("memory"), bounds.get("latency")
        )
        if self.share == 1:
            return goals
        return goals.part([self.whole.get(quantity, 0.0) for quantity in ("flops", "params", *MEASURED)], self.share)

    def of(self, candidate: Model) -> Amounts:
        """Measure a model; latency in turn with the original, so that a slow moment of the machine meets both."""
        found = self._counted(candidate)
        if "latency" in self.wanted:
            self.on_stage("time", None)
            assert self._original is not None
            sessions = (self._original, candidate.session(threads=self.how.threads, where="the pruned model"))
            timed = self._timed(sessions)
            assert timed.b is not None
            found["latency"] = timed.b
            if "latency" in self.options.reduce:  # a share of what the original takes in the same moments
                found["latency"] = self.whole["latency"] * timed.b / timed.a
        return found

    def checks(self, timed: Latency | None, result: Model) -> list[Check]:
        """Hold a result against the goals that are measured; one more time, where latency is concerned.

        A latency passes when its interval reaches down to the bound: a target is met within the noise of the machine.
        """
        goals = self.goals()
        found = []
        for quantity in self.wanted:
            bound, before = getattr(goals, quantity), self.whole[quantity]
            detail = f"{before:.6g} before"
            if quantity == "latency":
                if timed is None or timed.b is None or timed.b_interval is None:
                    continue
                factor = before / timed.a if "latency" in self.options.reduce else 1.0
                value, low, high = (factor * ms for ms in (timed.b, *timed.b_interval))
                detail += f", 95 % interval {low:.4g} to {high:.4g}, {1 - value / before:.1%} less"
            else:
                value = low = self._counted(result)[quantity]
                detail += f", {1 - value / before:.1%} less"
            found.append(Check(f"{quantity} ({UNITS[quantity]})", value, float(f"{bound:.6g}"), low <= bound, detail))
        return found

    def _counted(self, candidate: Model) -> Amounts:
        found: Amounts = {}
        if "size" in self.wanted:
            found["size"] = float(candidate.byte_size())
        if "memory" in self.wanted:
            found["memory"] = float(activation_memory.peak(candidate, self._shapes()))
        return found

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return concrete_shapes(self.analysis.model.header, self.how.batch, known=self._known)

    def _timed(self, sessions: Sequence[ort.InferenceSession]) -> Latency:
        feeds = random_feeds(self.analysis.model.header, self._shapes(), 0)
        return time_runs(
            sessions,
            [feeds] * len(sessions),
            runs=self.how.runs,
            warmup=self.how.warmup,
            threads=self.how.threads,
            batch=self.how.batch,
            seconds=self.how.seconds / 2,
        )

    def _of_the_original(self) -> Amounts:
        model = self.analysis.model
        macs = self.analysis.cost.totals(np.ones(self.analysis.trace.n_channels, dtype=bool))[0]
        found = {"flops": macs, "params": float(model.params)}
        if "size" in self.wanted:
            found["size"] = float(model.size)
        if "memory" in self.wanted:
            found["memory"] = float(activation_memory.peak(model, self._shapes()))
        if "latency" in self.wanted:
            path = str(model.path)
            self._original = open_session(path, threads=self.how.threads, where=path)
            found["latency"] = self._timed((self._original,)).a
        return found

    def read_table(self) -> latency_model.Table:
        """Return the latency table: from the file that was named, from the cache, or measured and put there."""
        model, trace = self.analysis.model, self.analysis.trace
        where = machine.environment(self.how.threads, self.how.batch)
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
    analysis: Analysis, options: Options, how: BenchmarkConfig, on_stage: ProgressCallback
) -> latency_model.Table:
    return latency_model.measure(
        analysis.model,
        analysis.trace,
        analysis.cost,
        rules_of(analysis.trace, options),
        threads=how.threads,
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
    options = options or Options()
    analysis = analysed(load(path), replace(options, norms="cut"), None)
    table = _measured_table(analysis, options, how, on_stage)
    latency_model.write(table, output)
    return table


def rules_of(
    trace: Trace, options: Options, scope: str = "global", sizes: Mapping[str, int] | None = None
) -> knapsack.PruningRules:
    """Return what every group must keep."""
    if options.round_to != AUTO:
        return knapsack.PruningRules(int(options.round_to), options.min_channels, options.max_ratio, scope, sizes or {})
    step, steps = channel_multiple.steps(trace)
    return knapsack.PruningRules(step, options.min_channels, options.max_ratio, scope, sizes or {}, steps)


class Gauge(Protocol):
    """Predicts and measures what a choice costs; `Meter` is one, of channels."""

    wanted: tuple[str, ...]
    whole: Amounts

    def goals(self) -> knapsack.Limits:
        """Return the bounds, in absolute amounts."""

    def totals(self, keep: BoolArray, /) -> tuple[float, ...]:
        """Predict amounts in the order of `budget.Limits`."""

    def of(self, candidate: Model) -> Amounts:
        """Measure a model."""


def _aims(meter: Gauge) -> Amounts:
    goals = meter.goals()
    return {q: getattr(goals, q) * (AIM if q == "latency" else 1.0) for q in meter.wanted}


def too_far(meter: Gauge, candidate: Model, predicted: Sequence[float]) -> knapsack.Limits | None:
    """Measure a model; return the bounds on predicted amounts that are enough, where it goes further than all that is measured asks for.

    Args:
        meter: with the goals.
        candidate: the model.
        predicted: amounts of it, in the order of `budget.Limits`.
    """
    if not meter.wanted:
        return None
    _, shares, bounds = _measured(meter, candidate, predicted)
    return None if max(shares.values()) >= 1 - NEAR else replace(meter.goals(), **bounds)


def _measured(meter: Gauge, candidate: Model, predicted: Sequence[float]) -> tuple[Amounts, Amounts, Amounts]:
    """Measure a model; return what it takes, as shares of what is aimed at, and the bounds on predicted amounts that would have been right."""
    found, aims = meter.of(candidate), _aims(meter)
    amounts = dict(zip(("macs", "params", *MEASURED), predicted, strict=True))
    shares = {q: found[q] / aims[q] for q in meter.wanted}
    return found, shares, {q: amounts[q] / shares[q] for q in meter.wanted}


def _between(
    allocate: Callable[[knapsack.Limits], BoolArray],
    goals: knapsack.Limits,
    around: dict[bool, Amounts],
    seen: Mapping[bytes, bool],
) -> tuple[BoolArray, Amounts] | None:
    """Return a choice that was not measured, between bounds that held and bounds that did not, and its bounds; None where there is none.

    Args:
        allocate: what stays under some bounds on predicted amounts.
        goals: what else is bound.
        around: the last bounds that held (True), and that did not (False); brought closer together.
        seen: which of the choices that were measured held.
    """
    if len(around) < 2:
        return None
    for _ in range(HALVINGS):
        bounds = {q: math.sqrt(around[True][q] * around[False][q]) for q in around[True]}
        keep = allocate(replace(goals, **bounds))
        held = seen.get(keep.tobytes())
        if held is None:
            return keep, bounds
        around[held] = bounds
    return None


def meet(
    allocate: Callable[[knapsack.Limits], BoolArray],
    build: Callable[[BoolArray], Model],
    meter: Gauge,
) -> BoolArray:
    """Choose channels so that the measured result keeps every bound: choose, measure, correct, repeat.

    A bound on what is predicted is moved by as much as the measurement of the last result was off; where that leads back to a choice that
    was measured already, to a middle between bounds that held and bounds that did not. Of the choices that were measured to hold, the
    largest is taken.

    Args:
        allocate: what stays under some bounds on predicted amounts.
        build: the model with what stays.
        meter: with the goals.

    Raises:
        TargetError: no choice that was tried holds; it says what was reached.
    """
    goals = meter.goals()
    if not meter.wanted:
        return allocate(goals)
    aims = _aims(meter)
    bounds = dict(aims)
    best: tuple[float, BoolArray] | None = None
    nearest: Amounts = {}
    around: dict[bool, Amounts] = {}  # the last bounds that held, and that did not
    seen: dict[bytes, bool] = {}
    for _ in range(ATTEMPTS):
        try:
            keep = allocate(replace(goals, **bounds))
            if keep.tobytes() in seen:
                between = _between(allocate, goals, around, seen)
                if between is None:
                    break
                keep, bounds = between
        except TargetError:
            if best is None and not nearest:
                raise
            break
        predicted = meter.totals(keep)
        found, shares, further = _measured(meter, build(keep), predicted)
        holds = seen[keep.tobytes()] = max(shares.values()) <= 1
        around[holds] = bounds
        if holds:
            if best is None or predicted[0] > best[0]:
                best = predicted[0], keep
            if max(shares.values()) >= 1 - NEAR:
                break
        nearest = found if not nearest or max(shares.values()) < max(nearest[q] / aims[q] for q in aims) else nearest
        bounds = further
    if best is None:
        raise TargetError(
            "the target cannot be reached",
            why="; ".join(
                f"{q} came to {nearest[q]:.4g}, {getattr(goals, q):.4g} was asked ({meter.whole[q]:.4g} before)"
                for q in meter.wanted
                if nearest[q] > aims[q]
            )
            + f", after {len(seen)} attempts",
            hint="ask for less, or relax --min-channels, --max-ratio, --round-to or --ignore",
        )
    return best[1]


def within(
    allocate: Callable[[knapsack.Limits], BoolArray],
    lost: Callable[[BoolArray], float],
    meter: CostEstimator,
    most: float,
) -> BoolArray:
    """Choose channels so that the result is as small (or fast) as it can be while it loses no more than `most`, by bisection.

    Args:
        allocate: what stays under some bounds on predicted amounts.
        lost: points that are lost, as measured, when only these channels stay.
        meter: with the goals that hold beside it, and with what to minimise.
        most: points that may be lost.

    Raises:
        TargetError: another goal cannot be reached, or not without losing more.
    """
    field = {"flops": "macs"}.get(meter.options.minimise, meter.options.minimise)
    goals = meter.goals()
    order = list(knapsack.Limits.__dataclass_fields__)
    whole = meter.totals(np.ones(meter.analysis.trace.n_channels, dtype=bool))[order.index(field)]
    best, drop = allocate(goals), 0.0
    if not best.all() and (drop := lost(best)) > most:
        raise TargetError(
            "the target cannot be reached",
            why=f"the model that keeps the other limits loses {drop:.2f} points, {most:g} are allowed",
            hint="ask for less, allow a larger --max-drop, or give more data or --finetune",
        )
    low, high = 1 - meter.totals(best)[order.index(field)] / whole, 1.0
    seen: dict[bytes, float] = {}
    for _ in range(HALVINGS):
        share = (low + high) / 2
        try:
            keep = allocate(replace(goals, **{field: whole * (1 - share)}))
        except TargetError:
            high = share
            continue
        drop = seen[keep.tobytes()] if keep.tobytes() in seen else lost(keep)
        seen[keep.tobytes()] = drop
        if drop <= most:
            best, low = keep, share
        else:
            high = share
    return best


@dataclass(frozen=True)
class Lifted:
    """Costs of what is left of a model in which channels have gone already, in terms of the original.

    Attributes:
        meter: of the original.
        keep: channels of the original that are there.
    """

    meter: CostEstimator
    keep: BoolArray

    def totals(self, keep: BoolArray) -> tuple[float, ...]:
        """See `Meter.totals`."""
        return self.meter.totals(lift(keep, self.keep))


def lift(keep: BoolArray, before: BoolArray) -> BoolArray:
    """Return channels of the original that stay, from those of a model that holds `before` of them."""
    total = before.copy()
    total[np.flatnonzero(before)[~keep]] = False
    return total


def refuse_slower(
    original: Model,
    result: Model,
    timed: Latency | None,
    known: dict[str, tuple[int, ...]],
    how: BenchmarkConfig,
) -> None:
    """Raise LatencyError where a result was measured to be slower than what it came from, and say which layers are to blame."""
    if timed is None or timed.speedup is None or timed.speedup_interval is None:
        return
    if timed.speedup >= SLOWER or timed.speedup_interval[1] >= 1:
        return
    if timed.runs < FEWEST_RUNS or timed.b is None or timed.b - timed.a < RESOLUTION:
        return  # nobody can tell
    shapes = concrete_shapes(original.header, how.batch, known=known)
    raise LatencyError(
        "the result is slower than the original",
        where=str(original.path),
        why=f"{timed.a:.3f} ms before, {timed.b:.3f} ms after (batch {timed.batch}, threads {timed.threads or 'default'}); "
        + "; ".join(_dearer(original, result, shapes, how.threads)),
        hint="nothing was written: leave --round-to at auto, ask for less latency instead of FLOPs, or give --force",
    )


def _dearer(original: Model, result: Model, shapes: dict[str, tuple[int, ...]], threads: int) -> list[str]:
    """Say which layers take longer than before, and by how much."""
    labels = node_labels(original.graph)
    feeds = random_feeds(original.header, shapes, 0)
    costs = []
    for model in (original, result):
        proto, weights = model.stub()
        found = profiler.profile(proto, feeds, weights=weights, threads=threads)
        each: dict[str, float] = {}
        for kernel in found.kernels:
            name = labels[kernel.node] if kernel.node is not None else f"all {kernel.op} that onnxruntime put in"
            each[name] = each.get(name, 0.0) + kernel.microseconds
        costs.append(each)
    before, after = costs
    more = sorted(((after[name] - before.get(name, 0.0), name) for name in after), reverse=True)[:TOLD]
    return [f"{name} takes {before.get(name, 0.0):.0f} -> {after[name]:.0f} us" for rise, name in more if rise > 0]

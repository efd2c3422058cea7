"""Predict the latency of a model with fewer channels from a table that is measured on this machine.

Layers are timed inside the network: variants of the whole model, pruned at random, run under onnxruntime's profiler.
The times so include fusion with neighbors, the layouts that onnxruntime chooses, and the state of the caches.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from onnxprune.allocation.knapsack import ChannelBatch, PruningRules, by_group, channel_batches, without
from onnxprune.errors import LatencyError, content_fault, first_line
from onnxprune.evaluation.benchmark import Bench, BenchmarkConfig, side_by_side
from onnxprune.fileio import atomic_write
from onnxprune.graph.activation_cost import FEATURES, ActivationCost
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.model import Model
from onnxprune.reading import read_json
from onnxprune.runtime import machine, profiler
from onnxprune.runtime.providers import short_name
from onnxprune.runtime.session import Feeds, SessionConfig
from onnxprune.runtime.timing import Latency
from onnxprune.surgery import channels as rewrite
from onnxprune.types import BoolArray, FloatArray, Trace

SCHEMA = "onnxprune.latency/1"
STEPS = (1, 8, 16)
"""Channel counts are rounded up to multiples of these before a fit."""
BETTER = 0.9
"""Share of the error with a smaller step below which a larger step is taken."""
EXACT = 0.005
"""Error of a fit, as a share of the times, from which larger steps are not tried."""
UNIFORM = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
"""Shares of the removable channel batches that every group loses alike, one variant each."""
RANDOM = 14
"""Variants in which every group loses a share of its own."""
FLAT = 1e-6
"""Difference of the times of all variants, as a share of them, up to which a table is flat."""
SECONDS = 120.0
"""Time limit of a table's measurement."""
SEED = 0
"""Seed of the variants and of the inputs."""


@dataclass(frozen=True)
class Fit:
    """The time of a node: microseconds per unit of each of `FEATURES`, channels rounded up to multiples of `step`."""

    label: str
    op: str
    step: int
    coefficients: tuple[float, ...]
    error: float


@dataclass(frozen=True)
class Table:
    """The latency model of one architecture on one machine.

    Attributes:
        architecture: digest of the model without its weights; see `architecture`.
        environment: the machine and how models are executed on it.
        fits: one per node that takes time.
        rest: the fit of all kernels that belong to no node.
        scale, offset: milliseconds of a run are `scale` times those of its kernels, plus `offset`.
        measured, predicted: milliseconds of each variant.
        seconds: duration of the measurement.
    """

    architecture: str
    environment: machine.Environment
    fits: tuple[Fit, ...]
    rest: Fit
    scale: float
    offset: float
    measured: tuple[float, ...]
    predicted: tuple[float, ...]
    seconds: float

    @property
    def error(self) -> float:
        """Median of the relative errors of the variants."""
        return float(np.median(self._errors))

    @property
    def worst(self) -> float:
        """Largest of the relative errors of the variants."""
        return float(np.max(self._errors))

    @property
    def is_flat(self) -> bool:
        """Whether all variants take the same time, as no measurement gives it: the table tells nothing about channels."""
        return bool(np.ptp(self.measured) <= FLAT * np.max(self.measured))

    @property
    def _errors(self) -> FloatArray:
        return np.asarray(np.abs(np.array(self.predicted) / np.array(self.measured) - 1))

    def summary(self) -> dict[str, Any]:
        """Return the part of the table that stands in a report."""
        return {
            "environment": asdict(self.environment),
            "variants": len(self.measured),
            "median_error": self.error,
            "worst_error": self.worst,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"schema": SCHEMA, "features": FEATURES, **asdict(self)}


def from_dict(content: Any, where: str) -> Table:
    """Return the table of `Table.to_dict`.

    Raises:
        LatencyError: `content` is no table; the error names `where`.
    """
    try:
        if content["schema"] != SCHEMA:
            raise ValueError(f"its schema is {content['schema']!r}, {SCHEMA!r} is known")
        if tuple(content["features"]) != FEATURES:
            raise ValueError(f"its features are other ones than {', '.join(FEATURES)}")
        table = Table(
            str(content["architecture"]),
            machine.environment_from(content["environment"]),
            tuple(map(_fit_from, content["fits"])),
            _fit_from(content["rest"]),
            scale=float(content["scale"]),
            offset=float(content["offset"]),
            measured=tuple(map(float, content["measured"])),
            predicted=tuple(map(float, content["predicted"])),
            seconds=float(content["seconds"]),
        )
        _check_numbers(table)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LatencyError(
            "this is no latency table",
            where=where,
            why=content_fault(error),
            hint="make one with `onnxprune bench MODEL --latency-table FILE`",
        ) from error
    return table


def _check_numbers(table: Table) -> None:
    """Refuse numbers that no measurement gives: not finite, negative, or times of zero; raises ValueError."""
    fits = (*table.fits, table.rest)
    amounts = [table.scale, table.offset, table.seconds, *(fit.error for fit in fits)]
    amounts += [each for fit in fits for each in fit.coefficients]
    times = [*table.measured, *table.predicted]
    if not np.isfinite([*amounts, *times]).all():
        raise ValueError("a number is not finite")
    if min(amounts) < 0 or min(times, default=0) <= 0 or len(table.measured) != len(table.predicted):
        raise ValueError("a time is zero or negative, or a variant has no time")


def _fit_from(entry: Any) -> Fit:
    fit = Fit(**{**entry, "coefficients": tuple(map(float, entry["coefficients"]))})
    texts = isinstance(fit.label, str) and isinstance(fit.op, str)
    if not texts or len(fit.coefficients) != len(FEATURES) or not isinstance(fit.step, int) or fit.step < 1:
        raise ValueError(f"the fit of {str(fit.label)[:40]} is damaged")
    return fit


def architecture(analysis: Analysis) -> str:
    """Return a digest of a model without its weights: operators, attributes, shapes and connections."""
    shapes, digest = analysis.trace.shapes, hashlib.sha256()
    for node in analysis.model.graph.nodes:
        attributes = {key: str(value)[:200] for key, value in sorted(node.attrs.items())}
        sizes = [str(shapes.get(t.name) or getattr(t, "shape", None)) for t in node.inputs]
        names = [t.name for t in (*node.inputs, *node.outputs)]
        digest.update(repr((node.op, node.domain, attributes, sizes, names)).encode())
    return digest.hexdigest()[:32]


class Predictor:
    """Predicts the latency of selections of channels from the table of their model."""

    def __init__(self, analysis: Analysis, table: Table) -> None:
        trace = analysis.trace
        self._cost, self._table = analysis.cost, table
        self._activations = ActivationCost(analysis.model.graph, trace, analysis.cost)
        self._number = {label: n for n, label in enumerate(trace.labels)}
        self._layers = np.array([work.layer for work in trace.works], dtype=np.int64)
        steps = sorted({fit.step for fit in (*table.fits, table.rest)})
        self._parts = [(step, *self._weights(step)) for step in steps]
        self._constant = sum(fit.coefficients[0] for fit in table.fits) + table.rest.coefficients[0]

    def _weights(self, step: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return microseconds per element of each tensor, and per MAC and per element of the weight of each layer."""
        rows = np.zeros((len(self._number), len(FEATURES)))
        for fit in self._table.fits:
            if fit.step == step and fit.label in self._number:
                rows[self._number[fit.label]] = fit.coefficients
        rest = self._table.rest
        if rest.step == step:
            rows[:, 1:] += rest.coefficients[1:]
        per_tensor = self._activations.per_tensor(rows[:, 1], rows[:, 2])
        return per_tensor, rows[self._layers, 3], rows[self._layers, 4]

    def predict(self, keep: BoolArray) -> float:
        """Return milliseconds per run when only the channels in `keep` are left."""
        total = self._constant
        for step, per_tensor, per_mac, per_weight in self._parts:
            macs, weights = self._cost.work(keep, step)
            elements = self._activations.elements(keep, step)
            total += float(elements @ per_tensor + macs @ per_mac + weights @ per_weight)
        return float(self._table.scale * total / 1e3 + self._table.offset)


def at_full_width(analysis: Analysis, table: Table, source: str) -> Bench:
    """Return the times of all layers and of a run that a table gives for the whole model; `source` is its file."""
    trace = analysis.trace
    keep = np.ones(trace.n_channels, dtype=bool)
    activations = ActivationCost(analysis.model.graph, trace, analysis.cost)
    features = {step: activations.features(keep, step) for step in {fit.step for fit in (*table.fits, table.rest)}}
    number = {label: n for n, label in enumerate(trace.labels)}
    times = {
        fit.label: (fit.op, table.scale * float(features[fit.step][number[fit.label]] @ fit.coefficients))
        for fit in table.fits
        if fit.label in number
    }
    total = Predictor(analysis, table).predict(keep)
    times["(all else)"] = "", 1e3 * total - sum(value for _, value in times.values())
    where = table.environment
    latency = Latency.from_samples(
        np.array([[total]]), batch=where.batch, threads=where.threads, provider=where.provider
    )
    return Bench(latency, side_by_side([times]), (), where, source)


def measure(
    analysis: Analysis, rules: PruningRules, config: BenchmarkConfig, progress: Callable[[float], None] | None = None
) -> Table:
    """Measure the table of a model on this machine; the variants lose the channel batches of `rules`."""
    model, trace = analysis.model, analysis.trace
    activations = ActivationCost(model.graph, trace, analysis.cost)
    feeds = model.signature.random_feeds(model.header, config.batch, SEED, trace.input_shapes)
    keeps = list(variants(trace, rules, SEED))
    start = time.perf_counter()
    times = np.zeros((len(keeps), len(trace.labels) + 1))
    measured = np.zeros(len(keeps))
    for number, keep in enumerate(keeps):
        left = (SECONDS - (time.perf_counter() - start)) / (len(keeps) - number)
        pruned = rewrite.delete(model, trace, keep)
        row, measured[number] = _profiled(pruned, feeds, config.session, left)
        times[number, : len(trace.labels)], times[number, -1] = row[:-1], row[-1]
        if progress:
            progress((number + 1) / len(keeps))
    features = {step: np.stack([activations.features(keep, step) for keep in keeps]) for step in STEPS}
    everywhere = {step: rows.sum(axis=1) * [1 / len(trace.labels), 1, 1, 1, 1] for step, rows in features.items()}
    fits = tuple(
        fit_node(trace.labels[n], trace.ops[n], {step: rows[:, n] for step, rows in features.items()}, times[:, n])
        for n in range(len(trace.labels))
        if times[:, n].any()
    )
    rest = fit_node("the rest", "", everywhere, times[:, -1])
    where = machine.environment(config.session, config.batch)
    table = Table(architecture(analysis), where, fits, rest, 1.0, 0.0, tuple(measured.tolist()), (), 0.0)
    predictor = Predictor(analysis, table)
    kernels = np.array([predictor.predict(keep) for keep in keeps])
    rows = np.stack([kernels, np.ones_like(kernels)], axis=1) / measured[:, None]
    scale, offset = nnls(rows, np.ones(len(keeps)))[0].tolist()
    predicted = tuple((scale * kernels + offset).tolist())
    return replace(table, scale=scale, offset=offset, predicted=predicted, seconds=time.perf_counter() - start)


def variants(trace: Trace, rules: PruningRules, seed: int) -> Iterator[BoolArray]:
    """Yield the channels that stay, (n_channels,): all, then equal shares of all groups, then `random_plans`."""
    keep, batches = _batches(trace, rules, seed)
    yield keep
    for share in UNIFORM:
        yield _left(keep, batches, [share] * len(batches))
    yield from random_plans(trace, rules, RANDOM, seed)


def random_plans(trace: Trace, rules: PruningRules, count: int, seed: int) -> Iterator[BoolArray]:
    """Yield the channels that stay, (n_channels,), when every group loses a random share of its channel batches."""
    keep, batches = _batches(trace, rules, seed)
    for shares in np.random.default_rng(seed).random((count, len(batches))):
        yield _left(keep, batches, shares)


def _batches(trace: Trace, rules: PruningRules, seed: int) -> tuple[BoolArray, list[list[ChannelBatch]]]:
    """Return all channels, (n_channels,), and the removable channel batches of each group in a random order."""
    keep = np.ones(trace.n_channels, dtype=bool)
    scores = np.random.default_rng(seed).permutation(trace.n_channels).astype(np.float64)
    return keep, list(by_group(channel_batches(trace, scores, keep, rules)).values())


def _left(keep: BoolArray, batches: list[list[ChannelBatch]], shares: Sequence[float] | FloatArray) -> BoolArray:
    removed = [found[: round(float(share) * len(found))] for found, share in zip(batches, shares, strict=True)]
    return without(keep, itertools.chain(*removed))


def _profiled(model: Model, feeds: Feeds, config: SessionConfig, seconds: float) -> tuple[FloatArray, float]:
    """Return the microseconds of every node and, last, of other kernels; and the milliseconds of a plain run."""
    proto, weights = model.stub()
    found = profiler.profile(proto, feeds, config, weights=weights, seconds=seconds)
    row = np.zeros(len(proto.graph.node) + 1)
    for kernel in found.kernels:
        row[-1 if kernel.node is None else kernel.node] += kernel.microseconds
    return row, found.milliseconds


def fit_node(label: str, op: str, features: dict[int, FloatArray], times: FloatArray) -> Fit:
    """Fit times, (variants,) microseconds, to features, (variants, `FEATURES`) by step.

    The fit is non-negative least squares, weighted by the inverse of the times.
    """
    best: Fit | None = None
    weight = 1 / np.maximum(times, max(1.0, 0.02 * times.max()))
    for step in STEPS:
        rows = features[step]
        size = np.maximum(rows.max(axis=0), 1e-12)
        solution, _ = nnls(rows / size * weight[:, None], times * weight)
        error = float(np.sqrt(np.mean(((rows / size @ solution - times) * weight) ** 2)))
        if best is None or (best.error > EXACT and error < BETTER * best.error):
            best = Fit(label, op, step, tuple((solution / size).tolist()), error)
    assert best is not None
    return best


def cached(digest: str, where: machine.Environment, rules: PruningRules, structure: Sequence[str] = ()) -> Path:
    """Return the path of a table in the cache; `structure` are the options that decide what one channel is."""
    decided = [*structure, rules.round_to, rules.min_channels, rules.max_ratio]
    return machine.cache_file("latency", [digest, asdict(where), decided])


def read(path: Path) -> Table:
    """Read a table from a file.

    Raises:
        LatencyError: the file cannot be read, or holds no table.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise LatencyError(
            "the latency table cannot be read", where=str(path), why=first_line(error), hint="check the path"
        ) from error
    return from_dict(content, str(path))


def is_table(path: Path) -> bool:
    """Tell whether a file is meant as a latency table, of whichever version."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "schema" in content


def refuse_flat(table: Table, where: str) -> None:
    """Refuse a table in which every width takes the same time.

    Raises:
        LatencyError: it is one.
    """
    if table.is_flat:
        raise LatencyError(
            "the latency table is flat",
            where=where,
            why="the model takes the same time with all of its channels and with few, so that no selection is faster",
            hint="make one with `onnxprune bench MODEL --latency-table FILE` on the target machine, while it is idle",
        )


def refuse_other_model(table: Table, digest: str, where: str) -> None:
    """Refuse a table of a model with another `architecture`.

    Raises:
        LatencyError: the model is another one.
    """
    if table.architecture != digest:
        raise LatencyError(
            "the latency table is of another model",
            where=where,
            why="operators, shapes or connections differ",
            hint="make one with `onnxprune bench MODEL --latency-table FILE` on the target machine",
        )


def refuse_other_provider(table: Table, config: BenchmarkConfig, where: str) -> None:
    """Refuse a table that was measured on another execution provider, or with other options of it.

    Raises:
        LatencyError: the provider is another one.
    """
    measured, asked = short_name(table.environment.provider), short_name(config.provider)
    if measured != asked:
        raise LatencyError(
            "the latency table is of another execution provider",
            where=where,
            why=f"it was measured on {measured}, and this run is on {asked}",
            hint=f"give --provider {measured}, or make a table with `onnxprune bench MODEL --latency-table FILE --provider {asked}`",
        )


def text(table: Table) -> str:
    """Return a table as JSON."""
    return json.dumps(table.to_dict(), indent=1)


def write(table: Table, path: Path) -> None:
    """Write a table to a file."""
    with atomic_write(path) as temporary:
        temporary.write_text(text(table), encoding="utf-8")

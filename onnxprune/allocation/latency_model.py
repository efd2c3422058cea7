"""How long a model would take with fewer channels: a table that is measured on this machine, and what follows from it.

Layers are not timed by themselves but where they stand: some variants of the whole model, pruned at random, run under onnxruntime's
profiler. So neighbours count as the runtime fuses them, layouts are those it chooses, and caches are as warm as they will be.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from onnxprune.allocation import knapsack
from onnxprune.errors import LatencyError
from onnxprune.fileio import atomic_write
from onnxprune.graph.activation_cost import FEATURES, ActivationCost
from onnxprune.graph.cost import CostModel
from onnxprune.graph.model import Model
from onnxprune.graph.shapes import concrete_shapes
from onnxprune.runtime import machine, profiler
from onnxprune.runtime.session import Feeds, SessionConfig, random_feeds
from onnxprune.surgery import channels as rewrite
from onnxprune.types import BoolArray, FloatArray, Trace

SCHEMA = "onnxprune.latency/1"
STEPS = (1, 8, 16)
"""Channel counts may cost as much as the next multiple of these."""
BETTER = 0.9
"""Error of a fit with a larger step, as a share of that with a smaller one, from which the larger one is believed."""
EXACT = 0.005
"""Error of a fit, as a share of the times, that no larger step need improve on."""
UNIFORM = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
"""Shares of what may go that go from every group, in the first variants."""
RANDOM = 14
"""Variants in which every group loses a share of its own."""
SECONDS = 120.0
"""What measuring a table should take at most."""
SEED = 0
"""Of the variants and of the inputs."""


@dataclass(frozen=True)
class Fit:
    """The time of a node: microseconds per unit of each of `FEATURES`, channels counted in whole steps."""

    label: str
    op: str
    step: int
    coefficients: tuple[float, ...]
    error: float


@dataclass(frozen=True)
class Table:
    """What was measured of a model on a machine, as fits.

    Attributes:
        architecture: what must be equal for a model to use it; weights have no say.
        environment: where it was measured.
        fits: one per node that takes time.
        rest: the same for kernels that belong to no node.
        scale, offset: milliseconds of a run per millisecond of its kernels, and beside them.
        measured, predicted: milliseconds of each variant.
        seconds: what measuring took.
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
        """Median of the relative errors of whole variants."""
        return float(np.median(np.abs(np.array(self.predicted) / np.array(self.measured) - 1)))

    def summary(self) -> dict[str, Any]:
        """Return what a report says of it."""
        return {
            "environment": asdict(self.environment),
            "variants": len(self.measured),
            "median_error": self.error,
            "worst_error": self.worst,
        }

    @property
    def worst(self) -> float:
        """Largest of the relative errors of whole variants."""
        return float(np.max(np.abs(np.array(self.predicted) / np.array(self.measured) - 1)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"schema": SCHEMA, "features": FEATURES, **asdict(self)}


def from_dict(content: Any, where: str) -> Table:
    """Read a table.

    Raises:
        LatencyError: it is none.
    """
    try:
        if content["schema"] != SCHEMA or tuple(content["features"]) != FEATURES:
            raise ValueError(f"its schema is {content['schema']!r}, {SCHEMA!r} is known")
        return Table(
            architecture=str(content["architecture"]),
            environment=machine.Environment(**content["environment"]),
            fits=tuple(_fit_from(entry) for entry in content["fits"]),
            rest=_fit_from(content["rest"]),
            scale=float(content["scale"]),
            offset=float(content["offset"]),
            measured=tuple(map(float, content["measured"])),
            predicted=tuple(map(float, content["predicted"])),
            seconds=float(content["seconds"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LatencyError(
            "this is no latency table",
            where=where,
            why=f"{type(error).__name__}: {error}",
            hint="make one with `onnxprune bench MODEL --latency-table FILE`",
        ) from error


def _fit_from(entry: Any) -> Fit:
    fit = Fit(**{**entry, "coefficients": tuple(map(float, entry["coefficients"]))})
    if len(fit.coefficients) != len(FEATURES) or not isinstance(fit.step, int) or fit.step < 1:
        raise ValueError(f"the fit of {fit.label} is damaged")
    return fit


def architecture(model: Model, trace: Trace) -> str:
    """Return a digest of all that the time of a model depends on but its weights: operators, attributes, shapes, connections."""
    digest = hashlib.sha256()
    for node in model.graph.nodes:
        attributes = {key: str(value)[:200] for key, value in sorted(node.attrs.items())}
        shapes = [trace.shapes.get(t.name) or getattr(t, "shape", None) for t in node.inputs]
        names = [t.name for t in (*node.inputs, *node.outputs)]
        digest.update(repr((node.op, node.domain, attributes, [str(s) for s in shapes], names)).encode())
    return digest.hexdigest()[:32]


class Predictor:
    """Predict the time of a model from a table.

    Args:
        model: what was traced.
        trace: its facts.
        cost: its cost model.
        table: made for it.
    """

    def __init__(self, model: Model, trace: Trace, cost: CostModel, table: Table) -> None:
        self._cost, self._table = cost, table
        self._activations = ActivationCost(model.graph, trace, cost)
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

    def nodes(self, keep: BoolArray) -> dict[str, float]:
        """Return microseconds of each node that takes time, by label."""
        features = {step: self._activations.features(keep, step) for step, *_ in self._parts}
        return {
            fit.label: float(features[fit.step][self._number[fit.label]] @ fit.coefficients) * self._table.scale
            for fit in self._table.fits
            if fit.label in self._number
        }


# ---------------------------------------------------------------------------------------------------------------- measure


def measure(
    model: Model,
    trace: Trace,
    cost: CostModel,
    rules: knapsack.PruningRules,
    *,
    config: SessionConfig,
    batch: int = 1,
    seconds: float = SECONDS,
    progress: Callable[[float], None] | None = None,
) -> Table:
    """Measure a table for a model on this machine.

    Args:
        model: what was traced.
        trace: its facts.
        cost: its cost model.
        rules: which channel counts are candidates.
        config: how models are executed.
        batch: samples per run, where the batch is dynamic.
        seconds: after which no further variant is begun, if there are enough.
        progress: called with the share that is done.
    """
    traffic = ActivationCost(model.graph, trace, cost)
    shapes = concrete_shapes(model.header, batch, known=trace.input_shapes)
    feeds = random_feeds(model.header, shapes, SEED)
    keeps = list(variants(trace, rules, SEED))
    start = time.perf_counter()
    times = np.zeros((len(keeps), len(trace.labels) + 1))
    whole = []
    for number, keep in enumerate(keeps):
        left = (seconds - (time.perf_counter() - start)) / (len(keeps) - number)
        row, milliseconds = _profiled(rewrite.delete(model, trace, keep), feeds, config, left)
        times[number, : len(trace.labels)], times[number, -1] = row[:-1], row[-1]
        whole.append(milliseconds)
        if progress:
            progress((number + 1) / len(keeps))
    features = {step: np.stack([traffic.features(keep, step) for keep in keeps]) for step in STEPS}
    everywhere = {step: rows.sum(axis=1) * [1 / len(trace.labels), 1, 1, 1, 1] for step, rows in features.items()}
    fits = tuple(
        fit_node(trace.labels[n], trace.ops[n], {step: rows[:, n] for step, rows in features.items()}, times[:, n])
        for n in range(len(trace.labels))
        if times[:, n].any()
    )
    rest = fit_node("the rest", "", everywhere, times[:, -1])
    table = Table(
        architecture(model, trace), machine.environment(config, batch), fits, rest, 1.0, 0.0, tuple(whole), (), 0.0
    )
    kernels = np.array([Predictor(model, trace, cost, table).predict(keep) for keep in keeps])
    measured = np.array(whole)
    (scale, offset), _ = nnls(
        np.stack([kernels, np.ones_like(kernels)], axis=1) / measured[:, None], np.ones(len(keeps))
    )
    return replace(
        table,
        scale=float(scale),
        offset=float(offset),
        predicted=tuple((scale * kernels + offset).tolist()),
        seconds=time.perf_counter() - start,
    )


def variants(trace: Trace, rules: knapsack.PruningRules, seed: int) -> Iterator[BoolArray]:
    """Yield what is left in each variant: everything, the same share of every group, a share of its own of each."""
    yield np.ones(trace.n_channels, dtype=bool)
    blocks = _blocks(trace, rules, seed)
    for share in UNIFORM:
        yield _left(trace, blocks, np.full(len(blocks), share))
    yield from random_plans(trace, rules, RANDOM, seed)


def random_plans(trace: Trace, rules: knapsack.PruningRules, count: int, seed: int) -> Iterator[BoolArray]:
    """Yield what is left, (n_channels,), when every group loses a random share of what may go."""
    blocks, rng = _blocks(trace, rules, seed), np.random.default_rng(seed)
    for shares in rng.random((count, len(blocks))):
        yield _left(trace, blocks, shares)


def _blocks(trace: Trace, rules: knapsack.PruningRules, seed: int) -> dict[str, list[knapsack.ChannelBatch]]:
    """Return blocks that may go, in a random order, by group."""
    scores = np.random.default_rng(seed).permutation(trace.n_channels).astype(np.float64)
    blocks: dict[str, list[knapsack.ChannelBatch]] = {}
    for block in knapsack.channel_batches(trace, scores, np.ones(trace.n_channels, dtype=bool), rules):
        blocks.setdefault(block.group, []).append(block)
    return blocks


def _left(trace: Trace, blocks: dict[str, list[knapsack.ChannelBatch]], shares: FloatArray) -> BoolArray:
    keep = np.ones(trace.n_channels, dtype=bool)
    for found, share in zip(blocks.values(), shares, strict=True):
        for block in found[: round(float(share) * len(found))]:
            keep[block.channels] = False
    return keep


def _profiled(model: Model, feeds: Feeds, config: SessionConfig, seconds: float) -> tuple[FloatArray, float]:
    """Return the microseconds of every node, and at the end of all other kernels, and the milliseconds of a run without profiler."""
    proto, weights = model.stub()
    found = profiler.profile(proto, feeds, config, weights=weights, seconds=seconds)
    row = np.zeros(len(proto.graph.node) + 1)
    for kernel in found.kernels:
        row[-1 if kernel.node is None else kernel.node] += kernel.microseconds
    return row, found.milliseconds


def fit_node(label: str, op: str, features: dict[int, FloatArray], times: FloatArray) -> Fit:
    """Fit times by non-negative least squares on features, each as a share of the time.

    Args:
        label: of the node.
        op: of the node.
        features: (variants, `FEATURES`) by step.
        times: (variants,) microseconds.
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


# ------------------------------------------------------------------------------------------------------------------ cache


def cached(
    table_for: str, where: machine.Environment, rules: knapsack.PruningRules, structure: Sequence[str] = ()
) -> Path:
    """Return the file in which a table lies or would lie; `structure` is what says what a channel is, beside the model."""
    key = json.dumps([table_for, asdict(where), [*structure, rules.round_to, rules.min_channels, rules.max_ratio]])
    return machine.cache_folder() / f"latency-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def read(path: Path) -> Table:
    """Read a table from a file.

    Raises:
        LatencyError: it cannot be read, or is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LatencyError(
            "the latency table cannot be read", where=str(path), why=str(error), hint="check the path"
        ) from error
    return from_dict(content, str(path))


def text(table: Table) -> str:
    """Return a table as it stands in a file."""
    return json.dumps(table.to_dict(), indent=1)


def write(table: Table, path: Path) -> None:
    """Write a table to a file."""
    with atomic_write(path) as temporary:
        temporary.write_text(text(table), encoding="utf-8")

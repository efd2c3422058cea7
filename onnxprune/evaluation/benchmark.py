"""The latency of one or two models, of whole runs and of each node: `bench`, and what `compare` shares with it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxprune.errors import OptionError
from onnxprune.graph import io
from onnxprune.graph.model import Model, weightless
from onnxprune.graph.shapes import light
from onnxprune.graph.signature import Signature, derive
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.runtime import machine, profile_files, profiler
from onnxprune.runtime.memory_limit import PRUNED
from onnxprune.runtime.providers import CPU_PROVIDER, normal_provider
from onnxprune.runtime.session import Feeds, SessionConfig, open_session
from onnxprune.runtime.timing import Latency, sample_times

if TYPE_CHECKING:
    import onnxruntime as ort

SCHEMA = "onnxprune.bench/2"
RANGES = {
    "batch": (1, 10**6),
    "threads": (0, 10**3),
    "runs": (1, 10**9),
    "warmup": (0, 10**9),
    "eval_batch": (1, 10**9),
}
"""Least and largest number of each field; onnxruntime starts as many threads as it is told."""
SECONDS = 20.0
"""Time limit of profiling a model."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """How latency and accuracy are measured.

    Attributes:
        latency: whether latency is measured.
        batch: samples per timed run.
        threads: threads of onnxruntime within an operator; 0: its own choice.
        runs, warmup: counted and uncounted runs of each model.
        seconds: time limit of the counted runs.
        eval_batch: samples per batch of the evaluation.
        provider: execution provider of onnxruntime that runs and times the models: `NAME[,key=value…]`, with or without
            `ExecutionProvider`; kept with the name that onnxruntime has for it.
        fallback: whether nodes that the provider does not take run on the CPU; off, they are an error.
    """

    latency: bool = True
    batch: int = 1
    threads: int = 1
    runs: int = 200
    warmup: int = 20
    seconds: float = 20.0
    eval_batch: int = 64
    provider: str = CPU_PROVIDER
    fallback: bool = False

    @property
    def session(self) -> SessionConfig:
        """How models are executed."""
        return SessionConfig(self.provider, fallback=self.fallback, threads=self.threads)

    def __post_init__(self) -> None:
        object.__setattr__(self, "provider", normal_provider(self.provider))
        for name, (least, most) in RANGES.items():
            if not least <= (value := getattr(self, name)) <= most:
                option = f"--{name.replace('_', '-')}"
                raise OptionError(f"{option} {value} is out of range", hint=f"give {least:,} to {most:,}")


@dataclass(frozen=True)
class LayerTime:
    """Microseconds of a node in each model; None where a model lacks the node, or onnxruntime fuses it into another one."""

    name: str
    op: str
    a: float | None
    b: float | None


@dataclass(frozen=True)
class Bench:
    """The result of `bench`.

    Attributes:
        latency: of whole runs.
        layers: times of the nodes, the slowest first; kernels that onnxruntime inserts are summed by operator.
        pinned: processors that the process was pinned to.
        environment: the machine.
        source: what the times are read from; empty where they are measured here.
    """

    latency: Latency
    layers: tuple[LayerTime, ...]
    pinned: tuple[int, ...]
    environment: machine.Environment
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"schema": SCHEMA, **asdict(self.latency), **{k: v for k, v in asdict(self).items() if k != "latency"}}


def bench(
    paths: Sequence[str | os.PathLike[str]],
    measure: BenchmarkConfig,
    seed: int = 0,
    *,
    layers: bool = True,
    shape: Mapping[str, tuple[int, ...]] | None = None,
    on_stage: ProgressCallback = quiet,
) -> Bench:
    """Time one or two models with interleaved runs, on seeded random inputs; see `time_sessions`.

    Args:
        paths: one or two model files.
        measure: the benchmark config.
        seed: of the inputs.
        layers: whether nodes are profiled as well.
        shape: shapes of inputs, for axes without a size.
        on_stage: progress callback.

    Raises:
        ModelError: a model cannot be read or run.
    """
    on_stage("load", None)
    protos = [io.read(path, PRUNED).proto for path in paths]
    with machine.pinned(measure.threads) as processors:
        sessions = [open_session(os.fspath(path), measure.session, where=os.fspath(path)) for path in paths]
        found = [_signature(opened, proto, shape) for opened, proto in zip(sessions, protos, strict=True)]
        feeds = [
            signature.random_feeds(proto, measure.batch, seed) for signature, proto in zip(found, protos, strict=True)
        ]
        latency = time_sessions(sessions, feeds, measure, found[0].per_run(measure.batch), on_stage)
        del sessions
        times = []
        for number, (path, inputs) in enumerate(zip(paths, feeds, strict=True) if layers else ()):
            on_stage("layers", number / len(paths))
            times.append(layer_times(os.fspath(path), inputs, measure.session))
    environment = machine.environment(measure.session, latency.batch)
    return Bench(latency, side_by_side(times) if layers else (), processors, environment)


def _signature(
    opened: ort.InferenceSession, proto: onnx.ModelProto, shape: Mapping[str, tuple[int, ...]] | None
) -> Signature:
    return derive(light(proto), proto, lambda: opened, shape)


def time_sessions(
    sessions: Sequence[ort.InferenceSession],
    feeds: Sequence[Feeds],
    config: BenchmarkConfig,
    samples: int,
    on_stage: ProgressCallback = quiet,
) -> Latency:
    """Time the sessions of one or two models, each on its own inputs of `samples` samples, with interleaved runs."""
    times = sample_times(
        sessions,
        feeds,
        runs=config.runs,
        warmup=config.warmup,
        seconds=config.seconds,
        progress=share_of(on_stage, "time"),
    )
    return Latency.from_samples(times, batch=samples, threads=config.threads, provider=config.provider)


def median_times(
    sessions: Sequence[ort.InferenceSession], feeds: Feeds, config: BenchmarkConfig, share: float
) -> list[float]:
    """Return the median milliseconds of sessions that run in turn on the same inputs, within a share of the time limit."""
    seconds = config.seconds * share
    times = sample_times(sessions, [feeds] * len(sessions), runs=config.runs, warmup=config.warmup, seconds=seconds)
    return [float(median) for median in np.median(times, axis=1)]


def timing_key(
    kind: str, models: Sequence[Model], shapes: Mapping[str, tuple[int, ...]], config: BenchmarkConfig
) -> str:
    """Return the key of a timing in `onnxprune.runtime.timings`: what the time of models depends on, without their weights."""
    digest = hashlib.sha256(repr((sorted(shapes.items()), config.batch, config.session)).encode())
    for model in models:
        digest.update(weightless(model).SerializeToString(deterministic=True))
    return f"{kind} {digest.hexdigest()[:24]}"


Times = dict[str, tuple[str, float]]
"""Operator and microseconds of each node, by name; nodes that are fused into others are missing."""


def layer_times(source: str | Model, feeds: Feeds, config: SessionConfig, seconds: float = SECONDS) -> Times:
    """Profile a model, or a model file, within a time limit."""
    found = source if isinstance(source, Model) else io.read(source)
    (proto, weights), where = found.stub(), found.files[0].name
    names = node_names(proto)
    return _by_node(
        names, profiler.profile(proto, feeds, config, weights=weights, seconds=seconds, where=where).kernels
    )


def node_names(proto: onnx.ModelProto) -> list[tuple[str, str]]:
    """Return name and operator of each node."""
    return [(node.name or f"{node.op_type}_{node.output[0]}", node.op_type) for node in proto.graph.node]


def _by_node(names: Sequence[tuple[str, str]], kernels: Sequence[profiler.Kernel]) -> Times:
    found: Times = {}
    for kernel in kernels:
        name, op = (kernel.label, kernel.op) if kernel.node is None else names[kernel.node]
        found[name] = op, found.get(name, (op, 0.0))[1] + kernel.microseconds
    return found


def elsewhere(path: str | os.PathLike[str], profile: Path) -> Bench:
    """Return the times of a model that were measured elsewhere, from a profile; see `onnxprune.runtime.profile_files`.

    Raises:
        ModelError: the model cannot be read.
        LatencyError: the profile cannot be read, or is of another model.
    """
    proto = io.read(path).proto
    found = profile_files.read(profile, proto)
    latency = Latency.from_samples(found.runs[None], batch=0, threads=0, provider=found.provider)
    environment = machine.Environment("", "", 0, 0, found.provider)
    layers = side_by_side([_by_node(node_names(proto), found.kernels)])
    return Bench(latency, layers, (), environment, f"{found.kind} {profile}")


def side_by_side(times: Sequence[Times]) -> tuple[LayerTime, ...]:
    """Return the times of one or two models, node by node."""
    a, b = times[0], times[1] if len(times) > 1 else {}
    none = ("", None)
    rows = [
        LayerTime(name, (a.get(name) or b[name])[0], a.get(name, none)[1], b.get(name, none)[1])
        for name in dict.fromkeys((*a, *b))
    ]
    return tuple(sorted(rows, key=lambda row: -max(row.a or 0.0, row.b or 0.0)))

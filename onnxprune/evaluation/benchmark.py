"""`bench`: how long one model takes, or two in turn, as a whole and kernel by kernel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from onnxprune.errors import OptionError
from onnxprune.graph import io
from onnxprune.graph.model import Model
from onnxprune.graph.shapes import workable_shapes
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.runtime import machine, profiler
from onnxprune.runtime.session import Feeds, open_session, random_feeds
from onnxprune.runtime.timing import Latency, time_runs

SCHEMA = "onnxprune.bench/2"
SECONDS = 20.0
"""That looking at the kernels of one model should take, at most."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """How to measure.

    Attributes:
        latency: whether to.
        batch: samples per timed run.
        threads: onnxruntime's threads within an operator; 0 leaves it to onnxruntime.
        runs, warmup: counted and uncounted runs of each model.
        seconds: after which no more runs are started.
        eval_batch: samples per batch when accuracy is measured.
    """

    latency: bool = True
    batch: int = 1
    threads: int = 1
    runs: int = 200
    warmup: int = 20
    seconds: float = 20.0
    eval_batch: int = 64

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("threads", 0), ("runs", 1), ("warmup", 0), ("eval_batch", 1)):
            if getattr(self, name) < least:
                raise OptionError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is out of range", hint=f"give {least} or more"
                )


@dataclass(frozen=True)
class LayerTime:
    """Microseconds of a node in each model; None where a model has no such node, or onnxruntime runs it as part of another."""

    name: str
    op: str
    a: float | None
    b: float | None


@dataclass(frozen=True)
class Bench:
    """What `bench` finds.

    Attributes:
        latency: of whole runs.
        layers: from onnxruntime's profiler, dearest in the first model first; kernels that it put in by itself are added up by operator.
        pinned: processors that the process was kept on.
        environment: the machine.
    """

    latency: Latency
    layers: tuple[LayerTime, ...]
    pinned: tuple[int, ...]
    environment: machine.Environment

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"schema": SCHEMA, **asdict(self.latency), **{k: v for k, v in asdict(self).items() if k != "latency"}}


def bench(
    paths: Sequence[str | os.PathLike[str]],
    measure: BenchmarkConfig,
    seed: int = 0,
    *,
    layers: bool = True,
    on_stage: ProgressCallback = quiet,
) -> Bench:
    """Time one model, or two in turn, each on seeded random inputs of its own shapes.

    Args:
        paths: one or two.
        measure: how.
        seed: of the inputs.
        layers: whether to look at kernels as well.
        on_stage: called as it goes on.

    Raises:
        ModelError: one cannot be read or run.
    """
    on_stage("load", None)
    protos = [io.read(path)[0] for path in paths]
    with machine.pinned(measure.threads) as processors:
        sessions = [open_session(os.fspath(path), threads=measure.threads, where=os.fspath(path)) for path in paths]
        feeds = [
            random_feeds(proto, workable_shapes(opened, proto, measure.batch), seed)
            for opened, proto in zip(sessions, protos, strict=True)
        ]
        batch = next(iter(feeds[0].values())).shape[0]
        latency = time_runs(
            sessions,
            feeds,
            runs=measure.runs,
            warmup=measure.warmup,
            threads=measure.threads,
            batch=batch,
            seconds=measure.seconds,
            progress=share_of(on_stage, "time"),
        )
        del sessions
        times = []
        for number, (path, inputs) in enumerate(zip(paths, feeds, strict=True) if layers else ()):
            on_stage("layers", number / len(paths))
            times.append(layer_times(os.fspath(path), inputs, measure.threads))
    return Bench(
        latency, side_by_side(times) if layers else (), processors, machine.environment(measure.threads, batch)
    )


Times = dict[str, tuple[str, float]]
"""Operator and microseconds of each node that takes time, by name."""


def layer_times(source: str | Model, feeds: Feeds, threads: int, seconds: float = SECONDS) -> Times:
    """Return what each node of a model, or of a model file, takes; nothing for a file whose weights lie beside it, or that has 2 GB.

    Args:
        source: the model, or the path of the file.
        feeds: inputs.
        threads: of onnxruntime, within an operator.
        seconds: that it should take.
    """
    if isinstance(source, Model):
        (proto, weights), where = source.stub(), source.path.name
    else:
        proto, weights, where = onnx.load(source), None, Path(source).name
        external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer)
        if external or proto.ByteSize() >= 2**31:
            return {}  # nodes can only be told apart after they are named, and so large a model cannot be passed on in memory
    names = [(node.name or f"{node.op_type}_{node.output[0]}", node.op_type) for node in proto.graph.node]
    found: Times = {}
    for kernel in profiler.profile(
        proto, feeds, weights=weights, threads=threads, seconds=seconds, where=where
    ).kernels:
        name, op = (f"({kernel.op}, put in by onnxruntime)", kernel.op) if kernel.node is None else names[kernel.node]
        found[name] = op, found.get(name, (op, 0.0))[1] + kernel.microseconds
    return found


def side_by_side(times: Sequence[Times]) -> tuple[LayerTime, ...]:
    """Return the times of one or two models, node by node."""
    a, b = times[0], times[1] if len(times) > 1 else {}
    rows = [
        LayerTime(
            name,
            a[name][0] if name in a else b[name][0],
            a[name][1] if name in a else None,
            b[name][1] if name in b else None,
        )
        for name in dict.fromkeys((*a, *b))
    ]
    return tuple(sorted(rows, key=lambda row: -max(row.a or 0.0, row.b or 0.0)))

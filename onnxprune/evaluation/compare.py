"""Run two models on the same inputs: accuracy, fidelity and latency side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxprune.data.dataset import Data
from onnxprune.errors import DataError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.graph.shapes import has_dynamic_batch, workable_shapes
from onnxprune.metrics.outputs import Outputs, classification_accuracy, compare_outputs
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.runtime.session import Feeds, concatenate_outputs, random_feeds, run_batch
from onnxprune.runtime.timing import Latency, time_runs
from onnxprune.types import IntArray

if TYPE_CHECKING:
    import onnxruntime as ort


RANDOM_SAMPLES = 16
"""Seeded inputs that stand in for data when none are given."""


@dataclass(frozen=True)
class Comparison:
    """Two models on the same inputs.

    Accuracies are (top-1, top-5) in percent, None without labels. `outputs` are those of both, `feeds` the batch that both are timed on.
    """

    accuracy_a: tuple[float | None, float | None]
    accuracy_b: tuple[float | None, float | None]
    fidelity: dict[str, float]
    latency: Latency | None
    data: str
    samples: int
    finite: bool
    outputs: tuple[Outputs, Outputs]
    labels: IntArray | None
    feeds: Feeds


def compare(
    original: ort.InferenceSession,
    candidate: ort.InferenceSession,
    proto: onnx.ModelProto,
    data: Data | None,
    measure: BenchmarkConfig,
    on_stage: ProgressCallback = quiet,
    seed: int = 0,
) -> Comparison:
    """Run two sessions on the same data (or, without any, on seeded random inputs) and time them in turn."""
    found: list[Outputs] = []
    accuracy: list[tuple[float | None, float | None]] = [(None, None), (None, None)]
    if data is not None:
        for opened, name in ((original, "the original"), (candidate, "the candidate")):

            def progress(share: float, done: int = len(found)) -> None:
                on_stage("evaluate", (done + share) / 2)

            found.append(predict(opened, data, measure.eval_batch, name, progress))
        if data.labels is not None:
            accuracy = [
                (a["top1"], a.get("top5")) for a in (classification_accuracy(outputs, data.labels) for outputs in found)
            ]
        name, samples = data.name, len(found[0][0])
    else:
        samples = RANDOM_SAMPLES if has_dynamic_batch(proto) else 1
        inputs = random_feeds(proto, workable_shapes(original, proto, samples), seed)
        found = [[np.atleast_1d(o) for o in run_batch(opened, inputs)] for opened in (original, candidate)]
        name = "random inputs"
    feeds = timed_feeds(original, proto, data, measure.batch, seed)
    latency = None
    if measure.latency:
        on_stage("time", 0.0)
        latency = time_runs(
            (original, candidate),
            (feeds, feeds),
            runs=measure.runs,
            warmup=measure.warmup,
            threads=measure.threads,
            batch=(*next(iter(feeds.values())).shape, 1)[0],
            seconds=measure.seconds,
            progress=share_of(on_stage, "time"),
        )
    finite = all(np.isfinite(output).all() for output in found[1] if output.dtype.kind == "f")
    with np.errstate(invalid="ignore", over="ignore"):  # told by `finite`
        likeness = compare_outputs(*found)
    labels = None if data is None or data.labels is None else data.labels[:samples]
    outputs = (found[0], found[1])
    return Comparison(accuracy[0], accuracy[1], likeness, latency, name, samples, finite, outputs, labels, feeds)


def timed_feeds(
    opened: ort.InferenceSession, proto: onnx.ModelProto, data: Data | None, batch: int, seed: int = 0
) -> Feeds:
    """Return inputs to time a model on: the first samples of the data, or seeded random ones."""
    if data is None:
        return random_feeds(proto, workable_shapes(opened, proto, batch), seed)
    batch = data.inputs[0].shape[0] or batch  # a model of a fixed batch runs on no other
    feeds = data.rows(0, min(batch, len(data)))
    if len(data) < batch:
        feeds = {key: np.resize(value, (batch, *value.shape[1:])) for key, value in feeds.items()}
    return feeds


def predict(
    opened: ort.InferenceSession, data: Data, batch: int, where: str, progress: Callable[[float], None] | None = None
) -> Outputs:
    """Run all data through a model; return each output, joined over the samples.

    A model with a fixed batch of another size is fed that size; a rest too small for a batch is left out.
    """
    parts: list[list[Any]] = []
    fixed = opened.get_inputs()[0].shape[0] if opened.get_inputs()[0].shape else None
    size = fixed if isinstance(fixed, int) else min(batch, len(data))
    if len(data) < size:
        raise DataError(
            "too few samples for one batch",
            where=data.name,
            why=f"the model takes {size} at a time, there are {len(data)}",
            hint="give more samples, or export with a dynamic batch",
        )
    for feeds in data.batches(size):
        if isinstance(fixed, int) and len(next(iter(feeds.values()))) < size:
            break
        parts.append(run_batch(opened, feeds, where=where))
        if progress:
            progress(min(1.0, len(parts) * size / len(data)))
    return concatenate_outputs(parts)

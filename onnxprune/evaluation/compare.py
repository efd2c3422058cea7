"""Compare the accuracy, fidelity and latency of two models on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxprune.data.dataset import Data
from onnxprune.errors import DataError
from onnxprune.evaluation.benchmark import BenchmarkConfig, time_sessions
from onnxprune.graph.shapes import has_dynamic_batch, workable_shapes
from onnxprune.metrics.outputs import Outputs, all_finite, classification_accuracy, compare_outputs
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.runtime.session import Feeds, concatenate_outputs, random_feeds, run_batch
from onnxprune.runtime.timing import Latency
from onnxprune.types import Check, IntArray

if TYPE_CHECKING:
    import onnxruntime as ort


RANDOM_SAMPLES = 16
"""Number of seeded random inputs that are used without data."""


@dataclass(frozen=True)
class Comparison:
    """The original and a candidate on the same inputs.

    Attributes:
        accuracy: accuracy metrics of each model, by name; empty without labels.
        fidelity: fidelity metrics of the candidate, by name.
        latency: of both models; None where it is not measured.
        data, samples: name and number of the samples.
        finite: whether the outputs of both models are finite.
        outputs: of each model, joined over the samples.
        labels: (samples,); None where there are none.
        feeds: inputs of the timed runs.
    """

    accuracy: tuple[Mapping[str, float], Mapping[str, float]]
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
    config: BenchmarkConfig,
    on_stage: ProgressCallback = quiet,
    seed: int = 0,
) -> Comparison:
    """Run two sessions on the same data (without data: on seeded random inputs), and time them.

    Raises:
        DataError: there are too few samples, or labels that do not belong to the model.
    """
    labels = None
    if data is None:
        name, samples = "random inputs", RANDOM_SAMPLES if has_dynamic_batch(proto) else 1
        inputs = random_feeds(proto, workable_shapes(original, proto, samples), seed)
        a, b = ([np.atleast_1d(o) for o in run_batch(opened, inputs)] for opened in (original, candidate))
    else:
        a = predict(original, data, config.eval_batch, "the original", lambda share: on_stage("evaluate", share / 2))
        b = predict(candidate, data, config.eval_batch, "the candidate", lambda x: on_stage("evaluate", (1 + x) / 2))
        name, samples = data.name, len(a[0])
        labels = None if data.labels is None else data.labels[:samples]
    accuracy: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})
    if labels is not None:
        accuracy = (classification_accuracy(a, labels), classification_accuracy(b, labels))
    feeds = timed_feeds(original, proto, data, config.batch, seed)
    latency = None
    if config.latency:
        on_stage("time", 0.0)
        latency = time_sessions((original, candidate), (feeds, feeds), config, on_stage)
    finite = all_finite(a) and all_finite(b)
    with np.errstate(invalid="ignore", over="ignore"):  # reported by `finite`
        fidelity = compare_outputs(a, b)
    return Comparison(accuracy, fidelity, latency, name, samples, finite, (a, b), labels, feeds)


def finite_check(compared: Comparison) -> Check:
    """Check that the outputs of both models are finite."""
    named = zip(("original", "candidate"), compared.outputs, strict=True)
    wrong = [name for name, outputs in named if not all_finite(outputs)]
    detail = f"NaN or infinity from the {' and the '.join(wrong)} on {compared.data}" if wrong else ""
    return Check("finite outputs", compared.finite, None, compared.finite, detail)


def timed_feeds(
    opened: ort.InferenceSession, proto: onnx.ModelProto, data: Data | None, batch: int, seed: int = 0
) -> Feeds:
    """Return the inputs of timed runs: the first samples of the data, or seeded random ones."""
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
    """Return the outputs of a model on all data, joined over the samples.

    A model with a fixed batch runs on batches of that size; samples that do not fill the last one are left out.

    Raises:
        DataError: there are fewer samples than the fixed batch.
    """
    parts: list[list[Any]] = []
    fixed = next(iter(opened.get_inputs()[0].shape), None)
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

"""Compare the accuracy, fidelity and latency of two models on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxprune.data.dataset import Data
from onnxprune.evaluation.benchmark import BenchmarkConfig, time_sessions
from onnxprune.graph.signature import Signature
from onnxprune.metrics.outputs import Outputs, all_finite, classification_accuracy, compare_outputs
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.runtime.session import Feeds, run_batch
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
        batch: samples of a timed run.
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
    batch: int


def compare(
    original: ort.InferenceSession,
    candidate: ort.InferenceSession,
    proto: onnx.ModelProto,
    data: Data | None,
    config: BenchmarkConfig,
    signature: Signature,
    on_stage: ProgressCallback = quiet,
    seed: int = 0,
) -> Comparison:
    """Run two sessions on the same data (without data: on seeded random inputs), and time them.

    Raises:
        DataError: there are too few samples, or labels that do not belong to the model.
    """
    labels = None
    if data is None:
        name, samples = "random inputs", signature.per_run(RANDOM_SAMPLES)
        inputs = signature.random_feeds(proto, samples, seed)
        a, b = (signature.join([run_batch(opened, inputs)]) for opened in (original, candidate))
    else:
        size = signature.per_evaluation(config.eval_batch)
        a = predict(original, data, size, signature, "the original", lambda share: on_stage("evaluate", share / 2))
        b = predict(candidate, data, size, signature, "the candidate", lambda x: on_stage("evaluate", (1 + x) / 2))
        name, samples, labels = data.name, len(data), data.labels
    accuracy: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})
    if labels is not None:
        accuracy = (classification_accuracy(a, labels), classification_accuracy(b, labels))
    feeds, batch = timed_feeds(proto, data, config.batch, signature, seed), signature.per_run(config.batch)
    latency = None
    if config.latency:
        on_stage("time", 0.0)
        latency = time_sessions((original, candidate), (feeds, feeds), config, batch, on_stage)
    finite = all_finite(a) and all_finite(b)
    with np.errstate(invalid="ignore", over="ignore"):  # reported by `finite`
        fidelity = compare_outputs(a, b)
    return Comparison(accuracy, fidelity, latency, name, samples, finite, (a, b), labels, feeds, batch)


def finite_check(compared: Comparison) -> Check:
    """Check that the outputs of both models are finite."""
    named = zip(("original", "candidate"), compared.outputs, strict=True)
    wrong = [name for name, outputs in named if not all_finite(outputs)]
    detail = f"NaN or infinity from the {' and the '.join(wrong)} on {compared.data}" if wrong else ""
    return Check("finite outputs", compared.finite, None, compared.finite, detail)


def timed_feeds(proto: onnx.ModelProto, data: Data | None, batch: int, signature: Signature, seed: int = 0) -> Feeds:
    """Return the inputs of timed runs: the first samples of the data, or seeded random ones."""
    if data is None:
        return signature.random_feeds(proto, batch, seed)
    return filled(data, 0, signature.per_run(batch))


def filled(data: Data, start: int, size: int) -> Feeds:
    """Return a run of `size` samples from sample `start` on, as the model takes them; repeated where there are too few."""
    return data.take(np.arange(start, start + size) % len(data)).rows(0, size)


def predict(
    opened: ort.InferenceSession,
    data: Data,
    size: int,
    signature: Signature,
    where: str,
    progress: Callable[[float], None] | None = None,
) -> Outputs:
    """Return the outputs of a model on all data, samples first.

    A model that fixes the samples of a run gets samples again in the last run, whose outputs are left out.
    """
    parts: list[list[Any]] = []
    size = data.fixed or size
    for start in range(0, len(data), size):
        stop = min(start + size, len(data))
        feeds = data.rows(start, stop) if data.fixed is None else filled(data, start, size)
        parts.append(run_batch(opened, feeds, where=where))
        if progress:
            progress(stop / len(data))
    return [output[: len(data)] for output in signature.join(parts)]

"""Compare the accuracy, fidelity and latency of two models on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxprune.data.dataset import Data
from onnxprune.evaluation.benchmark import BenchmarkConfig, time_sessions
from onnxprune.graph.comparison_points import Measured
from onnxprune.graph.signature import Signature
from onnxprune.metrics.outputs import Outputs, all_finite, classification_accuracy, compare_outputs
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.runtime.session import Feeds, run_batch
from onnxprune.runtime.timing import Latency
from onnxprune.surgery.cuts import Pair
from onnxprune.types import Check, IntArray

if TYPE_CHECKING:
    import onnxruntime as ort


RUN_BYTES = 8_000_000
"""Bytes of the inputs of a run, and of its outputs: activations take ten to fifty times as much."""
KEPT_BYTES = 128_000_000
"""Bytes of an output on all samples that are kept; of larger ones every few positions along the longest axis."""
RANDOM_SAMPLES = 16
"""Number of seeded random inputs that are used without data."""


Runner = Callable[[Feeds], list[Any]]
"""Runs a model, or several, on the inputs of a run."""


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
        judged: what accuracy and fidelity are of: the outputs, or the tensors of a `Front`.
        labels: (samples,); None where there are none.
        feeds: inputs of the timed runs.
        batch: samples of a timed run.
        is_real: whether the samples are the user's, neither random nor generated.
        classes: whether (samples, k) may be class scores; several tensors in front of a selection are none.
    """

    accuracy: tuple[Mapping[str, float], Mapping[str, float]]
    fidelity: dict[str, float]
    latency: Latency | None
    data: str
    samples: int
    finite: bool
    outputs: tuple[Outputs, Outputs]
    judged: tuple[Outputs, Outputs]
    labels: IntArray | None
    feeds: Feeds
    batch: int
    is_real: bool = True
    classes: bool = True


@dataclass(frozen=True)
class Front:
    """Tensors that are compared in place of the outputs of two models, and the models, of which the second selects as the first.

    Rows of outputs that a selection (TopK, NonMaxSuppression) leads to change places: what enters it is compared, and what
    follows from the same selection.
    """

    measured: Measured
    pair: Pair


def compare(
    original: ort.InferenceSession,
    candidate: ort.InferenceSession,
    proto: onnx.ModelProto,
    data: Data | None,
    config: BenchmarkConfig,
    signature: Signature,
    on_stage: ProgressCallback = quiet,
    seed: int = 0,
    front: Front | None = None,
) -> Comparison:
    """Run two sessions on the same data (without data: on seeded random inputs), and time them.

    Accuracy and fidelity are of the outputs, or of the tensors of `front`.

    Raises:
        DataError: there are too few samples, or labels that do not belong to the model.
    """
    inputs = signature.random_feeds(proto, signature.per_run(RANDOM_SAMPLES), seed) if data is None else {}
    name, samples = ("random inputs", signature.per_run(RANDOM_SAMPLES)) if data is None else (data.name, len(data))
    labels, size = None if data is None else data.class_labels, signature.per_evaluation(config.eval_batch)
    runs: list[Runner] = [runner(original, "the original"), runner(candidate, "the candidate")]
    runs += [front.pair] if front else []

    def outputs_of(number: int, names: Sequence[str] | None = None) -> Outputs:
        if data is None:
            return signature.join([runs[number](inputs)], names)
        progress = share_of(on_stage, "evaluate")
        return predict(runs[number], data, size, signature, lambda x: progress((number + x) / len(runs)), names)

    a, b, classes = outputs_of(0), outputs_of(1), front is None or front.measured.is_one
    judged = (a, b)
    if front:
        both, n = outputs_of(2, front.pair.names * 2), len(front.pair.names)
        judged = both[:n], both[n:]
    accuracy: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})
    if labels is not None:
        accuracy = (classification_accuracy(judged[0], labels), classification_accuracy(judged[1], labels))
    feeds, batch = timed_feeds(proto, data, config.batch, signature, seed), signature.per_run(config.batch)
    latency = None
    if config.latency:
        on_stage("time", 0.0)
        latency = time_sessions((original, candidate), (feeds, feeds), config, batch, on_stage)
    finite = all_finite(a) and all_finite(b)
    with np.errstate(invalid="ignore", over="ignore"):  # reported by `finite`
        fidelity = compare_outputs(*judged, labels, classes=classes)
    is_real = data is not None and not data.is_generated
    rest = (labels, feeds, batch, is_real, classes)
    return Comparison(accuracy, fidelity, latency, name, samples, finite, (a, b), judged, *rest)


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


def runner(opened: ort.InferenceSession, where: str, names: Sequence[str] | None = None) -> Runner:
    """Return a function from the inputs of a run to the outputs of a model, or to the tensors `names`."""
    return lambda feeds: run_batch(opened, feeds, where=where, names=None if names is None else [*names])


def predict(
    run: Runner,
    data: Data,
    size: int,
    signature: Signature,
    progress: Callable[[float], None] | None = None,
    names: Sequence[str] | None = None,
) -> Outputs:
    """Return what `run` gives, the outputs of a model or the tensors `names`, on all data, samples first.

    A model that fixes the samples of a run gets samples again in the last run, whose outputs are left out. Of maps that
    take more than `KEPT_BYTES` some positions are returned, the same ones for every model.
    """
    parts: list[list[Any]] = []
    sample = sum(value.nbytes for value in data.samples(0, 1).values())
    start, step = 0, data.fixed or 1  # the first run tells the size of the outputs
    while start < len(data):
        stop = min(start + step, len(data))
        feeds = data.rows(start, stop) if data.fixed is None else filled(data, start, step)
        found = run(feeds)
        if not parts:
            made = sum(value.nbytes for value in found if isinstance(value, np.ndarray)) // step
            size = min(size, max(1, RUN_BYTES // max(sample, made, 1)))
        rows = data.fixed or stop - start
        parts.append([_thinned(value, len(data), rows) for value in found])
        start, step = stop, data.fixed or size
        if progress:
            progress(stop / len(data))
    return [output[: len(data)] for output in signature.join(parts, names)]


def _thinned(output: Any, samples: int, of: int) -> Any:
    """Return a map, (n, …) for `of` samples, at every few positions of its longest axis, where `samples` of it take too much.

    A number that is not finite stays, wherever it is.
    """
    if not isinstance(output, np.ndarray) or output.ndim < 3:
        return output
    every = -(-output.nbytes // of * samples // KEPT_BYTES)
    if every < 2:
        return output
    axis = 1 + int(np.argmax(output.shape[1:]))
    kept = output.take(np.arange(0, output.shape[axis], every), axis=axis)
    if output.dtype.kind == "f" and np.isfinite(kept).all() and not np.isfinite(output).all():
        kept.flat[0] = np.nan
    return kept

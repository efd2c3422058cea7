"""Compare the accuracy, fidelity and latency of two models on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxprune.data.dataset import Data
from onnxprune.evaluation.benchmark import BenchmarkConfig, time_sessions
from onnxprune.evaluation.picture_sanity import PROBED, Change, is_picture, picture_doubts
from onnxprune.evaluation.sanity import BETTER
from onnxprune.graph.comparison_points import Measured
from onnxprune.graph.signature import Signature
from onnxprune.metrics.outputs import Outputs, all_finite, compare_outputs, lost
from onnxprune.metrics.statistics import Statistic
from onnxprune.metrics.table import Metric
from onnxprune.metrics.tasks import Task, amounts, find_task
from onnxprune.options.judging import Judging
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.runtime.session import Feeds, run_batch
from onnxprune.runtime.timing import Latency
from onnxprune.surgery.cuts import Pair
from onnxprune.types import Array, Check, FloatArray, IntArray

if TYPE_CHECKING:
    import onnxruntime as ort


RUN_BYTES = 8_000_000
"""Bytes of the inputs of a run, and of its outputs: activations take ten to fifty times as much."""
KEPT_BYTES = 128_000_000
"""Bytes of an output on all samples that are kept; of larger ones every few positions along the longest axis."""
LOOKED = 256
"""Samples on which the outputs of the original are looked at first."""
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
        labels: samples first; None where there are none.
        feeds: inputs of the timed runs.
        batch: samples of a timed run.
        is_real: whether the samples are the user's, neither random nor generated.
        classes: whether (samples, k) may be class scores; several tensors in front of a selection are none.
        task: what the models do; None where it is not known.
        statistics: the metrics of the task as functions of a resample, of each model; empty without labels.
        shuffled: those of the original, with its predictions in another order; see `onnxprune.evaluation.sanity.near_chance`.
        agreeing: (samples,) share of each sample on which the predictions of both models agree, where the task says what that is.
        doubts: whether the original reads other pictures than it was trained on.
        predictions: of the original, samples first; None where the task decodes none.
        alone: whether there is no candidate, and the original stands in its place.
        class_names: names of the classes; empty where they have none.
    """

    fidelity: dict[str, float]
    latency: Latency | None
    data: str
    samples: int
    finite: bool
    outputs: tuple[Outputs, Outputs]
    judged: tuple[Outputs, Outputs]
    labels: Array | None
    feeds: Feeds
    batch: int
    is_real: bool = True
    classes: bool = True
    accuracy: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})
    task: Task | None = None
    statistics: tuple[Mapping[str, Statistic], Mapping[str, Statistic]] = ({}, {})
    shuffled: Statistic | None = None
    agreeing: FloatArray | None = None
    predictions: Array | None = None
    doubts: tuple[Check, ...] = ()
    alone: bool = False
    class_names: tuple[str, ...] = ()

    def class_name(self, label: int) -> str:
        """Return the name of a class, its number where it has none."""
        return self.class_names[label] if label < len(self.class_names) else str(label)

    @property
    def class_labels(self) -> IntArray | None:
        """Class numbers, (samples,), of a classifier; None for other tasks, and without labels."""
        return _of_classes(self.labels, self.task)

    @property
    def lead(self) -> Metric | None:
        """The metric that quality is judged by; None without labels, or where it is not defined on them."""
        lead = None if self.task is None else self.task.lead
        return lead if lead is not None and all(lead.name in each for each in self.accuracy) else None

    @property
    def lost(self) -> float | None:
        """What the candidate loses of the leading metric, in its unit; without it points, as `onnxprune.metrics.outputs.lost` has them."""
        if self.lead is None:
            return lost(self.fidelity, "" if self.task is None else self.task.name)
        before, after = (each[self.lead.name] for each in self.accuracy)
        return after - before if self.lead.direction == "lower" else before - after


@dataclass(frozen=True)
class Predicted:
    """Outputs of a model on all samples, and its predictions; both samples first, predictions None where the task decodes none."""

    outputs: Outputs
    decoded: Array | None = None


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
    candidate: ort.InferenceSession | None,
    proto: onnx.ModelProto,
    data: Data | None,
    config: BenchmarkConfig,
    signature: Signature,
    on_stage: ProgressCallback = quiet,
    seed: int = 0,
    front: Front | None = None,
    task: Task | None = None,
) -> Comparison:
    """Run two sessions on the same data (without data: on seeded random inputs), and time them.

    Accuracy and fidelity are of the outputs, or of the tensors of `front`. Without a candidate, the original stands in its
    place, and nothing is timed.

    Raises:
        DataError: there are too few samples, or labels that do not belong to the model.
    """
    inputs = signature.random_feeds(proto, signature.per_run(RANDOM_SAMPLES), seed) if data is None else {}
    name, samples = ("random inputs", signature.per_run(RANDOM_SAMPLES)) if data is None else (data.name, len(data))
    labels, size = None if data is None else data.labels, signature.per_evaluation(config.eval_batch)
    runs: list[Runner] = [runner(original, "the original")]
    runs += [] if candidate is None else [runner(candidate, "the candidate")]
    runs += [front.pair] if front else []

    def predicted(number: int, names: Sequence[str] | None = None, of: Task | None = None) -> Predicted:
        if data is None:
            return Predicted(signature.join([runs[number](inputs)], names))
        progress = share_of(on_stage, "evaluate")
        return predict_task(
            runs[number], data, size, signature, of, lambda x: progress((number + x) / len(runs)), names
        )

    of_outputs = task if task is not None and (front is None or task.is_of_outputs) else None
    first = predicted(0, of=of_outputs)
    second = first if candidate is None else predicted(1, of=of_outputs)
    classes = front is None or front.measured.is_one
    judged = raw = (first.outputs, second.outputs)
    if front:
        both, n = predicted(len(runs) - 1, front.pair.names * 2).outputs, len(front.pair.names)
        judged = both[:n], both[n:]
        if task is not None and task.decode is not None and not task.is_of_outputs:
            first, second = (Predicted(each, task.decode(each)) for each in judged)
    finite = all(map(all_finite, raw))
    with np.errstate(invalid="ignore", over="ignore"):  # reported by `finite`
        pair = Predicted(judged[0], first.decoded), Predicted(judged[1], second.decoded)
        kept = {} if candidate is None else fidelity(*pair, task, _of_classes(labels, task), classes=classes)
        measured = _statistics(task, labels, first, second, on_stage) if finite else {}
    agreeing = None if task is None or candidate is None else task.agreeing(first.decoded, second.decoded)
    doubts: tuple[Check, ...] = ()
    if measured and data is not None and of_outputs is not None:
        doubts = tuple(_misread(of_outputs, runs[0], data, size, signature, measured["accuracy"][0]))
    feeds, batch = timed_feeds(proto, data, config.batch, signature, seed), signature.per_run(config.batch)
    latency = None
    if config.latency and candidate is not None:
        on_stage("time", 0.0)
        latency = time_sessions((original, candidate), (feeds, feeds), config, batch, on_stage)
    return Comparison(
        fidelity=kept,
        latency=latency,
        data=name,
        samples=samples,
        finite=finite,
        outputs=raw,
        judged=judged,
        labels=labels,
        feeds=feeds,
        batch=batch,
        is_real=data is not None and not data.is_generated,
        classes=classes and (task is None or task.has_classes),
        task=task,
        agreeing=agreeing,
        predictions=first.decoded,
        doubts=doubts,
        alone=candidate is None,
        class_names=() if data is None else data.classes,
        **measured,
    )


def fidelity(
    original: Predicted,
    candidate: Predicted,
    task: Task | None,
    labels: IntArray | None = None,
    *,
    classes: bool = True,
) -> dict[str, float]:
    """Return the metrics of fidelity that apply to a task; agreement is that of its predictions.

    Args:
        original: of the original.
        candidate: of the candidate, on the same samples.
        task: what both do; None: not known.
        labels: class numbers of a classifier.
        classes: whether (samples, k) may hold class scores, where the task allows them.
    """
    has_classes = classes and (task is None or task.has_classes)
    found = compare_outputs(original.outputs, candidate.outputs, labels, classes=has_classes)
    agreeing = None if task is None else task.agreeing(original.decoded, candidate.decoded)
    return found if agreeing is None else {**found, "agreement": 100 * float(agreeing.mean())}


def _of_classes(labels: Array | None, task: Task | None) -> IntArray | None:
    """Return the labels of a classifier."""
    return labels if task is not None and task.name == "classify" else None


def _statistics(
    task: Task | None, labels: Array | None, first: Predicted, second: Predicted, on_stage: ProgressCallback
) -> dict[str, Any]:
    """Return the fields of a comparison that labels give."""
    if task is None or labels is None or task.lead is None:
        return {}
    on_stage("judge", None)
    before = task.statistics(first.outputs, first.decoded, labels)
    after = before if second is first else task.statistics(second.outputs, second.decoded, labels)
    turned = _others(len(labels))
    other = None if first.decoded is None else first.decoded[turned]
    shuffled = task.statistics([output[turned] for output in first.outputs], other, labels)
    return {
        "accuracy": (amounts(before, len(labels)), amounts(after, len(labels))),
        "statistics": (before, after),
        "shuffled": shuffled[task.lead.name],
    }


def _misread(
    task: Task, run: Runner, data: Data, size: int, signature: Signature, accuracy: Mapping[str, float]
) -> Iterator[Check]:
    """Say that the original is much better on the pictures of some samples where their values are changed."""
    lead, some = task.lead, data.take(np.arange(min(PROBED, len(data))))
    if lead is None or lead.unit != "%" or abs(lead.ideal - accuracy.get(lead.name, lead.ideal)) < BETTER:
        return  # no other reading can be that much better

    def measure(change: Change) -> Statistic:
        def changed(feeds: Feeds) -> list[Any]:
            return run({name: change(value) if is_picture(value) else value for name, value in feeds.items()})

        found = predict_task(changed, some, size, signature, task)
        assert some.labels is not None
        return task.statistics(found.outputs, found.decoded, some.labels)[lead.name]

    yield from picture_doubts(lead, some.rows(0, len(some)), measure, len(some))


def _others(samples: int) -> IntArray:
    """Return the number of another sample for each sample, at random: labels may be sorted, or come in turn."""
    order = np.random.default_rng(0).permutation(samples)
    turned = np.empty_like(order)
    turned[order] = np.roll(order, 1)
    return turned


@dataclass(frozen=True)
class Found:
    """The task of a model, and what tells it.

    Attributes:
        task: None where neither labels nor options tell it.
        outputs: outputs of the model on some of the samples.
        some: these samples.
    """

    task: Task | None
    outputs: Outputs
    some: Data


def task_of(
    asked: Judging,
    data: Data,
    runs: tuple[Runner, Runner | None],
    names: Sequence[str],
    signature: Signature,
    size: int,
) -> Found:
    """Find the task of a model on at most `LOOKED` samples, fewer where their outputs take more than `KEPT_BYTES`.

    With a metric of the user's own, which may need all samples, these are all.

    Args:
        asked: what the user says.
        data: samples, with or without labels.
        runs: from the inputs of a run to the outputs of the model, and to its tensors `names` in front of a selection; None: there is
            no selection.
        names: of these tensors.
        signature: of the model.
        size: samples per run.

    Raises:
        DataError: the labels do not fit the task or the outputs.
    """
    one = signature.join([runs[0](filled(data, 0, data.fixed or 1))])
    fitting = KEPT_BYTES // max(1, *(output.nbytes for output in one if isinstance(output, np.ndarray)))
    looked = len(data) if asked.metric is not None else max(1, min(LOOKED, fitting))
    some = data.take(np.unique(np.linspace(0, len(data) - 1, looked, dtype=np.int64)))
    outputs = predict_task(runs[0], some, size, signature, whole=True).outputs
    scores = None if runs[1] is None else predict(runs[1], some, size, signature, names=names)
    return Found(find_task(asked, some.labels, outputs, scores, some.picture_size, one, data.labels), outputs, some)


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
    """Return what `run` gives, the outputs of a model or the tensors `names`, on all data; see `predict_task`."""
    return predict_task(run, data, size, signature, None, progress, names).outputs


def predict_task(
    run: Runner,
    data: Data,
    size: int,
    signature: Signature,
    task: Task | None = None,
    progress: Callable[[float], None] | None = None,
    names: Sequence[str] | None = None,
    *,
    whole: bool = False,
) -> Predicted:
    """Return what `run` gives, the outputs of a model or the tensors `names`, on all data, and the predictions of a task.

    A model that fixes the samples of a run gets samples again in the last run, whose outputs are left out. Of maps that
    take more than `KEPT_BYTES` some positions are returned, the same ones for every model, unless they are asked for as a `whole`
    or a metric of the user's own takes them; predictions are decoded from whole outputs, run by run.
    """
    parts: list[list[Any]] = []
    decoded: list[Array] = []
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
        if task is not None and task.decode is not None:
            decoded.append(task.decode(signature.join([found], names))[: stop - start])
        whole = whole or (task is not None and task.own is not None)
        parts.append(found if whole else [_thinned(value, len(data), rows) for value in found])
        start, step = stop, data.fixed or size
        if progress:
            progress(stop / len(data))
    outputs = [output[: len(data)] for output in signature.join(parts, names)]
    return Predicted(outputs, np.concatenate(decoded) if decoded else None)


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

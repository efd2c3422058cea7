"""What only a report shows, and what costs time of its own: latency of each layer, classes, samples whose prediction changed, groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnxprune.data.dataset import Data
from onnxprune.evaluation import benchmark
from onnxprune.evaluation.compare import Comparison
from onnxprune.graph.model import Model
from onnxprune.metrics import paired_tests
from onnxprune.metrics.outputs import class_scores, log_probabilities
from onnxprune.report import thumbnails
from onnxprune.report.grouping import GroupNode
from onnxprune.runtime import machine
from onnxprune.runtime.session import Feeds
from onnxprune.types import FloatArray

SECONDS = 10.0
"""That looking at the kernels of one model takes, at most."""
MOST_CHANGED = 24
"""Samples that are shown."""


@dataclass(frozen=True)
class Changed:
    """A sample that the second of two models puts into another class than the first.

    Attributes:
        sample: its number in the data.
        label: name of its class; None where it is not known.
        before, after: names of the classes that it was and is put into.
        confidence_before, confidence_after: percent that each model gave to its own choice.
        moved: points of probability that went from the one class to the other, at most 200; those that most went with come first.
        picture: the sample as a data URI; empty where it is no image.
    """

    sample: int
    label: str | None
    before: str
    after: str
    confidence_before: float
    confidence_after: float
    moved: float
    picture: str = ""


@dataclass(frozen=True)
class ClassRate:
    """How often samples of a class are put into it, in percent: by its name, with the drop in points and its lower bound.

    See `onnxprune.metrics.paired_tests.ClassDrop`. Without labels a class holds the samples that the first model puts into it.
    """

    name: str
    samples: int
    before: float
    after: float
    drop: float
    low: float


@dataclass(frozen=True)
class Details:
    """What only a report shows.

    Attributes:
        layer_times: microseconds of each node in both models, from onnxruntime's profiler; empty where latency is not measured.
        labelled: whether classes are those of labels; else they are those that the first model predicts.
        classes: how often each is recognised, in the order of the classes.
        changed: samples whose prediction changed, those that changed most first, at most `MOST_CHANGED`.
        changes: how many there are.
        groups: layers that belong together.
    """

    layer_times: tuple[benchmark.LayerTime, ...] = ()
    labelled: bool = False
    classes: tuple[ClassRate, ...] = ()
    changed: tuple[Changed, ...] = ()
    changes: int = 0
    groups: tuple[GroupNode, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the pictures."""
        content = asdict(self)
        for sample in content["changed"]:
            del sample["picture"]
        return content


def details(
    sources: tuple[str | Model, str | Model],
    found: Comparison,
    data: Data | None,
    threads: int,
    groups: Sequence[GroupNode],
) -> Details:
    """Look closer at two models that were compared.

    Args:
        sources: the original, and what came of it.
        found: what the comparison has found; kernels are timed where it measured latency.
        data: what they were compared on; None where inputs were random.
        threads: of onnxruntime, within an operator.
        groups: of the original.
    """
    times: tuple[benchmark.LayerTime, ...] = ()
    if found.latency is not None:
        times = _layer_times(sources, found.feeds, threads)
    scores = [class_scores(outputs) for outputs in found.outputs]
    if data is None or not found.finite or scores[0] is None or scores[1] is None:
        return Details(times, groups=tuple(groups))
    first, second = scores[0], scores[1]
    choices = first.argmax(axis=1), second.argmax(axis=1)
    numbers = np.flatnonzero(choices[0] != choices[1])
    return Details(
        times,
        found.labels is not None,
        _classes(found, first, second, data.classes),
        _changed(numbers, first, second, found, data),
        int(numbers.size),
        tuple(groups),
    )


def _layer_times(
    sources: tuple[str | Model, str | Model], feeds: Feeds, threads: int
) -> tuple[benchmark.LayerTime, ...]:
    """Time each model twice, the other one in between, so that what else the machine does hits both; the lower time of each node counts."""
    first, second = sources
    with machine.pinned(threads):
        a, b, d, c = (benchmark.layer_times(one, feeds, threads, SECONDS / 2) for one in (first, second, second, first))
    return benchmark.side_by_side([_least(a, c), _least(b, d)])


def _least(one: benchmark.Times, other: benchmark.Times) -> benchmark.Times:
    return {name: (op, min(time, other.get(name, (op, time))[1])) for name, (op, time) in one.items()}


def _classes(found: Comparison, first: FloatArray, second: FloatArray, names: Sequence[str]) -> tuple[ClassRate, ...]:
    if found.labels is not None:
        labels = found.labels
        right = paired_tests.right(first, labels), paired_tests.right(second, labels)
    else:
        labels = first.argmax(axis=1)
        right = np.ones(labels.shape, dtype=bool), second.argmax(axis=1) == labels
    drops = sorted(paired_tests.class_drops(*right, labels), key=lambda one: one.label)
    return tuple(
        ClassRate(_name(names, one.label), one.samples, one.before, one.after, one.drop, one.low) for one in drops
    )


def _changed(
    numbers: np.ndarray[Any, Any], first: FloatArray, second: FloatArray, found: Comparison, data: Data
) -> tuple[Changed, ...]:
    """Return the samples between whose two choices most probability moved; of equals the earlier one."""
    if not numbers.size:
        return ()
    p, q = (np.exp(log_probabilities(scores)) for scores in (first, second))
    old, new = first[numbers].argmax(axis=1), second[numbers].argmax(axis=1)
    moved = 100 * (p[numbers, old] - q[numbers, old] + q[numbers, new] - p[numbers, new])
    ranked = np.argsort(-moved, kind="stable")[:MOST_CHANGED]
    name, labels = data.classes, found.labels
    return tuple(
        Changed(
            int(sample := numbers[place]),
            None if labels is None else _name(name, int(labels[sample])),
            _name(name, int(old[place])),
            _name(name, int(new[place])),
            100 * float(p[sample, old[place]]),
            100 * float(q[sample, new[place]]),
            float(moved[place]),
            thumbnails.thumbnail(data, int(sample)),
        )
        for place in ranked
    )


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if label < len(names) else str(label)

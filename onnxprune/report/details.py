"""Details that only a report needs: latency of each layer, classes, samples whose prediction changed, groups."""

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
from onnxprune.metrics.outputs import OutputPair, log_probabilities
from onnxprune.report import thumbnails
from onnxprune.report.grouping import GroupNode
from onnxprune.runtime import machine
from onnxprune.runtime.session import Feeds, SessionConfig
from onnxprune.types import FloatArray, IntArray

SECONDS = 10.0
"""Time limit of profiling a model."""
MOST_CHANGED = 24
"""Largest number of samples that are shown."""


@dataclass(frozen=True)
class Changed:
    """A sample whose prediction differs between the two models.

    Attributes:
        sample: number of the sample in the data.
        label: name of the class; None without labels.
        before, after: names of the predicted classes.
        confidence_before, confidence_after: probability of the predicted class in percent.
        moved: points of probability that moved from the one class to the other, at most 200.
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
    """Recall of a class in percent, with the drop in points and its lower bound; see `onnxprune.metrics.paired_tests.ClassDrop`.

    Without labels, the predictions of the first model are the classes.
    """

    name: str
    samples: int
    before: float
    after: float
    drop: float
    low: float


@dataclass(frozen=True)
class Details:
    """Details of a run.

    Attributes:
        layer_times: times of the nodes of both models; empty where latency is not measured.
        labelled: whether classes come from labels; else they are the predictions of the first model.
        classes: recall of each class, in order.
        changed: samples whose prediction changed, the largest changes first, at most `MOST_CHANGED`.
        changes: number of all samples whose prediction changed.
        groups: graph of the groups.
    """

    layer_times: tuple[benchmark.LayerTime, ...] = ()
    labelled: bool = False
    classes: tuple[ClassRate, ...] = ()
    changed: tuple[Changed, ...] = ()
    changes: int = 0
    groups: tuple[GroupNode, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without pictures."""
        content = asdict(self)
        for sample in content["changed"]:
            del sample["picture"]
        return content


def details(
    sources: tuple[str | Model, str | Model],
    found: Comparison,
    data: Data | None,
    config: SessionConfig,
    groups: Sequence[GroupNode],
) -> Details:
    """Return the details of two models, after their comparison on `data` (None: random inputs).

    Layers are timed where the comparison measured latency.
    """
    times = _layer_times(sources, found.feeds, config) if found.latency is not None else ()
    scores = OutputPair(found.judged[1], found.judged[0], found.class_labels, found.classes).scores()
    if data is None or not found.finite or scores is None:
        return Details(times, groups=tuple(groups))
    first, second = scores
    changed = first.argmax(axis=1) != second.argmax(axis=1)
    return Details(
        times,
        found.class_labels is not None,
        _classes(found.class_labels, first, second, data),
        _changed(np.flatnonzero(changed), first, second, found.class_labels, data),
        int(changed.sum()),
        tuple(groups),
    )


def _layer_times(
    sources: tuple[str | Model, str | Model], feeds: Feeds, config: SessionConfig
) -> tuple[benchmark.LayerTime, ...]:
    """Time each model twice, interleaved so that machine noise affects both equally; return the lower time of each node."""
    with machine.pinned(config.threads):
        a, b, d, c = (benchmark.layer_times(one, feeds, config, SECONDS / 2) for one in (*sources, *reversed(sources)))
    lower = [
        {name: (op, min(time, again.get(name, (op, time))[1])) for name, (op, time) in once.items()}
        for once, again in ((a, c), (b, d))
    ]
    return benchmark.side_by_side(lower)


def _classes(labels: IntArray | None, first: FloatArray, second: FloatArray, data: Data) -> tuple[ClassRate, ...]:
    truth = first.argmax(axis=1) if labels is None else labels
    before, after = (paired_tests.right(scores, truth) for scores in (first, second))
    drops = sorted(paired_tests.class_drops(before, after, truth), key=lambda one: one.label)
    return tuple(
        ClassRate(_name(data, one.label), one.samples, one.before, one.after, one.drop, one.low) for one in drops
    )


def _changed(
    numbers: IntArray, first: FloatArray, second: FloatArray, labels: IntArray | None, data: Data
) -> tuple[Changed, ...]:
    """Return the samples with the largest `Changed.moved`."""
    p, q = (np.exp(log_probabilities(scores[numbers])) for scores in (first, second))
    each, old, new = np.arange(numbers.size), first[numbers].argmax(axis=1), second[numbers].argmax(axis=1)
    moved = 100 * (p[each, old] - q[each, old] + q[each, new] - p[each, new])
    return tuple(
        Changed(
            sample=int(numbers[place]),
            label=None if labels is None else _name(data, int(labels[numbers[place]])),
            before=_name(data, int(old[place])),
            after=_name(data, int(new[place])),
            confidence_before=100 * float(p[place, old[place]]),
            confidence_after=100 * float(q[place, new[place]]),
            moved=float(moved[place]),
            picture=thumbnails.thumbnail(data, int(numbers[place])),
        )
        for place in np.argsort(-moved, kind="stable")[:MOST_CHANGED]
    )


def _name(data: Data, label: int) -> str:
    return data.classes[label] if label < len(data.classes) else str(label)

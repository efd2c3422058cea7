"""Tasks: how the outputs of a model become predictions, and what is measured on them against labels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from onnxprune.errors import DataError, OptionError
from onnxprune.metrics import classification, regression, retrieval, segmentation, text
from onnxprune.metrics.outputs import Outputs, class_scores, log_probabilities
from onnxprune.metrics.statistics import OfSamples, Statistic, on_all
from onnxprune.metrics.table import METRICS, TASKS, Metric, named
from onnxprune.options.judging import Judging
from onnxprune.types import Array, FloatArray, IntArray

Measure = Callable[[Array, Array], Statistic]
"""A metric of predictions and labels, samples first."""
IN_FRONT = ("classify", "binary", "multilabel")
"""Tasks whose predictions are read from tensors in front of a selection, where there is one."""


@dataclass(frozen=True)
class Task:
    """What a model does.

    Attributes:
        name: a key of `TASKS`; `metric` where only a metric of the user's own is known.
        decode: returns the predictions, samples first, of the outputs of a run; None: outputs are compared as they are.
        measures: metrics of predictions and labels, by name, the leading one first.
        own: a metric of the user's own, of outputs and labels; it leads.
        metrics: the rows of all metrics, the leading one first.
    """

    name: str
    decode: Callable[[Outputs], Array] | None = None
    measures: Mapping[str, Measure] = field(default_factory=dict)
    own: Callable[[Any, Any], float] | None = None
    metrics: tuple[Metric, ...] = ()

    @property
    def lead(self) -> Metric | None:
        """The metric that limits are held against; None without labels."""
        return self.metrics[0] if self.metrics else None

    @property
    def has_classes(self) -> bool:
        """Whether an output of the form (samples, k) may hold class scores."""
        return self.name in ("classify", "metric")

    @property
    def is_of_outputs(self) -> bool:
        """Whether predictions are decoded from the outputs, never from tensors in front of a selection."""
        return self.name not in IN_FRONT

    def statistics(self, outputs: Outputs, decoded: Array | None, labels: Array) -> dict[str, Statistic]:
        """Return each metric as a function of a resample; those that do not apply are left out."""
        found: dict[str, Statistic] = {}
        if self.own is not None:
            found[self.metrics[0].name] = own_statistic(self.own, outputs, labels)
        if decoded is not None:
            truth = prepared(self.name, labels)
            found |= {name: measure(decoded, truth) for name, measure in self.measures.items()}
        return found

    def agreeing(self, first: Array | None, second: Array | None) -> FloatArray | None:
        """Return the share of each sample, (n,), on which predictions agree; None where agreement says nothing."""
        if first is None or second is None:
            return None
        if self.name == "segment":
            return np.array([(a == b).mean() for a, b in zip(first, second, strict=True)])
        if self.name == "ctc":
            return np.array([float(a == b) for a, b in zip(first, second, strict=True)])
        return None


def prepared(name: str, labels: Array) -> Array:
    """Return labels as the metrics of a task take them: boxes without their padding, class numbers of texts as tuples."""
    if name in ("detect", "keypoints") and labels.dtype.kind != "O":
        from onnxprune.data.labels.values import npz_boxes

        return npz_boxes(labels)
    if name == "ctc" and labels.dtype.kind in "iu":
        texts = np.empty(len(labels), dtype=object)
        texts[:] = [tuple(row[row >= 0].tolist()) for row in labels]
        return texts
    return labels


def own_statistic(metric: Callable[[Any, Any], float], outputs: Outputs, labels: Array) -> Statistic:
    """Return a metric of the user's own as a function of a resample.

    Raises:
        OptionError: the function fails, or returns no number.
    """

    def value(numbers: IntArray) -> float:
        drawn = [output[numbers] for output in outputs]
        try:
            return float(metric(drawn[0] if len(drawn) == 1 else drawn, labels[numbers]))
        except Exception as error:  # code of the user can raise anything
            shapes = ", ".join(f"{output.dtype}{list(output.shape)}" for output in drawn)
            raise OptionError(
                "the metric of your own failed",
                where=getattr(metric, "__name__", "--metric"),
                why=f"on outputs {shapes} and labels {labels.dtype}{list(labels[numbers].shape)}: {type(error).__name__}: {error}",
                hint="it takes outputs and labels, samples first, and returns a number",
            ) from error

    return OfSamples(value)


def find_task(
    asked: Judging,
    labels: Array | None,
    outputs: Outputs,
    scores: Outputs | None = None,
    size: tuple[int, int] = (0, 0),
) -> Task | None:
    """Return the task of a model: as asked, else what labels and outputs tell; None where neither does.

    Args:
        asked: what the user says.
        labels: of some samples, samples first, or None.
        outputs: of the same samples.
        scores: tensors in front of a selection (the scores that an ArgMax takes), which classes are read from; None: the outputs.
        size: height and width of the network's input; (0, 0) where it takes no pictures.

    Raises:
        DataError: the labels do not fit the task or the outputs.
        OptionError: a metric of the user's own without labels, or one that cannot be loaded.
    """
    own = load_own(asked)
    if labels is None:
        if own is not None:
            raise OptionError("--metric needs labels", hint="give `labels` in the data, or --labels FILE")
        return None if asked.task is None else _unlabelled(asked, outputs, size)
    name = asked.task or _derived(labels, outputs, scores or outputs, own is not None)
    if name == "metric":
        return Task(name, own=own, metrics=(own_metric(own, asked.direction),)) if own is not None else None
    lead = () if own is None else (own_metric(own, asked.direction),)
    try:
        decode, measures = _measured(name, asked, labels, (name in IN_FRONT and scores) or outputs, size)
    except DataError:
        if own is None or asked.task is not None:
            raise
        return Task("metric", own=own, metrics=lead)  # the user's metric reads what no decoder does
    return Task(name, decode, measures, own, (*lead, *(METRICS[metric] for metric in measures)))


def load_own(asked: Judging) -> Callable[[Any, Any], float] | None:
    """Return the user's own metric, loaded from its file where a file is named."""
    if isinstance(asked.metric, str):
        from onnxprune.data.user_functions import load

        loaded: Callable[[Any, Any], float] = load(asked.metric)
        return loaded
    return asked.metric


def own_metric(function: Callable[[Any, Any], float], direction: str) -> Metric:
    """Return the row of a metric of the user's own, in the units that the function returns."""
    name = getattr(function, "__name__", "metric")
    name = "metric" if name == "<lambda>" else f"own_{name}" if name in METRICS else name
    return replace(named(name), ideal=1.0 if direction == "higher" else 0.0)


def _unlabelled(asked: Judging, outputs: Outputs, size: tuple[int, int]) -> Task:
    """Return a task without metrics: predictions are decoded only where two of them can agree."""
    assert asked.task is not None
    decode = _decoder(asked.task, asked, outputs, size) if asked.task in ("segment", "ctc") else None
    return Task(asked.task, decode)


def _derived(labels: Array, outputs: Outputs, scores: Outputs, has_own: bool) -> str:
    """Return the task that labels and outputs tell.

    Raises:
        DataError: they tell none, and the user has no metric of their own.
    """
    numbers = labels.dtype.kind in "iub"
    first = next((output for output in outputs if isinstance(output, np.ndarray) and output.dtype.kind == "f"), None)
    if labels.dtype.kind in "OU" and not all(isinstance(one, str) for one in labels):
        return "detect"
    if labels.dtype.kind in "OU" and any(np.ndim(output) == 3 for output in outputs):
        return "ctc"
    if labels.ndim == 3 and labels.shape[2] in (5, 6) and labels.dtype.kind == "f":
        return "detect"
    if numbers and labels.ndim == 1 and class_scores(scores, labelled=True) is not None:
        return "classify"
    if numbers and labels.ndim == 1 and first is not None and first[0].size == 1 and set(np.unique(labels)) <= {0, 1}:
        return "binary"
    if (
        first is not None
        and labels.ndim == 2
        and labels.dtype.kind in "iubf"
        and labels.shape == first.reshape(len(first), -1).shape
    ):
        return "multilabel" if set(np.unique(labels)) <= {0, 1} else "regress"
    if numbers and labels.ndim == 3 and any(output.ndim >= 3 for output in outputs):
        return "segment"
    if labels.dtype.kind == "f" and first is not None and first[0].size == labels[0].size:
        return "regress"
    if has_own:
        return "metric"
    found = ", ".join(f"{output.dtype}{list(output.shape)}" for output in outputs if isinstance(output, np.ndarray))
    raise DataError(
        "there are labels, but no output of the form (samples, classes)",
        why=f"labels are {labels.dtype}{list(labels.shape)}, outputs are {found}",
        hint=f"say what the model does with --task {'|'.join(TASKS)}, give a --metric of your own, or leave the labels out to "
        "compare with the original",
    )


def _decoder(name: str, asked: Judging, outputs: Outputs, size: tuple[int, int]) -> Callable[[Outputs], Array]:
    """Return the function from the outputs of a run to predictions; whether scores are probabilities is that of `outputs`.

    Raises:
        DataError: no output has a form that the task knows.
    """
    if name in ("detect", "keypoints"):
        from onnxprune.metrics.decoders import find_decoder

        decoder = find_decoder(outputs, size, asked.decode, task=name)
        return lambda found: decoder.decode(found, size)
    if name == "segment":
        of = functools.partial(_map, size=size, probabilities=_in_unit(_place(_map_of, outputs, "a map")))
        return functools.partial(_place, of, form="(samples, classes, height, width)")
    if name == "ctc":
        characters = None if asked.characters is None else text.read_characters(Path(asked.characters))
        return functools.partial(
            _place, functools.partial(_texts, characters=characters), form="(samples, steps, classes)"
        )
    if name == "classify":
        scores = functools.partial(class_scores, labelled=True)
        return functools.partial(_place, scores, form="(samples, classes)")
    if name == "binary":
        of = functools.partial(_positive, probabilities=_in_unit(_place(_values, outputs, "numbers")))
        return functools.partial(_place, of, form="(samples, 1) or (samples, 2)")
    return functools.partial(_place, _values, form="(samples, values)")


def _place(find: Callable[[Outputs], Array | None], outputs: Outputs, form: str) -> Array:
    """Return what `find` finds in outputs.

    Raises:
        DataError: nothing.
    """
    found = find(outputs)
    if found is None:
        shapes = ", ".join(str(list(np.shape(output))) for output in outputs)
        raise DataError(f"no output has the form {form}", why=f"outputs have the shapes {shapes}", hint="check --task")
    return found


def _values(outputs: Outputs) -> Array | None:
    """Return the first output of floating-point numbers, (n, k)."""
    found = next((o for o in outputs if isinstance(o, np.ndarray) and o.dtype.kind == "f" and o.ndim), None)
    return None if found is None else found.reshape(len(found), -1)


def _positive(outputs: Outputs, probabilities: bool) -> Array | None:
    """Return the probability of class 1, (n,)."""
    scores = _values(outputs)
    if scores is None or scores.shape[1] > 2:
        return None
    if scores.shape[1] == 2:
        return np.asarray(np.exp(log_probabilities(scores)[:, 1]))
    values = scores[:, 0].astype(np.float64)
    return values if probabilities else np.asarray(expit(values))


def _map_of(outputs: Outputs) -> Array | None:
    """Return the first output that is a map: of scores, or of class numbers."""
    maps = [o for o in outputs if isinstance(o, np.ndarray) and o.ndim in (3, 4) and o.dtype.kind in "fiub"]
    return next((o for o in maps if o.ndim == 4), next(iter(maps), None))


def _map(outputs: Outputs, size: tuple[int, int], probabilities: bool) -> Array | None:
    """Return the class of every pixel; classes lie on the last axis where the axes before it have the form of the input."""
    found = _map_of(outputs)
    if found is None:
        return None
    has_form = bool(size[0]) and found.ndim == 4 and found.shape[1] * size[1] == found.shape[2] * size[0]
    is_last = has_form and found.shape[3] < found.shape[1]
    return segmentation.class_map(found, classes_last=is_last, probabilities=probabilities)


def _texts(outputs: Outputs, characters: Sequence[str] | None) -> Array | None:
    """Return the text of each sample."""
    scores = next((o for o in outputs if isinstance(o, np.ndarray) and o.ndim == 3 and o.dtype.kind == "f"), None)
    return None if scores is None else text.greedy(scores, characters)


def _in_unit(values: Array) -> bool:
    """Tell whether all values are probabilities."""
    return bool(values.min() >= -classification.ROUNDING and values.max() <= 1 + classification.ROUNDING)


def _measured(
    name: str, asked: Judging, labels: Array, outputs: Outputs, size: tuple[int, int]
) -> tuple[Callable[[Outputs], Array], dict[str, Measure]]:
    """Return how predictions are decoded, and the metrics that apply to them.

    Raises:
        DataError: labels and predictions do not fit.
    """
    decode = _decoder(name, asked, outputs, size)
    predictions, labels = decode(outputs), prepared(name, labels)
    _check_fit(name, labels, predictions)
    known = _measures(name)
    if name == "classify" and predictions.shape[1] <= 5:
        known.pop("top5")
    if name == "embed":
        for k in (1, 5):
            if k >= len(labels):
                known.pop(f"recall{k}", None)
    return decode, {metric: known[metric] for metric in TASKS[name] if metric in known}


def _measures(name: str) -> dict[str, Measure]:
    """Return the metrics of a task, by name."""
    if name in ("detect", "keypoints"):
        from onnxprune.metrics import detection

        boxes: dict[str, Measure] = {"map": detection.mean_average_precision, "map50": detection.at_half}
        return boxes if name == "detect" else {**boxes, "keypoint_map": detection.keypoint_average_precision}
    tables: dict[str, dict[str, Measure]] = {
        "classify": {
            "top1": classification.topk(1),
            "top5": classification.topk(5),
            "macro_f1": classification.macro_f1,
        },
        "binary": {"accuracy": classification.accuracy, "auc": classification.auc},
        "multilabel": {
            "label_map": classification.label_map,
            "macro_f1": classification.macro_f1,
            "auc": classification.auc,
        },
        "regress": {"r2": regression.r2, "mae": regression.mae, "rmse": regression.rmse},
        "embed": {"recall1": retrieval.recall(1), "recall5": retrieval.recall(5)},
        "segment": {"miou": segmentation.miou, "dice": segmentation.dice},
        "ctc": {"cer": text.cer, "exact": text.exact},
    }
    return dict(tables[name])


def _check_fit(name: str, labels: Array, predictions: Array) -> None:
    """Refuse labels that cannot belong to the predictions."""
    wanted = {
        "classify": (1, "iu", "one class number per sample"),
        "binary": (1, "iub", "0 or 1 per sample"),
        "multilabel": (2, "iub", "0 or 1 per sample and label"),
        "embed": (1, "iu", "the number of an identity per sample"),
        "segment": (3, "iub", "a class number per pixel"),
    }.get(name)
    have = f"labels are {labels.dtype}{list(labels.shape)}"
    if wanted and (labels.ndim != wanted[0] or labels.dtype.kind not in wanted[1]):
        raise DataError(f"the labels don't fit --task {name}", why=have, hint=f"give {wanted[2]}")
    if name == "classify":
        classes = predictions.shape[1]
        if labels.min() < 0:
            raise DataError(
                "a label is negative",
                why=f"the label of sample {int(labels.argmin())} is {labels.min()}",
                hint="class numbers start at 0",
            )
        if labels.max() >= classes:
            raise DataError(
                "a label is out of range",
                why=f"the largest is {labels.max()}, the model has {classes} classes",
                hint="check that the labels belong to this model",
            )
    if name in ("regress", "multilabel") and labels[0].size != predictions[0].size:
        raise DataError(
            f"the labels don't fit --task {name}",
            why=f"{have}, the model gives {predictions[0].size} values per sample",
            hint="give one value per output",
        )
    if name in ("binary", "multilabel") and not set(np.unique(labels)) <= {0, 1}:
        raise DataError(f"the labels don't fit --task {name}", why="some are neither 0 nor 1", hint="give 0 or 1")
    if name == "ctc" and labels.dtype.kind not in "OUiu":
        raise DataError("the labels don't fit --task ctc", why=have, hint="give a text per sample")
    if name == "ctc" and isinstance(labels[0], str) and not isinstance(predictions[0], str):
        raise DataError(
            "the labels are text, and the predictions are numbers of classes",
            hint="name their characters: --characters FILE",
        )
    if name in ("detect", "keypoints") and labels.dtype.kind != "O":
        raise DataError(
            f"the labels don't fit --task {name}", why=have, hint="give --labels, or (n, m, 5) boxes: x1 y1 x2 y2 class"
        )


def amounts(statistics: Mapping[str, Statistic], samples: int) -> dict[str, float]:
    """Return each metric on all samples, each once; those that are not defined there are left out."""
    found = {name: on_all(statistic, samples) for name, statistic in statistics.items()}
    return {name: amount for name, amount in found.items() if np.isfinite(amount)}

"""Tasks: how the outputs of a model become predictions, and what is measured on them against labels."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.data.instances import hold_masks
from onnxprune.errors import DataError, OptionError
from onnxprune.metrics import classification, regression, retrieval, segmentation, text
from onnxprune.metrics.outputs import Outputs, class_scores
from onnxprune.metrics.predictions import check_classes, decoder_of, place_of
from onnxprune.metrics.segmentation import IGNORED
from onnxprune.metrics.statistics import OfSamples, Statistic, check_counts, on_all
from onnxprune.metrics.table import METRICS, TASKS, Metric, named
from onnxprune.options.judging import Judging
from onnxprune.types import Array, FloatArray, IntArray

Measure = Callable[[Array, Array], Statistic]
"""A metric of predictions and labels, samples first."""
BOXES = ("detect", "keypoints")
"""Tasks whose predictions are boxes."""
LOOKED = 4096
"""Labels that are looked at for values other than 0 and 1."""
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
        """Return each metric as a function of a resample; those that do not apply are left out.

        Raises:
            DataError: there is not one prediction per label.
        """
        found: dict[str, Statistic] = {}
        if self.own is not None:
            found[self.metrics[0].name] = own_statistic(self.own, outputs, labels)
        if decoded is not None:
            check_counts(decoded, truth := prepared(self.name, labels))
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
    """Return labels as the metrics of a task take them: boxes without padding, texts as tuples, truth values and masks as integers."""
    if name in BOXES and (labels.dtype.kind != "O" or any(np.shape(rows)[1:] == (5,) for rows in labels)):
        from onnxprune.data.labels.values import npz_boxes

        return npz_boxes(labels)
    if name == "ctc" and labels.dtype.kind in "iu":
        texts = np.empty(len(labels), dtype=object)
        texts[:] = [tuple(row[row >= 0].tolist()) for row in labels]
        return texts
    if name == "binary" and labels.shape == (len(labels), 1):
        labels = labels[:, 0]  # a column of a table
    if name in ("binary", "multilabel") and labels.dtype.kind == "f" and set(np.unique(labels)) <= {0, 1}:
        return labels.astype(np.int64)
    if name == "segment" and labels.dtype.kind in "iubf":
        masks = labels[:, 0] if labels.ndim == 4 and labels.shape[1] == 1 else labels
        return masks.astype(np.int32) if masks.dtype.kind == "f" and (masks == np.round(masks)).all() else masks
    if name == "regress":
        return labels.reshape(len(labels), -1)  # as predictions are
    return labels


def own_statistic(metric: Callable[[Any, Any], float], outputs: Outputs, labels: Array) -> Statistic:
    """Return a metric of the user's own as a function of a resample; NaN on resamples where it fails.

    Raises:
        OptionError: the function fails on all samples, or returns no finite number.
    """
    everything = np.arange(len(labels))

    def value(numbers: IntArray) -> float:
        drawn = [output[numbers] for output in outputs]
        with contextlib.redirect_stdout(sys.stderr):  # what the function prints is no result
            try:
                found = float(metric(drawn[0] if len(drawn) == 1 else drawn, labels[numbers]))
            except (Exception, SystemExit) as error:  # code of the user can raise anything
                if not np.array_equal(numbers, everything):
                    return np.nan
                shapes = ", ".join(f"{output.dtype}{list(output.shape)}" for output in drawn)
                raise OptionError(
                    "the metric of your own failed",
                    where=getattr(metric, "__name__", "--metric"),
                    why=f"on outputs {shapes} and labels {labels.dtype}{list(labels.shape)}: {type(error).__name__}: {error}",
                    hint="it takes outputs and labels, samples first, and returns a number",
                ) from error
        if not np.isfinite(found) and np.array_equal(numbers, everything):
            raise OptionError(
                f"the metric of your own returned {found}",
                where=getattr(metric, "__name__", "--metric"),
                hint="it returns a finite number for all samples",
            )
        return found

    return OfSamples(value)


def _check_own(metric: Callable[[Any, Any], float], outputs: Outputs, labels: Array) -> None:
    """Try a metric of the user's own before any work is done.

    Raises:
        OptionError: it fails, or gives two values for the same outputs.
    """
    first, second = (on_all(own_statistic(metric, outputs, labels), len(labels)) for _ in range(2))
    if abs(first - second) > 1e-9 * max(abs(first), abs(second)):
        raise OptionError(
            "the metric of your own is not repeatable",
            where=getattr(metric, "__name__", "--metric"),
            why=f"it gives {first:.6g} and {second:.6g} for the same outputs and labels",
            hint="seed its random numbers",
        )


def find_task(
    asked: Judging,
    labels: Array | None,
    outputs: Outputs,
    scores: Outputs | None = None,
    size: tuple[int, int] = (0, 0),
    run: Outputs | None = None,
    every: Array | None = None,
) -> Task | None:
    """Return the task of a model: as asked, else what labels and outputs tell; None where neither does.

    Args:
        asked: what the user says.
        labels: of some samples, samples first, or None.
        outputs: of the same samples.
        scores: tensors in front of a selection (the scores that an ArgMax takes), which classes are read from; None: the outputs.
        size: height and width of the network's input; (0, 0) where it takes no pictures.
        run: outputs of one run, which boxes are decoded from; None: `outputs`. Rows per sample may differ between runs.
        every: labels of all samples, which must fit and hold something; None: `labels`.

    Raises:
        DataError: the labels do not fit the task or the outputs.
        OptionError: a metric of the user's own without labels, or one that cannot be loaded or fails; an option of another task.
    """
    own = load_own(asked)
    if labels is None:
        if own is not None:
            raise OptionError("--metric needs labels", hint="give `labels` in the data, or --labels FILE")
        return None if asked.task is None else _unlabelled(asked, outputs, size)
    name = asked.task or _derived(labels, outputs, scores or outputs, own is not None)
    for option, tasks in (("decode", BOXES), ("characters", ("ctc",))):
        if getattr(asked, option) is not None and name not in tasks:
            raise OptionError(
                f"--{option} has no effect on the task {name}",
                hint=f"leave it out, or give --task {' or '.join(tasks)}",
            )
    if own is not None:
        _check_own(own, outputs, labels)
    if name == "metric":
        return Task(name, own=own, metrics=(own_metric(own, asked.direction),)) if own is not None else None
    found = (name in IN_FRONT and scores) or (name in BOXES and run) or outputs
    lead = () if own is None else (own_metric(own, asked.direction),)
    try:
        decode, measures = _measured(name, asked, labels if every is None else every, found, size)
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
    decode = decoder_of(asked.task, asked, outputs, size) if asked.task in ("segment", "ctc") else None
    return Task(asked.task, decode)


def _derived(labels: Array, outputs: Outputs, scores: Outputs, has_own: bool) -> str:
    """Return the task that labels and outputs tell.

    Raises:
        DataError: they tell none, and the user has no metric of their own.
    """
    if labels.dtype.kind in "OU":
        if not all(isinstance(one, str) for one in labels):
            return "detect"
        if any(np.ndim(output) == 3 for output in outputs):
            return "ctc"
    elif name := _of_numbers(labels, [o for o in outputs if isinstance(o, np.ndarray)], scores):
        return name
    if has_own:
        return "metric"
    found = ", ".join(f"{output.dtype}{list(output.shape)}" for output in outputs if isinstance(output, np.ndarray))
    raise DataError(
        "there are labels, but no output of the form (samples, classes)",
        why=f"labels are {labels.dtype}{list(labels.shape)}, outputs are {found}",
        hint=f"say what the model does with --task {'|'.join(TASKS)}, give a --metric of your own, or leave the labels out to "
        "compare with the original",
    )


def _of_numbers(labels: Array, outputs: Outputs, scores: Outputs) -> str:
    """Return the task that labels of numbers tell; empty where they tell none."""
    truths = labels.dtype.kind in "iubf" and set(np.unique(labels[:LOOKED])) <= {0, 1}
    whole = labels.dtype.kind in "iub"
    sizes = {output[0].size for output in outputs if output.dtype.kind == "f" and output.ndim}
    if (
        labels.ndim == 3
        and labels.shape[2] in (5, 6)
        and not any(_is_map(output, labels.shape[1:]) for output in outputs)
    ):
        return "detect"
    if labels.ndim == 1:
        if whole and class_scores(scores, labelled=True) is not None:
            return "classify"
        if truths and 1 in sizes:
            return "binary"
    if labels.ndim == 2 and labels.shape[1] in sizes:
        return "regress" if not truths else "binary" if labels.shape[1] == 1 else "multilabel"
    is_mask = labels.ndim == 3 or (labels.ndim == 4 and labels.shape[1] == 1)
    if is_mask and (whole or (labels == np.round(labels)).all()) and any(output.ndim >= 3 for output in outputs):
        return "segment"
    return "regress" if labels.dtype.kind == "f" and labels[0].size in sizes else ""


def _is_map(output: Array, shape: tuple[int, ...]) -> bool:
    """Tell whether an output has a value for each element of labels of a shape."""
    return output.ndim >= 3 and (output.shape[-2:] == shape or output.shape[1:3] == shape)


def _measured(
    name: str, asked: Judging, labels: Array, outputs: Outputs, size: tuple[int, int]
) -> tuple[Callable[[Outputs], Array], dict[str, Measure]]:
    """Return how predictions are decoded, and the metrics that apply to them.

    Raises:
        DataError: labels and predictions do not fit.
    """
    labels = prepared(name, labels)
    decode = decoder_of(name, asked, outputs, size, masks=name == "detect" and hold_masks(labels))
    place = place_of(name, labels, outputs)
    if place is not None:
        decode = functools.partial(_of_output, decode, place)
    predictions = decode(outputs)
    _check_fit(name, labels, predictions)
    _refuse_empty(name, labels)
    if name == "ctc" and isinstance(labels[0], str) and not isinstance(predictions[0], str):
        raise DataError(
            "the labels are text, and the predictions are numbers of classes",
            hint="name their characters: --characters FILE",
        )
    if name in ("segment", *BOXES):
        check_classes(name, labels, outputs, size, asked.decode)
    known = _measures(name)
    if name == "detect" and not (hold_masks(labels) and hold_masks(predictions)):
        known.pop("mask_map")
    if name == "classify" and predictions.shape[1] <= 5:
        known.pop("top5")
    if name == "embed":
        for k in (1, 5):
            if k >= len(labels):
                known.pop(f"recall{k}", None)
    return decode, {metric: known[metric] for metric in TASKS[name] if metric in known}


def _of_output(decode: Callable[[Outputs], Array], place: int, outputs: Outputs) -> Array:
    """Return the predictions of one output."""
    return decode([outputs[place]])


def _measures(name: str) -> dict[str, Measure]:
    """Return the metrics of a task, by name."""
    if name in BOXES:
        from onnxprune.metrics import detection

        return {
            "map": detection.mean_average_precision,
            "map50": detection.at_half,
            "mask_map": detection.mask_average_precision,
            "keypoint_map": detection.keypoint_average_precision,
        }
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
    if name == "segment" and not _of_one_form(labels.shape[1:], predictions.shape[1:]):
        forms = [" x ".join(map(str, maps.shape[1:])) for maps in (labels, predictions)]
        raise DataError(
            "the masks have another form than the predictions",
            why=f"masks are {forms[0]}, predictions are {forms[1]}",
            hint="give masks of the pictures as the network takes them, cropped and padded alike",
        )
    if name == "ctc" and labels.dtype.kind not in "OUiu":
        raise DataError("the labels don't fit --task ctc", why=have, hint="give a text per sample")
    if name in BOXES and labels.dtype.kind != "O":
        raise DataError(
            f"the labels don't fit --task {name}", why=have, hint="give --labels, or (n, m, 5) boxes: x1 y1 x2 y2 class"
        )


def _of_one_form(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Tell whether maps of two sizes, (height, width), have one aspect ratio, up to 1 % and the rounding of a side to whole pixels.

    >>> _of_one_form((61, 64), (8, 8)), _of_one_form((64, 40), (64, 64))
    (True, False)
    """
    height, width = (a / b for a, b in zip(first, second, strict=True))
    rounding = max(1 / side for side in (*first, *second))
    return abs(height / width - 1) <= max(0.01, rounding)


def _refuse_empty(name: str, labels: Array) -> None:
    """Refuse labels that hold nothing, on which no metric is defined.

    Raises:
        DataError: no object, no pixel that counts, or no character.
    """
    told = ""
    if name in BOXES and not any(
        ((rows[:, 5] == 0) & (rows[:, 2:4] > rows[:, :2]).all(axis=1)).any() for rows in labels
    ):
        told = "no object with an area"
    if name == "segment" and not ((labels != IGNORED) & (labels >= 0)).any():
        told = f"no pixel that counts: all are {IGNORED}"
    if name == "ctc" and not any(map(len, labels)):
        told = "no character"
    if told:
        raise DataError(
            f"the labels hold {told}",
            why=f"there are {len(labels)} samples",
            hint="check the labels, or leave them out",
        )


def amounts(statistics: Mapping[str, Statistic], samples: int) -> dict[str, float]:
    """Return each metric on all samples, each once; those that are not defined there are left out."""
    found = {name: on_all(statistic, samples) for name, statistic in statistics.items()}
    return {name: amount for name, amount in found.items() if np.isfinite(amount)}

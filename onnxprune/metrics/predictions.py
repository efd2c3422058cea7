"""Predictions of a task from the outputs of a run: scores, classes of pixels, texts, boxes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.special import expit

from onnxprune.errors import DataError, DataWarning
from onnxprune.metrics import classification, segmentation, text
from onnxprune.metrics.outputs import Outputs, class_scores, log_probabilities
from onnxprune.options.judging import Judging
from onnxprune.types import Array


def decoder_of(
    name: str, asked: Judging, outputs: Outputs, size: tuple[int, int], *, masks: bool = False
) -> Callable[[Outputs], Array]:
    """Return the function from the outputs of a run to predictions; whether scores are probabilities is that of `outputs`.

    Args:
        name: of the task.
        asked: what the user says.
        outputs: of a run.
        size: height and width of the network's input.
        masks: whether boxes are decoded with their masks, where outputs hold masks.

    Raises:
        DataError: no output has a form that the task knows.
    """
    if name in ("detect", "keypoints"):
        from onnxprune.metrics.decoders import find_decoder

        decoder = find_decoder(outputs, size, asked.decode, task=name)
        decode = (decoder.instances if masks else None) or decoder.decode
        return lambda found: decode(found, size)
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


def place_of(name: str, labels: Array, outputs: Outputs) -> int | None:
    """Return which output predictions are read from, where it is not the first of its form: the first one that fits the labels.

    Args:
        name: of the task. Class scores fit where there are more classes than the largest label, numbers where there are as many as labels.
        labels: as its metrics take them.
        outputs: of the same samples.

    Returns:
        None where the first output of the form fits, or none does, or the task has another form.
    """
    if name == "classify" and labels.ndim == 1 and labels.dtype.kind in "iu":
        forms = [class_scores([output], labelled=True) for output in outputs]
        fits = [found is not None and found.shape[1] > labels.max() for found in forms]
    elif name in ("regress", "multilabel"):
        forms = [_values([output]) for output in outputs]
        fits = [found is not None and found[0].size == labels[0].size for found in forms]
    else:
        return None
    first = next((place for place, found in enumerate(forms) if found is not None), None)
    if first is None or fits[first] or True not in fits:
        return None
    return fits.index(True)


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
    return segmentation.class_map(found, classes_last=_is_last(found, size), probabilities=probabilities)


def _is_last(found: Array, size: tuple[int, int]) -> bool:
    """Tell whether classes lie on the last axis of a map."""
    has_form = bool(size[0]) and found.ndim == 4 and found.shape[1] * size[1] == found.shape[2] * size[0]
    return has_form and found.shape[3] < found.shape[1]


def _texts(outputs: Outputs, characters: Sequence[str] | None) -> Array | None:
    """Return the text of each sample."""
    scores = next((o for o in outputs if isinstance(o, np.ndarray) and o.ndim == 3 and o.dtype.kind == "f"), None)
    return None if scores is None else text.greedy(scores, characters)


def _in_unit(values: Array) -> bool:
    """Tell whether all values are probabilities."""
    return bool(values.min() >= -classification.ROUNDING and values.max() <= 1 + classification.ROUNDING)


def check_classes(name: str, labels: Array, outputs: Outputs, size: tuple[int, int], decoder: str | None) -> None:
    """Refuse classes of masks and boxes that the outputs do not have.

    Args:
        name: of the task.
        labels: as its metrics take them.
        outputs: of one run or of several.
        size: height and width of the network's input.
        decoder: of boxes; None: the one that fits.

    Where outputs do not tell the number of classes of boxes, a `DataWarning` says what the largest one is.

    Raises:
        DataError: the largest class is beyond those of the model.
    """
    if name == "segment":
        classes, largest = (
            _classes_of_map(outputs, size),
            int(np.where(labels == segmentation.IGNORED, 0, labels).max()),
        )
        hint = f"check that the masks belong to this model; pixels of {segmentation.IGNORED} are ignored"
    else:
        from onnxprune.metrics.decoders import find_decoder

        classes = find_decoder(outputs, size, decoder, task=name).classes(outputs)
        largest = int(max((rows[:, 4].max() for rows in labels if len(rows)), default=0))
        hint = "check that the labels belong to this model; categories of COCO are numbered from 0 in the order of their ids"
        if not classes and largest:
            told = f"the outputs do not tell how many classes the model has, and the largest class of the labels is {largest}"
            warnings.warn(DataWarning(f"{told}: {hint}"), stacklevel=2)
    if classes and largest >= classes:
        raise DataError(
            "a label is out of range", why=f"the largest is {largest}, the model has {classes} classes", hint=hint
        )


def _classes_of_map(outputs: Outputs, size: tuple[int, int]) -> int:
    """Return the number of classes that a map of scores has; 0 where there is none."""
    found = _map_of(outputs)
    if found is None or found.ndim != 4 or found.dtype.kind != "f" or 1 in (found.shape[1], found.shape[3]):
        return 0
    return int(found.shape[3] if _is_last(found, size) else found.shape[1])

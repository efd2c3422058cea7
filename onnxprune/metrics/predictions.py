"""Predictions of a task from the outputs of a run: scores, classes of pixels, texts, boxes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.special import expit

from onnxprune.errors import DataError
from onnxprune.metrics import classification, segmentation, text
from onnxprune.metrics.outputs import Outputs, class_scores, log_probabilities
from onnxprune.options.judging import Judging
from onnxprune.types import Array


def decoder_of(name: str, asked: Judging, outputs: Outputs, size: tuple[int, int]) -> Callable[[Outputs], Array]:
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


def check_masks(labels: Array, outputs: Outputs, size: tuple[int, int]) -> None:
    """Refuse masks with classes that the map of scores does not have."""
    found = _map_of(outputs)
    if found is None or found.ndim != 4 or found.dtype.kind != "f" or 1 in (found.shape[1], found.shape[3]):
        return
    classes = found.shape[3] if _is_last(found, size) else found.shape[1]
    largest = int(np.where(labels == segmentation.IGNORED, 0, labels).max())
    if largest >= classes:
        raise DataError(
            "a label is out of range",
            why=f"the largest is {largest}, the model has {classes} classes",
            hint=f"check that the masks belong to this model; pixels of {segmentation.IGNORED} are ignored",
        )

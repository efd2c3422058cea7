"""Labels that are given as arrays: in a file of numpy, beside samples, or from Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from onnxprune.data.labels.tables import TABLES, read_column
from onnxprune.data.labels.values import npz_boxes, object_array
from onnxprune.data.numpy_files import read_npy
from onnxprune.errors import DataError, first_line

Array = np.ndarray[Any, Any]
BOXES = (5, 6)
"""Length of the last axis of boxes, in which NaN is allowed: rows of NaN pad samples to one number of boxes."""
LARGEST = np.iinfo(np.int64).max
BEYOND = "give class numbers, which start at 0"
CLASSES = ("classify", "binary", "embed", "multilabel")
"""Tasks whose labels are class numbers, or 0 and 1 for each class."""
WHOLE = 2**53
AS_GIVEN = ("regress", "multilabel")
"""Tasks whose labels keep an axis of length 1."""


def as_labels(value: Any) -> Array:
    """Return labels as an array with samples first; sequences of arrays of different shapes become an (n,) object array.

    >>> as_labels([np.zeros((1, 6)), np.zeros((3, 6))]).shape
    (2,)
    """
    if (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and any(isinstance(one, tuple | list) for one in value)
    ):
        lengths = {len(one) if isinstance(one, tuple | list) else -1 for one in value}
        if len(lengths) > 1:
            return object_array(value)
    try:
        return np.asarray(value)
    except ValueError:
        if not isinstance(value, Sequence):
            raise
        return object_array(value)


def read_array_labels(source: Any, n: int, task: str | None) -> tuple[Array, tuple[str, ...]]:
    """Return labels of n samples and names of classes: of a .npy, of a table of n rows, or as given.

    Raises:
        DataError: the file cannot be read.
    """
    if not isinstance(source, str | os.PathLike):
        return as_labels(source), ()
    file = Path(source)
    if not file.is_file():
        raise DataError("no such labels", where=str(file), hint="check the path of the labels")
    if file.suffix.lower() in TABLES:
        labels = read_column(file, n, task)
        return labels.values, labels.classes
    if file.suffix.lower() != ".npy":
        raise DataError(
            f"labels of type {file.suffix or 'none'} do not fit arrays",
            where=str(file),
            hint="give a .npy or a table with a row per sample, or samples as a folder of images",
        )
    try:
        return read_npy(file), ()
    except Exception as error:  # a damaged file can make numpy raise nearly anything
        raise DataError(
            "the labels cannot be read", where=str(file), why=first_line(error), hint="save them again with numpy"
        ) from error


def checked_labels(labels: Array, n: int, where: str, task: str | None = None) -> Array:
    """Return labels of n samples: class numbers and truth values of samples as int64.

    Boxes that are padded to one number per sample become an object array for the task `detect`, and integers floats for
    the task `regress`. Boxes without a column of crowds, in an object array, get one.

    Raises:
        DataError: there is another number of labels, or they are neither finite numbers nor strings, or beyond 64 bits.
    """
    if not labels.ndim or len(labels) != n or labels.dtype.kind not in "iubfUO":
        raise DataError(
            "the labels don't fit",
            where=where,
            why=f"labels are {labels.dtype}{list(labels.shape)}, there are {n} samples",
            hint="give numbers or strings, with samples along the first axis",
        )
    if task in CLASSES and labels.dtype.kind == "f":
        labels = _whole(labels, where)
    whole = labels.dtype.kind in "iub"
    if labels.shape == (n, 1) and labels.dtype.kind in "iubUO" and task not in AS_GIVEN:
        labels = labels[:, 0]  # as Keras writes them
    if task == "detect" and (labels.dtype.kind == "O" or labels.ndim == 3):
        return npz_boxes(labels)
    if task == "keypoints" and labels.ndim == 3:
        labels = object_array(list(labels))
    if labels.dtype.kind == "O":
        _check_objects(labels, where)
        if task is None and _lack_crowds(labels):
            return npz_boxes(labels)
    if labels.dtype.kind == "f":
        _check_finite(labels, where)
    if labels.dtype.kind == "u" and labels.max(initial=0) > LARGEST:
        _beyond(int(labels.argmax() // (labels.size // n)), labels.max(), where)
    if task == "regress" and whole:
        return labels.astype(np.float64)
    if labels.ndim > 1 or not whole:
        return labels
    if labels.min() < 0:
        raise DataError(
            "a label is negative",
            where=where,
            why=f"the label of sample {int(labels.argmin())} is {labels.min()}",
            hint="class numbers start at 0",
        )
    return labels.astype(np.int64)


def may_be_boxes(array: Array) -> bool:
    """Tell whether an array may hold the boxes of samples, padded or as objects; an empty one may."""
    return array.dtype.kind == "O" or (array.ndim == 3 and array.shape[2] in BOXES) or not array.size


def may_be_labels(array: Array, n: int) -> bool:
    """Tell whether an array may hold labels of n samples: class numbers, boxes, or masks.

    >>> [may_be_labels(np.zeros(shape), 9) for shape in ((9,), (9, 4, 5), (9, 8, 8))]
    [False, True, False]
    """
    if array.ndim == 3 and len(array) == n and array.shape[2] in BOXES:
        return True
    return bool(array.dtype.kind in "iu" and (array.size == n or (array.ndim == 3 and len(array) == n)))


def _whole(labels: Array, where: str) -> Array:
    """Return class numbers that are stored as floats, as int64; 2^53 and beyond, floats hold no other whole numbers."""
    _check_finite(labels, where)
    odd = (labels % 1 != 0) | (np.abs(labels) >= WHOLE)
    if odd.any():
        raise DataError(
            "a label is not a whole number",
            where=where,
            why=f"the label of sample {int(odd.reshape(len(labels), -1).any(axis=1).argmax())} is {labels[odd][0]}",
            hint=BEYOND,
        )
    return labels.astype(np.int64)


def _check_finite(labels: Array, where: str) -> None:
    """Refuse NaN and infinity; NaN is allowed as padding of boxes."""
    wrong = np.isinf(labels) if labels.ndim == 3 and labels.shape[2] in BOXES else ~np.isfinite(labels)
    if wrong.any():
        raise DataError(
            "the labels hold NaN or infinity",
            where=where,
            why=f"first in sample {int(wrong.reshape(len(labels), -1).any(axis=1).argmax())}",
            hint="give finite numbers",
        )


def _lack_crowds(labels: Array) -> bool:
    """Tell whether objects are boxes of which some have five columns: x1, y1, x2, y2, class."""
    shapes = [np.shape(one) for one in labels.ravel() if not isinstance(one, str) and np.size(one)]
    return any(s[1:] == BOXES[:1] for s in shapes) and all(len(s) == 2 and s[1] in BOXES for s in shapes)


def _beyond(sample: int, label: Any, where: str) -> NoReturn:
    raise DataError(
        "the labels don't fit", where=where, why=f"the label {sample} is {label}, beyond 64 bits", hint=BEYOND
    )


def _check_objects(labels: Array, where: str) -> None:
    """Refuse objects that are neither strings nor finite numbers."""
    for i, one in enumerate(labels.ravel()):
        if isinstance(one, str):
            continue
        try:
            kind = np.asarray(one).dtype.kind
        except ValueError:
            kind = "O"
        if isinstance(one, int) and kind not in "iub":
            _beyond(i, one, where)
        if kind not in "iubf" or not np.isfinite(one).all():
            raise DataError(
                "the labels don't fit",
                where=where,
                why=f"the label {i} is a {type(one).__name__}, which is neither a string nor finite numbers",
                hint="give numbers or strings, with samples along the first axis",
            )

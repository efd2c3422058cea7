"""Arrays of samples from files, from Python and from batches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data.array_labels import as_labels, may_be_boxes
from onnxprune.data.input_spec import InputSpec
from onnxprune.data.labels.values import object_array
from onnxprune.data.numpy_files import read_npy, read_npz
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError, first_line
from onnxprune.file_kinds import kind_of
from onnxprune.reading import exists

Array = np.ndarray[Any, Any]
Batch = Mapping[str, Any] | Sequence[Any] | Array
"""Arrays by input name, with or without `labels`; or the array of the only input, alone or in a pair with labels."""
DataLike = str | os.PathLike[str] | Mapping[str, Array] | Array | Iterable[Batch]


def read_arrays(path: DataLike, inputs: Sequence[InputSpec]) -> dict[str, Array]:
    """Return the arrays of a file, or those that are given, by name; see `read_npz` for those that no input asks for.

    Raises:
        DataError: the file cannot be read.
    """
    if not isinstance(path, str | os.PathLike):
        given = path if isinstance(path, Mapping) else {only_input(inputs, "an array").name: path}
        return {name: _array(name, value) for name, value in given.items()}
    file = Path(path)
    if not exists(file):
        raise DataError("no such data", where=str(file), hint="check the path given to --data")
    if file.suffix.lower() not in (".npz", ".npy"):
        kind = kind_of(file)
        raise DataError(
            f"data of type {file.suffix or 'none'} are not known",
            where=str(file),
            why="" if kind is None else f"it is {kind.text}",
            hint="give a .npz, a .npy or a folder of images",
        )
    only = None if file.suffix.lower() == ".npz" else only_input(inputs, "a .npy file").name
    try:
        wanted = {"labels", *(spec.name for spec in inputs)}
        arrays = read_npz(file, wanted) if only is None else {only: read_npy(file)}
    except Exception as error:  # a damaged file can make numpy, zipfile or zlib raise nearly anything
        raise DataError(
            "the data cannot be read", where=str(file), why=first_line(error), hint="save them again with numpy"
        ) from error
    return arrays


def _array(name: str, value: Any) -> Array:
    return as_labels(value) if name == "labels" else np.asarray(value)


def samples_first(arrays: Mapping[str, Array], inputs: Sequence[InputSpec], where: str) -> dict[str, Array]:
    """Return arrays with samples first."""
    specs = {spec.name: spec for spec in inputs}
    return {n: specs[n].by_sample(array, where) if n in specs else array for n, array in arrays.items()}


def joined(batches: Iterable[Batch], inputs: Sequence[InputSpec]) -> dict[str, Array]:
    """Join the batches of an iterable, per name."""
    if not isinstance(batches, Iterable):
        raise DataError(
            f"data of type {type(batches).__name__} are not known",
            hint="give a path, arrays by input name, or an iterable of batches",
        )
    parts: dict[str, list[Array]] = {}
    for number, batch in enumerate(batches):
        arrays = _arrays_of(batch, inputs, f"batch {number}")
        if number and arrays.keys() != parts.keys():
            raise DataError(
                "the batches do not have the same arrays",
                where=f"batch {number}",
                why=f"it has {', '.join(arrays)}; those before have {', '.join(parts)}",
                hint="give every batch each input, and labels to all or to none",
            )
        for name, array in arrays.items():
            earlier = parts.setdefault(name, [])
            are_boxes = name == "labels" and may_be_boxes(array) and (not earlier or may_be_boxes(earlier[0]))
            if earlier and earlier[0].shape[1:] != array.shape[1:] and not are_boxes:
                raise DataError(
                    f"the batches of {name} have different shapes",
                    where=f"batch {number}",
                    why=f"samples are {list(array.shape[1:])}, those before are {list(earlier[0].shape[1:])}",
                    hint="give all samples one shape",
                )
            earlier.append(array)
    if not parts:
        raise DataError(
            "there are no batches", why="the iterable gave nothing", hint="a generator can be read only once"
        )
    return {name: _concatenated(arrays) for name, arrays in parts.items()}


def _concatenated(parts: Sequence[Array]) -> Array:
    """Join arrays; boxes of different numbers per sample become an object array."""
    if len({part.shape[1:] for part in parts}) > 1:
        return object_array([rows for part in parts for rows in part])
    return np.concatenate(parts)


def _arrays_of(batch: Batch, inputs: Sequence[InputSpec], where: str) -> dict[str, Array]:
    """Return the arrays of a batch: inputs and labels, by name."""
    if isinstance(batch, Mapping):
        named = {name: value for name, value in batch.items() if name == "labels" or name in {i.name for i in inputs}}
    elif hasattr(batch, "__array__"):
        named = {only_input(inputs, where).name: batch}
    elif isinstance(batch, Sequence) and 1 <= len(batch) <= 2 and hasattr(batch[0], "__array__"):
        named = dict(zip((only_input(inputs, where).name, "labels"), batch, strict=False))
    else:
        raise DataError(
            "the form of a batch is not known",
            where=where,
            why=f"it is a {type(batch).__name__}",
            hint="give arrays by input name, an array for the only input, or a pair of it and labels",
        )
    try:
        arrays = {name: _array(name, value) for name, value in named.items()}
    except Exception as error:  # tensors on a graphics card, or with a gradient, cannot become arrays
        raise DataError(
            "a batch cannot be read", where=where, why=first_line(error), hint="give it as arrays of numpy"
        ) from error
    arrays = samples_first(arrays, inputs, where)
    check_lengths(arrays, inputs, where)
    return arrays


def check_lengths(arrays: Mapping[str, Array], inputs: Sequence[InputSpec], where: str, least: int = 0) -> int:
    """Return the number of samples, the same in all arrays, which hold samples first."""
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    n = next(iter(lengths.values()), -1)
    if n < least or len(set(lengths.values())) > 1 or not all(array.ndim for array in arrays.values()):
        raise DataError(
            "the arrays have no common number of samples",
            where=where,
            why=", ".join(f"{name} has {length}" for name, length in lengths.items())
            or "there is no input of the model",
            hint=f"give as many samples in each array, and at least one: {_axes_of(inputs)}",
        )
    return n


def _axes_of(inputs: Sequence[InputSpec]) -> str:
    """Say along which axis of which array the samples lie."""
    axes = {spec.name: spec.samples.axis or 0 for spec in inputs}
    if not any(axes.values()):
        return "they lie along the first axis of every array"
    return "they lie along " + ", ".join(f"axis {axis} of {name}" for name, axis in axes.items())


def only_input(inputs: Sequence[InputSpec], what: str) -> InputSpec:
    """Return the only input of a model.

    Raises:
        DataError: there are several.
    """
    if len(inputs) != 1:
        raise DataError(
            f"{what} holds one input, the model has {len(inputs)}",
            why=f"inputs are {', '.join(i.name for i in inputs)}",
            hint="save a .npz with an array per input name",
        )
    return inputs[0]


def check_array(array: Array, spec: InputSpec, how: Preprocess | None, where: str) -> None:
    """Refuse an array whose values do not fit an input.

    Raises:
        DataError: the dtype is another one, the array holds no numbers, or NaN or infinity.
    """
    floating = array.dtype.kind == "f"
    wants_float = spec.dtype.kind == "f" or str(spec.dtype) == "bfloat16"
    if how is None and array.dtype != spec.dtype and not (floating and wants_float):
        scaling = "give --preprocess (a preset or a TOML file) to say how the values are scaled"
        raise DataError(
            f"input {spec.name} has another dtype",
            where=where,
            why=f"data are {array.dtype}, the model wants {spec.dtype}",
            hint=scaling if wants_float else "convert the array",
        )
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"input {spec.name} holds no numbers",
            where=where,
            why=f"its dtype is {array.dtype}",
            hint="save an array of numbers",
        )
    if floating:
        with np.errstate(over="ignore"):
            finite = np.isfinite(array.astype(spec.dtype, copy=False) if how is None else array)
        if not finite.all():
            bad = int(np.argmin(finite.reshape(len(array), -1).all(axis=1)))
            raise DataError(
                f"input {spec.name} holds NaN or infinity",
                where=where,
                why=f"first in sample {bad}, as {spec.dtype}",
                hint="clean the data",
            )

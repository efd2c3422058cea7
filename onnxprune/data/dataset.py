"""Calibration and evaluation data: arrays or image files, preprocessed batch by batch."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx

from onnxprune.data.array_labels import checked_labels, may_be_labels, read_array_labels
from onnxprune.data.arrays import Array as Array
from onnxprune.data.arrays import Batch as Batch
from onnxprune.data.arrays import DataLike as DataLike
from onnxprune.data.arrays import (
    check_array,
    check_lengths,
    joined,
    only_input,
    read_arrays,
    samples_first,
)
from onnxprune.data.images import images_in, read_image, stack, unreadable
from onnxprune.data.input_spec import InputSpec, input_specs
from onnxprune.data.labels.reading import read_labels
from onnxprune.data.preprocess import PRESETS, Preprocess, load_preprocess
from onnxprune.data.user_functions import batches_of, called, failing
from onnxprune.errors import DataError
from onnxprune.paths import IMAGE_SUFFIXES, is_function
from onnxprune.types import IntArray

Feeds = dict[str, Array]
LabelsLike = str | os.PathLike[str] | Array | Sequence[Any]
"""A label file or a folder of them, or labels as an array or a sequence."""
COLORS = (1, 3, 4)
"""Channels of pictures."""
DIGESTED = 64
"""Number of samples in a digest."""


@dataclass(frozen=True)
class Data:
    """Samples by input name, with or without labels.

    Attributes:
        arrays: per input, an array with samples first, or a list of image files.
        labels: array with samples first, or None: (n,) class numbers, numbers or strings, (n, …) numbers or truth values, or an
            (n,) object array, as of boxes. See `onnxprune.data.labels.values.Labels` for the labels of files.
        preprocess: None: values are used as stored.
        inputs: inputs of the model.
        name: name of the data in a report.
        classes: names of the classes, for a folder of images or from a label file.
        is_generated: whether the samples are generated: the truth about them is not known.
        unused: arrays that no input asks for, and whether each may hold labels.
        skipped: files that cannot be read and were left out.
    """

    arrays: Mapping[str, Array | Sequence[Path]]
    labels: Array | None
    preprocess: Preprocess | None
    inputs: tuple[InputSpec, ...]
    name: str
    classes: tuple[str, ...] = field(default=())
    is_generated: bool = False
    unused: Mapping[str, bool] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def class_labels(self) -> IntArray | None:
        """Labels, if they are class numbers of samples: (n,) integers; else None."""
        labels = self.labels
        return labels if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu" else None

    @property
    def pictures(self) -> Sequence[Path]:
        """Image files of the samples; empty for arrays."""
        return next((source for source in self.arrays.values() if not isinstance(source, np.ndarray)), ())

    @functools.cached_property
    def fixed(self) -> int | None:
        """Samples that every run of the model takes; None: any number."""
        varying = (spec for spec in self.inputs if spec.samples.axis is None and spec.per_run is None)
        if any(np.ptp(np.asarray(self.arrays[spec.name]), axis=0).any() for spec in varying):
            return 1
        return next((spec.fixed for spec in self.inputs if spec.fixed is not None), None)

    def rows(self, start: int, stop: int) -> Feeds:
        """Return samples start … stop - 1, preprocessed, as the model takes them; one sample where it takes one."""
        return self.as_run(self.samples(start, stop))

    def as_run(self, samples: Feeds) -> Feeds:
        """Return samples, as from `samples`, as the model takes them."""
        return {spec.name: np.asarray(spec.by_run(samples[spec.name]), order="C") for spec in self.inputs}

    def samples(self, start: int, stop: int) -> Feeds:
        """Return samples start … stop - 1, preprocessed, in the dtypes of the model; samples, or their rows, come first.

        Raises:
            DataError: an image cannot be read, or a shape does not fit.
        """
        feeds: Feeds = {}
        for spec in self.inputs:
            source = self.arrays[spec.name]
            part = source[start:stop]
            batch: Array = part if isinstance(part, np.ndarray) else stack(part, self.preprocess or Preprocess())
            if spec.samples.rows > 1:
                batch = batch.reshape(-1, *batch.shape[2:])
            if self.preprocess is not None:
                with np.errstate(over="ignore", invalid="ignore"):
                    batch = self.preprocess.apply(batch).astype(spec.dtype, copy=False)
                self._check_finite(batch, spec, start)
            feeds[spec.name] = batch.astype(spec.dtype, copy=False)
        return feeds

    def _check_finite(self, batch: Array, spec: InputSpec, start: int) -> None:
        """Refuse preprocessed samples, of which the first has the number `start`, that hold NaN or infinity."""
        finite = np.isfinite(batch) if batch.dtype.kind == "f" else np.ones(batch.shape, dtype=bool)
        if not finite.all():
            bad = start + int(np.argmin(finite.reshape(len(batch), -1).all(axis=1)))
            raise DataError(
                f"input {spec.name} holds NaN or infinity after preprocessing",
                where=self.name,
                why=f"first in sample {bad}, as {spec.dtype}, after {self.preprocess}",
                hint="check scale, mean and std of --preprocess",
            )

    def stored(self, name: str, sample: int) -> Array:
        """Return a sample of an input as stored; an image file as uint8, resized and cropped."""
        source = self.arrays[name]
        if isinstance(source, np.ndarray):
            return cast(Array, source[sample])
        return read_image(source[sample], self.preprocess or Preprocess())

    def take(self, samples: Array) -> Data:
        """Return the samples with some indices."""
        arrays = {
            name: source[samples] if isinstance(source, np.ndarray) else [source[i] for i in samples]
            for name, source in self.arrays.items()
        }
        return replace(self, arrays=arrays, labels=None if self.labels is None else self.labels[samples])

    @functools.cached_property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the pictures that the network takes; (0, 0) where it takes none."""
        shape = next((shape for shape in self.shapes().values() if len(shape) == 4), None)
        if shape is None:
            return 0, 0
        first, last = shape[1] in COLORS, shape[3] in COLORS
        is_last = last if first != last else self.preprocess is not None and self.preprocess.layout == "NHWC"
        return (shape[1], shape[2]) if is_last else (shape[2], shape[3])

    def digest(self) -> str:
        """Return a digest of the number of samples and of the first of them, preprocessed."""
        digest = hashlib.sha256(str(len(self)).encode())
        for name, values in sorted(self.samples(0, min(DIGESTED, len(self))).items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:16]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of a preprocessed batch of one sample, per input."""
        return {name: value.shape for name, value in self.rows(0, 1).items()}


def hint_of(
    data: DataLike | None, preprocess: Preprocess | str | None
) -> Callable[[onnx.ModelProto], dict[str, tuple[int, ...]]] | None:
    """Return a function from a model to the shapes of data for its inputs; None where data can be read only once."""
    if data is None or not (isinstance(data, str | os.PathLike | Mapping) or hasattr(data, "__array__")):
        return None
    how = load_preprocess(preprocess) if isinstance(preprocess, str) else preprocess

    def shapes(header: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
        specs = input_specs(header)
        try:
            if isinstance(data, str | os.PathLike) and Path(data).is_dir():
                return _from_folder(Path(data), specs, how, read=False).shapes()
            arrays = read_arrays(data, specs)
        except DataError:
            return {}  # the data are read again, and refused, when the axes of samples are known
        found = {}
        for spec in specs:
            array = arrays.get(spec.name, np.zeros(()))
            if len(spec.shape) <= array.ndim <= len(spec.shape) + 1 and array.size and array.ndim:
                with np.errstate(over="ignore", invalid="ignore"):
                    one = array[:1] if how is None else how.apply(array[:1])
                sizes = (len(array), *one.shape[1:])
                found[spec.name] = sizes[array.ndim - len(spec.shape) :]
        return found

    return shapes


def load_data(
    path: DataLike,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | str | None = None,
    labels: LabelsLike | None = None,
    task: str | None = None,
) -> Data:
    """Read data and check them against the inputs of a model.

    Args:
        path: a `.npz` with an array per input name and optional `labels`; a `.npy` for the only input; a folder of
            images, with a sub-folder per class where they are labeled; arrays; or an iterable of batches (a list, a
            generator, a DataLoader of torch), each as in `Batch`. An iterable is read to its end, its batches joined. Or
            `file.py:function`, a function of yours without arguments that returns any of these.
        inputs: inputs of the model.
        preprocess: a `Preprocess`, the name of a preset, or a TOML file.
        labels: labels instead of those of `path`. For a folder of images, whose sub-folders are read at any depth then, a label
            file or a folder of them, see `read_labels`; for arrays a .npy, or a table with one row per sample. Or labels from
            Python, in the order of the samples; boxes and masks among them are in pixels of the model's input.
        task: name of the task, which says what labels are where their form does not: labels of `regress` may be negative
            integers, and those of `detect` are boxes that are padded, see `npz_boxes`.

    Raises:
        DataError: the data or labels cannot be read or do not fit; says what would fit.

    >>> spec = InputSpec("x", np.dtype(np.float32), (None, 3))
    >>> len(load_data(np.zeros((5, 3)), [spec]))
    5
    """
    how = load_preprocess(preprocess) if isinstance(preprocess, str) else preprocess
    if isinstance(path, str | os.PathLike) and is_function(path):
        made = called(os.fspath(path))
        if isinstance(made, tuple) and len(made) == 2 and hasattr(made[0], "__array__"):
            made = [made]  # inputs and labels
        elif isinstance(made, Iterable) and not isinstance(made, str | Mapping) and not hasattr(made, "__array__"):
            made = batches_of(made, os.fspath(path))
        with failing(os.fspath(path)):  # a generator runs while it is read
            return replace(load_data(made, inputs, how, labels, task), name=os.fspath(path))
    if isinstance(path, str | os.PathLike):
        file = Path(path)
        if file.is_dir():
            return _from_folder(file, inputs, how, labels, task)
        arrays = samples_first(read_arrays(file, inputs), inputs, str(file))
        return _from_arrays(arrays, inputs, how, file.name, str(file), labels, task)
    if isinstance(path, Mapping) or hasattr(path, "__array__"):
        arrays, name = samples_first(read_arrays(path, inputs), inputs, "data"), "arrays"
    else:
        arrays, name = joined(path, inputs), "batches"
    return _from_arrays(arrays, inputs, how, name, "data", labels, task)


def _from_arrays(
    arrays: dict[str, Array],
    inputs: Sequence[InputSpec],
    how: Preprocess | None,
    name: str,
    where: str,
    given: LabelsLike | None,
    task: str | None,
) -> Data:
    labels = arrays.pop("labels", None) if "labels" not in {spec.name for spec in inputs} else None
    classes: tuple[str, ...] = ()
    missing = [spec.name for spec in inputs if spec.name not in arrays]
    if missing:
        raise DataError(
            "the data don't have every input of the model",
            where=where,
            why=f"missing: {', '.join(missing)}; found: {', '.join(arrays) or 'nothing'}",
            hint="name the arrays after the inputs of the model",
        )
    others = {key: array for key, array in arrays.items() if key not in {spec.name for spec in inputs}}
    arrays = {spec.name: arrays[spec.name] for spec in inputs}
    n = max((len(array) for array in arrays.values() if array.ndim), default=0)
    for spec in inputs:  # one value for all samples
        if spec.samples.axis is None and len(arrays[spec.name]) == 1:
            arrays[spec.name] = np.broadcast_to(arrays[spec.name], (n, *arrays[spec.name].shape[1:]))
    n = check_lengths(arrays, inputs, where, 1)
    if given is not None:
        labels, classes = read_array_labels(given, n, task)
    if labels is not None:
        labels = checked_labels(labels, n, where, task)
    for spec in inputs:
        check_array(arrays[spec.name], spec, how, where)
    unused = {key: may_be_labels(array, n) for key, array in others.items()}
    data = Data(arrays, labels, how, tuple(inputs), name, classes, unused=unused)
    _check_shapes(data, where)
    return data


def _check_shapes(data: Data, where: str) -> None:
    for spec, shape in zip(data.inputs, data.shapes().values(), strict=True):
        others = [axis for axis in range(len(spec.shape)) if axis != spec.samples.axis]
        if len(shape) != len(spec.shape) or any(spec.shape[axis] not in (None, shape[axis]) for axis in others):
            wanted = ["any" if spec.shape[axis] is None else spec.shape[axis] for axis in others]
            first = [] if spec.samples.axis is None else [spec.samples.axis]
            have = [size for axis, size in enumerate(shape) if axis not in first]
            along = f", and that samples lie along axis {spec.samples.axis} of {spec.name}" if spec.samples.axis else ""
            raise DataError(
                f"input {spec.name} has another shape",
                where=where,
                why=f"samples are {have} after preprocessing, the model wants {wanted}",
                hint=f"check layout, size and --preprocess{along}",
            )


def _from_folder(
    folder: Path,
    inputs: Sequence[InputSpec],
    how: Preprocess | None,
    given: LabelsLike | None = None,
    task: str | None = None,
    *,
    read: bool = True,
) -> Data:
    """Return the images of a folder; `read` has every file read once, so that damaged ones are known at once."""
    spec = only_input(inputs, "a folder of images")
    if how is None:
        raise DataError(
            "images need a preprocessing",
            where=str(folder),
            why="nothing says how large they should be, nor how their values are scaled",
            hint=f"give --preprocess: {', '.join(PRESETS)}, or a TOML file",
        )
    classes, files, numbers = _pictures(folder, given)
    bad = unreadable(files, how) if read else []
    damaged = set(bad)
    kept = [i for i, file in enumerate(files) if file not in damaged]
    files, numbers = [files[i] for i in kept], [numbers[i] for i in kept if numbers]
    if not files:
        raise DataError(
            "the folder holds no images",
            where=str(folder),
            why="neither in it nor in its sub-folders is a file of a known type",
            hint=f"known are {', '.join(sorted(IMAGE_SUFFIXES))}",
        )
    labels = np.array(numbers) if numbers else None
    if isinstance(given, str | os.PathLike) and Path(given).suffix.lower() != ".npy":
        found = read_labels(given, files, how, task=task)
        labels, classes = checked_labels(found.values, len(files), str(given), task), found.classes
    elif given is not None:
        labels, classes = read_array_labels(given, len(files), task)
        labels = checked_labels(labels, len(files), str(folder), task)
    data = Data({spec.name: files}, labels, how, (spec,), folder.name, classes, skipped=tuple(p.name for p in bad))
    _check_shapes(data, str(folder))
    return data


def _pictures(folder: Path, given: LabelsLike | None) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """Return classes, files, and the class number of each file; without classes where labels are given or there are none."""
    if given is not None:
        apart = Path(given) if isinstance(given, str | os.PathLike) else None
        return (), images_in(folder, deep=True, but=apart), []
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [images_in(folder / name) for name in classes]
    numbers = [number for number, paths in enumerate(found) for _ in paths]
    files = [path for paths in found for path in paths]
    return (tuple(classes), files, numbers) if files else ((), images_in(folder), [])

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

from onnxprune.data.images import IMAGE_SUFFIXES, images_in, read_image, stack, unreadable
from onnxprune.data.input_spec import InputSpec, input_specs
from onnxprune.data.preprocess import PRESETS, Preprocess, load_preprocess
from onnxprune.errors import DataError, first_line

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
Batch = Mapping[str, Any] | Sequence[Any] | Array
"""Arrays by input name, with or without `labels`; or the array of the only input, alone or in a pair with labels."""
DataLike = str | os.PathLike[str] | Mapping[str, Array] | Array | Iterable[Batch]
COLORS = (1, 3, 4)
"""Channels of pictures."""
DIGESTED = 64
"""Number of samples in a digest."""


@dataclass(frozen=True)
class Data:
    """Samples by input name, with or without labels.

    Attributes:
        arrays: per input, an array with samples first, or a list of image files.
        labels: (n,) class numbers, or None.
        preprocess: None: values are used as stored.
        inputs: inputs of the model.
        name: name of the data in a report.
        classes: names of the classes, for a folder of images.
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
        looks_last = shape[3] in COLORS and shape[1] not in COLORS
        is_last = looks_last if self.preprocess is None else self.preprocess.layout == "NHWC"
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
            arrays = _arrays(data, specs)
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


def load_data(path: DataLike, inputs: Sequence[InputSpec], preprocess: Preprocess | str | None = None) -> Data:
    """Read data and check them against the inputs of a model.

    Args:
        path: a `.npz` with an array per input name and optional `labels`; a `.npy` for the only input; a folder of
            images, with a sub-folder per class where they are labeled; arrays; or an iterable of batches (a list, a
            generator, a DataLoader of torch), each as in `Batch`. An iterable is read to its end, its batches joined.
        inputs: inputs of the model.
        preprocess: a `Preprocess`, the name of a preset, or a TOML file.

    Raises:
        DataError: the data cannot be read or do not fit; says what would fit.

    >>> spec = InputSpec("x", np.dtype(np.float32), (None, 3))
    >>> len(load_data(np.zeros((5, 3)), [spec]))
    5
    """
    how = load_preprocess(preprocess) if isinstance(preprocess, str) else preprocess
    if isinstance(path, str | os.PathLike):
        file = Path(path)
        if file.is_dir():
            return _from_folder(file, inputs, how)
        arrays = _samples_first(_arrays(file, inputs), inputs, str(file))
        return _from_arrays(arrays, inputs, how, file.name, str(file))
    if isinstance(path, Mapping) or hasattr(path, "__array__"):
        return _from_arrays(_samples_first(_arrays(path, inputs), inputs, "data"), inputs, how, "arrays")
    return _from_arrays(_joined(path, inputs), inputs, how, "batches")


def _arrays(path: DataLike, inputs: Sequence[InputSpec]) -> dict[str, Array]:
    """Return the arrays of a file, or those that are given, by name.

    Raises:
        DataError: the file cannot be read.
    """
    if not isinstance(path, str | os.PathLike):
        given = path if isinstance(path, Mapping) else {_only(inputs, "an array").name: path}
        return {name: np.asarray(value) for name, value in given.items()}
    file = Path(path)
    if not file.exists():
        raise DataError("no such data", where=str(file), hint="check the path given to --data")
    if file.suffix.lower() not in (".npz", ".npy"):
        raise DataError(
            f"data of type {file.suffix or 'none'} are not known",
            where=str(file),
            hint="give a .npz, a .npy or a folder of images",
        )
    only = None if file.suffix.lower() == ".npz" else _only(inputs, "a .npy file").name
    try:
        if only is None:
            with np.load(file, allow_pickle=False) as loaded:
                arrays = dict(loaded)
        else:
            with file.open("rb") as stream:
                arrays = {only: np.lib.format.read_array(stream, allow_pickle=False)}
    except Exception as error:  # a damaged file can make numpy, zipfile or zlib raise nearly anything
        raise DataError(
            "the data cannot be read", where=str(file), why=first_line(error), hint="save them again with numpy"
        ) from error
    return arrays


def _samples_first(arrays: Mapping[str, Array], inputs: Sequence[InputSpec], where: str) -> dict[str, Array]:
    """Return arrays with samples first."""
    specs = {spec.name: spec for spec in inputs}
    return {n: specs[n].by_sample(array, where) if n in specs else array for n, array in arrays.items()}


def _joined(batches: Iterable[Batch], inputs: Sequence[InputSpec]) -> dict[str, Array]:
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
            if earlier and earlier[0].shape[1:] != array.shape[1:]:
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
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _arrays_of(batch: Batch, inputs: Sequence[InputSpec], where: str) -> dict[str, Array]:
    """Return the arrays of a batch: inputs and labels, by name."""
    if isinstance(batch, Mapping):
        named = {name: value for name, value in batch.items() if name == "labels" or name in {i.name for i in inputs}}
    elif hasattr(batch, "__array__"):
        named = {_only(inputs, where).name: batch}
    elif isinstance(batch, Sequence) and 1 <= len(batch) <= 2 and hasattr(batch[0], "__array__"):
        named = dict(zip((_only(inputs, where).name, "labels"), batch, strict=False))
    else:
        raise DataError(
            "the form of a batch is not known",
            where=where,
            why=f"it is a {type(batch).__name__}",
            hint="give arrays by input name, an array for the only input, or a pair of it and labels",
        )
    try:
        arrays = {name: np.asarray(value) for name, value in named.items()}
    except Exception as error:  # tensors on a graphics card, or with a gradient, cannot become arrays
        raise DataError(
            "a batch cannot be read", where=where, why=first_line(error), hint="give it as arrays of numpy"
        ) from error
    arrays = _samples_first(arrays, inputs, where)
    _check_lengths(arrays, inputs, where)
    return arrays


def _check_lengths(arrays: Mapping[str, Array], inputs: Sequence[InputSpec], where: str, least: int = 0) -> int:
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


def _only(inputs: Sequence[InputSpec], what: str) -> InputSpec:
    if len(inputs) != 1:
        raise DataError(
            f"{what} holds one input, the model has {len(inputs)}",
            why=f"inputs are {', '.join(i.name for i in inputs)}",
            hint="save a .npz with an array per input name",
        )
    return inputs[0]


def _from_arrays(
    arrays: dict[str, Array], inputs: Sequence[InputSpec], how: Preprocess | None, name: str, where: str = "data"
) -> Data:
    labels = arrays.pop("labels", None) if "labels" not in {spec.name for spec in inputs} else None
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
    n = _check_lengths(arrays, inputs, where, 1)
    if labels is not None:
        labels = np.asarray(labels)
        labels = labels[:, 0] if labels.shape == (n, 1) else labels  # as Keras writes them
        if labels.shape != (n,) or labels.dtype.kind not in "iu":
            raise DataError(
                "the labels don't fit",
                where=where,
                why=f"labels are {labels.dtype}{list(labels.shape)}, there are {n} samples",
                hint="give one integer class number per sample",
            )
        if labels.min() < 0:
            raise DataError(
                "a label is negative",
                where=where,
                why=f"the label of sample {int(labels.argmin())} is {labels.min()}",
                hint="class numbers start at 0",
            )
        labels = labels.astype(np.int64)
    for spec in inputs:
        _check_array(arrays[spec.name], spec, how, where)
    unused = {key: bool(array.size == n and array.dtype.kind in "iu") for key, array in others.items()}
    data = Data(arrays, labels, how, tuple(inputs), name, unused=unused)
    _check_shapes(data, where)
    return data


def _check_array(array: Array, spec: InputSpec, how: Preprocess | None, where: str) -> None:
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


def _from_folder(folder: Path, inputs: Sequence[InputSpec], how: Preprocess | None, *, read: bool = True) -> Data:
    """Return the images of a folder; `read` has every file read once, so that damaged ones are known at once."""
    spec = _only(inputs, "a folder of images")
    if how is None:
        raise DataError(
            "images need a preprocessing",
            where=str(folder),
            why="nothing says how large they should be, nor how their values are scaled",
            hint=f"give --preprocess: {', '.join(PRESETS)}, or a TOML file",
        )
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [images_in(folder / name) for name in classes]
    numbers = [number for number, paths in enumerate(found) for _ in paths]
    files = [path for paths in found for path in paths]
    if not files:
        classes, files, numbers = [], images_in(folder), []
    bad = unreadable(files, how) if read else []
    kept = [i for i, file in enumerate(files) if file not in bad]
    files, numbers = [files[i] for i in kept], [numbers[i] for i in kept if numbers]
    if not files:
        raise DataError(
            "the folder holds no images",
            where=str(folder),
            why="neither in it nor in its sub-folders is a file of a known type",
            hint=f"known are {', '.join(sorted(IMAGE_SUFFIXES))}",
        )
    labels = np.array(numbers) if numbers else None
    data = Data(
        {spec.name: files}, labels, how, (spec,), folder.name, tuple(classes), skipped=tuple(p.name for p in bad)
    )
    _check_shapes(data, str(folder))
    return data

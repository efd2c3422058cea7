"""Load weights that are stored beside a model file, and from no other folder; set large weights apart from the proto."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
from onnx import external_data_helper

from onnxprune.errors import ModelError, first_line
from onnxprune.graph import initializers
from onnxprune.graph.shapes import copy_fields
from onnxprune.runtime.weight_files import MAPPED_FROM, in_file, map_array

Array = np.ndarray[Any, Any]


def load_external_data(
    proto: onnx.ModelProto, file: Path, require: Callable[[float], None]
) -> tuple[list[Path], dict[str, Array]]:
    """Load external data into a model; return the data files, links resolved, and the initializers that are mapped instead.

    The values of the latter are in neither the model nor in memory; `set_apart` takes them.

    Args:
        proto: the model, changed in place.
        file: its file.
        require: called with the bytes of all files before anything is loaded; may raise.

    Raises:
        ModelError: data are missing, truncated, or outside the folder of the model; see `_find`.
    """
    tensors = [t for t in external_data_helper._get_all_tensors(proto) if external_data_helper.uses_external_data(t)]
    found = [_located(tensor, file) for tensor in tensors]
    files = dict.fromkeys(data for data, _, _ in found)
    require(sum(path.stat().st_size for path in (file, *files)))
    mapped: dict[str, Array] = {}
    names = _single_names(proto.graph)
    for tensor, (data, start, length) in zip(tensors, found, strict=True):
        dtype = _dtype_of(tensor, length) if tensor.name in names and length >= MAPPED_FROM else None
        try:
            if dtype is not None and start % dtype.itemsize == 0:
                mapped[tensor.name] = map_array(data, dtype, tensor.dims, start)
            else:
                with data.open("rb") as stream:
                    stream.seek(start)
                    tensor.raw_data = stream.read(length)
        except Exception as error:
            raise ModelError(
                "external data cannot be read",
                where=f"{file}, tensor {tensor.name}",
                why=first_line(error),
                hint="copy the data file again",
            ) from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return list(files), mapped


def _located(tensor: onnx.TensorProto, file: Path) -> tuple[Path, int, int]:
    """Return file, offset and bytes of the values of a tensor."""
    where = f"{file}, tensor {tensor.name}"
    try:
        info = external_data_helper.ExternalDataInfo(tensor)
        if min(info.offset or 0, info.length or 0) < 0:
            raise ValueError(f"offset {info.offset} and length {info.length}")
    except ValueError as error:
        raise ModelError(
            "the place of external data is damaged", where=where, why=first_line(error), hint="export the model again"
        ) from error
    data = _find(info.location, file, where)
    start = info.offset or 0
    available = data.stat().st_size
    length = available - start if info.length is None else info.length
    if available < start + max(length, 0):
        raise ModelError(
            "external data are truncated",
            where=where,
            why=f"{info.location} has {available:,} bytes, {start + max(length, 0):,} are needed",
            hint="copy the data file again",
        )
    return data, start, length


def _single_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the initializers, but of those in bodies as well: a name does not tell the two apart."""
    first, *inner = initializers.graphs_of(graph)
    uses = Counter(tensor.name for part in (first, *inner) for tensor in part.initializer)
    return {tensor.name for tensor in first.initializer if uses[tensor.name] == 1}


def _dtype_of(tensor: onnx.TensorProto, size: int) -> np.dtype[Any] | None:
    """Return the type of a tensor that is set apart; None for one whose `size` bytes are not its elements, or that stays in the proto."""
    if not initializers.is_shared(tensor.data_type, tensor.dims):
        return None
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return dtype if math.prod(tensor.dims) * dtype.itemsize == size else None


def set_apart(
    proto: onnx.ModelProto, mapped: Mapping[str, Array], size: float
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a model without its larger initializers, and these by name; those that are defaults of inputs stay.

    Args:
        proto: the model.
        mapped: values of initializers that it lacks.
        size: bytes of the model; weights of a large one go to files.
    """
    result = onnx.ModelProto()
    copy_fields(proto, result, ("graph",))
    copy_fields(proto.graph, result.graph, ("initializer",))
    listed, names = {value.name for value in proto.graph.input}, _single_names(proto.graph)
    apart: dict[str, Array] = {}
    for tensor in proto.graph.initializer:
        name, values = tensor.name, mapped.get(tensor.name)
        if values is None and name in names and name not in listed and tensor.HasField("raw_data"):
            content = tensor.raw_data
            dtype = _dtype_of(tensor, len(content))
            values = None if dtype is None else in_file(np.frombuffer(content, dtype).reshape(tensor.dims), size)
        if values is None or name in listed:
            result.graph.initializer.append(tensor)
            if values is not None:
                result.graph.initializer[-1].raw_data = values.tobytes()
        else:
            kept = result.graph.initializer.add()
            copy_fields(tensor, kept, ("raw_data",))
            kept.MergeFrom(initializers.placeholder(name, tensor.data_type, ()))
            apart[name] = values
    return result, apart


def data_files(file: Path) -> list[Path]:
    """Return the data files that a model names, links resolved; none where it cannot be read, which `io.load` reports."""
    try:
        proto = onnx.load_model(file, load_external_data=False)
        tensors = list(external_data_helper._get_all_tensors(proto))
    except Exception:  # protobuf raises many types
        return []
    found: dict[Path, None] = {}
    for tensor in tensors:
        if external_data_helper.uses_external_data(tensor):
            with contextlib.suppress(ModelError):
                found[_find(external_data_helper.ExternalDataInfo(tensor).location, file, str(file))] = None
    return list(found)


def _find(location: str, file: Path, where: str) -> Path:
    """Return the data file of a location that a model names, links resolved.

    The location is relative to the folder of the model as it is named, or else as it is after links are resolved. In a
    cache of a model hub both the model and its data are links into one folder of blobs. The file must lie in one of
    these two folders after links are resolved, as onnxruntime demands: a model must not read what its folder
    does not hold.
    """
    refused = partial(ModelError, where=where)
    folders = list(dict.fromkeys((file.absolute().parent, file.resolve().parent)))
    inside = [folder.resolve() for folder in folders]
    relative = PurePosixPath(location)
    outside = not location or "\0" in location or relative.is_absolute() or ".." in relative.parts
    found = [] if outside else [data for folder in folders if (data := (folder / location).resolve()).is_file()]
    kept = [data for data in found if any(folder in data.parents for folder in inside)]
    if kept:
        return kept[0]
    if outside or found:
        raise refused(
            "external data outside the model's folder",
            why=f"the tensor points to {location!r}" + (f", a link to {found[0]}" if found else ""),
            hint="keep the weights beside the .onnx file, and save the model again with a relative location",
        )
    raise refused(
        "external data are missing",
        why=f"no file {location!r} beside the model",
        hint="copy the data file together with the .onnx file",
    )

"""Load weights that are stored beside a model file, and from no other folder."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path, PurePosixPath

import onnx
from onnx import external_data_helper

from onnxprune.errors import ModelError, first_line


def load_external_data(proto: onnx.ModelProto, file: Path) -> list[Path]:
    """Load external data into a model; return the data files, links resolved.

    Raises:
        ModelError: data are missing, truncated, or outside the folder of the model; see `_find`.
    """
    files: dict[Path, None] = {}
    for tensor in external_data_helper._get_all_tensors(proto):
        if not external_data_helper.uses_external_data(tensor):
            continue
        info = external_data_helper.ExternalDataInfo(tensor)
        where = f"{file}, tensor {tensor.name}"
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
        files[data] = None
        try:
            with data.open("rb") as stream:
                stream.seek(start)
                tensor.raw_data = stream.read(length)
        except Exception as error:
            raise ModelError(
                "external data cannot be read", where=where, why=first_line(error), hint="copy the data file again"
            ) from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return list(files)


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
    outside = not location or relative.is_absolute() or ".." in relative.parts
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

"""Write a model without a second copy of its weights: into one file, or with the weights in a file beside it.

A model of more than 2 GB has its weights in a data file of its folder, which is named after the model and after its own
content: `<model>.<12 digits of the SHA-256>.data`. So a new model never touches the data of the old one, which loads until
the new one takes its place.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx

from onnxprune.fileio import Transaction, same_file, through_links
from onnxprune.graph.shapes import copy_fields

Weights = Mapping[str, np.ndarray[Any, Any]]
"""Values of initializers that a proto holds placeholders for; see `onnxprune.graph.model.Model.stub`."""

CHUNK = 2**24
"""Bytes that are written at once."""
APART_FROM = 1024
"""Bytes from which a tensor goes to the data file."""
LARGE, ALIGNMENT, LARGE_ALIGNMENT = 2**20, 2**12, 2**16
"""A tensor begins at a multiple of 4 KiB, one of 1 MiB or more at a multiple of 64 KiB: both can be mapped into memory."""
SMALL_FILE = 2**26
"""Bytes of the largest file that may be a model with its weights apart."""
NAME_BYTES = 200
"""Longest name of a model, in bytes, that its data file is named after."""


def write(files: Transaction, target: Path, proto: onnx.ModelProto, weights: Weights) -> int:
    """Write a model into one file; return its bytes."""
    with files.file(target).open("wb") as stream:
        for part in serialized(proto, weights):
            stream.write(part)
        return stream.tell()


def write_apart(files: Transaction, target: Path, proto: onnx.ModelProto, weights: Weights) -> int:
    """Write a model with its weights in a data file, to which `proto` refers after that; return the bytes of both."""
    target = through_links(target)
    data = files.file(target)
    with data.open("wb") as stream:
        placed, digest = _write_tensors(stream, proto, weights)
        size = stream.tell()
    name = f"{_prefix(target)}.{digest[:12]}.data"
    for tensor, offset, length in placed:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
    files.aim(data, name)
    return size + files.file(target).write_bytes(proto.SerializeToString())


def outdate_data(files: Transaction, target: Path, proto: onnx.ModelProto, inputs: Iterable[Path]) -> None:
    """Delete data files that only the model now at `target` refers to, once another one has taken its place.

    Such a file has a name that `write_apart` gives, is named in the old model, in no other small file of its folder, and is
    no input.
    """
    target = through_links(target)
    pattern = re.compile(re.escape(_prefix(target)) + r"\.[0-9a-f]{12}\.data")
    kept = {entry.value for tensor in proto.graph.initializer for entry in tensor.external_data}
    with contextlib.suppress(OSError):
        entries = [target.with_name(entry.name) for entry in os.scandir(target.parent) if entry.is_file()]
        for data in (file for file in entries if pattern.fullmatch(file.name) and file.name not in kept):
            others = [file for file in entries if file not in (data, target)]
            is_input = any(same_file(data, file) for file in inputs)
            if not is_input and _names(target, data.name) and not any(_names(file, data.name) for file in others):
                files.afterwards(functools.partial(_delete, data, target))


def _delete(data: Path, target: Path) -> None:
    """Delete a data file, unless another run has put a model in place that refers to it."""
    if not _names(target, data.name):
        data.unlink()


def serialized(proto: onnx.ModelProto, weights: Weights) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a model, those of `SerializeToString` with the weights in place of their placeholders."""
    before, after = _around(proto, "graph")
    first, last = _around(proto.graph, "initializer")
    tensors = [_head(tensor, weights) for tensor in proto.graph.initializer]
    sizes = [len(head) + (0 if values is None else values.nbytes) for head, values in tensors]
    heads = [_start(proto.graph, "initializer", size) for size in sizes]
    yield before + _start(proto, "graph", len(first) + sum(map(len, heads)) + sum(sizes) + len(last)) + first
    for start, (head, values) in zip(heads, tensors, strict=True):
        yield start + head
        if values is not None:
            yield from _chunks(values)
    yield last + after


def _head(tensor: onnx.TensorProto, weights: Weights) -> tuple[bytes, np.ndarray[Any, Any] | None]:
    """Return the bytes of a tensor, up to its values where these are in `weights`, and those values."""
    if tensor.name not in weights:
        return tensor.SerializeToString(), None
    values = weights[tensor.name]
    plain = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return plain.SerializeToString() + _start(tensor, "raw_data", values.nbytes), values


def _around(message: Any, name: str) -> tuple[bytes, bytes]:
    """Return the bytes of the fields of a message before and after a field."""
    numbers = {field.name: field.number for field in message.DESCRIPTOR.fields}
    outside: list[bytes] = []
    for is_left_out in (numbers[name].__le__, numbers[name].__ge__):
        part = type(message)()
        copy_fields(message, part, {other for other, number in numbers.items() if is_left_out(number)})
        outside.append(part.SerializeToString())
    return outside[0], outside[1]


def _start(message: Any, name: str, size: int) -> bytes:
    """Return the tag and the length of a field of bytes."""
    number: int = message.DESCRIPTOR.fields_by_name[name].number
    return _varint(number << 3 | 2) + _varint(size)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes((*found, number))


def _write_tensors(
    stream: BinaryIO, proto: onnx.ModelProto, weights: Weights
) -> tuple[list[tuple[onnx.TensorProto, int, int]], str]:
    """Write the larger tensors; return each with its offset and length, and the digest of the content.

    Values that the proto itself holds are taken out of it.
    """
    digest, placed, end = hashlib.sha256(), [], 0
    for tensor in proto.graph.initializer:
        values = weights.get(tensor.name)
        if values is None and len(tensor.raw_data) < APART_FROM:
            continue
        if values is None:
            values = np.frombuffer(tensor.raw_data, np.uint8)
        alignment = LARGE_ALIGNMENT if values.nbytes >= LARGE else ALIGNMENT
        offset = -(-end // alignment) * alignment
        for part in itertools.chain([memoryview(bytes(offset - end))], _chunks(values)):
            digest.update(part)
            stream.write(part)
        end = offset + values.nbytes
        placed.append((tensor, offset, values.nbytes))
        tensor.ClearField("raw_data")
    return placed, digest.hexdigest()


def _chunks(values: np.ndarray[Any, Any]) -> Iterator[memoryview]:
    """Yield the bytes of an array as ONNX stores them."""
    flat = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    for start in range(0, flat.size, CHUNK):
        yield flat[start : start + CHUNK].data


def _prefix(target: Path) -> str:
    """Return what the name of a data file begins with: that of its model, where a proto can hold it and it is not too long."""
    try:
        return target.name if len(target.name.encode()) <= NAME_BYTES else "model.onnx"
    except UnicodeEncodeError:  # bytes that are no UTF-8
        return "model.onnx"


def _names(file: Path, name: str) -> bool:
    """Tell whether a file of the size of a model without its weights holds a name."""
    if not 0 < file.stat().st_size <= SMALL_FILE:
        return False
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(name.encode()) >= 0

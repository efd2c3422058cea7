"""Files of numpy: an array is read when it is needed, and after its declared size was compared with the file and the memory."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxprune.reading import open_regular
from onnxprune.runtime.limits import free_memory

Array = np.ndarray[Any, Any]
SUFFIX = ".npy"


def read_npy(file: Path) -> Array:
    """Return the array of a .npy file.

    Raises:
        OSError, ValueError: the file cannot be read, is shorter than its header says, or does not fit into memory.
    """
    with open_regular(file) as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        return _read(stream, size, file.name)


def read_npz(file: Path, wanted: Collection[str]) -> dict[str, Array]:
    """Return the arrays of a .npz file by name; of those that are not in `wanted`, dtype and shape alone.

    An array that is not wanted is not decompressed: in its place stands a single zero, repeated without taking memory. One that cannot be
    read is left out.

    Raises:
        OSError, ValueError, zipfile.BadZipFile: the file, or a wanted array, cannot be read or does not fit into memory.
    """
    found: dict[str, Array] = {}
    with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(SUFFIX)
            try:
                with archive.open(member) as content:
                    if name in wanted:
                        found[name] = _read(content, member.file_size, name)
                    else:
                        dtype, shape = _header(content)
                        found[name] = np.broadcast_to(np.zeros((), dtype), shape)
            except Exception as error:  # a damaged file can make zipfile and zlib raise nearly anything
                if name in wanted:
                    raise ValueError(f"{name}: {error}") from error
    return found


def _header(stream: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return dtype and shape of the array that begins here."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return dtype, shape


def _read(stream: IO[bytes], size: int, name: str) -> Array:
    """Return the array that begins here, of a file of `size` bytes; numpy would take memory for any declared shape."""
    dtype, shape = _header(stream)
    declared, free = math.prod(shape) * dtype.itemsize, free_memory()
    if any(axis < 0 for axis in shape) or (declared > size - stream.tell() and not dtype.hasobject):
        raise ValueError(f"{name} has {size:,} bytes, and its header {dtype}{list(shape)} needs {declared:,}")
    if declared > free:
        raise ValueError(f"{name} takes {declared / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB of memory are free")
    stream.seek(0)
    array: Array = np.lib.format.read_array(stream, allow_pickle=False)
    return array

"""Large weights lie in files that are mapped into memory: the system takes their pages back where it needs them.

onnxruntime maps such files as well, and then copies nothing: values that are handed to it in memory it copies.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import itertools
import math
import mmap
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import leftovers

Array = np.ndarray[Any, Any]
LARGE = 32e6
"""Bytes of a model from which the weights that a run makes go to files."""
MAPPED_FROM = 2**20
"""Bytes of an array from which it is mapped."""

M_MMAP_THRESHOLD = -3
"""Parameter of mallopt(3)."""
BLOCK = 2**22
"""Bytes of a block that glibc returns at once, while a model is large."""

_numbers = itertools.count()
_maps: weakref.WeakSet[FileMap] = weakref.WeakSet()


class FileMap(mmap.mmap):
    """A part of a file in memory, read-only; `path` is the file, `stamp` its state, `start` the offset of the first byte."""

    path: str
    start: int
    stamp: tuple[int, int, int]


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def map_array(path: str | os.PathLike[str], dtype: np.dtype[Any], shape: Sequence[int], offset: int = 0) -> Array:
    """Return a read-only array of values that lie in a file from `offset` on, in bytes."""
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with open(path, "rb") as stream:
        size = math.prod(shape) * dtype.itemsize
        mapped = FileMap(stream.fileno(), offset - start + size, access=mmap.ACCESS_READ, offset=start)
        mapped.stamp = _stamp(os.fstat(stream.fileno()))
    mapped.path, mapped.start = os.path.abspath(path), start
    _maps.add(mapped)
    return np.ndarray(tuple(shape), dtype, mapped, offset - start)


def place_of(array: Array) -> tuple[str, int] | None:
    """Return the file that holds the values of an array, and their offset; None for an array in memory, or a file that changed."""
    mapped = array.base
    if not isinstance(mapped, FileMap) or not array.flags.c_contiguous:
        return None
    try:
        if _stamp(os.stat(mapped.path)) != mapped.stamp or not mapped.path.isprintable():
            return None
    except OSError:
        return None
    first = np.frombuffer(mapped, np.uint8, 1).ctypes.data
    return mapped.path, mapped.start + array.ctypes.data - first


def in_file(array: Array, size: float) -> Array:
    """Return a weight of a model of `size` bytes; where both are large, in a temporary file that is gone with the array.

    A file that cannot be written leaves the weight in memory.
    """
    if size < LARGE or array.nbytes < MAPPED_FROM or array.dtype.hasobject:
        return array
    path = None
    try:
        path = _folder() / str(next(_numbers))
        with open(path, "wb") as stream:
            np.ascontiguousarray(array).tofile(stream)
        mapped = map_array(path, array.dtype, array.shape)
    except OSError:  # the disk is full
        if path is not None:
            _remove(path)
        return array
    weakref.finalize(mapped.base, _remove, path)
    return mapped


def _folder() -> Path:
    """Return the folder of the files; in a worker, that of a run goes with the run."""
    if not _new_folder().is_dir():
        _new_folder.cache_clear()
    return _new_folder()


@functools.cache
def _new_folder() -> Path:
    scope = contextlib.ExitStack()
    atexit.register(scope.close)
    return scope.enter_context(leftovers.temporary_folder())


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def release(size: float) -> None:
    """Give memory back to the system after a step of a run on a model of `size` bytes, where that is large.

    Objects that refer to each other are collected, the C library returns what is free, and pages of mapped files leave the
    process: they are read again where they are needed.
    """
    if size < LARGE:
        return
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        _return_blocks()
        ctypes.CDLL(None).malloc_trim(0)
    if hasattr(mmap, "MADV_DONTNEED"):
        for mapped in list(_maps):
            with contextlib.suppress(OSError, ValueError):
                mapped.madvise(mmap.MADV_DONTNEED)


@functools.cache
def _return_blocks() -> None:
    """Let glibc return every large block as soon as it is free: while a session opens, half of its memory would be such blocks."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, BLOCK)

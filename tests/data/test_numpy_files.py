"""Arrays of numpy files: those that are needed, and no more than the file holds."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.data import numpy_files
from onnxprune.data.arrays import read_arrays
from onnxprune.data.input_spec import InputSpec
from onnxprune.data.numpy_files import read_npy, read_npz
from onnxprune.errors import DataError

SPECS = [InputSpec("x", np.dtype(np.float32), (None, 3))]


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """Return the beginning of a .npy file that declares a shape."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def test_arrays_that_nothing_asks_for_are_not_decompressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.ones((4, 3), np.float32), extra=np.zeros((4, 1_000_000)))
    read: list[str] = []
    plain = numpy_files._read
    monkeypatch.setattr(numpy_files, "_read", lambda *args: read.append(args[2]) or plain(*args))
    found = read_npz(path, {"x", "labels"})
    assert read == ["x"]
    assert found["extra"].shape == (4, 1_000_000)
    assert found["extra"].dtype == np.float64
    assert found["extra"].base is not None
    np.testing.assert_array_equal(found["x"], np.ones((4, 3)))


def test_an_array_that_nothing_asks_for_may_be_damaged(tmp_path: Path) -> None:
    ones = header((2, 3)) + np.ones((2, 3), np.float32).tobytes()
    path = zipped(tmp_path / "d.npz", x=ones, huge=header((2**62, 2**62)), odd=b"no array", pickled=header((1,), "|O"))
    assert {"x"} <= set(read_npz(path, {"x"})) <= {"x", "pickled"}


@pytest.mark.parametrize("shape", [(2**62, 3), (2**31, 2**31, 3), (5, 3), (-1, 3)])
def test_shape_that_the_file_does_not_hold(shape: tuple[int, ...], tmp_path: Path) -> None:
    content = header(shape) + np.ones((4, 3), np.float32).tobytes()
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its header"):
        read_npy(path)
    for file in (path, zipped(tmp_path / "d.npz", x=content)):
        with pytest.raises(DataError, match="cannot be read") as caught:
            read_arrays(file, SPECS)
        assert "its header" in caught.value.why
        assert caught.value.where == str(file)


def test_array_that_memory_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((1000, 3), np.float32))
    monkeypatch.setattr(numpy_files, "free_memory", lambda: 10_000)
    with pytest.raises(DataError) as caught:
        read_arrays(tmp_path / "d.npz", SPECS)
    assert "x takes 0 MB, and 0 MB of memory are free" in caught.value.why


def test_pipes_are_refused(tmp_path: Path) -> None:
    for name in ("d.npz", "d.npy"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError) as caught:
            read_arrays(tmp_path / name, SPECS)
        assert "it is a pipe" in caught.value.why


@pytest.mark.parametrize("value", [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.float32(3), np.zeros((0, 3))])
def test_other_arrays_are_read_as_numpy_reads_them(value: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=value)
    np.save(tmp_path / "d.npy", value)
    for found in (read_npz(tmp_path / "d.npz", {"x"})["x"], read_npy(tmp_path / "d.npy")):
        np.testing.assert_array_equal(found, value)
        assert found.dtype == value.dtype

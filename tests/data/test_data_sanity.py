"""Samples that say little are named; honest ones are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxprune.data.dataset import Data, load_data
from onnxprune.data.input_spec import InputSpec
from onnxprune.data.preprocess import Preprocess
from onnxprune.data.sanity import doubts, look
from onnxprune.errors import DataError

SPEC = (InputSpec("x", np.dtype(np.float32), (None, 3, 6, 6)),)
RNG = np.random.default_rng(0)


def data_of(x: np.ndarray, **more: np.ndarray) -> Data:
    return load_data({"x": x, **more}, SPEC)


def names(data: Data, calibration: Data | None = None) -> list[str]:
    return [check.name for check in doubts(data, look(data), None if calibration is None else look(calibration))]


def images(n: int) -> np.ndarray:
    return RNG.normal(size=(n, 3, 6, 6)).astype(np.float32)


@pytest.mark.parametrize("seed", range(20))
def test_honest_samples_raise_no_doubt(seed: int) -> None:
    x = np.random.default_rng(100 + seed).normal(size=(50, 3, 6, 6)).astype(np.float32)
    x[7] = x[3]  # one of fifty twice
    x[9] = 0  # and one black
    assert names(data_of(x), data_of(images(20))) == []


def test_constant_and_repeated_samples() -> None:
    assert names(data_of(np.zeros((20, 3, 6, 6), np.float32))) == ["constant samples"]
    assert names(data_of(np.repeat(images(5), 4, axis=0))) == ["repeated samples"]


@pytest.mark.parametrize("shared", [1, 30])
def test_samples_that_repair_has_seen(shared: int) -> None:
    first = images(30)
    second = np.concatenate([images(40 - shared), first[:shared]])
    (found,) = doubts(data_of(second), look(data_of(second)), look(data_of(first)))
    assert (found.name, found.value, found.status) == ("samples of --eval in --data", f"{shared} of 40", "UNDECIDED")


def test_arrays_that_no_input_asks_for() -> None:
    (found,) = doubts(data := data_of(images(20), y=np.arange(20) % 4), look(data))
    assert (found.name, found.status) == ("labels", "UNDECIDED")
    assert "is named y" in found.detail
    (found,) = doubts(data := data_of(images(20), labels=np.arange(20) % 4, ids=np.arange(20)), look(data))
    assert (found.name, found.value, found.status) == ("arrays without an input", "ids", "INFO")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(12):
        place = tmp_path / f"class{number % 3}"
        place.mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(place / f"{number}.png")
    return tmp_path


def test_bad_files_are_refused_or_counted(folder: Path) -> None:
    bad = [folder / "class0" / "3.png", folder / "class2" / "5.png"]
    for path in bad:
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="2 of 12 images") as error:
        load_data(folder, SPEC, Preprocess(scale=1 / 255))
    assert all(path.name in error.value.why for path in bad)
    assert "--skip-bad" in error.value.hint
    data = load_data(folder, SPEC, Preprocess(scale=1 / 255, skip_bad=True))
    assert len(data) == 10
    assert data.labels is not None
    assert np.bincount(data.labels).tolist() == [3, 4, 3]
    (found,) = doubts(data, look(data))
    assert (found.name, found.value, found.status) == ("files left out", "2", "INFO")


def test_nothing_is_left_when_all_files_are_bad(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="12 of 12"):
        load_data(folder, SPEC, Preprocess(skip_bad=True))


@pytest.mark.parametrize("exif", [True, False])
def test_orientation_of_a_photograph(exif: bool, tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    tags = image.getexif()
    tags[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "a.png", exif=tags)
    (found,) = load_data(tmp_path, SPEC, Preprocess(exif=exif)).samples(0, 1)["x"]
    wanted = np.rot90(pixels, -1) if exif else pixels
    np.testing.assert_array_equal(found, np.moveaxis(wanted, 2, 0))


@pytest.mark.parametrize("mode", ["I;16", "P", "CMYK", "LA", "RGBA", "1"])
def test_kinds_of_pictures(mode: str, tmp_path: Path) -> None:
    gray = np.linspace(0, 255, 36).round().astype(np.uint8).reshape(6, 6)
    gray = np.where(gray > 127, 255, 0).astype(np.uint8) if mode == "1" else gray
    name = "a.tif" if mode == "CMYK" else "a.png"
    if mode == "I;16":
        Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / name)
    else:
        Image.fromarray(gray).convert("RGB" if mode in ("CMYK", "RGBA") else "L").convert(mode).save(tmp_path / name)
    found = load_data(tmp_path, SPEC, Preprocess()).samples(0, 1)["x"]
    assert np.abs(found - gray).max() <= (3 if mode == "P" else 1)

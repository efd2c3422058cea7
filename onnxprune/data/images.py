"""Image files as arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.data.geometry import Geometry, geometry
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError, first_line
from onnxprune.paths import IMAGE_SUFFIXES
from onnxprune.reading import open_regular

if TYPE_CHECKING:
    from PIL import Image

Array = np.ndarray[Any, Any]
TOLD = 3
"""Files that an error names."""
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read, whatever the suffix says; Pillow starts another program for some others."""


def images_in(folder: Path, *, deep: bool = False, but: Path | None = None) -> list[Path]:
    """Return the image files of a folder, sorted; `deep`: of its sub-folders as well, except for the folder `but`."""
    if deep:
        found: list[Path] = []
        apart = None if but is None else but.resolve()
        for root, names, files in os.walk(folder):
            here = Path(root)
            names[:] = [name for name in names if not name.startswith(".") and (here / name).resolve() != apart]
            found += [here / name for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        return sorted(found)
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def unreadable(paths: Sequence[Path], how: Preprocess) -> list[Path]:
    """Read every image; return those that cannot be read.

    Raises:
        DataError: there are some and they may not be left out, or there are no others.
    """

    def wrong(path: Path) -> DataError | None:
        try:
            read_image(path, how)
        except DataError as error:
            return error
        return None

    with ThreadPoolExecutor() as pool:
        errors = list(filter(None, pool.map(wrong, paths)))
    if not errors or (how.skip_bad and len(errors) < len(paths)):
        return [Path(error.where) for error in errors]
    if len(errors) == 1:
        raise errors[0]
    told = "; ".join(f"{error.where}: {error.what}, {error.why}" for error in errors[:TOLD])
    raise DataError(
        f"{len(errors)} of {len(paths)} images cannot be used",
        why=told + (f"; and {len(errors) - TOLD} more" if len(errors) > TOLD else ""),
        hint="remove or replace them, or leave them out with --skip-bad",
    )


def stack(paths: Sequence[Path], how: Preprocess) -> Array:
    """Return images as one array.

    Raises:
        DataError: an image cannot be read, or the sizes differ.
    """
    images = [read_image(path, how) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                "the images have different sizes",
                where=str(path),
                why=f"it is {list(image.shape)}, {paths[0].name} is {list(images[0].shape)}",
                hint="give a preprocessing with resize and crop, stretch, or letterbox",
            )
    return np.stack(images)


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image; it is decoded when its pixels are read.

    Raises:
        OSError: the file is no image of a known format, or no regular file.
        ValueError: it has more pixels than Pillow takes for harmless, twice `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    from PIL import Image

    open_regular(path).close()
    try:
        opened = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{first_line(error).partition(',')[0]}: it is too large to be read") from error
    with opened:
        yield opened


def read_image(path: Path, how: Preprocess) -> Array:
    """Read, turn and resize an image, then crop or letterbox it; return uint8 in the layout of the model input."""
    from PIL import Image, ImageOps

    try:
        with open_image(path) as opened:
            upright = ImageOps.exif_transpose(opened) if how.exif else opened
            image = _of_bytes(upright).convert("L" if how.color == "L" else "RGB")
    except Exception as error:  # a damaged file can make Pillow raise nearly anything
        raise _unreadable(path, error) from error
    try:
        image = geometry(how, image.size).image(image, Image.Resampling[how.interpolation.upper()], how.pad_value)
    except DataError as error:
        raise DataError(error.what, where=str(path), why=error.why, hint=error.hint) from None
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if how.color == "BGR":
        pixels = pixels[..., ::-1]
    return pixels if how.layout == "NHWC" else np.moveaxis(pixels, 2, 0)


def geometries(paths: Sequence[Path], how: Preprocess) -> list[Geometry]:
    """Return the geometry of each image, from the head of its file.

    Raises:
        DataError: an image cannot be read, or is smaller than the crop.
    """
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda path: _geometry_of(path, how), paths))


def _geometry_of(path: Path, how: Preprocess) -> Geometry:
    from PIL import ExifTags

    try:
        with open_image(path) as opened:
            size, turned = opened.size, opened.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # a damaged file can make Pillow raise nearly anything
        raise _unreadable(path, error) from error
    try:
        return geometry(how, size, turned)
    except DataError as error:
        raise DataError(error.what, where=str(path), why=error.why, hint=error.hint) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        "an image cannot be read",
        where=str(path),
        why=first_line(error),
        hint="remove or replace it, or leave it out with --skip-bad",
    )


def _of_bytes(image: Image.Image) -> Image.Image:
    """Return an image of 16 bits per pixel with the upper eight of them; others as they are.

    Pillow would clip the values at 255. A file of 32 bits says nothing about the range of its values.
    """
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode[0] in "IF":
        raise ValueError("it has 32 bits per color")
    return image

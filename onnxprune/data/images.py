"""Image files as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError, first_line

Array = np.ndarray[Any, Any]
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


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
                hint="give a preprocessing with resize and crop",
            )
    return np.stack(images)


def read_image(path: Path, how: Preprocess) -> Array:
    """Read, resize and crop an image; return uint8 in the layout of the model input."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            if opened.mode[0] in "IF":
                raise ValueError("it has more than 8 bits per color")
            image = opened.convert("L" if how.color == "L" else "RGB")
    except Exception as error:  # a damaged file can make Pillow raise nearly anything
        raise DataError(
            "an image cannot be read", where=str(path), why=first_line(error), hint="remove or replace it"
        ) from error
    if how.resize:
        width, height = (max(how.resize, round(side * how.resize / min(image.size))) for side in image.size)
        image = image.resize((width, height), Image.Resampling[how.interpolation.upper()])
    if how.crop:
        if min(image.size) < how.crop:
            raise DataError(
                "an image is smaller than the crop",
                where=str(path),
                why=f"it is {image.width} x {image.height}, crop is {how.crop}",
                hint="set resize to no less than crop in the preprocessing",
            )
        left, top = ((side - how.crop) // 2 for side in image.size)
        image = image.crop((left, top, left + how.crop, top + how.crop))
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if how.color == "BGR":
        pixels = pixels[..., ::-1]
    return pixels if how.layout == "NHWC" else np.moveaxis(pixels, 2, 0)

"""Masks: PNG files whose pixels are class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data.geometry import Geometry
from onnxprune.data.images import geometries, open_image
from onnxprune.data.labels.names import names_near
from onnxprune.data.labels.values import Files, Labels, is_upright, read_file
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError

Array = np.ndarray[Any, Any]


def read_masks(folder: Path, files: Sequence[Path], images: Sequence[Path], how: Preprocess) -> Labels:
    """Read masks, with the names of the images, into the size of the input; pixels around a picture become 255.

    Raises:
        DataError: an image has no mask, a mask has colors or another size than its image, or the results differ in size.
    """
    numbers = Files((file.relative_to(folder).with_suffix("").as_posix() for file in files), folder).numbers(images)
    chosen = [files[number] for number in numbers if number is not None]
    with ThreadPoolExecutor() as pool:
        masks = list(pool.map(_mask, chosen, images, geometries(images, how)))
    for file, mask in zip(chosen, masks, strict=True):
        if mask.shape != masks[0].shape:
            raise DataError(
                "the masks have different sizes",
                where=str(file),
                why=f"it is {list(mask.shape)}, {chosen[0].name} is {list(masks[0].shape)}",
                hint="give a preprocessing with resize and crop, stretch, or letterbox",
            )
    return Labels(np.stack(masks), names_near(folder), "masks")


def _mask(file: Path, image: Path, place: Geometry) -> Array:
    pixels = read_file(file, lambda: _pixels(file), "PNG")
    return place.mask(pixels, upright=is_upright(place, (pixels.shape[1], pixels.shape[0]), image, file))


def _pixels(file: Path) -> Array:
    with open_image(file) as opened:
        if len(opened.getbands()) > 1:
            raise DataError(
                "a mask has colors",
                where=str(file),
                why=f"its pixels are {opened.mode}, not class numbers",
                hint="save masks with a palette, or as grey values that are class numbers",
            )
        pixels = np.asarray(opened)
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels

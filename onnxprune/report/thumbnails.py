"""Samples as small images for a page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from onnxprune.data.dataset import Data

SIDE = 96
"""Largest number of pixels of the longer side."""
LOSSLESS = 48
"""Pixels of the longer side up to which compression is lossless."""
QUALITY = 80
COLORS = (1, 3)


def thumbnail(data: Data, sample: int) -> str:
    """Return a sample as a data URI; empty where not exactly one input is an image.

    An image has the shape (colors, height, width) or (height, width, colors), with 1 or 3 colors. Bytes are shown as stored, images of a
    folder after resizing and cropping. Other numbers are scaled from the smallest (black) to the largest (white).
    """
    images = [found for spec in data.inputs if (found := _pixels(data.stored(spec.name, sample))) is not None]
    if len(images) != 1:
        return ""
    pixels = images[0]
    if data.preprocess is not None and data.preprocess.color == "BGR":
        pixels = pixels[..., ::-1]
    return _uri(pixels)


def _pixels(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """Return bytes, (height, width, colors); None where the values are no image."""
    if values.ndim != 3 or min(values.shape) < 1 or values.dtype.kind not in "fui":
        return None
    if values.shape[0] in COLORS:
        values = np.moveaxis(values, 0, 2)
    elif values.shape[2] not in COLORS:
        return None
    if min(values.shape[:2]) < 2:
        return None  # a row of numbers
    if values.dtype == np.uint8:
        return values
    low, high = float(values.min()), float(values.max())
    scaled = (values.astype(np.float64) - low) * (255 / (high - low) if high > low else 0)
    return np.asarray(scaled.round(), dtype=np.uint8)


def _uri(pixels: np.ndarray[Any, Any]) -> str:
    from PIL import Image, features

    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    image.thumbnail((SIDE, SIDE))
    small = max(image.size) <= LOSSLESS or not features.check("webp")
    kind, how = ("PNG", {"optimize": True}) if small else ("WEBP", {"quality": QUALITY})
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"

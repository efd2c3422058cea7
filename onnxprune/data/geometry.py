"""Geometry of preprocessing: where a stored pixel of an image lies in the input of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError
from onnxprune.types import BoolArray, FloatArray

if TYPE_CHECKING:
    from PIL import Image

Array = np.ndarray[Any, Any]
Size = tuple[int, int]
LEAST_AREA = 0.1
"""Share of its area that a box keeps at least. Less of an object cannot be recognized; ultralytics trains with the same
limit (`area_thr` of `RandomPerspective.box_candidates`)."""
LEAST_SIDE = 1.0
"""Pixels of a side of a box at least."""
IGNORED = 255
"""Class number of mask pixels that are not judged: those around the picture."""
SWAPPED = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""


@dataclass(frozen=True)
class Geometry:
    """Size and place of an image in the input of the model: x of the input is x of the image * scale_x + shift_x.

    Coordinates are those of pixel edges: an image of width w reaches from 0 to w.

    Attributes:
        source: width and height of the image, turned upright.
        resized: width and height of the image after resizing.
        shift_x, shift_y: place of the left upper corner of the resized image in the input, in pixels; negative after a crop.
        width, height: size of the input, with `pad`.
        pad: pixels on each side that `Preprocess.apply` adds.
        orientation: EXIF orientation of the stored image, 1 to 8, which coordinates are turned by; 1: upright.
    """

    source: Size
    resized: Size
    shift_x: int
    shift_y: int
    width: int
    height: int
    pad: int = 0
    orientation: int = 1

    @property
    def scale_x(self) -> float:
        """Pixels of the input per pixel of the image, along the width."""
        return self.resized[0] / self.source[0]

    @property
    def scale_y(self) -> float:
        """Pixels of the input per pixel of the image, along the height."""
        return self.resized[1] / self.source[1]

    @property
    def stored(self) -> Size:
        """Width and height of the image as stored, before it is turned."""
        width, height = self.source
        return (height, width) if self.orientation in SWAPPED else (width, height)

    @property
    def picture(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the part of the input that shows the image."""
        left, top = max(self.shift_x, self.pad), max(self.shift_y, self.pad)
        right = min(self.shift_x + self.resized[0], self.width - self.pad)
        return left, top, right, min(self.shift_y + self.resized[1], self.height - self.pad)

    def points(self, xy: Array, *, upright: bool = False) -> FloatArray:
        """Return points, (…, 2), in pixels of the input; they may lie outside.

        Args:
            xy (array of float): x and y in pixels of the image.
            upright: whether it is the image turned upright; else the image as stored.
        """
        x, y = np.moveaxis(np.asarray(xy, dtype=np.float64), -1, 0)
        if not upright:
            x, y = self._turned(x, y)
        return np.stack([x * self.scale_x + self.shift_x, y * self.scale_y + self.shift_y], axis=-1)

    def boxes(self, xyxy: Array, *, upright: bool = False) -> tuple[FloatArray, BoolArray]:
        """Return boxes, (n, 4), in pixels of the input, clipped to the picture, and whether each is kept, (n,).

        A box is dropped where less than a tenth of its area in the image is left, or less than one pixel of a side.

        Args:
            xyxy (array of float): x1, y1, x2, y2 in pixels of the image.
            upright: whether it is the image turned upright; else the image as stored.

        >>> geometry(Preprocess(crop=10), (20, 10)).boxes(np.array([[2.0, 0, 9, 5], [0, 0, 5, 5]]))[0].tolist()
        [[0.0, 0.0, 4.0, 5.0], [0.0, 0.0, 0.0, 5.0]]
        """
        corners = self.points(np.asarray(xyxy, dtype=np.float64).reshape(-1, 2, 2), upright=upright)
        whole = np.array(
            [(self.shift_x, self.shift_y), (self.shift_x + self.resized[0], self.shift_y + self.resized[1])]
        )
        corners = np.clip(corners, *whole)
        low, high = corners.min(axis=1), corners.max(axis=1)
        left, top, right, bottom = self.picture
        inner = [np.clip(corner, (left, top), (right, bottom)) for corner in (low, high)]
        area, sides = np.prod(high - low, axis=1), inner[1] - inner[0]
        kept = (sides >= LEAST_SIDE).all(axis=1) & (np.prod(sides, axis=1) >= LEAST_AREA * area)
        return np.concatenate(inner, axis=1), kept

    def mask(self, pixels: Array, fill: int = IGNORED, *, upright: bool = False) -> Array:
        """Return a mask in the size of the input, uint8 or int32: nearest pixels, `fill` around them.

        Args:
            pixels (array of int): class numbers, (height, width).
            fill: class number of the pixels around the picture.
            upright: whether the mask is that of the image turned upright; else of the image as stored.
        """
        from PIL import Image

        pixels = pixels if upright else _turned_pixels(pixels, self.orientation)
        form = np.uint8 if pixels.dtype == np.uint8 else np.int32
        image = Image.fromarray(np.ascontiguousarray(pixels, dtype=form))
        result = np.asarray(self.image(image, Image.Resampling.NEAREST, fill))
        return np.pad(result, self.pad, constant_values=fill)

    def image(self, image: Image.Image, resampling: Image.Resampling, fill: int) -> Image.Image:
        """Return an upright image in the size of the input without `pad`, `fill` around it."""
        from PIL import Image

        if image.size != self.resized:
            image = image.resize(self.resized, resampling)
        size = (self.width - 2 * self.pad, self.height - 2 * self.pad)
        left, top = self.shift_x - self.pad, self.shift_y - self.pad
        if size == self.resized:
            return image
        if size[0] < self.resized[0] or size[1] < self.resized[1]:
            return image.crop((-left, -top, size[0] - left, size[1] - top))
        canvas = Image.new(image.mode, size, (fill,) * len(image.getbands()))
        canvas.paste(image, (left, top))
        return canvas

    def _turned(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Turn coordinates of the stored image upright."""
        width, height = self.source
        if self.orientation in SWAPPED:
            x, y = y, x
        if self.orientation in (2, 3, 6, 7):
            x = width - x
        if self.orientation in (3, 4, 7, 8):
            y = height - y
        return x, y


def geometry(how: Preprocess, size: Size, orientation: int = 1) -> Geometry:
    """Return the geometry of a preprocessing: the one place that says how large images become.

    Args:
        how: the preprocessing.
        size: width and height of the image as stored.
        orientation: EXIF orientation of the stored image; other numbers than 2 … 8 count as upright.

    Raises:
        DataError: the image is smaller than the crop.

    >>> fitted = geometry(Preprocess(letterbox=64), (100, 50))
    >>> fitted.resized, fitted.shift_x, fitted.shift_y, fitted.width, fitted.height
    ((64, 32), 0, 16, 64, 64)
    """
    orientation = orientation if how.exif and orientation in range(2, 9) else 1
    source = (size[1], size[0]) if orientation in SWAPPED else (size[0], size[1])
    width, height = source
    resized = source
    if how.stretch is not None:
        resized = _width_and_height(how.stretch)
    elif how.letterbox is not None:
        room = _width_and_height(how.letterbox)
        ratio = min(room[1] / height, room[0] / width)
        resized = max(1, round(width * ratio)), max(1, round(height * ratio))
        left, top = (round((whole - side) / 2 - 0.1) for whole, side in zip(room, resized, strict=True))
        return _padded(source, resized, (left, top), room, how.pad, orientation)
    elif how.resize is not None:
        resized = (
            max(how.resize, round(width * how.resize / min(source))),
            max(how.resize, round(height * how.resize / min(source))),
        )
    if how.crop is None:
        return _padded(source, resized, (0, 0), resized, how.pad, orientation)
    if min(resized) < how.crop:
        raise DataError(
            "an image is smaller than the crop",
            why=f"it is {resized[0]} x {resized[1]}, crop is {how.crop}",
            hint="set resize to no less than crop in the preprocessing",
        )
    left, top = (-((side - how.crop) // 2) for side in resized)
    return _padded(source, resized, (left, top), (how.crop, how.crop), how.pad, orientation)


def _padded(source: Size, resized: Size, shift: Size, room: Size, pad: int, orientation: int) -> Geometry:
    x, y = (place + pad for place in shift)
    return Geometry(source, resized, x, y, room[0] + 2 * pad, room[1] + 2 * pad, pad, orientation)


def _width_and_height(sides: Any) -> Size:
    height, width = (sides, sides) if isinstance(sides, int) else sides
    return width, height


def _turned_pixels(pixels: Array, orientation: int) -> Array:
    """Turn the pixels of a stored image upright."""
    if orientation in SWAPPED:
        pixels = pixels.T
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels

"""Outlines of objects in label files, polygons or run lengths, and the masks that they become in the model's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.data.geometry import Geometry
from onnxprune.data.instances import Instances, Mask, can_encode, enclosed, encoded
from onnxprune.data.labels.values import BOX, moved
from onnxprune.errors import DataError
from onnxprune.types import Array, FloatArray, IntArray

FARTHEST = 2**17
"""Largest coordinate of a polygon, in pixels."""
POINTS = 3
"""Points of a polygon at least."""


@dataclass(frozen=True)
class RunLengths:
    """A mask as lengths of runs, without object and with it in turn, down the columns one after the other.

    Attributes:
        height, width: in pixels of the image.
        counts: the lengths; or as text, as pycocotools compresses them.
    """

    height: int
    width: int
    counts: str | Sequence[int]

    def pixels(self) -> Array:
        """Return the mask, (height, width), uint8.

        Raises:
            ValueError: the lengths do not add up to the size.

        >>> RunLengths(3, 2, "123").pixels().tolist() == RunLengths(3, 2, [1, 2, 3]).pixels().tolist()
        True
        >>> RunLengths(3, 2, [1, 2, 3]).pixels().tolist()
        [[0, 0], [1, 0], [1, 0]]
        """
        counts = _uncompressed(self.counts) if isinstance(self.counts, str) else list(self.counts)
        if min(counts, default=0) < 0 or sum(counts) != self.height * self.width:
            raise ValueError(f"its run lengths do not add up to {self.height} x {self.width}")
        values = np.arange(len(counts), dtype=np.uint8) % 2
        return np.repeat(values, counts).reshape(self.width, self.height).T


Outline = tuple[FloatArray, ...] | RunLengths
"""Polygons, (k, 2) each, or a mask; in pixels of the image."""


def _uncompressed(text: str) -> list[int]:
    """Return run lengths of a text: five bits a character, from the third on as differences from the last but one."""
    counts: list[int] = []
    value = shift = 0
    for byte in text.encode("ascii"):
        bits = byte - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        value -= (1 << shift) if bits & 16 else 0
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


def coco_outline(segmentation: Any) -> Outline | None:
    """Return the outline of an annotation of COCO; None: it has none.

    Raises:
        ValueError: it is not valid.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, Mapping):
        height, width = (int(side) for side in segmentation["size"])
        counts = segmentation["counts"]
        return RunLengths(height, width, counts if isinstance(counts, str) else [int(run) for run in counts])
    polygons = [np.array(points, dtype=np.float64) for points in segmentation]
    if any(points.ndim != 1 or len(points) % 2 or not np.isfinite(points).all() for points in polygons):
        raise ValueError("a polygon is no list of x and y in turn")
    if any((np.abs(points) > FARTHEST).any() for points in polygons):
        raise ValueError(
            f"a polygon leaves its image by far: at most {FARTHEST:,} pixels are read"
        )  # pycocotools would crash
    # less than three points enclose nothing
    return tuple(points.reshape(-1, 2) for points in polygons if len(points) >= 2 * POINTS) or None


def extent(outline: Outline) -> FloatArray:
    """Return the box of an outline, x1 y1 x2 y2; zeros for an empty mask.

    >>> extent(RunLengths(3, 2, [1, 2, 3])).tolist()
    [0.0, 1.0, 1.0, 3.0]
    """
    if isinstance(outline, RunLengths):
        y, x = np.nonzero(outline.pixels())
        return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], dtype=np.float64) if len(x) else np.zeros(BOX)
    points = np.concatenate(outline)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def instances(
    rows: FloatArray, outlines: Sequence[Outline], place: Geometry, where: str, *, upright: bool = True
) -> Instances:
    """Return boxes and masks of an image in pixels of the model's input, without objects that are dropped.

    Args:
        rows: (m, 6), boxes of labels.
        outlines: of each.
        place: of the image.
        where: the label file, for errors.
        upright: whether they are those of the image turned upright; else of the image as stored.

    Raises:
        DataError: a mask is not valid, or has another size than the image.
    """
    kept: IntArray = np.zeros(0, dtype=np.int64)
    if len(rows):
        kept = np.flatnonzero(place.boxes(rows[:, :BOX], upright=upright)[1])
    masks = tuple(_mask(outlines[number], place, where, upright) for number in kept)
    return Instances(moved(rows, place, upright=upright), masks)


def _mask(outline: Outline, place: Geometry, where: str, upright: bool) -> Mask:
    size = place.height, place.width
    if not isinstance(outline, RunLengths):
        return enclosed((place.points(points, upright=upright) for points in outline), size, place.picture)
    width, height = place.source if upright else place.stored
    if (outline.height, outline.width) != (height, width):
        raise DataError(
            "a mask has another size than its image",
            where=where,
            why=f"it is {outline.width} x {outline.height}, the image is {width} x {height}",
            hint="give the images that the labels were made for; resize them with --preprocess",
        )
    return encoded(place.mask(outline.pixels(), fill=0, upright=upright), size)


def complete(outlines: Sequence[Outline | None]) -> Sequence[Outline] | None:
    """Return outlines where all objects have one and pycocotools can encode their masks."""
    found = [one for one in outlines if one is not None]
    return found if found and len(found) == len(outlines) and can_encode() else None

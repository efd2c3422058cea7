"""Objects of a sample with their masks, which are held as run lengths: masks of whole pictures take too much memory.

A mask is a dict of pycocotools: `size`, (height, width), and `counts`, the compressed run lengths of its columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from onnxprune.types import Array, FloatArray

Mask = dict[str, Any]
Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Instances:
    """Boxes of a sample, each with a mask; numpy reads them as the array of the boxes.

    Attributes:
        rows: (m, 6), of predictions or of labels.
        masks: m masks in the size of the network's input.

    >>> two = Instances(np.eye(2, 6), ({}, {}))
    >>> np.asarray(two).shape, two[:, 1].tolist(), len(two)
    ((2, 6), [0.0, 1.0], 2)
    """

    rows: FloatArray
    masks: Sequence[Mask]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.rows, dtype=dtype) if copy else np.asarray(self.rows, dtype=dtype)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        return self.rows[key]


def hold_masks(samples: Iterable[Any]) -> bool:
    """Tell whether all samples are instances with masks."""
    return all(isinstance(one, Instances) for one in samples)


def can_encode() -> bool:
    """Tell whether pycocotools is installed, which masks need."""
    try:
        return find_spec("pycocotools") is not None
    except (ImportError, ValueError):
        return False


def encoded(pixels: Array, size: Size, top: int = 0, left: int = 0) -> Mask:
    """Return the mask of a part of a picture, which is empty elsewhere.

    Args:
        pixels: (h, w), 1 or true where the object is.
        size: height and width of the picture.
        top: first row of the part in the picture.
        left: first column.

    >>> encoded(np.ones((2, 1), dtype=bool), (3, 2), top=1)
    {'size': [3, 2], 'counts': b'123'}
    """
    from pycocotools import mask

    whole = np.zeros(size, dtype=np.uint8, order="F")
    whole[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    found: Mask = mask.encode(whole)
    return found


def enclosed(polygons: Iterable[FloatArray], size: Size, window: tuple[int, int, int, int]) -> Mask:
    """Return the mask of what polygons enclose within a window.

    Args:
        polygons: x and y of k points each, (k, 2), in pixels; edges of pixels have whole numbers.
        size: height and width of the picture.
        window: left, top, right and bottom, in pixels.
    """
    from pycocotools import mask

    height, width = size
    found: Mask = mask.merge(mask.frPyObjects([polygon.reshape(-1).tolist() for polygon in polygons], height, width))
    left, top, right, bottom = window
    if window != (0, 0, width, height):
        box = np.array([[left, top, right - left, bottom - top]], dtype=np.float64)
        found = mask.merge([found, *mask.frPyObjects(box, height, width)], intersect=True)
    return found


def areas(masks: Sequence[Mask]) -> FloatArray:
    """Return the number of pixels of each mask, (m,)."""
    from pycocotools import mask

    return np.asarray(mask.area(list(masks)), dtype=np.float64).reshape(-1)

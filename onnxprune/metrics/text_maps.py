"""Boxes of text, from maps of the probability that a pixel is text.

Source: M. Liao et al., "Real-time scene text detection with differentiable binarization" (https://arxiv.org/abs/1911.08947), and PP-OCR.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from onnxprune.data.labels.values import object_array
from onnxprune.metrics.boxes import table
from onnxprune.types import Array, FloatArray

TEXT, BOX, UNCLIP, SIDE = 0.3, 0.6, 1.5, 3
"""Probability of a pixel, lowest mean of a region, how far its box is enlarged relative to
area / perimeter, shortest side of a region in pixels of the map; values of PP-OCR."""


def text_boxes(maps: Array, size: tuple[int, int]) -> Array:
    """Return regions above a probability as boxes along the axes, enlarged; the score is the mean of the region.

    Args:
        maps: (n, h, w), probabilities.
        size: height and width of the network's input.

    Returns:
        (n,) object array of (m, 6): x1 y1 x2 y2 score class, the highest score first; the class is 0.
    """
    scale = np.tile([size[1] / maps.shape[2], size[0] / maps.shape[1]], 2)

    def of(text: Array) -> FloatArray:
        regions, number = ndimage.label(text > TEXT, structure=np.ones((3, 3), dtype=int))
        if not number:
            return np.zeros((0, 6))
        scores = np.asarray(ndimage.mean(text.astype(np.float64), regions, np.arange(1, number + 1)))
        boxes = np.array([[x.start, y.start, x.stop, y.stop] for y, x in ndimage.find_objects(regions)], dtype=float)
        sides = boxes[:, 2:] - boxes[:, :2]
        grow = (UNCLIP * sides.prod(axis=1) / (2 * sides.sum(axis=1)))[:, None] * np.array([-1, -1, 1, 1])
        boxes = np.clip((boxes + grow) * scale, 0, np.tile([size[1], size[0]], 2))
        left = np.flatnonzero((sides.min(axis=1) >= SIDE) & (scores >= BOX))
        left = left[np.argsort(-scores[left], kind="stable")]
        return table(boxes[left], scores[left], np.zeros(len(left)))

    return object_array([of(text) for text in maps])

"""Masks of detections, from the outputs of a network to run lengths, one mask at a time.

Sizes are (height, width) of the network's input, boxes (m, 4) corners x1 y1 x2 y2 in pixels of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.data.instances import Mask, encoded
from onnxprune.metrics.boxes import probabilities
from onnxprune.types import Array, FloatArray

Size = tuple[int, int]
SURE = 0.5
"""Probability from which a pixel belongs to an object."""


def of_prototypes(coefficients: Array, prototypes: Array, boxes: FloatArray, size: Size) -> tuple[Mask, ...]:
    """Return the masks of YOLOv8-seg: sums of prototypes, cropped to the box, enlarged to the input, above 0.

    Source: `process_mask` of ultralytics, and YOLACT (https://arxiv.org/abs/1904.02689), section 3.2.

    Args:
        coefficients: (m, k).
        prototypes: (k, h, w).
        boxes: of each mask.
        size: of the input.
    """
    form = np.result_type(prototypes.dtype, np.float32)
    planes, coefficients = prototypes.astype(form, copy=False), coefficients.astype(form)
    inner = planes.shape[1:]
    ratios = np.array([inner[1] / size[1], inner[0] / size[0]] * 2)
    # pixels whose number lies in low <= number < high; boxes that are not finite, which no metric counts, have none
    edges = np.clip(np.ceil(np.nan_to_num(boxes * ratios)), 0, np.array([inner[1], inner[0]] * 2)).astype(np.int64)
    rows, columns = (
        np.clip((np.arange(outer) + 0.5) * part / outer - 0.5, 0, part - 1)
        for outer, part in zip(size, inner, strict=True)
    )

    def each() -> Iterator[Mask]:
        for weights, (left, top, right, bottom) in zip(coefficients, edges, strict=True):
            with np.errstate(over="ignore", invalid="ignore"):
                values = np.tensordot(weights, planes[:, top : max(top, bottom), left : max(left, right)], axes=1)
                yield _painted(values, rows - top, columns - left, size, 0.0)

    return tuple(each())


def pasted(planes: Array, boxes: FloatArray, size: Size) -> tuple[Mask, ...]:
    """Return the masks of Mask R-CNN: probabilities (m, h, w) in the box, enlarged to it, from 0.5 on.

    Masks in the size of the input are taken as they are. Source: `paste_masks_in_image` of detectron2.
    """
    planes = probabilities(planes)
    if planes.shape[1:] == size:
        return tuple(encoded(plane >= SURE, size) for plane in planes)

    def each() -> Iterator[Mask]:
        for plane, (left, top, right, bottom) in zip(planes, boxes, strict=True):
            places = []
            for low, high, outer, part in ((top, bottom, size[0], len(plane)), (left, right, size[1], plane.shape[1])):
                side = high - low if 0 < high - low < np.inf else np.nan
                places.append((np.arange(outer) + 0.5 - low) * part / side - 0.5)
            yield _painted(plane, places[0], places[1], size, SURE - 1e-7)

    return tuple(each())


def _painted(values: Array, rows: FloatArray, columns: FloatArray, size: Size, level: float) -> Mask:
    """Return where values, enlarged bilinearly, are above a level; around them are zeros.

    Args:
        values: (h, w).
        rows: (height,), place of each row of the result among those of `values`.
        columns: (width,), place of each column.
        size: height and width of the result.
        level: 0 or above.
    """
    padded, corner = np.pad(values, 1), []
    for axis, places in enumerate((rows, columns)):
        inside = np.flatnonzero((places > -1) & (places < values.shape[axis]))  # NaN is not
        low = np.floor(places[inside]).astype(np.int64) + 1
        share = (places[inside] - low + 1).astype(values.dtype).reshape((-1, 1) if axis == 0 else (1, -1))
        first, second = padded.take(low, axis), padded.take(low + 1, axis)
        padded = first + (second - first) * share
        corner.append(int(inside[0]) if len(inside) else 0)
    return encoded(padded > level, size, *corner)

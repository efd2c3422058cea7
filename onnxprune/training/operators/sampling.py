"""Operators that read a map at positions that another input gives."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.training.operators.node import Binder, Node, Run

NAMES = {"linear": "bilinear", "cubic": "bicubic"}
"""Modes that opset 20 gave other names."""


def grid_sample(node: Node) -> Run:
    """As torch's own, which it was made for."""
    mode = node.attr("mode", "bilinear")
    mode, padding = NAMES.get(mode, mode), node.attr("padding_mode", "zeros")
    corners = bool(node.attr("align_corners", 0))
    return lambda x, grid: functional.grid_sample(x, grid, mode, padding, corners)


def roi_align(node: Node) -> Run:
    """The mean, or the largest, of points on a grid within each bin of a box; points between pixels are interpolated."""
    rows, columns = node.attr("output_height", 1), node.attr("output_width", 1)
    ratio, scale = node.attr("sampling_ratio", 0), node.attr("spatial_scale", 1.0)
    mode = node.attr("coordinate_transformation_mode", "half_pixel" if node.opset >= 16 else "output_half_pixel")
    half, largest = mode == "half_pixel", node.attr("mode", "avg") == "max"

    def run(x: Tensor, boxes: Tensor, batch: Tensor) -> Tensor:
        found = []
        for box, sample in zip(boxes.detach().tolist(), batch.tolist(), strict=True):
            x1, y1, x2, y2 = (scale * place - (0.5 if half else 0) for place in box)
            width, height = x2 - x1, y2 - y1
            if not half:
                width, height = max(width, 1.0), max(height, 1.0)
            down, across = (ratio or max(1, math.ceil(size / n)) for size, n in ((height, rows), (width, columns)))
            ys, xs = _points(y1, height, rows, down, x), _points(x1, width, columns, across, x)
            points = _at(_at(x[sample], ys, 1), xs, 2)
            bins = points.reshape(-1, rows, down, columns, across)
            found.append(bins.amax((2, 4)) if largest else bins.mean((2, 4)))
        return torch.stack(found) if found else x.new_zeros(0, x.shape[1], rows, columns)

    return run


def _points(start: float, extent: float, bins: int, each: int, like: Tensor) -> Tensor:
    """Return the positions of the points along one axis."""
    step = torch.arange(bins * each, dtype=like.dtype, device=like.device)
    return start + (step + 0.5) * (extent / (bins * each))


def _at(x: Tensor, places: Tensor, axis: int) -> Tensor:
    """Interpolate along an axis; more than a pixel outside there is nothing."""
    size = x.shape[axis]
    inside = (places >= -1) & (places <= size)
    places = places.clamp(0, size - 1)
    low = places.floor().long()
    high = (low + 1).clamp(max=size - 1)
    shape = [-1 if a == axis else 1 for a in range(x.ndim)]
    share = (places - low).reshape(shape)
    mixed = x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share
    return mixed * inside.reshape(shape)


def max_roi_pool(node: Node) -> Run:
    """The largest of each bin of a box; an empty bin is zero."""
    rows, columns = node.attr("pooled_shape")
    scale = node.attr("spatial_scale", 1.0)

    def run(x: Tensor, boxes: Tensor) -> Tensor:
        height, width = x.shape[2:]
        found = []
        for sample, *box in boxes.detach().tolist():
            x1, y1, x2, y2 = (math.floor(place * scale + 0.5) for place in box)
            downs, acrosses = _bins(y1, y2, rows, height), _bins(x1, x2, columns, width)
            zero = x.new_zeros(x.shape[1])
            found += [
                x[int(sample), :, top:bottom, left:right].amax((1, 2)) if bottom > top and right > left else zero
                for top, bottom in downs
                for left, right in acrosses
            ]
        pooled = torch.stack(found) if found else x.new_zeros(0, x.shape[1])
        return pooled.reshape(-1, rows, columns, x.shape[1]).permute(0, 3, 1, 2)

    return run


def _bins(first: int, last: int, count: int, size: int) -> list[tuple[int, int]]:
    """Return the bounds of each bin along one axis, within the map."""
    each = max(last - first + 1, 1) / count
    bounds = ((first + math.floor(i * each), first + math.ceil((i + 1) * each)) for i in range(count))
    return [(min(max(low, 0), size), min(max(high, 0), size)) for low, high in bounds]


BINDERS: dict[str, Binder] = {"GridSample": grid_sample, "MaxRoiPool": max_roi_pool, "RoiAlign": roi_align}

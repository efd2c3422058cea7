"""The `kernel` granularity: taps of a kernel are removed from all filters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.graph.linear import Conv, Linear
from onnxprune.surgery.edits.protocol import LayerEdit, Place, RefusalError, Statistics
from onnxprune.types import BoolArray, FloatArray

Taps = tuple[int, int, int]
"""The first kept tap along an axis, the step to the next, and the number of kept taps."""
ALL_TAPS = 9
"""Largest kernel, in taps, with all combinations along its axes; larger ones are cut along one axis or all alike."""
ARGUMENTS_ARE_INPUTS = 10
"""Opset from which Slice takes its bounds as inputs."""
FAR = 2**31 - 1


@dataclass(frozen=True)
class Kernel(LayerEdit):
    """A convolution without some taps of its kernel.

    Attributes:
        taps: the kept taps along each spatial axis.
    """

    kind: ClassVar[str] = "kernel"
    layer: str
    taps: tuple[Taps, ...]

    def __str__(self) -> str:
        return f"kernel of {'x'.join(str(count) for _, _, count in self.taps)} taps"

    @classmethod
    def of_layer(cls, layer: Linear, label: str, multiple: int) -> Iterator[Self]:
        """Yield runs of neighboring taps, and every second tap."""
        if not isinstance(layer, Conv) or math.prod(layer.kernel) == 1:
            return
        whole = tuple((0, 1, size) for size in layer.kernel)
        for taps in itertools.product(*map(_of_axis, layer.kernel)):
            reduced = [own != full for own, full in zip(taps, whole, strict=True)]
            alike = len(set(taps)) == 1 and all(reduced)
            if any(reduced) and (math.prod(layer.kernel) <= ALL_TAPS or sum(reduced) == 1 or alike):
                yield cls(label, taps)

    def masked(self, layer: Linear) -> FloatArray:
        """Return the matrix with the removed taps set to zero."""
        return np.asarray(np.where(self._kept(layer), layer.effective()[0], 0.0))

    def refit(self, statistics: Statistics | None) -> tuple[Self, float]:
        """Return the edit, and the error with the remaining weights refitted."""
        assert statistics is not None
        return self, self._regressed(statistics)[1]

    def best(self, statistics: Statistics) -> FloatArray:
        """Return the regression of the output on the inputs of the kept taps."""
        return self._regressed(statistics)[0]

    def _regressed(self, statistics: Statistics) -> tuple[FloatArray, float]:
        return statistics.regressed(np.flatnonzero(self._kept(statistics.layer)))

    def _kept(self, layer: Linear) -> BoolArray:
        """Return which features the kept taps read, (features,)."""
        if not isinstance(layer, Conv) or len(self.taps) != len(layer.kernel):
            raise RefusalError("the layer has no kernel of so many axes")
        keep = np.ones(1, dtype=bool)
        for (first, step, count), size in zip(self.taps, layer.kernel, strict=True):
            if min(first, step - 1, count - 1) < 0 or first + step * (count - 1) >= size:
                raise RefusalError(f"taps {first}, {first + step}, … ({count}) are not within {size}")
            axis = np.zeros(size, dtype=bool)
            axis[first : first + step * (count - 1) + 1 : step] = True
            keep = (keep[:, None] & axis).reshape(-1)
        return np.tile(keep, layer.matrix(layer.values).shape[2] // keep.size)

    def replace_layer(self, place: Place, layer: Linear) -> None:
        """Crop the kernel and the pads; where a pad becomes negative, slice the input."""
        assert isinstance(layer, Conv)
        weight = layer.values
        for axis, (first, step, count) in enumerate(self.taps):
            weight = weight[(slice(None),) * (axis + 2) + (slice(first, first + step * (count - 1) + 1, step),)]
        begins, ends = self._pads(layer, place.shape)
        node, n = layer.node, len(layer.kernel)
        if min(begins + ends) < 0:
            cut = [axis for axis in range(n) if min(begins[axis], ends[axis]) < 0]
            starts = [max(0, -begins[axis]) for axis in cut]
            stops = [ends[axis] if ends[axis] < 0 else FAR for axis in cut]
            node.inputs[0] = _sliced(place.graph, node, starts, stops, [axis + 2 for axis in cut])
        node.attrs.pop("auto_pad", None)
        node.attrs["pads"] = [max(0, pad) for pad in begins + ends]
        node.attrs["dilations"] = [
            dilation * step if count > 1 else 1
            for dilation, (_, step, count) in zip(layer.dilations, self.taps, strict=True)
        ]
        node.attrs["kernel_shape"] = list(weight.shape[2:])
        node.inputs[1] = gs.Constant(f"{node.outputs[0].name}__taps", np.ascontiguousarray(weight))

    def _pads(self, layer: Conv, shape: Sequence[int | None] | None) -> tuple[list[int], list[int]]:
        """Return the pads, begins and ends, with which each kept tap reads the same inputs; they may be negative."""
        if layer.transposed and (layer.output_shape or isinstance(layer.pads, str)):
            raise RefusalError("the padding follows from the size of the output")
        pads, n = explicit_pads(layer, shape), len(layer.kernel)
        begins, ends = [], []
        for axis, (first, step, count) in enumerate(self.taps):
            after = layer.kernel[axis] - 1 - first - step * (count - 1)
            begins.append(pads[axis] - first * layer.dilations[axis])
            ends.append(pads[axis + n] - after * layer.dilations[axis])
        for axis, (low, high) in enumerate(map(sorted, zip(begins, ends, strict=True))):
            size = None if shape is None or len(shape) != n + 2 else shape[axis + 2]
            if not layer.transposed and low < 0 < high and (size is None or size + low <= 0):
                raise RefusalError("the kept taps may read nothing but padding")
        if layer.transposed and min(begins + ends) < 0:
            raise RefusalError("taps at the edge reach further than the padding")
        return begins, ends


def _of_axis(size: int) -> list[Taps]:
    """Return the choices of kept taps along one axis, all taps first."""
    found: list[Taps] = [(0, 1, size)]
    if size > 1:
        found += [(first, 1, size - 1) for first in (0, 1)] if size <= 3 else []
        found += [((size - count) // 2, 1, count) for count in range(size - 2, 0, -2)]
    if size >= 5:
        found.append((0, 2, (size + 1) // 2))
    return list(dict.fromkeys(found))


def explicit_pads(layer: Conv, shape: Sequence[int | None] | None) -> tuple[int, ...]:
    """Return the pads of a convolution as numbers, begins and ends.

    Raises:
        RefusalError: the pads follow from an unknown size.
    """
    if not isinstance(layer.pads, str):
        return layer.pads
    if layer.transposed:
        raise RefusalError(f"the padding is {layer.pads}")
    begins, ends = [], []
    for axis, kernel in enumerate(layer.kernel):
        size = None if shape is None or len(shape) != len(layer.kernel) + 2 else shape[axis + 2]
        span, step = (kernel - 1) * layer.dilations[axis] + 1, layer.strides[axis]
        if step == 1:
            missing = span - 1
        elif size is None:
            raise RefusalError(f"the padding is {layer.pads}, which follows from a dynamic size")
        else:
            missing = max(0, (-(-size // step) - 1) * step + span - size)
        begins.append(missing // 2 if layer.pads == "SAME_UPPER" else missing - missing // 2)
        ends.append(missing - begins[-1])
    return (*begins, *ends)


def _sliced(graph: gs.Graph, node: gs.Node, starts: list[int], stops: list[int], axes: list[int]) -> gs.Variable:
    output = gs.Variable(f"{node.outputs[0].name}__cut")
    operands, attrs = [node.inputs[0]], {"starts": starts, "ends": stops, "axes": axes}
    if (graph.opset or ARGUMENTS_ARE_INPUTS) >= ARGUMENTS_ARE_INPUTS:
        operands += [
            gs.Constant(f"{output.name}__{name}", np.array(values, dtype=np.int64)) for name, values in attrs.items()
        ]
        attrs = {}
    graph.nodes.append(gs.Node("Slice", f"{output.name}__node", attrs, operands, [output]))
    return output

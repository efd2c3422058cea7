"""One layer of a chain as a linear map of its input and of its weights, with the transposes of both."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxprune.graph.linear import Conv, Linear
from onnxprune.runtime.session import ALTERNATING, open_session, run_batch
from onnxprune.types import Array

Change = tuple[Array, Array]
"""Change of a matrix, (groups, outputs, features), and of a bias, (groups, outputs)."""


class LayerMap:
    """One layer on all positions of some samples: derivatives by input and by weights, and their transposes."""

    def __init__(self, layer: Linear, x: Array, y: Array) -> None:
        self.layer, self.shape = layer, y.shape
        self.every = np.arange(layer.positions(y))
        self.fast = _Convolution.of(layer, x.shape, y.shape)
        size = math.prod(x.shape[1:])
        index = layer.rows(np.arange(1.0, size + 1).reshape(1, *x.shape[1:]), self.every[: self.every.size // len(x)])
        self.index = index.astype(np.int64)  # position of each feature of a row in its sample, from 1; 0: padding
        self.x_shape = x.shape
        self.sources: Array | None = None

    def look(self, x: Array, *, rows: bool) -> None:
        """Linearize at the current weights and an input; `rows`: for a layer that is to be fitted."""
        self.matrix = self.layer.effective()[0].astype(np.float32)
        self.input = x
        if rows:
            self.x = self._gathered(x)
            self.mean = self.x.mean(axis=1, keepdims=True)
            if not self.layer.has_bias:
                self.mean = np.zeros_like(self.mean)
            self.x -= self.mean

    def forward(self, moved: Array) -> Array:
        """Return the change of the output for a change of the input."""
        if self.fast is not None:
            return self.fast.run(moved, self.matrix)
        return self._laid(self._gathered(moved) @ np.swapaxes(self.matrix, 1, 2))

    def changed(self, change: Change) -> Array:
        """Return the change of the output for a change of the weights."""
        if self.fast is not None:
            matrix, bias = self.unshifted(change)
            shape = (-1, *(1,) * (len(self.shape) - 2))
            return self.fast.run(self.input, matrix) + bias.reshape(shape).astype(np.float32)
        matrix, bias = (part.astype(np.float32) for part in change)
        return self._laid(self.x @ np.swapaxes(matrix, 1, 2) + bias[:, None])

    def unshifted(self, change: Change) -> Change:
        """Return the change for plain rows that equals a change for rows less their mean."""
        matrix, bias = change
        return matrix, bias - np.einsum("gof,gf->go", matrix, self.mean[:, 0])

    def rows_of(self, back: Array) -> Array:
        """Return an output as rows."""
        return self.layer.outputs(back, self.every)

    def products(self, rows: Array) -> Change:
        """Return the transpose of `changed`."""
        shift = rows.sum(axis=1, dtype=np.float64) if self.layer.has_bias else np.zeros((len(rows), rows.shape[2]))
        return (np.swapaxes(rows, 1, 2) @ self.x).astype(np.float64), shift

    def backward(self, back: Array) -> Array:
        """Return the transpose of `forward`."""
        if self.fast is not None:
            return self.fast.run(back, self.matrix, backward=True)
        return self._scattered(self.rows_of(back) @ self.matrix)

    def _laid(self, rows: Array) -> Array:
        axis = self.layer.channel_axis % len(self.shape)
        rest = [size for a, size in enumerate(self.shape) if a != axis]
        return np.ascontiguousarray(np.moveaxis(rows.swapaxes(0, 1).reshape(*rest, -1), -1, axis))

    def _gathered(self, x: Array) -> Array:
        n = len(x)
        flat = np.zeros((n, 1 + x.size // n), np.float32)
        flat[:, 1:] = x.reshape(n, -1)
        _, positions, features = self.index.shape
        return np.stack([flat.take(part.ravel(), axis=1).reshape(n * positions, features) for part in self.index])

    def _scattered(self, rows: Array) -> Array:
        """Return the transpose of `_gathered`: each element is the sum over the rows that hold it."""
        groups, positions, features = self.index.shape
        n = rows.shape[1] // positions
        if self.sources is None:
            size = math.prod(self.x_shape[1:])
            flat = self.index.ravel()
            order = np.argsort(flat, kind="stable")[np.count_nonzero(flat == 0) :]
            counts = np.bincount(flat[order], minlength=size + 1)[1:]
            slot = np.arange(order.size) - np.repeat(np.cumsum(counts) - counts, counts)
            self.sources = np.zeros((max(1, counts.max()), size), dtype=np.int64)
            self.sources[slot, flat[order] - 1] = order + 1
        spread = np.zeros((n, groups * positions * features + 1), np.float32)
        spread[:, 1:].reshape(n, groups, -1)[:] = rows.reshape(groups, n, -1).swapaxes(0, 1)
        result = spread.take(self.sources[0], axis=1)
        for source in self.sources[1:]:
            result += spread.take(source, axis=1)
        return np.asarray(result.reshape(n, *self.x_shape[1:]))


class _Convolution:
    """A Conv and its transpose in onnxruntime, with the weights as an input: several times faster than by rows."""

    def __init__(self, layer: Conv, attributes: dict[str, Any], rest: list[int]) -> None:
        self.layer = layer
        self.opened = _session("Conv", attributes), _session("ConvTranspose", {**attributes, "output_padding": rest})

    @classmethod
    def of(cls, layer: Linear, x: tuple[int, ...], y: tuple[int, ...]) -> _Convolution | None:
        """Return one for a layer with these shapes of input and output; None where it is no plain Conv."""
        if not isinstance(layer, Conv) or layer.transposed or isinstance(layer.pads, str):
            return None
        kernel, strides, dilations, pads = layer.kernel, layer.strides, layer.dilations, layer.pads
        rest = []
        for a, size in enumerate(x[2:]):
            span = strides[a] * (y[2 + a] - 1) + (kernel[a] - 1) * dilations[a] + 1
            rest.append(size - span + pads[a] + pads[a + len(kernel)])
        if not all(0 <= size < stride for size, stride in zip(rest, strides, strict=True)):
            return None
        attributes = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads}
        return cls(layer, {**{k: [int(v) for v in vs] for k, vs in attributes.items()}, "group": layer.groups}, rest)

    def run(self, value: Array, matrix: Array, *, backward: bool = False) -> Array:
        """Return the Conv of a value, or its transpose."""
        feeds = {"x": value, "w": self.layer.unmatrix(matrix)}
        feeds = {name: np.ascontiguousarray(part, np.float32) for name, part in feeds.items()}
        result: Array = run_batch(self.opened[backward], feeds)[0]
        return result


def _session(op: str, attributes: dict[str, Any]) -> Any:
    rank = len(attributes["strides"]) + 2
    x, w, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * rank) for name in ("x", "w", "y"))
    graph = helper.make_graph([helper.make_node(op, ["x", "w"], ["y"], **attributes)], "layer", [x, w], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return open_session(model, ALTERNATING)

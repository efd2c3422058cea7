"""One layer of a chain as a linear map of its input and of its weights, with the transposes of both."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxprune.graph.linear import Conv, Linear
from onnxprune.runtime.session import open_session, run_batch

Array = np.ndarray[Any, Any]
Change = tuple[Array, Array]
"""Of a matrix, (groups, outputs, features), and of a bias, (groups, outputs)."""


class LayerMap:
    """One layer on all positions of some samples."""

    def __init__(self, layer: Linear, x: Array, y: Array) -> None:
        self.layer, self.shape = layer, y.shape
        self.every = np.arange(layer.positions(y))
        self.fast = _Convolution.of(layer, x.shape, y.shape)
        size = math.prod(x.shape[1:])
        index = layer.rows(np.arange(1.0, size + 1).reshape(1, *x.shape[1:]), self.every[: self.every.size // len(x)])
        self.index = index.astype(np.int64)  # where each feature of a row comes from in its sample; 0: from the padding
        self.x_shape = x.shape
        self.sources: Array | None = None

    def look(self, x: Array, *, rows: bool) -> None:
        """Take the weights as they are, and the input; as rows, too, where the layer is to be fitted."""
        self.matrix = self.layer.effective()[0].astype(np.float32)
        self.input = x
        if rows:
            self.x = self._gathered(x)
            self.mean = self.x.mean(axis=1, keepdims=True)
            if not self.layer.has_bias:
                self.mean = np.zeros_like(self.mean)
            self.x -= self.mean

    def forward(self, moved: Array) -> Array:
        """Return what the layer makes of a change of its input."""
        if self.fast is not None:
            return self.fast.forward(moved, self.matrix)
        return self._laid(self._gathered(moved) @ np.swapaxes(self.matrix, 1, 2))

    def changed(self, change: Change) -> Array:
        """Return what a change of the layer makes of its input."""
        if self.fast is not None:
            matrix, bias = self.unshifted(change)
            return self.fast.forward(self.input, matrix) + bias.reshape(-1, *(1,) * (len(self.shape) - 2)).astype(
                np.float32
            )
        matrix, bias = (part.astype(np.float32) for part in change)
        return self._laid(self.x @ np.swapaxes(matrix, 1, 2) + bias[:, None])

    def unshifted(self, change: Change) -> Change:
        """Return a change for rows as they are, of one for rows less their mean."""
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
            return self.fast.backward(back, self.matrix)
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
        """Return the transpose of `_gathered`: every element gets the sum over the rows that it is in."""
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
    """A Conv and its transpose with weights for an input, run by onnxruntime: several times faster than by rows."""

    def __init__(self, layer: Conv, attributes: dict[str, Any], rest: list[int]) -> None:
        self.layer = layer
        self.opened = _session("Conv", attributes), _session("ConvTranspose", {**attributes, "output_padding": rest})

    @classmethod
    def of(cls, layer: Linear, x: tuple[int, ...], y: tuple[int, ...]) -> _Convolution | None:
        """Return one for a layer with these shapes, if it is a plain Conv."""
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

    def forward(self, x: Array, matrix: Array) -> Array:
        """Return the Conv of x."""
        return self._run(0, x, matrix)

    def backward(self, y: Array, matrix: Array) -> Array:
        """Return the transpose of that for y."""
        return self._run(1, y, matrix)

    def _run(self, which: int, value: Array, matrix: Array) -> Array:
        weight = self.layer.unmatrix(matrix)
        feeds = {name: np.ascontiguousarray(part, np.float32) for name, part in (("x", value), ("w", weight))}
        result: Array = run_batch(self.opened[which], feeds)[0]
        return result


def _session(op: str, attributes: dict[str, Any]) -> Any:
    rank = len(attributes["strides"]) + 2
    x, w, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * rank) for name in ("x", "w", "y"))
    graph = helper.make_graph([helper.make_node(op, ["x", "w"], ["y"], **attributes)], "layer", [x, w], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return open_session(model, patient=True)

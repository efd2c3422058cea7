"""Layers as matrices, y = W x + b at every position: the form that repair and second-order importance use.

A `Linear` unfolds the input of a layer into *rows*, one per output position: the output at a position is the matrix
times the row plus the bias. A convolution, transposed or not, has one matrix per group, and a row holds the patch of
the input that the position sees. A BatchNormalization in inference has one factor per channel.

Positions are counted over all axes of the output except the channel axis, so over all samples of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.types import BoolArray, IntArray

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Linear:
    """One layer and the places of its operands. Matrices are (groups, outputs, features).

    Attributes:
        node: the layer.
        x: the input that takes the activation.
        weight: the input that takes the weight.
        bias: the input that takes the bias, present or not; None where the operator has no such input.
        groups: number of channel groups, each with its own matrix.
        alpha: factor between the stored weight and the matrix.
        beta: factor between the stored bias and the bias.
        bias_shape: shape of a bias that `write` adds.
        channel_axis: the axis of the output that the matrix writes, maybe negative. All other axes hold positions.
        adds: the Add of a constant vector that alone reads the node, and the input of the vector; see `Product`.
    """

    node: gs.Node
    x: int
    weight: int
    bias: int | None
    groups: int = 1
    alpha: float = 1.0
    beta: float = 1.0
    bias_shape: tuple[int, ...] = (-1,)
    channel_axis: int = 1
    adds: tuple[gs.Node, int] | None = None

    @property
    def values(self) -> Array:
        """The weight as stored."""
        value: Array = self.node.inputs[self.weight].values
        return value

    @property
    def has_bias(self) -> bool:
        """Tell whether a bias can be written."""
        return self.bias is not None or self.adds is not None

    @property
    def bias_place(self) -> tuple[gs.Node, int] | None:
        """The node and input that hold the bias; None without one: a bias that `write` adds is unknown to the trace."""
        own = self.bias is not None and is_there(self.node, self.bias)
        return self.adds or ((self.node, self.bias) if own and self.bias is not None else None)

    @property
    def form(self) -> tuple[Any, ...]:
        """What makes a matrix of a stored weight: layers of equal forms have the same matrix if they share the weight."""
        return type(self), self.groups, self.alpha

    def matrix(self, weight: Array) -> Array:
        """Return (groups, outputs, features) of a weight, or of any array of the weight's shape."""
        raise NotImplementedError

    def unmatrix(self, matrix: Array) -> Array:
        """Return the weight of a matrix."""
        raise NotImplementedError

    def rows(self, x: Array, pick: IntArray) -> Array:
        """Return (groups, n, features): the rows of the n output positions in `pick`."""
        raise NotImplementedError

    def outputs(self, y: Array, pick: IntArray) -> Array:
        """Return (groups, n, outputs) of an output, at the positions in `pick`."""
        return _split(_at(y, self.channel_axis, pick), self.groups)

    def positions(self, y: Array) -> int:
        """Return the number of positions of an output, over all samples."""
        return int(y.size // y.shape[self.channel_axis])

    def effective(self) -> tuple[Array, Array]:
        """Return the matrix, (groups, outputs, features), and the bias, (groups, outputs), in float64."""
        matrix = self.matrix(self.values.astype(np.float64)) * self.alpha
        bias = np.zeros(matrix.shape[:2])
        if self.bias is not None and is_there(self.node, self.bias):
            bias += self.beta * self.node.inputs[self.bias].values.astype(np.float64).reshape(bias.shape)
        return matrix, bias

    def write(self, matrix: Array | None, bias: Array | None) -> None:
        """Change the stored weight and bias, unless None, in their dtypes; other readers of these tensors see that."""
        dtype = self.values.dtype
        if matrix is not None:
            _put(self.node, self.weight, self.unmatrix(matrix / self.alpha).astype(dtype))
        if bias is None or self.bias is None:
            return
        shape = self.node.inputs[self.bias].shape if is_there(self.node, self.bias) else self.bias_shape
        _put(self.node, self.bias, (bias / self.beta).reshape(shape).astype(dtype))


@dataclass(frozen=True)
class Conv(Linear):
    """Conv and ConvTranspose of any rank, stride, dilation, padding and number of groups.

    A row holds the patch of the input that the weight of one group meets at one output position: (channels of the
    group, *kernel), flattened, 0 on the padding. The row of a ConvTranspose has the order of its kernel, too, with 0
    between the inputs where the stride exceeds 1.

    Attributes:
        pads: begins and ends, or SAME_UPPER or SAME_LOWER; the latter, and `output_shape`, depend on the input size.
        transposed: whether this is a ConvTranspose; only then `output_padding` and `output_shape` count.
    """

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] | str = ()
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()

    @property
    def form(self) -> tuple[Any, ...]:
        """See `Linear.form`."""
        return *super().form, self.transposed

    def matrix(self, weight: Array) -> Array:
        """Return (groups, outputs, features); a ConvTranspose stores (inputs, outputs of a group, *kernel)."""
        parts = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        if self.transposed:
            parts = parts.swapaxes(1, 2)
        return parts.reshape(*parts.shape[:2], -1)

    def unmatrix(self, matrix: Array) -> Array:
        """Return the weight of a matrix."""
        parts = matrix.reshape(*matrix.shape[:2], -1, *self.kernel)
        if self.transposed:
            parts = parts.swapaxes(1, 2)
        return parts.reshape(parts.shape[0] * parts.shape[1], *parts.shape[2:])

    def rows(self, x: Array, pick: IntArray) -> Array:
        """Return (groups, n, features), copying only the picked positions."""
        sources = [self._sources(axis, size) for axis, size in enumerate(x.shape[2:])]
        if all(np.array_equal(s, np.arange(n)[:, None]) for s, n in zip(sources, x.shape[2:], strict=True)):
            return _split(_at(x, 1, pick), self.groups)
        n, *where = np.unravel_index(pick, (len(x), *map(len, sources)))
        at = np.zeros((len(pick), 1), dtype=np.int64)  # (n, kernel), as positions of the input
        outside: BoolArray = np.zeros((len(pick), 1), dtype=bool)
        for source, index, size in zip(sources, where, x.shape[2:], strict=True):
            seen = source[index][:, None, :]
            at = (at[:, :, None] * size + seen).reshape(len(pick), -1)
            outside = (outside[:, :, None] | (seen < 0)).reshape(len(pick), -1)
        at[outside] = 0
        patches = x.reshape(*x.shape[:2], -1)[n[:, None], :, at]  # (n, kernel, channels)
        patches[outside] = 0
        parts = patches.reshape(*at.shape, self.groups, -1).transpose(2, 0, 3, 1)
        return parts.reshape(self.groups, len(pick), -1)

    def _sources(self, axis: int, size: int) -> IntArray:
        """Return (positions, kernel): the index of the input that each weight meets along an axis, -1 for padding."""
        positions, begin = self._extent(axis, size)
        step = self.strides[axis]
        at = np.arange(positions)[:, None]
        taps = np.arange(self.kernel[axis]) * self.dilations[axis]
        if self.transposed:  # input i adds to outputs i * step - begin + taps
            index, rest = np.divmod(at + begin - taps, step)
            index[rest != 0] = -1
        else:
            index = at * step - begin + taps
        return np.where((index >= 0) & (index < size), index, -1)

    def _extent(self, axis: int, size: int) -> tuple[int, int]:
        """Return the number of positions on an axis of the output, and the padding at its beginning."""
        step = self.strides[axis]
        span = (self.kernel[axis] - 1) * self.dilations[axis] + 1
        whole = (size - 1) * step + span + self.output_padding[axis]  # of a ConvTranspose without padding
        if not isinstance(self.pads, str) and not self.output_shape:
            begin, end = self.pads[axis], self.pads[axis + len(self.kernel)]
            return whole - begin - end if self.transposed else (size + begin + end - span) // step + 1, begin
        if self.transposed:
            positions = self.output_shape[axis] if self.output_shape else min(whole, size * step)
            missing = max(0, whole - positions)
        else:
            positions = -(-size // step)
            missing = max(0, (positions - 1) * step + span - size)
        return positions, missing // 2 if self.pads == "SAME_UPPER" else missing - missing // 2


@dataclass(frozen=True)
class Product(Linear):
    """Gemm, MatMul and Einsum with one constant matrix, on either side and transposed or not.

    The bias of a MatMul is the constant of an Add behind it. The Add is no part of the layer: the layer ends before the
    Add, and `effective` returns a bias of 0. `write` *adds* its bias to the constant of the Add.

    Attributes:
        input_axis: axis of the input that is summed over.
        reads: axis of the stored matrix that is summed over.
    """

    input_axis: int = -1
    reads: int = 0

    @property
    def form(self) -> tuple[Any, ...]:
        """See `Linear.form`."""
        return *super().form, self.reads

    def matrix(self, weight: Array) -> Array:
        """Return (1, outputs, features)."""
        flat = weight.reshape(weight.shape[-2:])
        return (flat if self.reads else flat.T)[None]

    def unmatrix(self, matrix: Array) -> Array:
        """Return the weight of a matrix, with the stored axes of size 1."""
        flat: Array = matrix[0] if self.reads else matrix[0].T
        return flat.reshape(*self.values.shape[:-2], *flat.shape)

    def rows(self, x: Array, pick: IntArray) -> Array:
        """Return (1, n, features)."""
        return _split(_at(x, self.input_axis, pick), 1)

    def write(self, matrix: Array | None, bias: Array | None) -> None:
        """Change the weight; change the bias of the node, or add the bias to the constant of the Add behind it."""
        Linear.write(self, matrix, bias)
        if self.adds is not None and bias is not None:
            node, i = self.adds
            old = node.inputs[i].values
            _put(node, i, (old.astype(np.float64) + bias.reshape(old.shape)).astype(old.dtype))


@dataclass(frozen=True)
class Norm(Linear):
    """BatchNormalization in inference: a factor and an offset per channel, each a group of its own."""

    @property
    def form(self) -> tuple[Any, ...]:
        """See `Linear.form`; a factor is that of all layers with the same offset, mean and variance."""
        return *super().form, *(tensor.name for tensor in self.node.inputs[2:5])

    def _deviation(self) -> Array:
        variance = self.node.inputs[4].values.astype(np.float64)
        return np.asarray(np.sqrt(variance + float(self.node.attrs.get("epsilon", 1e-5))))

    def matrix(self, weight: Array) -> Array:
        """Return (channels, 1, 1)."""
        return weight.reshape(-1, 1, 1)

    def unmatrix(self, matrix: Array) -> Array:
        """Return (channels,)."""
        return matrix.reshape(-1)

    def rows(self, x: Array, pick: IntArray) -> Array:
        """Return (channels, n, 1)."""
        return self.outputs(x, pick)

    def effective(self) -> tuple[Array, Array]:
        """Return factor, (channels, 1, 1), and offset, (channels, 1), of the normalization as one affine map."""
        factor = self.values.astype(np.float64) / self._deviation()
        offset, mean = (self.node.inputs[i].values.astype(np.float64) for i in (2, 3))
        return factor.reshape(-1, 1, 1), (offset - mean * factor).reshape(-1, 1)

    def write(self, matrix: Array | None, bias: Array | None) -> None:
        """Set the scale and offset to give a factor and an offset; mean and variance stay."""
        old, old_bias = self.effective()
        factor = (old if matrix is None else matrix).reshape(-1)
        offset = (old_bias if bias is None else bias).reshape(-1)
        mean = self.node.inputs[3].values.astype(np.float64)
        Linear.write(self, self.matrix(factor * self._deviation()), offset + mean * factor)


def is_there(node: gs.Node, i: int) -> bool:
    """Tell whether a node has an input i."""
    return i < len(node.inputs) and bool(node.inputs[i].name)


def share_one_weight(layers: Sequence[Linear]) -> None:
    """Give layers one weight that no other node reads, in place."""
    first = layers[0].node.inputs[layers[0].weight]
    own = gs.Constant(f"{first.name}__unit", first.values)
    for layer in layers:
        layer.node.inputs[layer.weight] = own


def write_together(layers: Sequence[Linear], matrix: Array | None, change: Array | None) -> None:
    """Write the matrix of layers that share a weight, unless None, and add a change to each of their stored biases.

    Where layers have no bias, one that all of them take is added.
    """
    biases = [] if change is None else [layer.effective()[1] + change for layer in layers]
    layers[0].write(matrix, None)
    seen: set[str] = set()
    added: gs.Tensor | None = None
    for layer, bias in zip(layers, biases, strict=False):
        place = layer.bias_place
        if place is None and added is not None and layer.bias is not None:
            _take(layer.node, layer.bias, added)
        elif place is None or place[0].inputs[place[1]].name not in seen:
            layer.write(None, bias)
            node, i = layer.bias_place or (layer.node, layer.weight)
            seen.add(node.inputs[i].name)
            added = added if place else node.inputs[i]


def _put(node: gs.Node, i: int, value: Array) -> None:
    """Change the values of an input, which is added where it is absent."""
    if is_there(node, i):
        node.inputs[i].values = np.ascontiguousarray(value)
    else:
        _take(node, i, gs.Constant(f"{node.outputs[0].name}__{i}__bias", np.ascontiguousarray(value)))


def _take(node: gs.Node, i: int, constant: gs.Tensor) -> None:
    """Make a constant an input of a node that is absent."""
    if i < len(node.inputs):
        node.inputs[i] = constant
    else:
        node.inputs.append(constant)


def _at(values: Array, axis: int, pick: IntArray) -> Array:
    """Return (n, size of the axis): the values along an axis, at positions over all other axes."""
    turned = np.moveaxis(values, axis, -1)
    if np.array_equal(pick, np.arange(math.prod(turned.shape[:-1]))):
        return turned.reshape(-1, turned.shape[-1])
    return turned[np.unravel_index(pick, turned.shape[:-1])]


def _split(values: Array, groups: int) -> Array:
    """Return (groups, n, channels of a group), contiguous, of (n, channels)."""
    return np.ascontiguousarray(values.reshape(len(values), groups, -1).swapaxes(0, 1))

"""The `rank` granularity: directions of a layer's output are removed, and the layer becomes two thinner ones.

W' = V V' W, with V the leading eigenvectors of W H W' and H the covariance of the input, is the reduced rank regression
(Izenman, 1975, "Reduced-rank regression for the multivariate linear model", eq. 2.9; used on convolutions by Zhang et
al., 2015, "Accelerating Very Deep Convolutional Networks", section 3.1). The `spatial` form is the separable kernel of
Jaderberg et al., 2014, "Speeding up Convolutional Neural Networks with Low Rank Expansions", section 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.graph.linear import Conv, Linear, Product
from onnxprune.surgery.edits.kernel import explicit_pads
from onnxprune.surgery.edits.protocol import LayerEdit, Place, RefusalError, Statistics
from onnxprune.types import FloatArray

Form = Literal["channel", "spatial"]
SHARES = (0.125, 0.1875, 0.25, 0.375, 0.5, 0.625)
"""Shares of a layer's directions that candidates keep."""
FEWEST = 8
"""Channels of a group below which a layer is too thin to be split."""
LEAST_GAIN = 0.1
"""Least share of the multiplications that a candidate saves."""
BETWEEN = "__rank"
"""Suffix of the names of the first layer and of its output."""


@dataclass(frozen=True)
class LowRank(LayerEdit):
    """Two layers in place of one, with `rank` channels (of each group) between them.

    Attributes:
        rank: number of kept directions.
        form: `channel`: the same kernel with fewer filters, then a kernel of one tap; `spatial`: a kernel along the
            first spatial axis, then one along the others.
        directions: (groups, outputs, rank) orthonormal, see `laid_out`; None: the leading singular vectors of the
            weight.
    """

    kind: ClassVar[str] = "rank"
    needs_data: ClassVar[bool] = True
    layer: str
    rank: int
    form: Form
    directions: FloatArray | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.form})"

    @property
    def family(self) -> str:
        """The form."""
        return self.form

    @classmethod
    def of_layer(cls, layer: Linear, label: str, multiple: int) -> Iterator[Self]:
        """Yield ranks that save multiplications, of both forms."""
        groups, outputs, features = layer.matrix(layer.values).shape
        if not isinstance(layer, Conv) and layer.node.op not in ("Gemm", "MatMul"):
            return
        if groups > 1 and min(outputs, layer.values.shape[1]) < FEWEST:
            return
        full = min(outputs, features)
        for rank in _ranks(full, multiple):
            if rank < full and rank * (outputs + features) < (1 - LEAST_GAIN) * outputs * features:
                yield cls(label, rank, "channel")
        if not isinstance(layer, Conv) or layer.transposed or groups > 1 or len(layer.kernel) < 2:
            return
        first, others = layer.kernel[0], math.prod(layer.kernel[1:])
        if first == 1 or others == 1:
            return
        thinner, wider = features // others, outputs * others
        most = outputs * features / (thinner + wider)
        for rank in _ranks(most, multiple):
            if rank < min(thinner, wider, (1 - LEAST_GAIN) * most):
                yield cls(label, rank, "spatial")

    def masked(self, layer: Linear) -> FloatArray:
        """Return the matrix without the removed directions."""
        left, right = self._factors(layer)
        return gathered(left @ right, layer, self.form)

    def refit(self, statistics: Statistics | None) -> tuple[Self, float]:
        """Return the edit with the most important directions of the output, and its error."""
        assert statistics is not None
        found, errors = statistics.leading(self.form)
        if not 1 <= self.rank < errors.size:
            raise RefusalError(f"the layer has {errors.size - 1} directions, {self.rank} cannot be kept")
        return replace(self, directions=found[:, :, : self.rank]), float(errors[self.rank])

    def best(self, statistics: Statistics) -> FloatArray:
        """Return the matrix without the removed directions."""
        return self.refit(statistics)[0].masked(statistics.layer)

    def timed(self, layer: Linear) -> Self:
        """Return the edit with directions that need no decomposition."""
        groups, size, _ = laid_out(layer.matrix(layer.values), layer, self.form).shape
        return replace(self, directions=np.broadcast_to(np.eye(size)[:, : self.rank], (groups, size, self.rank)))

    def _factors(self, layer: Linear) -> tuple[FloatArray, FloatArray]:
        """Return (groups, outputs, rank) and (groups, rank, features) with the masked matrix as product."""
        parts = laid_out(layer.effective()[0], layer, self.form)
        if not 1 <= self.rank <= min(parts.shape[1:]):
            raise RefusalError(f"the layer has {min(parts.shape[1:])} directions, {self.rank} cannot be kept")
        left = self.directions
        if left is None:
            left = directions(parts @ parts.swapaxes(1, 2))[1][:, :, : self.rank]
        if left.shape[1:] != (parts.shape[1], self.rank):
            raise RefusalError("the directions belong to another layer")
        return left, left.swapaxes(1, 2) @ parts

    def replace_layer(self, place: Place, layer: Linear) -> None:
        """Replace the layer by two."""
        left, right = self._factors(layer)
        if self.form == "spatial":
            assert isinstance(layer, Conv)
            _separate(place, layer, left, right)
        elif isinstance(layer, Conv):
            _thin_conv(place, layer, left, right)
        else:
            _thin_product(place, layer, left, right)


def _ranks(whole: float, multiple: int) -> list[int]:
    return sorted({max(multiple, round(share * whole / multiple) * multiple) for share in SHARES})


def laid_out(matrix: FloatArray, layer: Linear, form: Form) -> FloatArray:
    """Return the matrix whose rank a form reduces.

    The form `channel` takes the matrix of the layer, `spatial` (1, outputs x taps of the other axes, inputs x taps of
    the first axis).
    """
    if form == "channel":
        return matrix
    if not isinstance(layer, Conv) or layer.transposed or layer.groups > 1 or len(layer.kernel) < 2:
        raise RefusalError("the layer is no convolution of one group with two or more spatial axes")
    parts = matrix[0].reshape(matrix.shape[1], -1, layer.kernel[0], math.prod(layer.kernel[1:]))
    return np.asarray(parts.transpose(0, 3, 1, 2).reshape(1, parts.shape[0] * parts.shape[3], -1))


def gathered(parts: FloatArray, layer: Linear, form: Form) -> FloatArray:
    """Undo `laid_out`."""
    if form == "channel":
        return parts
    assert isinstance(layer, Conv)
    first, others = layer.kernel[0], math.prod(layer.kernel[1:])
    outputs = parts.shape[1] // others
    return np.asarray(parts.reshape(outputs, others, -1, first).transpose(0, 2, 3, 1).reshape(1, outputs, -1))


def directions(scatter: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the eigenvalues of a symmetric matrix, largest first, and eigenvectors with a positive largest element."""
    values, vectors = np.linalg.eigh((scatter + np.swapaxes(scatter, -1, -2)) / 2)
    vectors = vectors[..., ::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=-2, keepdims=True), axis=-2)
    return values[..., ::-1], np.asarray(vectors * np.where(largest < 0, -1, 1))


def _thin_conv(place: Place, layer: Conv, left: FloatArray, right: FloatArray) -> None:
    """Replace a convolution by the same kernel with fewer filters, and a kernel of one tap."""
    node, n = layer.node, len(layer.kernel)
    _between(place.graph, layer, layer.unmatrix(right), dict(node.attrs))
    node.op = "Conv"
    node.attrs = {"group": layer.groups, "kernel_shape": [1] * n, "strides": [1] * n, "pads": [0] * 2 * n}
    _put_second(layer, left.reshape(-1, left.shape[2], *([1] * n)))


def _thin_product(place: Place, layer: Linear, left: FloatArray, right: FloatArray) -> None:
    """Replace a matrix product by two; a Gemm with factors is refused."""
    node = layer.node
    if not isinstance(layer, Product) or node.op not in ("Gemm", "MatMul"):
        raise RefusalError(f"{node.op} is not split")
    if node.op == "Gemm" and (layer.weight != 1 or layer.alpha != 1.0 or layer.beta != 1.0):
        raise RefusalError("the weight is the first operand, or the Gemm has factors")
    attrs = {key: value for key, value in node.attrs.items() if key in ("transA", "transB")}
    first, second = layer.unmatrix(right), layer.unmatrix(left)
    _between(place.graph, layer, first, attrs)
    node.attrs.pop("transA", None)
    _put_second(layer, second)


def _separate(place: Place, layer: Conv, left: FloatArray, right: FloatArray) -> None:
    """Replace a convolution by a kernel along the first spatial axis, and one along the others."""
    pads, kernel = explicit_pads(layer, place.shape), layer.kernel
    n, rank, outputs = len(kernel), left.shape[2], layer.values.shape[0]

    def half(first: bool) -> dict[str, Any]:
        def of(values: Sequence[int], other: int) -> list[int]:
            return [value if (axis == 0) == first else other for axis, value in enumerate(values)]

        return {
            "kernel_shape": of(kernel, 1),
            "strides": of(layer.strides, 1),
            "dilations": of(layer.dilations, 1),
            "pads": [*of(pads[:n], 0), *of(pads[n:], 0)],
        }

    _between(place.graph, layer, right.reshape(rank, -1, kernel[0], *([1] * (n - 1))), half(True))
    layer.node.attrs = half(False)
    wide = left.reshape(outputs, -1, rank).transpose(0, 2, 1)
    _put_second(layer, wide.reshape(outputs, rank, 1, *kernel[1:]))


def _between(graph: gs.Graph, layer: Linear, weight: FloatArray, attrs: dict[str, Any]) -> None:
    """Insert a layer without bias before a node."""
    node = layer.node
    output = gs.Variable(f"{node.outputs[0].name}{BETWEEN}")
    operands = list(node.inputs[:2])
    operands[layer.weight] = gs.Constant(f"{output.name}__weight", weight.astype(layer.values.dtype))
    label = f"{node.name}{BETWEEN}" if node.name else ""
    graph.nodes.append(gs.Node(node.op, label, attrs, operands, [output], node.domain))
    node.inputs[layer.x] = output


def _put_second(layer: Linear, weight: FloatArray) -> None:
    value = np.ascontiguousarray(weight.astype(layer.values.dtype))
    layer.node.inputs[layer.weight] = gs.Constant(f"{layer.node.outputs[0].name}__second_weight", value)

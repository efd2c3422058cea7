"""The block in another basis: directions go, and a layer becomes two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.granularity.edits import Rank
from onnxprune.granularity.kernel import explicit_pads
from onnxprune.granularity.refusal import RefusalError
from onnxprune.graph.linear import Conv, Linear, Product
from onnxprune.types import FloatArray

Array = np.ndarray[Any, Any]
BETWEEN = "__rank"
"""End of the names of what lies between two layers that were one."""


def project(matrix: FloatArray, layer: Linear, edit: Rank, basis: FloatArray | None) -> FloatArray:
    """Return a matrix with no more directions than an edit leaves, those of the basis, or where there is none of its own singular vectors."""
    parts = spread(matrix, layer) if edit.form == "spatial" else matrix
    if basis is not None and basis.shape[-2] != parts.shape[-2]:
        raise RefusalError("the directions are those of another layer")
    if not 1 <= edit.rank <= min(parts.shape[-2:]):
        raise RefusalError(f"it has {min(parts.shape[-2:])} directions, {edit.rank} cannot be left")
    if edit.form == "channel":
        left = directions(matrix @ np.swapaxes(matrix, 1, 2))[1] if basis is None else basis
        left = left[:, :, : edit.rank]
        return np.asarray(left @ (np.swapaxes(left, 1, 2) @ matrix))
    left = directions(parts @ parts.T)[1] if basis is None else basis[0]
    left = left[:, : edit.rank]
    return gather(left @ (left.T @ parts), layer)


def spread(matrix: FloatArray, layer: Linear) -> FloatArray:
    """Lay out a matrix as (outputs x taps of the other axes, inputs x taps of the first axis)."""
    if not isinstance(layer, Conv) or layer.transposed or layer.groups > 1 or len(layer.kernel) < 2:
        raise RefusalError("it is no convolution of one group with two or more spatial axes")
    first = layer.kernel[0]
    parts = matrix[0].reshape(matrix.shape[1], -1, first, int(np.prod(layer.kernel[1:])))
    return np.asarray(parts.transpose(0, 3, 1, 2).reshape(parts.shape[0] * parts.shape[3], -1))


def gather(parts: FloatArray, layer: Conv | Linear) -> FloatArray:
    """Undo `spread`."""
    assert isinstance(layer, Conv)
    first, others = layer.kernel[0], int(np.prod(layer.kernel[1:]))
    outputs = parts.shape[0] // others
    cube = parts.reshape(outputs, others, -1, first).transpose(0, 2, 3, 1)
    return np.asarray(cube.reshape(1, outputs, -1))


def factors(matrix: FloatArray, rank: int, basis: FloatArray | None = None) -> tuple[FloatArray, FloatArray]:
    """Return (.., outputs, rank) and (.., rank, features), whose product is a matrix of that rank; `basis` spans its columns."""
    if basis is not None:
        left = basis[..., :rank]
        return left, np.swapaxes(left, -1, -2) @ matrix
    turned = np.swapaxes(matrix, -1, -2)
    if matrix.shape[-2] <= matrix.shape[-1]:
        left = directions(matrix @ turned)[1][..., :rank]
        return left, np.swapaxes(left, -1, -2) @ matrix
    right = directions(turned @ matrix)[1][..., :rank]
    return matrix @ right, np.swapaxes(right, -1, -2)


def directions(scatter: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the eigenvalues of a symmetric matrix, the largest first, and its eigenvectors, each with its largest element above zero."""
    values, vectors = np.linalg.eigh((scatter + np.swapaxes(scatter, -1, -2)) / 2)
    vectors = vectors[..., ::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=-2, keepdims=True), axis=-2)
    return values[..., ::-1], np.asarray(vectors * np.where(largest < 0, -1, 1))


def _between(graph: gs.Graph, layer: Linear, weight: Array, attrs: dict[str, Any]) -> gs.Variable:
    """Put a layer without bias before a node, which then takes what it gives."""
    node = layer.node
    output = gs.Variable(f"{node.outputs[0].name}{BETWEEN}")
    operands = list(node.inputs[:2])
    operands[layer.weight] = gs.Constant(f"{output.name}__weight", weight)
    label = f"{node.name}{BETWEEN}" if node.name else ""
    graph.nodes.append(gs.Node(node.op, label, attrs, operands, [output], node.domain))
    node.inputs[layer.x] = output
    return output


def thin_conv(graph: gs.Graph, layer: Conv, rank: int, matrix: FloatArray, basis: FloatArray | None) -> None:
    """Put the same kernel with fewer filters, and one of a single tap, in the place of a convolution."""
    left, right = factors(matrix, rank, basis)
    node, dtype = layer.node, layer.values.dtype
    _between(graph, layer, layer.unmatrix(right).astype(dtype), dict(node.attrs))
    n = len(layer.kernel)
    node.op = "Conv"
    node.attrs = {"group": layer.groups, "kernel_shape": [1] * n, "strides": [1] * n, "pads": [0] * 2 * n}
    weight = left.reshape(-1, left.shape[2], *([1] * n)).astype(dtype)
    node.inputs[1] = gs.Constant(f"{node.outputs[0].name}__second_weight", weight)


def thin_product(graph: gs.Graph, layer: Linear, rank: int, matrix: FloatArray, basis: FloatArray | None) -> None:
    """Put two products with matrices in the place of one; what a factor of a Gemm would do to the first is refused."""
    if not isinstance(layer, Product) or layer.node.op not in ("Gemm", "MatMul"):
        raise RefusalError(f"{layer.node.op} is not split")
    node = layer.node
    if node.op == "Gemm" and (layer.weight != 1 or layer.alpha != 1.0 or layer.beta != 1.0):
        raise RefusalError("its weight is the first operand, or it has factors")
    left, right = factors(matrix, rank, basis)
    dtype = layer.values.dtype
    attrs = {key: value for key, value in node.attrs.items() if key in ("transA", "transB")}
    first = layer.unmatrix(right).astype(dtype)
    second = layer.unmatrix(left).astype(dtype)
    _between(graph, layer, first, attrs)
    node.attrs.pop("transA", None)
    node.inputs[layer.weight] = gs.Constant(f"{node.outputs[0].name}__second_weight", second)


def separate(
    graph: gs.Graph,
    layer: Linear,
    rank: int,
    matrix: FloatArray,
    shape: Sequence[int | None] | None,
    basis: FloatArray | None,
) -> None:
    """Put a kernel along the first spatial axis, and one along the others, in the place of a convolution."""
    left, right = factors(spread(matrix, layer), rank, None if basis is None else basis[0])
    assert isinstance(layer, Conv)
    pads, n = explicit_pads(layer, shape), len(layer.kernel)
    node, dtype = layer.node, layer.values.dtype
    kernel = layer.kernel

    def half(first: bool) -> dict[str, Any]:
        def of(values: Sequence[int], other: int) -> list[int]:
            return [value if (axis == 0) == first else other for axis, value in enumerate(values)]

        return {
            "kernel_shape": of(kernel, 1),
            "strides": of(layer.strides, 1),
            "dilations": of(layer.dilations, 1),
            "pads": [*of(pads[:n], 0), *of(pads[n:], 0)],
        }

    thin = right.reshape(rank, -1, kernel[0], *([1] * (n - 1))).astype(dtype)
    _between(graph, layer, thin, half(True))
    node.attrs = half(False)
    outputs = matrix.shape[1]
    wide = left.reshape(outputs, -1, rank).transpose(0, 2, 1).reshape(outputs, rank, 1, *kernel[1:]).astype(dtype)
    node.inputs[1] = gs.Constant(f"{node.outputs[0].name}__second_weight", np.ascontiguousarray(wide))

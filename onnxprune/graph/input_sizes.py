"""Sizes of input axes that the weights of a model tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from onnxprune.errors import ModelError
from onnxprune.graph.shapes import infer_shapes, refuse_without_room
from onnxprune.runtime.session import fed_inputs

ARITHMETIC = ("Add", "Sub", "Mul", "Div")
"""Operators that broadcast a constant."""
BASE, NEAR, MOST_AXES = 224, 16, 6
"""Size from which the effect of an axis is measured, distance of sizes tried around the solution, and axes that are tried."""
Place = tuple[str, int]
"""An input and one of its axes."""


def told_sizes(light: onnx.ModelProto, header: onnx.ModelProto) -> dict[Place, int]:
    """Return the sizes of input axes that the weights of the layers behind the inputs tell, by input and axis.

    A MatMul, Gemm or recurrent layer tells the last axis, a Conv or BatchNormalization the channels, arithmetic with a
    constant the axes along which the constant varies.
    """
    source: dict[str, tuple[str, tuple[int | None, ...]]] = {
        value.name: (value.name, tuple(range(len(_dims(value))))) for value in fed_inputs(header)
    }
    weights = {tensor.name: tuple(tensor.dims) for tensor in light.graph.initializer}
    weights |= {v.name: tuple(d.dim_value for d in _dims(v)) for v in light.graph.input if v.name not in source}
    values = {tensor.name: tensor for tensor in light.graph.initializer}
    found: dict[Place, int] = {}
    for node in light.graph.node:
        places = [n for n, name in enumerate(node.input) if name in source]
        if not places:
            continue
        start, axes = source[node.input[places[0]]]
        shape = weights.get(node.input[1 - places[0]], ()) if len(node.input) > 1 and places[0] < 2 else ()
        flags = {attribute.name: attribute for attribute in node.attribute}
        follows = _followed(node, axes, flags, values)
        if node.op_type in ARITHMETIC and len(node.input) == 2 and node.input[1 - places[0]] in weights:
            follows = axes if len(shape) <= len(axes) else None
            tells: dict[int | None, int] = {
                axis: size for axis, size in zip(axes[::-1], shape[::-1], strict=False) if size > 1
            }
        else:
            tells = _told(node, axes, flags, shape)
        if follows is not None:
            source[node.output[0]] = (start, follows)
        found |= {
            (start, axis): size for axis, size in tells.items() if axis is not None and (start, axis) not in found
        }
    return found


def _followed(
    node: onnx.NodeProto,
    axes: tuple[int | None, ...],
    flags: Mapping[str, onnx.AttributeProto],
    values: Mapping[str, onnx.TensorProto],
) -> tuple[int | None, ...] | None:
    """Return the axis of the input that each axis of an output is, for operators that move axes; None for all others."""
    if node.op_type in ("Cast", "Identity", "Relu", "Clip"):
        return axes
    if node.op_type == "Transpose" and "perm" in flags:
        return tuple(axes[n] for n in flags["perm"].ints)
    if node.op_type not in ("Squeeze", "Unsqueeze"):
        return None
    given = list(flags["axes"].ints) if "axes" in flags else None
    if given is None and len(node.input) > 1 and node.input[1] in values:
        given = onnx.numpy_helper.to_array(values[node.input[1]]).reshape(-1).tolist()
    if given is None:
        return None
    rank = len(axes) + (len(given) if node.op_type == "Unsqueeze" else 0)
    moved = {axis % rank for axis in given}
    if node.op_type == "Squeeze":
        return tuple(axis for n, axis in enumerate(axes) if n not in moved)
    left = iter(axes)
    return tuple(None if n in moved else next(left) for n in range(rank))


def _told(
    node: onnx.NodeProto,
    axes: Sequence[int | None],
    flags: Mapping[str, onnx.AttributeProto],
    shape: Sequence[int],
) -> dict[int | None, int]:
    """Return the sizes that a weight of a shape tells, by axis of the input."""
    if node.op_type == "Gemm" and len(shape) == 2 and not ("transA" in flags and flags["transA"].i):
        return {_place(axes, 1): shape[flags["transB"].i if "transB" in flags else 0]}
    if node.op_type == "MatMul" and len(shape) > 1:
        return {_place(axes, len(axes) - 1): shape[-2]}
    if node.op_type in ("LSTM", "GRU", "RNN") and len(shape) == 3:
        return {_place(axes, 2): shape[2]}
    if node.op_type == "BatchNormalization" and shape:
        return {_place(axes, 1): shape[0]}
    if node.op_type == "Conv" and len(shape) > 2:
        return {_place(axes, 1): shape[1] * (flags["group"].i if "group" in flags else 1)}
    return {}


def _place(axes: Sequence[int | None], n: int) -> int | None:
    """Return the axis of the input that an axis is; None where a tensor has no such axis."""
    return axes[n] if 0 <= n < len(axes) else None


def solved_sizes(light: onnx.ModelProto, header: onnx.ModelProto) -> dict[Place, int]:
    """Return the sizes of input axes that a Reshape or the weight of a matrix product further on tells, by input and axis.

    Convolutions between them shorten an axis. How the rows that arrive depend on the axis is seen in inferred shapes of
    several sizes, and the size is the one from which the rows that are wanted follow. Height and width are one size.
    """
    values = fed_inputs(header)
    axes = [(value.name, n) for value in values for n, dim in enumerate(_dims(value)) if not dim.dim_value > 0]
    wanted = _wanted_rows(light)

    def rows(sizes: Mapping[Place, int]) -> list[tuple[int, ...]]:
        shapes = {v.name: tuple(sizes.get((v.name, n), d.dim_value) for n, d in enumerate(_dims(v))) for v in values}
        refuse_without_room(light, shapes)
        known = infer_shapes(light, shapes).full
        return [_products(known.get(name, ())) for name, _ in wanted]

    if not wanted or not axes or len(axes) > MOST_AXES:
        return {}
    found: dict[Place, int] = {}
    base = dict(zip(axes, (BASE + 32 * n for n in range(len(axes))), strict=True))
    try:
        start = rows(base)
        longer = {axis: rows({**base, axis: base[axis] + BASE}) for axis in axes}
        for n, (_, want) in enumerate(wanted):
            if want in start[n] or any(len(each[n]) != len(start[n]) for each in longer.values()):
                continue
            for place, have in enumerate(start[n]):
                moving = [axis for axis, each in longer.items() if each[n][place] != have]
                if not moving or not found.keys().isdisjoint(moving):
                    continue
                if len(moving) == 1:
                    slope = (longer[moving[0]][n][place] - have) / BASE
                    near = base[moving[0]] + round((want - have) / slope)
                else:
                    near = round(math.prod(base[axis] for axis in moving) ** 0.5 * (want / have) ** 0.5)
                sizes = (near + gap for gap in sorted(range(-NEAR, NEAR + 1), key=abs)) if len(moving) < 3 else ()
                tried = (dict.fromkeys(moving, size) for size in sizes if size > 0)
                found |= next((one for one in tried if rows({**base, **one})[n][place : place + 1] == (want,)), {})
                break
    except ModelError:  # no room for a window at one of the sizes
        return {}
    return found


def _dims(value: onnx.ValueInfoProto) -> Any:
    return value.type.tensor_type.shape.dim


def _products(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the elements of the last axis, of the last two, and so on, without the first axis of all."""
    return tuple(math.prod(shape[start:]) for start in range(len(shape) - 1, 0, -1))


def _wanted_rows(light: onnx.ModelProto) -> list[tuple[str, int]]:
    """Return tensors, and the elements of a row that their reader wants: a Reshape to (-1, size), or a matrix product."""
    constants = {tensor.name: tensor for tensor in light.graph.initializer}
    weights = {name: tuple(tensor.dims) for name, tensor in constants.items()}
    weights |= {value.name: tuple(dim.dim_value for dim in _dims(value)) for value in light.graph.input}
    found = []
    for node in light.graph.node:
        shape = weights.get(node.input[1], ()) if len(node.input) > 1 else ()
        flags = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "Reshape" and shape == (2,) and node.input[1] in constants:
            first, size = onnx.numpy_helper.to_array(constants[node.input[1]]).tolist()
            found += [(node.input[0], size)] if first < 1 < size else []
        elif node.op_type == "MatMul" and len(shape) == 2:
            found.append((node.input[0], shape[0]))
        elif node.op_type == "Gemm" and len(shape) == 2 and not flags.get("transA"):
            found.append((node.input[0], shape[flags.get("transB", 0)]))
    return [(name, size) for name, size in found if name not in weights and size > 0]

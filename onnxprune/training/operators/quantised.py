"""Rounding to integers and back."""

from __future__ import annotations

import onnx
import torch
from torch import Tensor

from onnxprune.training.operators.node import Binder, Node, Run

BITS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32}
TYPES = {"int4": torch.int8, "uint4": torch.uint8, "int16": torch.int16, "int32": torch.int32}
TYPES |= {"int8": torch.int8, "uint8": torch.uint8, "uint16": torch.uint16}


def _fitted(scale: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Return a scale or zero point in a shape that broadcasts: it is one for all, one per position on an axis, or one per block."""
    if scale.numel() == 1:
        return scale.reshape(())
    axis %= x.ndim
    if block:
        return scale.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return scale.reshape(*[-1 if a == axis else 1 for a in range(x.ndim)])


def quantise(node: Node) -> Run:
    """Where only DequantizeLinear reads it, the result stays a float, and gradients go straight through the rounding."""
    axis, block = node.attr("axis", 1), node.attr("block_size", 0)
    zero, kind = node.constant(2), node.attr("output_dtype", 0)
    name = str(onnx.helper.tensor_dtype_to_np_dtype(kind)) if kind else "uint8" if zero is None else str(zero.dtype)
    bits = BITS[name]
    low, high = (0, 2**bits - 1) if name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    straight = node.reader_ops() == {"DequantizeLinear"}

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        y = x / _fitted(scale, x, axis, block)
        y = y + (y.round() - y).detach()
        if zero is not None:
            y = y + _fitted(zero, x, axis, block)
        y = y.clamp(low, high)
        return y if straight else y.to(TYPES[name])

    return run


def dequantise(node: Node) -> Run:
    """(x - zero point) scale."""
    axis, block = node.attr("axis", 1), node.attr("block_size", 0)

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        y = x.to(scale.dtype)
        if zero is not None:
            y = y - _fitted(zero, x, axis, block).to(scale.dtype)
        return y * _fitted(scale, x, axis, block)

    return run


BINDERS: dict[str, Binder] = {"DequantizeLinear": dequantise, "QuantizeLinear": quantise}

"""QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import onnx
import torch
from torch import Tensor

from onnxprune.torch_backend.operators.node import Node, Run, unsupported


def _fitted(scale: Tensor, x: Tensor, axis: int) -> Tensor:
    """Return a scale or zero point, per tensor or per position along an axis, in a shape that broadcasts."""
    if scale.numel() == 1:
        return scale.reshape(())
    return scale.reshape(*[-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])


def quantize(node: Node) -> Run:
    """If only DequantizeLinear reads the result, it stays a float, and gradients pass straight through the rounding."""
    node.require(block_size=0)
    axis, zero, kind = node.attr("axis", 1), node.constant(2), node.attr("output_dtype", 0)
    name = str(onnx.helper.tensor_dtype_to_np_dtype(kind)) if kind else "uint8" if zero is None else str(zero.dtype)
    if not name.startswith(("int", "uint")):
        raise unsupported(f"QuantizeLinear to {name}", node.label)
    bits = int(name.lstrip("uint"))
    low, high = (0, 2**bits - 1) if name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    stored: torch.dtype = getattr(torch, name.replace("int4", "int8"))
    straight = {str(reader.op) for reader in node.node.outputs[0].outputs} == {"DequantizeLinear"}

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        y = x / _fitted(scale, x, axis)
        y = y + (y.round() - y).detach()
        y = y if zero is None else y + _fitted(zero, x, axis)
        y = y.clamp(low, high)
        return y if straight else y.to(stored)

    return run


def dequantize(node: Node) -> Run:
    """Return (x - zero point) scale."""
    node.require(block_size=0)
    axis = node.attr("axis", 1)

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        y = x.to(scale.dtype)
        y = y if zero is None else y - _fitted(zero, x, axis).to(scale.dtype)
        return y * _fitted(scale, x, axis)

    return run

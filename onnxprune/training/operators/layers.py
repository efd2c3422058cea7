"""Operators with weights, pools and normalisations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.training.operators.node import Node, Run

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def conv(node: Node) -> Run:
    """Equal pads on both sides are the convolution's own; others, and those of auto_pad, are added before it."""
    strides, dilations, group = node.attr("strides"), node.attr("dilations"), node.attr("group", 1)
    pads = node.attr("pads")

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        n = weight.ndim - 2
        around = pads or [0] * 2 * n
        if around[:n] != around[n:]:
            x = functional.pad(x, [p for i in reversed(range(n)) for p in (around[i], around[n + i])])
            around = [0] * 2 * n
        return CONVOLUTIONS[n](x, weight, bias, strides or 1, around[:n], dilations or 1, group)

    return run


def gemm(node: Node) -> Run:
    """alpha A B + beta C."""
    alpha, beta = node.attr("alpha", 1.0), node.attr("beta", 1.0)
    left, right = node.attr("transA", 0), node.attr("transB", 0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = (a.t() if left else a), (b.t() if right else b)
        if c is None:
            return alpha * (a @ b)
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)

    return run


def max_pool(node: Node) -> Run:
    """Only what the reference models need as yet."""
    kernel, strides, pads = node.attr("kernel_shape"), node.attr("strides"), node.attr("pads")
    return lambda x: functional.max_pool2d(x, kernel, strides or 1, pads[:2] if pads else 0)


def global_average_pool(node: Node) -> Run:
    """The mean over all axes from the third."""
    return lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True)


def reduce_mean(node: Node) -> Run:
    """Axes are an attribute before opset 18, an input since."""
    axes = node.attr("axes")
    if axes is None and node.has(1):
        constant = node.constant(1)
        assert constant is not None
        axes = constant.tolist()
    keep = bool(node.attr("keepdims", 1))
    return lambda x, *_: x.mean(axes, keepdim=keep)


BINDERS: dict[str, Any] = {
    "Conv": conv,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "MaxPool": max_pool,
    "ReduceMean": reduce_mean,
}

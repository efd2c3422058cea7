"""Operators with weights: convolutions and matrix products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from onnxprune.torch_backend.operators.node import Node, Run
from onnxprune.torch_backend.operators.spatial import Window, pad

CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: torch.conv_transpose1d,
    2: torch.conv_transpose2d,
    3: torch.conv_transpose3d,
}


def conv(node: Node) -> Run:
    """Equal pads go to the torch function; unequal pads, and those of auto_pad, are added before it."""
    window, group = Window.of(node), node.attr("group", 1)
    weight, kernel = node.constant(1), node.attr("kernel_shape")
    rank = weight.ndim - 2 if weight is not None else len(kernel or ())
    even = window.even(rank) if rank else None
    if even is not None:
        function, (strides, dilations) = CONVOLUTIONS[rank], window.steps(rank)
        return lambda x, weight, bias=None: function(x, weight, bias, strides, even, dilations, group)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        before, after = window.around(x.shape[2:], weight.shape[2:])
        strides, dilations = window.steps(weight.ndim - 2)
        return CONVOLUTIONS[weight.ndim - 2](pad(x, before, after), weight, bias, strides, 0, dilations, group)

    return run


def conv_transpose(node: Node) -> Run:
    """Pads that torch does not support are cut off, or added, afterwards."""
    window, group = Window.of(node), node.attr("group", 1)
    extra, target = node.attr("output_padding"), node.attr("output_shape")

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        n = weight.ndim - 2
        strides, dilations = window.steps(n)
        more = list(extra or [0] * n)
        sizes = list(target[-n:]) if target else None
        if sizes is None and window.auto_pad.startswith("SAME"):
            sizes = [size * s for size, s in zip(x.shape[2:], strides, strict=True)]
        whole = [
            (size - 1) * s + (k - 1) * d + 1
            for size, s, k, d in zip(x.shape[2:], strides, weight.shape[2:], dilations, strict=True)
        ]
        before, after = window.around(x.shape[2:], weight.shape[2:])
        if sizes is not None:
            totals = [max(0, w + m - size) for w, m, size in zip(whole, more, sizes, strict=True)]
            before, after = window.halves(totals)
            more = [size - w + b + a for size, w, b, a in zip(sizes, whole, before, after, strict=True)]
        small = all(0 <= m < max(s, d) for m, s, d in zip(more, strides, dilations, strict=True))
        if before == after and min(before) >= 0 and small:
            return TRANSPOSED[n](x, weight, bias, strides, before, more, group, dilations)
        y = TRANSPOSED[n](x, weight, None, strides, 0, 0, group, dilations)
        y = pad(y, [-b for b in before], [m - a for m, a in zip(more, after, strict=True)])
        return y if bias is None else y + bias.reshape(-1, *[1] * n)

    return run


def gemm(node: Node) -> Run:
    """Return alpha A B + beta C."""
    alpha, beta = node.attr("alpha", 1.0), node.attr("beta", 1.0)
    left, right = node.attr("transA", 0), node.attr("transB", 0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = (a.t() if left else a), (b.t() if right else b)
        if c is None:
            return a @ b if alpha == 1 else alpha * (a @ b)
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)

    return run

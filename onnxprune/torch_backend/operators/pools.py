"""Pooling."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.torch_backend.operators.node import Node, Run, unsupported
from onnxprune.torch_backend.operators.spatial import Window, pad

MAXIMA: dict[int, Callable[..., Tensor]] = {1: torch.max_pool1d, 2: torch.max_pool2d, 3: torch.max_pool3d}
MEANS: dict[int, Callable[..., Tensor]] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def max_pool(node: Node) -> Run:
    """Pads that torch does not support are added before it."""
    window, kernel = Window.of(node), list(node.attr("kernel_shape"))
    n = len(kernel)
    strides, dilations = window.steps(n)
    own = window.own_pads(kernel)

    def run(x: Tensor) -> Tensor:
        numbers = x if x.is_floating_point() else x.double()  # torch pools no integers
        if own is not None:
            return MAXIMA[n](numbers, kernel, strides, own, dilations, window.ceil).to(x.dtype)
        before, after = window.around(x.shape[2:], kernel)
        numbers = pad(numbers, before, window.reach(x.shape[2:], kernel, before, after), -math.inf)
        return MAXIMA[n](numbers, kernel, strides, 0, dilations).to(x.dtype)

    return run


def average_pool(node: Node) -> Run:
    """count_include_pad decides whether padding counts; positions that ceil_mode adds beyond it never count."""
    window, kernel = Window.of(node), list(node.attr("kernel_shape"))
    n, include = len(kernel), bool(node.attr("count_include_pad", 0))
    strides, dilations = window.steps(n)
    if max(dilations) > 1:
        raise unsupported("AveragePool with dilations", node.label)
    own = window.own_pads(kernel)
    if own is not None:
        return lambda x: MEANS[n](x, kernel, strides, own, window.ceil, include)

    def run(x: Tensor) -> Tensor:
        sizes = x.shape[2:]
        before, after = window.around(sizes, kernel)
        reach = window.reach(sizes, kernel, before, after)
        inside = [min(a, r) if include else 0 for a, r in zip(after, reach, strict=True)]
        counted = pad(x.new_ones((1, 1, *sizes)), before if include else [0] * n, inside, 1.0)
        outside = [r - i for r, i in zip(reach, inside, strict=True)]
        counted = pad(counted, [0] * n if include else before, outside)
        return MEANS[n](pad(x, before, reach), kernel, strides) / MEANS[n](counted, kernel, strides)

    return run

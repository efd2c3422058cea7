"""Operators that take every element by itself, or broadcast several tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.training.operators.node import Binder, Node, Run


def _plain(function: Callable[..., Tensor]) -> Binder:
    """A function of torch that needs no attribute."""
    return lambda node: function


def clip(node: Node) -> Run:
    """Bounds are attributes before opset 11, inputs since."""
    if node.opset < 11:
        low, high = node.attr("min"), node.attr("max")
        return lambda x: torch.clamp(x, low, high)

    def run(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        return x if low is None and high is None else torch.clamp(x, low, high)

    bounds = [node.constant(i) for i in (1, 2)]
    if all(bound is not None or not node.has(i) for i, bound in zip((1, 2), bounds, strict=True)):
        least, most = (None if bound is None else bound.item() for bound in bounds)
        return lambda x, *_: x if least is None and most is None else torch.clamp(x, least, most)
    return run


BINDERS: dict[str, Any] = {
    "Add": _plain(torch.add),
    "Clip": clip,
    "Div": _plain(torch.div),
    "HardSwish": _plain(functional.hardswish),
    "Identity": _plain(lambda x: x),
    "Mul": _plain(torch.mul),
    "Relu": _plain(torch.relu),
    "Sigmoid": _plain(torch.sigmoid),
    "Sub": _plain(torch.sub),
}

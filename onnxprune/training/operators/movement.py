"""Operators that move elements about, and shapes."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from onnxprune.training.operators.node import Node, Run


def reshape(node: Node) -> Run:
    """A 0 is the size that was there, unless allowzero."""
    zero = node.attr("allowzero", 0)

    def run(x: Tensor, shape: Tensor) -> Tensor:
        sizes = [x.shape[i] if s == 0 and not zero else s for i, s in enumerate(shape.tolist())]
        return x.reshape(sizes)

    return run


def flatten(node: Node) -> Run:
    """Two axes are left."""
    axis = node.attr("axis", 1)

    def run(x: Tensor) -> Tensor:
        cut = axis % x.ndim if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:cut]), -1)

    return run


BINDERS: dict[str, Any] = {"Flatten": flatten, "Reshape": reshape}

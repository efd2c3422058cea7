"""Bounds (low, high) of the input of an activation beyond which its output is constant."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import onnx_graphsurgeon as gs

Flat = tuple[float, float]
UNBOUNDED: Flat = (-inf, inf)


def from_input(low: float) -> Callable[[gs.Node], Flat]:
    """Flat below a constant."""
    return lambda node: (low, inf)


def hard_sigmoid(node: gs.Node) -> Flat:
    """Flat where alpha x + beta is below 0 or above 1."""
    alpha, beta = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
    return (-beta / alpha, (1 - beta) / alpha) if alpha > 0 else UNBOUNDED


def clip(node: gs.Node) -> Flat:
    """Flat beyond both bounds, which are attributes before opset 11; unbounded where a bound is computed."""
    bounds = []
    for i, (name, default) in enumerate((("min", -inf), ("max", inf)), start=1):
        tensor = node.inputs[i] if i < len(node.inputs) and node.inputs[i].name else None
        if tensor is not None and not isinstance(tensor, gs.Constant):
            return UNBOUNDED
        bounds.append(float(node.attrs.get(name, default)) if tensor is None else float(tensor.values))
    return bounds[0], bounds[1]

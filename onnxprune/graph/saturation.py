"""What activations cut off: bounds beyond which their output does not change."""

from __future__ import annotations

from math import inf

import onnx_graphsurgeon as gs

Flat = tuple[float, float]
UNBOUNDED: Flat = (-inf, inf)


def flat_of(node: gs.Node) -> Flat:
    """Return the bounds beyond which a node does not care for its input; infinite where it always does."""
    if node.op == "Relu":
        return 0.0, inf
    if node.op == "HardSwish":
        return -3.0, inf
    if node.op == "HardSigmoid":
        alpha, beta = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
        return (-beta / alpha, (1 - beta) / alpha) if alpha > 0 else UNBOUNDED
    if node.op == "Clip":
        bounds = []
        for i, (name, default) in enumerate((("min", -inf), ("max", inf)), start=1):
            tensor = node.inputs[i] if i < len(node.inputs) and node.inputs[i].name else None
            if tensor is not None and not hasattr(tensor, "values"):
                return UNBOUNDED
            bounds.append(float(node.attrs.get(name, default)) if tensor is None else float(tensor.values))
        return bounds[0], bounds[1]
    return UNBOUNDED

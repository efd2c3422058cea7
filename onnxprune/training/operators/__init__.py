"""The table of operators: for each, the function of torch that computes it.

An operator is *bound* once per node: its binder reads attributes and constants, and returns the function that then runs on tensors,
one per input (None: absent).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.errors import ModelError
from onnxprune.training.operators import (
    elementwise,
    indexing,
    layers,
    movement,
    norms,
    pools,
    quantised,
    recurrent,
    reductions,
    resize,
    sampling,
    shapes,
)
from onnxprune.training.operators.node import Binder, Node, Run

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = ["BINDERS", "TRAINED", "UPDATED", "Binder", "Node", "Run", "bind", "is_trained"]

BINDERS: dict[str, Binder] = {
    **elementwise.BINDERS,
    **indexing.BINDERS,
    **layers.BINDERS,
    **movement.BINDERS,
    **norms.BINDERS,
    **pools.BINDERS,
    **quantised.BINDERS,
    **recurrent.BINDERS,
    **reductions.BINDERS,
    **resize.BINDERS,
    **sampling.BINDERS,
    **shapes.BINDERS,
}
"""Binders by operator of the ONNX domain."""

TRAINED: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Einsum": (0, 1),
    "GRU": (1, 2, 3),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "QuantizeLinear": (0,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
}
"""Inputs that hold weights, by operator."""
AFFINE = ("Add", "Div", "Mul", "Sub", "Sum")
"""Operators at which a constant with more than one element is a weight: a bias, or a scale."""
UPDATED = {"BatchNormalization": (3, 4)}
"""Inputs that hold running statistics."""


def bind(node: Node) -> Run:
    """Return the function that computes a node.

    Raises:
        ModelError: there is none.
    """
    binder = BINDERS.get(node.op) if node.domain in ("", "ai.onnx") else None
    if binder is None:
        domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
        raise ModelError(
            f"{domain}{node.op} has no function in torch",
            where=node.label,
            why="training runs every operator of the graph itself, and does not know this one",
            hint="everything but training works on this model: prune, repair, check",
        )
    return binder(node)


def is_trained(node: gs.Node, i: int) -> bool:
    """Tell whether a float constant at input i of a node is a weight."""
    if node.op in AFFINE:
        return bool(node.inputs[i].values.size > 1)
    return i in TRAINED.get(node.op, ())

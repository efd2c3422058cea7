"""How much memory the activations of a model take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune import runtime
from onnxprune.model import Model, weightless

DEFAULT_ITEMSIZE = 4
"""Bytes of an element of a type that nobody knows."""


def itemsizes(types: Mapping[str, int]) -> dict[str, int]:
    """Return bytes per element by tensor, from ONNX element types."""
    return {name: _itemsize(kind) for name, kind in types.items()}


def _itemsize(kind: int) -> int:
    try:
        return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize) or DEFAULT_ITEMSIZE
    except (KeyError, TypeError, ValueError):
        return DEFAULT_ITEMSIZE


def peak(model: Model, input_shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the most bytes of activations that are alive at once.

    Nodes run in order; a tensor lives from the node that makes it to the last that takes it, inputs and outputs of the model throughout.
    That is what a runtime needs that frees at once and computes nothing in place; weights and the runtime itself come on top.

    Args:
        model: any.
        input_shapes: shape of every input.

    Raises:
        ModelError: its shapes can neither be inferred nor observed.
    """
    light = weightless(model)
    found = runtime.infer_shapes(light, dict(input_shapes))
    shapes = dict(found.full)
    size = itemsizes(found.types)
    made = [t.name for node in model.graph.nodes for t in node.outputs if t.name]
    missing = [name for name in made if name not in shapes]
    if missing:
        seen = runtime.observe(model.to_proto(), dict(input_shapes), missing, str(model.path))
        shapes |= {name: np.shape(value) for name, value in seen.items()}
        size |= {name: np.asarray(value).dtype.itemsize for name, value in seen.items()}

    def count(name: str) -> int:
        return math.prod(shapes[name]) * size.get(name, DEFAULT_ITEMSIZE)

    takers = Counter(
        name for node in model.graph.nodes for name in {t.name for t in node.inputs if isinstance(t, gs.Variable)}
    )
    for value in (*model.graph.inputs, *model.graph.outputs):
        takers[value.name] += 1  # never freed
    alive = sum(count(value.name) for value in model.graph.inputs)
    most = alive
    for node in model.graph.nodes:
        alive += sum(count(t.name) for t in node.outputs if t.name)
        most = max(most, alive)
        for name in {t.name for t in node.inputs if isinstance(t, gs.Variable) and t.name}:
            takers[name] -= 1
            if not takers[name]:
                alive -= count(name)
        alive -= sum(count(t.name) for t in node.outputs if t.name and not takers[t.name])
    return most

"""How much memory the activations of a model take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import onnx

from onnxprune import runtime
from onnxprune.model import Model, weightless

DEFAULT_ITEMSIZE = 4
"""Bytes of an element of a type that nobody knows."""
LARGE = 1024
"""Elements of an initializer from which only its shape is looked at."""


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
    return max(alive(model, input_shapes).values())


def alive(model: Model, input_shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the bytes of activations that are alive at each node, by its first output; "" stands for the inputs. See `peak`."""
    return _alive(weightless(model), input_shapes, model.to_proto)


def peak_of_proto(proto: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the same for a model that was not loaded; see `peak`."""
    return max(_alive(_light(proto), input_shapes, lambda: proto).values())


def _light(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with its large initializers turned into inputs."""
    graph = proto.graph
    large = [tensor for tensor in graph.initializer if math.prod(tensor.dims) > LARGE]
    small = [tensor for tensor in graph.initializer if math.prod(tensor.dims) <= LARGE]
    given = [onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in large]
    light = onnx.helper.make_graph(graph.node, graph.name, [*graph.input, *given], graph.output, small)
    return onnx.helper.make_model(
        light, ir_version=proto.ir_version, opset_imports=proto.opset_import, functions=proto.functions
    )


def _alive(
    light: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]], whole: Callable[[], onnx.ModelProto]
) -> dict[str, int]:
    found = runtime.infer_shapes(light, dict(input_shapes))
    shapes = dict(found.full)
    size = itemsizes(found.types)
    nodes = light.graph.node
    missing = [name for node in nodes for name in node.output if name and name not in shapes]
    if missing:
        seen = runtime.observe(whole(), dict(input_shapes), missing, "the model")
        shapes |= {name: np.shape(value) for name, value in seen.items()}
        size |= {name: np.asarray(value).dtype.itemsize for name, value in seen.items()}

    def count(name: str) -> int:
        return math.prod(shapes[name]) * size.get(name, DEFAULT_ITEMSIZE)

    inputs = set(input_shapes)
    activations = inputs | {name for node in nodes for name in node.output if name}
    takers = Counter(name for node in nodes for name in set(node.input) if name in activations)
    for name in (*inputs, *(value.name for value in light.graph.output)):
        takers[name] += 1  # never freed
    alive = sum(count(name) for name in inputs)
    found_alive = {"": alive}
    for node in nodes:
        alive += sum(count(name) for name in node.output if name)
        found_alive[next((name for name in node.output if name), "")] = alive
        for name in set(node.input) & activations:
            takers[name] -= 1
            if not takers[name]:
                alive -= count(name)
        alive -= sum(count(name) for name in node.output if name and not takers[name])
    return found_alive

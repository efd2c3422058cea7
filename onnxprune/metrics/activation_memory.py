"""The memory of the activations of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx

from onnxprune.graph.activation_cost import alive_at, lifetimes
from onnxprune.graph.io import Parsed
from onnxprune.graph.model import Model, weightless
from onnxprune.graph.shapes import infer_shapes, observe_tensors

DEFAULT_ITEMSIZE = 4
"""Bytes of an element of an unknown type."""
LARGE = 1024
"""Elements of an initializer above which shape inference sees only its shape."""


def itemsizes(types: Mapping[str, int]) -> dict[str, int]:
    """Return bytes per element by tensor, from ONNX element types."""
    return {name: _itemsize(kind) for name, kind in types.items()}


def _itemsize(kind: int) -> int:
    try:
        return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize) or DEFAULT_ITEMSIZE
    except (KeyError, TypeError, ValueError):
        return DEFAULT_ITEMSIZE


def peak(model: Model | Parsed, input_shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the largest number of bytes of activations that are alive at once.

    Nodes run in order; see `onnxprune.graph.activation_cost.lifetimes`. A runtime that frees tensors at once and computes nothing in place
    needs this much, plus weights and the runtime itself.

    Args:
        model: a loaded model, or a file that was read.
        input_shapes: shape of every input.

    Raises:
        ModelError: shapes can neither be inferred nor observed.
    """
    return round(max(alive(model, input_shapes).values(), default=0.0))


def alive(model: Model | Parsed, input_shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """Return the bytes of activations that are alive at each node, by the first output of the node; see `peak`."""
    light = weightless(model) if isinstance(model, Model) else _light(model.proto)
    found = infer_shapes(light, dict(input_shapes))
    shapes, size = dict(found.full), itemsizes(found.types)
    nodes = light.graph.node
    missing = [name for node in nodes for name in node.output if name and name not in shapes]
    if missing:
        proto, weights = model.stub()
        seen = observe_tensors(proto, dict(input_shapes), missing, "the model", weights)
        shapes |= {name: np.shape(value) for name, value in seen.items()}
        size |= {name: np.asarray(value).dtype.itemsize for name, value in seen.items()}
    lives = lifetimes(
        [(node.input, node.output) for node in nodes], input_shapes, [value.name for value in light.graph.output]
    )
    bytes_of = [math.prod(shapes[name]) * size.get(name, DEFAULT_ITEMSIZE) for name in lives]
    spans = np.array(list(lives.values()), dtype=np.int64).reshape(-1, 2)
    amounts = alive_at(np.array(bytes_of, dtype=np.float64), spans)
    return {next(filter(None, node.output), ""): float(amounts[n]) for n, node in enumerate(nodes)}


def _light(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose large initializers are inputs."""
    graph = proto.graph
    large = [tensor for tensor in graph.initializer if math.prod(tensor.dims) > LARGE]
    small = [tensor for tensor in graph.initializer if math.prod(tensor.dims) <= LARGE]
    given = [onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in large]
    light = onnx.helper.make_graph(graph.node, graph.name, [*graph.input, *given], graph.output, small)
    return onnx.helper.make_model(
        light, ir_version=proto.ir_version, opset_imports=proto.opset_import, functions=proto.functions
    )

"""Weights stored as integers: constants behind a DequantizeLinear of their own.

A layer sees such a weight as any other constant. Deletion, masks and counts act on the integers, and on the scales and
zero points per channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_graphsurgeon as gs

from onnxprune.graph.nodes import bodies_of

Array = np.ndarray[Any, Any]
STANDARD = (None, "", "ai.onnx")
FOUR_BITS = ("int4", "uint4")
INTEGERS = tuple(
    getattr(onnx.TensorProto, name)
    for name in ("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1", "FLOAT8E4M3FN", "FLOAT8E5M2")
    if hasattr(onnx.TensorProto, name)
)
"""Types of quantized weights; each element of a matrix of one of them is a parameter."""


def is_integer_matrix(kind: int, shape: Sequence[int]) -> bool:
    """Tell whether a tensor of a type and shape is a matrix, or a kernel, of a byte or less per element."""
    return kind in INTEGERS and len(shape) > 1


def is_dequantized(node: gs.Node) -> bool:
    """Tell whether a node does nothing but dequantize a constant of integers, of four bits or more."""
    return (
        node.op == "DequantizeLinear"
        and is_quantizer(node)
        and all(isinstance(tensor, gs.Constant) or not tensor.name for tensor in node.inputs)
        and isinstance(node.inputs[0].dtype, np.dtype)
        and (node.inputs[0].dtype.kind in "iu" or str(node.inputs[0].dtype) in FOUR_BITS)
        and "output_dtype" not in node.attrs
    )


def is_quantizer(node: gs.Node) -> bool:
    """Tell whether a node is QuantizeLinear or DequantizeLinear, standard or of onnxruntime's domain."""
    return node.op in ("QuantizeLinear", "DequantizeLinear") and node.domain in (*STANDARD, "com.microsoft")


def values_at(node: gs.Node, i: int) -> Array:
    """Return the values of the constant at an input, dequantized where `node` dequantizes it."""
    return dequantized(node) if i == 0 and is_dequantized(node) else node.inputs[i].values


def dequantized(node: gs.Node) -> Array:
    """Compute the output of a node that dequantizes a constant."""
    integers, scale = node.inputs[0].values, node.inputs[1].values
    wide = integers.astype(np.int64) - zeros(node).astype(np.int64)
    return np.asarray(wide.astype(np.float32) * _spread(node, scale).astype(np.float32), dtype=scale.dtype)


def zeros(node: gs.Node) -> Array:
    """Return the integers that stand for 0, in a shape that broadcasts over the weight."""
    has_zero_point = len(node.inputs) > 2 and node.inputs[2].name
    return _spread(node, node.inputs[2].values if has_zero_point else np.zeros((), dtype=node.inputs[0].dtype))


def axis_of(node: gs.Node) -> int:
    """Return the axis that scales and zero points lie on."""
    return int(node.attrs.get("axis", 1)) % max(1, len(node.inputs[0].shape))


def parameters(node: gs.Node) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield (input, shape) of the scale and zero point where they hold more than one value."""
    for i, tensor in enumerate(node.inputs[1:], start=1):
        if tensor.name and int(np.prod(tensor.shape)) > 1:
            yield i, tuple(tensor.shape)


def _spread(node: gs.Node, parameter: Array) -> Array:
    """Shape a scale or zero point, per tensor, channel or block, to broadcast over the weight."""
    shape, axis = node.inputs[0].shape, axis_of(node)
    if parameter.size == 1:
        return parameter.reshape(())
    if parameter.ndim > 1:
        return np.repeat(parameter, int(node.attrs["block_size"]), axis=axis).take(range(shape[axis]), axis=axis)
    return parameter.reshape([-1 if a == axis else 1 for a in range(len(shape))])


def captured_names(node: gs.Node) -> Iterator[str]:
    """Yield the names of all tensors that the bodies of a node mention."""
    for body in bodies_of(node):
        for inner in body.nodes:
            yield from (tensor.name for tensor in inner.inputs)
            yield from captured_names(inner)
        yield from (tensor.name for tensor in body.outputs)


def stored_weights(graph: gs.Graph) -> dict[str, int]:
    """Return the nodes that dequantize a constant for one reader alone, by the name of their output."""
    taken = {tensor.name for tensor in graph.outputs} | {name for node in graph.nodes for name in captured_names(node)}
    return {
        node.outputs[0].name: n
        for n, node in enumerate(graph.nodes)
        if is_dequantized(node) and len(node.outputs[0].outputs) == 1 and node.outputs[0].name not in taken
    }


def separate_weights(graph: gs.Graph) -> None:
    """Give every reader of a dequantized constant its own copy, in the layout that the reader takes; in place.

    New nodes come last.
    """
    while any(is_dequantized(node) for node in graph.nodes):
        _give_each_reader_its_own(graph)
        if not _remove_moves(graph):  # a removed node may have had several readers
            break


def _give_each_reader_its_own(graph: gs.Graph) -> None:
    """Let no two readers share a dequantized constant. The integers stay shared."""
    taken = {tensor.name for tensor in graph.outputs} | {name for node in graph.nodes for name in captured_names(node)}
    clones: list[gs.Node] = []
    for node in graph.nodes:
        for i, tensor in enumerate(node.inputs):
            source = tensor.inputs[0] if tensor.inputs else None
            if source is None or not is_dequantized(source):
                continue
            if tensor.name not in taken:
                taken.add(tensor.name)
                continue
            name = f"{tensor.name}__{len(clones)}"
            output = gs.Variable(name, dtype=tensor.dtype)
            clones.append(gs.Node(source.op, name, dict(source.attrs), list(source.inputs), [output], source.domain))
            node.inputs[i] = output
    graph.nodes.extend(clones)


def _remove_moves(graph: gs.Graph) -> bool:
    """Remove each Transpose and Identity behind a DequantizeLinear, transposing the weight; tell whether any was."""
    weights = stored_weights(graph)
    for node in graph.nodes:
        is_move = node.op in ("Identity", "Transpose") and node.domain in STANDARD
        if not is_move or node.inputs[0].name not in weights:
            continue
        source = node.inputs[0].inputs[0]
        output = node.outputs[0]
        if node.op == "Transpose":
            perm = node.attrs.get("perm") or list(reversed(range(len(source.inputs[0].shape))))
            for i, tensor in enumerate(source.inputs):
                if i == 0 or len(tensor.shape or ()) > 1:
                    turned = np.ascontiguousarray(tensor.values.transpose(perm))
                    source.inputs[i] = gs.Constant(f"{output.name}.{i}", turned)
            source.attrs["axis"] = perm.index(axis_of(source)) if perm else 0
        node.inputs.clear()
        node.outputs.clear()
        source.outputs = [output]
    n = len(graph.nodes)
    graph.nodes = [node for node in graph.nodes if node.outputs]
    return len(graph.nodes) < n


def unrounded(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a model that clips activations as QuantizeLinear does, without rounding; None if the model rounds none.

    A Max and a Min replace each pair of QuantizeLinear and DequantizeLinear with one scale and zero point. Other pairs
    and weights keep their rounding.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    values |= {
        n.output[0]: a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
    }
    constant = set(values)
    for node in graph.node:
        if node.input and all(name in constant or not name for name in node.input):
            constant.update(node.output)
    quantizers = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in constant
    }
    del graph.node[:]
    found = False
    for node in proto.graph.node:
        quantizer = quantizers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        bounds = _bounds(node, values) if quantizer is not None else None
        if quantizer is None or bounds is None or bounds != _bounds(quantizer, values):
            graph.node.append(node)
            continue
        found = True
        least, most, between = (f"{node.output[0]}__{name}" for name in ("least", "most", "between"))
        graph.initializer.extend(
            onnx.numpy_helper.from_array(b, name) for b, name in zip(bounds, (least, most), strict=True)
        )
        graph.node.append(onnx.helper.make_node("Max", [quantizer.input[0], least], [between]))
        graph.node.append(onnx.helper.make_node("Min", [between, most], [node.output[0]]))
    return result if found else None


def _bounds(node: onnx.NodeProto, values: Mapping[str, onnx.TensorProto]) -> tuple[Array, Array] | None:
    """Return the bounds of a quantizer; None without a single, constant scale and zero point."""
    names = [name for name in node.input[1:] if name]
    if any(name not in values for name in names):
        return None
    arrays = [onnx.numpy_helper.to_array(values[name]) for name in names]
    scale, zero = arrays if len(arrays) == 2 else (arrays[0], np.zeros((), np.uint8))
    if scale.size != 1 or zero.size != 1 or zero.dtype.kind not in "iu":
        return None
    limits, at = np.iinfo(zero.dtype), int(zero.reshape(()))
    least, most = (scale.reshape(()) * scale.dtype.type(bound - at) for bound in (limits.min, limits.max))
    return np.asarray(least), np.asarray(most)

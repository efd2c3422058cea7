"""Bring the initializers of a file into one form: dense, in the main graph, and apart from the inputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx
import onnx.numpy_helper

from onnxprune.graph.operators import OPERATORS

DEFAULTS_FROM = 4
"""IR version from which an initializer that is listed as an input is the default of that input. Before, every
initializer was listed."""
WEIGHTED = {
    **{op: spec.weight_inputs for op, spec in OPERATORS.items() if spec.weight_inputs},
    "BatchNormalization": (1, 2, 3, 4),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), (1, 2, 3)),
}
"""Inputs that hold weights, by operator."""
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)


STORED_IN = "weights"
"""Name of the file in which a model without its larger weights seems to store them."""
SHARED_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
SHARED_FROM = 1024
"""Elements from which a weight is kept apart from the proto that a session opens."""

SMALL = 16
"""Elements of a float tensor that may be arguments, as the scales of a Resize are; a larger one is a weight."""


def is_shared(kind: int, dims: Iterable[int]) -> bool:
    """Tell whether a weight of an ONNX type and of some sizes is kept apart: floats, and too many for a cheap copy."""
    return kind in SHARED_TYPES and math.prod(dims) >= SHARED_FROM


def placeholder(name: str, kind: int, dims: Iterable[int]) -> onnx.TensorProto:
    """Return a TensorProto whose values are stored elsewhere."""
    proto = onnx.TensorProto(name=name, data_type=kind, dims=dims, data_location=onnx.TensorProto.EXTERNAL)
    proto.external_data.add(key="location", value=STORED_IN)
    return proto


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the bodies of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph, and the bodies of its nodes at any depth."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from graphs_of(body)


def unread(graph: onnx.GraphProto) -> str:
    """Return a note on the weights that nothing reads, which a result leaves out; empty where there are none."""
    parts = list(graphs_of(graph))
    read = {name for part in parts for node in part.node for name in node.input}
    read |= {value.name for part in parts for value in part.output}
    sizes = [math.prod(t.dims) for t in graph.initializer if t.data_type in FLOATS and t.name not in read]
    return f"weights that nothing reads are left out: {len(sizes)} with {sum(sizes):,} parameters" if sizes else ""


def densify(graph: onnx.GraphProto) -> int:
    """Store sparse initializers and constants densely, in their own type, in place; return how many there were."""
    found = 0
    for part in graphs_of(graph):
        part.initializer.extend(map(_dense, part.sparse_initializer))
        found += len(part.sparse_initializer)
        del part.sparse_initializer[:]
        for node in part.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "sparse_value":
                    value = _dense(attribute.sparse_tensor)
                    attribute.CopyFrom(onnx.helper.make_attribute("value", value))
                    found += 1
    return found


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """Return a tensor with all its values, given indices of elements, (n,), or of elements by axis, (n, rank)."""
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    shape = tuple(sparse.dims)
    dense = np.zeros(math.prod(shape), values.dtype)
    dense[np.ravel_multi_index(tuple(indices.T), shape) if indices.ndim > 1 else indices] = values
    result = onnx.TensorProto(name=sparse.values.name, data_type=sparse.values.data_type, dims=shape)
    result.raw_data = dense.tobytes()
    return result


def is_apart(tensor: onnx.TensorProto) -> bool:
    """Tell whether a tensor of a body belongs into the main graph: a weight. Shape inference needs to see the others."""
    return tensor.data_type in FLOATS and math.prod(tensor.dims) > SMALL


def hoist(graph: onnx.GraphProto) -> None:
    """Move the weights of bodies to the main graph, in place, under names that are unique in the model.

    The graph library stores a captured tensor in each body that reads it; in the main graph each is stored once. What a
    body returns stays.
    """
    taken = {name for part in graphs_of(graph) for name in _names(part)}
    for node in graph.node:
        for body in bodies(node):
            graph.initializer.extend(_hoisted(body, taken))


def _hoisted(body: onnx.GraphProto, taken: set[str]) -> list[onnx.TensorProto]:
    """Take the weights out of a body and out of the bodies in it, and rename them everywhere; return them."""
    moved = [tensor for node in body.node for inner in bodies(node) for tensor in _hoisted(inner, taken)]
    kept = {value.name for value in (*body.output, *body.input)}
    values = [(tensor.name, tensor) for tensor in body.initializer]
    values += [(node.output[0], node.attribute[0].t) for node in body.node if _is_tensor(node)]
    new: dict[str, str] = {}
    for name, tensor in values:
        if name not in kept and is_apart(tensor):
            names = (f"{name}__{body.name}{number or ''}" for number in itertools.count())
            new[name] = next(free for free in names if free not in taken)
            taken.add(new[name])
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = new[name]
            moved.append(copy)
    left = [tensor for tensor in body.initializer if tensor.name not in new]
    nodes = [node for node in body.node if not (_is_tensor(node) and node.output[0] in new)]
    del body.initializer[:], body.node[:]
    body.initializer.extend(left)
    body.node.extend(nodes)
    _rename(body, new)
    return moved


def _is_tensor(node: onnx.NodeProto) -> bool:
    return node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value"


def take_defaults(graph: onnx.GraphProto) -> dict[str, tuple[int, onnx.ValueInfoProto]]:
    """Turn each input with a default into a Constant node, in place; return place and type of these inputs, by name.

    The node is never folded, so that nothing relies on its value. `give_defaults` is the inverse.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    taken = {value.name: (i, value) for i, value in enumerate(graph.input) if value.name in stored}
    inputs = [value for value in graph.input if value.name not in taken]
    tensors = [tensor for tensor in graph.initializer if tensor.name not in taken]
    nodes = [onnx.helper.make_node("Constant", [], [name], value=stored[name]) for name in taken] + list(graph.node)
    if taken:
        del graph.input[:], graph.initializer[:], graph.node[:]
        graph.input.extend(inputs)
        graph.initializer.extend(tensors)
        graph.node.extend(nodes)
    return taken


def give_defaults(graph: onnx.GraphProto, taken: Mapping[str, tuple[int, onnx.ValueInfoProto]]) -> None:
    """Turn the Constant nodes of `take_defaults` back into inputs with a default, in place."""
    if not taken:
        return
    nodes, found = [], set()
    for node in graph.node:
        if node.output and node.output[0] in taken:
            graph.initializer.add().CopyFrom(node.attribute[0].t)
            graph.initializer[-1].name = node.output[0]
            found.add(node.output[0])
        else:
            nodes.append(node)
    inputs = list(graph.input)
    for name, (place, value) in taken.items():
        if name in found:  # a part of a model may do without
            inputs.insert(place, value)
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.extend(inputs)


def _rename(body: onnx.GraphProto, new: dict[str, str]) -> None:
    """Rename tensors that a body and the bodies in it read, except where an inner body defines the name again."""
    if not new:
        return
    for node in body.node:
        for i, name in enumerate(node.input):
            node.input[i] = new.get(name, name)
        for inner in bodies(node):
            own = {value.name for value in (*inner.input, *inner.initializer)}
            own |= {name for n in inner.node for name in n.output}
            _rename(inner, {old: name for old, name in new.items() if old not in own})


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.initializer))
    for node in graph.node:
        yield from node.output


def separate_inputs(proto: onnx.ModelProto) -> int:
    """Take weights out of the list of inputs, in place; return their number.

    Before IR version 4 every initializer is listed, and some exporters list them later on, too: where a weight of a
    layer is listed, so are other floats of rank 2 or more, or all initializers. An initializer that is listed without
    such company is the default of an input that a caller may leave out.
    """
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    listed = {value.name for value in graph.input if value.name in stored}
    weights = listed & {
        name for node in graph.node for i, name in enumerate(node.input) if i in WEIGHTED.get(node.op_type, ())
    }
    if proto.ir_version < DEFAULTS_FROM or (weights and len(listed) == len(stored)):
        dropped = listed
    elif weights:
        dropped = weights | {n for n in listed if stored[n].data_type in FLOATS and len(stored[n].dims) > 1}
    else:
        dropped = set()
    if dropped:
        inputs = [value for value in graph.input if value.name not in dropped]
        del graph.input[:]
        graph.input.extend(inputs)
        proto.ir_version = max(proto.ir_version, DEFAULTS_FROM)
    return len(dropped)

"""Mutations of models: a node, an edge, an attribute, a tensor, an input or output, an opset, a body, external data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from mutators import FLOATS, HUGE, TEXTS, Rng, mutate_bytes
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx.defs import SchemaError

Model = onnx.ModelProto
OPERATORS = sorted({schema.name for schema in onnx.defs.get_all_schemas()})
TYPES = sorted(TensorProto.DataType.values())
LONGEST = 64
"""Elements of a random tensor, at most."""


def graphs_of(model: Model) -> list[onnx.GraphProto]:
    """Return the graph of a model, then the bodies in it."""
    found = [model.graph]
    for graph in found:
        for node in graph.node:
            for attribute in node.attribute:
                found += [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
    return found


def mutate_model(model: Model, rng: Rng) -> Model:
    """Change a copy of a model: a node, an attribute, a tensor, an input or output, an opset, a body, a name."""
    changed = Model()
    changed.CopyFrom(model)
    graphs = graphs_of(changed)
    graph = graphs[0] if rng.random() < 0.7 else rng.choice(graphs)
    for _ in range(10):
        try:
            rng.choice(CHANGES)(changed, graph, rng)
            break
        except (
            IndexError,
            ValueError,
            TypeError,
            OverflowError,
            DecodeError,
            SchemaError,
        ):  # there is nothing to change, or protobuf refuses the value
            continue
    return changed


def _names(graph: onnx.GraphProto) -> list[str]:
    names = [name for node in graph.node for name in (*node.input, *node.output)]
    return [*names, *(tensor.name for tensor in graph.initializer), *(value.name for value in graph.input)]


def _nodes(_: Model, graph: onnx.GraphProto, rng: Rng) -> None:
    """Remove, copy, move or replace a node."""
    at, choice = rng.randrange(len(graph.node)), rng.randrange(7)
    node = graph.node[at]
    if choice == 0:
        del graph.node[at]
    elif choice == 1:
        graph.node.add().CopyFrom(node)
    elif choice == 2:
        copied = graph.node.add()
        copied.CopyFrom(node)
        copied.output[0] = rng.choice(_names(graph))
    elif choice == 3:
        node.op_type = rng.choice(OPERATORS)
    elif choice == 4:
        node.domain = rng.choice(
            ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "own", "ai.onnx.training")
        )
    elif choice == 5:
        other = rng.choice(graph.node)
        node.op_type, other.op_type = other.op_type, node.op_type
    else:
        moved = list(graph.node)
        rng.shuffle(moved)
        copies = [onnx.NodeProto.FromString(each.SerializeToString()) for each in moved]
        del graph.node[:]
        graph.node.extend(copies)


def _edges(_: Model, graph: onnx.GraphProto, rng: Rng) -> None:
    """Rename, add or drop an input or output of a node."""
    node, choice = rng.choice(graph.node), rng.randrange(7)
    ends = node.input if rng.random() < 0.6 else node.output
    new = rng.choice((*_names(graph), "", "nowhere", rng.choice(TEXTS)))
    if choice < 3:
        ends[rng.randrange(len(ends))] = new
    elif choice == 3:
        ends.append(new)
    elif choice == 4:
        del ends[rng.randrange(len(ends))]
    elif choice == 5:
        ends.extend([new] * rng.choice((2, 300)))
    else:
        del ends[:]


def _attributes(_: Model, graph: onnx.GraphProto, rng: Rng) -> None:
    """Change, remove, copy or add an attribute."""
    node, choice = rng.choice(graph.node), rng.randrange(6)
    if choice == 0:
        known = [name for schema in (onnx.defs.get_schema(node.op_type),) for name in schema.attributes]
        node.attribute.append(_attribute(rng.choice((*known, "group", "axis", "odd")), rng))
        return
    at = rng.randrange(len(node.attribute))
    attribute = node.attribute[at]
    if choice == 1:
        del node.attribute[at]
    elif choice == 2:
        node.attribute.add().CopyFrom(attribute)
    elif choice == 3:
        attribute.type = rng.choice(AttributeProto.AttributeType.values())
    elif choice == 4:
        attribute.CopyFrom(_attribute(attribute.name, rng))
    elif attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(HUGE)
    elif attribute.type == AttributeProto.INT:
        attribute.i = rng.choice(HUGE)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = rng.choice(FLOATS)
    else:
        attribute.name = rng.choice(TEXTS)


def _attribute(name: str, rng: Rng) -> AttributeProto:
    values: tuple[Callable[[], Any], ...] = (
        lambda: rng.choice(HUGE),
        lambda: rng.choice(FLOATS),
        lambda: rng.choice(TEXTS),
        lambda: [rng.choice(HUGE) for _ in range(rng.randrange(1, 7))],
        lambda: [rng.choice(FLOATS) for _ in range(rng.randrange(1, 4))],
        lambda: [rng.choice(TEXTS)],
        lambda: _tensor("t", rng),
        lambda: helper.make_graph(
            [helper.make_node("Identity", ["x"], ["z"])], "g", [], [onnx.ValueInfoProto(name="z")]
        ),
    )
    return helper.make_attribute(name or "odd", rng.choice(values)())


def _tensor(name: str, rng: Rng) -> TensorProto:
    shape = [rng.choice((0, 1, 2, 3, 4)) for _ in range(rng.randrange(4))]
    values = np.resize([rng.choice((*FLOATS, *HUGE)) for _ in range(3)], shape)
    dtype = rng.choice(("float32", "float64", "int64", "int8", "bool", "float16", "uint64"))
    with np.errstate(all="ignore"):
        return numpy_helper.from_array(values.astype(dtype), name)


def _initializers(model: Model, graph: onnx.GraphProto, rng: Rng) -> None:
    """Change the dims, type, data or name of a stored tensor."""
    choice = rng.randrange(11)
    if choice == 0:
        graph.initializer.append(_tensor(rng.choice(_names(graph)), rng))
        return
    at = rng.randrange(len(graph.initializer))
    tensor = graph.initializer[at]
    if choice == 1:
        del graph.initializer[at]
    elif choice == 2:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(HUGE)
    elif choice == 3:
        tensor.dims.append(rng.choice(HUGE))
    elif choice == 4:
        del tensor.dims[rng.randrange(len(tensor.dims))]
    elif choice == 5:
        tensor.data_type = rng.choice(TYPES)
    elif choice == 6:
        tensor.raw_data = mutate_bytes(tensor.raw_data, rng)
    elif choice == 7:
        with np.errstate(all="ignore"):
            tensor.raw_data = np.full(len(tensor.raw_data) // 4, rng.choice(FLOATS)).astype(np.float32).tobytes()
    elif choice == 8:
        tensor.name = rng.choice((*_names(graph), *TEXTS))
    elif choice == 9:
        tensor.float_data.extend([rng.choice(FLOATS)] * rng.choice((1, 100)))
    else:
        _sparse(graph, at, rng)


def _sparse(graph: onnx.GraphProto, at: int, rng: Rng) -> None:
    tensor = graph.initializer[at]
    sparse = graph.sparse_initializer.add()
    sparse.dims.extend(tensor.dims)
    count = rng.randrange(4)
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(count, np.float32), tensor.name))
    indices = np.array([rng.choice((0, 1, 2, 5, -1, 2**40)) for _ in range(count)], np.int64)
    sparse.indices.CopyFrom(numpy_helper.from_array(indices if rng.random() < 0.7 else indices.reshape(-1, 1), "i"))
    del graph.initializer[at]


def mutate_external(_: Model, graph: onnx.GraphProto, rng: Rng) -> None:
    """Change the place of external data, or move a tensor to one."""
    tensor = rng.choice(graph.initializer)
    if not tensor.external_data:
        tensor.data_location = TensorProto.EXTERNAL
        if rng.random() < 0.8:
            tensor.ClearField("raw_data")
    values = [
        (
            "location",
            rng.choice(
                ("w.data", "m.onnx", "../m.onnx", "/etc/passwd", "", ".", "gone", "tmp", "w.data/", "./w.data", *TEXTS)
            ),
        ),
        ("offset", str(rng.choice((*HUGE, "x", "", "1e3", "0x10", " 4")))),
        ("length", str(rng.choice((*HUGE, "x", "", "4.0")))),
        ("checksum", "0"),
        (rng.choice(TEXTS), "1"),
    ]
    for key, value in rng.sample(values, rng.randrange(1, 4)):
        entry = next((each for each in tensor.external_data if each.key == key), None) or tensor.external_data.add(
            key=key
        )
        entry.value = value


def _values(_: Model, graph: onnx.GraphProto, rng: Rng) -> None:
    """Change an input, an output or an inferred shape."""
    values = rng.choice((graph.input, graph.input, graph.output, graph.output, graph.value_info))
    choice = rng.randrange(10)
    if choice == 0:
        values.add(name=rng.choice((*_names(graph), "nowhere")))
        return
    if choice == 1:
        name = rng.choice(_names(graph))
        values.append(helper.make_tensor_value_info(name, rng.choice(TYPES), [rng.choice(HUGE), "n"]))
        return
    at = rng.randrange(len(values))
    value = values[at]
    dims = value.type.tensor_type.shape.dim
    if choice == 2:
        del values[at]
    elif choice == 3:
        values.add().CopyFrom(value)
    elif choice == 4:
        value.type.tensor_type.elem_type = rng.choice(TYPES)
    elif choice == 5:
        value.name = rng.choice((*_names(graph), *TEXTS))
    elif choice == 6:
        dims[rng.randrange(len(dims))].dim_value = rng.choice(HUGE)
    elif choice == 7:
        dims[rng.randrange(len(dims))].dim_param = rng.choice(("n", "m", *TEXTS))
    elif choice == 8:
        value.type.tensor_type.ClearField("shape")
    else:
        kind = rng.choice(("sequence_type", "optional_type", "sparse_tensor_type"))
        inner = value.type.tensor_type.elem_type
        value.ClearField("type")
        made = getattr(value.type, kind)
        if kind == "sparse_tensor_type":
            made.elem_type = inner
        else:
            made.elem_type.tensor_type.elem_type = inner


def _headers(model: Model, graph: onnx.GraphProto, rng: Rng) -> None:
    """Change versions, domains, names, metadata or functions."""
    choice = rng.randrange(9)
    if choice == 0:
        model.ir_version = rng.choice((0, 1, 3, 4, 7, 13, 99, 2**62))
    elif choice < 3:
        rng.choice(model.opset_import).version = rng.choice((-1, 0, 1, 6, 7, 9, 11, 13, 15, 21, 24, 26, 99, 2**62))
    elif choice == 3:
        model.opset_import.add(
            domain=rng.choice(("", "own", "com.microsoft", "ai.onnx.ml")), version=rng.choice((0, 1, 3, 18, 99))
        )
    elif choice == 4:
        del model.opset_import[rng.randrange(len(model.opset_import))]
    elif choice == 5:
        model.metadata_props.add(key=rng.choice(TEXTS), value=rng.choice(TEXTS))
        graph.name = rng.choice(TEXTS)
    elif choice == 6:
        rng.choice(graph.node).name = rng.choice(TEXTS)
    elif choice == 7:
        node = rng.choice(graph.node)
        inner = [onnx.NodeProto.FromString(node.SerializeToString())]
        if rng.random() < 0.5:  # a function that calls itself
            inner[0].op_type, inner[0].domain = "F", "own"
        opsets = [*model.opset_import, helper.make_opsetid("own", 1)]
        model.functions.append(
            helper.make_function("own", "F", list(dict.fromkeys(node.input)), list(node.output), inner, opsets)
        )
        node.op_type, node.domain = "F", "own"
        model.opset_import.append(helper.make_opsetid("own", 1))
    else:
        model.graph.quantization_annotation.add(tensor_name=rng.choice(_names(graph)))


def _bodies(_: Model, graph: onnx.GraphProto, rng: Rng) -> None:
    """Put a node into the body of an If or a Loop, several times over."""
    at = rng.randrange(len(graph.node))
    node = onnx.NodeProto.FromString(graph.node[at].SerializeToString())
    if rng.random() < 0.5:
        graph.initializer.append(numpy_helper.from_array(np.array(rng.random() < 0.5), "own_condition"))
        for _ in range(rng.choice((1, 1, 2, 40))):
            outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
            then = helper.make_graph([node], "then", [], outputs)
            other = helper.make_graph(
                [helper.make_node("Identity", ["x"], [name]) for name in node.output], "else", [], outputs
            )
            node = helper.make_node("If", ["own_condition"], list(node.output), then_branch=then, else_branch=other)
    else:
        rounds = np.array(rng.choice((0, 1, 3, 1000)), np.int64)
        graph.initializer.append(numpy_helper.from_array(rounds, "own_rounds"))
        ends = [onnx.ValueInfoProto(name=name) for name in ("own_i", "own_c")]
        ends[0].type.tensor_type.elem_type, ends[1].type.tensor_type.elem_type = TensorProto.INT64, TensorProto.BOOL
        body = helper.make_graph(
            [helper.make_node("Identity", ["own_c"], ["own_d"]), node],
            "body",
            ends,
            [onnx.ValueInfoProto(name="own_d")],
        )
        body.output[0].type.tensor_type.elem_type = TensorProto.BOOL
        node = helper.make_node("Loop", ["own_rounds", ""], [], body=body)
    graph.node[at].CopyFrom(node)


CHANGES: Sequence[Callable[[Model, onnx.GraphProto, Rng], None]] = (
    _nodes, _edges, _attributes, _attributes, _initializers, _initializers, _values, _values, _nodes, _edges, _headers, _bodies,
)  # fmt: skip

"""Mutations of bytes, text, trees of values, arrays and models. Each takes what it changes and a random generator, and makes one change."""

from __future__ import annotations

import copy
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx.defs import SchemaError

Rng = random.Random
HUGE = (0, 1, -1, 2, 7, 255, 65536, 2**31 - 1, -(2**31), 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 0.5, -1.5, 1e-300, 1e38, 1e308, -1e308, math.nan, math.inf, -math.inf)
TEXTS = (
    "", " ", "x", "y", "0", "-1", "nan", "None", "../up", "/etc/passwd", "a/b", "a\\b", "\x1b[31mred\x1b[0m", "\x00", "\r\n::error::x",
    "<img src=x onerror=1>", "é" * 3, "\u202e", "=1+1", "a" * 5000, "%s%n", "*", "[", "{0}", "conv1",
)  # fmt: skip


def odd(rng: Rng) -> Any:
    """Return a value that nobody expects."""
    choice = rng.randrange(8)
    if choice == 0:
        return rng.choice((None, True, False, [], {}, [[]], [None], {"": {}}))
    if choice < 3:
        return rng.choice((*HUGE, 2**63, 2**64, -(2**64), 10**30, 10**400))
    if choice < 5:
        return rng.choice(FLOATS)
    if choice < 7:
        return rng.choice(TEXTS)
    deep: Any = rng.choice((0, "x"))
    for _ in range(rng.choice((3, 30, 200))):
        deep = [deep] if rng.random() < 0.5 else {"k": deep}
    return deep


# --------------------------------------------------------------------------------------------------------------- bytes


def mutate_bytes(data: bytes, rng: Rng) -> bytes:
    """Change bytes: flip, overwrite, cut, copy, insert, repeat."""
    content = bytearray(data)
    size = len(content)
    if not size:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(1, 64)))
    at = rng.randrange(size)
    span = min(size - at, rng.choice((1, 2, 4, 8, 16, 64, 256)))
    choice = rng.randrange(10)
    if choice < 3:
        content[at] ^= 1 << rng.randrange(8)
    elif choice == 3:
        content[at : at + span] = bytes(rng.randrange(256) for _ in range(span))
    elif choice == 4:
        content[at : at + span] = rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * span
    elif choice == 5:
        del content[at:]
    elif choice == 6:
        del content[at : at + span]
    elif choice == 7:
        content[at:at] = content[at : at + span] * rng.choice((1, 2, 50))
    elif choice == 8:
        content[at:at] = rng.choice((b"\x00" * 4, b"\xff" * 9, b"\x80" * 10 + b"\x01", b"PK\x03\x04", b"\n", b'"', b"{" * 3000))
    else:
        other = rng.randrange(size)
        content[at : at + span] = content[other : other + span]
    return bytes(content)


NUMBER = re.compile(rb"-?\d+(\.\d+)?")


def mutate_text(data: bytes, rng: Rng) -> bytes:
    """Change a file of text: its numbers, lines and separators; now and then its bytes."""
    choice = rng.randrange(8)
    if choice < 3:
        found = list(NUMBER.finditer(data))
        if found:
            number = rng.choice(found)
            new = str(rng.choice((*HUGE, *FLOATS, 2**64, "1" + "0" * 5000, "1e999", "0x10", "1_0", "", "٣"))).encode()
            return data[: number.start()] + new + data[number.end() :]
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    if choice == 3:
        del lines[at]
    elif choice == 4:
        lines.insert(at, rng.choice(lines))
    elif choice == 5:
        lines[at] = lines[at].replace(rng.choice((b",", b" ", b'"', b"=", b"<", b">", b"\t")), rng.choice((b"", b",", b";", b'"', b"\x00")), 1)
    elif choice == 6:
        lines[at] = rng.choice(TEXTS).encode() + lines[at]
    else:
        return mutate_bytes(data, rng)
    return b"\n".join(lines)


# --------------------------------------------------------------------------------------------------------------- trees


def mutate_tree(tree: Any, rng: Rng) -> Any:
    """Change one value of a tree of mappings and lists: replace, remove, repeat, rename, move."""
    tree = copy.deepcopy(tree)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    if not isinstance(tree, dict | list) or not tree:
        return odd(rng)
    walk(tree)
    node, key = rng.choice(places)
    choice = rng.randrange(8)
    if choice < 4:
        node[key] = odd(rng)
    elif choice == 4:
        del node[key]
    elif choice == 5:
        other, there = rng.choice(places)
        node[key] = copy.deepcopy(other[there])
    elif isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]) if choice == 6 else odd(rng))
    else:
        node[rng.choice(TEXTS)] = node.pop(key) if choice == 6 else odd(rng)
    return tree


def to_json(tree: Any) -> bytes:
    """Return a tree as JSON; one that is too deep for the encoder as brackets."""
    try:
        return json.dumps(tree, indent=1).encode("utf-8", "surrogatepass")
    except RecursionError:
        return b"[" * 100_000


def to_toml(tree: dict[str, Any]) -> bytes:
    """Return a tree as TOML, each table in line."""

    def value(entry: Any) -> str:
        if isinstance(entry, dict):
            return "{" + ", ".join(f"{json.dumps(key)} = {value(part)}" for key, part in entry.items()) + "}"
        if isinstance(entry, list):
            return "[" + ", ".join(map(value, entry)) + "]"
        if isinstance(entry, float):
            return repr(entry)
        return json.dumps(entry)

    try:
        return "".join(f"{json.dumps(key)} = {value(part)}\n" for key, part in tree.items()).encode("utf-8", "surrogatepass")
    except (RecursionError, AttributeError):
        return b"a = " + b"[" * 100_000


# -------------------------------------------------------------------------------------------------------------- arrays

DTYPES = ("float32", "float64", "float16", "int8", "uint8", "int64", "uint64", "bool", "complex64", "S3", "U4", "datetime64[s]", "O", "V5")


def mutate_array(array: np.ndarray[Any, Any], rng: Rng) -> np.ndarray[Any, Any]:
    """Change the dtype, the shape or some values of an array."""
    with np.errstate(all="ignore"):
        return _mutated_array(array, rng)


def _mutated_array(array: np.ndarray[Any, Any], rng: Rng) -> np.ndarray[Any, Any]:
    choice = rng.randrange(7)
    try:
        if choice == 0:
            return array.astype(rng.choice(DTYPES))
        if choice == 1:
            return array.reshape(rng.choice(((-1,), (1, -1), (-1, 1), (*array.shape, 1), (1, *array.shape))))
        if choice == 2:
            return array[rng.choice((slice(0), slice(1), slice(None, None, 2), slice(-1)))]
        if choice == 3:
            return np.repeat(array, 2, axis=rng.randrange(max(1, array.ndim)))
        if choice == 4:
            return np.asarray(odd(rng))
        if choice == 5:
            return np.zeros(rng.choice(((), (0,), (1,), (0, 3), (2, 0, 2))), rng.choice(DTYPES))
        changed = array.copy()
        changed.reshape(-1)[rng.randrange(max(1, changed.size))] = rng.choice((*FLOATS, *HUGE))
        return changed
    except (ValueError, TypeError, OverflowError, IndexError, RecursionError):
        return np.full((2, 2), rng.choice(FLOATS))


# -------------------------------------------------------------------------------------------------------------- models

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
        except (IndexError, ValueError, TypeError, OverflowError, DecodeError, SchemaError):  # there is nothing to change, or protobuf refuses the value
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
        node.domain = rng.choice(("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "own", "ai.onnx.training"))
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
        lambda: helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "g", [], [onnx.ValueInfoProto(name="z")]),
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
        ("location", rng.choice(("w.data", "m.onnx", "../m.onnx", "/etc/passwd", "", ".", "gone", "tmp", "w.data/", "./w.data", *TEXTS))),
        ("offset", str(rng.choice((*HUGE, "x", "", "1e3", "0x10", " 4")))),
        ("length", str(rng.choice((*HUGE, "x", "", "4.0")))),
        ("checksum", "0"),
        (rng.choice(TEXTS), "1"),
    ]
    for key, value in rng.sample(values, rng.randrange(1, 4)):
        entry = next((each for each in tensor.external_data if each.key == key), None) or tensor.external_data.add(key=key)
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
        model.opset_import.add(domain=rng.choice(("", "own", "com.microsoft", "ai.onnx.ml")), version=rng.choice((0, 1, 3, 18, 99)))
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
        model.functions.append(helper.make_function("own", "F", list(dict.fromkeys(node.input)), list(node.output), inner, opsets))
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
            other = helper.make_graph([helper.make_node("Identity", ["x"], [name]) for name in node.output], "else", [], outputs)
            node = helper.make_node("If", ["own_condition"], list(node.output), then_branch=then, else_branch=other)
    else:
        rounds = np.array(rng.choice((0, 1, 3, 1000)), np.int64)
        graph.initializer.append(numpy_helper.from_array(rounds, "own_rounds"))
        ends = [onnx.ValueInfoProto(name=name) for name in ("own_i", "own_c")]
        ends[0].type.tensor_type.elem_type, ends[1].type.tensor_type.elem_type = TensorProto.INT64, TensorProto.BOOL
        body = helper.make_graph([helper.make_node("Identity", ["own_c"], ["own_d"]), node], "body", ends, [onnx.ValueInfoProto(name="own_d")])
        body.output[0].type.tensor_type.elem_type = TensorProto.BOOL
        node = helper.make_node("Loop", ["own_rounds", ""], [], body=body)
    graph.node[at].CopyFrom(node)


CHANGES: Sequence[Callable[[Model, onnx.GraphProto, Rng], None]] = (
    _nodes, _edges, _attributes, _attributes, _initializers, _initializers, _values, _values, _nodes, _edges, _headers, _bodies,
)  # fmt: skip

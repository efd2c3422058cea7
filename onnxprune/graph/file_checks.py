"""Refuse a parsed file whose tensors, nodes, inputs or functions declare what the file does not hold, or what no machine can run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph.initializers import bodies, graphs_of
from onnxprune.runtime.session import fed_inputs

MOST_INPUT = 2**32
"""Bytes that an input declares for one run, at most."""
MOST_DENSE = 2**31
"""Bytes of a sparse tensor with all its zeros, at most."""
MOST_NODES = 10**6
"""Nodes of a model after its functions are written out, at most."""
MOST_NAMED = 3
"""Number of functions that an error names."""
KINDS = onnx.TensorProto
FIELDS: Mapping[int, tuple[str, int]] = {
    KINDS.STRING: ("string_data", 1),
    KINDS.FLOAT: ("float_data", 1),
    KINDS.COMPLEX64: ("float_data", 2),
    KINDS.DOUBLE: ("double_data", 1),
    KINDS.COMPLEX128: ("double_data", 2),
    KINDS.INT64: ("int64_data", 1),
    KINDS.UINT32: ("uint64_data", 1),
    KINDS.UINT64: ("uint64_data", 1),
}
"""Field that holds the elements of a type, and its entries per element; all other types are in `int32_data`."""
PACKED = {"FLOAT6E2M3": 6, "FLOAT6E3M2": 6, "INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
"""Bits of the types whose elements share bytes."""
WHOLE = frozenset({"Concat", "Einsum", "Max", "Mean", "Min", "RegexFullMatch", "Sum"})
"""Operators of which no input may be left out, which onnxruntime does not check."""
THIRD: Mapping[str, str] = {"DFT": "axis", "LayerNormalization": "bias"}
"""Operators whose last, third input may be left out, but not by an empty name, and what that input is."""
Function = tuple[str, str, str]
"""Domain, name and overload of a function."""


def check_tensors(proto: onnx.ModelProto, file: Path) -> None:
    """Refuse a tensor with a negative size or another number of elements than it declares; external data are not looked at.

    Raises:
        ModelError: names the tensor, its shape and what the file holds.
    """
    for tensor in _tensors(proto.graph):
        held, declared = _held(tensor), math.prod(tensor.dims)
        if min(tensor.dims, default=0) < 0 or (held is not None and held != declared):
            raise ModelError(
                "a tensor of the model is damaged",
                where=f"{file}, tensor {tensor.name}",
                why=f"its shape {list(tensor.dims)} declares {declared:,} elements, the file holds {held or 0:,}",
                hint="export or copy the model again",
            )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of a graph and of its bodies, the parts of sparse ones as well."""
    for part in graphs_of(graph):
        yield from part.initializer
        for sparse in _sparse(part):
            yield from (sparse.values, sparse.indices)
        for attribute in itertools.chain.from_iterable(node.attribute for node in part.node):
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _sparse(graph: onnx.GraphProto) -> Iterator[onnx.SparseTensorProto]:
    """Yield the sparse tensors of a graph, without its bodies."""
    yield from graph.sparse_initializer
    for attribute in itertools.chain.from_iterable(node.attribute for node in graph.node):
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor


def _held(tensor: onnx.TensorProto) -> int | None:
    """Return how many elements the file holds for a tensor; None where that is not known here: external data, unknown types."""
    kind, declared = tensor.data_type, math.prod(tensor.dims)
    bits = _bits(kind)
    if tensor.data_location == KINDS.EXTERNAL or (bits is None and kind != KINDS.STRING):
        return None
    if bits and tensor.HasField("raw_data"):
        size = len(tensor.raw_data)
        return declared if size == -(-declared * bits // 8) else size * 8 // bits
    name, each = FIELDS.get(kind, ("int32_data", 1))
    entries, packed = len(getattr(tensor, name)) // each, 8 // bits if bits and bits < 8 else 1
    return declared if entries == -(-declared // packed) else entries * packed


def _bits(kind: int) -> int | None:
    """Return the bits of an element; None for strings and unknown types."""
    if kind not in KINDS.DataType.values() or kind in (KINDS.UNDEFINED, KINDS.STRING):
        return None
    name = KINDS.DataType.Name(kind)
    return PACKED.get(name) or 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize


def check_sparse(proto: onnx.ModelProto, file: Path) -> None:
    """Refuse a sparse tensor that is too large with its zeros, or whose indices do not name each value's own element.

    Raises:
        ModelError: names the tensor and what is wrong.
    """
    for sparse in itertools.chain.from_iterable(map(_sparse, graphs_of(proto.graph))):
        wrong = _wrong_sparse(sparse)
        if wrong:
            raise ModelError(
                "a sparse tensor of the model is damaged",
                where=f"{file}, tensor {sparse.values.name}",
                why=wrong,
                hint="export the model again, with dense weights",
            )


def _wrong_sparse(sparse: onnx.SparseTensorProto) -> str:
    """Say what is wrong with a sparse tensor; empty where nothing is."""
    shape, bits = tuple(sparse.dims), _bits(sparse.values.data_type)
    if bits is None or bits < 8 or sparse.indices.data_type != KINDS.INT64:
        return "its values are no numbers, or its indices are not of the type int64"
    size = math.prod(shape) * bits // 8
    if min(shape, default=1) < 0 or not shape or size > MOST_DENSE:
        return f"its shape {list(shape)} takes {size:,} bytes, at most {MOST_DENSE:,} are read"
    n, dims = math.prod(sparse.values.dims), tuple(sparse.indices.dims)
    if dims not in ((n,), (n, len(shape))):
        return f"it has {n} values of rank {len(shape)}, and indices of shape {list(dims)}"
    indices = onnx.numpy_helper.to_array(sparse.indices)
    limits = np.array(shape if indices.ndim > 1 else math.prod(shape))
    if ((indices < 0) | (indices >= limits)).any():
        return f"an index lies outside of its shape {list(shape)}"
    return "" if len(np.unique(indices, axis=0)) == n else "an index occurs twice"


def check_nodes(proto: onnx.ModelProto, file: Path) -> None:
    """Refuse an output that is named twice, and nodes that end the process in onnxruntime instead of an error.

    Raises:
        ModelError: names the output, or the node and what is wrong.
    """
    names = [value.name for value in proto.graph.output]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ModelError(
            f"the model has more than one output of the name {twice}",
            where=str(file),
            why="values of outputs are told apart by their names",
            hint="export the model again, with each output once",
        )
    functions = {_key(function, function.name): function for function in proto.functions}
    seen: set[Hashable] = set()

    def check(nodes: Iterable[onnx.NodeProto], blank: frozenset[str], given: Mapping[str, int], where: str) -> None:
        """Check nodes of a function that is called without the inputs `blank`, and with the attributes `given`."""
        for node in nodes:
            inputs = ["" if name in blank else name for name in node.input]
            numbers = _numbers(node, given)
            wrong = _wrong_node(node, inputs, numbers)
            if wrong:
                raise ModelError(
                    "onnxruntime cannot run a node of the model",
                    where=f"{where}, node {node.name or ', '.join(node.output)} ({node.op_type})",
                    why=wrong,
                    hint="export the model again",
                )
            for body in bodies(node):
                check(body.node, blank, given, where)
            called = functions.get(_key(node, node.op_type))
            if called is None:
                continue
            left_out = frozenset(name for n, name in enumerate(called.input) if not any(inputs[n : n + 1]))
            attributes = {attribute.name: attribute.i for attribute in called.attribute_proto} | numbers
            call = (_key(node, node.op_type), left_out, frozenset(attributes.items()))
            if call not in seen:
                seen.add(call)
                check(called.node, left_out, attributes, f"{file}, function {called.name}")

    check(proto.graph.node, frozenset(), {}, str(file))


def _key(value: onnx.NodeProto | onnx.FunctionProto, name: str) -> Function:
    """Return what tells functions apart: of a function, or of a node that may call one."""
    return value.domain, name, value.overload


def _numbers(node: onnx.NodeProto, given: Mapping[str, int]) -> dict[str, int]:
    """Return the integer attributes of a node; one that refers to an attribute of the function is left out where that is not given."""
    found = {attribute.name: attribute for attribute in node.attribute}
    return {
        name: given.get(attribute.ref_attr_name, attribute.i)
        for name, attribute in found.items()
        if not attribute.ref_attr_name or attribute.ref_attr_name in given
    }


def _wrong_node(node: onnx.NodeProto, inputs: Sequence[str], numbers: Mapping[str, int]) -> str:
    """Say what is wrong with a node; empty where nothing is, or nothing that an error of onnxruntime would not tell."""
    if node.domain not in ("", "ai.onnx"):
        return ""
    if node.op_type in WHOLE and "" in inputs:
        return f"input {inputs.index('')} has no name"
    if node.op_type in THIRD and list(inputs[2:]) == [""]:
        return f"its {THIRD[node.op_type]} has no name; leave it out"
    if node.op_type == "Split" and numbers.get("num_outputs", len(node.output)) != len(node.output):
        return f"it has {len(node.output)} outputs, and declares {numbers['num_outputs']}"
    if node.op_type == "Reshape" and numbers.get("allowzero", 0) not in (0, 1):
        return f"allowzero is {numbers['allowzero']}, neither 0 nor 1: runtimes read that in different ways"
    return ""


def check_inputs(proto: onnx.ModelProto, file: Path) -> None:
    """Refuse a model without inputs, and inputs that are not numbers or take more than `MOST_INPUT` bytes.

    Raises:
        ModelError: names the input.
    """
    inputs = fed_inputs(proto)
    if not inputs:
        raise ModelError(
            "the model has no inputs", where=str(file), why="every output is constant", hint="export the model again"
        )
    for value in inputs:
        kind, dims = value.type.tensor_type.elem_type, value.type.tensor_type.shape.dim
        if _bits(kind) is None:
            raise ModelError(
                f"input {value.name} is not a tensor of numbers",
                where=str(file),
                why="onnxprune could not run the model on data",
                hint="export the network without its preprocessing",
            )
        size = math.prod(dim.dim_value for dim in dims if dim.dim_value > 0) * (_bits(kind) or 8) // 8
        if size > MOST_INPUT:
            raise ModelError(
                f"input {value.name} is too large",
                where=str(file),
                why=f"its shape {[dim.dim_value or 'any' for dim in dims]} takes {size:,} bytes, at most {MOST_INPUT:,} are run",
                hint="export the model with a smaller input",
            )


def check_functions(proto: onnx.ModelProto, file: Path) -> None:
    """Refuse functions that call each other in a circle, or that are more than `MOST_NODES` nodes when they are written out.

    Raises:
        ModelError: names the function, or the number of nodes.
    """
    written = {_key(function, function.name): function.node for function in proto.functions}
    sizes: dict[Function, int] = {}

    def size(nodes: Sequence[onnx.NodeProto], within: tuple[Function, ...]) -> int:
        total = 0
        for node in nodes:
            called = _key(node, node.op_type)
            if called in within:
                raise ModelError(
                    "the functions of the model call each other in a circle",
                    where=f"{file}, function {node.op_type}",
                    why=" calls ".join(name for _, name, _ in (*within, called)[-MOST_NAMED:]),
                    hint="export the model without functions",
                )
            if called in written and called not in sizes:
                sizes[called] = size(written[called], (*within, called))
            inner = [body.node for attribute in node.attribute for body in (attribute.g, *attribute.graphs)]
            total += sizes.get(called, 1) + sum(size(body, within) for body in inner)
        return total

    found = size(proto.graph.node, ())
    if found > MOST_NODES:
        raise ModelError(
            "the functions of the model are too large",
            where=str(file),
            why=f"they are {found:,} nodes when they are written out, at most {MOST_NODES:,} are read",
            hint="export the model without functions",
        )

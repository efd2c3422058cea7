"""A loaded model, and its export.

A `Model` wraps an onnx-graphsurgeon graph. It also holds what graphsurgeon drops (metadata, documentation, exact value
infos of inputs and outputs) and restores it on export: a pruned file differs from the original only where channels were
deleted.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter, dtype_to_onnx
from onnx_graphsurgeon.logger import G_LOGGER

from onnxprune.data.input_spec import InputSpec, input_specs
from onnxprune.graph import initializers
from onnxprune.graph.folded import Folded, export_constant, is_float, is_quantized, raw_values
from onnxprune.graph.nodes import bodies_of, has_bodies
from onnxprune.graph.normalize import BatchNorm
from onnxprune.graph.qdq import captured_names, is_dequantized, is_integer_matrix
from onnxprune.graph.shapes import InferredShapes, infer_shapes
from onnxprune.graph.signature import Signature
from onnxprune.runtime.session import DEFAULT, SessionConfig, open_session, watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence, Set

    import onnxruntime as ort


G_LOGGER.severity = G_LOGGER.CRITICAL + 1  # graphsurgeon raises as well, and that error is reported

UNKNOWN_SIGNATURE = Signature({}, {}, {})
"""Of a model that is being loaded."""


@dataclass(frozen=True)
class Model:
    """A loaded and normalized model.

    Attributes:
        graph: the onnx-graphsurgeon graph, in topological order; treated as immutable.
        header: the ModelProto without nodes, initializers and value infos.
        node_extras: the NodeProto fields that graphsurgeon drops, by the first output of the node.
        digest: SHA-256 of the file, and of its external data.
        path: the file.
        files: the file and its external data files.
        size: bytes of `files`.
        params: parameters in the file, see `count_params`.
        signature: the axes of samples of inputs and outputs.
        batchnorms: statistics of folded BatchNormalizations, by the name of the folded weight.
        folded: constants that the file computes from smaller ones, by name.
        defaults: place and type of each input with a default; a Constant node writes it in the graph.
        notes: one line per kind of change by normalization.
    """

    graph: gs.Graph
    header: onnx.ModelProto
    node_extras: dict[str, onnx.NodeProto]
    digest: str
    path: Path
    files: tuple[Path, ...]
    size: int
    params: int
    signature: Signature = UNKNOWN_SIGNATURE
    batchnorms: dict[str, BatchNorm] = field(default_factory=dict)
    folded: dict[str, Folded] = field(default_factory=dict)
    defaults: Mapping[str, tuple[int, onnx.ValueInfoProto]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return next(int(e.version) for e in self.header.opset_import if e.domain in ("", "ai.onnx"))

    def metadata(self, key: str) -> str:
        """Return an entry that `provenance` has put into the metadata of the file; empty where there is none."""
        return next((e.value for e in self.header.metadata_props if e.key == f"{PROVENANCE}{key}"), "")

    def to_proto(self) -> onnx.ModelProto:
        """Export to a ModelProto with the metadata, inputs and outputs of the original."""
        return _export(self, frozenset())[0]

    def stub(self) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
        """Export without the larger weights, named as stored in a file `initializers.STORED_IN`; return proto and weights."""
        return _export(self, frozenset(), apart=True)

    def session(
        self, config: SessionConfig = DEFAULT, *, where: str = "", outputs: Sequence[str] = ()
    ) -> ort.InferenceSession:
        """Open an onnxruntime session that shares the weights with this model, which may exceed 2 GB.

        The tensors `outputs` are outputs as well.
        """
        proto, weights = self.stub()
        watch(proto, outputs)
        return open_session(proto, config, where=where or str(self.path), weights=weights)

    def byte_size(self) -> int:
        """Return the bytes of `to_proto`, serialized, without serializing it, which fails beyond 2 GB."""
        proto, weights = self.stub()
        stub = graph = proto.graph.ByteSize()
        for tensor in proto.graph.initializer:
            if tensor.name in weights:
                head = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims).ByteSize()
                graph += _field(head + _field(weights[tensor.name].nbytes)) - _field(tensor.ByteSize())
        return int(proto.ByteSize() - _field(stub) + _field(graph))

    def content_digest(self) -> str:
        """Return a SHA-256 of nodes, weights and attributes as they are now; `digest` is that of the file."""
        proto, weights = self.stub()
        found = hashlib.sha256(proto.SerializeToString(deterministic=True))
        for name, values in weights.items():
            found.update(f"{name} {values.dtype} {values.shape};".encode())
            found.update(np.ascontiguousarray(values).data.cast("B"))
        return found.hexdigest()

    def part(
        self, nodes: Sequence[int], inputs: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str]
    ) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
        """Export some nodes, by ascending number, as a model without the larger weights; return both.

        `inputs` holds a value of each tensor that other nodes write, `outputs` the names of the model's outputs. Vectors of
        integers keep their length: a Resize takes a target shape of unknown length for an absent one.
        """
        proto = onnx.ModelProto(ir_version=self.header.ir_version, opset_import=self.header.opset_import)
        graph = proto.graph
        graph.name = "part"
        weights: dict[str, gs.Constant] = {}
        captured: set[str] = set()
        for node in (self.graph.nodes[n] for n in nodes):
            graph.node.append(_export_node(self, node))
            weights |= {t.name: t for t in node.inputs if isinstance(t, gs.Constant)}
            captured |= set(captured_names(node))
        if captured:
            known = constants_of(self.graph)
            weights |= {name: known[name] for name in captured if name in known}
        apart = {name: tensor.values for name, tensor in weights.items() if _is_shared(tensor)}
        graph.initializer.extend(
            _placeholder(tensor) if name in apart else export_constant(tensor) for name, tensor in weights.items()
        )
        for name, value in inputs.items():
            kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            shape = value.shape if value.dtype.kind == "i" and value.ndim == 1 else [None] * value.ndim
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return proto, apart

    def copy(self) -> Model:
        """Return a model whose graph can be changed; weights are shared until they are replaced."""
        return replace(self, graph=copy_graph(self.graph), batchnorms=dict(self.batchnorms), folded=dict(self.folded))


def copy_graph(graph: gs.Graph) -> gs.Graph:
    """Copy the nodes and tensors of a graph, not their values."""
    if any(map(has_bodies, graph.nodes)):
        return graph.copy()  # handles captured tensors, and copies every tensor twice

    def copies(originals: list[gs.Tensor]) -> list[gs.Tensor]:
        return [tensors[t.name] if t.name else gs.Variable.empty() for t in originals]

    tensors = {name: tensor.copy() for name, tensor in graph.tensors().items()}
    nodes = [node.copy(copies(node.inputs), copies(node.outputs)) for node in graph.nodes]
    return gs.Graph(
        nodes,
        copies(graph.inputs),
        copies(graph.outputs),
        name=graph.name,
        opset=graph.opset,
        import_domains=graph.import_domains,
        ir_version=graph.ir_version,
    )


PROVENANCE = "onnxprune."
"""Prefix of the metadata keys that tell where a model comes from."""


def provenance(digest: str, **more: str) -> dict[str, str]:
    """Return the metadata of a result: version, SHA-256 of the original, and further entries."""
    found = {"version": importlib.metadata.version("onnxprune"), "original.sha256": digest, **more}
    return {f"{PROVENANCE}{key}": value for key, value in found.items()}


def inputs_of(model: Model) -> tuple[InputSpec, ...]:
    """Return the inputs of a model, with their axes of samples."""
    return input_specs(model.header, model.signature.inputs, model.signature.fixed)


def tensors_of(graph: gs.Graph) -> Iterator[tuple[int, int, gs.Constant]]:
    """Yield (node index, input index, constant) of every constant input of a node of the main graph."""
    for n, node in enumerate(graph.nodes):
        for i, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant):
                yield n, i, tensor


def is_weight(graph: gs.Graph, n: int, i: int) -> bool:
    """Tell whether input i of node n counts as parameters: floats, matrices of bytes, and integers that are dequantized."""
    tensor = graph.nodes[n].inputs[i]
    return is_float(tensor) or is_quantized(tensor) or (i == 0 and is_dequantized(graph.nodes[n]))


def constants_of(graph: gs.Graph) -> dict[str, gs.Constant]:
    """Return the constants of the main graph, and the weights that bodies read, by name."""
    found = {name: t for name, t in graph.tensors().items() if isinstance(t, gs.Constant)}
    for node in graph.nodes:
        for tensor in _body_constants(node):
            if is_float(tensor) and math.prod(tensor.shape) > initializers.SMALL:
                found.setdefault(tensor.name, tensor)
    return found


def _body_constants(node: gs.Node) -> Iterator[gs.Constant]:
    """Yield the constants that the bodies of a node read, but do not return."""
    for body in bodies_of(node):
        returned = {id(t) for t in body.outputs}
        for inner in body.nodes:
            yield from (t for t in inner.inputs if isinstance(t, gs.Constant) and id(t) not in returned)
            yield from _body_constants(inner)


def params_of(model: Model) -> dict[str, int]:
    """Return the number of elements of each weight that a file stores, by name; for a weight that the file computes, what it computes it from."""
    graph = model.graph
    found = {t.name: math.prod(t.shape) for n, i, t in tensors_of(graph) if is_weight(graph, n, i)}
    bodies = (t for node in graph.nodes for t in _body_constants(node) if is_float(t))
    found |= {t.name: math.prod(t.shape) for t in bodies}
    params = {name: folded.params() for name, folded in model.folded.items() if name in found}
    uses = Counter(itertools.chain(*params.values()))
    shared = {
        name for name, times in uses.items() if times > 1 or name in found
    }  # each is stored once, under its own name
    found |= {name: sum(n for source, n in one.items() if source not in shared) for name, one in params.items()}
    return {source: n for one in params.values() for source, n in one.items() if source in shared} | found


def count_params(proto: onnx.ModelProto) -> int:
    """Return the number of parameters that a file stores, bodies included: floats, and quantized weights.

    Each stored tensor counts once, be it an initializer or the value of a Constant.
    """
    return _count_params(proto.graph)


def _count_params(graph: onnx.GraphProto) -> int:
    attributes = [(node, attribute) for node in graph.node for attribute in node.attribute]
    stored = [(t.name, t.data_type, t.dims) for t in graph.initializer]
    stored += [(t.values.name, t.values.data_type, t.dims) for t in graph.sparse_initializer]
    for node, attribute in attributes:
        if node.op_type == "Constant" and attribute.name == "value":
            stored.append((node.output[0], attribute.t.data_type, attribute.t.dims))
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            size = len(attribute.floats) if attribute.name == "value_floats" else 1
            stored.append((node.output[0], onnx.TensorProto.FLOAT, [size]))
    dequantized = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    own = sum(
        int(math.prod(dims))
        for name, kind, dims in stored
        if kind in initializers.FLOATS or is_integer_matrix(kind, dims) or name in dequantized
    )
    bodies = [body for _, attribute in attributes for body in (attribute.g, *attribute.graphs) if body.node]
    return own + sum(map(_count_params, bodies))


def weightless(model: Model) -> onnx.ModelProto:
    """Export a model with its weights turned into inputs: small, and enough for shape inference."""
    return _export(model, params_of(model).keys())[0]


def inferred(model: Model, inputs: Mapping[str, tuple[int, ...]]) -> InferredShapes:
    """Infer the shapes of all tensors, given concrete shapes of inputs."""
    return infer_shapes(weightless(model), inputs)


def _is_shared(tensor: gs.Constant) -> bool:
    """Tell whether a session takes a constant from the model, and not from the proto."""
    return initializers.is_shared(dtype_to_onnx(tensor.dtype), tensor.shape)


def _field(size: int) -> int:
    """Return the bytes of a protobuf field with `size` bytes of content and a tag of one byte."""
    return 1 + max(1, -(-size.bit_length() // 7)) + size


def _placeholder(tensor: gs.Constant) -> onnx.TensorProto:
    return initializers.placeholder(tensor.name, dtype_to_onnx(tensor.dtype), tensor.shape)


def _export_node(model: Model, node: gs.Node) -> onnx.NodeProto:
    """Export a node, without the weights that its bodies read."""
    proto: onnx.NodeProto = OnnxExporter.export_node(node)
    if not proto.domain:
        proto.ClearField("domain")  # two bytes of every node
    extras = model.node_extras.get(node.outputs[0].name) if node.outputs else None
    if extras is not None:
        proto.MergeFrom(extras)
    for body in initializers.bodies(proto):
        for part in initializers.graphs_of(body):
            returned = {value.name for value in part.output}
            own = [t for t in part.initializer if t.name in returned or not initializers.is_apart(t)]
            del part.initializer[:]
            part.initializer.extend(own)
            for inner in part.node:
                if not inner.domain:
                    inner.ClearField("domain")
    return proto


def _export(
    model: Model, as_inputs: Set[str], *, apart: bool = False
) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
    """Export a model; return it, and the larger weights where they are kept `apart`.

    Constants in `as_inputs` become inputs.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.header)
    body = proto.graph
    constants = constants_of(model.graph)
    stored = {
        name: folded
        for name, known in model.folded.items()
        if name in constants and name not in as_inputs and (folded := known.storing(constants[name].values))
    }
    free = _unused(model.graph)
    for node in model.graph.nodes:
        for name in [t.name for t in node.inputs] + list(captured_names(node)):
            if name in stored:
                folded = stored.pop(name).renamed(name, free)
                body.node.extend(folded.nodes)
                del constants[name]
                constants |= folded.sources
        body.node.append(_export_node(model, node))
    weights: dict[str, np.ndarray[Any, Any]] = {}
    for tensor in constants.values():  # one at a time, to avoid a second copy of all weights
        if tensor.name in as_inputs:
            kind = body.input.add(name=tensor.name).type.tensor_type
            kind.elem_type = dtype_to_onnx(tensor.dtype)
            kind.shape.SetInParent()  # a scalar has a shape, too
            for size in tensor.shape:
                kind.shape.dim.add(dim_value=size)
        elif apart and _is_shared(tensor):
            body.initializer.append(_placeholder(tensor))
            weights[tensor.name] = tensor.values
        else:
            body.initializer.append(export_constant(tensor))
    initializers.give_defaults(body, model.defaults)
    return proto, weights


def _unused(graph: gs.Graph) -> Callable[[str, gs.Constant | None], str]:
    """Return a function that gives names which no other tensor has; constants of equal values may share one."""
    taken: dict[str, gs.Tensor | None] = dict(graph.tensors())

    def free(name: str, source: gs.Constant | None) -> str:
        for option in itertools.chain([name], (f"{name}__{number}" for number in itertools.count(2))):
            if option not in taken:
                taken[option] = source
                return option
            other = taken[option]
            if source is not None and isinstance(other, gs.Constant) and _are_equal(source, other):
                return option
        raise AssertionError("there are always more names")

    return free


def _are_equal(a: gs.Constant, b: gs.Constant) -> bool:
    """Tell whether two constants have the same values; what is not loaded stays so."""
    one, other = raw_values(a), raw_values(b)
    if one is other or not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)):
        return one is other
    return one.dtype == other.dtype and np.array_equal(one, other)

"""Load, check, normalise and save ONNX models.

A `Model` wraps an onnx-graphsurgeon graph. What graphsurgeon does not carry (metadata, documentation, exact value infos of
inputs and outputs) is kept beside it and put back when the model is exported, so that a pruned file differs from the
original only where channels went.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter, dtype_to_onnx
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnxprune.errors import ModelError
from onnxprune.files import damaged, parse
from onnxprune.graph.shapes import infer_shapes
from onnxprune.normalise import (
    BatchNorm,
    captured_names,
    explicit_arguments,
    fold_batchnorms,
    fold_constants,
    fold_shapes,
    means_of_norms,
    needs_arguments,
    sum_norms,
    unshare_targets,
)
from onnxprune.output import check_destination, staged
from onnxprune.quantised import is_dequantised, separate_weights
from onnxprune.runtime.session import DEFAULT, UNOPTIMIZED, SessionConfig, open_session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence, Set

    import onnxruntime as ort

G_LOGGER.severity = G_LOGGER.CRITICAL + 1  # it raises, and we say why

PROTO_LIMIT = 2**31 - 2**24
"""Bytes above which weights go to a file of their own (protobuf ends at 2 GB)."""

STORED_IN = "weights"
SHARED_TYPES = (np.float32, np.float64, np.float16)
SHARED_FROM = 1024
"""Elements from which a session reads a weight where it is."""

BODY = ("node", "initializer", "sparse_initializer", "value_info")
"""Fields of a GraphProto that the graph holds; the rest comes from the header."""

QUANTISED_LAYERS = frozenset(
    {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm", "QAttention", "DynamicQuantizeMatMul"}
)


@dataclass(frozen=True)
class Model:
    """A loaded and normalised model.

    Attributes:
        graph: the onnx-graphsurgeon graph, in topological order; treated as immutable.
        header: the ModelProto without nodes, initializers and value infos.
        node_extras: per first output name of a node, the NodeProto fields that graphsurgeon drops.
        digest: SHA-256 of the file.
        path: the file.
        files: the file, and those with its external data.
        size: bytes of all of these.
        params: elements of all weights as the file has them, before anything is folded.
        batchnorms: statistics of folded BatchNormalizations, by the name of the weight that took them in.
        notes: what normalisation did, one line each.
    """

    graph: gs.Graph
    header: onnx.ModelProto
    node_extras: dict[str, onnx.NodeProto]
    digest: str
    path: Path
    files: tuple[Path, ...]
    size: int
    params: int
    batchnorms: dict[str, BatchNorm] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return next(int(e.version) for e in self.header.opset_import if e.domain in ("", "ai.onnx"))

    def to_proto(self) -> onnx.ModelProto:
        """Export to a ModelProto with the original's metadata, inputs and outputs."""
        return _export(self, frozenset())

    def stub(self) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
        """Export without the larger weights, which are returned beside it: it names them as stored in a file `STORED_IN`."""
        apart = {t.name: t for _, _, t in tensors_of(self.graph) if _is_shared(t)}
        proto = _export(self, frozenset(), frozenset(apart))
        return proto, {name: tensor.values for name, tensor in apart.items()}

    def session(self, config: SessionConfig = DEFAULT, *, where: str = "") -> ort.InferenceSession:
        """Open an onnxruntime session that shares the weights with this model, so that they may take more than 2 GB; see `onnxprune.runtime.session.open_session`."""
        proto, weights = self.stub()
        return open_session(proto, config, where=where or str(self.path), weights=weights)

    def byte_size(self) -> int:
        """Return the bytes of `to_proto`, serialised, without making them; beyond 2 GB, of what that would come to."""
        proto, weights = self.stub()
        stub = graph = proto.graph.ByteSize()
        for tensor in proto.graph.initializer:
            if tensor.name in weights:
                head = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims).ByteSize()
                graph += _field(head + _field(weights[tensor.name].nbytes)) - _field(tensor.ByteSize())
        return int(proto.ByteSize() - _field(stub) + _field(graph))

    def part(
        self, nodes: Sequence[int], inputs: Mapping[str, tuple[np.dtype[Any], int]], outputs: Sequence[str]
    ) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
        """Export some nodes as a model of their own, without its larger weights, which are returned beside it.

        Args:
            nodes: their numbers, ascending.
            inputs: dtype and rank of each tensor that comes from outside.
            outputs: names of the tensors to return.
        """
        proto = onnx.ModelProto(ir_version=self.header.ir_version, opset_import=self.header.opset_import)
        graph = proto.graph
        graph.name = "part"
        weights: dict[str, gs.Constant] = {}
        captured: set[str] = set()
        for n in nodes:
            node = OnnxExporter.export_node(self.graph.nodes[n])
            extras = self.node_extras.get(node.output[0]) if node.output else None
            if extras is not None:
                node.MergeFrom(extras)
            graph.node.append(node)
            weights |= {t.name: t for t in self.graph.nodes[n].inputs if isinstance(t, gs.Constant)}
            captured |= set(captured_names(self.graph.nodes[n]))
        if captured:
            known = self.graph.tensors()
            weights |= {t.name: t for name in captured if isinstance(t := known.get(name), gs.Constant)}
        apart = {name: tensor.values for name, tensor in weights.items() if _is_shared(tensor)}
        graph.initializer.extend(
            _placeholder(tensor) if name in apart else OnnxExporter.export_tensor_proto(tensor)
            for name, tensor in weights.items()
        )
        for name, (dtype, rank) in inputs.items():
            kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * rank))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return proto, apart

    def copy(self) -> Model:
        """Return a model whose graph can be changed; weights are shared until they are replaced."""
        return replace(self, graph=copy_graph(self.graph), batchnorms=dict(self.batchnorms))


def copy_graph(graph: gs.Graph) -> gs.Graph:
    """Copy the nodes and tensors of a graph, not their values."""
    if any(isinstance(value, gs.Graph) for node in graph.nodes for value in node.attrs.values()):
        return graph.copy()  # knows what bodies take from outside, and copies every tensor twice

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
"""How the keys of metadata begin that say where a model comes from."""


def provenance(digest: str, **more: str) -> dict[str, str]:
    """Return what a result says of itself in its metadata.

    Args:
        digest: SHA-256 of the original.
        more: what else there is to say, by key.
    """
    found = {"version": importlib.metadata.version("onnxprune"), "original.sha256": digest, **more}
    return {f"{PROVENANCE}{key}": value for key, value in found.items()}


def tensors_of(graph: gs.Graph) -> Iterator[tuple[int, int, gs.Constant]]:
    """Yield (node index, input index, constant) of every constant that a node of the main graph takes."""
    for n, node in enumerate(graph.nodes):
        for i, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant):
                yield n, i, tensor


def is_float(tensor: gs.Constant) -> bool:
    """Tell whether a constant holds floating point numbers (float16, bfloat16, float32, float64)."""
    dtype = tensor.dtype
    if isinstance(dtype, int):
        return dtype == onnx.TensorProto.BFLOAT16
    return dtype.kind == "f" or (dtype.kind == "V" and str(dtype) == "bfloat16")


def is_weight(graph: gs.Graph, n: int, i: int) -> bool:
    """Tell whether the constant at input i of node n counts as parameters: floats, and integers that are dequantised."""
    return is_float(graph.nodes[n].inputs[i]) or (i == 0 and is_dequantised(graph.nodes[n]))


def params_of(graph: gs.Graph) -> dict[str, int]:
    """Return the number of elements of each weight of a graph, by name."""
    return {t.name: math.prod(t.shape) for n, i, t in tensors_of(graph) if is_weight(graph, n, i)}


def count_params(graph: gs.Graph) -> int:
    """Return the number of parameters of a graph, each stored tensor once."""
    return sum(params_of(graph).values())


def load(path: str | os.PathLike[str]) -> Model:
    """Read, check and normalise a model; the file is not touched.

    Raises:
        ModelError: not an ONNX file, truncated, empty, weights missing or NaN, an opset or domain that is not known, or
            anything else that keeps onnxruntime from loading it.
    """
    file = Path(path)
    with damaged(file):
        return _load(file)


def _load(file: Path) -> Model:
    model = _imported(file)
    graph = model.graph
    _refuse_unloadable(model)
    fold_constants(graph, str(file))
    model = replace(model, params=count_params(graph))
    _refuse_nan(graph, file)
    while any(node.op == "Shape" for node in graph.nodes) and fold_shapes(graph, _static_shapes(model)):
        fold_constants(graph, str(file))
    if any(needs_arguments(node) for node in graph.nodes):
        explicit_arguments(graph, _static_shapes(model), model.opset)
    if means_of_norms(graph):
        sum_norms(graph, infer_shapes(weightless(model), {}), model.opset)
    unshare_targets(graph)
    separate_weights(graph, {name for node in graph.nodes for name in captured_names(node)})
    graph, batchnorms = fold_batchnorms(graph)
    notes = (f"{len(batchnorms)} BatchNormalization folded into the layers before them",) if batchnorms else ()
    return replace(model, graph=graph, batchnorms=batchnorms, notes=notes)


def _imported(file: Path) -> Model:
    """Read a file into a graph that shares no memory with the parsed file, so that this is freed on return."""
    digest, proto, files = parse(file)
    size = sum(f.stat().st_size for f in files)
    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    extras = _unsupported_by_graphsurgeon(proto.graph)
    del proto.graph.value_info[:]  # shapes of the unpruned model would go stale
    graph = gs.import_onnx(proto)
    header = onnx.ModelProto()
    header.CopyFrom(_without_body(proto))
    _detach(graph, header)
    graph.toposort()
    return Model(graph, header, extras, digest, file, files, size, count_params(graph))


def _detach(graph: gs.Graph, header: onnx.ModelProto) -> None:
    """Give a graph and the bodies in it values of their own: any part of a proto keeps all of it in memory."""
    graph.import_domains = header.opset_import
    for node in graph.nodes:
        for value in (*node.inputs, *node.attrs.values()):
            if isinstance(value, gs.Graph):
                _detach(value, header)
            elif isinstance(value, gs.Constant) and isinstance(value._values, LazyValues):
                value._values = _detached(value._values)
    for value in graph.outputs:
        if isinstance(value, gs.Constant) and isinstance(value._values, LazyValues):
            value._values = _detached(value._values)


def _detached(lazy: LazyValues) -> LazyValues | np.ndarray[Any, Any]:
    plain = isinstance(lazy.dtype, np.dtype) and lazy.dtype.kind in "biuf" and not isinstance(lazy, SparseValues)
    if plain:
        return onnx.numpy_helper.to_array(lazy.tensor)
    copy = type(lazy.tensor)()  # strings, packed integers, bfloat16: an array would not export to the same bytes
    copy.CopyFrom(lazy.tensor)
    return type(lazy)(copy)


def _refuse_unloadable(model: Model) -> None:
    """Refuse what onnxruntime cannot load, since nobody could prove it; without weights that is found out quickly.

    A few operators insist on constants, so when it fails the whole file has the last word.
    """
    try:
        open_session(weightless(model), UNOPTIMIZED)
    except ModelError:
        open_session(os.fspath(model.path), UNOPTIMIZED, where=str(model.path))


def _static_shapes(model: Model) -> dict[str, list[int | None]]:
    """Return what is known of shapes whatever size the dynamic axes take."""
    return infer_shapes(weightless(model), {}).partial


def weightless(model: Model) -> onnx.ModelProto:
    """Export a model with its weights turned into inputs: all that shape inference needs, and light."""
    return _export(model, {t.name for n, i, t in tensors_of(model.graph) if is_weight(model.graph, n, i)})


def _is_shared(tensor: gs.Constant) -> bool:
    """Tell whether a session may read a constant where it is: floats, and so many that a copy would cost something."""
    return bool(tensor.dtype in SHARED_TYPES and math.prod(tensor.shape) >= SHARED_FROM)


def _field(size: int) -> int:
    """Return the bytes of a protobuf field of one tag byte that holds so many bytes."""
    return 1 + max(1, -(-size.bit_length() // 7)) + size


def _placeholder(tensor: gs.Constant) -> onnx.TensorProto:
    """Return a tensor that says that its values are elsewhere."""
    kind = dtype_to_onnx(tensor.dtype)
    proto = onnx.TensorProto(
        name=tensor.name, data_type=kind, dims=tensor.shape, data_location=onnx.TensorProto.EXTERNAL
    )
    proto.external_data.add(key="location", value=STORED_IN)
    return proto


def _export(model: Model, as_inputs: Set[str], apart: Set[str] = frozenset()) -> onnx.ModelProto:
    """Export a model; constants named in `as_inputs` become inputs, without their values; those of `apart` are elsewhere."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.header)
    body = proto.graph
    for node in model.graph.nodes:
        exported = OnnxExporter.export_node(node)
        extras = model.node_extras.get(node.outputs[0].name) if node.outputs else None
        if extras is not None:
            exported.MergeFrom(extras)
        body.node.append(exported)
    for tensor in model.graph.tensors().values():  # one at a time: there is no second copy of all weights
        if not isinstance(tensor, gs.Constant):
            continue
        if tensor.name in as_inputs:
            kind = body.input.add(name=tensor.name).type.tensor_type
            kind.elem_type = dtype_to_onnx(tensor.dtype)
            kind.shape.SetInParent()  # a scalar has a shape, too
            for size in tensor.shape:
                kind.shape.dim.add(dim_value=size)
        elif tensor.name in apart:
            body.initializer.append(_placeholder(tensor))
        elif isinstance(tensor._values, SparseValues):
            body.sparse_initializer.append(OnnxExporter.export_sparse_tensor_proto(tensor))
        else:
            body.initializer.append(OnnxExporter.export_tensor_proto(tensor))
    return proto


def save(model: Model, path: str | os.PathLike[str], metadata: dict[str, str] | None = None) -> int:
    """Write a model beside its destination, then move it there; return the bytes written.

    Args:
        model: what to write. Weights go to `<path>.data` when they don't fit in 2 GB.
        path: the destination.
        metadata: entries to set in the model's metadata.

    Raises:
        OutputError: the file cannot be written.
    """
    target = Path(path)
    check_destination(target, *model.files)
    proto = model.to_proto()
    for key, value in (metadata or {}).items():
        entry = next((p for p in proto.metadata_props if p.key == key), None) or proto.metadata_props.add(key=key)
        entry.value = value
    with staged(target) as temporary:
        if model.byte_size() < PROTO_LIMIT:
            temporary.write_bytes(proto.SerializeToString())
            return temporary.stat().st_size
        data = target.with_name(target.name + ".data")
        check_destination(data, *model.files)
        with staged(data) as temporary_data:
            onnx.save_model(proto, str(temporary), save_as_external_data=True, location=temporary_data.name)
            stub = onnx.load_model(str(temporary), load_external_data=False)
            for tensor in stub.graph.initializer:
                for entry in tensor.external_data:
                    if entry.key == "location":
                        entry.value = data.name
            temporary.write_bytes(stub.SerializeToString())
            return temporary.stat().st_size + temporary_data.stat().st_size


def _unsupported_by_graphsurgeon(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Take out of each node what graphsurgeon would lose, and return it by the node's first output."""
    extras: dict[str, onnx.NodeProto] = {}
    kinds = onnx.AttributeProto
    lists = {kinds.INTS: "ints", kinds.FLOATS: "floats", kinds.STRINGS: "strings"}
    for node in graph.node:
        kept = onnx.NodeProto(doc_string=node.doc_string, metadata_props=node.metadata_props)
        odd = [
            a
            for a in node.attribute
            if a.type in (kinds.SPARSE_TENSOR, kinds.TYPE_PROTO, kinds.GRAPHS, kinds.TENSORS)
            or (a.type in lists and not len(getattr(a, lists[a.type])))
        ]
        for attribute in odd:
            kept.attribute.append(attribute)
            node.attribute.remove(attribute)
        if kept.ByteSize() and node.output:
            extras[node.output[0]] = kept
    return extras


def _without_body(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the proto without nodes, tensors and functions; graphsurgeon holds what it needs of those."""
    header = onnx.ModelProto()
    for source, target, skipped in ((proto, header, ("graph", "functions")), (proto.graph, header.graph, BODY)):
        for descriptor, value in source.ListFields():
            if descriptor.name in skipped:
                continue
            if hasattr(value, "extend"):
                getattr(target, descriptor.name).extend(value)
            else:
                setattr(target, descriptor.name, value)
    return header


def _refuse_nan(graph: gs.Graph, file: Path) -> None:
    for n, _, tensor in tensors_of(graph):
        # min propagates NaN and needs no temporary of the size of the tensor
        if is_float(tensor) and 0 not in tensor.shape and np.isnan(float(np.min(tensor.values))):
            raise ModelError(
                "a weight is NaN",
                where=f"{file}, tensor {tensor.name}, used by {graph.nodes[n].name or graph.nodes[n].op}",
                why="the export or the training went wrong",
                hint="repair the model before pruning it",
            )

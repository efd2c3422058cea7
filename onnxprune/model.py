"""Load, check, normalise and save ONNX models.

A `Model` wraps an onnx-graphsurgeon graph. What graphsurgeon does not carry (metadata, documentation, exact value infos of
inputs and outputs) is kept beside it and put back when the model is exported, so that a pruned file differs from the
original only where channels went.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnxprune import runtime
from onnxprune.errors import ModelError
from onnxprune.files import damaged, parse
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

if TYPE_CHECKING:
    from collections.abc import Iterator

G_LOGGER.severity = G_LOGGER.CRITICAL + 1  # it raises, and we say why

PROTO_LIMIT = 2**31 - 2**24
"""Bytes above which weights go to a file of their own (protobuf ends at 2 GB)."""

BODY = ("node", "initializer", "sparse_initializer", "value_info")
"""Fields of a GraphProto that graphsurgeon exports; the rest comes from the header."""

PACKED = frozenset({onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT4E2M1})
"""Types of less than a byte, which graphsurgeon only writes as it read them."""
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

    def to_proto(self) -> onnx.ModelProto:
        """Export to a ModelProto with the original's metadata, inputs and outputs."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.header)
        graph = OnnxExporter.export_graph(self.graph, do_type_check=False)
        for node in graph.node:
            extras = self.node_extras.get(node.output[0]) if node.output else None
            if extras is not None:
                node.MergeFrom(extras)
        for name in BODY:
            getattr(proto.graph, name).extend(getattr(graph, name))
        return proto

    def copy(self) -> Model:
        """Return a model whose graph can be changed; weights are shared until they are replaced."""
        return replace(self, graph=self.graph.copy(), batchnorms=dict(self.batchnorms))


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
    return np.issubdtype(dtype, np.floating) or str(dtype) == "bfloat16"


def is_weight(graph: gs.Graph, n: int, i: int) -> bool:
    """Tell whether the constant at input i of node n counts as parameters: floats, and integers that are dequantised."""
    return is_float(graph.nodes[n].inputs[i]) or (i == 0 and is_dequantised(graph.nodes[n]))


def params_of(graph: gs.Graph) -> dict[str, int]:
    """Return the number of elements of each weight of a graph, by name."""
    return {t.name: int(np.prod(t.shape, dtype=np.int64)) for n, i, t in tensors_of(graph) if is_weight(graph, n, i)}


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
    content, proto, files = parse(file)
    digest, size = hashlib.sha256(content).hexdigest(), sum(f.stat().st_size for f in files)
    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    extras = _unsupported_by_graphsurgeon(proto.graph)
    del proto.graph.value_info[:]  # shapes of the unpruned model would go stale
    graph = gs.import_onnx(proto)
    header = onnx.ModelProto()
    header.CopyFrom(_without_body(proto))
    graph.toposort()
    for _, _, tensor in tensors_of(graph):
        if isinstance(tensor._values, LazyValues) and tensor._values.tensor.data_type not in PACKED:
            tensor._values = onnx.numpy_helper.to_array(tensor._values.tensor)  # shares memory with the proto
    model = Model(graph, header, extras, digest, file, files, size, count_params(graph))
    _refuse_unloadable(model)
    fold_constants(graph, str(file))
    model = replace(model, params=count_params(graph))
    _refuse_nan(graph, file)
    while any(node.op == "Shape" for node in graph.nodes) and fold_shapes(graph, _static_shapes(model)):
        fold_constants(graph, str(file))
    if any(needs_arguments(node) for node in graph.nodes):
        opset = next(entry.version for entry in header.opset_import if entry.domain in ("", "ai.onnx"))
        explicit_arguments(graph, _static_shapes(model), opset)
    if means_of_norms(graph):
        opset = next(entry.version for entry in header.opset_import if entry.domain in ("", "ai.onnx"))
        sum_norms(graph, runtime.infer_shapes(weightless(model), {}), opset)
    unshare_targets(graph)
    separate_weights(graph, {name for node in graph.nodes for name in captured_names(node)})
    graph, batchnorms = fold_batchnorms(graph)
    notes = (f"{len(batchnorms)} BatchNormalization folded into the layers before them",) if batchnorms else ()
    return replace(model, graph=graph, batchnorms=batchnorms, notes=notes)


def _refuse_unloadable(model: Model) -> None:
    """Refuse what onnxruntime cannot load, since nobody could prove it; without weights that is found out quickly.

    A few operators insist on constants, so when it fails the whole file has the last word.
    """
    try:
        runtime.session(weightless(model), optimise=False)
    except ModelError:
        runtime.session(os.fspath(model.path), optimise=False, where=str(model.path))


def _static_shapes(model: Model) -> dict[str, list[int | None]]:
    """Return what is known of shapes whatever size the dynamic axes take."""
    return runtime.infer_shapes(weightless(model), {}).partial


def weightless(model: Model) -> onnx.ModelProto:
    """Export a model with its weights turned into inputs: all that shape inference needs, and light."""
    graph = model.graph.copy()
    inputs: dict[str, gs.Variable] = {}
    for n, i, weight in tensors_of(model.graph):
        if is_weight(model.graph, n, i):
            inputs.setdefault(weight.name, gs.Variable(weight.name, dtype=weight.dtype, shape=tuple(weight.shape)))
            graph.nodes[n].inputs[i] = inputs[weight.name]
    light = replace(model, graph=graph).to_proto()
    light.graph.input.extend(OnnxExporter.export_value_info_proto(tensor, False) for tensor in inputs.values())
    return light


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
        if proto.ByteSize() < PROTO_LIMIT:
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

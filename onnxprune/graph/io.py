"""Read and write ONNX files. External data are loaded from the model's own folder only."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_graphsurgeon as gs
from onnx import external_data_helper
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from onnxprune.errors import ModelError, OnnxPruneError, first_line
from onnxprune.fileio import atomic_write, check_destination
from onnxprune.graph.model import Model, count_params, is_float, tensors_of, weightless
from onnxprune.graph.normalize import (
    captured_names,
    explicit_arguments,
    fold_batchnorms,
    fold_constants,
    fold_shapes,
    means_of_norms,
    needs_arguments,
    raw_values,
    sum_norms,
    unshare_targets,
)
from onnxprune.graph.qdq import separate_weights
from onnxprune.graph.shapes import infer_shapes
from onnxprune.runtime.session import UNOPTIMIZED, open_session

KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
"""Domains whose operators a stock onnxruntime executes on the CPU."""

OLDEST_OPSET = 7

PROTO_LIMIT = 2**31 - 2**24
"""Bytes above which weights go to a file of their own (protobuf ends at 2 GB)."""

BODY = ("node", "initializer", "sparse_initializer", "value_info")
"""Fields of a GraphProto that the graph holds; the rest comes from the header."""


def read(path: str | os.PathLike[str]) -> tuple[onnx.ModelProto, int]:
    """Read and check a model as it is, external data included; return it and the bytes of its files.

    Raises:
        ModelError: as for `load`.
    """
    _, proto, size = read_with_digest(path)
    return proto, size


def read_with_digest(path: str | os.PathLike[str]) -> tuple[str, onnx.ModelProto, int]:
    """Return the SHA-256 of the file as well, in front; see `read`."""
    with damaged(Path(path)):
        digest, proto, files = parse(Path(path))
        return digest, proto, sum(file.stat().st_size for file in files)


@contextmanager
def damaged(file: Path) -> Iterator[None]:
    """Tell whatever a library stumbles over in a file as a ModelError."""
    try:
        yield
    except (OnnxPruneError, MemoryError):
        raise
    except Exception as error:
        open_session(os.fspath(file), UNOPTIMIZED, where=str(file))  # says it better, if it cannot load it either
        raise ModelError(
            "the model cannot be read",
            where=str(file),
            why=first_line(error),
            hint="check that the file is undamaged and runs in onnxruntime",
        ) from error


def parse(file: Path) -> tuple[str, onnx.ModelProto, tuple[Path, ...]]:
    """Parse and check a file; return its SHA-256, the proto, and the files that it consists of."""
    try:
        with open(file, "rb") as stream:
            if not os.fstat(stream.fileno()).st_size:
                raise ModelError("the model file is empty", where=str(file), hint="export or copy the model again")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
                digest, proto = hashlib.sha256(view).hexdigest(), _parsed(view, file)
    except FileNotFoundError:
        raise ModelError("no such model file", where=str(file), hint="check the path") from None
    except IsADirectoryError:
        raise ModelError("the model path is a folder", where=str(file), hint="name the .onnx file in it") from None
    except OSError as error:
        raise ModelError(
            "the model file cannot be read",
            where=str(file),
            why=error.strerror or str(error),
            hint="check the path and its permissions",
        ) from error
    _check_header(proto, file)
    _check_inputs(proto, file)
    return digest, proto, (file, *_load_external_data(proto, file))


def _parsed(content: memoryview, file: Path) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except Exception:
        raise ModelError(
            "not an ONNX file, or a truncated one",
            where=str(file),
            why=f"its {len(content):,} bytes are not a complete ONNX protobuf message",
            hint="compare its size or checksum with the source, and copy or export it again",
        ) from None
    return proto


def _check_header(proto: onnx.ModelProto, file: Path) -> None:
    if not proto.ir_version or not proto.HasField("graph"):
        raise ModelError(
            "not an ONNX model",
            where=str(file),
            why="it has no IR version or no graph",
            hint="name an .onnx file, or export the model again",
        )
    if not proto.graph.node or not proto.graph.output:
        raise ModelError(
            "the graph is empty", where=str(file), why="it has no nodes, or no outputs", hint="export the model again"
        )
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    opset = opsets.get("", opsets.get("ai.onnx"))
    newest = onnx.defs.onnx_opset_version()
    if opset is None:
        raise ModelError(
            "the model names no ONNX opset",
            where=str(file),
            why="it is no complete ONNX model, or was cut off",
            hint="copy or export it again",
        )
    if not OLDEST_OPSET <= opset <= newest:
        raise ModelError(
            f"opset {opset} is not supported",
            where=str(file),
            why=f"onnxprune reads opsets {OLDEST_OPSET} to {newest}",
            hint="export with another opset, or convert it with onnx.version_converter",
        )
    names = [text for node in proto.graph.node for text in (node.name, node.op_type, *node.input, *node.output)]
    names += [tensor.name for tensor in proto.graph.initializer]
    if any(isinstance(name, bytes) for name in names):  # protobuf's way to say that it is no text
        raise ModelError(
            "the model is damaged", where=str(file), why="a name in it is no text", hint="copy or export it again"
        )
    local = {(function.domain, function.name) for function in proto.functions}
    for node in proto.graph.node:
        if node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in local:
            raise ModelError(
                f"operator {node.op_type} of domain '{node.domain}' is unknown",
                where=f"{file}, node {node.name or node.output[0]}",
                why="a stock onnxruntime cannot run it, so a pruned model could not be proven",
                hint="export without custom operators",
            )


def _check_inputs(proto: onnx.ModelProto, file: Path) -> None:
    """Take initializers out of the inputs (IR 3 lists each there, too), and refuse inputs that are not numbers."""
    names = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in names]
    if len(inputs) < len(proto.graph.input):
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
        proto.ir_version = max(proto.ir_version, 4)
    if not inputs:
        raise ModelError(
            "the model has no inputs", where=str(file), why="all it computes is constant", hint="export the model again"
        )
    for value in inputs:
        if value.type.tensor_type.elem_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
            raise ModelError(
                f"input {value.name} is not a tensor of numbers",
                where=str(file),
                why="onnxprune could not run the model on data",
                hint="export the network without the steps before it",
            )


def _load_external_data(proto: onnx.ModelProto, file: Path) -> list[Path]:
    """Load tensors stored beside the file, after a look at where they lie; return those files."""
    folder = file.resolve().parent
    files: dict[Path, None] = {}
    for tensor in external_data_helper._get_all_tensors(proto):
        if not external_data_helper.uses_external_data(tensor):
            continue
        info = external_data_helper.ExternalDataInfo(tensor)
        data = (folder / info.location).resolve()
        where = f"{file}, tensor {tensor.name}"
        if not info.location or Path(info.location).is_absolute() or folder not in data.parents:
            raise ModelError(
                "external data outside the model's folder",
                where=where,
                why=f"it points to {info.location!r}",
                hint="keep the weights beside the .onnx file, and save the model again with a relative location",
            )
        if not data.is_file():
            raise ModelError(
                "external data are missing",
                where=where,
                why=f"no file {info.location!r} beside the model",
                hint="copy the data file together with the .onnx file",
            )
        end = (info.offset or 0) + (info.length or 0)
        if data.stat().st_size < end:
            raise ModelError(
                "external data are truncated",
                where=where,
                why=f"{info.location} has {data.stat().st_size:,} bytes, {end:,} are needed",
                hint="copy the data file again",
            )
        files[data] = None
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except Exception as error:
            raise ModelError(
                "external data cannot be read", where=where, why=first_line(error), hint="copy the data file again"
            ) from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return list(files)


def load(path: str | os.PathLike[str]) -> Model:
    """Read, check and normalize a model; the file is not touched.

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
    for value in (v for node in graph.nodes for v in (*node.inputs, *node.attrs.values())):
        if isinstance(value, gs.Graph):
            _detach(value, header)
        elif isinstance(value, gs.Constant):
            value.values = _detached(raw_values(value))
    for value in graph.outputs:
        if isinstance(value, gs.Constant):
            value.values = _detached(raw_values(value))


def _detached(values: LazyValues | np.ndarray[Any, Any]) -> LazyValues | np.ndarray[Any, Any]:
    if not isinstance(values, LazyValues):
        return values
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "biuf" and not isinstance(values, SparseValues):
        return onnx.numpy_helper.to_array(values.tensor)
    copy = type(values.tensor)()  # strings, packed integers, bfloat16: an array would not export to the same bytes
    copy.CopyFrom(values.tensor)
    return type(values)(copy)


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
    with atomic_write(target) as temporary:
        if model.byte_size() < PROTO_LIMIT:
            temporary.write_bytes(proto.SerializeToString())
            return temporary.stat().st_size
        data = target.with_name(target.name + ".data")
        check_destination(data, *model.files)
        with atomic_write(data) as temporary_data:
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

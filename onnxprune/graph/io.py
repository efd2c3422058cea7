"""Read and write ONNX files. External data are loaded from the model's own folder only."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
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
from onnxprune.graph import normalize
from onnxprune.graph.model import Model, count_params, inferred, is_float, tensors_of, weightless
from onnxprune.graph.qdq import separate_weights
from onnxprune.graph.sharing import unshare_fills
from onnxprune.runtime.session import UNOPTIMIZED, open_session

KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
"""Domains whose operators a stock onnxruntime executes on the CPU."""

OLDEST_OPSET = 7

PROTO_LIMIT = 2**31 - 2**24
"""Bytes above which weights go to a file of their own (protobuf is limited to 2 GB)."""

BODY = ("node", "initializer", "sparse_initializer", "value_info")
"""Fields of a GraphProto that the graph holds; the header holds the others."""


def read(path: str | os.PathLike[str]) -> tuple[onnx.ModelProto, int, str]:
    """Read and check a model without normalization; return the proto, the bytes of all files, and the SHA-256.

    Raises:
        ModelError: as for `load`.
    """
    with damaged(Path(path)):
        digest, proto, files = parse(Path(path))
        return proto, sum(file.stat().st_size for file in files), digest


@contextmanager
def damaged(file: Path) -> Iterator[None]:
    """Turn any error that a library raises over a file into a ModelError."""
    try:
        yield
    except (OnnxPruneError, MemoryError):
        raise
    except Exception as error:
        open_session(os.fspath(file), UNOPTIMIZED, where=str(file))  # has a better message, where it fails, too
        raise ModelError(
            "the model cannot be read",
            where=str(file),
            why=first_line(error),
            hint="check that the file is undamaged and runs in onnxruntime",
        ) from error


def parse(file: Path) -> tuple[str, onnx.ModelProto, tuple[Path, ...]]:
    """Parse and check a file; return the SHA-256 of it and its external data, the proto, and the paths of all files."""
    refused = partial(ModelError, where=str(file))
    try:
        with open(file, "rb") as stream:
            if not os.fstat(stream.fileno()).st_size:
                raise refused("the model file is empty", hint="export or copy the model again")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
                digest, proto = hashlib.sha256(view), _parsed(view, file)
    except FileNotFoundError:
        raise refused("no such model file", hint="check the path") from None
    except IsADirectoryError:
        raise refused("the model path is a folder", hint="name the .onnx file in it") from None
    except OSError as error:
        raise refused(
            "the model file cannot be read", why=error.strerror or str(error), hint="check the path and its permissions"
        ) from error
    _check_header(proto, file)
    _check_inputs(proto, file)
    data = _load_external_data(proto, file)
    for path in data:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest(), proto, (file, *data)


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
    refused = partial(ModelError, where=str(file))
    if not proto.ir_version or not proto.HasField("graph"):
        raise refused(
            "not an ONNX model",
            why="it has no IR version or no graph",
            hint="name an .onnx file, or export the model again",
        )
    if not proto.graph.node or not proto.graph.output:
        raise refused("the graph is empty", why="it has no nodes, or no outputs", hint="export the model again")
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    opset = opsets.get("", opsets.get("ai.onnx"))
    newest = onnx.defs.onnx_opset_version()
    if opset is None:
        raise refused(
            "the model names no ONNX opset",
            why="it is no complete ONNX model, or was cut off",
            hint="copy or export it again",
        )
    if not OLDEST_OPSET <= opset <= newest:
        raise refused(
            f"opset {opset} is not supported",
            why=f"onnxprune reads opsets {OLDEST_OPSET} to {newest}",
            hint="export with another opset, or convert it with onnx.version_converter",
        )
    names = [text for node in proto.graph.node for text in (node.name, node.op_type, *node.input, *node.output)]
    names += [tensor.name for tensor in proto.graph.initializer]
    if any(isinstance(name, bytes) for name in names):  # protobuf returns bytes for invalid text
        raise refused("the model is damaged", why="a name in it is no text", hint="copy or export it again")
    local = {(function.domain, function.name) for function in proto.functions}
    for node in proto.graph.node:
        if node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in local:
            raise refused(
                f"operator {node.op_type} of domain '{node.domain}' is unknown",
                where=f"{file}, node {node.name or node.output[0]}",
                why="a stock onnxruntime cannot run it, so a pruned model could not be proven",
                hint="export without custom operators",
            )


def _check_inputs(proto: onnx.ModelProto, file: Path) -> None:
    """Remove initializers from the inputs (IR 3 lists them there, too), and refuse inputs that are not numbers."""
    refused = partial(ModelError, where=str(file))
    names = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in names]
    if len(inputs) < len(proto.graph.input):
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
        proto.ir_version = max(proto.ir_version, 4)
    if not inputs:
        raise refused("the model has no inputs", why="every output is constant", hint="export the model again")
    for value in inputs:
        if value.type.tensor_type.elem_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
            raise refused(
                f"input {value.name} is not a tensor of numbers",
                why="onnxprune could not run the model on data",
                hint="export the network without its preprocessing",
            )


def _load_external_data(proto: onnx.ModelProto, file: Path) -> list[Path]:
    """Load external data, from the folder of the file only; return the data files."""
    folder = file.resolve().parent
    files: dict[Path, None] = {}
    for tensor in external_data_helper._get_all_tensors(proto):
        if not external_data_helper.uses_external_data(tensor):
            continue
        info = external_data_helper.ExternalDataInfo(tensor)
        data = (folder / info.location).resolve()
        refused = partial(ModelError, where=f"{file}, tensor {tensor.name}")
        if not info.location or Path(info.location).is_absolute() or folder not in data.parents:
            raise refused(
                "external data outside the model's folder",
                why=f"the tensor points to {info.location!r}",
                hint="keep the weights beside the .onnx file, and save the model again with a relative location",
            )
        if not data.is_file():
            raise refused(
                "external data are missing",
                why=f"no file {info.location!r} beside the model",
                hint="copy the data file together with the .onnx file",
            )
        end = (info.offset or 0) + (info.length or 0)
        if data.stat().st_size < end:
            raise refused(
                "external data are truncated",
                why=f"{info.location} has {data.stat().st_size:,} bytes, {end:,} are needed",
                hint="copy the data file again",
            )
        files[data] = None
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except Exception as error:
            raise refused(
                "external data cannot be read", why=first_line(error), hint="copy the data file again"
            ) from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return list(files)


def load(path: str | os.PathLike[str]) -> Model:
    """Read, check and normalize a model; the file is not changed.

    Raises:
        ModelError: not an ONNX file, truncated, empty, weights missing or NaN, an opset or domain that is not known, or
            anything else that keeps onnxruntime from loading the file.
    """
    with damaged(Path(path)):
        return _load(Path(path))


def _load(file: Path) -> Model:
    model = _imported(file)
    graph = model.graph
    _refuse_unloadable(model)
    normalize.fold_constants(graph, str(file))
    _refuse_nan(graph, file)
    # with dynamic axes left open, inference returns what holds for every size of these axes
    while any(node.op == "Shape" for node in graph.nodes) and normalize.fold_shapes(graph, inferred(model, {}).partial):
        normalize.fold_constants(graph, str(file))
    if any(normalize.needs_arguments(node) for node in graph.nodes):
        normalize.explicit_arguments(graph, inferred(model, {}).partial, model.opset)
    if normalize.means_of_norms(graph):
        normalize.sum_norms(graph, inferred(model, {}), model.opset)
    normalize.unshare_targets(graph)
    separate_weights(graph)
    unshare_fills(graph)
    batchnorms = normalize.fold_batchnorms(graph)
    notes = (f"{len(batchnorms)} BatchNormalization folded into the layers before them",) if batchnorms else ()
    return replace(model, batchnorms=batchnorms, notes=notes)


def _imported(file: Path) -> Model:
    """Read a file into a graph that shares no memory with the parsed file, which is then freed on return."""
    digest, proto, files = parse(file)
    size = sum(f.stat().st_size for f in files)
    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    params = count_params(proto)
    extras = _unsupported_by_graphsurgeon(proto.graph)
    del proto.graph.value_info[:]  # shapes of the original do not hold for the pruned model
    graph, header = gs.import_onnx(proto), _header(proto)
    _detach(graph, header)
    graph.toposort()
    return Model(graph, header, extras, digest, file, files, size, params)


def _detach(graph: gs.Graph, header: onnx.ModelProto) -> None:
    """Give a graph and its bodies values of their own: any part of a proto keeps the whole proto in memory."""
    graph.import_domains = header.opset_import
    for value in (*(v for node in graph.nodes for v in (*node.inputs, *node.attrs.values())), *graph.outputs):
        if isinstance(value, gs.Graph):
            _detach(value, header)
        elif isinstance(value, gs.Constant):
            value.values = _detached(normalize.raw_values(value))


def _detached(values: LazyValues | np.ndarray[Any, Any]) -> LazyValues | np.ndarray[Any, Any]:
    if not isinstance(values, LazyValues):
        return values
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "biuf" and not isinstance(values, SparseValues):
        return onnx.numpy_helper.to_array(values.tensor)
    copy = type(values.tensor)()  # strings, packed integers, bfloat16: an array would not export to the same bytes
    copy.CopyFrom(values.tensor)
    return type(values)(copy)


def _refuse_unloadable(model: Model) -> None:
    """Refuse a model that onnxruntime cannot load. Loading without weights is faster.

    A few operators require constants: where the model without weights fails, the whole file decides.
    """
    try:
        open_session(weightless(model), UNOPTIMIZED)
    except ModelError:
        open_session(os.fspath(model.path), UNOPTIMIZED, where=str(model.path))


def save(model: Model, path: str | os.PathLike[str], metadata: dict[str, str] | None = None) -> int:
    """Write a model to a temporary file, then move it to `path`; return the bytes written.

    Weights go to `<path>.data` where the model exceeds 2 GB. `metadata` holds entries to set in the model's metadata.

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
    """Move what graphsurgeon would lose out of the nodes; return it by the first output of each node."""
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


def _header(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Copy the proto without nodes, tensors and functions, which the graph holds."""
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
                why="the export or the training failed",
                hint="repair the model before pruning it",
            )

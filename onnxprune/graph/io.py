"""Read and write ONNX files. External data are loaded from the model's own folder only."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxprune.errors import ModelError, OnnxPruneError, first_line
from onnxprune.file_kinds import ONNX, kind_of
from onnxprune.fileio import Transaction, check_destination, joined
from onnxprune.graph import initializers, model_file, normalize
from onnxprune.graph.conditionals import inline_ifs
from onnxprune.graph.external_data import load_external_data, set_apart
from onnxprune.graph.file_checks import check_functions, check_inputs, check_nodes, check_sparse, check_tensors
from onnxprune.graph.folded import is_float, raw_values
from onnxprune.graph.means import has_scaled_sums, write_means
from onnxprune.graph.model import Model, count_params, inferred, tensors_of, weightless
from onnxprune.graph.opaque import is_optimized, operator_of
from onnxprune.graph.order import sort
from onnxprune.graph.qdq import separate_weights
from onnxprune.graph.recurrent_states import drop_zero_states, pick_final_states
from onnxprune.graph.sequences import unpack_sequences
from onnxprune.graph.shapes import copy_fields
from onnxprune.graph.sharing import unshare_fills
from onnxprune.graph.signature import Hint, derive
from onnxprune.reading import open_regular
from onnxprune.runtime.memory_limit import READ, require
from onnxprune.runtime.session import UNOPTIMIZED, open_session
from onnxprune.runtime.weight_files import LARGE, release

KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
"""Domains whose operators a stock onnxruntime executes on the CPU."""

OLDEST_OPSET = 7

PROTO_LIMIT = 2**31 - 2**24
"""Bytes above which weights go to a file of their own (protobuf is limited to 2 GB)."""

BODY = ("node", "initializer", "sparse_initializer", "value_info")
"""Fields of a GraphProto that the graph holds; the header holds the others."""


def read(path: str | os.PathLike[str], factor: float = 0.0) -> Parsed:
    """Read and check a model without normalization; `factor` as for `load`, 0 where the run has begun.

    Raises:
        ModelError: as for `load`.
    """
    with damaged(Path(path)):
        return parse(Path(path), factor)


@contextmanager
def damaged(file: Path) -> Iterator[None]:
    """Turn any error that a library raises over a file into a ModelError."""
    try:
        yield
    except OnnxPruneError:
        raise
    except MemoryError as error:
        raise ModelError(
            "the model does not fit into the memory of this process",
            where=str(file),
            hint="run on a machine with more memory, or check that the file is what it should be",
        ) from error
    except Exception as error:
        open_session(os.fspath(file), UNOPTIMIZED, where=str(file))  # has a better message, where it fails, too
        raise ModelError(
            "the model cannot be read",
            where=str(file),
            why=first_line(error),
            hint="check that the file is undamaged and runs in onnxruntime",
        ) from error


@dataclass(frozen=True)
class Parsed:
    """A parsed and checked file.

    Attributes:
        proto: the model without its larger weights, for which it has placeholders; see `initializers.placeholder`.
        weights: these weights, by name; they can lie in files, see `onnxprune.runtime.weight_files`.
        digest: SHA-256 of the file and its external data.
        files: the file and its external data files.
        size: bytes of `files`.
        notes: one line per kind of change to its initializers.
    """

    proto: onnx.ModelProto
    weights: Mapping[str, np.ndarray[Any, Any]]
    digest: str
    files: tuple[Path, ...]
    size: int
    notes: tuple[str, ...]

    def stub(self) -> tuple[onnx.ModelProto, Mapping[str, np.ndarray[Any, Any]]]:
        """Return a copy of the proto, and the weights that it lacks; as `Model.stub`."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return proto, self.weights

    def whole(self) -> onnx.ModelProto:
        """Return a proto that holds all weights, for a model below 2 GB."""
        proto, weights = self.stub()
        for tensor in proto.graph.initializer:
            if tensor.name in weights:
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
                tensor.raw_data = weights[tensor.name].tobytes()
        return proto


def parse(file: Path, factor: float = 0.0, memory: float = 0.0) -> Parsed:
    """Parse and check a file; store its initializers densely, and apart from the inputs. See `load` for the arguments."""
    refused = partial(ModelError, where=str(file))

    def fits(size: float) -> None:
        if factor and size >= LARGE:
            require(size, factor, str(file), memory)

    try:
        with open_regular(file) as stream:
            if not os.fstat(stream.fileno()).st_size:
                raise refused("the model file is empty", hint="export or copy the model again")
            fits(os.fstat(stream.fileno()).st_size)
            digest = hashlib.file_digest(stream, "sha256")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
                proto = _parsed(view, file)
    except FileNotFoundError:
        raise refused("no such model file", hint="check the path") from None
    except IsADirectoryError:
        raise _named(file) or refused("the model path is a folder", hint="name the .onnx file in it") from None
    except OSError as error:
        raise refused(
            "the model file cannot be read", why=error.strerror or str(error), hint="check the path and its permissions"
        ) from error
    _check_header(proto, file)
    check_functions(proto, file)
    check_nodes(proto, file)
    check_tensors(proto, file)
    check_sparse(proto, file)
    beside, mapped = load_external_data(proto, file, fits)
    files = (file, *beside)
    size = sum(path.stat().st_size for path in files)
    sparse, listed = initializers.densify(proto.graph), initializers.separate_inputs(proto)
    check_inputs(proto, file)
    for path in files[1:]:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    notes = [f"{sparse} sparse tensors stored as dense ones"] if sparse else []
    if listed:
        notes.append(f"{listed} weights are no longer listed as inputs")
    proto, weights = set_apart(proto, mapped, size)
    return Parsed(proto, weights, digest.hexdigest(), files, size, tuple(notes))


def _parsed(content: memoryview, file: Path) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except Exception:
        raise _named(file) or ModelError(
            "not an ONNX file, or a truncated one",
            where=str(file),
            why=f"its {len(content):,} bytes are not a complete ONNX protobuf message, or nested deeper than protobuf reads",
            hint="compare its size or checksum with the source, and copy or export it again",
        ) from None
    return proto


def _named(file: Path) -> ModelError | None:
    """Return the error for a file of another kind that is known, None for any other."""
    kind = kind_of(file)
    if kind is None or kind is ONNX:
        return None
    return ModelError(f"not an ONNX model, but {kind.text}", where=str(file), hint=kind.hint)


def _check_header(proto: onnx.ModelProto, file: Path) -> None:
    refused = partial(ModelError, where=str(file))
    if not proto.ir_version or not proto.HasField("graph"):
        raise _named(file) or refused(
            "not an ONNX model",
            why="it has no IR version or no graph",
            hint="name an .onnx file, or export the model again",
        )
    if not proto.graph.node or not proto.graph.output:
        raise _named(file) or refused(
            "the graph is empty", why="it has no nodes, or no outputs", hint="export the model again"
        )
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


def load(
    path: str | os.PathLike[str],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    hint: Hint | None = None,
    *,
    factor: float = READ,
    memory: float = 0.0,
) -> Model:
    """Read, check and normalize a model; the file is not changed.

    Args:
        path: path of the file.
        shapes: shapes of inputs, for axes that have no size.
        hint: shapes of data; see `onnxprune.graph.signature.derive`.
        factor: bytes that the run will take per byte of the model; see `onnxprune.runtime.memory_limit`, which refuses a model before it is read.
        memory: further bytes that it will take.

    Raises:
        ModelError: too large for the memory of this process, not an ONNX file, truncated, empty, weights missing or NaN, an opset or domain that is not known, or
            anything else that keeps onnxruntime from loading the file.
    """
    file = Path(path)
    with damaged(file):
        model = _load(file, factor, memory)
    release(model.size)
    where = os.fspath(file)
    found = derive(weightless(model), model.header, lambda: open_session(where, UNOPTIMIZED, where=where), shapes, hint)
    return replace(model, signature=found, notes=(*model.notes, *found.notes))


def _load(file: Path, factor: float, memory: float) -> Model:
    model = _imported(file, factor, memory)
    graph = model.graph
    _refuse_unloadable(model)
    normalize.drop_identities(graph)
    normalize.fold_constants(graph, str(file), kept=model.defaults, folded=model.folded)
    normalize.remove_dead(graph)  # a layer without an effect would be the first to go, and count as a saving
    _refuse_nan(graph, file)
    # with dynamic axes left open, inference returns what holds for every size of these axes
    while (
        (any(node.op == "Shape" for node in graph.nodes) and normalize.fold_shapes(graph, inferred(model, {}).partial))
        or inline_ifs(graph)
        or unpack_sequences(graph, lambda: inferred(model, {}).partial, model.opset)
    ):
        normalize.fold_constants(graph, str(file), kept=model.defaults, folded=model.folded)
    if any(normalize.needs_arguments(node) for node in graph.nodes):
        normalize.explicit_arguments(graph, inferred(model, {}).partial, model.opset)
    if has_scaled_sums(graph):
        write_means(graph, inferred(model, {}).partial, model.opset)
    if normalize.means_of_norms(graph):
        normalize.sum_norms(graph, inferred(model, {}), model.opset)
    states = drop_zero_states(graph)
    pick_final_states(graph)
    normalize.unshare_targets(graph)
    separate_weights(graph)
    unshare_fills(graph)
    sort(graph)
    batchnorms = normalize.fold_batchnorms(graph, model.folded, model.size)
    made = sorted({operator_of(node) for node in graph.nodes if is_optimized(node)})
    notes = (
        f"{len(batchnorms)} BatchNormalization folded into the layers before them" if batchnorms else "",
        f"zero initial states of recurrent layers left out: {states}" if states else "",
        f"onnxruntime has optimized this file ({', '.join(made)}): prune the file before that" if made else "",
    )
    return replace(model, batchnorms=batchnorms, notes=(*model.notes, *filter(None, notes)))


def _imported(file: Path, factor: float, memory: float) -> Model:
    """Read a file into a graph that shares no memory with the parsed file, which is then freed on return."""
    found = parse(file, factor, memory)
    proto = found.proto
    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    params, unread = count_params(proto), initializers.unread(proto.graph)
    initializers.hoist(proto.graph)
    defaults = initializers.take_defaults(proto.graph)
    extras = _unsupported_by_graphsurgeon(proto.graph)
    del proto.graph.value_info[:]  # shapes of the original do not hold for the pruned model
    graph, header = gs.import_onnx(proto), _header(proto)
    _detach(graph, header, found.weights)
    sort(graph)
    return Model(
        graph,
        header,
        extras,
        found.digest,
        file,
        found.files,
        found.size,
        params,
        defaults=defaults,
        notes=(*found.notes, *filter(None, [unread])),
    )


def _detach(graph: gs.Graph, header: onnx.ModelProto, weights: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Give a graph and its bodies values of their own: any part of a proto keeps the whole proto in memory."""
    graph.import_domains = header.opset_import
    for value in (*(v for node in graph.nodes for v in (*node.inputs, *node.attrs.values())), *graph.outputs):
        if isinstance(value, gs.Graph):
            _detach(value, header, weights)
        elif isinstance(value, gs.Constant) and value.data_location == onnx.TensorProto.EXTERNAL:
            value.values, value.data_location = weights[value.name], None
        elif isinstance(value, gs.Constant):
            value.values = _detached(raw_values(value))


def _detached(values: LazyValues | np.ndarray[Any, Any]) -> LazyValues | np.ndarray[Any, Any]:
    if not isinstance(values, LazyValues):
        return values
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "biuf":
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


def save(
    model: Model,
    path: str | os.PathLike[str],
    metadata: dict[str, str] | None = None,
    together: Transaction | None = None,
) -> int:
    """Write a model, which takes its place once it is whole; return the bytes written.

    Args:
        model: the model.
        path: of the file; where the model exceeds 2 GB, its weights go to a data file beside it, see
            `onnxprune.graph.model_file`.
        metadata: entries to set in the model's metadata.
        together: other files that take their places at the same time; None: the model alone.

    Raises:
        OutputError: the file cannot be written.
    """
    target = Path(path)
    check_destination(target, *model.files)
    proto, weights = model.stub()
    for key, value in (metadata or {}).items():
        entry = next((p for p in proto.metadata_props if p.key == key), None) or proto.metadata_props.add(key=key)
        entry.value = value
    write = model_file.write if model.byte_size() < PROTO_LIMIT else model_file.write_apart
    with joined(together) as files:
        size = write(files, target, proto, weights)
        model_file.outdate_data(files, target, proto, model.files)
    return size


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
    copy_fields(proto, header, ("graph", "functions"))
    copy_fields(proto.graph, header.graph, BODY)
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

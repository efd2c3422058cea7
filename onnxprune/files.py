"""Read ONNX files: parse, check the header, load external data from the model's own folder only."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import external_data_helper

from onnxprune.errors import ModelError, OnnxPruneError, first_line
from onnxprune.runtime.session import UNOPTIMIZED, open_session

KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
"""Domains whose operators a stock onnxruntime executes on the CPU."""

OLDEST_OPSET = 7


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

"""Tell by its content what a file is that was given in place of another one, and what to do with it."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnxprune.reading import open_regular, parse_json

HEAD = 2**16
"""Bytes at the beginning of a file that tell what it is."""


@dataclass(frozen=True)
class Kind:
    """What a file is.

    Attributes:
        text: in words, with an article.
        hint: what to do with it where a model is asked for.
        is_model: whether it is the model of a framework, so that nothing else can be made of it.
    """

    text: str
    hint: str
    is_model: bool = True


EXPORT = 'export the network to ONNX: torch.onnx.export(model, example_input, "model.onnx")'
ORIGINAL = "give the .onnx file that it was made from"
DATA = "give samples with --data, and the model first"
ONNX = Kind("an ONNX model", "give it as the model")
CHECKPOINT = Kind("a PyTorch checkpoint", f"load it into its network, and {EXPORT}")
SCRIPT = Kind("a TorchScript model", f"load it with torch.jit.load, and {EXPORT}")
PROGRAM = Kind("a program of torch.export", f"load it with torch.export.load, and {EXPORT}")
KERAS = Kind(
    "a Keras model", 'load it with keras.saving.load_model, and export it: model.export("model.onnx", format="onnx")'
)
FROZEN = Kind(
    "a TensorFlow graph",
    "convert it: python -m tf2onnx.convert --graphdef FILE --inputs … --outputs … --output model.onnx",
)
SAVED = Kind(
    "a TensorFlow SavedModel", "convert its folder: python -m tf2onnx.convert --saved-model FOLDER --output model.onnx"
)
LITE = Kind(
    "a TensorFlow Lite model",
    "convert it: python -m tf2onnx.convert --tflite FILE --output model.onnx; better: export the original",
)
TENSORS = Kind(
    "a safetensors file, which holds weights and no network",
    f"load it into its network, and {EXPORT}; of Hugging Face: optimum-cli export onnx --model NAME FOLDER",
)
ENGINE = Kind("a TensorRT engine, which is made for one device", ORIGINAL)
OPENVINO = Kind("an OpenVINO model", ORIGINAL)
ORT = Kind("a model in onnxruntime's own format", ORIGINAL)
GGUF = Kind("a GGUF file of a language model", "onnxprune prunes ONNX models only")
SAMPLES = Kind("arrays of numpy", DATA, is_model=False)
IMAGE = Kind("an image", DATA, is_model=False)
PLAN = Kind("a plan of onnxprune", "give it with --plan, and the model first", is_model=False)
TABLE = Kind("a latency table of onnxprune", "give it with --latency-table, and the model first", is_model=False)
COCO = Kind("labels of COCO", "give them with --labels, and the model first", is_model=False)

MAGIC: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", KERAS),
    (4, b"TFL3", LITE),
    (4, b"ORTM", ORT),
    (0, b"ftrt", ENGINE),
    (0, b"ptrt", ENGINE),
    (0, b"GGUF", GGUF),
    (0, b"\x93NUMPY", SAMPLES),
    (0, b"\x89PNG\r\n\x1a\n", IMAGE),
    (0, b"\xff\xd8\xff", IMAGE),
    (0, b"GIF8", IMAGE),
    (0, b"II*\0", IMAGE),
    (0, b"MM\0*", IMAGE),
)
"""Position and bytes by which a kind is known."""
MEMBERS: tuple[tuple[str, Kind], ...] = (
    (r".*\.npy$", SAMPLES),
    (r"(.*/)?(serialized_exported_program\.json|archive_format)$", PROGRAM),
    (r"(.*/)?constants\.pkl$", SCRIPT),
    (r"(.*/)?data\.pkl$", CHECKPOINT),
    (r"model\.weights\.h5$", KERAS),
)
"""Names of members by which a zip file is known, the first that fits; a TorchScript model has data.pkl as well."""
SCHEMAS = {"onnxprune.plan/": PLAN, "onnxprune.latency/": TABLE}
SUFFIXES = {".pb": FROZEN, ".engine": ENGINE, ".onnx": ONNX}
"""Kinds of protobuf messages, and of files without a mark, by suffix."""


def kind_of(path: str | os.PathLike[str]) -> Kind | None:
    """Return what a file, or a folder, is by its content; None where that is not known or the file cannot be read."""
    try:
        if Path(path, "saved_model.pb").is_file():
            return SAVED
        with open_regular(path) as stream:
            head = stream.read(HEAD)
            tests: tuple[Callable[[], Kind | None], ...] = (
                lambda: next((kind for at, mark, kind in MAGIC if head[at : at + len(mark)] == mark), None),
                lambda: _zipped(zipfile.ZipFile(stream).namelist()) if head.startswith(b"PK") else None,
                lambda: (
                    CHECKPOINT if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and len(head) > 2 else None
                ),
                lambda: _text(head),
                lambda: TENSORS if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32 else None,
                lambda: _message(head),
                lambda: SUFFIXES.get(Path(path).suffix.lower()),
            )
            return next((found for test in tests if (found := test()) is not None), None)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return None


def _zipped(members: list[str]) -> Kind | None:
    return next((kind for pattern, kind in MEMBERS for name in members if re.match(pattern, name)), None)


def _text(head: bytes) -> Kind | None:
    """Return the kind of an XML or JSON file."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith((b"<?xml", b"<net")) and b"<net" in start and b"<layers" in start:
        return OPENVINO
    if not start.startswith(b"{"):
        return None
    schema = re.search(rb'"schema"\s*:\s*("[^"]{1,80}")', start)
    name = parse_json(schema[1]) if schema else ""
    known = next((kind for begin, kind in SCHEMAS.items() if name.startswith(begin)), None)
    return known or (COCO if b'"annotations"' in head and b'"images"' in head else None)


def _message(head: bytes) -> Kind | None:
    """Return the kind of a protobuf message of TensorFlow: its graph begins with nodes, a saved model with its version."""
    if head[:1] == b"\x0a" and (b"\x12\x0bPlaceholder" in head or b"\x12\x05Const" in head):
        return FROZEN
    if head[:3] == b"\x08\x01\x12" and (b"\x12\x0bPlaceholder" in head or b"\x05serve" in head):
        return SAVED
    return None

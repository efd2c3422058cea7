"""The models of `zoo/`: graphs of torchvision networks, filled with random weights."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

ZOO = Path(__file__).parent / "zoo"
EXPORTERS = ("dynamo", "legacy")

NORMAL = np.random.default_rng(0).standard_normal(1_000_003, dtype=np.float32)
"""Weights are cut out of these numbers. Their count is prime, so that no two filters of a layer are equal."""
TWICE = np.concatenate([NORMAL, NORMAL])


def stripped(file: Path) -> tuple[onnx.ModelProto, Iterator[tuple[onnx.TensorProto, np.ndarray[Any, Any]]]]:
    """Return a graph without weights, and the numbers for each, of the mean and deviation it had; a large one repeats them."""
    proto = onnx.ModelProto()
    proto.ParseFromString(zlib.decompress(file.read_bytes()))
    rng = np.random.default_rng(0)

    def weights() -> Iterator[tuple[onnx.TensorProto, np.ndarray[Any, Any]]]:
        for tensor in proto.graph.initializer:
            if tensor.doc_string.startswith("random "):
                _, mean, deviation = tensor.doc_string.split()
                tensor.ClearField("doc_string")
                size, start = math.prod(tensor.dims), int(rng.integers(len(NORMAL)))
                values = TWICE[start : start + min(size, len(NORMAL))] * np.float32(deviation) + np.float32(mean)
                yield tensor, np.abs(values) + np.float32(1e-3) if "var" in tensor.name else values

    return proto, weights()


def fill(file: Path) -> onnx.ModelProto:
    """Return the model of a graph without weights."""
    proto, weights = stripped(file)
    for tensor, values in weights:
        tensor.raw_data = np.resize(values, math.prod(tensor.dims)).tobytes()
    return proto


def write(file: Path, folder: Path) -> Path:
    """Write the model of a graph without weights, all weights in one file, over the model before: no 10 GB go to the disk."""
    proto, weights = stripped(file)
    data = folder / "weights"
    data.touch()
    with data.open("r+b") as stream:
        for tensor, values in weights:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            left = math.prod(tensor.dims)
            for key, value in ("location", data.name), ("offset", stream.tell()), ("length", 4 * left):
                tensor.external_data.add(key=key, value=str(value))
            while left > 0:
                values[:left].tofile(stream)
                left -= len(values)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path

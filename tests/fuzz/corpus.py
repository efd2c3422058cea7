"""What fuzzing starts from: small models of every operator and topology, pieces of the zoo, and files of every other kind."""

from __future__ import annotations

import functools
import io
import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from commands import network

TESTS = Path(__file__).resolve().parent.parent
sys.path.append(str(TESTS))
PIECE = 40
"""Nodes of a piece of a network of the zoo, at most."""
WEIGHTS = 100_000
"""Elements of the weights of a piece, at most."""
SIZE = 32
"""Rows and columns of the input of a piece."""


@functools.cache
def sources() -> Sequence[Callable[[], onnx.ModelProto]]:
    """Return functions that make the models of the corpus."""
    import zoo_models
    from cases import CASES, OTHER_CASES, SIZE_CASES
    from topologies import NETS

    pieces = [functools.partial(_piece, path, turn) for path in sorted(zoo_models.ZOO.glob("*.z")) for turn in range(3)]
    return (network, *(case.build for case in (*CASES, *OTHER_CASES, *SIZE_CASES, *NETS)), *pieces)


@functools.lru_cache(maxsize=2048)
def model(number: int) -> onnx.ModelProto:
    """Return a model of the corpus."""
    return sources()[number]()


def _piece(path: Path, turn: int) -> onnx.ModelProto:
    """Return the first nodes of a network of the zoo, with random weights and a small input."""
    import zoo_models

    rng = random.Random(f"{path.name} {turn}")
    found, weights = zoo_models.stripped(path)
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in found.graph.initializer}
    count, total = 0, 0
    wanted = rng.randrange(4, PIECE)
    for node in found.graph.node[:wanted]:
        total += sum(sizes.get(name, 0) for name in node.input)
        if total > WEIGHTS:
            break
        count += 1
    del found.graph.node[count:]
    used = {name for node in found.graph.node for name in node.input}
    inner = {name for node in found.graph.node for name in node.output}
    kept = [tensor for tensor in found.graph.initializer if tensor.name in used]
    for tensor, values in weights:
        if tensor.name in used:
            tensor.raw_data = np.resize(values, tuple(tensor.dims)).tobytes()
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del found.graph.initializer[:], found.graph.output[:], found.graph.value_info[:]
    found.graph.initializer.extend(copies)
    for name in sorted(inner - used)[:3]:
        found.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    for dim in found.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = SIZE
    return found


def external() -> tuple[onnx.ModelProto, bytes]:
    """Return the small network with all weights in `w.data`, and that file."""
    found, data = network(), b""
    for tensor in found.graph.initializer:
        for key, value in (("location", "w.data"), ("offset", str(len(data))), ("length", str(len(tensor.raw_data)))):
            tensor.external_data.add(key=key, value=value)
        data += tensor.raw_data
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
    return found, data


def picture(suffix: str, size: tuple[int, int] = (12, 10), mode: str = "RGB", seed: int = 0, **options: Any) -> bytes:
    """Return a small image file."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
    stream = io.BytesIO()
    image = Image.fromarray(pixels, "RGBA").convert(mode)
    image.save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **options)
    return stream.getvalue()


def saved(arrays: dict[str, np.ndarray[Any, Any]], *, packed: bool = False) -> bytes:
    """Return the bytes of a .npz."""
    stream = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


POLICY: dict[str, Any] = {
    "provider": "CPU",
    "limits": {"max_drop": 0.5, "max_size": "4MB", "domains": ["com.microsoft"], "min": {"top1": "10%"}, "max": {"size": "4MB"}},
}  # fmt: skip
PREPROCESSING: tuple[dict[str, Any], ...] = (
    {"image": {"resize": 10, "crop": 8, "scale": 0.0039, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}},
    {"image": {"stretch": [8, 8], "interpolation": "nearest", "color": "BGR"}, "array": {"scale": 0.5}},
    {"image": {"letterbox": [8, 8], "pad_value": 3, "exif": False, "layout": "NCHW", "skip_bad": True}},
)
PICTURES = {"a.png": 1, "b.jpg": 2, "c.bmp": 3}
COCO: dict[str, Any] = {
    "images": [{"id": n, "file_name": name, "width": 12, "height": 10} for n, name in enumerate(PICTURES)],
    "categories": [{"id": 1, "name": "cat", "keypoints": ["l", "r"]}, {"id": 7, "name": "dog"}],
    "annotations": [
        {
            "id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 2, 5, 4], "area": 20, "iscrowd": 0, "num_keypoints": 2,
            "segmentation": [[1, 2, 6, 2, 6, 6, 1, 6]], "keypoints": [1, 2, 2, 5, 5, 1],
        },
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [0, 0, 3, 3], "iscrowd": 1, "segmentation": {"size": [10, 12], "counts": [5, 10, 105]}},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [2.5, 1, 3, 3], "segmentation": [[2, 1, 5, 1, 5, 4]]},
    ],
}  # fmt: skip
VOC = """<annotation><filename>a.png</filename><size><width>12</width><height>10</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>6</xmax><ymax>7</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>2.5</xmin><ymin>1</ymin><xmax>12</xmax><ymax>9</ymax></bndbox></object></annotation>
"""
YOLO = ("0 0.5 0.5 0.2 0.3\n1 0.25 0.5 0.5 0.5\n", "0 0.1 0.1 0.9 0.1 0.5 0.8\n", "0 0.5 0.5 0.4 0.4\n")
TABLES = (
    "file,label\na.png,cat\nb.jpg,dog\nc.bmp,cat\n",
    "file,value\na.png,0.5\nb.jpg,-1\nc.bmp,7e3\n",
    "file,label\na.png,cat;dog\nb.jpg,\nc.bmp,dog\n",
    "file,x,y\na.png,1,0\nb.jpg,0,1\nc.bmp,1,1\n",
)
PROFILE: list[dict[str, Any]] = [
    {"cat": "Session", "name": "model_run", "dur": 900, "ts": 0, "ph": "X", "pid": 1, "tid": 1, "args": {}},
    *(
        {"cat": "Node", "name": f"{name}_kernel_time", "dur": 100, "ts": n, "ph": "X", "pid": 1, "tid": 1,
         "args": {"op_name": op, "provider": "CPUExecutionProvider", "node_index": str(n)}}
        for n, (name, op) in enumerate((("conv1", "Conv"), ("conv2", "Conv"), ("head", "Gemm")))
    ),
]  # fmt: skip
TRT: list[dict[str, Any]] = [
    {"count": 10},
    {"name": "conv1 + relu1", "timeMs": 1.0, "averageMs": 0.1, "medianMs": 0.1, "percentage": 50.0},
    {"name": "head", "timeMs": 1.0, "averageMs": 0.1, "medianMs": 0.1, "percentage": 50.0},
]
TIMES_TABLE = "node,microseconds\nconv1,100\nconv2,50.5\nhead,3\n"

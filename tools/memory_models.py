"""Residual networks of any size in bytes, for `tools/memory.py`: written weight by weight, so that making one takes no memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper

EMBEDDED = 2**31 - 2**24
"""Bytes up to which the weights lie in the .onnx file."""
PIXELS = 4
"""Height and width of the input; small, so that a run is cheap."""
CLASSES = 10
WIDTHS = ((40e6, 256), (200e6, 512), (3e9, 1024), (float("inf"), 2048))
"""Channels of the network up to a size in bytes."""


def write(path: Path, size: float, *, batchnorm: bool = False, channels: int | None = None) -> None:
    """Write a residual network of about `size` bytes: blocks Conv 3x3, Relu, Conv 3x3, Add, Relu on one trunk.

    Where it exceeds `EMBEDDED`, or the path is told to by its name `…external.onnx`, the weights go to `<path>.data`.
    """
    width = channels or next(width for limit, width in WIDTHS if size <= limit)
    blocks = max(1, round(size / (2 * 4 * 9 * width * width)))
    shapes: dict[str, tuple[int, ...]] = {}
    nodes = []

    def conv(source: str, name: str, inputs: int) -> str:
        shapes[f"{name}.weight"] = (width, inputs, 3, 3)
        shapes[f"{name}.bias"] = (width,)
        given = [source, f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Conv", given, [name], name=name, pads=[1, 1, 1, 1]))
        if not batchnorm:
            return name
        numbers = [f"{name}.{kind}" for kind in ("scale", "shift", "mean", "variance")]
        shapes.update(dict.fromkeys(numbers, (width,)))
        nodes.append(helper.make_node("BatchNormalization", [name, *numbers], [f"{name}.norm"], name=f"{name}.norm"))
        return f"{name}.norm"

    def relu(source: str) -> str:
        nodes.append(helper.make_node("Relu", [source], [f"{source}.relu"], name=f"{source}.relu"))
        return f"{source}.relu"

    at = relu(conv("input", "stem", 3))
    for block in range(blocks):
        inner = conv(relu(conv(at, f"block{block}.a", width)), f"block{block}.b", width)
        nodes.append(helper.make_node("Add", [at, inner], [f"block{block}"], name=f"block{block}"))
        at = relu(f"block{block}")
    shapes["head.weight"] = (CLASSES, width)
    nodes.append(helper.make_node("GlobalAveragePool", [at], ["pool"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pool"], ["flat"], name="flat"))
    nodes.append(helper.make_node("Gemm", ["flat", "head.weight"], ["output"], name="head", transB=1))
    external = size > EMBEDDED or path.stem.endswith("external")
    _save(nodes, shapes, {"input": (3, PIXELS, PIXELS), "output": (CLASSES,)}, path, external=external)


def _save(
    nodes: list[NodeProto],
    shapes: dict[str, tuple[int, ...]],
    ends: dict[str, tuple[int, ...]],
    path: Path,
    *,
    external: bool,
) -> None:
    """Write a model with random weights of some shapes, in the file or beside it; `ends` are the sizes of input and output."""
    sides = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *rest])] for name, rest in ends.items()]
    graph = helper.make_graph(nodes, path.stem, *sides)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    rng = np.random.default_rng(0)
    part, beside = path.with_suffix(".part"), path.with_name(path.name + ".data")
    with open(beside if external else os.devnull, "wb") as data:
        for name, shape in shapes.items():
            tensor = model.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=shape)
            content = _values(rng, name, shape).tobytes()
            if external:
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in (("location", beside.name), ("offset", data.tell()), ("length", len(content))):
                    tensor.external_data.add(key=key, value=str(value))
                data.write(content)
            else:
                tensor.raw_data = content
    part.write_bytes(model.SerializeToString())
    part.replace(path)


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a weight; every second layer of a block is weak, so that the trunk neither grows nor fades."""
    values = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("variance"):
        return np.abs(values) + np.float32(0.5)
    if len(shape) == 1:
        return values * np.float32(0.1) + np.float32(name.endswith("scale"))
    return values * np.float32((0.3 if name.endswith(".b.weight") else 1.0) * np.sqrt(2.0 / np.prod(shape[1:])))


def write_resnet50(path: Path, size: int = 224) -> None:
    """Write ResNet-50 (He et al., 2016, table 1) without BatchNormalization, with random weights: 25.5 million parameters."""
    shapes: dict[str, tuple[int, ...]] = {}
    nodes = []

    def conv(source: str, name: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> str:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs, kernel, kernel), (outputs,)
        given = [source, f"{name}.weight", f"{name}.bias"]
        how = {"pads": [kernel // 2] * 4, "strides": [stride] * 2}
        nodes.append(helper.make_node("Conv", given, [name], name=name, **how))
        return name

    def relu(source: str) -> str:
        nodes.append(helper.make_node("Relu", [source], [f"{source}.relu"], name=f"{source}.relu"))
        return f"{source}.relu"

    at, channels = relu(conv("input", "stem", 3, 64, 7, 2)), 64
    how = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2]}
    nodes.append(helper.make_node("MaxPool", [at], ["pool"], name="pool", **how))
    at = "pool"
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        for block in range(blocks):
            name, stride = f"stage{stage}.{block}", 2 if stage and not block else 1
            inner = relu(conv(relu(conv(at, f"{name}.a", channels, width, 1)), f"{name}.c", width, width, 3, stride))
            inner = conv(inner, f"{name}.b", width, 4 * width, 1)
            if not block:
                at = conv(at, f"{name}.short", channels, 4 * width, 1, stride)
            channels = 4 * width
            nodes.append(helper.make_node("Add", [at, inner], [name], name=name))
            at = relu(name)
    shapes["head.weight"], shapes["head.bias"] = (1000, channels), (1000,)
    nodes.append(helper.make_node("GlobalAveragePool", [at], ["mean"], name="mean"))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"], name="flat"))
    nodes.append(helper.make_node("Gemm", ["flat", "head.weight", "head.bias"], ["output"], name="head", transB=1))
    _save(nodes, shapes, {"input": (3, size, size), "output": (1000,)}, path, external=False)


def write_images(path: Path, samples: int, size: int = 224) -> None:
    """Write random pictures, smooth as pictures are: noise of 16 x 16 pixels, enlarged."""
    coarse = np.random.default_rng(1).standard_normal((samples, 3, 16, 16), dtype=np.float32)
    factor = -(-size // 16)
    np.savez(path, input=coarse.repeat(factor, axis=2).repeat(factor, axis=3)[:, :, :size, :size])

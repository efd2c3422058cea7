"""The text of models/README.md."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import onnx

README = """\
# Reference models

Three small classifiers of Fashion-MNIST, and a detector and a U-Net of made scenes, to prune and to measure. This page is
written by `python tools/make_models.py readme`; the numbers come from running the files.

## Classifiers

| File | Input | MACs | Parameters | Top-1, test images | Top-1, evaluation slice | Export |
|---|---|---|---|---|---|---|
{rows}

Every file takes a float32 tensor `image` with a dynamic first dimension `batch`, and gives the ten `logits`. MACs are
the multiply-accumulates of convolutions and matrix products for one image; parameters are their weights and biases
and the scales and biases of batch normalization. Top-1 is measured by onnxruntime, on the 10,000 test images and on
the 1,000 of them in `evaluation.npz`.

{notes}
- `calibration.npz`: 512 training images, `image` uint8 (512, 1, 28, 28) and `labels` int64 (512,).
- `evaluation.npz`: 1,000 test images, 100 of each class, `image` uint8 (1000, 1, 28, 28) and `labels` int64 (1000,).
  Both are made by `python tools/make_models.py data`.
- `28x28.toml`, `32x32.toml`: how those images become the input of `resnet.onnx` and `mobile.onnx`, and of `small.onnx`.

The classes are T-shirt/top, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag and ankle boot, in this order.

## Detector and U-Net

| File | Input | MACs | Parameters | Metric | {fresh:,} fresh scenes | Evaluation slice | Export |
|---|---|---|---|---|---|---|---|
{scene_rows}

A scene is a grey picture of 64 x 64 pixels with one to four garments of Fashion-MNIST on a procedural background, and shapes that
belong to no class (`tools/scenes.py`). Scenes for training and calibration have garments of the training images, scenes for
evaluation those of the test images. Both files take a float32 tensor `images` with a dynamic first dimension `batch`, grey values in 0..1 (`--preprocess unit`).

- `detector.onnx` gives `output` (batch, 9, 80): for each of 80 anchors the centre x, centre y, width and height of a box in pixels, then
  a probability per class, as Ultralytics exports YOLOv8. mAP is that of COCO, by pycocotools, after non-maximum suppression within
  each class, as `onnxprune --task detect` measures it.
- `unet.onnx` gives `logits` (batch, 6, 64, 64): the background, then the classes. mIoU is the mean over these six, over all pixels.

{scene_notes}
- `scenes_boxes.npz`: {evaluation} scenes, `images` uint8 ({evaluation}, 1, 64, 64) and `labels` float32 ({evaluation}, 4, 5), x1 y1 x2 y2
  class in pixels; rows of class -1 are padding.
- `scenes_masks.npz`: the same scenes, `labels` uint8 ({evaluation}, 64, 64), 0 for the background and 1 + class for garments.
- `scenes_calibration.npz`: {calibration} scenes with garments of the training images, without labels. All three are made by
  `python tools/make_models.py scenes`.

The classes are {classes}, in this order.

## SHA-256

```
{digests}
```

## Licence of the data

The images are from [Fashion-MNIST](https://github.com/zalandoresearch/fashion-mnist), copyright 2017 Zalando SE, under
the MIT licence. `make_models.py` reads it from the Debian package `dataset-fashion-mnist`.
"""


def count(path: Path) -> tuple[int, int]:
    """Return the multiply-accumulates for one image (convolutions and matrix products) and the parameters."""
    proto = onnx.load(path)
    del proto.graph.value_info[:]  # inferred again below, for a batch of exactly one
    for value in [*proto.graph.input, *proto.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    weights = {w.name: list(w.dims) for w in graph.initializer}
    macs, used = 0, set()
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in weights:  # the legacy exporter shares equal weights
            weights[node.output[0]] = weights[node.input[0]]
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            # Each weight of a convolution is used once for every position of the output, of a transposed one of the input.
            positions = {"Conv": node.output[0], "ConvTranspose": node.input[0]}.get(node.op_type)
            macs += math.prod(weights[node.input[1]]) * (math.prod(shapes[positions][2:]) if positions else 1)
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Add"):
            used.update(node.input[1:3])  # weight and bias, or scale and bias: not the running statistics
    return macs, sum(math.prod(weights[name]) for name in used if name in weights)


def row(path: Path, shape: Sequence[int], numbers: Sequence[str], export: str) -> str:
    """Return the row of a file in a table, with its costs and the numbers that were measured."""
    macs, parameters = count(path)
    cells = [f"`{path.name}`", "x".join(map(str, shape)), f"{macs / 1e6:.2f} M", f"{parameters:,}", *numbers, export]
    return f"| {' | '.join(cells)} |"


def note(path: Path, summary: str) -> str:
    """Return the list entry of a file."""
    return f"- `{path.name}`: {summary}. Made by `python tools/make_models.py {path.stem}`."


def digests(models: Path) -> str:
    """Return the SHA-256 of each file."""
    files = sorted(p for p in models.iterdir() if p.suffix in (".onnx", ".npz", ".toml"))
    return "\n".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}" for p in files)

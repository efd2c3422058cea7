#!/usr/bin/env python3
"""Train the three reference classifiers on Fashion-MNIST and export them to ONNX.

The targets are the networks ``small``, ``resnet`` and ``mobile``, the image slices for calibration and evaluation
(``data``), the measured table (``readme``), or ``all`` of them in that order. Weights, order and
augmentation follow from the seed; another processor or number of threads rounds differently.

:func:`build` and :func:`export` need neither the data set nor any training, so tests can export untrained networks.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import logging
import math
import os
import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
DATASET = Path("/usr/share/datasets/fashion-mnist")
MEAN, STD = 0.2860, 0.3530
BATCH = 128
Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Exporter = Literal["dynamo", "legacy"]


@dataclass(frozen=True)
class Recipe:
    """How one network is trained and exported."""

    summary: str
    epochs: int
    exporter: Exporter
    opset: int
    rate: float = 0.2
    decay: float = 5e-4


RECIPES = {
    "small": Recipe(
        "two 3x3 convolutions (64, 64), each with ReLU and max-pooling, then two linear layers (128, 10)",
        epochs=8, exporter="dynamo", opset=18, rate=0.05,
    ),
    "resnet": Recipe(
        "ResNet-14: widths 16/32/64, two basic blocks per stage, batch normalization kept as nodes",
        epochs=30, exporter="legacy", opset=17,
    ),
    "mobile": Recipe(
        "inverted residual blocks: depthwise 3x3, squeeze-and-excitation, HardSwish",
        epochs=24, exporter="dynamo", opset=18, decay=2e-4,
    ),
}  # fmt: skip


README = """\
# Reference models

Three small classifiers of Fashion-MNIST, to prune and to measure. This page is written by
`python tools/make_models.py readme`; the numbers come from running the files.

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

## SHA-256

```
{digests}
```

## Licence of the data

The images are from [Fashion-MNIST](https://github.com/zalandoresearch/fashion-mnist), copyright 2017 Zalando SE, under
the MIT licence. `make_models.py` reads it from the Debian package `dataset-fashion-mnist`.
"""


class Classifier(nn.Sequential):
    """A sequence of named layers that knows the shape of one input (channels, height, width)."""

    def __init__(self, input_shape: tuple[int, int, int], layers: Sequence[tuple[str, nn.Module]]) -> None:
        super().__init__(OrderedDict(layers))
        self.input_shape = input_shape


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A same-padded convolution without bias (the normalization has one), then batch normalization."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside an identity, or beside a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride)
        self.second = conv_bn(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return functional.relu(self.second(functional.relu(self.first(x))) + self.shortcut(x))


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the means of all the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4 // 8 * 8 or 8, 1)
        self.expand = nn.Conv2d(self.reduce.out_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the gate."""
        gate: Tensor = functional.hardsigmoid(
            self.expand(functional.relu(self.reduce(functional.adaptive_avg_pool2d(x, 1))))
        )
        return x * gate


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, squeeze-and-excitation, project 1x1; residual where the shapes agree."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.expand = conv_bn(inputs, hidden, 1)
        self.depthwise = conv_bn(hidden, hidden, 3, stride, groups=hidden)
        self.gate = SqueezeExcite(hidden)
        self.project = conv_bn(hidden, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y: Tensor = self.project(self.gate(functional.hardswish(self.depthwise(functional.hardswish(self.expand(x))))))
        return x + y if self.residual else y


def _small() -> Classifier:
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(3, 64, 3, padding=1)), ("relu1", nn.ReLU()), ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(64, 64, 3, padding=1)), ("relu2", nn.ReLU()), ("pool2", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()), ("hidden", nn.Linear(64 * 8 * 8, 128)), ("relu3", nn.ReLU()),
        ("dropout", nn.Dropout(0.3)), ("logits", nn.Linear(128, 10)),
    ]  # fmt: skip
    return Classifier((3, 32, 32), layers)


def _resnet() -> Classifier:
    layers: list[tuple[str, nn.Module]] = [("stem", conv_bn(1, 16, 3)), ("relu", nn.ReLU())]
    for stage, (inputs, outputs) in enumerate([(16, 16), (16, 32), (32, 64)]):
        layers.append((f"stage{stage + 1}a", BasicBlock(inputs, outputs, 2 if stage else 1)))
        layers.append((f"stage{stage + 1}b", BasicBlock(outputs, outputs, 1)))
    layers += [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("logits", nn.Linear(64, 10))]
    return Classifier((1, 28, 28), layers)


def _mobile() -> Classifier:
    blocks = [  # inputs, hidden, outputs, stride
        (16, 48, 24, 2), (24, 96, 24, 1), (24, 96, 24, 1), (24, 96, 40, 2),
        (40, 160, 40, 1), (40, 160, 40, 1), (40, 160, 64, 1), (64, 192, 64, 1),
    ]  # fmt: skip
    layers: list[tuple[str, nn.Module]] = [("stem", conv_bn(1, 16, 3)), ("act1", nn.Hardswish())]
    layers += [(f"block{i}", InvertedResidual(*block)) for i, block in enumerate(blocks, 1)]
    layers += [("head", conv_bn(64, 128, 1)), ("act2", nn.Hardswish()), ("pool", nn.AdaptiveAvgPool2d(1))]
    layers += [("flatten", nn.Flatten()), ("dropout", nn.Dropout(0.1)), ("logits", nn.Linear(128, 10))]
    return Classifier((1, 28, 28), layers)


def build(name: str) -> Classifier:
    """Return the untrained network ``small``, ``resnet`` or ``mobile``; its weights follow ``torch.manual_seed``."""
    return {"small": _small, "resnet": _resnet, "mobile": _mobile}[name]()


def export(model: Classifier, path: str | Path, exporter: Exporter = "dynamo", opset: int | None = None) -> None:
    """Write ``model`` in inference mode as one checked ONNX file ("image" to "logits", dynamic "batch").

    The default opset is 18 with the exporter ``dynamo`` and 17 with ``legacy``.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.part")  # renamed at the end, so readers never see half a file
    model.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    # A batch of two, because the exporters take a dimension of one for a constant.
    options: dict[str, Any] = {"args": (torch.zeros(2, *model.input_shape),), "f": str(partial), "verbose": False}
    options |= {"input_names": ["image"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        # The exporters warn about themselves, and that torchvision is not there, which these networks do not need.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
        if exporter == "dynamo":
            shapes = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(
                model, **options, dynamo=True, opset_version=opset or 18, dynamic_shapes=shapes, external_data=False
            )
        else:
            # PRESERVE, because EVAL folds batch normalization into the convolutions, and its scales are a
            # useful measure of the importance of filters.
            torch.onnx.export(
                model, **options, dynamo=False, opset_version=opset or 17, do_constant_folding=True,
                training=torch.onnx.TrainingMode.PRESERVE,
                dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            )  # fmt: skip
    proto = onnx.load(partial)
    for item in [proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer,
                 *proto.graph.input, *proto.graph.output]:  # fmt: skip
        item.ClearField("metadata_props")  # they hold stack traces with the paths of this machine
        item.ClearField("doc_string")
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, partial)
    os.replace(partial, path)


def parity(model: Classifier, path: Path, images: Images) -> float:
    """Return the greatest difference of the logits between torch and onnxruntime, on one and on three images."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in (1, 3):
        x = prepare(torch.from_numpy(images[:count]), model.input_shape)
        with torch.inference_mode():
            want = model.eval()(x).numpy()
        worst = max(worst, float(np.abs(session.run(["logits"], {"image": x.numpy()})[0] - want).max()))
    return worst


def accuracy(path: Path, images: Images, labels: Labels) -> float:
    """Return the top-1 accuracy, in percent, of an ONNX file run by onnxruntime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape[1:]
    right = 0
    for i in range(0, len(images), 500):
        x = prepare(torch.from_numpy(images[i : i + 500]), shape).numpy()
        right += int((session.run(["logits"], {"image": x})[0].argmax(1) == labels[i : i + 500]).sum())
    return 100 * right / len(images)


def count(path: Path) -> tuple[int, int]:
    """Return the multiply-accumulates for one image (convolutions and matrix products) and the parameters."""
    proto = onnx.load(path)
    del proto.graph.value_info[:]  # inferred again below, for a batch of exactly one
    for value in [*proto.graph.input, *proto.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*graph.value_info, *graph.output]}
    weights = {w.name: list(w.dims) for w in graph.initializer}
    macs, used = 0, set()
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in weights:  # the legacy exporter shares equal weights
            weights[node.output[0]] = weights[node.input[0]]
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            size = math.prod(weights[node.input[1]])
            # Each weight of a convolution is used once for every position of the output.
            macs += size * (math.prod(shapes[node.output[0]][2:]) if node.op_type == "Conv" else 1)
        if node.op_type in ("Conv", "Gemm", "MatMul", "BatchNormalization", "Add"):
            used.update(node.input[1:3])  # weight and bias, or scale and bias: not the running statistics
    return macs, sum(math.prod(weights[name]) for name in used if name in weights)


def load(split: Literal["train", "t10k"]) -> tuple[Images, Labels]:
    """Return images (count, 1, 28, 28) and labels of Fashion-MNIST, or end the program if it is not installed."""
    arrays = []
    for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
        path = DATASET / f"{split}-{kind}-ubyte.gz"
        if not path.is_file():
            sys.exit(f"error: {path} is missing; install the Debian package dataset-fashion-mnist")
        arrays.append(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header).copy())
    return arrays[0].reshape(-1, 1, 28, 28), arrays[1].astype(np.int64)


def prepare(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Pad, repeat and normalize uint8 images to the input shape of a network, as models/*.toml describe it."""
    pad = (shape[1] - images.shape[2]) // 2
    x = functional.pad(images, (pad, pad, pad, pad)).expand(-1, shape[0], -1, -1)
    return (x.float() / 255 - MEAN) / STD


def make_data(models: Path, seed: int) -> None:
    """Write the slices: calibration from the training images, evaluation (balanced) from the test images."""
    rng = np.random.default_rng(seed)
    images, labels = load("train")
    chosen = rng.permutation(len(images))[:512]
    np.savez_compressed(models / "calibration.npz", image=images[chosen], labels=labels[chosen])
    images, labels = load("t10k")
    chosen = np.concatenate([rng.permutation(np.flatnonzero(labels == label))[:100] for label in range(10)])
    chosen = rng.permutation(chosen)  # mixed, so that any prefix is roughly balanced too
    np.savez_compressed(models / "evaluation.npz", image=images[chosen], labels=labels[chosen])
    print("data: wrote calibration.npz (512 images) and evaluation.npz (1000 images)")


def augment(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift each uint8 image by up to two pixels and mirror half of them."""
    n, size = len(images), images.shape[2]
    shift = torch.from_numpy(rng.integers(0, 5, (2, n, 1)))
    rows, cols = torch.arange(size) + shift[0], torch.arange(size) + shift[1]
    mirror = torch.from_numpy(rng.integers(0, 2, n)).bool()
    cols[mirror] = cols[mirror].flip(1)
    padded = functional.pad(images[:, 0], (2, 2, 2, 2))
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], cols[:, None, :]].unsqueeze(1)


def train(name: str, epochs: int, seed: int) -> Classifier:
    """Train one network with SGD and a one-cycle schedule, and return it."""
    recipe = RECIPES[name]
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    images, labels = (torch.from_numpy(a) for a in load("train"))
    model = build(name)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups = [  # no decay for biases and the scales of normalizations
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": recipe.decay},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    steps = len(images) // BATCH
    optimizer = torch.optim.SGD(groups, lr=recipe.rate, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, epochs * steps, pct_start=0.2, cycle_momentum=False
    )
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        model.train()
        order = torch.from_numpy(rng.permutation(len(images)))
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            x = prepare(augment(images[batch], rng), model.input_shape)
            loss = functional.cross_entropy(
                model(x.to(memory_format=torch.channels_last)), labels[batch], label_smoothing=0.05
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - start
        print(f"{name}: epoch {epoch + 1}/{epochs}, loss {total / steps:.4f}, {seconds:.1f} s", flush=True)
    return model


def make_model(name: str, args: argparse.Namespace) -> None:
    """Train one network (or load its saved weights), export it, and check the written file."""
    recipe = RECIPES[name]
    state, path = args.work / f"{name}.pt", args.models / f"{name}.onnx"
    images, labels = load("t10k")
    if args.export_only:
        if not state.is_file():
            sys.exit(f"error: {state} is missing; train {name} first, without --export-only")
        model = build(name)
        model.load_state_dict(torch.load(state, weights_only=True))
    else:
        model = train(name, args.epochs or recipe.epochs, args.seed)
        torch.save(model.state_dict(), state)
    export(model, path, recipe.exporter, recipe.opset)
    difference = parity(model, path, images)
    if difference > 1e-4:
        sys.exit(f"error: {path} differs from torch by {difference:.1e}")
    top1 = accuracy(path, images, labels)
    print(f"{name}: top-1 {top1:.2f} %, {path.stat().st_size} bytes, differs from torch by {difference:.1e}")


def make_readme(models: Path) -> None:
    """Measure the files and write models/README.md."""
    for name, target in [(f"{name}.onnx", name) for name in RECIPES] + [("evaluation.npz", "data")]:
        if not (models / name).is_file():
            sys.exit(f"error: {models / name} is missing; make it with: make_models.py {target}")
    images, labels = load("t10k")
    part = np.load(models / "evaluation.npz")
    rows, notes = [], []
    for name, recipe in RECIPES.items():
        path = models / f"{name}.onnx"
        macs, parameters = count(path)
        shape = "x".join(map(str, build(name).input_shape))
        rows.append(
            f"| `{path.name}` | {shape} | {macs / 1e6:.2f} M | {parameters:,} | {accuracy(path, images, labels):.2f} % "
            f"| {accuracy(path, part['image'], part['labels']):.1f} % | {recipe.exporter}, opset {recipe.opset} |"
        )
        notes.append(f"- `{path.name}`: {recipe.summary}. Made by `python tools/make_models.py {name}`.")
    files = sorted(p for p in models.iterdir() if p.suffix in (".onnx", ".npz", ".toml"))
    digests = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}" for p in files]
    text = README.format(rows="\n".join(rows), notes="\n".join(notes), digests="\n".join(digests))
    (models / "README.md").write_text(text, encoding="utf-8")
    print("readme: wrote README.md")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Train the reference classifiers on Fashion-MNIST and export them to ONNX.",
        epilog="example: python tools/make_models.py small data readme --threads 2",
    )
    epochs = ", ".join(f"{recipe.epochs} for {name}" for name, recipe in RECIPES.items())
    choices = [*RECIPES, "data", "readme", "all"]
    parser.add_argument(
        "targets", nargs="+", choices=choices, metavar="TARGET",
        help="what to make: a network (small, resnet, mobile), data (calibration and evaluation images), "
        "readme (measures the files), or all of them",
    )  # fmt: skip
    parser.add_argument("--models", type=Path, default=ROOT / "models", metavar="DIR", help="output (default: models/)")
    parser.add_argument("--work", type=Path, default=ROOT / "build", metavar="DIR", help="weights (default: build/)")
    parser.add_argument("--epochs", type=int, metavar="N", help=f"train for N epochs (default: {epochs})")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (default: 0)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for torch (default: its own choice)")
    parser.add_argument("--export-only", action="store_true", help="export the weights saved by an earlier run")
    args = parser.parse_args(argv)
    if args.epochs is not None and args.epochs < 1:
        parser.error("--epochs must be at least 1")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    for folder in (args.models, args.work):
        folder.mkdir(parents=True, exist_ok=True)
    for target in choices[:-1] if "all" in args.targets else args.targets:
        if target == "data":
            make_data(args.models, args.seed)
        elif target == "readme":
            make_readme(args.models)
        else:
            make_model(target, args)


if __name__ == "__main__":
    main()

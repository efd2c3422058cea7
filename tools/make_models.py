#!/usr/bin/env python3
"""Train the reference models on Fashion-MNIST and on made scenes of its garments, and export them to ONNX.

The targets are the classifiers ``small``, ``resnet`` and ``mobile``, the networks ``detector`` and ``unet`` of made scenes, the slices
for calibration and evaluation (``data`` and ``scenes``), the measured tables (``readme``), or ``all`` of them in that order. Weights, order and
augmentation follow from the seed; another processor or number of threads rounds differently.

:func:`build` and :func:`export` need neither the data set nor any training, so tests can export untrained networks.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import scenes
import torch
from models_page import README, digests, note, row
from scene_models import SCENE_RECIPES, Detector, SceneRecipe, UNet, build_scene, train_scene
from scenes import Images, Labels, load
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
MEAN, STD = 0.2860, 0.3530
BATCH = 128
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


CLASSIFIERS = {"small": _small, "resnet": _resnet, "mobile": _mobile}
Network = Classifier | Detector | UNet


def build(name: str) -> Network:
    """Return the untrained network of that name; its weights follow ``torch.manual_seed``."""
    return build_scene(name) if name in SCENE_RECIPES else CLASSIFIERS[name]()


def names(model: Network) -> tuple[str, str]:
    """Return the names of input and output."""
    if isinstance(model, Classifier):
        return "image", "logits"
    return scenes.INPUT, "output" if isinstance(model, Detector) else "logits"


def export(model: Network, path: str | Path, exporter: Exporter = "dynamo", opset: int | None = None) -> None:
    """Write ``model`` in inference mode as one checked ONNX file with a dynamic first dimension "batch".

    The default opset is 18 with the exporter ``dynamo`` and 17 with ``legacy``.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.part")  # renamed at the end, so readers never see half a file
    model.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    # A batch of two, because the exporters take a dimension of one for a constant.
    options: dict[str, Any] = {"args": (torch.zeros(2, *model.input_shape),), "f": str(partial), "verbose": False}
    source, result = names(model)
    options |= {"input_names": [source], "output_names": [result]}
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
                dynamic_axes={source: {0: "batch"}, result: {0: "batch"}},
            )  # fmt: skip
    proto = onnx.load(partial)
    for item in [proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer,
                 *proto.graph.input, *proto.graph.output]:  # fmt: skip
        item.ClearField("metadata_props")  # they hold stack traces with the paths of this machine
        item.ClearField("doc_string")
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, partial)
    os.replace(partial, path)


def parity(model: Network, path: Path, x: Tensor) -> float:
    """Return the greatest difference of the output between torch and onnxruntime, on one and on three images."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in (1, 3):
        with torch.inference_mode():
            want = model.eval()(x[:count]).numpy()
        worst = max(worst, float(np.abs(session.run(None, {names(model)[0]: x[:count].numpy()})[0] - want).max()))
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
    model = CLASSIFIERS[name]()
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
    recipe: Recipe | SceneRecipe = SCENE_RECIPES[name] if name in SCENE_RECIPES else RECIPES[name]
    state, path = args.work / f"{name}.pt", args.models / f"{name}.onnx"
    if args.export_only:
        if not state.is_file():
            sys.exit(f"error: {state} is missing; train {name} first, without --export-only")
        model = build(name)
        model.load_state_dict(torch.load(state, weights_only=True))
    else:
        make: Callable[[str, int, int], Network] = train_scene if name in SCENE_RECIPES else train
        model = make(name, args.epochs or recipe.epochs, args.seed)
        torch.save(model.state_dict(), state)
    export(model, path, recipe.exporter, recipe.opset)
    if name in SCENE_RECIPES:
        fresh = scenes.fresh_scenes(args.seed)
        x, limit = torch.from_numpy(fresh.images[:3]).float() / 255, 1e-3  # boxes are in pixels
        found = scenes.accuracy(path, SCENE_RECIPES[name].task, fresh)
    else:
        images, labels = load("t10k")
        x, limit = prepare(torch.from_numpy(images[:3]), model.input_shape), 1e-4
        found = {"top-1": accuracy(path, images, labels)}
    difference = parity(model, path, x)
    if difference > limit:
        sys.exit(f"error: {path} differs from torch by {difference:.1e}")
    measured = ", ".join(f"{metric} {value:.2f} %" for metric, value in found.items())
    print(f"{name}: {measured}, {path.stat().st_size} bytes, differs from torch by {difference:.1e}")


def make_readme(models: Path, seed: int) -> None:
    """Measure the files and write models/README.md."""
    needed = [(f"{name}.onnx", name) for name in (*RECIPES, *SCENE_RECIPES)]
    needed += [("evaluation.npz", "data"), *((f"scenes_{kind}.npz", "scenes") for kind in ("boxes", "masks"))]
    for name, target in needed:
        if not (models / name).is_file():
            sys.exit(f"error: {models / name} is missing; make it with: make_models.py {target}")
    images, labels = load("t10k")
    part = np.load(models / "evaluation.npz")
    boxes, masks = (np.load(models / f"scenes_{kind}.npz") for kind in ("boxes", "masks"))
    fresh = scenes.fresh_scenes(seed)
    sliced = scenes.Scenes(boxes[scenes.INPUT], boxes["labels"], masks["labels"])
    rows, scene_rows = [], []
    for name, recipe in RECIPES.items():
        path = models / f"{name}.onnx"
        whole, few = accuracy(path, images, labels), accuracy(path, part["image"], part["labels"])
        export = f"{recipe.exporter}, opset {recipe.opset}"
        rows.append(row(path, build(name).input_shape, [f"{whole:.2f} %", f"{few:.1f} %"], export))
    for name, scene in SCENE_RECIPES.items():
        path = models / f"{name}.onnx"
        found = [scenes.accuracy(path, scene.task, these) for these in (fresh, sliced)]
        numbers = [", ".join(found[0]), *(", ".join(f"{v:.1f} %" for v in values.values()) for values in found)]
        scene_rows.append(row(path, build(name).input_shape, numbers, f"{scene.exporter}, opset {scene.opset}"))
    text = README.format(
        rows="\n".join(rows),
        notes="\n".join(note(models / f"{name}.onnx", recipe.summary) for name, recipe in RECIPES.items()),
        scene_rows="\n".join(scene_rows),
        scene_notes="\n".join(note(models / f"{name}.onnx", scene.summary) for name, scene in SCENE_RECIPES.items()),
        fresh=scenes.FRESH, evaluation=scenes.EVALUATION, calibration=scenes.CALIBRATION,
        classes=f"{', '.join(scenes.CLASSES[:-1])} and {scenes.CLASSES[-1]}", digests=digests(models),
    )  # fmt: skip
    (models / "README.md").write_text(text, encoding="utf-8")
    print("readme: wrote README.md")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Train the reference models on Fashion-MNIST and on made scenes, and export them to ONNX.",
        epilog="example: python tools/make_models.py small data readme --threads 2",
    )
    every: dict[str, Recipe | SceneRecipe] = {**RECIPES, **SCENE_RECIPES}
    epochs = ", ".join(f"{recipe.epochs} for {name}" for name, recipe in every.items())
    choices = [*RECIPES, *SCENE_RECIPES, "data", "scenes", "readme", "all"]
    parser.add_argument(
        "targets", nargs="+", choices=choices, metavar="TARGET",
        help=f"what to make: a network ({', '.join((*RECIPES, *SCENE_RECIPES))}), data (calibration and evaluation images), "
        "scenes (the same of made scenes), readme (measures the files), or all of them",
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
        elif target == "scenes":
            scenes.write_scenes(args.models, args.seed)
        elif target == "readme":
            make_readme(args.models, args.seed)
        else:
            make_model(target, args)


if __name__ == "__main__":
    main()

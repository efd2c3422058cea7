#!/usr/bin/env python3
"""Measure what the granularities are worth at equal latency, and write docs/blocks.md.

Five networks that are common in another way each: the residual reference model, and a VGG16, a ResNet-50, a GoogLeNet and a mobile network
rich in 5x5 and 7x7 kernels, all at half or a quarter of their width and trained on Fashion-MNIST by `--train` (one pass each, some minutes).
Each is pruned to the same latency by channels alone, by every other granularity alone, and by all of them.

Example:
    python tools/blocks.py --train all --models build/blocks     # once
    python tools/blocks.py --models build/blocks                 # measure, and write the page
    python tools/blocks.py --models build/blocks --only vgg16
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import make_models
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
EPOCHS, RATE, DECAY, BATCH = 1, 0.05, 5e-4, 64
SIDE = 32


def networks() -> dict[str, Any]:
    """Return what builds each network, by name."""
    import torch
    from torch import nn

    def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[Any]:
        return [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]

    def head(channels: int) -> list[Any]:
        return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]

    def vgg16() -> Any:
        """Simonyan and Zisserman, 2014, configuration D, at a quarter of the width, with BatchNormalization and one linear layer."""
        layers: list[Any] = []
        before = 1
        for width, count in ((16, 2), (32, 2), (64, 3), (128, 3), (128, 3)):
            for _ in range(count):
                layers += conv(before, width, 3)
                before = width
            layers.append(nn.MaxPool2d(2))
        return nn.Sequential(*layers, *head(before))

    class Bottleneck(nn.Module):  # type: ignore[misc]
        def __init__(self, inputs: int, width: int, stride: int) -> None:
            super().__init__()
            outputs = 4 * width
            last = [nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
            self.body = nn.Sequential(*conv(inputs, width, 1), *conv(width, width, 3, stride), *last)
            self.shortcut: Any = nn.Identity()
            if stride > 1 or inputs != outputs:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )
            self.relu = nn.ReLU()

        def forward(self, x: Any) -> Any:
            return self.relu(self.body(x) + self.shortcut(x))

    def resnet50() -> Any:
        """He et al., 2015, at a quarter of the width."""
        layers: list[Any] = [*conv(1, 16, 3), nn.MaxPool2d(2)]
        before = 16
        for width, count, stride in ((16, 3, 1), (32, 4, 2), (64, 6, 2), (128, 3, 2)):
            for number in range(count):
                layers.append(Bottleneck(before, width, stride if not number else 1))
                before = 4 * width
        return nn.Sequential(*layers, *head(before))

    class Inception(nn.Module):  # type: ignore[misc]
        def __init__(self, inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int) -> None:
            super().__init__()
            self.branches = nn.ModuleList(
                [
                    nn.Sequential(*conv(inputs, one, 1)),
                    nn.Sequential(*conv(inputs, three[0], 1), *conv(three[0], three[1], 3)),
                    nn.Sequential(*conv(inputs, five[0], 1), *conv(five[0], five[1], 5)),
                    nn.Sequential(nn.MaxPool2d(3, 1, 1), *conv(inputs, pool, 1)),
                ]
            )

        def forward(self, x: Any) -> Any:
            return torch.cat([branch(x) for branch in self.branches], 1)

    def googlenet() -> Any:
        """Szegedy et al., 2014, table 1, at half the width, 5x5 kernels as they were meant."""
        table = (
            (96, 32, (48, 64), (8, 16), 16), (128, 64, (64, 96), (16, 48), 32), None,
            (240, 96, (48, 104), (8, 24), 32), (256, 80, (56, 112), (12, 32), 32), (256, 64, (64, 128), (12, 32), 32),
            (256, 56, (72, 144), (16, 32), 32), (264, 128, (80, 160), (16, 64), 64), None,
            (416, 128, (80, 160), (16, 64), 64), (416, 192, (96, 192), (24, 64), 64),
        )  # fmt: skip
        layers: list[Any] = [*conv(1, 32, 7, 2), *conv(32, 32, 1), *conv(32, 96, 3), nn.MaxPool2d(2)]
        layers += [nn.MaxPool2d(2) if row is None else Inception(*row) for row in table]
        return nn.Sequential(*layers, *head(512))

    class Inverted(nn.Module):  # type: ignore[misc]
        def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
            super().__init__()
            wide = expand * inputs
            last = [nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
            self.body = nn.Sequential(*conv(inputs, wide, 1), *conv(wide, wide, kernel, stride, wide), *last)
            self.adds = stride == 1 and inputs == outputs

        def forward(self, x: Any) -> Any:
            return x + self.body(x) if self.adds else self.body(x)

    def large_kernels() -> Any:
        """Inverted residuals (Sandler et al., 2018) with kernels of 5 and 7, as searched mobile networks have them."""
        layers: list[Any] = conv(1, 24, 5)
        before = 24
        for width, count, kernel, stride in ((24, 1, 5, 2), (32, 2, 7, 1), (48, 3, 5, 2), (64, 3, 7, 1), (96, 3, 5, 2)):
            for number in range(count):
                layers.append(Inverted(before, width, kernel, stride if not number else 1, 4))
                before = width
        return nn.Sequential(*layers, *conv(before, 256, 1), *head(256))

    return {
        "vgg16": vgg16,
        "resnet50": resnet50,
        "googlenet": googlenet,
        "large_kernels": large_kernels,
    }


def train(name: str, folder: Path, seed: int = 0) -> None:
    """Train one network on the 60,000 training images, and export it."""
    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    images, labels = (torch.from_numpy(a) for a in make_models.load("train"))
    model = networks()[name]().to(memory_format=torch.channels_last)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    steps = len(images) // BATCH
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, EPOCHS * steps, pct_start=0.2, cycle_momentum=False)
    for epoch in range(EPOCHS):
        start, total = time.perf_counter(), 0.0
        model.train()
        order = torch.from_numpy(rng.permutation(len(images)))
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            x = make_models.prepare(make_models.augment(images[batch], rng), (1, SIDE, SIDE))
            out = model(x.to(memory_format=torch.channels_last))
            loss = functional.cross_entropy(out, labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
            if step % 100 == 99:
                print(f"{name}: step {step + 1} of {steps}, loss {total / (step + 1):.4f}", flush=True)
        print(f"{name}: epoch {epoch + 1}, loss {total / steps:.4f}, {time.perf_counter() - start:.0f} s", flush=True)
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    example = torch.zeros(1, 1, SIDE, SIDE)
    torch.onnx.export(
        model, (example,), str(folder / f"{name}.onnx"), input_names=["images"], output_names=["logits"],
        dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}}, dynamo=False, opset_version=17,
    )  # fmt: skip


def main() -> int:
    """Run what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "blocks", help="folder of the networks")
    parser.add_argument("--train", help="train one network, or all, instead of measuring")
    args = parser.parse_args()
    if args.train:
        for name in networks() if args.train == "all" else [args.train]:
            train(name, args.models)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The detector and the U-Net of made scenes: networks, losses and training.

Both take the picture `images`, float32 (n, 1, 64, 64) in 0..1. The detector gives `output`, (n, 4 + 5, 80): for each anchor the centre x,
centre y, width and height of a box in pixels, then a probability per class, as Ultralytics exports YOLOv8. The U-Net gives `logits`
(n, 6, 64, 64).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scenes import CLASSES, SIDE, Task, make_scenes
from torch import Tensor, nn
from torch.nn import functional

STRIDES = (8, 16)
TRAINING = 16_000
"""Scenes that a network is trained on."""


@dataclass(frozen=True)
class SceneRecipe:
    """How one network is built, trained with Adam, and exported."""

    summary: str
    task: Task
    output: str
    epochs: int
    exporter: Literal["dynamo", "legacy"]
    opset: int
    batch: int = 64
    rate: float = 4e-3
    decay: float = 1e-4


SCENE_RECIPES = {
    "detector": SceneRecipe(
        "anchor-free single-stage detector in the form of YOLOv8: CSP blocks, SiLU, strides 8 and 16 with Resize and Concat between them, "
        "one head per stride",
        "detect", "output", epochs=25, exporter="legacy", opset=17,
    ),
    "unet": SceneRecipe(
        "U-Net: widths 16/32/64, batch normalization (folded by the exporter), ReLU, ConvTranspose and Concat on the way up",
        "segment", "logits", epochs=2, batch=32, exporter="dynamo", opset=18,
    ),
}  # fmt: skip


def conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, act: Callable[[], nn.Module] = nn.SiLU
) -> nn.Sequential:
    """A same-padded convolution without bias, batch normalization and an activation."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=layer, bn=nn.BatchNorm2d(outputs), act=act()))


class Csp(nn.Module):
    """Half of the channels go through a residual pair of convolutions; all stages are concatenated (C2f of YOLOv8)."""

    def __init__(self, inputs: int, outputs: int, residual: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.first, self.last = conv(inputs, outputs, 1), conv(3 * half, outputs, 1)
        self.pair = nn.Sequential(conv(half, half), conv(half, half))
        self.parts, self.residual = [half, half], residual

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        one, two = torch.split(self.first(x), self.parts, 1)  # constant sizes make one Split of the file
        three = self.pair(two)
        y: Tensor = self.last(torch.cat([one, two, two + three if self.residual else three], 1))
        return y


class Head(nn.Module):
    """Distances to the four sides of a box, and class logits, by two branches of a 3x3 and a 1x1 convolution."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.shape = (-1, 4 + len(CLASSES), (SIDE // stride) ** 2)
        self.box = nn.Sequential(conv(inputs, width), nn.Conv2d(width, 4, 1))
        self.kind = nn.Sequential(conv(inputs, width), nn.Conv2d(width, len(CLASSES), 1))
        nn.init.constant_(self.kind[1].bias, -4.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, 4 + classes, positions)."""
        return torch.cat([self.box(x), self.kind(x)], 1).reshape(self.shape)


class Detector(nn.Module):
    """Backbone, feature pyramid with a way up and a way down, and a head per stride."""

    input_shape = (1, SIDE, SIDE)
    centres: Tensor
    strides: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(1, 16, stride=2), conv(16, 32, stride=2), Csp(32, 32))
        self.stage3 = nn.Sequential(conv(32, 48, stride=2), Csp(48, 48))
        self.stage4 = nn.Sequential(conv(48, 64, stride=2), Csp(64, 64))
        self.up = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.fused3 = Csp(64 + 48, 48, residual=False)
        self.down = conv(48, 32, stride=2)
        self.fused4 = Csp(32 + 64, 64, residual=False)
        self.heads = nn.ModuleList([Head(48, 24, STRIDES[0]), Head(64, 24, STRIDES[1])])
        places = [(torch.arange(SIDE // stride) + 0.5) * stride for stride in STRIDES]
        grids = [torch.stack(torch.meshgrid(place, place, indexing="xy")).flatten(1) for place in places]
        self.register_buffer("centres", torch.cat(grids, 1), persistent=False)
        strides = [torch.full((grid.shape[1],), float(stride)) for grid, stride in zip(grids, STRIDES, strict=True)]
        self.register_buffer("strides", torch.cat(strides), persistent=False)

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return distances to left, top, right and bottom in pixels (n, 4, anchors), and logits (n, classes, anchors)."""
        c3 = self.stage3(self.stem(x))
        c4 = self.stage4(c3)
        p3 = self.fused3(torch.cat([self.up(c4), c3], 1))
        p4 = self.fused4(torch.cat([self.down(p3), c4], 1))
        y = torch.cat([head(p) for head, p in zip(self.heads, (p3, p4), strict=True)], 2)
        return torch.exp(y[:, :4]) * self.strides, y[:, 4:]

    def forward(self, x: Tensor) -> Tensor:
        """Return decoded boxes and probabilities."""
        sides, logits = self.raw(x)
        before, after = sides[:, :2], sides[:, 2:]
        return torch.cat([self.centres + (after - before) / 2, before + after, torch.sigmoid(logits)], 1)


class UNet(nn.Module):
    """Three resolutions, each with two 3x3 convolutions on the way down and up."""

    input_shape = (1, SIDE, SIDE)

    def __init__(self, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        a, b, c = widths
        self.down1, self.down2, self.middle = _double(1, a), _double(a, b), _double(b, c)
        self.pool = nn.MaxPool2d(2)
        self.up2, self.out2 = nn.ConvTranspose2d(c, b, 2, 2), _double(2 * b, b)
        self.up1, self.out1 = nn.ConvTranspose2d(b, a, 2, 2), _double(2 * a, a)
        self.logits = nn.Conv2d(a, len(CLASSES) + 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits per pixel."""
        one = self.down1(x)
        two = self.down2(self.pool(one))
        x = self.out2(torch.cat([self.up2(self.middle(self.pool(two))), two], 1))
        y: Tensor = self.logits(self.out1(torch.cat([self.up1(x), one], 1)))
        return y


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, act=nn.ReLU), conv(outputs, outputs, act=nn.ReLU))


def build_scene(name: str) -> Detector | UNet:
    """Return the untrained network ``detector`` or ``unet``; its weights follow ``torch.manual_seed``."""
    if name == "unet":
        return UNet()
    return Detector()


def iou(one: Tensor, two: Tensor) -> Tensor:
    """Return the intersection over union of boxes (..., 4) that broadcast."""
    size = (torch.minimum(one[..., 2:], two[..., 2:]) - torch.maximum(one[..., :2], two[..., :2])).clamp(min=0)
    common: Tensor = size.prod(-1)
    area: list[Tensor] = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1) for boxes in (one, two)]
    share: Tensor = common / (area[0] + area[1] - common + 1e-7)
    return share


def detector_loss(model: Detector, x: Tensor, boxes: Tensor) -> Tensor:
    """Return the loss of a batch: BCE of the classes, and IoU and distance of the boxes that are assigned to anchors.

    A box is assigned to the six anchors inside it with the largest p^0.5 IoU^4 (task alignment, arXiv 2108.07755). The wanted
    probability of their class is their share of the largest of these, times the largest IoU.
    """
    sides, logits = model.raw(x)
    centres = model.centres.T  # (anchors, 2)
    sides = sides.transpose(1, 2)
    found = torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], -1)  # (n, anchors, 4)
    valid, kinds = boxes[..., 4] >= 0, boxes[..., 4].clamp(min=0).long()
    with torch.no_grad():
        overlap = iou(boxes[:, :, None, :4], found[:, None])  # (n, boxes, anchors)
        p = torch.sigmoid(logits).gather(1, kinds[:, :, None].expand_as(overlap))
        edge = torch.cat([centres - boxes[:, :, None, :2], boxes[:, :, None, 2:4] - centres], -1).amin(-1)
        # an anchor beside a narrow box counts as inside, or such a box would have none
        inside = (edge > torch.minimum(torch.zeros(()), _half(boxes) - 0.51 * model.strides)) & valid[:, :, None]
        aligned = (p.sqrt() * overlap**4 + 1e-9) * inside
        least = aligned.topk(6, -1).values[..., -1:]
        aligned = aligned * (aligned >= least) * inside
        best = aligned.max(1)
        chosen, positive = best.indices, best.values > 0
        aligned = aligned * (functional.one_hot(chosen, boxes.shape[1]).transpose(1, 2) > 0)
        top = (overlap * (aligned > 0)).amax(-1, keepdim=True)
        quality = (aligned / aligned.amax(-1, keepdim=True).clamp(min=1e-12) * top).amax(1)  # (n, anchors)
        wanted = functional.one_hot(kinds.gather(1, chosen), len(CLASSES)).transpose(1, 2) * quality[:, None]
        amount = quality.sum().clamp(min=1)
    scores = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    target = boxes[..., :4].gather(1, chosen[..., None].expand(-1, -1, 4))[positive]
    found, weight = found[positive], quality[positive].clamp(min=0.1)
    lost = 1 - iou(found, target) + 0.05 * functional.smooth_l1_loss(found, target, reduction="none").mean(-1)
    return (0.5 * scores + 3 * (lost * weight).sum()) / amount


def _half(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:4] - boxes[..., :2]).amin(-1, keepdim=True) / 2


def unet_loss(model: UNet, x: Tensor, masks: Tensor) -> Tensor:
    """Return cross-entropy plus the soft Dice loss of the classes."""
    logits = model(x)
    p, wanted = logits.softmax(1), functional.one_hot(masks, len(CLASSES) + 1).permute(0, 3, 1, 2).float()
    common, total = (p * wanted).sum((0, 2, 3)), (p + wanted).sum((0, 2, 3))
    loss: Tensor = functional.cross_entropy(logits, masks) + (1 - (2 * common + 1) / (total + 1)).mean()
    return loss


def train_scene(name: str, epochs: int, seed: int) -> Detector | UNet:
    """Train one network with AdamW and a one-cycle schedule on scenes of the training split, mirrored at random."""
    recipe = SCENE_RECIPES[name]
    torch.manual_seed(seed)
    scenes = make_scenes("train", TRAINING, seed)
    images, masks = torch.from_numpy(scenes.images), torch.from_numpy(scenes.masks)
    boxes = torch.from_numpy(scenes.boxes)
    model = build_scene(name)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": recipe.decay},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer, steps = torch.optim.AdamW(groups, lr=recipe.rate), len(images) // recipe.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, epochs * steps, pct_start=0.15)
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        model.train()
        for batch in torch.randperm(len(images))[: steps * recipe.batch].view(steps, recipe.batch):
            mirror = bool(torch.rand(()) < 0.5)
            x = (images[batch].flip(3) if mirror else images[batch]).float() / 255
            x = x.to(memory_format=torch.channels_last)
            if isinstance(model, Detector):
                loss = detector_loss(model, x, _mirrored(boxes[batch]) if mirror else boxes[batch])
            else:
                loss = unet_loss(model, x, (masks[batch].flip(2) if mirror else masks[batch]).long())
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - start
        print(f"{name}: epoch {epoch + 1}/{epochs}, loss {total / steps:.4f}, {seconds:.1f} s", flush=True)
    return model


def _mirrored(boxes: Tensor) -> Tensor:
    x1, y1, x2, y2, kind = boxes.unbind(-1)
    return torch.stack([SIDE - x2, y1, SIDE - x1, y2, kind], -1)

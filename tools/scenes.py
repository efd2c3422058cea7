"""Made scenes of garments with exact labels, and what a detector and a segmentation network reach on them.

A scene is a grey picture of 64 x 64 pixels: a procedural background, circles and triangles that belong to no class, and one to four
garments of Fashion-MNIST at random place, size and brightness, with little overlap. Scenes follow from their seed. Pictures have 32
grey levels, so that they compress.
"""

from __future__ import annotations

import gzip
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

from onnxprune.data.labels.values import npz_boxes
from onnxprune.metrics import detection, segmentation
from onnxprune.metrics.decoders import DECODERS
from onnxprune.metrics.statistics import on_all

DATASET = Path("/usr/share/datasets/fashion-mnist")
INPUT = "images"
"""Name of the input of the networks."""
SIDE = 64
CLASSES = ("trouser", "dress", "sneaker", "bag", "ankle boot")
"""Classes of the boxes, from 0; in masks they count from 1, and 0 is the background."""
GARMENTS = (1, 3, 7, 8, 9)
"""Labels of Fashion-MNIST of these classes."""
MOST = 4
"""Largest number of garments in a scene."""
EVALUATION, CALIBRATION, FRESH = 400, 256, 2000
"""Numbers of scenes in the slices, and of those that the files are measured on besides."""
LEVEL = 8
"""Distance of two grey levels."""
Split = Literal["train", "t10k"]
Task = Literal["detect", "segment"]
Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scenes:
    """Pictures with their labels.

    Attributes:
        images: uint8 (n, 1, 64, 64).
        boxes: float32 (n, 4, 5), x1 y1 x2 y2 class in pixels; rows without a garment are -1.
        masks: uint8 (n, 64, 64), 0 for the background and 1 + class for garments.
    """

    images: Images
    boxes: Floats
    masks: Images


def load(split: Split) -> tuple[Images, Labels]:
    """Return images (count, 1, 28, 28) and labels of Fashion-MNIST, or end the program if it is not installed."""
    arrays = []
    for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
        path = DATASET / f"{split}-{kind}-ubyte.gz"
        if not path.is_file():
            sys.exit(f"error: {path} is missing; install the Debian package dataset-fashion-mnist")
        arrays.append(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header).copy())
    return arrays[0].reshape(-1, 1, 28, 28), arrays[1].astype(np.int64)


def make_scenes(split: Split, n: int, seed: int) -> Scenes:
    """Return n scenes with the garments of a split of Fashion-MNIST."""
    rng = np.random.default_rng(seed)
    pictures, labels = load(split)
    pools = [pictures[labels == label, 0] for label in GARMENTS]
    images = np.empty((n, 1, SIDE, SIDE), np.uint8)
    boxes = np.full((n, MOST, 5), -1, np.float32)
    masks = np.empty((n, SIDE, SIDE), np.uint8)
    for i in range(n):
        images[i, 0], boxes[i], masks[i] = _scene(rng, pools)
    return Scenes(images, boxes, masks)


def write_scenes(models: Path, seed: int) -> None:
    """Write the evaluation slices with boxes and with masks, and the calibration slice without labels."""
    evaluation, calibration = make_scenes("t10k", EVALUATION, seed + 1), make_scenes("train", CALIBRATION, seed + 2)
    for name, found, labels in (
        ("boxes", evaluation, {"labels": evaluation.boxes}),
        ("masks", evaluation, {"labels": evaluation.masks}),
        ("calibration", calibration, {}),
    ):
        arrays: dict[str, Any] = {INPUT: found.images, **labels}
        np.savez_compressed(models / f"scenes_{name}.npz", **arrays)
    print(f"scenes: wrote scenes_boxes.npz, scenes_masks.npz ({EVALUATION}) and scenes_calibration.npz ({CALIBRATION})")


def fresh_scenes(seed: int) -> Scenes:
    """Return scenes that are in no file, with garments of the test images."""
    return make_scenes("t10k", FRESH, seed + 3)


def _scene(rng: np.random.Generator, pools: list[Images]) -> tuple[Images, Floats, Images]:
    canvas = _background(rng)
    for _ in range(rng.integers(0, 4)):
        canvas = np.where(_shape(rng), rng.uniform(20, 250), canvas)
    owner = np.full((SIDE, SIDE), -1)
    frames: list[tuple[int, int, int, int]] = []
    classes: list[int] = []
    for _ in range(rng.integers(1, MOST + 1)):
        kind = int(rng.integers(len(pools)))
        value, alpha = _garment(rng, pools[kind])
        h, w = value.shape
        frame = _place(rng, h, w, frames)
        if frame is None:
            continue
        y, x = frame[:2]
        part = np.s_[y : y + h, x : x + w]
        canvas[part] = alpha * value + (1 - alpha) * canvas[part]
        owner[part][alpha > 0.5] = len(frames)
        frames.append(frame)
        classes.append(kind)
    canvas += rng.normal(0, rng.uniform(0, 5), canvas.shape)
    image = (np.clip(canvas, 0, 255) // LEVEL * LEVEL).astype(np.uint8)

    boxes = np.full((MOST, 5), -1, np.float32)
    for i, kind in enumerate(classes):  # the overlap is small, so that some of each garment is visible
        rows, columns = np.nonzero(owner == i)
        boxes[i] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, kind
    mask = np.where(owner < 0, 0, np.array([*classes, -1])[owner] + 1).astype(np.uint8)
    return image, boxes, mask


def _background(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return a gradient, stripes, a check or soft blobs."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    angle, level, contrast = rng.uniform(0, 2 * np.pi), rng.uniform(30, 150), rng.uniform(10, 60)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kind, waves = rng.integers(4), rng.uniform(2, 10)
    if kind == 0:
        pattern = along
    elif kind == 1:
        pattern = np.sin(2 * np.pi * waves * along)
    elif kind == 2:
        pattern = np.sign(np.sin(2 * np.pi * waves * along) * np.sin(2 * np.pi * waves * across))
    else:
        coarse = Image.fromarray(rng.normal(0, 1, 2 * (rng.integers(4, 13),)).astype(np.float32))
        pattern = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64)
    return np.asarray(level + contrast * pattern)


def _shape(rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return the pixels of a circle, a ring or a triangle."""
    y, x = np.mgrid[:SIDE, :SIDE]
    cy, cx = rng.uniform(0, SIDE, 2)
    radius, turn = rng.uniform(4, 12), rng.uniform(0, 2 * np.pi)
    distance = np.hypot(y - cy, x - cx)
    kind = rng.integers(3)
    if kind == 0:
        return np.asarray(distance < radius)
    if kind == 1:
        return np.asarray((distance < radius) & (distance > 0.6 * radius))
    sides = turn + np.arange(3)[:, None, None] * 2 * np.pi / 3
    return np.asarray(((x - cx) * np.cos(sides) + (y - cy) * np.sin(sides) < radius / 2).all(0))


def _garment(rng: np.random.Generator, pool: Images) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return grey values and opacity of a garment whose longer side has 12 to 28 pixels."""
    picture = pool[rng.integers(len(pool))]
    if rng.integers(2):
        picture = picture[:, ::-1]
    rows, columns = np.nonzero(picture > 24)
    crop = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(np.float32)
    crop /= crop.max()
    longer = rng.integers(12, 29)
    h, w = (max(4, round(side * longer / max(crop.shape))) for side in crop.shape)
    resized = np.asarray(Image.fromarray(crop).resize((w, h), Image.Resampling.BILINEAR), np.float64)
    dark, bright = rng.uniform(50, 110), rng.uniform(170, 255)
    return dark + (bright - dark) * resized, np.clip(resized / 0.3, 0, 1)


def _place(
    rng: np.random.Generator, h: int, w: int, frames: list[tuple[int, int, int, int]]
) -> tuple[int, int, int, int] | None:
    """Return y, x, height and width of a frame that covers at most 8 % of another; None: no room after 20 trials."""
    for _ in range(20):
        y, x = int(rng.integers(SIDE - h + 1)), int(rng.integers(SIDE - w + 1))
        for y2, x2, h2, w2 in frames:
            common = max(0, min(y + h, y2 + h2) - max(y, y2)) * max(0, min(x + w, x2 + w2) - max(x, x2))
            if common > 0.08 * min(h * w, h2 * w2):
                break
        else:
            return y, x, h, w
    return None


def run(path: Path, images: Images) -> npt.NDArray[Any]:
    """Return the output of an ONNX file for uint8 pictures."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts = np.array_split(images, max(1, len(images) // 100))
    return np.concatenate([session.run(None, {INPUT: part.astype(np.float32) / 255})[0] for part in parts])


def accuracy(path: Path, task: Task, scenes: Scenes) -> dict[str, float]:
    """Return the metrics of an ONNX file on scenes, in percent: mAP and mAP at IoU 0.5, or mIoU."""
    output, n = run(path, scenes.images), len(scenes.images)
    if task == "segment":
        return {"mIoU": on_all(segmentation.miou(segmentation.class_map(output), scenes.masks), n)}
    found, truth = DECODERS["yolov8"].decode([output], (SIDE, SIDE)), npz_boxes(scenes.boxes)
    measured = {"mAP": detection.mean_average_precision, "mAP at IoU 0.5": detection.at_half}
    return {name: on_all(measure(found, truth), n) for name, measure in measured.items()}

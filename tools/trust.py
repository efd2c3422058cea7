#!/usr/bin/env python3
"""Make mistakes that users make, on the reference models, and write down what the tool says: docs/trust.md.

Each mistake is a command on data that were damaged in one way. None may end with a quality that PASSED. Honest runs, of as many
seeds, may not warn. Mistakes with the detector and the U-Net are in `trust_scenes`.

Example:
    python tools/trust.py                 # about twenty minutes on two cores
    python tools/trust.py --only 'labels*' --models small
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "trust.md"
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import trust_scenes  # noqa: E402

from onnxprune.cli import main  # noqa: E402
from onnxprune.data.preprocess import load_preprocess  # noqa: E402

MODELS = {"small": "32x32.toml", "resnet": "28x28.toml", "mobile": "28x28.toml"}
SAMPLES = 256
PRUNE = ("--no-latency", "--repair", "bias", "--scope", "global", "--json", "--quiet")
CHECK = ("--no-latency", "--json", "--quiet")
Arrays = dict[str, np.ndarray]
Rows = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Stage:
    """What a mistake has at hand: a model, right arrays for it, a folder, and the answer of the pruned model."""

    model: Path
    toml: Path
    folder: Path
    raw: Arrays
    right: Arrays

    def saved(self, name: str = "d.npz", **arrays: Any) -> Path:
        """Save arrays beside nothing else; return the path."""
        np.savez(self.folder / name, **arrays)
        return self.folder / name

    def changed(self, **arrays: Any) -> Path:
        """Save the right arrays with others in their place; None: without."""
        return self.saved(**{k: v for k, v in {**self.right, **arrays}.items() if v is not None})


def prune(stage: Stage, data: Path | None, *more: str, reduce: str = "20%", model: Path | None = None) -> list[str]:
    """Return the arguments of a run that prunes."""
    given = ["--data", str(data)] if data else []
    output = str(stage.folder / "o.onnx")
    return ["prune", str(model or stage.model), "-o", output, "--reduce", f"flops={reduce}", *PRUNE, *given, *more]


def check(stage: Stage, data: Path | None, *more: str) -> list[str]:
    """Return the arguments of a run that checks the model against itself."""
    return [
        "check",
        str(stage.model),
        "--baseline",
        str(stage.model),
        *CHECK,
        *(["--data", str(data)] if data else []),
        *more,
    ]


def _scaled(stage: Stage) -> np.ndarray:
    how = load_preprocess(str(stage.toml))
    return (stage.right["image"] * how.scale - np.float32(how.mean[0])) / np.float32(how.std[0])


def _unscaled(stage: Stage, top: float) -> np.ndarray:
    how = load_preprocess(str(stage.toml))
    return (stage.right["image"] * np.float32(how.std[0]) + np.float32(how.mean[0])) * np.float32(top)


def _folder_with_a_broken_picture(stage: Stage) -> Path:
    from PIL import Image

    for number, (image, label) in enumerate(zip(stage.raw["image"][:40], stage.raw["labels"][:40], strict=True)):
        place = stage.folder / "images" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(place / f"{number}.png")
    broken = next((stage.folder / "images").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:60])
    return stage.folder / "images"


def _image_toml(stage: Stage) -> Path:
    how = load_preprocess(str(stage.toml))
    path = stage.folder / "images.toml"
    channels = "L"
    path.write_text(
        f'[image]\ncolor = "{channels}"\npad = {how.pad}\nrepeat = {how.repeat}\nscale = {how.scale}\nmean = [{how.mean[0]}]\nstd = [{how.std[0]}]\n'
    )
    return path


def _rolled(labels: np.ndarray) -> np.ndarray:
    return (labels + 1) % 10


def _permuted(labels: np.ndarray) -> np.ndarray:
    return np.array([3, 7, 0, 9, 1, 8, 2, 4, 6, 5])[labels]


def _shuffled(labels: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).permutation(labels)


Mistake = Callable[[Stage], list[str]]
MISTAKES: dict[str, Mistake] = {
    "images normalised twice": lambda s: prune(s, s.changed(image=_scaled(s))),
    "images normalised twice, no labels": lambda s: prune(s, s.changed(image=_scaled(s), labels=None)),
    "images normalised twice, by --preprocess": lambda s: prune(
        s, s.changed(image=s.right["image"]), "--preprocess", str(_plain_toml(s))
    ),
    "images of 0 to 255, not normalised": lambda s: prune(s, s.changed(image=_unscaled(s, 255))),
    "images of 0 to 1, mean and deviation forgotten": lambda s: prune(s, s.changed(image=_unscaled(s, 1))),
    "images inverted": lambda s: prune(s, s.changed(image=-s.right["image"])),
    "images upside down": lambda s: prune(s, s.changed(image=s.right["image"][:, :, ::-1].copy())),
    "images transposed": lambda s: prune(s, s.changed(image=s.right["image"].swapaxes(2, 3).copy())),
    "images of another task (noise)": lambda s: prune(
        s, s.changed(image=np.random.default_rng(0).standard_normal(s.right["image"].shape).astype(np.float32))
    ),
    "images all the same": lambda s: prune(s, s.changed(image=np.repeat(s.right["image"][:1], SAMPLES, 0))),
    "images all black": lambda s: prune(s, s.changed(image=np.zeros_like(s.right["image"]))),
    "images of four samples, repeated": lambda s: prune(
        s, s.changed(**{k: np.resize(v[:4], v.shape) for k, v in s.right.items()})
    ),
    "images as bytes, without --preprocess": lambda s: prune(s, s.saved(**s.raw)),
    "images channels last": lambda s: prune(s, s.changed(image=np.moveaxis(s.right["image"], 1, 3).copy())),
    "images with NaN": lambda s: prune(
        s, s.changed(image=np.where(np.arange(SAMPLES)[:, None, None, None] == 9, np.float32("nan"), s.right["image"]))
    ),
    "image file that is cut off, in --eval": lambda s: prune(
        s, s.saved(**s.raw), "--eval", str(_folder_with_a_broken_picture(s)), "--preprocess", str(_image_toml(s))
    ),
    "labels shifted by one": lambda s: prune(s, s.changed(labels=_rolled(s.right["labels"]))),
    "labels in another order": lambda s: prune(s, s.changed(labels=_permuted(s.right["labels"]))),
    "labels in another order, check --max-drop 5": lambda s: check(
        s, s.changed(labels=_permuted(s.right["labels"])), "--max-drop", "5"
    ),
    "labels shuffled": lambda s: prune(s, s.changed(labels=_shuffled(s.right["labels"]))),
    "labels shuffled, check --min-agreement 90": lambda s: check(
        s, s.changed(labels=_shuffled(s.right["labels"])), "--min-agreement", "90"
    ),
    "labels all zero": lambda s: prune(s, s.changed(labels=np.zeros_like(s.right["labels"]))),
    "labels from 1 to 10": lambda s: prune(s, s.changed(labels=s.right["labels"] + 1)),
    "labels named y": lambda s: prune(s, s.changed(labels=None, y=s.right["labels"])),
    "labels as numbers with a point": lambda s: prune(s, s.changed(labels=s.right["labels"] + 0.5)),
    "samples of one class": lambda s: prune(s, s.changed(**{k: v[s.right["labels"] == 1] for k, v in s.right.items()})),
    "ten samples": lambda s: prune(s, s.changed(**{k: v[:10] for k, v in s.right.items()})),
    "--eval is --data": lambda s: prune(s, s.changed(), "--eval", str(s.changed())),
    "--eval holds half of --data": lambda s: prune(
        s,
        s.saved("half.npz", **{k: v[: SAMPLES // 2] for k, v in s.right.items()}),
        "--eval",
        str(s.changed()),
    ),
    "no data": lambda s: prune(s, None),
    "no data, check": lambda s: check(s, None),
    "no data, check --max-drop 1": lambda s: check(s, None, "--max-drop", "1"),
    "--reduce flops=95%": lambda s: prune(s, s.changed(), reduce="95%"),
    "a model that is pruned already": lambda s: _again(s),
}


def _plain_toml(stage: Stage) -> Path:
    how = load_preprocess(str(stage.toml))
    path = stage.folder / "again.toml"
    path.write_text(f"[array]\nscale = {how.scale}\nmean = [{how.mean[0]}]\nstd = [{how.std[0]}]\n")
    return path


def _again(stage: Stage) -> list[str]:
    data, first = stage.changed(), stage.folder / "first.onnx"
    CliRunner().invoke(main, [*prune(stage, data, reduce="2%"), "-o", str(first)])
    return prune(stage, data, model=first)


def said(arguments: list[str]) -> dict[str, Any]:
    """Run a command; return its exit code, its headline, and what it warns of or refuses."""
    done = CliRunner().invoke(main, arguments)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        found = {}
    verdict = found.get("verdict", {})
    headline = verdict if isinstance(verdict, str) else verdict.get("headline", "")
    checks = found.get("checks") or (verdict.get("checks", []) if isinstance(verdict, dict) else [])
    doubts = [c["name"] for c in checks if c["status"] == "UNDECIDED" and c["limit"] is None]
    failed = [c["name"] for c in checks if c["status"] == "FAILED"]
    error = next((line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error:")), "")
    crashed = done.exception is not None and not isinstance(done.exception, SystemExit)
    return {
        "exit": done.exit_code,
        "headline": headline or ("error" if error else "?"),
        "doubts": "; ".join([*doubts, *re.findall(r"^warning.*", done.stderr, re.MULTILINE)]),
        "says": error or "; ".join([*failed, *doubts]) or ("no data" if headline == "NOT MEASURED" else ""),
        "crash": repr(done.exception) if crashed or re.search("defect|Traceback", done.stderr) else "",
    }


def stage_of(name: str, folder: Path, seed: int = 0) -> Stage:
    """Return a model with right arrays."""
    toml = ROOT / "models" / MODELS[name]
    stored = dict(np.load(ROOT / "models" / "evaluation.npz"))
    index = np.random.default_rng(seed).permutation(len(stored["labels"]))[:SAMPLES]
    raw = {key: value[index] for key, value in stored.items()}
    how = load_preprocess(str(toml))
    return Stage(ROOT / "models" / f"{name}.onnx", toml, folder, raw, {**raw, "image": how.apply(raw["image"])})


def honest(name: str, seeds: int) -> list[str]:
    """Check and prune with right data of many seeds; return what is doubted."""
    found = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            if name in MODELS:
                stage = stage_of(name, Path(folder), seed)
                runs = [check(stage, stage.changed())]
            else:
                scenes = trust_scenes.stage_of(name, Path(folder), seed)
                runs = [scenes.check(), scenes.prune(reduce="2%")]
            for number, told in enumerate(map(said, runs)):
                if told["doubts"] or (not number and told["headline"] != "PASSED"):
                    found.append(f"seed {seed}: {told['headline']}: {told['doubts'] or told['says']}")
    return found


def run(models: list[str], only: str, seeds: int) -> tuple[Rows, dict[str, list[str]]]:
    """Make all mistakes on all models."""
    rows: Rows = {}
    for name in models:
        for mistake in MISTAKES if name in MODELS else trust_scenes.MISTAKES[name]:
            if not fnmatch.fnmatch(mistake, only):
                continue
            with tempfile.TemporaryDirectory() as folder:
                if name in MODELS:
                    told = said(MISTAKES[mistake](stage_of(name, Path(folder))))
                else:
                    scenes = trust_scenes.stage_of(name, Path(folder))
                    told = said(trust_scenes.MISTAKES[name][mistake](scenes))
            rows.setdefault(mistake, {})[name] = told
            print(
                f"{mistake} | {name}: {told['exit']} {told['headline']}: {told['says'][:150]} {told['crash']}",
                flush=True,
            )
    wrong = {name: honest(name, seeds) for name in models} if seeds else {}
    for name, found in wrong.items():
        print(f"honest runs | {name}: {len(found)} doubted {'; '.join(found)}")
    return rows, wrong


def page(rows: Rows, wrong: dict[str, list[str]], seeds: int) -> str:
    """Return docs/trust.md."""
    runs = [(mistake, name, told) for mistake, row in rows.items() for name, told in row.items()]
    green = [f"{mistake} ({name})" for mistake, name, told in runs if told["headline"] == "PASSED"]
    doubted = sum(map(len, wrong.values()))
    lines = [
        "# Mistakes, and what is said of them",
        "",
        f"Written by `python tools/trust.py` from real runs, {date.today().isoformat()}: {len(rows)} mistakes on {len(wrong)} models.",
        f"**{len(green)} of {len(runs)} runs end with a quality that PASSED{': ' if green else ''}{', '.join(green)}.** "
        f"Of honest runs with {seeds} seeds of each model, {doubted} are doubted.",
        "",
        "A cell holds the headline, the exit code, and what is said; the words stand in the verdict, and on the terminal before the work begins.",
        "",
        "## Classifiers",
        "",
        *_table(rows, list(MODELS)),
        "",
        "## Detector and U-Net",
        "",
        f"Checks of a model against itself on {trust_scenes.SCENES} scenes, so that no drop says anything; rows with another option prune.",
        "",
        *_table(rows, list(trust_scenes.FILES)),
    ]
    return "\n".join([*lines, ""])


def _table(rows: Rows, names: list[str]) -> list[str]:
    """Return the rows of some models as a table."""
    lines = [f"| mistake | {' | '.join(names)} |", f"| --- | {' | '.join('---' for _ in names)} |"]
    for mistake, row in rows.items():
        if row.keys() & {*names}:
            cells = [
                f"{row[n]['headline']}, {row[n]['exit']}: {row[n]['says']}".replace("|", "\\|")[:160]
                if n in row
                else ""
                for n in names
            ]
            lines.append(f"| {mistake} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    every = [*MODELS, *trust_scenes.FILES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=every, choices=every)
    parser.add_argument("--only", default="*", help="mistakes of that name")
    parser.add_argument("--seeds", type=int, default=20, help="seeds of honest runs of each model (default: 20)")
    chosen = parser.parse_args()
    found, doubted = run(chosen.models, chosen.only, chosen.seeds)
    if chosen.only == "*" and chosen.models == every:
        PAGE.write_text(page(found, doubted, chosen.seeds), encoding="utf-8")

#!/usr/bin/env python3
"""Prune, repair and fine-tune through `onnxprune.prune`, measure what it keeps, and write docs/finetune.md.

Every measurement runs in a process of its own, so that its time and peak memory are its own, and is kept as a line of JSON in the
cache; what is there already is not run again until the sources of the package change. For each the two figures are printed that
matter: FLOPs removed in percent, and change of the accuracy in points.

Needs torch, Fashion-MNIST (Debian package `dataset-fashion-mnist`), and for EfficientNet-lite0 what tools/accuracy.py fetches.

Example:
    python tools/finetune.py                              # everything, about an hour
    python tools/finetune.py --only 'resnet/50/*' --seed 0 --seed 1
    python tools/finetune.py --report                     # the page alone
    python tools/finetune.py --train                      # the whole method: train each reference network, prune it, fine-tune it
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any

import accuracy
import baseline
import coverage
import make_models
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "finetune.md"
UNLABELLED = 1024
LIMIT = 7200.0
"""Seconds after which a measurement is given up."""
Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Goal:
    """What was asked for.

    Attributes:
        model, percent, data: what is pruned, by how much, and what it is trained on.
        text: the limit, as it was put.
        holds: whether a record is within it.
        minutes: that all of it may take on two cores.
        duration: of the training; what is left is for choosing and for the repair.
        dials: of the training, where the defaults are not used.
    """

    model: str
    percent: int
    data: str
    text: str
    holds: Callable[[Record], bool]
    minutes: float
    duration: str
    dials: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Return what the cache and `--only` call it, without its seed."""
        return f"{self.model}/{self.percent}/{self.data}"


def _lost(most: float) -> Callable[[Record], bool]:
    return lambda record: record["change"] >= -most - 1e-9


DATA = {
    "unlabelled": f"{UNLABELLED:,} unlabelled images",
    "labelled": "the 60,000 training images, with labels",
    "photographs": "200 unlabelled photographs, augmented",
}
LARGE = {"batch": 128, "rate": 1e-2, "precision": "bfloat16"}
"""For many images: few passes over them, so large steps do no harm."""
GOALS = (
    Goal("resnet", 50, "unlabelled", "top-1 lost, at most 0.2 points", _lost(0.2), 3, "2.4min"),
    Goal("resnet", 50, "labelled", "top-1 lost, at most 0.0 points", _lost(0.0), 15, "12min", LARGE),
    Goal("resnet", 75, "labelled", "top-1 lost, at most 1.0 points", _lost(1.0), 15, "6min", LARGE),
    Goal(
        "lite0-dynamo",
        30,
        "photographs",
        "agreement on unseen photographs, at least 85 %",
        lambda record: record["fidelity"]["agreement"] >= 85,
        25,
        "10min",
        {"batch": 16, "rate": 1e-3},  # a step takes seconds: smaller ones, so that there are enough of them
    ),
)
METHOD = {"small": 75, "resnet": 50, "mobile": 50}
"""Percent of the FLOPs that `--train` takes from each reference network."""


@dataclass(frozen=True)
class Run:
    """A goal, with a seed; `duration` replaces that of the goal where it is given."""

    goal: Goal
    seed: int
    duration: str | None = None

    @property
    def id(self) -> str:
        """Return what the cache calls it."""
        return f"{self.goal.id}/{self.seed}" + (f"/{self.duration}" if self.duration else "")


def training_images(count: int | None = None, labels: bool = False, seed: int = 0) -> dict[str, Any]:
    """Return images that the reference networks were trained on, as `data=` takes them: all, or some."""
    images, found = make_models.load("train")
    chosen = np.arange(len(images))
    if count is not None:
        chosen = np.sort(np.random.default_rng(seed).choice(len(images), count, replace=False))
    return {"image": images[chosen], **({"labels": found[chosen]} if labels else {})}


# ---------------------------------------------------------------------------------------------------------------- measure


class Clock:
    """Adds up seconds by stage of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.stage, self.since = "start", time.perf_counter()

    def __call__(self, stage: str, *_: object) -> None:
        """Go on to a stage; called by `onnxprune.prune`."""
        now = time.perf_counter()
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self.since
        self.stage, self.since = stage, now


def prune(
    path: Path,
    percent: int,
    data: Any,
    evaluation: Any,
    preprocess: Any,
    training: Any,
    seed: int,
    judge: Callable[[Any, Any], dict[str, float]] | None = None,
    eval_batch: int = 250,
    output: Path | None = None,
) -> Record:
    """Prune a model, repair it, train it, and return the figures."""
    import onnxprune

    clock, begin = Clock(), time.perf_counter()
    result = onnxprune.prune(
        path,
        data=data,
        evaluation=evaluation,
        preprocess=preprocess,
        reduce={"flops": percent / 100},
        round_to=1,
        seed=seed,
        training=training,
        output=output,
        measure=onnxprune.BenchmarkConfig(latency=False, eval_batch=eval_batch),
        on_stage=clock,
    )
    wall = time.perf_counter() - begin
    clock("end")
    report, peak = result.report, coverage.peak_memory()
    extra = judge(str(path), result.model.to_proto()) if judge else {}
    before, after = report.before.top1, report.after.top1
    fidelity = {**report.fidelity, **extra}
    course = getattr(report, "training", None)
    return {
        "removed": 100 * (1 - report.after.flops / report.before.flops),
        "before": before,
        "after": after,
        "change": fidelity["agreement"] - 100 if before is None else after - before,
        "fidelity": fidelity,
        "seconds": {stage: round(value, 1) for stage, value in clock.seconds.items()},
        "wall": round(wall, 1),
        "peak": peak,
        "settings": _settings(training),
        "course": course.to_dict() if hasattr(course, "to_dict") else course,
        "notes": list(report.notes),
    }


def measure(run: Run, cache: Path) -> Record:
    """Run one measurement in this process."""
    from onnxprune.cli.parsers import parse_budget
    from onnxprune.options import Training

    goal = run.goal
    training = Training(**parse_budget(run.duration or goal.duration), **goal.dials)
    job = accuracy.task(goal.model, cache)
    data = job.data
    if goal.data == "unlabelled":
        data = training_images(UNLABELLED, seed=run.seed)
    elif goal.data == "labelled":
        data = training_images(labels=True)
    batch = 250 if goal.model in accuracy.REFERENCE else 8
    return prune(job.path, goal.percent, data, job.evaluation, job.preprocess, training, run.seed, job.judge, batch)


def _settings(training: Any) -> dict[str, Any]:
    """Return what was asked of the training; ways to say nothing are left out."""
    return {key: value for key, value in asdict(training).items() if value not in (None, (), [])}


def figures(record: Record) -> str:
    """Return the two figures."""
    what = "accuracy" if record["before"] is not None else "agreement"
    return f"FLOPs removed {record['removed']:.1f} %, {what} change {record['change']:+.2f} points"


# ------------------------------------------------------------------------------------------------------- the method as a whole


def method(
    names: Sequence[str], cache: Path, duration: str, epochs: int | None, seed: int, threads: int | None
) -> None:
    """Train each reference network anew, prune it and fine-tune it, and print the two figures each time."""
    from onnxprune.cli.parsers import parse_budget
    from onnxprune.options import Training

    folder = cache / "trained"
    folder.mkdir(parents=True, exist_ok=True)
    test, images = baseline.test_images(), training_images(labels=True)
    for name in names:
        command = [sys.executable, str(ROOT / "tools" / "make_models.py"), name]
        command += ["--models", str(folder), "--work", str(folder), "--seed", str(seed)]
        command += [] if epochs is None else ["--epochs", str(epochs)]
        command += [] if threads is None else ["--threads", str(threads)]
        print(f"{name}: training", flush=True)
        subprocess.run(command, check=True, stdout=sys.stderr)
        record = prune(
            folder / f"{name}.onnx",
            METHOD[name],
            dict(images),
            dict(test),
            str(ROOT / "models" / f"{baseline.MODELS[name]}.toml"),
            Training(**parse_budget(duration)),
            seed,
            output=folder / f"{name}-pruned.onnx",
        )
        top1 = f"top-1 {record['before']:.2f} -> {record['after']:.2f} %"
        print(f"{name}: {figures(record)} ({top1}, {record['wall'] / 60:.1f} minutes)", flush=True)


# ------------------------------------------------------------------------------------------------------------------ cache


def read(cache: Path) -> list[Record]:
    """Return all that was measured, oldest first."""
    file = cache / "finetune.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def run_all(runs: Sequence[Run], cache: Path) -> None:
    """Measure what is not in the cache yet."""
    known = {(record["id"], record["digest"]): record for record in read(cache) if "error" not in record}
    for number, run in enumerate(runs, start=1):
        digest = coverage.package_digest()
        if (found := known.get((run.id, digest))) is not None:
            print(f"{number}/{len(runs)} {run.id}: {figures(found)} (known)", flush=True)
            continue
        command = [sys.executable, __file__, "--cache", str(cache), "--measure", run.goal.id, "--seed", str(run.seed)]
        command += ["--duration", run.duration] if run.duration else []
        record: Record = {"id": run.id, "goal": run.goal.id, "seed": run.seed, "digest": digest}
        record["day"] = date.today().isoformat()
        accuracy.fill(record, command, LIMIT)
        with (cache / "finetune.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        print(f"{number}/{len(runs)} {run.id}: {record.get('error') or figures(record)}", flush=True)


# ------------------------------------------------------------------------------------------------------------------- page


class Results:
    """The newest record of every goal and seed, each with the duration of its goal, and a letter for the sources of each."""

    def __init__(self, records: Sequence[Record]) -> None:
        wanted = {goal.id for goal in GOALS}
        newest = {record["id"]: record for record in records if record["goal"] in wanted}
        plain = [record for key, record in newest.items() if key == f"{record['goal']}/{record['seed']}"]
        self.failed = [record for record in plain if "error" in record]
        self.good = sorted((record for record in plain if "error" not in record), key=lambda record: record["seed"])
        self.days = sorted({record["day"] for record in self.good})
        count = [record["digest"] for record in self.good]
        self.digests = sorted(set(count), key=lambda digest: (-count.count(digest), digest))

    def of(self, goal: Goal) -> list[Record]:
        """Return the records of a goal, by seed."""
        return [record for record in self.good if record["goal"] == goal.id]

    def mark(self, record: Record) -> str:
        """Return which sources a record is from, where there are several."""
        number = self.digests.index(record["digest"])
        return f" <sup>{chr(ord('a') + number)}</sup>" if number else ""


def rows(results: Results) -> Iterator[str]:
    """Yield the rows of the table: a goal with the seeds that were measured, or that it was not."""
    for goal in GOALS:
        start = f"| `{goal.model}` | {goal.percent} % | {goal.text} | {DATA[goal.data]}, {goal.minutes:g} minutes |"
        found = results.of(goal)
        if not found:
            yield f"{start} not measured | | | | |"
        for record in found:
            within = record["wall"] <= 60 * goal.minutes
            verdict = "holds" if goal.holds(record) and within else "**short**"
            yield (
                f"{start} {record['removed']:.1f} % | **{record['change']:+.2f}** | {verdict} | {record['seed']}"
                f"{results.mark(record)} | {record['wall'] / 60:.1f} | {record['peak'] / 1e9:.2f} GB |"
            )
            start = "| | | | |"


def details(results: Results) -> Iterator[str]:
    """Yield a row with what else is known of each run."""
    for goal in GOALS:
        for record in results.of(goal):
            f, course, seconds = record["fidelity"], record["course"] or {}, record["seconds"]
            if record["before"] is None:
                quality = f"ImageNet photographs named right: {f['imagenet_before']} -> {f['imagenet_after']} of {f['imagenet']}"
            else:
                quality = f"top-1 {record['before']:.2f} -> {record['after']:.2f} %"
            rest = sum(value for stage, value in seconds.items() if stage not in ("train", "verify", "evaluate"))
            yield (
                f"| `{goal.id}` | {record['seed']}{results.mark(record)} | {quality} | {f['agreement']:.2f} % | {f['kl']:.4f} "
                f"| {course.get('steps', '')} | {rest / 60:.1f} | {seconds.get('train', 0) / 60:.1f} |"
            )


def settings(results: Results) -> Iterator[str]:
    """Yield what was set of the training, goal by goal, and then what all had in common."""
    from onnxprune.options import Training

    default = json.loads(json.dumps({f.name: getattr(Training(), f.name) for f in fields(Training)}))
    for goal in GOALS:
        for record in results.of(goal)[:1]:
            found = record["settings"]
            unlike = {
                key: value for key, value in found.items() if key not in ("amount", "unit") and value != default[key]
            }
            rest = "".join(f", {key} {value}" for key, value in unlike.items())
            yield f"- `{goal.id}`: {found['amount']:g} {found['unit']}{rest}."
    common = {key: value for key, value in default.items() if key not in ("amount", "unit") and value not in (None, [])}
    yield f"- Everything else is the default: {', '.join(f'{key} {value}' for key, value in common.items())}."


def page(results: Results) -> str:
    """Return docs/finetune.md."""
    lines = [
        "# Accuracy after fine-tuning",
        "",
        "Written by `python tools/finetune.py`; every figure was measured by it, by one call of `onnxprune.prune` with `training=`:",
        "channels are chosen with the default options, in multiples of 1, on 512 of the samples, layers are repaired by least squares,",
        "and what is left is trained towards the outputs of the original, and towards labels where there are some.",
        "",
        "The networks of Fashion-MNIST are judged by top-1 on its 10,000 test images, EfficientNet-lite0 by the share of 50 photographs that",
        "it was neither calibrated nor trained on and that get the same class as from the original. `change` is in points, of top-1 or from",
        "100 % agreement. Time is that of the whole run on the clock, its evaluation included, `peak` the most memory of the process with all",
        "libraries.",
        "",
    ]
    if results.digests:
        named = [f"{'unmarked' if i == 0 else chr(ord('a') + i)}: {d}" for i, d in enumerate(results.digests)]
        when = results.days[0] if len(results.days) == 1 else f"{results.days[0]} to {results.days[-1]}"
        lines += [f"Digest of the sources of the package: {'; '.join(named)}. Measured {when}.", ""]
    lines += [
        "## What was asked for",
        "",
        "| model | FLOPs | limit | with | FLOPs removed | change | | seed | minutes | peak |",
        "| --- | ---: | --- | --- | ---: | ---: | --- | ---: | ---: | ---: |",
        *rows(results),
        "",
        "## More of the same runs",
        "",
        "`choice, repair` and `training` are minutes; what is missing to the time above is the evaluation.",
        "",
        "| run | seed | | agreement | KL | steps | choice, repair | training |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
        *details(results),
        "",
        "## Settings",
        "",
        *settings(results),
        "",
    ]
    if results.failed:
        lines += ["## What could not be measured", ""]
        lines += [f"- {record['id']}: {_plain(record['error'])}" for record in results.failed]
        lines.append("")
    lines += [
        "## Run it again",
        "",
        "    apt-get install dataset-fashion-mnist",
        "    pip install -e .[train]",
        "    python tools/finetune.py                         # everything; --only 'resnet/50/*' for some, --seed 1 for another seed",
        "    python tools/finetune.py --report                # this page, from the cache",
        "    python tools/finetune.py --train                 # train each reference network anew, prune it, fine-tune it",
        "",
        "Results are kept as JSON lines in `build/accuracy`, and not measured again until the sources of the package change. Training for",
        "a time depends on the machine: `--duration 300steps` gives the same weights with the same number of threads.",
    ]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return re.sub(r"(/[\w.+-]+){2,}/", "", text).replace("|", "/")


def main() -> None:
    """Measure what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="GLOB", help="measure these alone: model/percent/data")
    parser.add_argument(
        "--seed", action="append", type=int, metavar="N", help="of everything random; several (default: 0)"
    )
    parser.add_argument(
        "--duration", metavar="TEXT", help="train for 300steps, 2epochs or 3min instead; such runs are not on the page"
    )
    parser.add_argument(
        "--cache", type=Path, default=ROOT / "build" / "accuracy", metavar="DIR", help="where results are kept"
    )
    parser.add_argument("--report", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--list", action="store_true", help="print what there is to measure")
    parser.add_argument(
        "--train",
        nargs="*",
        choices=list(METHOD),
        metavar="MODEL",
        help="do the whole method on reference networks, all or these",
    )
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="with --train: for how long the network itself is trained"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="with --train: threads that train it")
    parser.add_argument("--measure", metavar="ID", help=argparse.SUPPRESS)  # one, in this process
    arguments = parser.parse_args()
    cache, seeds = arguments.cache.resolve(), arguments.seed or [0]
    cache.mkdir(parents=True, exist_ok=True)
    if arguments.measure:
        goal = next(goal for goal in GOALS if goal.id == arguments.measure)
        print(json.dumps(measure(Run(goal, seeds[0], arguments.duration), cache)))
        return
    if arguments.train is not None:
        for seed in seeds:
            method(
                arguments.train or list(METHOD),
                cache,
                arguments.duration or "10min",
                arguments.epochs,
                seed,
                arguments.threads,
            )
        return
    patterns = arguments.only or ["*"]
    goals = list(dict.fromkeys(g for pattern in patterns for g in GOALS if fnmatch.fnmatch(g.id, pattern)))
    if arguments.list:
        print("\n".join(goal.id for goal in goals))
        return
    if not goals:
        sys.exit(f"nothing is called {', '.join(patterns)}; --list says what there is")
    if not arguments.report:
        run_all([Run(goal, seed, arguments.duration) for goal in goals for seed in seeds], cache)
    if not arguments.duration:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(Results(read(cache))), encoding="utf-8")


if __name__ == "__main__":
    main()

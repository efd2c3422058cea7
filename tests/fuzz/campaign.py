"""Run many cases in parallel, smooth out the same fault from many cases, minimise, and save what is found."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import children
import corpus
import faults
import targets
from children import CLEAN, Limits, Outcome
from commands import COMMANDS, Command, prepare, scene
from made_files import MADE
from targets import Case

T = TypeVar("T")
R = TypeVar("R")
PER_CHILD = 50
"""Cases of one child."""
NOISE = 110
"""Characters of a fault that tell it from others."""


def ready(folder: Path, commands: Sequence[Command] = COMMANDS, kinds: Sequence[str] = tuple(targets.TARGETS)) -> None:
    """Import all that commands and targets import, and make the files that mutations of these classes start from."""
    os.environ.update(OMP_NUM_THREADS="1", ORT_DISABLE_TELEMETRY="1", ONNXPRUNE_DEBUG="1")

    def everything() -> None:
        scene(here)
        prepare(here)
        for command in commands:
            children.command(*command.args)

    here = folder / "warm"
    here.mkdir(parents=True)
    if commands:
        children.warm(everything, here)
    if kinds:
        made = folder / "made"
        made.mkdir()
        children.warm(functools.partial(MADE.make, kinds), made)
        MADE.folder = made
        corpus.sources()
        children.settled()


def parallel(call: Callable[[T], R], jobs: Iterable[T], workers: int) -> Iterator[R]:
    """Yield the results of jobs, in any order, from this process or from forks of it."""
    if workers == 1:
        yield from map(call, jobs)
        return
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield from pool.imap_unordered(call, jobs)


@dataclass
class Found:
    """A fault: one case, minimised, and the numbers of all cases with it."""

    case: Case
    outcome: Outcome
    numbers: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.case.kind} | {self.outcome.kind} | {self.outcome.detail[:200]} | {len(self.numbers)}: {self.numbers[:5]}"


@dataclass
class Fuzzed:
    """Outcomes per class: counts by kind, faults, the longest seconds of a case; and seconds of all, by the clock and of processors."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    found: dict[tuple[str, str, str], Found] = field(default_factory=dict)
    longest: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    processor: float = 0.0

    def add(self, case: Case, outcome: Outcome, tell: Callable[[str], None]) -> None:
        """Count an outcome; `tell` gets one of a new fault."""
        self.counts.setdefault(case.kind, Counter())[outcome.kind] += 1
        self.longest[case.kind] = max(self.longest.get(case.kind, 0.0), outcome.seconds)
        if not outcome:
            key = case.kind, outcome.kind, outcome.detail[:NOISE]
            if key not in self.found:
                tell(f"{case}: {outcome.kind}: {outcome.detail}")
            self.found.setdefault(key, Found(case, outcome)).numbers.append(case.number)


def silent(_: str) -> None:
    """Tell nothing."""


def fuzz(
    cases: Sequence[Case],
    folder: Path,
    workers: int = 1,
    limits: Limits | None = None,
    tell: Callable[[str], None] = silent,
) -> Fuzzed:
    """Run cases in children, `workers` at once; `tell` gets the first case of each fault."""
    begin, used, result = time.monotonic(), processor_seconds(), Fuzzed()
    batches = [list(cases[start : start + PER_CHILD]) for start in range(0, len(cases), PER_CHILD)]
    for batch, outcomes in parallel(_Batch(folder, limits), batches, workers):
        for case, outcome in zip(batch, outcomes, strict=True):
            result.add(case, outcome, tell)
    result.seconds, result.processor = time.monotonic() - begin, processor_seconds() - used
    return result


def processor_seconds() -> float:
    """Return the processor seconds of all children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True)
class _Batch:
    folder: Path
    limits: Limits | None

    def __call__(self, batch: list[Case]) -> tuple[list[Case], list[Outcome]]:
        place = self.folder / f"run-{os.getpid()}"
        place.mkdir(parents=True, exist_ok=True)
        return batch, children.run(targets.read, batch, place, self.limits)


def minimised(found: Found, folder: Path, limits: Limits | None = None) -> Case:
    """Return the case of a fault with as few mutations as still show it."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = tuple(range(targets.count_of(found.case)))
    for step in steps[::-1]:
        fewer = tuple(other for other in steps if other != step)
        case = replace(found.case, steps=fewer)
        outcome = children.run(targets.read, [case], folder, limits)[0]
        if (outcome.kind, outcome.detail[:NOISE]) == (found.outcome.kind, found.outcome.detail[:NOISE]):
            steps = fewer
    return replace(found.case, steps=steps)


def save(found: Found, folder: Path) -> Path:
    """Write the files of a case, and what became of it, into a folder of its own; return that."""
    name = "".join(
        letter if letter.isalnum() else "-" for letter in f"{found.case.kind}-{found.case.seed}-{found.case.number}"
    )
    place = folder / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for path, content in targets.files_of(found.case).items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(content)
    told = {**vars(found.case), **vars(found.outcome), "cases": found.numbers}
    (place / "outcome.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return place


# ------------------------------------------------------------------------------------------------------------ injecting


@dataclass
class Injected:
    """Trials per command and kind of fault, what was wrong in them, and seconds as of `Fuzzed`."""

    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[tuple[faults.Trial, str]] = field(default_factory=list)
    seconds: float = 0.0
    processor: float = 0.0


_scenes: dict[int, faults.Scene] = {}
_references: dict[str, faults.Reference] = {}
"""Of this process, and of what is forked from it."""


@dataclass(frozen=True)
class _Trials:
    """Runs a trial in the scene of this process."""

    folder: Path

    def __call__(self, trial: faults.Trial) -> tuple[faults.Trial, list[str]]:
        if os.getpid() not in _scenes:
            _scenes[os.getpid()] = faults.Scene(self.folder / f"scene-{os.getpid()}")
        return trial, _scenes[os.getpid()].trial(trial, _references[trial.command])


def references(folder: Path, commands: Sequence[Command]) -> Mapping[str, faults.Reference]:
    """Run each command without faults, which `inject` compares with; return these runs by command."""
    place = faults.Scene(folder / "reference")
    _references.update({command.name: place.reference(command) for command in commands})
    return _references


def trials_of(
    found: Mapping[str, faults.Reference], seed: int, *, per_call: int, kills: int, most: int = 10**6
) -> list[faults.Trial]:
    """Return trials of commands: `per_call` kinds of faults at each call, in turn, and kills at random times; `most` of each command."""
    rng = random.Random(seed)
    trials = []
    for reference in found.values():
        every = list(faults.at_every_call(reference))
        width = len(faults.AT_CALLS)
        turns = [every[start : start + width] for start in range(0, len(every), width)]
        chosen = [
            turn[(number + seed + extra) % width] for number, turn in enumerate(turns) for extra in range(per_call)
        ]
        chosen += faults.at_random(reference, kills, rng)
        trials += chosen if len(chosen) <= most else rng.sample(chosen, most)
    rng.shuffle(trials)
    return trials


def inject(
    trials: Sequence[faults.Trial], folder: Path, workers: int = 1, tell: Callable[[str], None] = silent
) -> Injected:
    """Run trials, `workers` at once; `tell` gets each finding."""
    begin, used, result = time.monotonic(), processor_seconds(), Injected()
    for trial, wrong in parallel(_Trials(folder), trials, workers):  # in any order
        result.tried[trial.command, trial.fault] += 1
        for problem in wrong:
            result.wrong.append((trial, problem))
            tell(f"{trial}: {problem}")
    result.seconds, result.processor = time.monotonic() - begin, processor_seconds() - used
    return result


def clean(counts: Counter[str]) -> int:
    """Return how many outcomes are as they should be."""
    return sum(counts[kind] for kind in CLEAN)

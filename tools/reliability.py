#!/usr/bin/env python3
"""Measure what holds under faults, hostile files, random timings and large models, and write docs/reliability.md.

    python tools/reliability.py --jobs 2        # all of it, in about half an hour on two idle cores
    python tools/reliability.py --quick         # a minute: a small part of each; prints the page and writes nothing

The exit code is 1 where anything was not clean; files that onnxprune fails on are kept in `--save`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fuzz")]

import campaign  # noqa: E402
import faults  # noqa: E402
import timings  # noqa: E402
from commands import COMMANDS  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
MEMORY = ROOT / "docs" / "memory.md"
FILES, KILLS, RUNS, REPLAYS = 20_000, 24, 50, 10
"""Fuzzed files, kills at random times of each command, runs with random timings, runs with a recorded timing table."""
PATIENCE = 1200
"""Seconds for the measurement of memory."""
INTRODUCTION = """# Reliability

What was tried to lose work, to corrupt a file or to end onnxprune without a message, and how often it was as it should be. All figures are
counted by one run of `tools/reliability.py` on the sources of the commit below.

"""


def main() -> int:
    """Measure, and write the page; return 1 where anything was not clean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--seed", type=int, default=0, help="of all choices")
    parser.add_argument("--files", type=int, default=FILES, help="fuzzed files")
    parser.add_argument(
        "--kills", type=int, default=KILLS, help="kills at random times of each command, and half as many full disks"
    )
    parser.add_argument("--quick", action="store_true", help="a small part of each, in a minute; nothing is written")
    parser.add_argument("--save", type=Path, default=Path("fuzzed"), help="folder for files that onnxprune fails on")
    parser.add_argument("--memory", action="store_true", help="measure memory again first, with `tools/memory.py`")
    given = parser.parse_args()
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="onnxprune-reliability-"))
    try:
        campaign.ready(folder)
        injected = inject(folder, given)
        wrong_runs, same = timed(folder, given)
        fuzzed = fuzz(folder, given)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sections = [of_faults(injected), of_files(fuzzed), of_timings(wrong_runs, same)]
    sections.append(of_memory(given.memory))
    page = INTRODUCTION + overview(injected, fuzzed, wrong_runs, same) + "".join(filter(None, sections))
    page += ending(given, time.monotonic() - begin)
    print(page)
    if not given.quick:
        PAGE.write_text(page, encoding="utf-8")
    return int(bool(injected.wrong or fuzzed.found or any(wrong_runs) or not all(same)))


# ------------------------------------------------------------------------------------------------------------- measure


def inject(folder: Path, given: argparse.Namespace) -> campaign.Injected:
    """Kill every command, and inject faults into it."""
    chosen = [faults.named(name) for name in ("plan", "check --init")] if given.quick else COMMANDS
    found = campaign.references(folder, chosen)
    most = 12 if given.quick else 10**6
    trials = campaign.trials_of(found, given.seed, per_call=1, kills=2 if given.quick else given.kills, most=most)
    done = campaign.inject(trials, folder, given.jobs, told)
    told(
        f"{len(trials)} faults in {done.seconds:.0f} s ({done.processor:.0f} s of processors), {len(done.wrong)} findings"
    )
    return done


def fuzz(folder: Path, given: argparse.Namespace) -> campaign.Fuzzed:
    """Feed mutated files of every class to what reads them."""
    cases = campaign.targets.cases(given.seed, 200 if given.quick else given.files)
    done = campaign.fuzz(cases, folder, given.jobs, tell=told)
    for found in done.found.values():
        found.case = campaign.minimised(found, folder / "least")
        told(f"{found}\n    {campaign.save(found, given.save)}")
    told(
        f"{len(cases)} files in {done.seconds:.0f} s ({done.processor:.0f} s of processors), {len(done.found)} findings"
    )
    return done


def timed(folder: Path, given: argparse.Namespace) -> tuple[list[str], list[bool]]:
    """Prune with random timings, and with a recorded timing table where there is one."""
    scene = faults.Scene(folder / "timed")
    wrong = [timings.random_run(scene, given.seed + turn) for turn in range(2 if given.quick else RUNS)]
    same = timings.same_bytes(scene, 2 if given.quick else REPLAYS) if timings.replays() else []
    for problem in filter(None, wrong):
        told(problem)
    told(
        f"{len(wrong)} runs with random timings, {sum(map(bool, wrong))} findings; {sum(same)} of {len(same)} replays equal"
    )
    return wrong, same


def told(line: str) -> None:
    """Print progress."""
    print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------------- page


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table whose columns after the first are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines) + "\n"


def overview(
    injected: campaign.Injected, fuzzed: campaign.Fuzzed, wrong_runs: Sequence[str], same: Sequence[bool]
) -> str:
    """Return the table of all classes."""
    bad = {trial for trial, _ in injected.wrong}
    kinds = {"kills": faults.KILLS, "injected faults": tuple(set(faults.FAULTS) - set(faults.KILLS))}
    rows: list[tuple[str, int, int]] = []
    for name, members in kinds.items():
        tried = sum(count for (_, fault), count in injected.tried.items() if fault in members)
        rows.append((name, tried, tried - sum(trial.fault in members for trial in bad)))
    files = [sum(counts.values()) for counts in fuzzed.counts.values()]
    rows.append(("fuzzed files", sum(files), sum(map(campaign.clean, fuzzed.counts.values()))))
    rows.append(("runs with random timings", len(wrong_runs), sum(not wrong for wrong in wrong_runs)))
    if same:
        rows.append(("runs with a recorded timing table: the same bytes", len(same), sum(same)))
    return table(("class", "tried", "clean"), ((name, f"{tried:,}", f"{clean:,}") for name, tried, clean in rows))


def of_faults(done: campaign.Injected) -> str:
    """Return the section of kills and faults."""
    names = [command.name for command in COMMANDS if any(name == command.name for name, _ in done.tried)]
    bad = Counter(trial.command for trial in {trial for trial, _ in done.wrong})
    rows = []
    for name in names:
        counts = [done.tried[name, fault] for fault in faults.FAULTS]
        rows.append((name, *counts, sum(counts), sum(counts) - bad[name]))
    header = ("command", *(fault.replace("KeyboardInterrupt", "Ctrl-C") for fault in faults.FAULTS), "tried", "clean")
    return (
        "## Kills and injected faults\n\nA shim counts the file-system calls of a command (open, write, fsync, rename, unlink, mkdir, chmod, "
        "listings); at each of them one kind of fault was injected, in turn. Half of a write is done before it fails. Further runs were "
        "killed at random times, or met a limit on the size of files at a random byte, which C code meets as well. Clean is a trial after which the "
        "inputs are unchanged, each output is whole, old or absent, nothing temporary is left (after a kill, Ctrl-C, or a fault in the removal itself: once the next command ran), the "
        "message is no defect, and the same command then gives the bytes of an undisturbed run. Every other trial began with old outputs in place.\n\n"
        + table(header, rows)
    )


def of_files(done: campaign.Fuzzed) -> str:
    """Return the section of fuzzed files."""
    rows = []
    for kind, counts in done.counts.items():
        tried = sum(counts.values())
        figures = counts["done"], counts["refused"], tried - campaign.clean(counts), f"{done.longest[kind]:.1f} s"
        rows.append((kind, f"{tried:,}", *figures))
    return (
        "## Fuzzed files\n\nModels of every operator and topology of the tests, pieces of the networks of the zoo, and small files of every "
        "other kind, each with one to six mutations of its bytes or its structure. Accepted or refused with a message is clean; any other "
        "exception, a crash, no end within a minute, more than 3 GB, a file outside the folder, or a result that onnxruntime does not load is not.\n\n"
        + table(("class", "files", "accepted", "refused", "faults", "longest"), rows)
    )


def of_timings(wrong: Sequence[str], same: Sequence[bool]) -> str:
    """Return the section of timings."""
    text = (
        f"## Timings\n\n`prune --granularity all` with every time multiplied by a random factor (log-normal, s = {timings.SPREAD:g}): "
        f"{sum(not one for one in wrong)} of {len(wrong)} runs end in a result, or in the message that the target is out of reach. "
    )
    if same:
        text += f"With a recorded timing table (`--timings`), {sum(same)} of {len(same)} runs under such timings give the same bytes. "
    return text + "\n\n"


def of_memory(measure: bool) -> str:
    """Return the section of memory, with how many limits of the page of `tools/memory.py` hold; empty without that page."""
    if measure:
        told("memory …")
        subprocess.run([sys.executable, str(ROOT / "tools" / "memory.py")], cwd=ROOT, check=True, timeout=PATIENCE)
    if not MEMORY.exists():
        return ""
    lines = MEMORY.read_text(encoding="utf-8").splitlines()
    held, above = (sum(line.endswith(f"| {word} |") for line in lines) for word in ("holds", "above"))
    return f"## Peak memory\n\n{held} of the {held + above} limits of [memory.md](memory.md) hold; `tools/memory.py` measures them.\n\n"


def ending(given: argparse.Namespace, seconds: float) -> str:
    """Return how the page was made."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--porcelain", "onnxprune"], capture_output=True, text=True
    ).stdout.strip()
    memory = psutil.virtual_memory().total / 1e9
    return (
        f"## Again\n\n```sh\npython tools/reliability.py --jobs {given.jobs} --seed {given.seed} --files {given.files} --kills {given.kills}\npython tools/inject.py --per-call 6   # all "
        "kinds of faults at every call\npython tools/fuzz.py --hours 8            # more files\n```\n\n"
        f"Commit {commit}{' with changes' if changed else ''}, {os.cpu_count()} cores, {memory:.0f} GB, {seconds / 60:.0f} minutes.\n"
    )


if __name__ == "__main__":
    sys.exit(main())

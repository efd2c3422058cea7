#!/usr/bin/env python3
"""Inject faults into every command of onnxprune, and kill it: at each file-system call, at random times, at a full disk.

    python tools/inject.py --jobs 2                       # one kind of fault at each call, in turn, and 24 kills of each command
    python tools/inject.py --per-call 6 --command sweep   # all kinds at each call of one command

After each fault: the inputs are what they were, every output is whole, old or absent, no message of a defect; the same command
without a fault then gives the bytes of a run that was never disturbed, and leaves nothing behind. The exit code is 1 where that fails.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fuzz")]

import campaign  # noqa: E402
from commands import COMMANDS  # noqa: E402
from faults import AT_CALLS  # noqa: E402


def main() -> int:
    """Inject faults and print what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [command.name for command in COMMANDS]
    parser.add_argument("--command", action="append", choices=names, help="only these commands")
    parser.add_argument(
        "--per-call", type=int, default=1, choices=range(len(AT_CALLS) + 1), help="kinds of faults at each call"
    )
    parser.add_argument(
        "--kills", type=int, default=24, help="kills at random times of each command, and half as many full disks"
    )
    parser.add_argument("--most", type=int, default=10**6, help="trials of each command, at most")
    parser.add_argument("--seed", type=int, default=0, help="of all choices")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    given = parser.parse_args()
    chosen = [command for command in COMMANDS if command.name in (given.command or names)]
    folder = Path(tempfile.mkdtemp(prefix="onnxprune-inject-"))
    try:
        campaign.ready(folder, chosen, ())
        found = campaign.references(folder, chosen)
        trials = campaign.trials_of(found, given.seed, per_call=given.per_call, kills=given.kills, most=given.most)
        done = campaign.inject(trials, folder, given.jobs, functools.partial(print, flush=True))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for command in chosen:
        count = sum(many for (name, _), many in done.tried.items() if name == command.name)
        wrong = len({trial for trial, _ in done.wrong if trial.command == command.name})
        print(f"{command.name:<36}{count:>6} tried {wrong:>5} wrong")
    print(
        f"{len(trials)} trials in {done.seconds:.0f} s ({done.processor:.0f} s of processors), {len({trial for trial, _ in done.wrong})} wrong"
    )
    return int(bool(done.wrong))


if __name__ == "__main__":
    sys.exit(main())

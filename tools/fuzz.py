#!/usr/bin/env python3
"""Feed mutated files of every kind to onnxprune: models, data, labels, plans, policies, states and tables.

    python tools/fuzz.py --hours 8 --seed 3 --jobs 2      # as long as there is time
    python tools/fuzz.py --count 20000 --jobs 2           # so many files
    python tools/fuzz.py --class "plans (JSON)" --seed 3 --only 17      # one case again

Each fault (an exception that is no message, a crash, no end within the limit, a file outside the folder) is minimised and saved in
`--save`. The exit code is 1 where there is one.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fuzz")]

import campaign  # noqa: E402
import targets  # noqa: E402
from children import Limits  # noqa: E402

ROUND = 4000
"""Cases between two looks at the clock."""


def main() -> int:
    """Fuzz until the time or the cases are spent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, help="as long")
    parser.add_argument("--count", type=int, default=ROUND, help="as many files, without --hours")
    parser.add_argument("--seed", type=int, default=0, help="of the first round; each further one adds 1")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument(
        "--class", dest="kinds", action="append", choices=list(targets.TARGETS), help="only these classes"
    )
    parser.add_argument("--only", type=int, help="number of one case of the class")
    parser.add_argument("--light", action="store_true", help="without the classes whose files take seconds to make")
    parser.add_argument(
        "--bases", action="store_true", help="no mutations: each class must have a file that is accepted"
    )
    parser.add_argument("--save", type=Path, default=Path("fuzzed"), help="folder for what is found")
    given = parser.parse_args()
    kinds = given.kinds or [kind for kind in targets.TARGETS if not (given.light and kind in targets.SLOW)]
    folder = Path(tempfile.mkdtemp(prefix="onnxprune-fuzz-"))
    total, seed, end = campaign.Fuzzed(), given.seed, time.monotonic() + 3600 * (given.hours or 0)
    try:
        campaign.ready(folder, (), kinds)
        if given.bases:
            return bases(folder, kinds, given.jobs)
        while True:
            cases = targets.cases(seed, ROUND if given.hours else given.count, kinds)
            if given.only is not None:
                cases = [targets.Case(kind, seed, given.only) for kind in kinds]
            done = campaign.fuzz(cases, folder, given.jobs, Limits(), functools.partial(print, flush=True))
            show(done)
            for found in done.found.values():
                found.case = campaign.minimised(found, folder / "least")
                place = campaign.save(found, given.save)
                print(f"{found}\n    {place}", flush=True)
            total.found.update(done.found)
            seed += 1
            if not given.hours or given.only is not None or time.monotonic() > end:
                break
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return int(bool(total.found))


def bases(folder: Path, kinds: list[str], jobs: int) -> int:
    """Read files without mutations; return 1 where all of a class are refused: fuzzing would try nothing."""
    cases = [targets.Case(kind, 0, number, ()) for kind in kinds for number in range(4)]
    done = campaign.fuzz(cases, folder, jobs)
    show(done)
    refused = [kind for kind in kinds if not done.counts[kind]["done"]]
    print("\n".join(f"{kind}: no file is accepted" for kind in refused))
    return int(bool(refused or done.found))


def show(done: campaign.Fuzzed) -> None:
    """Print the counts of a round."""
    for kind, counts in done.counts.items():
        told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        print(f"{kind:<26}{sum(counts.values()):>6}  longest {done.longest[kind]:4.1f} s  {told}")
    tried = sum(sum(counts.values()) for counts in done.counts.values())
    print(
        f"{tried} files in {done.seconds:.0f} s ({done.processor:.0f} s of processors), {len(done.found)} faults",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Simulate how often `check --max-drop` fails models whose true drop is known, and write docs/gate.md's table.

A model and its candidate are a joint distribution of being right; evaluation sets are drawn from it, and the decision is the one of
`check` itself. Without a file the table is printed.

Example:
    python tools/gate.py                # print the table
    python tools/gate.py --write        # put it into docs/gate.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from onnxprune import gate, statistics

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "gate.md"
START, END = "<!-- simulation: start -->", "<!-- simulation: end -->"
SAMPLES = (1_000, 10_000)
DROPS = (0.0, 0.25, 0.5, 1.0)
CHANGED = (2.0, 4.0, 8.0)
"""Percent of the samples of which just one of both models is right."""
LIMIT = 0.5
SETS = 1_000


def outcome(samples: int, drop: float, changed: float, rng: np.random.Generator) -> str:
    """Draw an evaluation set and decide."""
    lost, gained = (changed + drop) / 200, (changed - drop) / 200
    kind = rng.choice(3, samples, p=(lost, gained, 1 - lost - gained))
    told = statistics.paired(kind != 1, kind != 0, seed=int(rng.integers(2**31)))
    return gate.decide_drop("top-1 drop (points)", told, LIMIT, "").status


def table(sets: int) -> str:
    """Return the table."""
    rng = np.random.default_rng(0)
    lines = [
        f"{sets:,} evaluation sets a row, `--max-drop {LIMIT}`; *changed*: samples that just one of both models gets right.",
        "",
        "| samples | true drop | changed | PASSED | UNDECIDED | FAILED |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for samples in SAMPLES:
        for drop in DROPS:
            for changed in CHANGED:
                found = [outcome(samples, drop, changed, rng) for _ in range(sets)]
                shares = (f"{found.count(word) / sets:.1%}" for word in ("PASSED", "UNDECIDED", "FAILED"))
                lines.append(f"| {samples:,} | {drop:g} | {changed:g} % | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=SETS, metavar="N", help="evaluation sets a row")
    parser.add_argument("--write", action="store_true", help="put the table into docs/gate.md")
    arguments = parser.parse_args()
    found = table(arguments.sets)
    if not arguments.write:
        print(found)
        return
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n\n{found}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

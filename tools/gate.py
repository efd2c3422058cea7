#!/usr/bin/env python3
"""Find out how often `check` errs, and write docs/gate.md's tables.

Accuracy: a model and its candidate are a joint distribution of being right; evaluation sets are drawn from it, and the decision on
`--max-drop` is the one of `check` itself. Latency: identical models and one that has 1.5 times the layers are checked while processes that
do nothing but compute keep processors busy.

Example:
    python tools/gate.py                # print the tables
    python tools/gate.py --write        # put them into docs/gate.md
    python tools/gate.py latency --write
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.evaluation import gate, policy, verdict
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.metrics import paired_tests
from onnxprune.runtime import machine

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "gate.md"
MARKS = "<!-- {0}: start -->", "<!-- {0}: end -->"
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
    told = paired_tests.paired(kind != 1, kind != 0, seed=int(rng.integers(2**31)))
    return verdict.DROP.held(verdict.paired_drop(told, ""), LIMIT).status


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


# ---------------------------------------------------------------------------------------------------------------- latency

CHECKS = 20
LAYERS = 16
"""Of the model that is checked against one with half as many more."""


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep some processors busy."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def chain(layers: int, path: Path) -> Path:
    """Write a model of as many equal layers."""
    weight = numpy_helper.from_array(np.full((32, 32, 3, 3), 1e-3, np.float32), "w")
    nodes = [
        helper.make_node("Conv", [f"t{n}", "w"], [f"t{n + 1}"], kernel_shape=[3, 3], pads=[1] * 4)
        for n in range(layers)
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 32, 28, 28]) for name in ("t0", f"t{layers}")]
    nodes[-1].output[0] = ends[1].name = "y"
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def latency_table(checks: int) -> str:
    """Return the table."""
    lines = [
        f"{checks} checks a row, `--min-speedup 1`, batch 1, on {machine.environment(1, 1).processor}.",
        "",
        "| candidate | busy processes | threads | PASSED | UNDECIDED | FAILED | speed-ups told | seconds a check |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        chains = [chain(layers, Path(folder, f"{layers}.onnx")) for layers in (LAYERS, LAYERS * 3 // 2)]
        pairs = {f"identical (`{name}`)": (ROOT / "models" / f"{name}.onnx",) * 2 for name in ("small", "resnet")}
        for label, (baseline, candidate) in {**pairs, "1.5 times the layers": (chains[0], chains[1])}.items():
            for processes in (0, 1, 2) if baseline == candidate else (0,):
                for threads in (1, 2):
                    begin, found = time.perf_counter(), []
                    with busy(processes):
                        for _ in range(checks):
                            verdict = gate.check(
                                candidate,
                                baseline,
                                limits=policy.GateLimits(min_speedup=1.0),
                                measure=BenchmarkConfig(threads=threads),
                            )
                            found += [check for check in verdict.checks if check.name == "speed-up"]
                    counts = Counter(check.status for check in found)
                    told = [float(check.value) for check in found]
                    cells = (
                        label,
                        str(processes),
                        str(threads),
                        *(str(counts[word]) for word in ("PASSED", "UNDECIDED", "FAILED")),
                        f"{min(told):.2f} to {max(told):.2f}",
                        f"{(time.perf_counter() - begin) / checks:.1f}",
                    )
                    lines.append(f"| {' | '.join(cells)} |")
                    print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", choices=("accuracy", "latency"), help="only this one")
    parser.add_argument("--sets", type=int, default=SETS, metavar="N", help="evaluation sets a row")
    parser.add_argument("--checks", type=int, default=CHECKS, metavar="N", help="checks a row")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/gate.md")
    arguments = parser.parse_args()
    for mark, make in (
        ("accuracy", lambda: table(arguments.sets)),
        ("latency", lambda: latency_table(arguments.checks)),
    ):
        if arguments.table not in (None, mark):
            continue
        found = make()
        if not arguments.write:
            print(found)
            continue
        start, end = (text.format(mark) for text in MARKS)
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(start)
        _, _, after = rest.partition(end)
        PAGE.write_text(f"{before}{start}\n\n{found}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

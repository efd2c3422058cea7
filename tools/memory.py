#!/usr/bin/env python3
"""Measure the peak memory of onnxprune by the size of the model, and write docs/memory.md.

Each command runs in a process of its own. `RSS` is the largest resident set of the process; it includes pages of files that are
mapped into memory, which the system takes back at will. `anonymous` is the memory that it cannot take back. Both count child
processes as well; they are read every few milliseconds, and the resident set of the command from the kernel's own maximum.

Example:
    python tools/memory.py                          # all sizes, all commands, and the page
    python tools/memory.py 300MB --stages           # one size, the peak of every stage; no page
    python tools/memory.py 900MB --only prune -- --importance fpgm     # more options for the command
"""

from __future__ import annotations

import argparse
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

import psutil

SIZES = ("50MB", "300MB", "900MB", "2.3GB", "4GB", "6GB")
UNITS = {"MB": 1e6, "GB": 1e9}
PERIOD = 0.01
"""Seconds between two looks at the process."""
FACTOR, BASE = 2.5, 300e6
"""The limit without data: so many times the model, and so many bytes for Python and its libraries."""
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
    found = [_status(each) for each in (pid, *(child.pid for child in children))]
    return (
        sum(each.get("RssAnon", 0) for each in found),
        sum(each.get("VmRSS", 0) for each in found),
        found[0].get("VmHWM", 0),
    )


def _status(pid: int) -> dict[str, float]:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return {}
    return {key: 1024.0 * int(value) for key, value in re.findall(r"(RssAnon|VmRSS|VmHWM):\s*(\d+) kB", text)}


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


def measured(size: str, names: Sequence[str], options: argparse.Namespace) -> Iterator[tuple[str, int, Peak]]:
    """Yield command, bytes of the model, and peaks."""
    folder = options.folder
    model = model_of(size, folder, batchnorm=options.batchnorm)
    output = folder / f"{model.stem}.pruned.onnx"
    if "check" in names and "prune" not in names and not output.exists():
        names = ("prune", *names)
    for name in names:
        words = [word.format(model=model, output=output) for word in COMMANDS[name].split()]
        yield name, bytes_of(model), watch([*words, *options.more])
    if not options.keep:
        for path in folder.glob(f"{output.stem}.*"):
            path.unlink()


def main() -> None:
    """Measure, print, and write the page."""
    given = sys.argv[1:]
    given, more = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=SIZES)
    parser.add_argument("--only", action="append", choices=COMMANDS)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the models are made and kept")
    parser.add_argument("--stages", action="store_true", help="print the peak of every stage")
    parser.add_argument("--batchnorm", action="store_true", help="a BatchNormalization behind every Conv")
    parser.add_argument("--keep", action="store_true", help="keep the results")
    options = parser.parse_args(given)
    options.more = more
    print(f"{'command':9}{'model MB':>10}{'RSS MB':>9}{'anon MB':>9}{'limit MB':>10}{'RSS/model':>11}{'seconds':>9}")
    for size in options.sizes:
        for name, amount, peak in measured(size, options.only or tuple(COMMANDS), options):
            limit = FACTOR * amount + BASE
            row = (
                f"{name:9}{amount / 1e6:10.0f}{peak.resident / 1e6:9.0f}{peak.anonymous / 1e6:9.0f}{limit / 1e6:10.0f}"
            )
            failed = f"  exit {peak.code}: {peak.message}" if peak.code else ""
            print(f"{row}{peak.resident / amount:11.2f}{peak.seconds:9.1f}{failed}", flush=True)
            for stage, seconds, resident, anonymous in peak.stages if options.stages else ():
                print(f"   {stage:16}{resident / 1e6:9.0f}{anonymous / 1e6:9.0f}{seconds:29.1f}", flush=True)


if __name__ == "__main__":
    main()

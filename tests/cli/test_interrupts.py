"""SIGTERM and SIGHUP end a command as Ctrl-C does; workers and unfinished files go with it, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from onnxprune.cli import interrupts

KEPT = "from onnxprune.calibration import stage_results; stage_results.WORTH = 1e9; "
"""On a busy machine a stage may take long enough to be kept; that has tests of its own."""
COMMAND = KEPT + "from onnxprune.cli import main; main()"
SPILLING = """
import pathlib, time
from onnxprune.calibration import capture
put = capture.ActivationStore.put
def slow(self, value):
    self.budget = 0
    kept = put(self, value)
    if isinstance(kept, pathlib.Path):
        pathlib.Path("reached").touch()
        time.sleep(60)
    return kept
capture.ActivationStore.put = slow
"""
WRITING = """
import pathlib, time
def slow(self, target):
    pathlib.Path("reached").touch()
    try:
        time.sleep(60)
    finally:
        time.sleep(0.5)  # a clean-up that a second signal would meet
pathlib.Path.replace = slow
"""
SLOW_IN_WORKERS = """
import os, pathlib, tempfile, time
HERE = pathlib.Path(__file__).parent
def load():
    first = HERE / "parent"
    if not first.exists():
        first.write_text(str(os.getpid()))
    if first.read_text() != str(os.getpid()):
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            pathlib.Path(folder, "spilled").write_bytes(bytes(100))
            (HERE / f"worker-{os.getpid()}").touch()
            time.sleep(60)
    import numpy as np

    return {"x": np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)}
"""


def waited(condition: Callable[[], object], seconds: float = 40) -> bool:
    """Wait for a condition; return whether it came true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def begun(code: str, folder: Path, *line: object) -> subprocess.Popen[str]:
    """Begin a command in a folder of its own, with a folder for temporary files in it."""
    (folder / "tmp").mkdir(parents=True)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, line)],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder / "tmp"), "JOBLIB_TEMP_FOLDER": str(folder / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_signal_ends_a_command_and_leaves_nothing(tiny_path, samples, tmp_path):
    target = ("prune", tiny_path, "-o", "s.onnx", "--reduce", "flops=40%", "--no-latency", "-q", "--data", samples)
    cases = {
        "spill": (SPILLING, [signal.SIGTERM], (143,)),
        "write": (WRITING, [signal.SIGHUP, signal.SIGTERM], (129, 143)),  # one of them ends it, the other is ignored
    }
    running = {name: begun(code + COMMAND, tmp_path / name, *target) for name, (code, _, _) in cases.items()}
    for name, process in running.items():
        _, signals, codes = cases[name]
        assert waited(lambda name=name: (tmp_path / name / "reached").exists())
        for number in signals:
            process.send_signal(number)
            time.sleep(0.1)
        told = process.communicate(timeout=30)
        assert told == ("", "interrupted: nothing was written\n")
        assert process.returncode in codes
        assert [path.name for path in (tmp_path / name).rglob("*") if path.name != "reached"] == ["tmp"]


def test_signals_in_this_process(monkeypatch):
    """One that is ignored stays so, as under `nohup`; a second one soon after the first is ignored; the old handlers come back."""
    now = [100.0]
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: now[0])
    before = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.caught():
            signal.raise_signal(signal.SIGHUP)
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == (before[0], signal.SIG_IGN)
        with interrupts.caught():
            for seconds, ends in ((0, True), (1, False), (interrupts.GRACE, True)):
                now[0] += seconds
                with pytest.raises(KeyboardInterrupt) if ends else contextlib.nullcontext() as caught:
                    signal.raise_signal(signal.SIGTERM)
                assert not ends or interrupts.exit_code(caught.value) == 143
        assert interrupts.exit_code(KeyboardInterrupt()) == 130
    finally:
        signal.signal(signal.SIGHUP, before[1])
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, signal.default_int_handler)


def marked(folder: Path) -> list[int]:
    """Return the ids of the workers that are in the middle of a job."""
    return [int(path.name.removeprefix("worker-")) for path in folder.glob("worker-*")]


def assert_gone(workers: list[int], temporary: Path) -> None:
    assert waited(lambda: not any(map(psutil.pid_exists, workers)), 10)
    assert waited(lambda: not [path for path in temporary.iterdir() if "onnxprune-" in path.name], 10)


def test_workers_end_with_their_command(tiny_path, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_IN_WORKERS)
    line = ("sweep", tiny_path, "-o", "sizes", "--targets", "flops=20%,40%", "--round-to", "1", "--jobs", "2")
    more = ("--repair", "none", "--no-latency", "-q", "--data", f"{tmp_path}/slow.py:load")
    process = begun(COMMAND, tmp_path / "run", *line, *more)
    assert waited(lambda: len(marked(tmp_path)) == 2)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=30)
    left = "interrupted: 2 of 2 plans are in sizes; the same command goes on there\n"
    assert (process.returncode, *told) == (143, "", left)
    assert_gone(marked(tmp_path), tmp_path / "run" / "tmp")
    assert {path.suffix for path in (tmp_path / "run" / "sizes").iterdir()} == {".json"}


def test_workers_end_with_a_command_that_is_killed(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_IN_WORKERS)
    code = "from onnxprune.runtime import workers; import slow; slow.load(); workers.run(work, [0, 1], workers=2)"
    work = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\ndef work(job): import slow; return slow.load()\n"
    process = begun(work + code, tmp_path / "run")
    assert waited(lambda: len(marked(tmp_path)) == 2)
    process.kill()
    process.communicate(timeout=30)
    assert_gone(marked(tmp_path), tmp_path / "run" / "tmp")

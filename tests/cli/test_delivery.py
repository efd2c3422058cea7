"""Where a file or stdout cannot be written, nothing else is lost: tables are shown, files are written, and the message names them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

import onnxprune
from onnxprune import fileio
from onnxprune.cli import main
from onnxprune.errors import OutputError

QUICK = ("--no-latency", "--repair", "none", "-q")
TARGET = ("--reduce", "flops=40%", "--round-to", "1")


@pytest.fixture
def full(monkeypatch) -> set[str]:
    """Return the endings of files for which the disk is full; a test adds them."""
    endings: set[str] = set()
    replace = Path.replace

    def moved(self: Path, target: Path) -> Path:
        if any(str(target).endswith(ending) for ending in endings):
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", moved)
    return endings


@pytest.mark.parametrize(
    ("line", "lost", "shown", "kept"),
    [
        (
            ("prune", *TARGET, *QUICK, "-o", "s.onnx", "--report", "r.md"),
            ".md",
            "integrity: PASSED",
            ["s.onnx", "s.plan.json"],
        ),
        (("prune", *TARGET, *QUICK, "-o", "s.onnx"), ".plan.json", "integrity: PASSED", []),
        (("plan", *TARGET, "--repair", "none", "-q", "--json", "-o", "p.json"), ".json", None, []),
        (("bench", "--runs", "2", "--warmup", "0", "-q", "--json", "--latency-table", "t.json"), ".json", None, []),
        (("sensitivity", "--data", "generated", "-q", "--plot", "c.svg"), ".svg", "loss: ", []),
        (
            ("sweep", "-o", "sizes", "--targets", "flops=40%", "--round-to", "1", *QUICK, "--report", "r.md"),
            ".md",
            "flops-4",
            ["sizes"],
        ),
    ],
    ids=["report", "plan of prune", "plan", "bench", "sensitivity", "sweep"],
)
def test_a_file_that_cannot_be_written_loses_no_table(line, lost, shown, kept, tiny_path, out, run, full, monkeypatch):
    monkeypatch.chdir(out)
    full.add(lost)
    result = run(line[0], tiny_path, *line[1:])
    assert result.exit_code == 1, result.output
    assert "No space left on device" in result.stderr
    if shown is None:
        json.loads(result.stdout)
    else:
        assert shown in result.stdout
    for name in kept:
        assert (out / name).exists()
        assert name in result.stderr
    assert lost == ".plan.json" or sorted(path.name for path in out.iterdir()) == sorted(kept)


def test_a_check_writes_what_it_can(tiny_path, out, run, full):
    full |= {".xml", ".html"}
    files = {
        name: out / f"c.{ending}"
        for name, ending in (("junit", "xml"), ("sarif", "json"), ("markdown", "md"), ("report", "html"))
    }
    asked = [part for name, path in files.items() for part in (f"--{name}", path)]
    result = run("check", tiny_path, "--baseline", tiny_path, "--no-latency", "-q", *asked)
    assert result.exit_code == 1
    assert "integrity: PASSED" in result.stdout
    assert result.stderr.count("error: cannot write") == 2
    assert sorted(path.name for path in out.iterdir()) == ["c.json", "c.md"]


def test_python_gets_the_result(tiny_path, out, full):
    full.add(".md")
    with pytest.raises(OutputError, match="cannot write") as caught:
        onnxprune.prune(
            tiny_path,
            output=out / "s.onnx",
            reduce={"flops": 0.4},
            repair="none",
            latency=False,
            report_output=out / "r.md",
        )
    result = caught.value.result
    assert result.report.after.flops < result.report.before.flops
    assert result.files == (out / "s.onnx", out / "s.plan.json")
    assert all(path.exists() for path in result.files)
    assert fileio.same_file(Path(result.report.output), out / "s.onnx")


def here(stdout: TextIO | None, stderr: TextIO, *line: object) -> int:
    """Run a command in this process with streams of its own; return the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", stderr)
        try:
            main([str(part) for part in line])
        except SystemExit as end:
            return int(end.code or 0)
    raise AssertionError("it did not exit")


def nobody_reads() -> TextIO:
    ours, theirs = os.pipe()
    os.close(ours)
    return os.fdopen(theirs, "w")


@pytest.mark.parametrize("how", ["full", "full, JSON", "closed", "broken"])
def test_a_stdout_that_cannot_be_written_loses_no_file(how, tiny_path, out):
    stdout = None if how == "closed" else nobody_reads() if how == "broken" else open("/dev/full", "w")  # noqa: SIM115
    told = io.StringIO()
    line = ("check", tiny_path, "--baseline", tiny_path, "--no-latency", "-q", "--markdown", out / "c.md")
    assert here(stdout, told, *line, *(["--json"] if how == "full, JSON" else [])) == 1
    assert f"written: {out / 'c.md'}" in told.getvalue()
    assert "the result cannot be printed" in told.getvalue()
    assert (out / "c.md").read_text().startswith("### onnxprune check")
    if stdout is not None:
        stdout.close()  # what is left in its buffer raises nothing


def test_a_reader_that_has_seen_enough_is_told_nothing(tiny_path):
    with nobody_reads() as stdout:
        command = [sys.executable, "-c", "from onnxprune.cli import main; main()", "inspect", str(tiny_path), "-q"]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_stderr_that_cannot_be_written_ends_nothing(tiny_path):
    told = io.StringIO()
    with open("/dev/full", "w", buffering=1) as device:
        assert here(told, device, "inspect", tiny_path, "--verbose") == 0
        os.dup2(os.open(os.devnull, os.O_WRONLY), device.fileno())
    assert "conv1" in told.getvalue()

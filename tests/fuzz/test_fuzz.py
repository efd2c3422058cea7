"""Mutated files and injected faults, a small part of what `tools/fuzz.py` and `tools/inject.py` do; each in a process without threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


def clean(tool: str, *args: object, seconds: float = 600) -> None:
    """Run a tool, which must find nothing."""
    command = [sys.executable, str(TOOLS / tool), *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_mutated_files_are_accepted_or_refused_with_a_message(tmp_path):
    clean("fuzz.py", "--light", "--count", 80, "--save", tmp_path / "found")


def test_faults_leave_inputs_and_outputs_whole():
    names = ("plan", "prune, plan and report elsewhere")
    clean("inject.py", *(part for name in names for part in ("--command", name)), "--kills", 1, "--most", 5)


@pytest.mark.fuzz
def test_every_class_has_a_file_that_is_accepted():
    clean("fuzz.py", "--bases")


@pytest.mark.fuzz
def test_more_mutated_files(tmp_path):
    clean("fuzz.py", "--count", 1500, "--seed", 1, "--jobs", 2, "--save", tmp_path / "found")


@pytest.mark.fuzz
def test_more_faults_in_every_command():
    clean("inject.py", "--kills", 2, "--most", 8, "--jobs", 2)

"""Nothing is sent anywhere: onnxruntime's telemetry is off, in all commands and their workers, unless the user turns it on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = """
from onnxprune.cli import main
for line in {lines!r}:
    try:
        main([*line.split(), "--quiet"])
    except SystemExit as end:
        assert not end.code, line

from onnxprune.runtime import workers

def job(number):
    from onnxprune.runtime import session
    return session.ORT_VERSION

assert len(workers.run(job, [1, 2], workers=2)) == 2
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a user who has set nothing, with a home of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ORT_", "XDG_"))}
    return {**kept, "HOME": str(home), **more}


def test_neither_commands_nor_workers_store_an_id_or_connect(tiny_path, tmp_path):
    home, log = tmp_path / "home", tmp_path / "calls.txt"
    home.mkdir()
    small = tmp_path / "small.onnx"
    lines = [
        f"prune {tiny_path} -o {small} --reduce flops=40% --round-to 1 --repair none --no-latency",
        f"check {small} --baseline {tiny_path} --no-latency",
        f"bench {tiny_path} --runs 2 --warmup 0",
    ]
    traced = ["strace", "-f", "-o", str(log), "-e", "trace=connect,sendto,sendmsg", "--seccomp-bpf"]
    tracer = traced if shutil.which("strace") else []
    command = [*tracer, sys.executable, "-c", COMMANDS.format(lines=lines)]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [path for path in home.rglob("*") if path.name in ("deviceid", "onnxruntime.db")] == []
    if tracer:
        calls = [line for line in log.read_text().splitlines() if "AF_INET" in line]
        assert calls == []


@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")])
def test_the_user_decides(given, expected, tmp_path):
    """The variable is set before onnxruntime is imported, and where it is set already it stays."""
    code = "import os, onnxprune.runtime.session; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path, **given), capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == [expected], done.stderr

"""Memory that a process needs to run a model, measured in a new process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil

from onnxprune import leftovers
from onnxprune.runtime.session import Feeds, SessionConfig, open_session, run_batch

SECONDS = 120.0
"""Time limit of the process."""


def measure(path: str | os.PathLike[str], feeds: Feeds, config: SessionConfig) -> int | None:
    """Return how many bytes loading and running a model once add to the peak memory of a process.

    The bytes cover weights, activations and buffers of onnxruntime, those of loading and optimizing included. None where the system does
    not tell, or the process fails.
    """
    with leftovers.temporary_folder() as folder:
        inputs = folder / "inputs.npz"
        np.savez(inputs, **feeds)  # type: ignore[arg-type]
        command = [sys.executable, "-m", __name__, os.fspath(path), str(inputs), json.dumps(asdict(config))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS, check=True)
            return int(done.stdout)
        except (OSError, subprocess.SubprocessError, ValueError):
            return None


def _peak() -> int:
    """Return the peak memory of this process in bytes: from psutil on Windows, from /proc on Linux."""
    now = psutil.Process().memory_info()
    if hasattr(now, "peak_wset"):
        return int(now.peak_wset)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main(path: str, inputs: str, config: str) -> None:
    """Load and run a model, and print how many bytes that takes."""
    with np.load(inputs) as stored:
        feeds = dict(stored)
    before = psutil.Process().memory_info().rss
    run_batch(open_session(path, SessionConfig(**json.loads(config))), feeds)
    print(max(0, _peak() - before))


if __name__ == "__main__":
    main(*sys.argv[1:])

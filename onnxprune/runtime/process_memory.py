"""Memory that a process needs to run a model, measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil

from onnxprune.runtime.session import Feeds, SessionConfig, open_session, run_batch

SECONDS = 120.0
"""After which a process is given up."""


def measure(path: str | os.PathLike[str], feeds: Feeds, config: SessionConfig) -> int | None:
    """Return by how many bytes loading a model and running it once raises the peak of a process that holds onnxruntime and the inputs.

    That counts weights, activations, what onnxruntime takes, and what it takes only while it loads and optimizes the model.

    Args:
        path: of the model.
        feeds: inputs.
        config: how the model is executed.

    Returns:
        None where the system does not tell, or the process failed.
    """
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        inputs = Path(folder, "inputs.npz")
        np.savez(inputs, **feeds)  # type: ignore[arg-type]
        command = [sys.executable, "-m", __name__, os.fspath(path), str(inputs), json.dumps(asdict(config))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS, check=True)
            return int(done.stdout)
        except (OSError, subprocess.SubprocessError, ValueError):
            return None


def _peak() -> int:
    """Return the peak of this process in bytes: from psutil on Windows, from /proc on Linux, where psutil does not know it."""
    now = psutil.Process().memory_info()
    if hasattr(now, "peak_wset"):
        return int(now.peak_wset)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main(path: str, inputs: str, config: str) -> None:
    """Load and run a model, and print the bytes."""
    with np.load(inputs) as stored:
        feeds = dict(stored)
    before = psutil.Process().memory_info().rss
    run_batch(open_session(path, SessionConfig(**json.loads(config))), feeds)
    print(max(0, _peak() - before))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""How much memory a process needs to run a model, measured in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from onnxprune.runtime.session import Feeds, open_session, run_batch

SECONDS = 120.0
"""After which a process is given up."""


def measure(path: str | os.PathLike[str], feeds: Feeds, *, threads: int, provider: str) -> int | None:
    """Return by how many bytes loading a model and running it once raises the peak of a process that had onnxruntime and the inputs.

    That counts weights, activations, what onnxruntime takes, and what it takes only while it loads and optimises the model.

    Args:
        path: of the model.
        feeds: inputs.
        threads: of onnxruntime.
        provider: of onnxruntime.

    Returns:
        None where the system does not tell, or the process failed.
    """
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        inputs = Path(folder, "inputs.npz")
        np.savez(inputs, **feeds)  # type: ignore[arg-type]
        command = [sys.executable, "-m", __name__, os.fspath(path), str(inputs), str(threads), provider]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS, check=True)
            return int(done.stdout)
        except (OSError, subprocess.SubprocessError, ValueError):
            return None


def _status(key: str) -> int:
    """Return bytes as Linux counts them for this process: VmRSS now, VmHWM at most so far."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(key)


def main(path: str, inputs: str, threads: str, provider: str) -> None:
    """Load and run a model, and print the bytes."""
    with np.load(inputs) as stored:
        feeds = dict(stored)
    before = _status("VmRSS")
    run_batch(open_session(path, threads=int(threads), provider=provider), feeds)
    print(max(0, _status("VmHWM") - before))


if __name__ == "__main__":
    main(*sys.argv[1:])

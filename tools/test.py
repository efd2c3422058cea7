#!/usr/bin/env python3
"""Run everything a change must pass: ruff, mypy and the tests. Further arguments go to pytest.

Without any, every test runs, on as many workers as there are cores, four at most. Each worker computes with one thread.

Where there is a browser, or CI is set, the tests that need one fail instead of being left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
)
WORKERS = ("-n", "auto", "--maxprocesses", "4", "--dist", "worksteal")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> int:
    """Run the steps in order; return the first exit code that is not 0."""
    environment = dict(os.environ)
    if os.environ.get("CI") or any(map(shutil.which, BROWSERS)):
        environment.setdefault("ONNXPRUNE_BROWSER", "required")
    if not sys.argv[1:]:
        environment.setdefault("OMP_NUM_THREADS", "1")
    for module, *arguments in (*STEPS, ("pytest", *(sys.argv[1:] or WORKERS))):
        print(f"== {module} {' '.join(arguments)}", flush=True)
        code = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())

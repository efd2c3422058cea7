#!/usr/bin/env python3
"""Run everything a change must pass: ruff, mypy and the tests. Further arguments go to pytest.

Without any, every test runs, on as many workers as there are cores, four at most. Each worker computes with one thread.
Then the tests of execution providers run once more on OpenVINO, in an environment of their own (`.venv-openvino`), since only one
package of onnxruntime fits into each; where pip cannot install it, a line says so. `--openvino` runs that step alone.

Where CI is set, minutes of mutated files and injected faults follow (tests marked `fuzz`); `--fuzz` runs that step alone.

Where there is a browser, or CI is set, the tests that need one fail instead of being left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
)
WORKERS = ("-n", "auto", "--maxprocesses", "4", "--dist", "worksteal")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPENVINO = ROOT / ".venv-openvino"
ON_OPENVINO = ("tests/runtime/test_providers.py", "tests/runtime/test_profile_files.py")
NEEDED = ("bokeh", "jinja2", "matplotlib", "pytest")
"""What the tests and their fixtures import beside the dependencies of the package."""
SECONDS = 240
"""Time limit of the installation."""


def main() -> int:
    """Run the steps in order; return the first exit code that is not 0."""
    if sys.argv[1:] == ["--openvino"]:
        return openvino()
    environment = dict(os.environ)
    if os.environ.get("CI") or any(map(shutil.which, BROWSERS)):
        environment.setdefault("ONNXPRUNE_BROWSER", "required")
    if not sys.argv[1:]:
        environment.setdefault("OMP_NUM_THREADS", "1")
    if sys.argv[1:] == ["--fuzz"]:
        return fuzz(environment)
    for module, *arguments in (*STEPS, ("pytest", *(sys.argv[1:] or WORKERS))):
        print(f"== {module} {' '.join(arguments)}", flush=True)
        code = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment).returncode
        if code:
            return code
    if sys.argv[1:]:
        return 0
    return openvino() or (fuzz(environment) if os.environ.get("CI") else 0)


def fuzz(environment: dict[str, str]) -> int:
    """Run the tests that are marked `fuzz`."""
    print("== pytest -m fuzz tests/fuzz", flush=True)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "fuzz", "tests/fuzz"], cwd=ROOT, env=environment
    ).returncode


def openvino() -> int:
    """Run the tests of execution providers on OpenVINO; return 0 as well where it cannot be installed."""
    python = OPENVINO / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    start = time.monotonic()
    if not python.exists():
        venv.create(OPENVINO, with_pip=True)
    failed = _installed(python)
    if failed:
        print(f"== openvino: left out, onnxruntime-openvino cannot be installed here: {failed}", flush=True)
        return 0
    print(f"== openvino: {OPENVINO.name} is ready after {time.monotonic() - start:.0f} s", flush=True)
    command = [str(python), "-m", "pytest", "-q", *ON_OPENVINO]
    environment = {**os.environ, "ONNXPRUNE_PROVIDER": "OpenVINO", "OMP_NUM_THREADS": "1"}
    print(f"== openvino: pytest {' '.join(command[3:])}", flush=True)
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def _installed(python: Path) -> str:
    """Install OpenVINO, the package and what its tests need; return why that failed, an empty text where it did not."""
    names = [re.split(r"[\s\[<>=!~;]", line)[0].lower() for line in metadata.requires("onnxprune") or ()]
    needed = [
        line.partition(";")[0] if "python_version" not in line else line
        for line, name in zip(metadata.requires("onnxprune") or (), names, strict=True)
        if name != "onnxruntime" and ("extra ==" not in line or name in NEEDED)
    ]
    needed = [re.sub(r";?\s*(and )?extra == .*", "", line).strip() for line in needed]
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder, "constraints.txt")  # those of the repository, without the other package of onnxruntime
        lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        pins.write_text("\n".join(line for line in lines if not line.startswith("onnxruntime==")), encoding="utf-8")
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        wanted = ["-c", str(pins), "onnxruntime-openvino", *dict.fromkeys(needed)]
        for command in ([*pip, *wanted], [*pip, "--no-deps", "-e", str(ROOT)]):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            except subprocess.TimeoutExpired:
                return f"pip took more than {SECONDS} s"
            if done.returncode:
                told = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
                return (told or done.stderr.splitlines() or ["pip failed"])[-1]
    return ""


if __name__ == "__main__":
    sys.exit(main())

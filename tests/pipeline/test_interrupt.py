"""Ctrl-C: exit code 130, one line that says what is left on disk, and nothing but that left there."""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

KEPT = "from onnxprune.calibration import stage_results; stage_results.WORTH = 1e9; "
"""On a busy machine a stage may take long enough to be kept; that has tests of its own."""
CODE = KEPT + "from onnxprune.cli import main; main()"
OTHERS = {".ses", "torchinductor_" + getpass.getuser()}
"""What onnxruntime and torch leave in the folder for temporary files, after any run."""
PATIENCE = 120.0
pytestmark = pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send")


def heeds_interrupts() -> None:
    """Let SIGINT do what it does in a terminal: what a shell runs in the background ignores it, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def interrupted(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Return a function that interrupts a command, once its stderr or the disk say that it is time; it returns exit code and last line."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()

    def run(*args: object, when: Callable[[str], bool], before: str = "") -> tuple[int, str]:
        log = tmp_path / "stderr.txt"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-c", before + CODE, *map(str, args), "--verbose"],
                stdout=subprocess.PIPE,
                stderr=stream,
                env={**os.environ, "TMPDIR": str(temporary)},
                preexec_fn=heeds_interrupts,
            )
            begin = time.monotonic()
            while not when(log.read_text()):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() - begin < PATIENCE
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            stdout, _ = process.communicate(timeout=PATIENCE)
        assert stdout == b""
        told = log.read_text()
        assert "Traceback" not in told
        assert {path.name for path in temporary.iterdir()} <= OTHERS
        return process.returncode, told.splitlines()[-1]

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a file of labeled samples for the tiny model, enough to keep it busy for a while."""
    rng = np.random.default_rng(3)
    path = tmp_path / "data.npz"
    np.savez(path, x=rng.normal(size=(4000, 3, 8, 8)).astype(np.float32), labels=rng.integers(0, 4, 4000))
    return path


def loaded(told: str) -> bool:
    """Tell whether the first stage is over."""
    return "load\n" in told


def test_prune(interrupted, tiny_path, data, out):
    args = ("prune", tiny_path, "-o", out / "s.onnx", "--data", data, "--reduce", "flops=50%", "--samples", 4000)
    assert interrupted(*args, when=loaded) == (130, "interrupted: nothing was written")
    assert list(out.iterdir()) == []


def test_check(interrupted, tiny_path, data, out):
    args = ("check", tiny_path, "--baseline", tiny_path, "--data", data, "--eval-batch", 1, "--junit", out / "c.xml")
    assert interrupted(*args, when=loaded) == (130, "interrupted: nothing was written")
    assert list(out.iterdir()) == []


@pytest.mark.torch
def test_finetune(interrupted, tiny_path, data, out, tmp_path):
    pytest.importorskip("torch")
    state = tmp_path / "state"
    args = ("finetune", tiny_path, "--teacher", tiny_path, "--data", data, "-o", out / "t.onnx", "--for", "10min")
    expected = f"interrupted: no model was written; the same command goes on from {state}"
    often = "from onnxprune.training import distill; distill.SAVED_EVERY = 0.0; "
    found = interrupted(*args, "--checkpoint", state, when=lambda _: state.exists(), before=often)
    assert found == (130, expected)
    assert list(out.iterdir()) == []


def test_sweep(interrupted, tiny_path, data, out):
    targets = ("--targets", f"params={','.join(f'{share}%' for share in range(5, 90, 5))}", "--round-to", 1)
    args = ("sweep", tiny_path, "-o", out / "sizes", "--data", data, *targets)
    sizes = out / "sizes"
    code, told = interrupted(*args, when=lambda _: len(list(sizes.glob("*.onnx"))) >= 2)
    whole = len(list(sizes.glob("*.onnx")))
    assert (code, told) == (
        130,
        f"interrupted: {whole} of 17 models are in {sizes}; the same command goes on there",
    )
    assert not list(sizes.glob("*.part"))


def test_sweep_that_has_no_model_yet(interrupted, tiny_path, data, out):
    args = ("sweep", tiny_path, "-o", out / "sizes", "--data", data, "--samples", 4000)
    assert interrupted(*args, when=loaded) == (130, "interrupted: nothing was written")

"""Whatever the machine measures, a run ends in a result or in a message; `random_timings` has more of it for other models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from edited_models import residual
from random_timings import random_timings_run

SEEDS = (2, 5, 6, 7, 13)


@pytest.fixture
def residual_path(tmp_path: Path) -> Path:
    onnx.save(residual().to_proto(), tmp_path / "residual.onnx")
    return tmp_path / "residual.onnx"


@pytest.fixture
def few(tmp_path: Path) -> Path:
    np.savez(tmp_path / "few.npz", x=np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32))
    return tmp_path / "few.npz"


@pytest.mark.parametrize("seed", SEEDS)
def test_random_timings_end_in_a_result_or_a_message(seed: int, residual_path: Path, few: Path, out: Path) -> None:
    assert random_timings_run(seed, residual_path, few, out)

"""Every situation can be rebuilt, and loads in onnxruntime."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import networks
import onnxruntime as ort
import pytest

NAMES = [name for name, value in vars(networks).items() if inspect.isfunction(value) and name != "build"]


@pytest.mark.parametrize("name", NAMES)
def test_the_models_of_a_situation_load(situation: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    situation(name)
    files = [*tmp_path.glob("*.onnx"), *tmp_path.glob("hf/snapshots/*/*.onnx")]
    assert files
    for file in files:
        if file.name != "double.onnx":  # onnxruntime has no Conv of float64 on the CPU
            ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])

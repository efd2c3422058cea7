"""Models whose weights lie in files: the results are those of weights in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.runtime import weight_files
from onnxprune.surgery import cuts


@pytest.mark.parametrize(("external", "sampled"), [(False, False), (True, True)])
def test_weights_in_files_change_nothing(
    external: bool,
    sampled: bool,
    tiny: onnx.ModelProto,
    tmp_path: Path,
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every byte of the result is that of weights in memory, and no file is left."""
    mapped: list[str] = []
    path = tmp_path / "model.onnx"
    onnx.save_model(tiny, str(path), save_as_external_data=external, location="model.data", size_threshold=0)

    def pruned(name: str) -> bytes:
        how = {"data": np.concatenate([images] * 4), "granularity": ("filter",)} if sampled else {"repair": "none"}
        output = tmp_path / name
        found = onnxprune.prune(
            path, output=output, reduce={"flops": 0.4}, round_to=1, latency=False, force=True, **how
        )
        assert found.report.verdict.integrity == "PASSED"
        return output.read_bytes()

    plain = pruned("a.onnx")
    place_of = weight_files.place_of
    monkeypatch.setattr("onnxprune.runtime.session.place_of", lambda x: mapped.append("") or place_of(x))
    monkeypatch.setattr(weight_files, "LARGE", 0)
    monkeypatch.setattr(weight_files, "MAPPED_FROM", 1)
    monkeypatch.setattr("onnxprune.graph.external_data.MAPPED_FROM", 1)
    monkeypatch.setattr(cuts, "LARGE", 0)
    assert pruned("b.onnx") == plain
    assert mapped
    weight_files.release(0)
    assert not list(weight_files._folder().iterdir())

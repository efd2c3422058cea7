"""The profile that onnxruntime writes beside a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxprune.errors import OutputError
from onnxprune.runtime import profiler
from onnxprune.runtime.session import SessionConfig


def test_profile_that_a_full_disk_cut_off_is_told(tiny, tmp_path, monkeypatch):
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **how: read_text(path, **how)[:1000])
    feeds = {"x": np.zeros((1, 3, 8, 8), np.float32)}
    with pytest.raises(OutputError, match="cut off") as caught:
        profiler.profile(tiny, feeds, SessionConfig(threads=1), seconds=0.01)
    assert "TMPDIR" in str(caught.value)

"""`onnxprune cache` shows what is kept, and removes nothing else."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from onnxprune.allocation import channel_multiple


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache with a channel multiple, a damaged table, a file of an older version and one of the user."""
    path = tmp_path / "cache"
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(path))
    channel_multiple.remember(8)
    (path / "latency-1.json").write_text("{")
    (path / "step.json").write_text('{"a": 8}')
    (path / "mine.json").write_text("{}")
    os.utime(path / "latency-1.json", (time.time() - 7300,) * 2)
    return path


def test_what_is_kept(folder: Path, run) -> None:
    shown = run("cache").stdout
    assert str(folder) in shown
    assert "2 h" in shown
    assert "mine.json" not in shown
    found = json.loads(run("cache", "--json").stdout)
    kinds = {entry["kind"]: entry for entry in found["entries"]}
    assert set(kinds) == {"channel multiple", "latency table", "channel multiple, of an older version"}
    assert "cores" in kinds["channel multiple"]["machine"]
    assert "damaged" in kinds["latency table"]["machine"]
    assert kinds["latency table"]["size"] == 1
    assert kinds["latency table"]["age"] == pytest.approx(7300, abs=60)


def test_clear_removes_what_is_shown(folder: Path, run) -> None:
    found = json.loads(run("cache", "--clear", "--json").stdout)
    assert (found["cleared"], len(found["entries"])) == (True, 3)
    assert [path.name for path in folder.iterdir()] == ["mine.json"]
    assert "nothing" in run("cache").stdout


def test_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "none"))
    assert "nothing" in run("cache").stdout
    assert "nothing" in run("cache", "--clear").stdout
    assert not (tmp_path / "none").exists()

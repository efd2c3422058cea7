"""What killed runs leave behind is deleted, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from onnxprune import leftovers
from onnxprune.fileio import atomic_write, check_destination

WRITER = """
import sys
from pathlib import Path
from onnxprune import leftovers
path, descriptor = leftovers.new_file(Path(sys.argv[1]))
with leftovers.temporary_folder() as folder:
    (folder / "1.npy").write_text("half")
    print(path.name, folder.name, flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_files_of_a_living_run_stay_and_those_of_a_killed_one_go(tmp_path, monkeypatch):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with writer:
        made = set(writer.stdout.readline().split())
        for name in made:
            age(tmp_path / name, 1e6)
        leftovers.sweep(tmp_path)
        assert names(tmp_path) == made
        assert len(made) == 2
        writer.kill()
    with atomic_write(tmp_path / "a.txt") as temporary:
        assert names(tmp_path) == {temporary.name}
        temporary.write_text("new")
    assert names(tmp_path) == {"a.txt"}


def left(folder: Path, name: str = "") -> Path:
    """Leave a temporary that nobody has locked."""
    path = folder / (name or leftovers.new_name())
    path.write_text("half")
    return path


@pytest.mark.parametrize("start", [check_destination, lambda path: atomic_write(path).__enter__()])
def test_swept_at_the_start_of_writing(start, tmp_path):
    old = left(tmp_path)
    start(tmp_path / "a.txt")
    assert not old.exists()


def test_spilled_activations_are_swept_at_the_next_spill(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = tmp_path / leftovers.new_name()
    dead.mkdir()
    left(dead, "1.npy")
    with leftovers.temporary_folder() as folder:
        assert names(tmp_path) == {folder.name}
        assert folder.stat().st_mode & 0o077 == 0
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", [".onnxprune-0123abcd-0123456789abcdef.part", ".onnxprune-k3x_9z0q.part"])
def test_files_of_other_machines_and_older_versions_must_be_old(name, tmp_path):
    found = left(tmp_path, name)
    leftovers.sweep(tmp_path)
    assert found.exists()
    age(found, leftovers.OLD + 60)
    leftovers.sweep(tmp_path)
    assert not found.exists()


def test_files_without_locks_must_be_old(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "_lock", lambda descriptor: None)
    found = left(tmp_path)
    leftovers.sweep(tmp_path)
    assert found.exists()
    age(found, leftovers.OLD + 60)
    leftovers.sweep(tmp_path)
    assert not found.exists()


def test_nothing_else_is_swept(tmp_path):
    others = [".onnxprune-notes", "onnxprune-0123abcd-0.part", ".onnxprune-a b.part", "x.part", ".onnxprune-x.part.bak"]
    for name in others:
        age(left(tmp_path, name), 1e6)
    (tmp_path / leftovers.new_name()).symlink_to(tmp_path / "x.part")
    os.mkfifo(tmp_path / leftovers.new_name())
    before = names(tmp_path)
    leftovers.sweep(tmp_path)
    leftovers.sweep(tmp_path / "gone")
    assert names(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owner")
def test_files_of_other_users_stay(tmp_path, monkeypatch):
    found = left(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: found.stat().st_uid + 1)
    leftovers.sweep(tmp_path)
    assert found.exists()


def test_a_sweep_between_making_and_locking_takes_no_file(tmp_path, monkeypatch):
    real, swept = leftovers._lock, []

    def slow(descriptor: int) -> bool | None:
        if not swept:
            swept.append(True)
            with monkeypatch.context() as patched:
                patched.setattr(leftovers, "_lock", real)
                leftovers.sweep(tmp_path)
        return real(descriptor)

    monkeypatch.setattr(leftovers, "_lock", slow)
    path, descriptor = leftovers.new_file(tmp_path)
    os.close(descriptor)
    assert swept
    assert names(tmp_path) == {path.name}

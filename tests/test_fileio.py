"""Files are written whole or not at all, and never over an input."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from onnxprune.errors import OptionError, OutputError
from onnxprune.fileio import Transaction, atomic_write, check_destination, same_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_when_the_block_succeeds(tmp_path):
    target = tmp_path / "a.txt"
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.parent == target.parent
        assert temporary.suffix == ".part"
    assert names(tmp_path) == ["a.txt"]
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, MemoryError])
def test_nothing_changes_when_the_block_fails(error, tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert names(tmp_path) == ["a.txt"]
    assert target.read_text() == "old"


def test_system_error_becomes_an_output_error(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write a\.txt") as caught, atomic_write(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")
    assert caught.value.why == "No space left on device"
    assert names(tmp_path) == []


def test_folder_that_went_away_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot write"), atomic_write(tmp_path / "gone" / "a.txt"):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_follow_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~umask


def test_umask_is_not_touched_and_an_existing_file_keeps_its_mode(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    target.write_text("old")
    target.chmod(0o640)
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("other threads would make files of this mode"))
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert temporary.stat().st_mode & 0o007 == 0  # never open to more than the old one
    assert target.stat().st_mode & 0o777 == 0o640
    assert target.read_text() == "new"


def test_long_name_is_no_obstacle(tmp_path):
    target = tmp_path / ("x" * 255)
    check_destination(target)
    with atomic_write(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


@pytest.mark.parametrize("existing", [True, False])
def test_target_of_a_link_is_written_and_the_link_stays(existing, tmp_path):
    (tmp_path / "folder").mkdir()
    target, link, second = tmp_path / "folder" / "a.txt", tmp_path / "link", tmp_path / "second"
    if existing:
        target.write_text("old")
    link.symlink_to("folder/a.txt")
    second.symlink_to(link)
    check_destination(second)
    with atomic_write(second) as temporary:
        temporary.write_text("new")
        assert temporary.parent == target.parent
    assert link.is_symlink()
    assert second.is_symlink()
    assert target.read_text() == "new"
    assert names(target.parent) == ["a.txt"]


def test_link_in_a_circle_or_to_nowhere_is_refused(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.symlink_to(two)
    two.symlink_to(one)
    for step in (check_destination, lambda path: atomic_write(path).__enter__()):
        with pytest.raises(OutputError, match="leads nowhere"):
            step(one)
    (tmp_path / "lost").symlink_to(tmp_path / "gone" / "a.txt")
    with pytest.raises(OutputError, match="folder does not exist"):
        check_destination(tmp_path / "lost")
    assert names(tmp_path) == ["lost", "one", "two"]


def test_path_without_a_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (Path(""), Path("."), Path("/")):
        with pytest.raises(OptionError, match="names no file"):
            check_destination(path)


# -------------------------------------------------------------------------------------------- files that change together


def write_both(folder: Path, text: str) -> None:
    with Transaction() as files:
        for name in ("plan.json", "model.onnx"):
            files.file(folder / name).write_text(text)


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_files_change_together_in_the_order_given(tmp_path, monkeypatch):
    write_both(tmp_path, "old")
    placed, real = [], os.replace

    def spied(source: Path, target: Path) -> None:
        placed.append((Path(target).name, texts(tmp_path)["model.onnx"]))
        real(source, target)

    monkeypatch.setattr(os, "replace", spied)
    write_both(tmp_path, "new")
    assert placed == [("plan.json", "old"), ("model.onnx", "old")]
    assert texts(tmp_path) == {"plan.json": "new", "model.onnx": "new"}


def break_call(monkeypatch: pytest.MonkeyPatch, call: str, number: int, error: BaseException) -> None:
    real, calls = getattr(os, call), []

    def broken(*args: object, **more: object) -> object:
        calls.append(args)
        if len(calls) == number:
            raise error
        return real(*args, **more)

    monkeypatch.setattr(os, call, broken)


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), MemoryError()], ids=type)
def test_a_failure_at_the_last_of_two_files_changes_none(call, error, existing, tmp_path, monkeypatch):
    if existing:
        write_both(tmp_path, "old")
    before = texts(tmp_path)
    break_call(monkeypatch, call, 2, error)
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected, match=r"cannot write model\.onnx" if expected is OutputError else None):
        write_both(tmp_path, "new")
    assert texts(tmp_path) == before


@pytest.mark.parametrize("error", [OSError(1, "Operation not permitted"), KeyboardInterrupt()], ids=type)
def test_a_file_system_without_hard_links_is_no_error(error, tmp_path, monkeypatch):
    write_both(tmp_path, "old")
    break_call(monkeypatch, "link", 1, error)
    with contextlib.suppress(KeyboardInterrupt):
        write_both(tmp_path, "new")
    expected = "new" if isinstance(error, OSError) else "old"
    assert texts(tmp_path) == {"plan.json": expected, "model.onnx": expected}


def test_a_folder_that_cannot_be_synchronized_is_no_error(tmp_path, monkeypatch):
    break_call(monkeypatch, "fsync", 3, OSError(22, "Invalid argument"))
    write_both(tmp_path, "new")
    assert texts(tmp_path) == {"plan.json": "new", "model.onnx": "new"}


def test_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def spied(*args: object, name: str = name, real: object = real) -> None:
            calls.append("folder" if name == "fsync" and os.path.isdir(f"/proc/self/fd/{args[0]}") else name)
            real(*args)

        monkeypatch.setattr(os, name, spied)
    write_both(tmp_path, "new")
    assert calls == ["fsync", "fsync", "replace", "replace", "folder"]


def test_checking_a_destination_leaves_no_trace(tmp_path):
    check_destination(tmp_path / "new.onnx", tmp_path / "model.onnx")
    (tmp_path / "old.onnx").write_text("old")
    check_destination(tmp_path / "old.onnx", tmp_path / "model.onnx")
    assert names(tmp_path) == ["old.onnx"]


def test_same_file_sees_through_links_and_names(tmp_path, monkeypatch):
    original, other = tmp_path / "a", tmp_path / "b"
    original.write_text("a")
    other.write_text("a")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "soft").symlink_to(original)
    os.link(original, tmp_path / "hard")
    for alias in (Path("a"), Path("./x/../a"), tmp_path / "soft", tmp_path / "hard"):
        assert same_file(alias, original)
    assert not same_file(other, original)
    assert not same_file(tmp_path / "gone", original)
    assert same_file(tmp_path / "gone", Path("gone"))

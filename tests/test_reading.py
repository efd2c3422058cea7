"""Input files are regular files of a limited size, and JSON and TOML hold what a program can use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnxprune import reading
from onnxprune.reading import open_regular, parse_json, read_bytes, read_json, read_text, read_toml

DEEP = 100_000


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="it is a pipe"):
        open_regular(path)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused(path: str) -> None:
    with pytest.raises(OSError, match="it is a device"):
        read_bytes(path)


def test_what_a_plain_open_refuses_is_refused_as_before(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
    with pytest.raises(OSError, match="null"):
        open_regular(tmp_path / "a\0b")


def test_the_limit_is_said(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(11))
    assert read_bytes(path, most=11) == bytes(11)
    with pytest.raises(OSError, match="it has 11 bytes, at most 10 are read"):
        read_bytes(path, most=10)


def test_a_file_that_is_larger_than_it_says_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path("/proc/self/maps").stat().st_size == 0
    with pytest.raises(OSError, match="at most 10 are read"):
        read_bytes("/proc/self/maps", most=10)


def test_lines_end_alike(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"a\r\nb\rc\n")
    assert read_text(path) == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * DEEP + "]" * DEEP, "nested too deeply"),
        (f'{{"a": {2**64}}}', "beyond 64 bits"),
        (f'{{"a": -{"9" * 5000}}}', "beyond 64 bits"),
        ("{", "Expecting"),
    ],
)
def test_json(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        parse_json(text)
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_json(tmp_path / "t.json")


def test_json_keeps_whole_numbers_of_64_bits() -> None:
    assert parse_json(str(2**64 - 1)) == 2**64 - 1
    assert parse_json(str(1 - 2**64)) == 1 - 2**64


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = " + "[" * DEEP + "]" * DEEP, "nested too deeply"),
        (f"a = [{{b = {2**64}}}]", "beyond 64 bits"),
        ("a = ", "Invalid value"),
    ],
)
def test_toml(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_toml(tmp_path / "t.toml")


def test_no_module_reads_a_file_of_a_user_past_these_functions() -> None:
    """`Path.read_text` and `open` wait for a pipe; the readers named here read files of the program or of the system."""
    allowed = {
        "machine.py", "process_memory.py", "profiler.py", "html.py", "capture.py", "structure.py", "reading.py",
        "limits.py", "user_functions.py", "memory_limit.py",
        "stage_results.py",
    }  # fmt: skip
    package = Path(reading.__file__).parent
    found = {
        path.name
        for path in package.rglob("*.py")
        if any(
            word in path.read_text(encoding="utf-8")
            for word in (".read_text(", ".read_bytes(", "json.loads(", "tomllib.")
        )
    }
    assert found <= allowed

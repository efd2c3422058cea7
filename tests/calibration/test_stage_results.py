"""Results of long steps: what is stored comes back, and nothing stale is taken for a result of the run."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

from onnxprune import leftovers
from onnxprune.calibration import stage_results
from onnxprune.calibration.stage_results import StageResults, digest
from onnxprune.errors import OutputError

IDENTITY = {"model": "1", "data": "2"}


@dataclass(frozen=True)
class Kind:
    """A dataclass that results hold."""

    name: str
    value: object


@pytest.fixture(autouse=True)
def store_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_results, "WORTH", 0.0)


def opened(folder: Path, *, resume: bool = True, identity: dict[str, str] = IDENTITY) -> StageResults:
    results = StageResults(folder, resume=resume)
    results.open(lambda: identity)
    return results


def never() -> object:
    raise AssertionError("the result is stored")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | of_numpy.arrays(np.float32, (2, 3)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
        | st.frozensets(st.text(), max_size=3)
        | st.builds(Kind, st.text(), inner)
    ),
    max_leaves=8,
)


def same(one: object, other: object) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if isinstance(one, Kind):
        return one.name == other.name and same(one.value, other.value)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


@given(plain)
def test_what_is_stored_comes_back(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    folder = tmp_path_factory.mktemp("run") / "o.onnx.state"
    opened(folder).of("step", lambda: ["x"], lambda: [value], types=(Kind,))
    again = opened(folder)
    assert same(again.of("step", lambda: ["x"], never, types=(Kind,)), [value])
    assert again.reused == 1


def test_other_parts_are_computed(tmp_path: Path) -> None:
    results = opened(tmp_path / "s")
    assert [results.of("step", lambda part=part: [part], lambda part=part: part) for part in (1, 2, 1)] == [1, 2, 1]
    assert results.reused == 1


def test_without_resume_earlier_results_are_not_used_but_removed(tmp_path: Path) -> None:
    opened(tmp_path / "s").of("step", lambda: ["x"], lambda: 1)
    results = opened(tmp_path / "s", resume=False, identity={**IDENTITY, "data": "3"})
    assert len(list((tmp_path / "s").glob("step-*"))) == 1  # they stay until there is something new
    assert results.of("other", lambda: ["x"], lambda: 2) == 2
    assert not list((tmp_path / "s").glob("step-*"))
    assert opened(tmp_path / "s", identity={**IDENTITY, "data": "3"}).of("other", lambda: ["x"], never) == 2


def test_results_of_another_run_are_refused(tmp_path: Path) -> None:
    opened(tmp_path / "s").of("step", lambda: ["x"], lambda: 1)
    with pytest.raises(OutputError, match="different: data"):
        opened(tmp_path / "s", identity={**IDENTITY, "data": "3"})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": "onnxprune.state/1", "identity": 3}', "[" * 100000])
def test_a_foreign_folder_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "state.json").write_text(content)
    with pytest.raises(OutputError, match="other files"):
        opened(tmp_path / "s")
    assert (tmp_path / "s" / "state.json").read_text() == content


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x04N."])
def test_a_damaged_result_is_computed_anew(tmp_path: Path, content: bytes) -> None:
    opened(tmp_path / "s").of("step", lambda: ["x"], lambda: np.ones(3))
    [file] = (tmp_path / "s").glob("step-*")
    for damaged in (content, file.read_bytes()[: file.stat().st_size // 2]):
        file.write_bytes(damaged)
        assert opened(tmp_path / "s").of("step", lambda: ["x"], lambda: 5) == 5


def test_an_error_says_where_the_work_is_and_success_removes_it(tmp_path: Path) -> None:
    results = opened(tmp_path / "s")
    with pytest.raises(KeyboardInterrupt) as caught, results.kept_on_error():  # noqa: PT012
        results.of("step", lambda: ["x"], lambda: 1)
        raise KeyboardInterrupt
    assert caught.value.__notes__ == [results.where]
    (tmp_path / "s" / "mine.txt").write_text("of a user")
    with opened(tmp_path / "s").kept_on_error():
        pass
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_of_no_run(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    assert opened(tmp_path / "s").of("step", lambda: ["x"], lambda: 1) == 1
    assert opened(tmp_path / "s").of("step", lambda: ["x"], never) == 1


def test_a_short_step_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_results, "WORTH", 1e9)
    results = opened(tmp_path / "s")
    with pytest.raises(ValueError, match="x") as caught, results.kept_on_error():  # noqa: PT012
        results.of("step", lambda: ["x"], lambda: 1)
        raise ValueError("x")
    assert not (tmp_path / "s").exists()
    assert not getattr(caught.value, "__notes__", [])


def test_a_folder_that_cannot_be_made_costs_no_result(tmp_path: Path) -> None:
    assert opened(tmp_path / "missing" / "s").of("step", lambda: ["x"], lambda: 1) == 1


def test_arrays_that_print_alike_have_other_digests() -> None:
    one, other = np.zeros((100, 100)), np.zeros((100, 100))
    other[50, 50] = 1
    assert str(one) == str(other)
    values = [
        one,
        other,
        one.astype(np.float32),
        one.reshape(-1),
        one.T[::2],
        [one],
        {"a": one},
        [[1], 2],
        [[1, 2]],
        "1",
        1,
        1.0,
        True,
        b"1",
    ]
    assert len({digest(value) for value in values}) == len(values)
    assert digest(np.broadcast_to(np.ones(3), (5, 3))) == digest(np.ones((5, 3)))


def test_a_file_counts_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    before = digest([tmp_path / "a"])
    (tmp_path / "a").write_bytes(b"2")
    assert digest([tmp_path / "a"]) != before


def test_a_changed_result_is_computed_anew(tmp_path: Path) -> None:
    opened(tmp_path / "s").of("step", lambda: ["x"], lambda: np.ones(3))
    [file] = (tmp_path / "s").glob("step-*")
    with np.load(file) as stored:
        content = dict(stored)
    np.savez(file, **content | {"a0": np.full(3, 7.0)})
    assert opened(tmp_path / "s").of("step", lambda: ["x"], lambda: 5) == 5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_or_a_folder_in_place_of_a_result_is_passed_over(tmp_path: Path) -> None:
    for make in (os.mkfifo, os.mkdir):
        folder = tmp_path / make.__name__
        opened(folder).of("step", lambda: ["x"], lambda: 1)
        [file] = folder.glob("step-*")
        file.unlink()
        make(file)
        with opened(folder).kept_on_error():
            assert opened(folder).of("step", lambda: ["x"], lambda: 5) == 5


def test_a_folder_with_a_temporary_of_a_killed_run_is_of_no_run(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / leftovers.new_name()).touch()
    assert opened(tmp_path / "s").of("step", lambda: ["x"], lambda: 1) == 1


def test_a_result_that_cannot_be_deleted_stays_a_result_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path / "s").of("step", lambda: ["x"], lambda: 1)
    plain = Path.unlink

    def fails(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("step-"):
            raise OSError(5, "Input/output error")
        plain(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fails)
        opened(tmp_path / "s").discard()
    assert opened(tmp_path / "s").of("step", lambda: ["x"], never) == 1


def test_a_refusal_does_not_say_that_the_work_is_kept(tmp_path: Path) -> None:
    opened(tmp_path / "s").of("step", lambda: ["x"], lambda: 1)
    results = StageResults(tmp_path / "s", resume=True)
    with pytest.raises(OutputError) as caught, results.kept_on_error():
        results.open(lambda: {**IDENTITY, "data": "3"})
    assert not getattr(caught.value, "__notes__", [])

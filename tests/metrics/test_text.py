"""Text of a recogniser: decoding, files of characters, and error rates against a plain dynamic programme and torchmetrics."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resampled import assert_counts_repeat_samples

from onnxprune.errors import DataError, OptionError
from onnxprune.metrics import text
from onnxprune.metrics.statistics import on_all

Array = np.ndarray[Any, Any]
WORDS = st.lists(st.tuples(st.text("abc", max_size=7), st.text("abc", max_size=7)), min_size=1, max_size=8)


def objects(values: Sequence[Any]) -> Array:
    out = np.empty(len(values), dtype=object)
    for n, value in enumerate(values):
        out[n] = value
    return out


def edits(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Return the edit distance by its recurrence (Wagner and Fischer, 1974)."""
    row = list(range(len(b) + 1))
    for n, x in enumerate(a, 1):
        before, row[0] = row[0], n
        for m, y in enumerate(b, 1):
            before, row[m] = row[m], min(row[m] + 1, row[m - 1] + 1, before + (x != y))
    return row[-1]


@settings(deadline=None)
@given(WORDS)
def test_error_rate_is_the_dynamic_programme(pairs: list[tuple[str, str]]) -> None:
    pytest.importorskip("rapidfuzz")
    found, labels = (objects(words) for words in zip(*pairs, strict=True))
    characters = sum(len(label) for label in labels)
    expected = 100 * sum(edits(*pair) for pair in pairs) / characters if characters else np.nan
    assert on_all(text.cer(found, labels), len(pairs)) == pytest.approx(expected, rel=1e-12, nan_ok=True)
    same = 100 * np.mean([a == b for a, b in pairs])
    assert on_all(text.exact(found, labels), len(pairs)) == pytest.approx(same, rel=1e-12)
    for metric in (text.cer, text.exact):
        assert_counts_repeat_samples(metric, found, labels)


@settings(deadline=None)
@given(WORDS)
def test_numbers_of_classes_count_as_characters(pairs: list[tuple[str, str]]) -> None:
    pytest.importorskip("rapidfuzz")
    numbers = [[tuple(map(ord, word)) for word in words] for words in zip(*pairs, strict=True)]
    padded = np.full((len(pairs), 8), text.PADDING)
    for row, label in zip(padded, numbers[1], strict=True):
        row[: len(label)] = label
    for metric in (text.cer, text.exact):
        expected = on_all(metric(*(objects(words) for words in zip(*pairs, strict=True))), len(pairs))
        for labels in (objects(numbers[1]), padded):
            found = on_all(metric(objects(numbers[0]), labels), len(pairs))
            assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_labels_may_be_an_array_of_strings() -> None:
    assert on_all(text.exact(objects(["ab", "c"]), np.array(["ab", "d"])), 2) == 50


@pytest.mark.parametrize("metric", [text.cer, text.exact])
def test_text_is_not_compared_with_numbers(metric: Any) -> None:
    pytest.importorskip("rapidfuzz")
    with pytest.raises(DataError, match="labels are text") as caught:
        metric(objects([(1, 2)]), np.array(["ab"]))
    assert "characters" in caught.value.hint
    with pytest.raises(DataError, match="predictions are text"):
        metric(objects(["ab"]), np.array([[1, 2]]))


def test_without_rapidfuzz_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    with pytest.raises(OptionError, match="rapidfuzz") as caught:
        text.cer(objects(["a"]), np.array(["a"]))
    assert "onnxprune[text]" in caught.value.hint
    assert on_all(text.exact(objects(["a"]), np.array(["a"])), 1) == 100


@pytest.mark.torch
def test_as_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.text")
    pytest.importorskip("rapidfuzz")
    found, labels = ["kitten", "", "sunday"], ["sitting", "a", "saturday"]
    expected = 100 * float(functional.char_error_rate(found, labels))
    assert on_all(text.cer(objects(found), objects(labels)), 3) == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------------------------------------------------------- decoding


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=5), st.integers(-4, 3))
def test_greedy_is_its_definition(paths: list[list[int]], blank: int) -> None:
    scores = np.random.default_rng(0).random((len(paths), 6, 4)) + 2 * np.eye(4)[np.array(paths)]
    expected = [tuple(one for one, _ in itertools.groupby(path) if one != blank % 4) for path in paths]
    assert text.greedy(scores, blank=blank).tolist() == expected
    characters = ["x", "yy", "z"]
    table = [*characters[: blank % 4], "", *characters[blank % 4 :]]
    words = ["".join(table[one] for one in path) for path in expected]
    assert text.greedy(scores, characters, blank).tolist() == words


@pytest.mark.parametrize(
    ("characters", "classes", "path", "blank", "word"),
    [
        ("ab", 3, [1, 2], 0, "ab"),
        ("ab", 4, [1, 3, 2], 0, "a b"),  # PaddleOCR: blank, characters, space
        ("-ab", 3, [1, 0, 1], 0, "aa"),  # the blank is among the characters
        ("ab", 3, [0, 2, 0, 1], -1, "aab"),
        ("ab", 4, [0, 2, 1], -1, "a b"),
    ],
)
def test_characters_of_classes(characters: str, classes: int, path: list[int], blank: int, word: str) -> None:
    assert text.greedy(np.eye(classes)[[path]], list(characters), blank).tolist() == [word]


def test_characters_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="do not fit") as caught:
        text.greedy(np.zeros((1, 2, 9)), ["a", "b"])
    assert "2 characters" in caught.value.why
    assert "9 classes" in caught.value.why


def test_no_samples_and_no_steps() -> None:
    assert text.greedy(np.zeros((0, 3, 4))).tolist() == []
    assert text.greedy(np.zeros((2, 0, 4)), ["a", "b", "c"]).tolist() == ["", ""]


# -------------------------------------------------------------------------------------------------------- files of characters


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("keys.txt", "a\nb\n", ["a", "b"]),
        ("keys.txt", "\ufeffa\r\nb\r\n \r\n", ["a", "b", " "]),
        ("keys.txt", "a\n\u3000\n\u2028\n ", ["a", "\u3000", "\u2028", " "]),
        ("keys.txt", "[\n]\n{\n}\n", ["[", "]", "{", "}"]),
        ("keys.txt", "0123ab", ["0", "1", "2", "3", "a", "b"]),
        ("keys.json", json.dumps(["a", "é"]), ["a", "é"]),
        ("keys.json", json.dumps({"b": 2, "a": 1}), ["a", "b"]),
        ("keys.json", json.dumps({"1": "b", "0": "a"}), ["a", "b"]),
        ("keys.json", json.dumps({"model": "x", "character": ["a", "b"]}), ["a", "b"]),
        ("keys.json", json.dumps({"ppocr_keys": "abc"}), ["a", "b", "c"]),
    ],
)
def test_files_of_characters(name: str, content: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode("utf-8"))
    assert text.read_characters(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("keys.json", b'{"a": 0, "b": 2}'),
        ("keys.json", b'{"a": 0, "b": 0}'),
        ("keys.json", b"[1, 2]"),
        ("keys.json", b"{}"),
        ("keys.json", b"not json"),
        ("keys.txt", b""),
        ("keys.txt", b"\xff\xfe\x00"),
        ("", b""),
    ],
)
def test_files_without_characters_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(OptionError, match="characters") as caught:
        text.read_characters(tmp_path / (name or "missing.txt"))
    assert str(tmp_path) in caught.value.where

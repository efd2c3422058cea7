"""Text of a recogniser: decoded from the scores of its time steps, and compared with labels. Metrics are in percent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import DataError, OptionError
from onnxprune.metrics.statistics import Statistic, Sums, mean
from onnxprune.reading import parse_json, read_text
from onnxprune.types import Array

PADDING = -1
"""Value behind the end of a label, in rows of integers."""


def cer(predictions: Array, labels: Array) -> Statistic:
    """Return the character error rate: edits (insertions, deletions, substitutions) per 100 characters of the labels.

    It is NaN where the labels have no characters.

    Args:
        predictions: (n,) strings, or tuples of class numbers.
        labels: (n,) strings, or sequences of class numbers; (n, L) class numbers with -1 behind the end.

    Raises:
        OptionError: rapidfuzz is not installed.
        DataError: labels are strings and predictions are not, or the reverse.
    """
    distance = _distance()
    pairs = _pairs(predictions, labels)
    parts = np.array([[distance(label, found), len(label)] for found, label in pairs], dtype=np.float64)
    return Sums(parts.reshape(-1, 2), lambda sums: np.where(sums[:, 1] > 0, 100.0 * sums[:, 0] / sums[:, 1], np.nan))


def exact(predictions: Array, labels: Array) -> Statistic:
    """Return the percentage of samples whose text is that of the label; arguments and errors are those of `cer`."""
    return mean(np.array([100.0 * (found == label) for found, label in _pairs(predictions, labels)]))


def greedy(scores: Array, characters: Sequence[str] | None = None, blank: int = 0) -> Array:
    """Decode the best path of CTC: the largest score of each step, repeats merged, blanks removed.

    Args:
        scores: (n, T, C).
        characters: of the classes, as `read_characters` returns them. C is their number where they include the blank, one more where
            they do not, and two more where the last class is a space as well (PaddleOCR).
        blank: class of the blank; -1: the last.

    Returns:
        (n,) objects: strings; tuples of class numbers where there are no characters.

    Raises:
        DataError: the number of characters is none of these.

    Source: Graves et al., 2006, "Connectionist temporal classification", section 3.2 (best path decoding).

    >>> greedy(np.eye(3)[[[1, 1, 0, 1, 2]]], ["a", "b"]).tolist()
    ['aab']
    """
    classes = scores.shape[2]
    blank = range(classes)[blank]
    table = None if characters is None else _table(characters, classes, blank)
    best = scores.argmax(axis=2)
    kept = best != blank
    kept[:, 1:] &= best[:, 1:] != best[:, :-1]
    found = np.empty(len(best), dtype=object)
    for n, (row, keep) in enumerate(zip(best, kept, strict=True)):
        numbers = row[keep].tolist()
        found[n] = tuple(numbers) if table is None else "".join(table[number] for number in numbers)
    return found


def read_characters(path: str | Path) -> list[str]:
    """Read the characters of a recogniser, in the order of its classes.

    The file has one character per line, or all in one line; or it is JSON: a list, `{character: class}`, `{class: character}`, or an
    object of which one value is a list of the characters or their string.

    Raises:
        OptionError: the file cannot be read, or holds no characters.
    """
    try:
        text = read_text(path, "utf-8-sig")
    except (OSError, ValueError) as error:
        raise OptionError("the file of characters cannot be read", where=str(path), why=str(error)) from error
    found = _of_json(text) if text.lstrip()[:1] in ("[", "{") else None
    if found is None and Path(path).suffix.lower() != ".json":
        lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
        found = list(lines[0]) if len(lines) == 1 else lines
    if not found:
        raise OptionError(
            "the file holds no characters",
            where=str(path),
            hint="one character per line, or JSON: a list, or an object of characters and their classes",
        )
    return found


def _of_json(text: str) -> list[str] | None:
    """Return the characters of a JSON text; None where it is none, or of no form that is known."""
    try:
        content = parse_json(text)
    except ValueError:
        return None
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        if len(lists) == 1:
            content = lists[0]
        elif len(content) == 1 and isinstance(only := next(iter(content.values())), str) and len(only) > 1:
            content = list(only)
        else:
            content = _by_class(content)
    is_list = isinstance(content, list) and all(isinstance(one, str) for one in content)
    return content if is_list else None


def _by_class(content: dict[str, Any]) -> list[str] | None:
    """Return characters in the order of their classes, which are the values, or the keys; None where classes are missing."""
    if all(type(value) is int for value in content.values()):
        numbered = {value: key for key, value in content.items()}
    elif all(key.isdecimal() and isinstance(value, str) for key, value in content.items()):
        numbered = {int(key): value for key, value in content.items()}
    else:
        return None
    if not numbered or len(numbered) < len(content) or max(numbered) - min(numbered) >= len(numbered):
        return None
    return [numbered[number] for number in sorted(numbered)]


def _table(characters: Sequence[str], classes: int, blank: int) -> list[str]:
    """Return the character of each class."""
    table = list(characters)
    if classes == len(table) + 2:
        table.append(" ")
    if classes == len(table) + 1:
        table.insert(blank, "")
    if classes != len(table):
        raise DataError(
            "the characters do not fit the model",
            why=f"there are {len(characters)} characters, and the model has {classes} classes",
            hint="the model has as many classes as characters, one more (blank), or two more (blank and space)",
        )
    return table


def _pairs(predictions: Array, labels: Array) -> list[tuple[Any, Any]]:
    """Return predictions and labels as pairs of strings, or of tuples of integers."""
    found, wanted = [_sequence(one) for one in predictions], [_sequence(one) for one in labels]
    kinds = {isinstance(one, str) for one in found}, {isinstance(one, str) for one in wanted}
    if found and kinds[0] != kinds[1]:
        texts, numbers = ("labels", "predictions") if True in kinds[1] else ("predictions", "labels")
        raise DataError(
            f"the {texts} are text, and the {numbers} are numbers of classes",
            hint="name the file of characters" if texts == "labels" else "give labels as text",
        )
    return list(zip(found, wanted, strict=True))


def _sequence(one: Any) -> str | tuple[int, ...]:
    """Return a text as a string, and numbers as a tuple without the padding."""
    if isinstance(one, str):
        return str(one)
    return tuple(number for number in np.asarray(one).tolist() if number != PADDING)


def _distance() -> Callable[[Any, Any], int]:
    """Return rapidfuzz's edit distance."""
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise OptionError("the character error rate needs rapidfuzz", hint="pip install 'onnxprune[text]'") from error
    return Levenshtein.distance

"""Labels in tables: CSV, and lines of a file and a text."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from onnxprune.data.labels.values import Files, Labels, is_image_name, object_array, read_file
from onnxprune.errors import DataError
from onnxprune.reading import read_text

Rows = list[list[str]]
TABLES = frozenset({".csv", ".tsv", ".txt"})
SEPARATORS = ",;\t"
LARGEST = np.iinfo(np.int64).max
REPEATED = 2
"""Rows per different name, on average, from which names count as classes; else they count as texts."""
TASKS = ("classify", "binary", "multilabel", "regress", "embed", "ctc")
"""Tasks whose labels are in tables."""


def read_table(path: Path, images: Sequence[Path], task: str | None = None) -> Labels:
    """Read a table whose first column names images; further columns are their labels.

    The first row is a header where its first cell is neither the name of an image file nor that of one of the images.
    See `interpreted` for what the labels become.

    Raises:
        DataError: the table is not valid, or does not name an image.
    """
    rows = _rows(path)
    first = rows[0][0]
    known = is_image_name(first) or any(Path(first.strip()).name in (image.name, image.stem) for image in images)
    header = () if known else tuple(rows[0])
    rows = rows[1:] if header else rows
    if not rows or len(rows[0]) < 2:
        _wrong(path, "it has no column of labels", "give rows of an image file and its labels")
    numbers = Files((row[0] for row in rows), path).numbers(images)
    return interpreted([row[1:] for row in rows], header[1:], path, task).at([n for n in numbers if n is not None])


def read_column(path: Path, n: int, task: str | None = None) -> Labels:
    """Read a table of labels of n samples, in their order; with n + 1 rows the first is a header.

    Raises:
        DataError: the table is not valid, or has another number of rows.
    """
    rows = _rows(path)
    header = tuple(rows[0]) if len(rows) == n + 1 else ()
    rows = rows[1:] if header else rows
    if len(rows) != n:
        _wrong(path, f"it has {len(rows)} rows, there are {n} samples", "give one row per sample, in their order")
    return interpreted(rows, header, path, task).at(range(n))


class Column:
    """Labels of all rows of a table."""

    def __init__(self, values: np.ndarray[Any, Any], labels: Callable[[np.ndarray[Any, Any]], Labels]) -> None:
        self._values, self._labels = values, labels

    def at(self, rows: Sequence[int]) -> Labels:
        """Return the labels of some rows."""
        return self._labels(self._values[np.asarray(rows, dtype=np.int64)])


def interpreted(rows: Rows, header: Sequence[str], path: Path, task: str | None = None) -> Column:
    """Return what cells mean.

    | task | cells | labels |
    | --- | --- | --- |
    | ctc | any | text |
    | regress | numbers | numbers: (n,), or (n, k) with k columns |
    | multilabel | 0 and 1 | classes: (n, k), named by the header |
    | classify, binary, embed | whole numbers | classes: (n,) |
    | classify, binary, embed | others | classes: (n,), numbered in alphabetical order of their names |
    | none | several columns of 0 and 1 | as of multilabel |
    | none | whole numbers, in one column | as of classify |
    | none | other numbers | as of regress |
    | none | names that come twice or more, on average | as of classify |
    | none | other texts | text |

    Classes are numbered over all rows of the table, so that a part of the images has the same numbers.

    Raises:
        DataError: the cells do not fit the task, or rows differ in length.
    """
    if task is not None and task not in TASKS:
        _wrong(path, f"a table holds no labels of the task {task}", "give another label file")
    columns = len(rows[0])
    uneven = next((number for number, row in enumerate(rows) if len(row) != columns), None)
    if uneven is not None:
        _wrong(path, f"row {uneven + 1} has another number of cells than the first", "give all rows the same columns")
    if columns > 1 and task in ("ctc", "classify", "binary", "embed"):
        _wrong(path, f"it has {columns} columns of labels", "give one")
    first = [row[0].strip() for row in rows]
    if task == "ctc":
        return _texts(first)
    empty = next((number for number, row in enumerate(rows) if not all(cell.strip() for cell in row)), None)
    if empty is not None and task is not None:
        _wrong(path, f"a label of row {empty + 1} is empty", "label every image")
    numbers = _numbers(rows) if empty is None else None
    if numbers is not None and not np.isfinite(numbers).all():
        _wrong(path, "a label is NaN or infinity", "give finite numbers")
    if numbers is None and (columns > 1 or task in ("regress", "multilabel")):
        _wrong(path, "a label is not a number", "give numbers, or one column of names")
    if numbers is None:
        return _names(first, task)
    truths = bool(np.isin(numbers, (0, 1)).all())
    if task == "multilabel" and not truths:
        _wrong(path, "a label is neither 0 nor 1", "give a column of 0 and 1 per class")
    if task == "multilabel" or (task is None and columns > 1 and truths):
        return Column(numbers.astype(np.int64), lambda values: Labels(values, tuple(header), "classes"))
    whole = all(_is_whole(cell) for cell in first)
    if task in ("classify", "binary", "embed") and not whole:
        _wrong(path, "a label is not a whole number", "give class numbers or names")
    if columns == 1 and whole and task != "regress":
        whole_numbers = list(map(int, first))
        for number, one in enumerate(whole_numbers):
            if abs(one) > LARGEST:
                _wrong(path, f"a label of row {number + 1} is {one}, beyond 64 bits", "give class numbers, or names")
        return Column(np.array(whole_numbers, dtype=np.int64), lambda values: Labels(values, (), "classes"))
    return Column(numbers[:, 0] if columns == 1 else numbers, lambda values: Labels(values, (), "numbers"))


def _texts(texts: Sequence[str]) -> Column:
    return Column(object_array(texts), lambda values: Labels(values, (), "text"))


def _names(texts: Sequence[str], task: str | None) -> Column:
    names, numbers = np.unique(np.array(texts), return_inverse=True)
    if task is None and len(names) * REPEATED > len(texts):
        return _texts(texts)
    classes = tuple(map(str, names))
    return Column(numbers.astype(np.int64), lambda values: Labels(values, classes, "classes"))


def _numbers(rows: Rows) -> np.ndarray[Any, Any] | None:
    try:
        return np.array(rows, dtype=np.float64)
    except ValueError:
        return None


def _is_whole(text: str) -> bool:
    return text.lstrip("+-").isdecimal()


def _rows(path: Path) -> Rows:
    """Return the rows of a table that are not empty: separated by tabs, or as in the first line of a CSV file."""
    text = read_file(path, lambda: read_text(path, "utf-8-sig"), "UTF-8")
    lines = [line.rstrip("\r") for line in text.split("\n")]
    if path.suffix.lower() == ".csv":
        first = next((line for line in lines if line.strip()), "")
        separator = next((one for one in SEPARATORS if one in first), ",")
        rows = read_file(path, lambda: list(csv.reader(io.StringIO(text, newline=""), delimiter=separator)), "CSV")
    else:
        rows = [line.split("\t") for line in lines if line]
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if not rows:
        _wrong(path, "it is empty", "give a row per image")
    return rows


def _wrong(path: Path, why: str, hint: str) -> NoReturn:
    raise DataError("the labels are not valid", where=str(path), why=why, hint=hint)

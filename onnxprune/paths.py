"""Paths that a command reads and writes: an output overwrites nothing that the same command reads, and no other output of it."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.errors import OutputError, first_line
from onnxprune.fileio import check_destination, same_file
from onnxprune.options import QUANTITIES

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Suffixes of the images that are read from a folder."""
LABEL_SUFFIXES = (".xml", ".txt", ".png")
"""Suffixes of label files in a folder; the first of which files are named as the images is read."""
FAMILY = ("sweep.json", "planning.state", *(f"{quantity}-*" for quantity in QUANTITIES))
"""Names of the files that a sweep writes into its folder."""
NAME_SUFFIXES = (".yaml", ".yml")
"""Suffixes of the files with class names that are read beside labels."""


@dataclass(frozen=True)
class Input:
    """A file or folder that is read; `name` is the option that names it."""

    name: str
    path: Path


@dataclass(frozen=True)
class Output:
    """A file that is written, or the files of a folder whose names match `holds`; `name` is the option that names it."""

    name: str
    path: Path
    holds: tuple[str, ...] = ()

    def includes(self, path: Path) -> bool:
        """Tell whether a file is one of those that are written."""
        if not self.holds:
            return same_file(path, self.path)
        aliases = {path, Path(os.path.realpath(path))}
        return any(
            same_file(alias.parent, self.path) and any(fnmatch.fnmatchcase(alias.name, each) for each in self.holds)
            for alias in aliases
        )


def inputs(given: Iterable[tuple[str, Any]]) -> tuple[Input, ...]:
    """Return the inputs among option values, by the names of the options; arrays, functions and None are no files.

    >>> inputs([("--data", "load.py:samples"), ("--eval", None)])
    (Input(name='--data', path=PosixPath('load.py')),)
    """
    return tuple(Input(name, source(value)) for name, value in given if isinstance(value, str | os.PathLike) and value)


def outputs(given: Iterable[tuple[str, Path | None]]) -> tuple[Output, ...]:
    """Return the outputs among option values, by the names of the options."""
    return tuple(Output(name, path) for name, path in given if path is not None)


def source(value: str | os.PathLike[str]) -> Path:
    """Return the file that a value names, the Python file where it names a function."""
    text = os.fspath(value)
    return Path(text.rpartition(":")[0]).expanduser() if is_function(text) else Path(text)


def is_function(text: str | os.PathLike[str]) -> bool:
    """Tell whether a text names a function of a Python file.

    >>> is_function("samples.py:load"), is_function("samples.npz")
    (True, False)
    """
    name, colon, function = os.fspath(text).rpartition(":")
    return bool(colon) and name.endswith(".py") and function.isidentifier()


def numbered(name: str, path: Path) -> Output:
    """Return the outputs beside `path` that have its name and a number: `state.pt.1`, `state.pt.2`, …"""
    return Output(name, path.parent, (f"{glob.escape(path.name)}.[0-9]*",))


def check_outputs(written: Sequence[Output], read: Sequence[Input]) -> None:
    """Refuse, before any work is done, outputs that cannot be written or would overwrite an input or one another.

    Links are followed. An output in a folder of images or labels is refused where its suffix is one of those that are read there.

    Raises:
        OutputError: with the reason.
    """
    try:
        for place, output in enumerate(written):
            for each in read:
                if _overwrites(output, each.path):
                    raise OutputError(
                        "the output would overwrite an input",
                        where=str(output.path),
                        why=f"it is the path of {output.name}, and {each.name} reads {each.path}",
                        hint="give another path" + (f" with {output.name}" if output.name.startswith("-") else ""),
                    )
            for other in written[:place]:
                if _clash(output, other):
                    raise OutputError(
                        f"{output.name} would overwrite another result",
                        where=str(output.path),
                        why=f"it is the path of {other.name} as well",
                        hint="give the two different paths",
                    )
        for output in written:
            if not output.holds:
                check_destination(output.path)
    except (OSError, ValueError) as error:
        raise OutputError("the output cannot be written", why=first_line(error), hint="give another path") from error


def _overwrites(output: Output, read: Path) -> bool:
    if output.includes(read):
        return True
    if (
        output.holds
        or output.path.suffix.lower() not in {*IMAGE_SUFFIXES, *LABEL_SUFFIXES, *NAME_SUFFIXES}
        or not os.path.isdir(read)
    ):
        return False
    inside = Path(os.path.realpath(output.path)).is_relative_to(os.path.realpath(read))
    return inside or output.path.absolute().is_relative_to(read.absolute())


def _clash(a: Output, b: Output) -> bool:
    if a.holds and b.holds:
        return a.path == b.path and bool({*a.holds} & {*b.holds})
    return same_file(a.path, b.path) or a.includes(b.path) or b.includes(a.path)

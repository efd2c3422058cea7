"""Functions that a user names as `file.py:function`."""

from __future__ import annotations

import contextlib
import importlib.util
import linecache
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxprune.errors import DataError, OnnxPruneError, OptionError, first_line

PACKAGE = Path(__file__).resolve().parents[1]
"""Folder of this program, whose files are none of the user's."""


def load(text: str) -> Callable[..., Any]:
    """Return the function that `file.py:function` names.

    The file is executed on each call, with its folder in front of `sys.path`, so that it imports the modules beside it. It stays out of
    `sys.modules`, so that worker processes get its functions by value.

    Args:
        text: path of a Python file, absolute or relative to the working folder; a colon; the name of a function in it.

    Raises:
        OptionError: there is no such file or function, or the file cannot be imported; the message names the line that failed.
    """
    name, colon, function = text.rpartition(":")
    if not colon or not name or not function.isidentifier():
        raise OptionError("a function is named as file.py:function", where=text)
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise OptionError("there is no such file", where=name, why=f"the function {function} was looked for in it")
    found = getattr(_imported(path, name), function, None)
    if not callable(found):
        why = f"the file has no {function}" if found is None else f"{function} is of type {type(found).__name__}"
        raise OptionError("there is no such function", where=text, why=why)
    return found  # type: ignore[no-any-return]


def called(text: str) -> Any:
    """Return what a function of the user returns, called without arguments; what it prints goes to stderr.

    Raises:
        OptionError: there is no such function.
        DataError: it fails; the message names the line.
    """
    function = load(text)
    with failing(text, anywhere=True):
        return function()


def batches_of(iterable: Iterable[Any], text: str) -> Iterator[Any]:
    """Yield the batches of an iterable that a function of the user returned; what it prints goes to stderr.

    Raises:
        DataError: it fails; the message names the line.
    """
    end = object()
    with failing(text, anywhere=True):
        iterator = iter(iterable)
    while True:
        with failing(text, anywhere=True):
            batch = next(iterator, end)
        if batch is end:
            return
        yield batch


@contextlib.contextmanager
def failing(text: str, *, anywhere: bool = False) -> Iterator[None]:
    """Name the line of the user's file where code in it fails; other errors pass, unless the code of the user is called directly.

    Args:
        text: `file.py:function`.
        anywhere: whether every error is one of the user's code, also where no line of the file is in its traceback.

    Raises:
        DataError: the code of the user failed, or left the program.
    """
    path = Path(text.rpartition(":")[0]).expanduser().resolve()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except OnnxPruneError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not anywhere and not any(frame.filename == str(path) for frame in frames):
            raise
        raise DataError(
            "the function of your own failed",
            where=text,
            why=_failure(error, path, beside=True),
            hint="it takes no arguments, and returns arrays by input name, with or without `labels`, or batches of them",
        ) from error


def _imported(path: Path, name: str) -> ModuleType:
    """Import a file."""
    own = f"onnxprune_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(own, path)
    if spec is None or spec.loader is None:
        raise OptionError("the file is no Python file", where=name, hint="its name ends in .py")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent)
    sys.path.insert(0, folder)
    sys.modules[own] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise OptionError("the file cannot be imported", where=name, why=_failure(error, path)) from error
    finally:
        sys.modules.pop(own, None)
        if folder in sys.path:
            sys.path.remove(folder)
    return module


def _failure(error: BaseException, path: Path, *, beside: bool = False) -> str:
    """Return the line of the file that failed, and the error; of another file where no line of it is known, if `beside`."""
    said = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, SyntaxError) and error.filename == str(path):
        number = error.lineno
    else:
        frames = traceback.extract_tb(error.__traceback__)
        number = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
    if not number:
        others = [f for f in traceback.extract_tb(error.__traceback__) if not Path(f.filename).is_relative_to(PACKAGE)]
        if not beside or not others:
            return said
        return f"{Path(others[-1].filename).name}, line {others[-1].lineno}: {others[-1].line}: {said}"
    linecache.checkcache(str(path))
    return f"line {number}: {linecache.getline(str(path), number).strip()}: {said}"

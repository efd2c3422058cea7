"""Parameter types of the command line, their shell completion, and groups of options that become one argument."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from onnxprune.options.metadata import AUTO

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]


def together(*decorators: Decorator) -> Decorator:
    """Return one decorator for several options; `--help` lists the options in this order."""
    return lambda function: functools.reduce(lambda made, decorator: decorator(made), reversed(decorators), function)


def option_group(argument: str, build: Callable[[dict[str, Any]], Any], *options: Decorator) -> Decorator:
    """Return a decorator for options whose values, by name, `build` turns into one argument of the command."""
    decorate = together(*options)
    names = [parameter.name for parameter in click.command()(decorate(lambda: None)).params if parameter.name]

    def wrap(function: Command) -> Command:
        @functools.wraps(function)
        def call(**values: Any) -> Any:
            own = {name: values.pop(name) for name in names}
            return function(**{argument: build(own)}, **values)

        return decorate(call)

    return wrap


class NumberOrAuto(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5
    """A whole number, or `auto`."""

    name = "integer|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return `auto` or the number."""
        return value if value == AUTO else click.INT.convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete `auto`."""
        return [CompletionItem(AUTO)] if AUTO.startswith(incomplete) else []


class Words(click.ParamType):  # type: ignore[type-arg]
    """Any text; a shell completes the known words.

    Args:
        known: words, or beginnings of the text.
        separator: between several words; empty where the text is one word.
        file: whether the text may be a file name as well, of a file that is read.
    """

    name = "text"

    def __init__(self, known: Sequence[str], *, separator: str = "", file: bool = False) -> None:
        self.known, self._separator, self.reads = known, separator, file

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the last word."""
        before, separator, last = incomplete.rpartition(self._separator) if self._separator else ("", "", incomplete)
        taken = before.split(self._separator) if before else []
        found = [word for word in self.known if word.startswith(last) and word not in taken]
        items = [CompletionItem(f"{before}{separator}{word}") for word in found]
        return items if items or not self.reads else [CompletionItem(incomplete, type="file")]


class File(click.Path):
    """A path that click does not check: the function that opens it has the better message.

    `Command` compares the paths that a command reads with those that it writes.

    Args:
        also: words that are completed as well, and name no file.
        written: whether the command writes there; else it reads there.
        holds: patterns of the names of the files that it writes, where the path is a folder.
        text: whether the value stays a text.
    """

    def __init__(self, *also: str, written: bool = False, holds: tuple[str, ...] = (), text: bool = False) -> None:
        super().__init__(path_type=str if text else Path, readable=False)
        self.known, self.reads, self.writes, self.holds = also, not written, written, holds

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete files and the words."""
        words = [CompletionItem(word) for word in self.known if incomplete and word.startswith(incomplete)]
        return words or super().shell_complete(ctx, param, incomplete)

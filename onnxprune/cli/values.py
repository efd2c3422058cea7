"""Types of what options take, where click has none, and what a shell completes for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from onnxprune.dials import AUTO


class NumberOrAuto(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5
    """A whole number, or `auto`."""

    name = "integer|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return one of both."""
        return value if value == AUTO else click.INT.convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete `auto`."""
        return [CompletionItem(AUTO)] if AUTO.startswith(incomplete) else []


class Words(click.ParamType):  # type: ignore[type-arg]
    """A text of which some beginnings, or whole words, are known.

    Args:
        known: what a shell completes.
        separator: between several of them; none where one is all.
        file: whether it may be the name of a file as well.
    """

    name = "text"

    def __init__(self, known: Sequence[str], *, separator: str = "", file: bool = False) -> None:
        self._known, self._separator, self._file = known, separator, file

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text as it is."""
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the last word."""
        before, separator, last = incomplete.rpartition(self._separator) if self._separator else ("", "", incomplete)
        taken = before.split(self._separator) if before else []
        found = [word for word in self._known if word.startswith(last) and word not in taken]
        items = [CompletionItem(f"{before}{separator}{word}") for word in found]
        return items if items or not self._file else [CompletionItem(incomplete, type="file")]


class File(click.Path):
    """A path, which those who open it can say better what is wrong with than click.

    Args:
        also: words that are no file, and are completed as well.
    """

    def __init__(self, *also: str) -> None:
        super().__init__(path_type=Path, readable=False)
        self._also = also

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete files, and the words."""
        words = [CompletionItem(word) for word in self._also if incomplete and word.startswith(incomplete)]
        return words or super().shell_complete(ctx, param, incomplete)

"""The callback through which a run reports progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class ProgressCallback(Protocol):
    """Called as a run progresses."""

    def __call__(self, stage: str, share: float | None, detail: str = "") -> None:
        """Take the name of a stage, the share of it that is done (None: unknown), and a detail."""


def quiet(stage: str, share: float | None, detail: str = "") -> None:
    """Report nothing."""


def share_of(on_stage: ProgressCallback, name: str) -> Callable[[float], None]:
    """Return a callback that reports the share of one stage that is done."""
    return lambda share: on_stage(name, share)

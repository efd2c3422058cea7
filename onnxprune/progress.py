"""How a run tells what it is doing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class ProgressCallback(Protocol):
    """Called as a run goes on."""

    def __call__(self, stage: str, share: float | None, detail: str = "") -> None:
        """Take the name of a stage, where it is known the share of it that is done, and how it goes."""


def quiet(stage: str, share: float | None, detail: str = "") -> None:
    """Say nothing."""


def share_of(on_stage: ProgressCallback, name: str) -> Callable[[float], None]:
    """Return what tells the share of one stage that is done."""
    return lambda share: on_stage(name, share)

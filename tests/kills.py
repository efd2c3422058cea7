"""Kills and failures at each system call that changes files."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

STEPS = ("open", "fsync", "link", "replace", "unlink", "close", "chmod")
"""Functions of `os` that change files, or say that a change failed."""


def at_step(number: int, act: Callable[[], None], patched: pytest.MonkeyPatch) -> list[str]:
    """Do something at a system call, before it; return the list of calls, which grows."""
    calls: list[str] = []

    def counted(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*args: object, **kwargs: object) -> object:
            calls.append(name)
            if len(calls) == number:
                act()
            return real(*args, **kwargs)

        return call

    for name in STEPS:
        patched.setattr(os, name, counted(name))
    return calls


def killed(work: Callable[[], object], number: int) -> bool:
    """Kill a copy of this process at a step of its work; return whether the work had as many steps."""
    child = os.fork()
    if child == 0:
        try:
            at_step(number, lambda: os._exit(9), pytest.MonkeyPatch())
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked for each kill")

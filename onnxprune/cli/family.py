"""Options that several commands share, and how the values of some of them become one argument of a command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]


def together(*decorators: Decorator) -> Decorator:
    """Return one decorator for several; `--help` lists their options in this order."""

    def wrap(function: Command) -> Command:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return wrap


def family(argument: str, build: Callable[[dict[str, Any]], Any], *options: Decorator) -> Decorator:
    """Return a decorator for options that a command takes as one argument.

    Args:
        argument: name of the argument.
        build: makes it from the values of the options, by name, when the command runs.
        options: decorators of click.
    """
    decorate = together(*options)
    names = [parameter.name for parameter in click.command()(decorate(lambda: None)).params]

    def wrap(function: Command) -> Command:
        @functools.wraps(function)
        def call(**values: Any) -> Any:
            own = {name: values.pop(name) for name in names if name is not None}
            return function(**{argument: build(own)}, **values)

        return decorate(call)

    return wrap

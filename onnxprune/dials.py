"""Metadata of the fields of options: what each takes, how the command line writes it, and what help and docs say of it.

`check` validates by it, `onnxprune.cli.dials` makes the options of the commands from it, and `tools/options.py` the tables of the docs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, TypeVar

from onnxprune.errors import OptionError

Kind = TypeVar("Kind", bound=type)
AUTO = "auto"


@dataclass(frozen=True)
class Dial:
    """Metadata of a field.

    Attributes:
        help: what the field means, for `--help`, docs and docstrings.
        more: what only the docs add, in Markdown.
        group: options that a command takes together.
        flag: name of the option; that of the field where empty; None: the field has no option of its own.
        metavar: placeholder for the value.
        low, high: range of a number, or least length of a sequence.
        above: whether `low` itself is refused.
        choices: the words that are allowed.
        known: keys of a mapping, or words that a shell completes where any text is allowed.
        listed: whether the field holds several values.
        separator: between several values of one option; empty: the option is repeated.
        auto: whether `auto` is allowed beside numbers or sequences.
        shown: the default as the command line writes it; None: the default itself.
        decided: what `auto` or None stands for, for the docs.
        factor: units of the field in one unit of the option.
        example: values that are allowed, for a hint; in a policy the value it is written with.
        active: whether a new policy sets the value.
    """

    help: str
    more: str = ""
    group: str = ""
    flag: str | None = ""
    metavar: str | None = None
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    choices: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    listed: bool = False
    separator: str = ""
    auto: bool = False
    shown: str | None = None
    decided: str = ""
    factor: float = 1.0
    example: str = ""
    active: bool = False

    @property
    def range(self) -> str:
        """The range, as a hint says it."""
        if self.high == math.inf:
            return f"{self.low:g} or more"
        return f"more than {self.low:g}, at most {self.high:g}" if self.above else f"{self.low:g} to {self.high:g}"

    def contains(self, number: Any, kind: type | None = float) -> bool:
        """Tell whether a number is of its kind, finite, and in the range; any text is where the kind is None."""
        if kind is None:
            return True
        if not isinstance(number, Integral if kind is int else Real) or not math.isfinite(number):
            return False
        value = float(number)
        return (value > self.low if self.above else value >= self.low) and value <= self.high


def dial(default: Any, help: str, **how: Any) -> Any:
    """Return a dataclass field with a `Dial` as its metadata; `dict` as the default stands for an empty mapping."""
    metadata = {"dial": Dial(help, **how)}
    return (
        field(default_factory=dict, metadata=metadata) if default is dict else field(default=default, metadata=metadata)
    )


def dials(kind: type) -> Iterator[tuple[Field[Any], Dial, str]]:
    """Yield each field of a dataclass that has a dial, the dial, and the name of its option."""
    for each in fields(kind):
        if "dial" in each.metadata:
            found = each.metadata["dial"]
            yield each, found, found.flag or each.name.replace("_", "-")


def number_type(each: Field[Any]) -> type | None:
    """Return int or float for a field of numbers."""
    return {"int": int, "float": float}.get(str(each.type).partition(" ")[0])


def documented(kind: Kind) -> Kind:
    """Add the fields of a dataclass and their help to its docstring."""
    lines = (f"    {each.name}: {found.help}" for each, found, _ in dials(kind))
    kind.__doc__ = "\n".join([kind.__doc__ or "", "", "Attributes:", *lines])
    return kind


def check(values: Any) -> None:
    """Check each field of a dataclass against its dial.

    Raises:
        OptionError: a value that the field does not take.
    """
    for each, found, flag in dials(type(values)):
        value = getattr(values, each.name)
        if (value is None and each.default is None) or (found.auto and value == AUTO):
            continue
        if each.default_factory is dict:
            _check_mapping(found, flag, value)
        elif found.listed:
            _check_list(found, flag, value)
        elif found.choices:
            if value not in found.choices:
                raise OptionError(f"unknown {flag} {value!r}", hint=f"choose one of {', '.join(found.choices)}")
        elif not found.contains(value, number_type(each)):
            text = f"{value:g}" if isinstance(value, Real) else repr(value)
            raise OptionError(f"--{flag} {text} is out of range", hint=f"give {found.range}")


def _check_mapping(dial: Dial, flag: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise OptionError(f"{flag} is {value!r}", hint='give a mapping, for instance {"flops": 0.5}')
    for key, amount in value.items():
        if key not in dial.known:
            raise OptionError(f"--{flag} does not know {key!r}", hint=f"give one of {', '.join(dial.known)}")
        if not isinstance(amount, Real):
            raise OptionError(f"{flag} of {key} is {amount!r}", hint="give a number")
        if not dial.contains(amount) or amount == dial.high:
            hint = f"give {dial.example.format(key)}"
            raise OptionError(f"--{flag} {key}={float(amount):.4g} is out of range", hint=hint)


def _check_list(dial: Dial, flag: str, value: Any) -> None:
    if not dial.choices:
        if isinstance(value, str):
            raise OptionError(f"{flag} is {value!r}", hint="give a list of patterns")
        return
    unknown = [] if isinstance(value, str) else [str(entry) for entry in value if entry not in dial.choices]
    if isinstance(value, str) or unknown or len(value) < dial.low:
        raise OptionError(
            f"unknown {flag} {', '.join(unknown) or repr(value)}", hint=f"choose some of {', '.join(dial.choices)}"
        )

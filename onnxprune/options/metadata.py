"""Metadata of the fields of an options class, written once: validation, click options, docstrings and the docs read it.

`onnxprune.cli.options` makes the options of the commands from it, and `tools/options.py` the tables of the docs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, TypeVar

from onnxprune.errors import OptionError

Kind = TypeVar("Kind", bound=type)
AUTO = "auto"


@dataclass(frozen=True)
class OptionMetadata:
    """Metadata of one field.

    Attributes:
        help: meaning and unit of the field, for `--help`, docs and docstrings.
        more: Markdown that only the docs add.
        group: name of the click options that commands share.
        flag: name of the click option; empty: the field name; None: no click option.
        metavar: placeholder for the value.
        low, high: range of a number, or least length of a sequence.
        above: whether `low` itself is refused.
        choices: the words that are allowed.
        known: keys of a mapping, or words that a shell completes where any text is allowed.
        listed: whether the field holds several values.
        separator: between several values of one click option; empty: the option is repeated.
        auto: whether `auto` is allowed beside numbers or sequences.
        shown: the default as the command line writes it; None: the default itself.
        decided: meaning of `auto` or None.
        factor: units of the field in one unit of the click option.
        example: allowed values, for a hint; in a policy template, the value.
        active: whether a policy template sets the value.
        texts: whether the values of a mapping may be texts, which their reader checks.
        file: whether the click option takes a file that is read.
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
    texts: bool = False
    file: bool = False

    @property
    def range(self) -> str:
        """The range in words."""
        if self.high == math.inf:
            least = f"{self.low:,.0f}" if self.low >= 1e6 else f"{self.low:g}"
            return f"more than {least}" if self.above else f"{least} or more"
        return f"more than {self.low:g}, at most {self.high:g}" if self.above else f"{self.low:g} to {self.high:g}"

    @property
    def python_help(self) -> str:
        """The help, with the unit of the field where the click option has another one."""
        return self.help if self.factor == 1 else f"{self.help} In bytes."

    def contains(self, number: Any, kind: type | None = float) -> bool:
        """Tell whether a number is of its kind (None: any value), finite, and in the range."""
        if kind is None:
            return True
        if not isinstance(number, Integral if kind is int else Real) or not math.isfinite(number):
            return False
        value = float(number)
        return (value > self.low if self.above else value >= self.low) and value <= self.high


def option(default: Any, help: str, **metadata: Any) -> Any:
    """Return a dataclass field with `OptionMetadata`; the default `dict` stands for an empty mapping."""
    made = {"default_factory": dict} if default is dict else {"default": default}
    return field(metadata={"option": OptionMetadata(help, **metadata)}, **made)


def option_fields(kind: type) -> Iterator[tuple[Field[Any], OptionMetadata, str]]:
    """Yield each field of a dataclass that has metadata, the metadata, and the name of its click option."""
    for each in fields(kind):
        if "option" in each.metadata:
            found = each.metadata["option"]
            yield each, found, found.flag or each.name.replace("_", "-")


def number_type(each: Field[Any]) -> type | None:
    """Return int or float for a field of numbers, else None."""
    return {"int": int, "float": float}.get(str(each.type).partition(" ")[0])


def documented(kind: Kind) -> Kind:
    """Add type, default, help, allowed values and range of each field to the docstring of a dataclass."""
    lines = [inspect.cleandoc(kind.__doc__ or ""), "", "Attributes:"]
    for each, found, _ in option_fields(kind):
        mapping = each.default is MISSING
        default = "{}" if mapping else repr(each.default)
        text = f"    {each.name} ({each.type}, default {default}): {found.python_help}"
        if words := found.known if mapping else found.choices:
            text += f" Allowed: {', '.join(words)}."
        if found.low > -math.inf and not found.listed and not mapping:
            text += f" Range: {found.range}."
        if found.decided:
            text += f" {AUTO if each.default == AUTO else each.default}: {found.decided}."
        lines.append(text)
    kind.__doc__ = "\n".join(lines)
    return kind


def check(values: Any) -> None:
    """Check each field of a dataclass against its metadata.

    Raises:
        OptionError: a value is not allowed.
    """
    for each, found, flag in option_fields(type(values)):
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
            example = f", for instance {found.shown}" if found.shown else ""
            raise OptionError(f"--{flag} {text} is out of range", hint=f"give {found.range}{example}")


def _check_mapping(found: OptionMetadata, flag: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise OptionError(f"{flag} is {value!r}", hint='give a mapping, for instance {"flops": 0.5}')
    if not found.known:
        _check_shapes(flag, value)
        return
    for key, amount in value.items():
        if key not in found.known:
            raise OptionError(f"--{flag} does not know {key!r}", hint=f"give one of {', '.join(found.known)}")
        if found.texts:
            continue
        if not isinstance(amount, Real):
            raise OptionError(f"{flag} of {key} is {amount!r}", hint="give a number")
        if not found.contains(amount) or amount == found.high:
            hint = f"give {found.example.format(key)}"
            raise OptionError(f"--{flag} {key}={float(amount):.4g} is out of range", hint=hint)


def _check_shapes(flag: str, value: Mapping[str, Any]) -> None:
    for name, shape in value.items():
        sizes = () if isinstance(shape, str) else tuple(shape)
        if not sizes or not all(isinstance(size, Integral) and int(size) > 0 for size in sizes):
            hint = "give whole numbers above 0, one per axis, for instance (1, 3, 640, 640)"
            raise OptionError(f"{flag} of {name} is {shape!r}", hint=hint)


def _check_list(found: OptionMetadata, flag: str, value: Any) -> None:
    if not found.choices:
        if isinstance(value, str):
            raise OptionError(f"{flag} is {value!r}", hint="give a list of patterns")
        return
    unknown = [] if isinstance(value, str) else [str(entry) for entry in value if entry not in found.choices]
    if isinstance(value, str) or unknown or len(value) < found.low:
        raise OptionError(
            f"unknown {flag} {', '.join(unknown) or repr(value)}", hint=f"choose some of {', '.join(found.choices)}"
        )

"""Options of commands, made from the fields of `Options`, `Training` and `GateLimits`: see `onnxprune.dials`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field
from functools import partial
from pathlib import Path
from typing import Any

import click

from onnxprune.cli.common import PATH
from onnxprune.cli.family import Decorator, family
from onnxprune.cli.terminal import NOTHING
from onnxprune.cli.texts import parse_bounds, parse_budget, parse_kinds, parse_memory, parse_targets
from onnxprune.cli.values import NumberOrAuto, Words
from onnxprune.dials import AUTO, Dial, dials, number_type
from onnxprune.errors import OptionError
from onnxprune.evaluation.policy import GateLimits, merged, read
from onnxprune.options import GRANULARITIES, Options, Training


def _kinds(text: str) -> tuple[str, ...] | str:
    return text if text == AUTO else parse_kinds(text)


PARSERS: dict[str, Callable[[Any], Any]] = {
    "reduce": partial(parse_targets, "reduce"),
    "limit": partial(parse_targets, "limit"),
    "granularity": lambda text: GRANULARITIES if text == AUTO else tuple(part.strip() for part in text.split(",")),
    "memory": parse_memory,
    "augment": _kinds,
    "train_augment": _kinds,
    "domain": lambda names: names or None,
}
"""Readers of options that click has no type for, by the parameter of the option."""


def _type(each: Field[Any], dial: Dial) -> Any:
    if each.default_factory is not MISSING:
        return Words([f"{word}=" for word in dial.known])
    if dial.separator:
        return Words((AUTO, *(("none",) if dial.auto else ()), *dial.choices), separator=dial.separator)
    if dial.choices:
        return click.Choice(dial.choices)
    if dial.known:
        return Words(dial.known)
    if dial.shown is not None:
        return str
    return NumberOrAuto() if dial.auto else number_type(each)


def _option(each: Field[Any], dial: Dial, flag: str) -> Decorator:
    repeated = each.default_factory is not MISSING or (dial.listed and not dial.separator)
    default = each.default if dial.shown is None else dial.shown
    shown: dict[str, Any] = {} if repeated or default is None else {"default": default, "show_default": True}
    end = f" {'auto' if default == AUTO else 'Default'}: {dial.decided}." if dial.decided else ""
    return click.option(
        f"--{flag}", type=_type(each, dial), multiple=repeated, metavar=dial.metavar, help=dial.help + end, **shown
    )


def options_of(kind: type, *groups: str) -> list[Decorator]:
    """Return the options for the fields of a dataclass, of some groups."""
    return [_option(*found) for found in dials(kind) if found[1].flag is not None and found[1].group in groups]


def build(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of fields from those of their options."""
    result = {}
    for each, dial, flag in dials(kind):
        name = flag.replace("-", "_")
        if name in values:
            value = values[name]
            value = PARSERS.get(name, lambda same: same)(value)
            result[each.name] = value * dial.factor if dial.factor != 1 and value is not None else value
    return result


def _options(values: dict[str, Any]) -> Options:
    return Options(**build(Options, values))


STUDIED = family("options", _options, *options_of(Options, "structure"))
"""Options of `sensitivity`."""
PLANNED = family(
    "options", _options, *options_of(Options, "targets", "granularity", "selection", "structure", "repair")
)
"""Options of `plan` and `prune`."""
SWEPT = family("options", _options, *options_of(Options, "selection", "structure", "repair"))
"""Options of `sweep`, which has targets of its own."""
FIELDS = {flag: (each, dial, flag) for each, dial, flag in dials(Options)}
IGNORE, SEED = (_option(*FIELDS[flag]) for flag in ("ignore", "seed"))

CHECKPOINT = click.option(
    "--checkpoint",
    type=PATH,
    help="File for the state of the training; the same command then goes on after an interrupt.",
)
CLAMP = click.option(
    "--clamp", multiple=True, metavar="[GLOB=]LO,HI", help="Range of the weights with such names; may be repeated."
)
MAX_NORM = click.option(
    "--max-norm",
    multiple=True,
    metavar="[GLOB=]R",
    help="Largest norm of each filter of such weights; may be repeated.",
)


def _training(values: dict[str, Any]) -> Training | None:
    """Return how to train; None where nothing is to be trained."""
    amount = values.pop("amount")
    found = build(Training, values)
    bounds = parse_bounds(values["clamp"], values["max_norm"])
    if amount is None:
        if Training(**found, bounds=bounds) != Training():
            raise OptionError(
                "there is nothing to train, but options say how", hint="give --finetune, for instance --finetune 3min"
            )
        return None
    return Training(**found, bounds=bounds, **parse_budget(amount))


def trained(*flags: str, **how: Any) -> Decorator:
    """Return the family of all options of training, with one for its length."""
    amount = click.option(*flags, "amount", metavar="AMOUNT", **how)
    return family("training", _training, amount, *options_of(Training, ""), CLAMP, MAX_NORM)


def kept(checkpoint: Path | None) -> str:
    """Say what an interrupted training leaves behind."""
    if checkpoint is None or not checkpoint.exists():
        return NOTHING
    return f"no model was written; the same command goes on from {checkpoint}"


def _limits(values: dict[str, Any]) -> GateLimits:
    limits = GateLimits(**build(GateLimits, values))
    return limits if values["policy"] is None else merged(read(values["policy"]), limits)


LIMITS = family(
    "limits",
    _limits,
    click.option("--policy", type=PATH, help="TOML file with limits; options go before what it says."),
    *options_of(GateLimits, ""),
)
"""Options of `check`."""

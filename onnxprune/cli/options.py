"""Click options made from the fields of `Options`, `Training`, `Judging` and `GateLimits`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from onnxprune.cli.common import PATH, WRITTEN
from onnxprune.cli.parameters import Decorator, File, NumberOrAuto, Words, option_group
from onnxprune.cli.parsers import (
    parse_amounts,
    parse_bounds,
    parse_budget,
    parse_kinds,
    parse_memory,
    parse_shapes,
    parse_targets,
)
from onnxprune.cli.terminal import NOTHING
from onnxprune.errors import OptionError
from onnxprune.evaluation.policy import IN_MB, GateLimits, Policy, limit_of, merged, read
from onnxprune.options import ALL, GRANULARITIES, Options, Training
from onnxprune.options.judging import Judging
from onnxprune.options.metadata import AUTO, OptionMetadata, number_type, option_fields


def _kinds(text: str) -> tuple[str, ...] | str:
    return text if text == AUTO else parse_kinds(text)


def _granularities(text: str) -> tuple[str, ...] | str:
    if text == AUTO:
        return text
    return GRANULARITIES if text == ALL else tuple(part.strip() for part in text.split(","))


PARSERS: dict[str, Callable[[Any], Any]] = {
    "reduce": partial(parse_targets, "reduce"),
    "limit": partial(parse_targets, "limit"),
    "granularity": _granularities,
    "memory": parse_memory,
    "shape": parse_shapes,
    "augment": _kinds,
    "train_augment": _kinds,
    "domain": lambda names: names or None,
    "min": partial(parse_amounts, "min"),
    "max": partial(parse_amounts, "max"),
    **{name: partial(limit_of, name) for name in IN_MB},
}
"""Parsers of the options that click has no type for, by parameter name."""


def _type(each: Field[Any], found: OptionMetadata) -> Any:
    if each.default_factory is not MISSING and found.known:
        return Words([f"{word}=" for word in found.known])
    if found.separator:
        word = ALL if found.low >= 1 else "none"  # a list that may be empty is written as none
        return Words((AUTO, word, *found.choices), separator=found.separator)
    if found.choices:
        return click.Choice(found.choices)
    if found.known:
        return Words(found.known)
    if found.file:
        return File(text=True)
    if found.shown is not None or found.factor != 1:
        return str
    return NumberOrAuto() if found.auto else number_type(each)


def _option(each: Field[Any], found: OptionMetadata, flag: str) -> Decorator:
    repeated = each.default_factory is not MISSING or (found.listed and not found.separator)
    default = each.default if found.shown is None else found.shown
    shown: dict[str, Any] = {} if repeated or default is None else {"default": default, "show_default": True}
    end = f" {'auto' if default == AUTO else 'Default'}: {found.decided}." if found.decided else ""
    return click.option(
        f"--{flag}", type=_type(each, found), multiple=repeated, metavar=found.metavar, help=found.help + end, **shown
    )


def _options_of(kind: type, *groups: str) -> list[Decorator]:
    return [_option(*entry) for entry in option_fields(kind) if entry[1].flag is not None and entry[1].group in groups]


def _fields(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Return field values from the values of click options."""
    result = {}
    for each, _, flag in option_fields(kind):
        name = flag.replace("-", "_")
        if name in values:
            value = PARSERS[name](values[name]) if name in PARSERS else values[name]
            result[each.name] = value
    return result


def _options(values: dict[str, Any]) -> Options:
    return Options(**_fields(Options, values))


STUDIED = option_group("options", _options, *_options_of(Options, "structure"))
"""Options of `sensitivity`."""
PLANNED = option_group(
    "options", _options, *_options_of(Options, "targets", "granularity", "selection", "structure", "repair")
)
"""Options of `plan` and `prune`."""
SWEPT = option_group("options", _options, *_options_of(Options, "selection", "structure", "repair"))
"""Options of `sweep`, which has its own option for targets."""
IGNORE, SEED, TOLERATE, _SHAPE = (
    _option(*entry)
    for name in ("ignore", "seed", "tolerate", "shape")
    for entry in option_fields(Options)
    if entry[2] == name
)

SHAPE = option_group("shape", lambda values: parse_shapes(values["shape"]), _SHAPE)
CHECKPOINT = click.option(
    "--checkpoint",
    type=WRITTEN,
    help="Write the training state here; the same command resumes an interrupted training.",
)
RESUME = click.option(
    "--resume", is_flag=True, help="Go on from the work of the same command that broke off, kept in OUTPUT.state."
)
CLAMP = click.option(
    "--clamp", multiple=True, metavar="[GLOB=]LO,HI", help="Range of the weights that match GLOB; may be repeated."
)
MAX_NORM = click.option(
    "--max-norm",
    multiple=True,
    metavar="[GLOB=]R",
    help="Largest norm of each filter of the weights that match GLOB; may be repeated.",
)


def _training(values: dict[str, Any]) -> Training | None:
    """Return the training options; None where no amount is given."""
    amount = values.pop("amount")
    given = {**_fields(Training, values), "bounds": parse_bounds(values["clamp"], values["max_norm"])}
    if amount is not None:
        return Training(**given, **parse_budget(amount))
    if Training(**given) != Training():
        raise OptionError(
            "there are options of a training, but no training", hint="give --finetune, for instance --finetune 3min"
        )
    return None


def trained(*flags: str, **amount: Any) -> Decorator:
    """Return the group of all options of training; `flags` and `amount` make the option for its length."""
    length = click.option(*flags, "amount", metavar="AMOUNT", **amount)
    return option_group("training", _training, length, *_options_of(Training, ""), CLAMP, MAX_NORM)


def kept(checkpoint: Path | None) -> str:
    """Say what an interrupted training leaves on disk."""
    if checkpoint is None or not checkpoint.exists():
        return NOTHING
    return f"no model was written; the same command goes on from {checkpoint}"


def _policy(values: dict[str, Any]) -> Policy:
    limits = GateLimits(**_fields(GateLimits, values))
    if values["policy"] is None:
        return Policy(limits)
    found = read(values["policy"])
    return replace(found, limits=merged(found.limits, limits))


JUDGED = option_group("judging", lambda values: Judging(**_fields(Judging, values)), *_options_of(Judging, ""))
"""How quality is judged: argument `judging`."""
LIMITS = option_group(
    "policy",
    _policy,
    click.option(
        "--policy", type=PATH, help="TOML file with limits and a provider; options on the command line override them."
    ),
    *_options_of(GateLimits, ""),
)
"""Options of `check`: argument `policy`."""

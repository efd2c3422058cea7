"""Parsers of option values: targets, amounts, length of a training, constraints. A bad value raises `OptionError`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from onnxprune.errors import OptionError
from onnxprune.metrics.table import METRICS
from onnxprune.options import AUGMENTATIONS, QUANTITIES, Bound

SHARE = re.compile(r"\d*\.?\d+\s*%?")
"""A share without the name of a quantity."""


def parse_budget(text: str) -> dict[str, Any]:
    """Parse the length of a training into `amount` and `unit`.

    >>> parse_budget("300steps"), parse_budget("2h")
    ({'amount': 300.0, 'unit': 'steps'}, {'amount': 120.0, 'unit': 'min'})
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|min(?:utes?)?|h(?:ours?)?)\s*", text.lower())
    if found is None:
        raise OptionError(f"{text!r} is not a length of a training", hint="for instance 300steps, 2epochs or 3min")
    amount, unit = float(found[1]), found[2]
    if unit.startswith("h"):
        return {"amount": 60 * amount, "unit": "min"}
    return {"amount": amount, "unit": "min" if unit.startswith("min") else unit.removesuffix("s") + "s"}


def parse_bounds(clamps: Iterable[str], norms: Iterable[str]) -> tuple[Bound, ...]:
    """Parse weight constraints: `LO,HI` or `GLOB=LO,HI`, and `R` or `GLOB=R`.

    >>> parse_bounds(["-1,1"], ["conv*=3"])
    (Bound(pattern='*', low=-1.0, high=1.0, norm=None), Bound(pattern='conv*', low=-inf, high=inf, norm=3.0))
    """
    bounds = []
    for option, text in [*(("clamp", text) for text in clamps), *(("max-norm", text) for text in norms)]:
        pattern, equals, amount = text.rpartition("=")
        pattern = pattern if equals else "*"
        try:
            numbers = [float(part) for part in amount.split(",")]
        except ValueError:
            numbers = []
        if option == "clamp" and len(numbers) == 2 and numbers[0] <= numbers[1]:
            bounds.append(Bound(pattern, numbers[0], numbers[1]))
        elif option == "max-norm" and len(numbers) == 1 and 0 < numbers[0] < math.inf:
            bounds.append(Bound(pattern, norm=numbers[0]))
        else:
            example = "-1,1 or 'conv*.weight=-1,1'" if option == "clamp" else "3 or 'conv*.weight=3'"
            raise OptionError(f"--{option} {text!r} is not a bound", hint=f"for instance --{option} {example}")
    return tuple(bounds)


def parse_shares(text: str) -> tuple[str, list[float]]:
    """Parse the targets of a sweep.

    >>> parse_shares("flops=10%,0.5"), parse_shares("10%")
    (('flops', [0.1, 0.5]), ('flops', [0.1]))
    """
    quantity, equals, amounts = (part.strip().lower() for part in text.partition("="))
    if not equals and all(SHARE.fullmatch(amount.strip()) for amount in quantity.split(",")):
        quantity, equals, amounts = "flops", "=", quantity
    if not equals:
        raise OptionError(
            f"--targets {text!r} is not of the form QUANTITY=SHARES", hint="for instance --targets flops=20%,40%,60%"
        )
    return quantity, [parse_targets("reduce", [f"{quantity}={amount}"])[quantity] for amount in amounts.split(",")]


def parse_kinds(text: str) -> tuple[str, ...]:
    """Parse kinds of augmentation into the order of `AUGMENTATIONS`.

    >>> parse_kinds("noise, flip"), parse_kinds("none")
    (('flip', 'noise'), ())
    """
    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        if name not in AUGMENTATIONS and names != ["none"]:
            raise OptionError(
                f"unknown augmentation {name!r}",
                hint=f"give none, or some of {', '.join(AUGMENTATIONS)}, separated by commas",
            )
    return tuple(kind for kind in AUGMENTATIONS if kind in names)


def parse_memory(text: str) -> float:
    """Parse an amount of memory into bytes.

    >>> parse_memory("2GB")
    2000000000.0
    """
    try:
        return METRICS["memory"].parse(text.strip().lower())
    except ValueError:
        raise OptionError(f"--memory {text!r} is not an amount", hint="for instance --memory 2GB") from None


def parse_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Parse shapes of inputs.

    >>> parse_shapes(["images=1x3x640x640"])
    {'images': (1, 3, 640, 640)}
    """
    result: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        try:
            result[name.strip()] = tuple(int(size) for size in re.split("[x,]", sizes.strip().lower()))
        except ValueError:
            result = {"": ()}
        if "" in result:
            raise OptionError(
                f"--shape {text!r} is not of the form NAME=SHAPE", hint="for instance --shape images=1x3x640x640"
            )
    return result


def parse_amounts(option: str, texts: Iterable[str]) -> dict[str, str]:
    """Parse limits on metrics; their amounts are read where the metric is known.

    >>> parse_amounts("min", ["map=0.40", "top1=90%"])
    {'map': '0.40', 'top1': '90%'}
    """
    result: dict[str, str] = {}
    for text in texts:
        name, equals, amount = (part.strip() for part in text.partition("="))
        if not equals or not amount:
            raise OptionError(
                f"--{option} {text!r} is not of the form NAME=AMOUNT", hint=f"for instance --{option} map=0.40"
            )
        if name in result:
            raise OptionError(f"--{option} names {name} twice", hint="give one amount per metric")
        result[name] = amount
    return result


def parse_targets(option: str, texts: Iterable[str]) -> dict[str, float]:
    """Parse targets: shares for the option `reduce`, absolute amounts (ms, bytes, counts) for `limit`; a share alone is one of the FLOPs.

    >>> parse_targets("reduce", ["flops=50%", "latency=0.3"])
    {'flops': 0.5, 'latency': 0.3}
    >>> parse_targets("reduce", ["50%"])
    {'flops': 0.5}
    >>> parse_targets("limit", ["size=4MB", "latency=3ms"])
    {'size': 4000000.0, 'latency': 3.0}
    """
    example = "flops=50%" if option == "reduce" else "flops=300M"
    result: dict[str, float] = {}
    for text in texts:
        quantity, equals, amount = (part.strip().lower() for part in text.partition("="))
        if not equals and option == "reduce" and SHARE.fullmatch(quantity):
            quantity, equals, amount = "flops", "=", quantity
        if not equals:
            raise OptionError(
                f"--{option} {text!r} is not of the form QUANTITY=AMOUNT", hint=f"for instance --{option} {example}"
            )
        if quantity not in QUANTITIES:
            raise OptionError(f"--{option} does not know {quantity!r}", hint=f"give one of {', '.join(QUANTITIES)}")
        if quantity in result:
            raise OptionError(f"--{option} names {quantity} twice", hint="give one amount per quantity")
        try:
            if option == "limit":
                result[quantity] = METRICS[quantity].parse(amount)
            else:
                result[quantity] = float(amount[:-1]) * 0.01 if amount.endswith("%") else float(amount)
        except ValueError:
            raise OptionError(
                f"--{option} {text!r}: {amount!r} is not a number", hint=f"for instance --{option} {example}"
            ) from None
    return result

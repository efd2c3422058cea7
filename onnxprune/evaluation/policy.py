"""Limits of the gate, and the policy: a TOML file of limits. Light to import, as `onnxprune.options`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from onnxprune.errors import OptionError, first_line
from onnxprune.fileio import atomic_write
from onnxprune.metrics.table import METRICS, Metric, named
from onnxprune.options.metadata import check, documented, number_type, option, option_fields
from onnxprune.reading import read_toml
from onnxprune.runtime.providers import normal_provider

MB = 1e6
"""Bytes in the unit of plain numbers."""
BYTES_MEANT = 1e10
"""Bytes of a plain number of megabytes from which bytes were meant."""
IN_MB = ("max_size", "max_memory", "max_peak_memory")
"""Limits that are written in megabytes, and kept in bytes."""
PROVIDER_EXAMPLE = 'provider = "OpenVINO,device_type=CPU"'
HINT = "`onnxprune check --init policy.toml` writes a policy with all limits"


def _limit(text: str, metavar: str, example: str, **more: Any) -> Any:
    return option(None, text, metavar=metavar, low=0, example=example, **more)


DROP = (
    "Points of the task's metric (top-1, mAP, mIoU …; without labels of agreement with the baseline, or of explained variance) that may be "
    "lost; of a metric of your own in its unit."
)
AMOUNT = "Amount of a metric of the candidate, at {}, for instance {}; `own` is your own metric."
OWN = "own"
"""Name of the metric of the user's own in a limit."""
AMOUNTS = (*(name for name in METRICS if name not in ("flops", "kl")), "kl", OWN)
"""Metrics that a limit can be on."""
EXPLAINED = (
    "Percent of the variance of the outputs that the candidate gives, at least; for outputs that are no classes."
)
CLASS_DROP = "Points of recall that any class may lose, beyond chance; needs labels."
CALIBRATION = "Points by which the expected calibration error may rise; needs labels."
SPEEDUP = "Latency of the baseline / latency of the candidate, at least; undecided where the machine is too noisy."
PEAK_MEMORY = "Memory that a process needs to load and run the model, at most."
DOMAINS = "Operator domain that is allowed beside ai.onnx; may be repeated."


@documented
@dataclass(frozen=True)
class GateLimits:
    """Limits on a candidate; None: the value is reported without a limit."""

    min: Mapping[str, float | str] = option(
        dict,
        AMOUNT.format("least", "map=0.40 or top1=90%"),
        metavar="NAME=AMOUNT",
        known=AMOUNTS,
        example='{ map = "40%" }',
        texts=True,
    )
    max: Mapping[str, float | str] = option(
        dict,
        AMOUNT.format("most", "cer=3%, latency=5ms or size=4MB"),
        metavar="NAME=AMOUNT",
        known=AMOUNTS,
        example='{ size = "4MB" }',
        texts=True,
    )
    max_drop: float | None = _limit(DROP, "POINTS", "0.5", high=100, active=True)
    max_class_drop: float | None = _limit(CLASS_DROP, "POINTS", "10", high=100, active=True)
    min_agreement: float | None = _limit("Percent of samples with the same top-1, at least.", "PERCENT", "98", high=100)
    min_cosine: float | None = _limit("Mean cosine of the outputs, at least.", "C", "0.99", high=1)
    min_explained: float | None = _limit(EXPLAINED, "PERCENT", "99", high=100)
    max_kl: float | None = _limit("Divergence of the outputs in nats, at most.", "NATS", "0.05")
    max_calibration_rise: float | None = _limit(CALIBRATION, "POINTS", "1.0", high=100)
    min_speedup: float | None = _limit(SPEEDUP, "RATIO", "1.0", active=True)
    max_latency: float | None = _limit("Milliseconds of a run, at most.", "MS", "5.0")
    max_size: float | None = _limit("Size of the file, at most.", "MB", '"4MB"', factor=MB)
    max_params: float | None = _limit("Parameters, at most.", "N", "1e6")
    max_memory: float | None = _limit("Activations that are alive at once, at most.", "MB", '"16MB"', factor=MB)
    max_peak_memory: float | None = _limit(PEAK_MEMORY, "MB", '"200MB"', factor=MB)
    max_opset: int | None = _limit("Opset of the standard operators, at most.", "N", "21")
    domains: tuple[str, ...] | None = option(
        None, DOMAINS, flag="domain", metavar="NAME", listed=True, example='["com.microsoft"]'
    )

    def __post_init__(self) -> None:
        check(self)
        for side in ("min", "max"):
            self.amounts(side)

    def amounts(self, side: str) -> dict[str, float]:
        """Return the limits of `min` or `max`, in the unit of the metric.

        Raises:
            OptionError: one of them is no limit.

        >>> GateLimits(min={"map": 0.4, "top1": "90%"}).amounts("min")
        {'map': 40.0, 'top1': 90.0}
        """
        for name in getattr(self, side):
            check_side(side, name)
        return {name: amount_of(name, text) for name, text in getattr(self, side).items()}

    def of(self, name: str) -> float | None:
        """Return a limit by its name, `min_…` or `max_…`: its own field, else an entry of `min` or `max`."""
        own = getattr(self, name, None)
        if own is not None:
            return float(own)
        side, _, metric = name.partition("_")
        return self.amounts(side).get(metric) if side in ("min", "max") else None


def limit_of(name: str, value: Any) -> float | None:
    """Return bytes from a limit as the command line and a policy write it: 4MB, or a number of megabytes.

    Raises:
        OptionError: the value is no amount, or a number that can only have been meant as bytes.

    >>> limit_of("max_size", "4MB"), limit_of("max_size", 4)
    (4000000.0, 4000000.0)
    """
    if value is None:
        return None
    option, text = f"--{name.replace('_', '-')}", str(value).strip().lower()
    try:
        found = float(text) * MB if text[-1:].isdigit() or text[-1:] == "." else METRICS["size"].parse(text)
    except ValueError:
        raise OptionError(f"{option} {value!r} is not an amount", hint="for instance 4MB") from None
    if not 0 <= found < math.inf:
        raise OptionError(f"{option} {value} is out of range", hint="for instance 4MB")
    if text[-1:].isdigit() and found > BYTES_MEANT:
        raise OptionError(
            f"{option} {value} would be {found / MB:,.0f} MB",
            why="a plain number counts megabytes",
            hint="write 4MB, or 4000kB",
        )
    return found


def amount_of(name: str, text: float | str) -> float:
    """Return an amount of a metric in its unit; percent may be written as 40%, 0.40 or 40, megabytes without their unit.

    Raises:
        OptionError: the text is no amount, or may be read in two ways.

    >>> amount_of("map", "0.40"), amount_of("size", "4MB"), amount_of("cer", "0.5%")
    (40.0, 4000000.0, 0.5)
    """
    metric = named(name)
    told = str(text).strip().lower()
    example = f"{name}={'40%' if metric.unit == '%' else '4MB' if metric.unit == 'bytes' else '5'}"
    try:
        if metric.unit == "bytes":
            found = limit_of(name, told) or 0.0
        elif metric.unit == "%":
            found = _percent(metric, told)
        else:
            found = metric.parse(told)
    except ValueError:
        raise OptionError(f"a limit on {name} is {text!r}", hint=f"for instance {example}") from None
    least = -math.inf if name in (OWN, "r2") else 0
    if not math.isfinite(found) or found < least or (metric.unit == "%" and metric.ideal and found > 100):
        raise OptionError(f"a limit on {name} is {text!r}, which is out of range", hint=f"for instance {example}")
    return found


def _percent(metric: Metric, told: str) -> float:
    """Read percent: 40%, 0.40 or 40; a number up to 1 may mean a share or percent where small amounts are usual.

    Raises:
        OptionError: the text may be read in two ways.
    """
    if told.endswith("%"):
        return float(told[:-1])
    number = float(told)
    if number == 1 or (0 < number < 1 and not metric.ideal):
        raise OptionError(
            f"a limit on {metric.name} is {told}, which may be {number:g} % or {100 * number:g} %",
            hint=f"write {metric.name}={number:g}% or {metric.name}={100 * number:g}%",
        )
    return number * (100 if abs(number) < 1 else 1)


def check_side(side: str, name: str) -> None:
    """Refuse a limit that cannot be on this side of a metric.

    Raises:
        OptionError: costs and divergences have a `max` alone, agreement, cosine and explained variance a `min` alone.
    """
    metric = named(name)
    only = "max" if metric.kind == "cost" or name == "kl" else "min" if metric.kind == "fidelity" else side
    if name != OWN and side != only:
        raise OptionError(f"--{side} {name} is no limit", hint=f"give --{only} {name}=AMOUNT")


@dataclass(frozen=True)
class Policy:
    """What a policy file says: limits, and the execution provider that runs both models; None: it names none."""

    limits: GateLimits
    provider: str | None = None


def template() -> str:
    """Return a commented policy."""
    lines = [
        "# What a candidate must keep to replace the baseline:",
        "# `onnxprune check CANDIDATE --baseline MODEL --data D --policy THIS_FILE`.",
        "# Remove the # of the limits to set; options on the command line take precedence.",
        "",
        f"# {PROVIDER_EXAMPLE:<38}# Execution provider that runs and times both models.",
        "",
        "[limits]",
    ]
    for each, found, _ in option_fields(GateLimits):
        lines.append(f"{'' if found.active else '# '}{f'{each.name} = {found.example}':<32}# {found.python_help}")
    return "\n".join([*lines, ""])


def read(path: Path) -> Policy:
    """Read a policy.

    Raises:
        OptionError: the policy cannot be read, or has unknown entries.
    """
    where = str(path)
    try:
        content = read_toml(path)
    except (OSError, ValueError) as error:
        hint = "check the path and the TOML"
        raise OptionError("the policy cannot be read", where=where, why=first_line(error), hint=hint) from error
    odd = sorted(set(content) - {"limits", "provider"})
    limits = content.get("limits", {})
    if odd or not isinstance(limits, dict):
        why = ", ".join(odd) or "`limits` is no table"
        raise OptionError("the policy has unknown entries", where=where, why=why, hint=HINT)
    provider = content.get("provider")
    if provider is not None:
        if not isinstance(provider, str):
            raise OptionError(f"provider is {provider!r}", where=where, hint=f"give a text: {PROVIDER_EXAMPLE}")
        try:
            provider = normal_provider(provider)
        except OptionError as error:
            raise OptionError(error.what, where=where, why=error.why, hint=f"write it as {PROVIDER_EXAMPLE}") from error
    known = {each.name: each for each in fields(GateLimits)}
    unknown = sorted(set(limits) - set(known))
    if unknown:
        raise OptionError("the policy has unknown limits", where=where, why=", ".join(unknown), hint=HINT)
    limits = {name: limit_of(name, value) if name in IN_MB else value for name, value in limits.items()}
    for name, value in limits.items():
        if known[name].default_factory is dict:
            fits = isinstance(value, dict)
        elif number_type(known[name]):
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        else:
            fits = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
        if not fits:
            raise OptionError(
                f"{name} is {value!r}",
                where=where,
                hint="give a number, for domains a list of names, for min and max a table",
            )
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in limits.items()}
    return Policy(GateLimits(**values), provider)


def merged(policy: GateLimits, given: GateLimits) -> GateLimits:
    """Return a policy whose limits are replaced by those of the command line."""
    values = {name: value for name, value in vars(given).items() if value is not None}
    for side in ("min", "max"):
        values[side] = {**getattr(policy, side), **values[side]}
    return replace(policy, **values)


def init(path: Path) -> None:
    """Write a commented policy.

    Raises:
        OptionError: the file exists already.
        OutputError: the file cannot be written.
    """
    if path.exists():
        raise OptionError("there is a policy already", where=str(path), hint="give another path, or remove it")
    with atomic_write(path) as temporary:
        temporary.write_text(template(), encoding="utf-8")

"""Limits of the gate, and the policy: a TOML file with them that lies next to the model. Light to import, as `onnxprune.options`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from onnxprune.errors import OptionError
from onnxprune.fileio import atomic_write
from onnxprune.options.metadata import check, documented, number_type, option, option_fields

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HINT = "`onnxprune check --init policy.toml` writes one with all that is known"


@documented
@dataclass(frozen=True)
class GateLimits:
    """What a candidate must keep; None: the figure is told, and has no limit."""

    max_drop: float | None = option(
        None,
        "Points of top-1 (without labels: of agreement with the baseline) that may be lost, as measured in pairs.",
        metavar="POINTS",
        low=0,
        high=100,
        example="0.5",
        active=True,
    )
    max_class_drop: float | None = option(
        None,
        "Points of recall that any class may lose, beyond chance; needs labels.",
        metavar="POINTS",
        low=0,
        high=100,
        example="10",
        active=True,
    )
    min_agreement: float | None = option(
        None, "Percent of samples with the same top-1, at least.", metavar="PERCENT", low=0, high=100, example="98"
    )
    min_cosine: float | None = option(
        None, "Mean cosine of the outputs, at least.", metavar="C", low=0, high=1, example="0.99"
    )
    max_kl: float | None = option(
        None, "Divergence of the outputs in nats, at most.", metavar="NATS", low=0, example="0.05"
    )
    max_calibration_rise: float | None = option(
        None,
        "Points by which the expected calibration error may rise; needs labels.",
        metavar="POINTS",
        low=0,
        high=100,
        example="1.0",
    )
    min_speedup: float | None = option(
        None,
        "Latency of the baseline / latency of the candidate, at least; undecided where the machine is too noisy.",
        metavar="RATIO",
        low=0,
        example="1.0",
        active=True,
    )
    max_latency: float | None = option(None, "Milliseconds of a run, at most.", metavar="MS", low=0, example="5.0")
    max_size: float | None = option(None, "Size of the file, at most.", metavar="MB", low=0, factor=1e6, example="4e6")
    max_params: float | None = option(None, "Parameters, at most.", metavar="N", low=0, example="1e6")
    max_memory: float | None = option(
        None, "Activations that are alive at once, at most.", metavar="MB", low=0, factor=1e6, example="16e6"
    )
    max_peak_memory: float | None = option(
        None,
        "Memory that a process needs to load and run the model, at most.",
        metavar="MB",
        low=0,
        factor=1e6,
        example="200e6",
    )
    max_opset: int | None = option(None, "Opset of the standard operators, at most.", metavar="N", low=0, example="21")
    domains: tuple[str, ...] | None = option(
        None,
        "Operator domain that is allowed beside ai.onnx; may be repeated.",
        flag="domain",
        metavar="NAME",
        listed=True,
        example='["com.microsoft"]',
    )

    def __post_init__(self) -> None:
        check(self)


def template() -> str:
    """Return a commented policy."""
    lines = [
        "# What a candidate must keep to replace the baseline:",
        "# `onnxprune check CANDIDATE --baseline MODEL --data D --policy THIS_FILE`.",
        "# Remove the # of the limits you want; options on the command line go before what is said here.",
        "",
        "[limits]",
    ]
    for each, found, _ in option_fields(GateLimits):
        lines.append(f"{'' if found.active else '# '}{f'{each.name} = {found.example}':<32}# {found.python_help}")
    return "\n".join([*lines, ""])


def read(path: Path) -> GateLimits:
    """Read a policy.

    Raises:
        OptionError: it cannot be read, or says something that is not known.
    """
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(
            "the policy cannot be read",
            where=str(path),
            why=str(error).splitlines()[0][:200],
            hint="check the path and the TOML",
        ) from error
    odd = sorted(set(content) - {"limits"})
    limits = content.get("limits", {})
    if odd or not isinstance(limits, dict):
        raise OptionError(
            "the policy says something that is not known",
            where=str(path),
            why=", ".join(odd) or "`limits` is no table",
            hint=HINT,
        )
    known = {each.name: each for each in fields(GateLimits)}
    unknown = sorted(set(limits) - set(known))
    if unknown:
        raise OptionError("the policy has unknown limits", where=str(path), why=", ".join(unknown), hint=HINT)
    for name, value in limits.items():
        if number_type(known[name]):
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        else:
            fits = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
        if not fits:
            raise OptionError(
                f"{name} is {value!r}", where=str(path), hint="give a number, for domains a list of names"
            )
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in limits.items()
    }
    return GateLimits(**values)


def merged(policy: GateLimits, given: GateLimits) -> GateLimits:
    """Return a policy with what was given on the command line in place of its own."""
    said = {field.name: value for field in fields(GateLimits) if (value := getattr(given, field.name)) is not None}
    return replace(policy, **said)


def init(path: Path) -> None:
    """Write a commented policy.

    Raises:
        OptionError: there is a file already.
        OutputError: it cannot be written.
    """
    if path.exists():
        raise OptionError("there is a policy already", where=str(path), hint="give another path, or remove it")
    with atomic_write(path) as temporary:
        temporary.write_text(template(), encoding="utf-8")

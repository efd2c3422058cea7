"""Limits of the gate, and the policy: a TOML file with them that lies next to the model."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from onnxprune.errors import OptionError
from onnxprune.output import staged

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class GateLimits:
    """What a candidate must keep; None: only told.

    Attributes:
        max_drop: points of top-1 that may be lost; without labels, points of agreement with the baseline below 100.
        max_class_drop: points of recall that any class may lose; needs labels. Chance is allowed for.
        min_agreement: percent of samples with the same top-1.
        min_cosine: mean cosine of the outputs.
        max_kl: nats.
        max_calibration_rise: points of expected calibration error; needs labels.
        min_speedup: median latency of the baseline / median latency of the candidate.
        max_latency: milliseconds.
        max_size: bytes on disk.
        max_params: parameters.
        max_memory: bytes of activations that are alive at once.
        max_peak_memory: bytes that a process takes to load and run it, at its peak.
        max_opset: of the standard operators.
        domains: operator domains that are allowed; "ai.onnx" always is.
    """

    max_drop: float | None = None
    max_class_drop: float | None = None
    min_agreement: float | None = None
    min_cosine: float | None = None
    max_kl: float | None = None
    max_calibration_rise: float | None = None
    min_speedup: float | None = None
    max_latency: float | None = None
    max_size: float | None = None
    max_params: float | None = None
    max_memory: float | None = None
    max_peak_memory: float | None = None
    max_opset: int | None = None
    domains: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        points, amount = "points from 0 to 100", "a number of 0 or more"
        for name, most, unit in (
            ("max_drop", 100, points),
            ("max_class_drop", 100, points),
            ("min_agreement", 100, "percent from 0 to 100"),
            ("min_cosine", 1, "a number from 0 to 1"),
            ("max_kl", math.inf, amount),
            ("max_calibration_rise", 100, points),
            ("min_speedup", math.inf, "a ratio of 0 or more"),
            ("max_latency", math.inf, amount),
            ("max_size", math.inf, "a size of 0 or more"),
            ("max_params", math.inf, amount),
            ("max_memory", math.inf, amount),
            ("max_peak_memory", math.inf, amount),
            ("max_opset", math.inf, amount),
        ):
            value = getattr(self, name)
            if value is not None and not (0 <= value <= most and math.isfinite(value)):
                raise OptionError(f"--{name.replace('_', '-')} {value:g} is out of range", hint=f"give {unit}")


TEMPLATE = """\
# What a candidate must keep to replace the model in production: `onnxprune check CANDIDATE --baseline MODEL --data D --policy THIS_FILE`.
# Remove the # of the limits you want; options on the command line go before what is said here.

[limits]
max_drop = 0.5                # points of top-1, as measured in pairs; without labels, of agreement with the baseline
max_class_drop = 10           # points of recall of any class, beyond chance; needs labels
# min_agreement = 98          # percent of samples with the same top-1
# min_cosine = 0.99           # of the outputs
# max_kl = 0.05               # nats, of the outputs
# max_calibration_rise = 1.0  # points of expected calibration error; needs labels
min_speedup = 1.0             # latency of the baseline / latency of the candidate; undecided where the machine is too noisy to tell
# max_latency = 5.0           # milliseconds
# max_size = 4e6              # bytes of the file
# max_params = 1e6
# max_memory = 16e6           # bytes of activations that are alive at once
# max_peak_memory = 200e6     # bytes that a process takes to load and run it
# max_opset = 21              # what the target's runtime reads
# domains = ["com.microsoft"] # operator domains beside ai.onnx
"""


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
    known = {field.name for field in fields(GateLimits)}
    unknown = sorted(set(limits) - known)
    if unknown:
        raise OptionError("the policy has unknown limits", where=str(path), why=", ".join(unknown), hint=HINT)
    for name, value in limits.items():
        listed = name == "domains" and isinstance(value, list) and all(isinstance(entry, str) for entry in value)
        number = name != "domains" and isinstance(value, int | float) and not isinstance(value, bool)
        if not (listed or number):
            raise OptionError(
                f"{name} is {value!r}", where=str(path), hint="give a number, for domains a list of names"
            )
    values: dict[str, Any] = {name: tuple(value) if name == "domains" else value for name, value in limits.items()}
    return GateLimits(**values)


HINT = "`onnxprune check --init policy.toml` writes one with all that is known"


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
    with staged(path) as temporary:
        temporary.write_text(TEMPLATE, encoding="utf-8")

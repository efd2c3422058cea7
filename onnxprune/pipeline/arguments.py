"""Keyword arguments of the public functions: the fields of `Options`, of the benchmark config and of `Judging`, one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from onnxprune.errors import OptionError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.options import Options
from onnxprune.options.judging import Judging


class BenchmarkFields(TypedDict, total=False):
    """Fields of how models are timed, which public functions take by name."""

    latency: bool
    batch: int
    threads: int
    provider: str
    fallback: bool
    runs: int
    warmup: int
    seconds: float
    eval_batch: int


class JudgingFields(TypedDict, total=False):
    """Fields of how quality is judged, which public functions take by name."""

    task: str | None
    labels: Any
    metric: str | Callable[[Any, Any], float] | None
    direction: str
    decode: str | None
    characters: Any


class MeasuringFields(BenchmarkFields, JudgingFields, total=False):
    """Fields of how models are timed and judged, which public functions take by name."""


class Fields(MeasuringFields, total=False):
    """Fields of `onnxprune.Options`, and of how models are timed and judged, which public functions take by name."""

    reduce: Mapping[str, float]
    limit: Mapping[str, float]
    max_drop: float | None
    tolerate: float | None
    minimise: str
    granularity: tuple[str, ...] | str
    importance: str
    schedule: str
    steps: int
    pace: str
    scope: str
    repair: str
    samples: int
    augment: tuple[str, ...] | str
    memory: float
    round_to: int | str
    min_channels: int
    max_ratio: float
    threshold: float | None
    ignore: tuple[str, ...]
    grouped: str
    heads: str
    norms: str
    shape: Mapping[str, tuple[int, ...]]
    seed: int


def parted(
    fields: Mapping[str, Any],
    options: Options | None,
    measure: BenchmarkConfig | None,
    judging: Judging | None = None,
    *,
    prunes: bool = True,
) -> tuple[Options, BenchmarkConfig, Judging]:
    """Return the options, the benchmark config and how quality is judged: as given, else from their fields.

    A function that does not prune (`prunes=False`) takes no field of `Options`.

    Raises:
        OptionError: there is no such field, or a value and its fields are both given.
    """
    kinds: dict[str, Any] = {"options": Options, "measure": BenchmarkConfig, "judging": Judging}
    mine = {
        name: set(kind.__dataclass_fields__) if prunes or name != "options" else set() for name, kind in kinds.items()
    }
    every = set().union(*mine.values())
    unknown = set(fields) - every
    if unknown:
        known = [name for name in Fields.__annotations__ if name in every]
        raise OptionError(f"unknown option {', '.join(sorted(unknown))}", hint=f"known are {', '.join(known)}")
    for name, value in {"options": options, "measure": measure, "judging": judging}.items():
        twice = sorted(mine[name] & set(fields))
        if value is not None and twice:
            raise OptionError(f"{', '.join(twice)} and `{name}` are both given", hint=f"put all of them into `{name}`")
    of = {name: {key: value for key, value in fields.items() if key in mine[name]} for name in kinds}
    return (
        options or Options(**of["options"]),
        measure or BenchmarkConfig(**of["measure"]),
        judging or Judging(**of["judging"]),
    )

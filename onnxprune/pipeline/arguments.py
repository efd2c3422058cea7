"""Keyword arguments of the public functions: the fields of `Options` and of the benchmark config, one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from onnxprune.errors import OptionError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.options import Options


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


class Fields(BenchmarkFields, total=False):
    """Fields of `onnxprune.Options`, and of how models are timed, which public functions take by name."""

    reduce: Mapping[str, float]
    limit: Mapping[str, float]
    max_drop: float | None
    tolerate: float | None
    minimise: str
    granularity: tuple[str, ...]
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
    fields: Mapping[str, Any], options: Options | None, measure: BenchmarkConfig | None, *, prunes: bool = True
) -> tuple[Options, BenchmarkConfig]:
    """Return the options and the benchmark config: as given, else from their fields.

    A function that does not prune (`prunes=False`) takes no field of `Options`.

    Raises:
        OptionError: there is no such field, or a value and its fields are both given.
    """
    of_options = set(Options.__dataclass_fields__) if prunes else set()
    of_measure = set(BenchmarkConfig.__dataclass_fields__)
    unknown = set(fields) - of_options - of_measure
    if unknown:
        known = [name for name in Fields.__annotations__ if name in of_options | of_measure]
        raise OptionError(f"unknown option {', '.join(sorted(unknown))}", hint=f"known are {', '.join(known)}")
    for value, name, mine in ((options, "options", of_options), (measure, "measure", of_measure)):
        twice = sorted(mine & set(fields))
        if value is not None and twice:
            raise OptionError(f"{', '.join(twice)} and `{name}` are both given", hint=f"put all of them into `{name}`")
    return (
        options or Options(**{name: value for name, value in fields.items() if name in of_options}),
        measure or BenchmarkConfig(**{name: value for name, value in fields.items() if name in of_measure}),
    )

"""The checks of costs: speed, size, memory; and all measured checks of the gate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.evaluation.verdict import Judged, LimitCheck, Measured, class_rows, held, hold_quality
from onnxprune.graph.io import Parsed
from onnxprune.graph.model import count_params
from onnxprune.metrics import activation_memory
from onnxprune.metrics.table import METRICS
from onnxprune.runtime import paired_timing, process_memory
from onnxprune.runtime.session import SessionConfig
from onnxprune.runtime.weight_files import LARGE
from onnxprune.types import Check

NOISY = 0.25
"""Range of the speed-up over the rounds, as a share of the median, above which the machine is noisy."""
TIMES = "timings (without --no-latency)"
MB = 1e6
"""Bytes in the unit of the checks."""


@dataclass(frozen=True)
class Measurements(Judged):
    """Measurements of a baseline and a candidate, in that order.

    Attributes:
        compared: both models on the same inputs.
        limits: limits of the gate.
        paths, files: of both models.
        timed: latency of both models; None where it is not measured.
        config: how the models are executed.
    """

    paths: tuple[str | os.PathLike[str], str | os.PathLike[str]]
    files: tuple[Parsed, Parsed]
    timed: paired_timing.PairedTiming | None
    config: SessionConfig

    @property
    def batch(self) -> int:
        """Samples per timed run."""
        return self.compared.batch


def hold(measured: Measurements) -> Iterator[Check]:
    """Decide all checks.

    Raises:
        OptionError: there is a limit on a value that cannot be measured.
    """
    yield from hold_quality(measured)
    yield from class_rows(measured)
    yield from held(COSTS, measured, measured.limits)


def _speedup(measured: Measurements) -> Measured | None:
    timed = measured.timed
    if timed is None or measured.compared.alone:
        return None
    ratio, low, high = (float(of(timed.ratios)) for of in (np.median, np.min, np.max))
    setting = f"batch {measured.batch}, threads {measured.config.threads or 'default'}"
    detail = f"{low:.2f} to {high:.2f} in {len(timed.ratios)} rounds, {timed.runs} runs, {setting}"
    detail += "; the machine is noisy" if high - low > NOISY * ratio else ""
    detail += f"; other processes kept {timed.others:.1f} processors busy" if timed.busy else ""
    return Measured(ratio, detail, low, high)


def _latency(measured: Measurements) -> Measured | None:
    """Return milliseconds, where there is a limit; the interval allows for the load of other processes."""
    timed = measured.timed
    if timed is None or measured.limits.of("max_latency") is None:
        return None
    low, high = min(timed.b), max(timed.b)
    idle = low / (1 + (timed.others or 0.0)) if timed.busy else low
    detail = f"{low:.3f} to {high:.3f}" + (f"; {idle:.3f} perhaps on a quiet machine" if timed.busy else "")
    return Measured(float(np.median(timed.b)), detail, idle, high)


def _parameters(measured: Measurements) -> Measured:
    return Measured(float(count_params(measured.files[1].proto)), "in the file: floats, and quantized weights")


def _activation_memory(measured: Measurements) -> Measured | None:
    shapes = {name: value.shape for name, value in measured.compared.feeds.items()}
    try:
        before, after = (float(activation_memory.peak(file, shapes)) for file in measured.files)
    except OnnxPruneError:
        if measured.limits.of("max_memory") is not None:
            raise
        return None
    return Measured(after, f"activations alive at once, batch {measured.batch}{_beside(measured, before)}")


def _peak_memory(measured: Measurements) -> Measured | None:
    together = len(measured.paths) if max(file.size for file in measured.files) < LARGE else 1
    with ThreadPoolExecutor(together) as pool:
        opens = partial(process_memory.measure, feeds=measured.compared.feeds, config=measured.config)
        before, after = pool.map(opens, measured.paths)
    if before is None or after is None:
        return None
    detail = f"of a process that loads and runs it, batch {measured.batch}{_beside(measured, before)}"
    return Measured(float(after), detail)


def _beside(measured: Measurements, before: float) -> str:
    """Say what the baseline takes, where there is one; bytes."""
    return "" if measured.compared.alone else f"; {before / MB:.4g} MB in the baseline"


COSTS = (
    LimitCheck("speed-up", "min_speedup", _speedup, at_least=True, needs=TIMES),
    LimitCheck(METRICS["latency"].title, "max_latency", _latency, needs=TIMES),
    LimitCheck(
        "size (MB)",
        "max_size",
        lambda of: Measured(of.files[1].size, "of the file and of the weights beside it"),
        scale=MB,
    ),
    LimitCheck(METRICS["params"].title, "max_params", _parameters),
    LimitCheck("activation memory (MB)", "max_memory", _activation_memory, scale=MB),
    LimitCheck(
        "peak memory (MB)", "max_peak_memory", _peak_memory, needs="Linux, which tells what a process takes", scale=MB
    ),
)
"""All measured checks, in the order of a verdict."""

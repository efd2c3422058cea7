"""Runs whose decisions follow from random times: what a busy machine measures, without a measurement, and far more of it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import onnxprune
from onnxprune.allocation import latency_model
from onnxprune.errors import OnnxPruneError
from onnxprune.options import GRANULARITIES, Options
from onnxprune.runtime.timings import Timings

MULTIPLE = "channel multiple"
FEW = onnxprune.BenchmarkConfig(runs=1, warmup=0)
TARGETS = ("flops", "flops", "params", "size", "memory", "latency")


class RandomTimings(Timings):
    """Times that are drawn from a seed in place of measured ones."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = np.random.default_rng(seed)

    def of(self, key: str, count: int, measure: Callable[[], Sequence[float]]) -> tuple[float, ...]:
        """Draw a time, or a channel multiple, instead of measuring it."""
        if key.startswith(MULTIPLE):
            return super().of(key, count, lambda: [float(self._rng.choice([8, 16]))])
        return super().of(key, count, lambda: self._rng.lognormal(0, 0.5, count).tolist())

    def table(self, key: str, measure: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Make a table of latencies from drawn times."""

        def profiled(model: Any, *_: object) -> tuple[Any, float]:
            row = self._rng.lognormal(3, 1, len(model.graph.nodes) + 1)
            return row, float(row.sum() / 1e3)

        with mock.patch.object(latency_model, "_profiled", profiled):
            return super().table(key, measure)


def drawn_options(seed: int) -> dict[str, Any]:
    """Return options of a run with edits: targets, channel multiple, granularity, schedule."""
    rng = random.Random(seed)
    names = rng.sample(TARGETS, rng.choice([1, 1, 1, 2]))
    some = tuple(sorted(rng.sample(GRANULARITIES, rng.choice([2, 3]))))
    steps = {"schedule": "progressive", "steps": 2} if rng.random() < 0.3 else {}
    return {
        "reduce": {name: rng.choice([0.1, 0.3, 0.5, 0.7]) for name in names},
        "round_to": rng.choice([1, 1, 2, 4, "auto"]),
        "granularity": rng.choice([GRANULARITIES, GRANULARITIES, some]),
        "seed": seed,
        **steps,
    }


def random_timings_run(
    seed: int, model: Path, data: Path, folder: Path, *, preprocess: str | None = None, samples: int = 16
) -> str:
    """Prune a model with random times and options, and check what is written.

    Args:
        seed: of the times and of the options.
        model: path of the model.
        data: path of its samples.
        folder: for the result, and for the cache.
        preprocess: of the samples.
        samples: number of calibration samples.

    Returns:
        The verdict, or the error by which the run refuses. Any error that is no `OnnxPruneError` is raised: it is a defect.
    """
    output = folder / f"{seed}.onnx"
    options = Options(**drawn_options(seed), samples=samples, augment=())
    with (
        mock.patch.dict(os.environ, {"ONNXPRUNE_CACHE": str(folder / f"cache-{seed}")}),
        mock.patch("onnxprune.pipeline.identity.Timings", return_value=RandomTimings(seed)),
    ):
        try:
            found = onnxprune.prune(
                model, output=output, data=data, preprocess=preprocess, options=options, measure=FEW
            )
        except OnnxPruneError as error:
            told = f"{type(error).__name__}: {error.what}"
            assert not output.exists(), f"{told}, and yet {output} is written"
            return told
    found.report.to_dict()
    kept = output if output.exists() else folder / f"{seed}.rejected.onnx"
    assert str(kept) == found.report.output
    return found.report.verdict.headline

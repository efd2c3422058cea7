"""What a run is: one digest for each thing that it has read or was asked, so that no stale result is taken for its own."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.calibration.stage_results import TIMINGS, StageResults, digest
from onnxprune.data.dataset import Data
from onnxprune.graph.analysis import versions
from onnxprune.pipeline.run import Destinations, Run, Stage
from onnxprune.runtime.timings import Timings

JUDGED_BY = ("tolerate",)
"""Options that only the verdict follows from, which is no stored result."""


def identity(run: Run) -> dict[str, str]:
    """Return digests of all that the result of a run follows from, by name; the model and the data are loaded.

    Data count by the samples and labels that were loaded, files of images by their bytes.
    """
    sources, judging = run.sources, run.sources.judging
    files = {"plan": sources.plan, "teacher": sources.teacher, "latency table": sources.latency_table}
    found = {
        "model": (run.original.model.digest, None if sources.teacher is None else run.model.content_digest()),
        "data": _samples(run.data),
        "evaluation data": None if run.evaluation is run.data else _samples(run.evaluation),
        **{f"--{name.replace('_', '-')}": value for name, value in _asked(run).items()},
        "metric": [_given(value) for value in vars(judging).values()],
        "versions": {**versions(), "numpy": np.__version__},
        **{name: path for name, path in files.items() if path is not None},
    }
    return {name: digest(value) for name, value in found.items()}


def _asked(run: Run) -> dict[str, Any]:
    """Return the options of a run by name."""
    training = {"training": None} if run.training is None else asdict(run.training)
    asked = {name: value for name, value in asdict(run.asked).items() if name not in JUDGED_BY}
    return {**asked, **{f"train-{name}": value for name, value in training.items()}, **asdict(run.measure)}


def _samples(data: Data | None) -> tuple[Any, ...] | None:
    """Return what tells data from other data."""
    return None if data is None else (data.arrays, data.labels, data.classes, data.preprocess)


def _given(value: Any) -> Any:
    """Return what a user gave as text, file or function; a file counts by its content, a function by its source."""
    if isinstance(value, str | os.PathLike):
        name = os.fspath(value)
        path = Path(name.rpartition(":")[0] if name.rpartition(":")[0].endswith(".py") else name)
        return (name, path) if path.is_file() else name
    if isinstance(value, Callable):  # type: ignore[arg-type]
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            return value  # without a digest that another one has
    return dict(value) if isinstance(value, Mapping) else value


def opened(destinations: Destinations, folder: Path | None, *, resume: bool) -> tuple[StageResults, Timings]:
    """Return the results and the times of an earlier call that broke off, or none; `folder` is that of the results.

    Times come from the file that the user names, else from the folder.
    """
    stored = None if folder is None or not resume else folder / TIMINGS
    if destinations.timings is None and stored is not None and stored.exists():
        timings = Timings(stored)
    else:
        timings = Timings(destinations.timings)
    return StageResults(folder, resume=resume, timings=timings), timings


def open_results(run: Run) -> Run:
    """Look for results of an earlier call, and refuse those of another run."""
    run.results.open(lambda: identity(run))
    return run


OPEN_RESULTS = Stage(open_results, requires=("original",))

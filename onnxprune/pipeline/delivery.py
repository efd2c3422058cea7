"""Write the files of a result; the result is not lost where one of them cannot be written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from onnxprune.errors import OnnxPruneError
from onnxprune.pipeline.rejection import delivered_to, told
from onnxprune.pipeline.reporting import WRITE, provenance, save_report
from onnxprune.pipeline.results import ModelResult, Result
from onnxprune.pipeline.run import Run


@contextlib.contextmanager
def unlost(result: Result, *written: Path) -> Iterator[None]:
    """Put the result, and the files that are written already, into an error that comes after the work."""
    try:
        yield
    except OnnxPruneError as error:
        error.result = result
        if written:
            error.hint = f"{error.hint}; written: {', '.join(map(str, written))}"
        raise


def deliver(run: Run) -> ModelResult:
    """Write model and plan, then the report, and return the result.

    Raises:
        OnnxPruneError: a file cannot be written, or the result is refused; the error has the result.
    """
    result = ModelResult(run.model, run.report, run.plan, run.edited.analysis.trace, provenance(run))
    with unlost(result):
        run = WRITE(run)
    places = delivered_to(run)
    given = (places.model, places.plan if run.plan else None)
    result = replace(result, report=run.report, files=tuple(path for path in given if path is not None))
    with unlost(result, *result.files):
        save_report(run)
    if run.refusal is not None:
        with unlost(result):
            raise told(run.refusal, places)
    return result

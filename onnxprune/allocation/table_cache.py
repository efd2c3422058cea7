"""Latency tables that are kept from run to run: one that is damaged, or that two measured models contradict, is not used."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from onnxprune.allocation import latency_model
from onnxprune.allocation.knapsack import PruningRules
from onnxprune.allocation.latency_model import SEED, UNIFORM, Predictor, Table
from onnxprune.errors import LatencyError, first_line
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.graph.analysis import Analysis
from onnxprune.progress import ProgressCallback
from onnxprune.runtime import machine
from onnxprune.runtime.timing import sample_times
from onnxprune.surgery import channels as rewrite

BELIEVED = 3600.0
"""Seconds after its measurement, or after a comparison, in which a table is not compared with measured models."""
RUNS, WARMUP, SECONDS = 30, 3, 2.0
"""Timed and untimed runs of the two models, and the time limit of the timed ones."""
RATIO, LEVEL = 2.0, 4.0
"""Factors by which the ratio of the two times, and the time of the whole model, may differ from the table's; other processes slow both
models alike, so that the level says less than the ratio."""


def read(
    path: Path, analysis: Analysis, rules: PruningRules, config: BenchmarkConfig, on_stage: ProgressCallback
) -> Table | None:
    """Return the table of a file of the cache; None where there is none, or where it has to be measured again.

    `on_stage` is told why a table is not used.
    """
    try:
        table = latency_model.read(path)
        latency_model.refuse_flat(table, str(path))
        latency_model.refuse_other_model(table, latency_model.architecture(analysis), str(path))
        if table.environment != machine.environment(config.session, config.batch):
            raise LatencyError("the latency table is of another machine", where=str(path))
        why = _contradiction(analysis, table, rules, config) if _age(path) > BELIEVED else ""
    except LatencyError as error:
        why = "" if isinstance(error.__cause__, FileNotFoundError) else error.what
        if not why:
            return None
    if why:
        on_stage("table", None, f"{path} is not used, and measured again: {why}")
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return table


def _age(path: Path) -> float:
    """Return the seconds since a file was written or its table was found to hold."""
    try:
        return abs(time.time() - path.stat().st_mtime)  # a time in the future is as odd as an old one
    except OSError as error:
        raise LatencyError("the latency table cannot be read", where=str(path), why=first_line(error)) from error


def _contradiction(analysis: Analysis, table: Table, rules: PruningRules, config: BenchmarkConfig) -> str:
    """Time the whole model and the one that lost all it can, in turn; say where the table contradicts both, else return nothing."""
    model, trace = analysis.model, analysis.trace
    whole, *others = latency_model.variants(trace, rules, SEED)
    keeps = [whole, others[len(UNIFORM) - 1]]
    sessions = [rewrite.delete(model, trace, keep).session(config.session) for keep in keeps]
    feeds = model.signature.random_feeds(model.header, config.batch, SEED, trace.input_shapes)
    times = sample_times(sessions, [feeds] * 2, runs=RUNS, warmup=WARMUP, seconds=SECONDS).min(axis=1)
    predictor = Predictor(analysis, table)
    told = [predictor.predict(keep) for keep in keeps]
    ratios, levels = (times[1] / times[0], told[1] / told[0]), (times[0], told[0])
    if max(ratios) > RATIO * min(ratios) or max(levels) > LEVEL * min(levels):
        return (
            "takes {:.3g} ms and, without the removable channels, {:.3g} ms; the table says {:.3g} and {:.3g}".format(
                *times, *told
            )
        )
    return ""

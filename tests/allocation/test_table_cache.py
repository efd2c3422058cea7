"""Latency tables of the cache: damaged ones, and those that measured models contradict, are measured again."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.allocation import channel_multiple, cost_estimator, latency_model, table_cache
from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.knapsack import PruningRules
from onnxprune.allocation.latency_model import Table
from onnxprune.errors import LatencyError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.io import load
from onnxprune.options import Options
from onnxprune.runtime import machine

QUICK = BenchmarkConfig(runs=2, warmup=0)
RULES = PruningRules()


@pytest.fixture(scope="module")
def analysis(models: Path) -> Analysis:
    return analyse(load(models / "small.onnx"))


@pytest.fixture(scope="module")
def measured(analysis: Analysis) -> Table:
    return latency_model.measure(analysis, RULES, QUICK)


def old(path: Path) -> Path:
    """Make a file older than what is believed."""
    os.utime(path, (time.time() - 2 * table_cache.BELIEVED,) * 2)
    return path


def kept(table: Table, path: Path) -> Path:
    latency_model.write(table, path)
    return old(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scale": math.nan}, "not finite"),
        ({"offset": math.inf}, "not finite"),
        ({"scale": -1.0}, "negative"),
        ({"measured": (-1.0, 2.0)}, "negative"),
        ({"measured": (0.0, 2.0)}, "zero"),
        ({"measured": ()}, "no time"),
        ({"predicted": (1.0,)}, "no time"),
        ({"coefficients": (math.nan,) * 5}, "not finite"),
        ({"coefficients": (1.0, 1.0, 1.0, 1.0, -1.0)}, "negative"),
    ],
)
def test_numbers_that_no_measurement_gives(change: dict[str, Any], says: str, measured: Table, tmp_path: Path) -> None:
    if "coefficients" in change:
        change = {"fits": (replace(measured.fits[0], **change), *measured.fits[1:])}
    path = kept(replace(measured, **change), tmp_path / "t.json")
    with pytest.raises(LatencyError, match="no latency table") as caught:
        latency_model.read(path)
    assert says in caught.value.why
    assert caught.value.where == str(path)


def flat(table: Table) -> Table:
    return replace(table, measured=(2.0,) * len(table.measured))


def test_a_given_table_that_is_flat_is_refused(analysis: Analysis, measured: Table, tmp_path: Path) -> None:
    path = kept(flat(measured), tmp_path / "t.json")
    options = Options(reduce={"latency": 0.3}).resolved(True)
    with pytest.raises(LatencyError, match="flat") as caught:
        CostEstimator(analysis, options, QUICK, table=path)
    assert caught.value.where == str(path)


def read(path: Path, analysis: Analysis) -> tuple[Table | None, str]:
    """Return the table that is read, and why none is."""
    said: list[str] = []
    return table_cache.read(path, analysis, RULES, QUICK, lambda _, __, detail="": said.append(detail)), " ".join(said)


def made_by(
    table: Table, analysis: Analysis, monkeypatch: pytest.MonkeyPatch, *, slower: float = 1, narrow: float = 1
) -> None:
    """Let the two models take the times that the table predicts, times a factor for both and one for the narrow one."""
    predictor = latency_model.Predictor(analysis, table)
    whole, *others = latency_model.variants(analysis.trace, RULES, latency_model.SEED)
    told = np.array([[predictor.predict(whole)], [narrow * predictor.predict(others[len(latency_model.UNIFORM) - 1])]])
    monkeypatch.setattr(table_cache, "sample_times", lambda *_, **__: slower * told)


def test_a_table_that_holds_is_used_and_believed_for_a_while(
    analysis: Analysis, measured: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kept(measured, tmp_path / "t.json")
    made_by(measured, analysis, monkeypatch, slower=2)
    assert read(path, analysis) == (measured, "")
    monkeypatch.setattr(table_cache, "sample_times", lambda *_, **__: pytest.fail("it was compared again"))
    assert read(path, analysis) == (measured, "")


@pytest.mark.parametrize("how", [{"narrow": 3}, {"narrow": 1 / 3}, {"slower": 10}, {"slower": 0.1}])
def test_a_table_that_measured_models_contradict_is_not_used(
    how: dict[str, float], analysis: Analysis, measured: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kept(measured, tmp_path / "t.json")
    made_by(measured, analysis, monkeypatch, **how)
    table, said = read(path, analysis)
    assert table is None
    assert "the table says" in said
    assert str(path) in said


def test_models_are_really_timed(analysis: Analysis, measured: Table, tmp_path: Path) -> None:
    impossible = replace(measured, offset=1e6, scale=0.0)
    table, said = read(kept(impossible, tmp_path / "t.json"), analysis)
    assert table is None
    assert "1e+06" in said


@pytest.mark.parametrize(
    "change", [{"architecture": "other"}, {"environment": machine.Environment("other", "1", 1, 1)}]
)
def test_tables_of_another_model_or_machine(
    change: dict[str, Any], analysis: Analysis, measured: Table, tmp_path: Path
) -> None:
    table, said = read(kept(replace(measured, **change), tmp_path / "t.json"), analysis)
    assert table is None
    assert "another" in said


def test_flat_and_damaged_tables_and_none_at_all(analysis: Analysis, measured: Table, tmp_path: Path) -> None:
    assert "flat" in read(kept(flat(measured), tmp_path / "t.json"), analysis)[1]
    for text in ("{", "[]", "null", '{"schema": 1}', "[" * 100_000):
        (tmp_path / "t.json").write_text(text)
        table, said = read(tmp_path / "t.json", analysis)
        assert table is None
        assert "latency table" in said
    assert read(tmp_path / "none.json", analysis) == (None, "")
    assert read(tmp_path / "t.json" / "below", analysis)[0] is None


def test_a_folder_that_cannot_be_written_is_no_error(
    analysis: Analysis, measured: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(cost_estimator.latency_model, "measure", lambda *_: measured)
    estimator = CostEstimator(analysis, Options(reduce={"latency": 0.3}).resolved(True), QUICK)
    assert estimator.table == measured
    channel_multiple.remember(8)
    assert (tmp_path / "file").read_text() == "no folder"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"a": 8}', "[" * 100_000, '{"schema": "onnxprune.channel-multiple/0", "multiple": 8}']
)
def test_a_damaged_channel_multiple_is_measured(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(channel_multiple, "_measured", lambda: 16)
    channel_multiple.remember(8)
    (path,) = tmp_path.iterdir()
    path.write_text(text)
    channel_multiple.machine_multiple.cache_clear()
    try:
        assert channel_multiple.machine_multiple() == 16
        channel_multiple.machine_multiple.cache_clear()
        monkeypatch.setattr(channel_multiple, "_measured", lambda: pytest.fail("it was measured again"))
        assert channel_multiple.machine_multiple() == 16
    finally:
        channel_multiple.machine_multiple.cache_clear()

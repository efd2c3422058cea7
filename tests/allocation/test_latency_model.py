"""Latency tables: fits that find what times are made of, prediction, files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxprune.allocation import latency_model
from onnxprune.allocation.knapsack import PruningRules
from onnxprune.errors import LatencyError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.graph.activation_cost import FEATURES, ActivationCost
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.io import load
from onnxprune.runtime import machine, profiler
from onnxprune.runtime.session import SessionConfig, random_feeds

RULES = PruningRules(round_to=4)


@pytest.fixture
def found(models: Path) -> Analysis:
    return analyse(load(models / "small.onnx"))


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, found: Analysis) -> Analysis:
    """Let every node of a model take what its features say, whatever the machine does."""
    analysis = found
    cost = ActivationCost(analysis.model.graph, analysis.trace, analysis.cost)
    rng = np.random.default_rng(3)
    costs = rng.random((len(analysis.trace.labels), len(FEATURES))) * [5, 1e-3, 2e-3, 1e-5, 1e-4]
    variants = iter(list(latency_model.variants(analysis.trace, RULES, 0)))

    def profile(*_: object, **__: object) -> profiler.Profile:
        times = (cost.features(next(variants)) * costs).sum(axis=1)
        kernels = [profiler.Kernel(n, "", float(time)) for n, time in enumerate(times)]
        kernels.append(profiler.Kernel(None, "", 7.0))
        return profiler.Profile(tuple(kernels), 1e-3 * (1.1 * (times.sum() + 7.0)) + 0.02)

    monkeypatch.setattr(profiler, "profile", profile)
    return analysis


def table_of(analysis: Analysis) -> latency_model.Table:
    return latency_model.measure(analysis, RULES, BenchmarkConfig())


def test_fits_find_what_times_are_made_of(made_up: Analysis) -> None:
    table = table_of(made_up)
    assert table.error < 1e-3
    assert table.worst < 1e-2
    assert table.scale == pytest.approx(1.1, rel=0.02)
    assert {fit.step for fit in table.fits} == {1}


def test_predictions_of_other_plans(made_up: Analysis) -> None:
    table = table_of(made_up)
    predictor = latency_model.Predictor(made_up, table)
    keeps = list(latency_model.variants(made_up.trace, RULES, 0))
    assert [predictor.predict(keep) for keep in keeps] == pytest.approx(table.predicted)


def test_a_staircase_is_found() -> None:
    counts = np.array([16, 12, 8, 20, 32, 28, 24, 9, 30, 17])
    features = {
        step: np.stack([np.ones(10), *[0 * counts] * 2, -(-counts // step) * step * 100.0, 0 * counts], axis=1)
        for step in latency_model.STEPS
    }
    for step in latency_model.STEPS:
        times = 3 + 0.05 * features[step][:, 3]
        fit = latency_model.fit_node("conv", "Conv", features, times)
        assert fit.step == step
        assert fit.coefficients[3] == pytest.approx(0.05)


def test_measured_on_this_machine(found: Analysis, tmp_path: Path) -> None:
    table = table_of(found)
    labels = [fit.label for fit in table.fits]
    assert len(set(labels)) == len(labels)
    convs = [label for label, op in zip(found.trace.labels, found.trace.ops, strict=True) if op == "Conv"]
    assert set(convs) <= set(labels)
    assert all(value >= 0 for fit in table.fits for value in fit.coefficients)
    assert table.environment == machine.environment(SessionConfig(threads=1), 1)
    latency_model.write(table, tmp_path / "t.json")
    assert latency_model.read(tmp_path / "t.json") == table


def test_architecture_is_not_about_weights(found: Analysis, models: Path, tmp_path: Path) -> None:
    import onnx

    proto = onnx.load(models / "small.onnx")
    changed = onnx.numpy_helper.to_array(proto.graph.initializer[0]) * np.float32(1.5)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(changed, proto.graph.initializer[0].name))
    onnx.save(proto, tmp_path / "b.onnx")
    other = analyse(load(tmp_path / "b.onnx"))
    assert latency_model.architecture(other) == latency_model.architecture(found)
    unlike = analyse(load(models / "resnet.onnx"))
    assert latency_model.architecture(unlike) != latency_model.architecture(found)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": "other/1"}, "schema"),
        ({"fits": [{"label": "a"}]}, "no entry"),
        ({"scale": "much"}, "much"),
        ({"rest": None}, "another type"),
        (
            {"environment": {"processor": "p", "runtime": "1", "threads": 1, "batch": 1, "provider": 0.5}},
            "provider of the environment is 0.5",
        ),
        (
            {"fits": [{"label": {}, "op": "Conv", "step": 1, "coefficients": [0.0] * len(FEATURES), "error": 0.0}]},
            "the fit of {}",
        ),
    ],
)
def test_damaged_tables_are_refused(made_up: Analysis, tmp_path: Path, change: dict, says: str) -> None:
    content = {**table_of(made_up).to_dict(), **change}
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(LatencyError, match="no latency table") as caught:
        latency_model.read(tmp_path / "t.json")
    assert says in caught.value.why


def test_no_table_at_all(tmp_path: Path) -> None:
    with pytest.raises(LatencyError, match="cannot be read"):
        latency_model.read(tmp_path / "none.json")
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(LatencyError, match="cannot be read"):
        latency_model.read(tmp_path / "t.json")


def test_kernels_name_the_nodes_they_came_from(found: Analysis) -> None:
    proto, weights = found.model.stub()
    ops = [node.op_type for node in proto.graph.node]
    feeds = random_feeds(proto, found.model.signature.input_shapes(1), 0)
    profile = profiler.profile(proto, feeds, SessionConfig(threads=1), weights=weights, runs=4)
    convs = {n for n, op in enumerate(ops) if op == "Conv"}
    assert convs <= {kernel.node for kernel in profile.kernels}
    assert profile.milliseconds > 0
    assert all(kernel.microseconds >= 0 for kernel in profile.kernels)


def test_cache_tells_machines_and_rules_apart() -> None:
    here = machine.environment(SessionConfig(threads=1), 1)
    paths = {
        latency_model.cached(name, where, rules)
        for name in ("a", "b")
        for where in (here, replace(here, threads=2), replace(here, processor="another"))
        for rules in (PruningRules(8), PruningRules(16))
    }
    assert len(paths) == 12

"""The three reference networks in models/, and the same networks untrained, out of both exporters of torch."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from graphs import random_plan

from onnxprune.errors import OptionError
from onnxprune.evaluation.structure import full_check
from onnxprune.graph import analysis as analysing
from onnxprune.graph import io
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.cost import CostModel
from onnxprune.graph.model import Model
from onnxprune.graph.trace import trace as trace_model
from onnxprune.importance import weights as importance
from onnxprune.importance.methods import METHODS
from onnxprune.options import Options
from onnxprune.pipeline.schedule import make_plan
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.mask import mask
from onnxprune.surgery.proof import prove
from onnxprune.types import BoolArray, Trace

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("small", "resnet", "mobile")

# (channels, pinned, layers that write them) of every group, in the order of the graph
GROUPS = {
    "small": [(64, 0, 1), (64, 0, 1), (128, 0, 1), (10, 10, 1)],
    "resnet": [
        (16, 0, 3), (16, 0, 1), (16, 0, 1),
        (32, 0, 1), (32, 0, 3), (32, 0, 1),
        (64, 0, 1), (64, 0, 3), (64, 0, 1),
        (10, 10, 1),
    ],
    "mobile": [
        (16, 0, 1), (48, 0, 2), (8, 0, 1), (24, 0, 3),
        (96, 0, 2), (24, 0, 1), (96, 0, 2), (24, 0, 1), (96, 0, 2), (24, 0, 1), (40, 0, 3),
        (160, 0, 2), (40, 0, 1), (160, 0, 2), (40, 0, 1), (160, 0, 2), (40, 0, 1), (64, 0, 2),
        (192, 0, 2), (48, 0, 1), (128, 0, 1), (10, 10, 1),
    ],
}  # fmt: skip
COSTS = {"small": (11_732_224, 564_426), "resnet": (20_183_936, 174_410), "mobile": (7_897_024, 177_954)}
"""MACs per image and parameters, BatchNormalization folded; those of small and resnet were worked out by hand."""


@functools.cache
def analysed(name: str) -> Analysis:
    return analysing.analyse(io.load(ROOT / "models" / f"{name}.onnx"))


def table(trace: Trace) -> list[tuple[int, int, int]]:
    return [(g.channels.size, int(trace.pinned[g.channels].sum()), len(g.layers)) for g in trace.groups]


def dense(trace: Trace) -> BoolArray:
    return np.ones(trace.n_channels, dtype=bool)


def pruned_and_proven(model: Model, trace: Trace, keep: BoolArray, seed: int = 0) -> Model:
    """Delete channels, after a proof that this equals masking them."""
    pruned = rewrite.delete(model, trace, keep)
    proof = prove(model, pruned, mask(model, trace, keep), seed=seed)
    assert proof.difference <= 1e-4
    assert proof.batches == (1, 3)
    assert full_check(pruned.to_proto()) is None
    return pruned


@pytest.mark.parametrize("name", NAMES)
def test_groups_of_the_reference_networks(name: str) -> None:
    trace = analysed(name).trace
    assert table(trace) == GROUPS[name]
    assert {(pin.op, pin.reason) for pin in trace.pins} == {("Gemm", "it is a channel of the model output logits")}


@pytest.mark.parametrize("name", NAMES)
def test_cost_of_the_reference_networks(name: str) -> None:
    cost = analysed(name).cost
    macs, params = COSTS[name]
    assert cost.totals(dense(cost.trace)) == (macs, params)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", NAMES)
def test_random_plans_are_exact(name: str, seed: int) -> None:
    analysis = analysed(name)
    keep = random_plan(analysis.trace, seed, 0.1 + 0.04 * seed)
    pruned_and_proven(analysis.model, analysis.trace, keep, seed)


def largest_block(analysis: Analysis, options: Options, quantity: int) -> float:
    """Return the most that one more block of `round_to` channels removes from the dense model."""
    whole = dense(analysis.trace)
    most = 0.0
    for group in analysis.trace.groups:
        free = group.channels[~analysis.trace.pinned[group.channels]]
        if free.size:
            keep = whole.copy()
            keep[free[: options.round_to]] = False
            most = max(most, analysis.cost.totals(whole)[quantity] - analysis.cost.totals(keep)[quantity])
    return most


@pytest.mark.parametrize("target", [("flops", 0.3), ("flops", 0.5), ("flops", 0.7), ("params", 0.4)])
@pytest.mark.parametrize("schedule", ["block", "progressive"])
@pytest.mark.parametrize("name", NAMES)
def test_schedules_end_at_the_target(name: str, schedule: str, target: tuple[str, float]) -> None:
    analysis, (quantity, share) = analysed(name), target
    options = Options(reduce={quantity: share}, schedule=schedule, steps=4, round_to=8)
    plan = make_plan(analysis, options)
    which = ("flops", "params").index(quantity)
    # parameters are those of the file, before BatchNormalization is folded
    whole = (analysis.cost.totals(dense(analysis.trace))[0], analysis.model.params)[which]
    goal = whole * (1 - share)
    left = analysis.cost.totals(plan.keep)[which]
    assert goal - largest_block(analysis, options, which) < left <= goal

    assert len(plan.path) == (4 if schedule == "progressive" else 1)
    for step, removed in enumerate(plan.path, 1):
        assert removed[which] >= share * step / len(plan.path) - 1e-9, "each step is on its way to the target"
    assert removed[which] == pytest.approx(1 - left / whole)


@pytest.mark.parametrize("round_to", [1, 4, 8])
@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("name", NAMES)
def test_survivors_are_multiples_of_round_to(name: str, scope: str, round_to: int) -> None:
    analysis = analysed(name)
    options = Options(reduce={"flops": 0.5}, scope=scope, round_to=round_to)
    plan = make_plan(analysis, options)
    lost = 0
    for group in analysis.trace.groups:
        left = int(plan.keep[group.channels].sum())
        if left < group.channels.size:
            lost += 1
            assert left % round_to == 0
            assert left >= max(1, (1 - options.max_ratio) * group.channels.size - 1e-9)
    assert lost >= 2
    pruned_and_proven(analysis.model, analysis.trace, plan.keep)


@pytest.mark.parametrize("name", NAMES)
def test_uniform_scope_takes_the_same_share_of_each_group(name: str) -> None:
    analysis = analysed(name)
    plan = make_plan(analysis, Options(reduce={"flops": 0.5}, scope="uniform", round_to=1))
    shares = [
        (float(1 - plan.keep[group.channels].mean()), group.channels.size)
        for group in analysis.trace.groups
        if not analysis.trace.pinned[group.channels].any()
    ]
    target = max(share for share, _ in shares)
    assert target > 0.2
    for share, size in shares:
        assert share >= target - 1 / size - 1e-9


@pytest.mark.parametrize("schedule", ["block", "progressive"])
@pytest.mark.parametrize("rules", [{"min_channels": 24}, {"max_ratio": 0.4}, {"min_channels": 10, "max_ratio": 0.6}])
@pytest.mark.parametrize("name", NAMES)
def test_min_channels_and_max_ratio_hold(name: str, rules: dict[str, Any], schedule: str) -> None:
    analysis = analysed(name)
    options = Options(reduce={"flops": 0.25}, round_to=1, schedule=schedule, **rules)
    plan = make_plan(analysis, options)
    for group in analysis.trace.groups:
        left = int(plan.keep[group.channels].sum())
        assert left >= min(group.channels.size, options.min_channels)
        assert left >= (1 - options.max_ratio) * group.channels.size - 1e-9


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.data])
@pytest.mark.parametrize("name", NAMES)
def test_importances_are_deterministic(name: str, method: str) -> None:
    analysis = analysed(name)
    model, trace = analysis.model, analysis.trace
    if method == "bn_scale" and name != "resnet":
        with pytest.raises(OptionError, match="finds nothing to rank"):
            importance.score(model, trace, method)
        return
    one, two = (importance.score(model, trace, method, seed=3) for _ in range(2))
    assert np.array_equal(one, two, equal_nan=True)
    free = ~trace.pinned
    assert np.isfinite(one[free]).all()
    assert (one[free] >= 0).all()
    for group in trace.groups:
        if not trace.pinned[group.channels].any():
            assert one[group.channels].mean() == pytest.approx(1)
    keep = make_plan(analysis, Options(reduce={"flops": 0.4}, importance=method, seed=3)).keep
    assert np.array_equal(keep, make_plan(analysis, Options(reduce={"flops": 0.4}, importance=method, seed=3)).keep)
    pruned_and_proven(model, trace, keep)


def test_seeds_of_the_random_importance_differ() -> None:
    analysis = analysed("small")
    one, two = (importance.score(analysis.model, analysis.trace, "random", seed=seed) for seed in (0, 1))
    assert not np.array_equal(one, two)


@functools.cache
def make_models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_models", ROOT / "tools" / "make_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.torch
@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
@pytest.mark.parametrize("name", NAMES)
def test_untrained_networks_out_of_both_exporters(name: str, exporter: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    path = tmp_path / f"{name}.onnx"
    make_models().export(make_models().build(name), path, exporter)
    model = io.load(path)
    trace = trace_model(model)
    assert table(trace) == GROUPS[name], "the exporter makes no difference"
    analysis = Analysis(model, trace, CostModel(trace))
    plan = make_plan(analysis, Options(reduce={"flops": 0.5}))
    pruned = pruned_and_proven(model, trace, plan.keep)
    macs = analysis.cost.totals(dense(trace))[0]
    assert analysis.cost.totals(plan.keep)[0] <= 0.5 * macs
    again = trace_model(_written(pruned, tmp_path))
    assert CostModel(again).totals(dense(again)) == pytest.approx(analysis.cost.totals(plan.keep))


def _written(model: Model, folder: Path) -> Model:
    io.save(model, folder / "pruned.onnx")
    return io.load(folder / "pruned.onnx")

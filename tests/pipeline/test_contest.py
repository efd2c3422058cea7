"""Layers are given another form so that targets are met, by whichever kind of edit loses least; plans say so and can be replayed.

Times of layers are replaced by their multiplications: what is measured has no say in what is tested here.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from edited_models import residual

import onnxprune
from onnxprune.allocation import edit_timing
from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.edit_choice import EditEstimator, ScoredEdit, least_loss, net_gain, worth
from onnxprune.allocation.edit_timing import Saving
from onnxprune.allocation.knapsack import holds
from onnxprune.errors import PlanError, TargetError
from onnxprune.graph.analysis import analyse
from onnxprune.graph.io import load
from onnxprune.metrics import activation_memory as memory
from onnxprune.options import GRANULARITIES, Options
from onnxprune.pipeline import contest
from onnxprune.pipeline.edited_model import EditedModel, apply
from onnxprune.runtime.session import run_batch
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.edits import candidates
from onnxprune.surgery.edits.apply import apply_edits
from onnxprune.surgery.edits.depth import DropBranch, Merge
from onnxprune.surgery.edits.kernel import Kernel
from onnxprune.surgery.edits.low_rank import LowRank
from onnxprune.surgery.proof import TOLERANCE

FAST = onnxprune.BenchmarkConfig(latency=False)


@pytest.fixture(autouse=True)
def by_macs(monkeypatch):
    """Let a layer take as long as it multiplies."""
    monkeypatch.setattr(edit_timing, "layer_times", lambda layers: [layer.counts[0] / 1e6 for layer in layers])


def pruned(path, samples, granularity, **dials):
    return onnxprune.prune(
        path, data=samples, measure=FAST, granularity=granularity, **{"reduce": {"flops": 0.4}, "round_to": 2, **dials}
    )


@pytest.mark.parametrize("kind", ["kernel", "rank"])
def test_a_target_is_met_without_any_channel_going(kind, tiny_path, samples):
    result = pruned(tiny_path, samples, (kind,))
    assert result.report.after.flops <= 0.6 * result.report.before.flops
    assert result.plan.keep.all()
    entries = [entry for part in result.plan.blocks for entry in part]
    assert entries
    for entry in entries:
        before, after = entry["why"]["milliseconds"]
        assert after < before
        assert entry["why"]["divergence"] >= 0
    assert result.report.proof.difference <= TOLERANCE
    assert result.report.path[-1][0] == pytest.approx(1 - result.report.after.flops / result.report.before.flops)
    assert onnx.checker.check_model(result.model.to_proto(), full_check=True) is None
    assert any(str(entry["what"]) in str(result.report.to_dict()["blocks"]) for entry in entries)


def test_a_plan_with_edits_is_replayed_to_the_same_model(tiny_path, samples, out):
    first = onnxprune.prune(
        tiny_path, data=samples, measure=FAST, granularity=("rank", "kernel"), reduce={"flops": 0.4}, round_to=2,
        output=out / "a.onnx",
    )  # fmt: skip
    again = onnxprune.prune(tiny_path, data=samples, measure=FAST, plan=out / "a.plan.json", output=out / "b.onnx")
    assert [e["layer"] for e in first.plan.blocks[0]] == [e["layer"] for e in again.plan.blocks[0]]
    one, two = (onnx.load(out / name).graph for name in ("a.onnx", "b.onnx"))
    assert one == two


@pytest.fixture
def planted(tiny, out):
    """Return a file with the tiny model, in whose second layer all taps but the one in the middle say next to nothing."""
    weight = next(w for w in tiny.graph.initializer if w.name == "w2")
    values = onnx.numpy_helper.to_array(weight) * np.where(np.arange(9).reshape(3, 3) == 4, 3.0, 0.02)
    weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), "w2"))
    onnx.save(tiny, out / "planted.onnx")
    return out / "planted.onnx"


def test_taps_that_say_nothing_go_before_any_channel(planted, samples):
    result = pruned(planted, samples, GRANULARITIES, reduce={"flops": 0.6}, round_to=1)
    assert [(entry["kind"], entry["layer"]) for entry in result.plan.blocks[0]] == [("kernel", "conv2")]
    assert result.plan.keep.all()


def test_a_plan_with_edits_and_channels_is_replayed_to_the_same_model(planted, samples, out):
    dials = {"data": samples, "measure": FAST, "round_to": 1}
    first = onnxprune.prune(
        planted, granularity=("filter", "kernel"), reduce={"flops": 0.9}, output=out / "a.onnx", **dials
    )
    assert "conv2" in [entry["layer"] for entry in first.plan.blocks[0]]
    assert not first.plan.keep.all()
    onnxprune.prune(planted, plan=out / "a.plan.json", output=out / "b.onnx", **dials)
    assert onnx.load(out / "a.onnx").graph == onnx.load(out / "b.onnx").graph


def test_a_changed_edit_of_a_plan_counts(tiny_path, samples, out):
    onnxprune.prune(
        tiny_path,
        data=samples,
        measure=FAST,
        granularity=("rank",),
        reduce={"flops": 0.4},
        round_to=2,
        output=out / "a.onnx",
    )
    path = out / "a.plan.json"
    plan = json.loads(path.read_text())
    plan["blocks"] = [[{"kind": "kernel", "layer": "conv2", "taps": [[1, 1, 1], [0, 1, 3]]}]]
    groups = {group["name"] for group in plan["groups"]}
    plan["groups"] = [group for group in plan["groups"] if not group["name"].endswith("__rank")]
    assert len(groups) >= len(plan["groups"])
    path.write_text(json.dumps(plan))
    result = onnxprune.prune(tiny_path, data=samples, measure=FAST, plan=path)
    weight = next(n for n in result.model.graph.nodes if n.name == "conv2").inputs[1]
    assert weight.shape == (16, 16, 1, 3)


def test_an_edit_of_a_plan_that_cannot_be_made_is_refused(tiny_path, samples, out, refused):
    onnxprune.prune(tiny_path, data=samples, measure=FAST, reduce={"flops": 0.4}, round_to=2, output=out / "a.onnx")
    path = out / "a.plan.json"
    plan = json.loads(path.read_text())
    for blocks, says in (
        ([[{"kind": "rank", "layer": "conv2", "rank": 99, "form": "channel"}]], "directions"),
        ([[{"kind": "fold", "layer": "conv2"}]], "cannot be read"),
        ([[{"kind": "grouped", "layer": "conv2", "groups": 2}]], "(granularity group) are no longer made"),
        ([[{"kind": "rank", "layer": "conv2", "form": "channel", "ranks": 2}]], "unknown ranks and missing rank"),
        ("all", "no list of rounds"),
    ):
        path.write_text(json.dumps({**plan, "blocks": blocks}))
        refused("prune", tiny_path, "-o", out / "b.onnx", "--plan", path, "--data", samples, says=says)


def test_what_takes_data_says_so(tiny_path, out, refused):
    refused(
        "prune", tiny_path, "-o", out / "b.onnx", "--granularity", "rank,filter", "--repair", "none", "--reduce", "flops=30%",
        says=("--granularity rank needs inputs", "--data"), code=2,
    )  # fmt: skip
    refused(
        "prune",
        tiny_path,
        "-o",
        out / "b.onnx",
        "--granularity",
        "block",
        "--reduce",
        "flops=30%",
        says="filter, kernel",
        code=2,
    )


def test_a_target_that_edits_alone_cannot_meet_is_refused(tiny_path, samples, out, refused):
    refused(
        "prune", tiny_path, "-o", out / "b.onnx", "--granularity", "depth", "--reduce", "flops=30%", "--data", samples,
        says=("the target cannot be reached", "--granularity all"),
    )  # fmt: skip


def test_all_compete(tiny_path, samples):
    result = pruned(tiny_path, samples, GRANULARITIES, reduce={"flops": 0.5})
    told = next(note for note in result.report.notes if note.startswith("compared on held-out samples"))
    losses = [float(part.split("divergence ")[1].split()[0]) for part in told.split(";") if "divergence" in part]
    assert len(losses) > 1
    assert result.report.after.flops <= 0.5 * result.report.before.flops
    alone = pruned(tiny_path, samples, ("filter",), reduce={"flops": 0.5})
    assert min(losses) <= losses[0]
    if not result.plan.blocks:
        assert (result.plan.keep == alone.plan.keep).all()


def test_progressive_steps_take_edits_by_rounds(tiny_path, samples):
    result = pruned(tiny_path, samples, ("rank", "kernel"), schedule="progressive", steps=2)
    assert 1 <= len(result.plan.blocks) <= 2
    assert result.report.after.flops <= 0.6 * result.report.before.flops


def test_progressive_steps_take_edits_beside_channels(planted, samples, out):
    """The first step is met by taps that say nothing; channels go later, and the plan gives the same again."""
    dials = {"data": samples, "measure": FAST, "round_to": 1}
    result = onnxprune.prune(
        planted, granularity=("filter", "kernel"), reduce={"flops": 0.9}, schedule="progressive", steps=3,
        output=out / "a.onnx", **dials,
    )  # fmt: skip
    told = next(note for note in result.report.notes if note.startswith("compared on held-out samples"))
    first = told[told.index("33% of the way") : told.index("67% of the way")]
    assert "1 edit:" in first
    assert "100% of the way" in told
    assert "conv2" in [entry["layer"] for entry in result.plan.blocks[0]]
    assert not result.plan.keep.all()
    assert len(result.plan.path) == 3
    assert result.plan.settings["schedule"] == "progressive"
    assert result.report.after.flops <= 0.1 * result.report.before.flops
    assert result.report.proof.difference <= TOLERANCE
    onnxprune.prune(planted, plan=out / "a.plan.json", output=out / "b.onnx", **dials)
    assert onnx.load(out / "a.onnx").graph == onnx.load(out / "b.onnx").graph


def test_a_way_that_steps_cannot_follow_is_left_out(planted, samples, monkeypatch):
    dials = {
        "data": samples, "measure": FAST, "round_to": 1, "granularity": ("filter", "kernel"), "reduce": {"flops": 0.9},
        "schedule": "progressive", "steps": 2,
    }  # fmt: skip
    real = contest.Search.by_steps

    def by_steps(self, solution):
        if not solution.base.chosen or everything:
            raise TargetError("no", why="coupled otherwise; and more", hint="none")
        return real(self, solution)

    monkeypatch.setattr(contest.Search, "by_steps", by_steps)
    everything = False
    result = onnxprune.prune(planted, **dials)
    assert result.plan.blocks
    assert any("channels alone cannot reach the target by steps (coupled otherwise)" in n for n in result.report.notes)
    everything = True
    with pytest.raises(TargetError, match="no"):
        onnxprune.prune(planted, **dials)


def test_edits_that_lose_more_than_the_best_has_lost_get_no_channels_chosen(planted, samples, monkeypatch):
    made = []

    def costly(*args):
        made.append(replace(apply(*args), loss=100.0))
        return made[-1]

    monkeypatch.setattr(contest, "apply", costly)
    result = pruned(planted, samples, ("filter", "kernel"), reduce={"flops": 0.9})
    assert made
    assert not result.plan.blocks
    told = next(note for note in result.report.notes if note.startswith("compared on held-out samples"))
    assert "before any channel goes, already too much: divergence 100" in told
    assert "edits:" not in told


def test_what_a_later_round_starts_from_is_what_is_left(models):
    model = load(models / "small.onnx")
    analysis = analyse(model)
    options = Options(reduce={"latency": 0.5}).resolved(False)
    estimator = CostEstimator(analysis, options, onnxprune.BenchmarkConfig(runs=10, warmup=2, seconds=2))
    keep = np.ones(analysis.trace.n_channels, dtype=bool)
    keep[np.concatenate([group.channels[1::2] for group in analysis.trace.groups])] = False
    keep[analysis.trace.pinned] = True
    left = estimator.for_model(analyse(rewrite.delete(model, analysis.trace, keep)))
    assert EditEstimator(left, ()).start["flops"] < 0.6 * EditEstimator(estimator, ()).start["flops"]
    assert EditEstimator(left, ()).start["latency"] < 0.9 * EditEstimator(estimator, ()).start["latency"]
    assert left.budget() == estimator.budget()


def test_edits_go_no_further_than_the_goals(tiny_path):
    analysis = analyse(load(tiny_path))
    estimator = CostEstimator(analysis, Options(reduce={"flops": 0.5}).resolved(False), FAST)
    macs = estimator.whole["flops"] / 2
    found = [scored(LowRank(str(n), 4, "channel"), (n,), 0.1 * (n + 1), macs=macs * 0.2) for n in range(5)]
    costs = EditEstimator(estimator, found)
    assert least_loss(costs, costs.budget()).tolist() == [True, True, True, False, False]
    assert worth(costs, costs.budget(), 9.0).tolist() == [True, True, True, False, False], "no more than needed"
    assert worth(costs, costs.budget(), 1.1).tolist() == [True, True, False, False, False], "channels do the rest"


@pytest.mark.parametrize("ignore", [("conv1", "head"), ("w1", "w3")])
def test_ignored_layers_keep_their_form(ignore, tiny_path, samples):
    result = pruned(tiny_path, samples, ("rank", "kernel"), ignore=ignore, reduce={"flops": 0.3})
    assert {entry["layer"] for part in result.plan.blocks for entry in part} == {"conv2"}


def test_a_layer_is_ignored_by_the_name_of_its_weight_as_well(tiny_path, samples):
    result = pruned(tiny_path, samples, ("rank", "kernel"), ignore=("w2",), reduce={"flops": 0.05})
    layers = {entry["layer"] for part in result.plan.blocks for entry in part}
    assert layers
    assert "conv2" not in layers


def test_importances_weigh_edits(tiny_path, samples):
    forms = {}
    for importance in ("obs", "l2", "activation"):
        result = pruned(tiny_path, samples, ("kernel",), importance=importance, scope="global")
        forms[importance] = [entry["why"]["error"] for entry in result.plan.blocks[0]]
    assert len({json.dumps(found) for found in forms.values()}) > 1


@pytest.mark.torch
@pytest.mark.parametrize("importance", ["taylor", "fisher", "hessian"])
def test_gradients_weigh_edits(importance, tiny_path, samples):
    result = pruned(tiny_path, samples, ("kernel", "rank"), importance=importance)
    assert result.report.after.flops <= 0.6 * result.report.before.flops
    assert all(entry["why"]["divergence"] >= 0 for entry in result.plan.blocks[0])


@pytest.mark.torch
def test_what_a_change_costs_is_what_the_loss_rises_by(tiny_path, samples):
    from onnxprune.calibration.batches import Calibration
    from onnxprune.data.dataset import load_data
    from onnxprune.graph.model import inputs_of
    from onnxprune.importance import gradients
    from onnxprune.metrics.outputs import output_divergence

    model = load(tiny_path)
    analysis = analyse(model)
    calibration = Calibration.of(load_data(samples, inputs_of(model), None), 64)
    directions, seen = gradients.of_weights(model, analysis.trace, calibration, "fisher", {2: 1})
    assert seen == 64
    weight = model.graph.nodes[2].inputs[1]
    feeds = calibration.data.rows(0, 64)
    before = run_batch(model.session(), feeds)
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(8):
        change = 0.02 * rng.standard_normal(weight.shape).astype(np.float32)
        other = model.copy()
        other.graph.nodes[2].inputs[1].values = weight.values + change
        risen = output_divergence(before, run_batch(other.session(), feeds))
        ratios.append(gradients.of_change(directions[2], change, seen) / risen)
    assert 0.5 < np.median(ratios) < 2  # a variance, from 32 draws


def test_a_branch_goes_and_what_is_left_is_repaired():
    model = residual()
    analysis = analyse(model)

    found = apply(EditedModel(analysis, model), [ScoredEdit(DropBranch("sum", 0))], Options().resolved(False), None)
    assert "outer" not in [node.name for node in found.analysis.model.graph.nodes]
    assert found.proof.difference <= TOLERANCE


def scored(edit, nodes, loss, macs=0.0, params=0.0, milliseconds=0.5):
    return ScoredEdit(edit, nodes, frozenset(), Saving(1.0, 1.0 - milliseconds, macs, params), 0.1, loss)


def test_the_multiplier_decides(tiny_path):
    analysis = analyse(load(tiny_path))
    estimator = CostEstimator(analysis, Options(reduce={"flops": 0.9}).resolved(False), FAST)

    def chosen(gains, multiplier):
        found = [
            scored(edit, nodes, loss, macs=gain * estimator.whole["flops"] / 2)
            for (edit, nodes, loss), gain in zip(edits, gains, strict=True)
        ]
        return net_gain(EditEstimator(estimator, found), multiplier).tolist()

    edits = [
        (LowRank("a", 4, "channel"), (0,), 0.1),
        (LowRank("a", 2, "channel"), (0,), 0.5),
        (Kernel("b", ((0, 1, 3), (0, 1, 3))), (1,), 0.4),
        (DropBranch("sum", 0), (0, 1, 2), 0.7),
    ]
    gains = [0.1, 0.3, 0.2, 0.4]
    assert not any(chosen(gains, 0.1))
    assert chosen(gains, 1.5) == [True, False, False, False]
    assert chosen(gains, 2.1) == [False, True, True, False]
    assert chosen([0.1, 0.1, 0.1, 0.9], 2.0) == [False, False, False, True]


def drawn(rng, whole):
    """Return up to eleven edits of five nodes, some of which span several, with losses of any order of magnitude."""
    found = []
    for number in range(int(rng.integers(4, 12))):
        first = int(rng.integers(5))
        nodes = tuple(range(first, min(5, first + int(rng.choice([1, 1, 1, 3])))))
        share = rng.uniform(0.02, 0.4)
        loss = float(share * 10 ** rng.uniform(-6, 2)) * (rng.random() > 0.1)
        edit = LowRank(str(number), 4, "channel")
        found.append(scored(edit, nodes, loss, share * whole["flops"], rng.uniform(-0.1, 0.4) * whole["params"]))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_no_other_selection_loses_less(seed, tiny_path):
    rng = np.random.default_rng(seed)
    analysis = analyse(load(tiny_path))
    original = CostEstimator(analysis, Options(reduce={"flops": 0.5}).resolved(False), FAST)
    for _ in range(12):
        targets = {"flops": rng.uniform(0.05, 0.6), "params": rng.uniform(0.05, 0.6)}
        names = [name for name in targets if rng.random() < 0.7] or ["flops"]
        estimator = original.with_targets(Options(reduce={name: targets[name] for name in names}).resolved(False))
        whole = {**original.whole, "flops": original.whole["flops"] / 2}  # edits save multiplications
        found = drawn(rng, whole)
        costs, budget = EditEstimator(estimator, found), estimator.budget()
        fitting = []
        for choice in itertools.product((False, True), repeat=len(found)):
            nodes = [n for edit in itertools.compress(found, choice) for n in edit.nodes]
            if len(set(nodes)) == len(nodes) and holds(costs.predict(np.array(choice)), budget):
                fitting.append(sum(edit.loss for edit in itertools.compress(found, choice)))
        if not fitting:
            with pytest.raises(TargetError, match="cannot be reached"):
                least_loss(costs, budget)
            continue
        chosen = least_loss(costs, budget)
        assert holds(costs.predict(chosen), budget)
        nodes = [n for edit in itertools.compress(found, chosen) for n in edit.nodes]
        assert len(set(nodes)) == len(nodes)
        assert costs.losses[chosen].sum() <= min(fitting) * (1 + 1e-5) + 1e-8


@pytest.fixture
def wide(out):
    """Return a file with a model whose activations peak within a branch of a sum."""
    rng = np.random.default_rng(2)
    shapes = {"k0": (8, 3, 3, 3), "k1": (32, 8, 3, 3), "k2": (8, 32, 3, 3), "m": (8, 4)}
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x", "k0"], ["a"], "stem", pads=[1, 1, 1, 1]),
        make("Conv", ["a", "k1"], ["b"], "inner", pads=[1, 1, 1, 1]),
        make("Relu", ["b"], ["c"], "relu"),
        make("Conv", ["c", "k2"], ["d"], "outer", pads=[1, 1, 1, 1]),
        make("Add", ["a", "d"], ["e"], "sum"),
        make("Relu", ["e"], ["f"], "relu2"),
        make("GlobalAveragePool", ["f"], ["g"], "pool"),
        make("Flatten", ["g"], ["h"], "flat"),
        make("Gemm", ["h", "m"], ["y"], "head"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "wide",
        [onnx.helper.make_tensor_value_info("x", 1, ["n", 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", 1, ["n", 4])],
        [onnx.numpy_helper.from_array(rng.normal(0, 0.3, s).astype(np.float32), name) for name, s in shapes.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), out / "wide.onnx")
    return out / "wide.onnx"


@pytest.mark.parametrize("granularity", [("depth",), GRANULARITIES, ("rank", "kernel", "depth")])
def test_a_target_of_memory_is_met_by_edits(granularity, wide, samples):
    result = pruned(wide, samples, granularity, reduce={"memory": 0.4})
    check = next(check for check in result.report.verdict.checks if check.name.startswith("memory"))
    assert check.passed
    assert check.value <= 0.6 * memory.peak(load(wide), {"x": (1, 3, 8, 8)})
    if "filter" not in granularity:
        assert [entry["kind"] for entry in result.plan.blocks[0]] == ["depth"]


def test_a_target_of_memory_that_no_edit_can_meet_is_refused(wide, samples):
    with pytest.raises(TargetError, match="cannot be reached"):
        pruned(wide, samples, ("rank", "kernel"), reduce={"memory": 0.4})


@pytest.mark.parametrize("granularity", [("rank",), ("filter", "rank")])
def test_a_target_of_size_is_met_by_edits(granularity, wide, samples):
    result = pruned(wide, samples, granularity, reduce={"size": 0.25})
    assert all(check.passed for check in result.report.verdict.checks), [
        str(c) for c in result.report.verdict.checks if not c
    ]


def test_a_merged_layer_is_not_edited_again_as_one_of_the_two() -> None:
    """The proof would fail: the masked model has both layers, and the edit was found in their product."""
    model = residual()
    labels = [node.name for node in model.graph.nodes]
    merge = Merge("project", "expand")
    earlier = ScoredEdit(merge, (6, 7), frozenset({"project", "expand"}))
    merged = apply_edits(model, [merge]).model
    names = [node.name for node in merged.graph.nodes]
    found = [
        ScoredEdit(found.edit, found.nodes, frozenset(names[n] for n in found.nodes))
        for found in candidates(merged, frozenset({"kernel", "rank", "depth"}), 1)
    ]
    assert "expand" in {scored.edit.layer for scored in found}
    left = contest.unedited(found, [earlier], labels)
    assert left
    assert "expand" not in {scored.edit.layer for scored in left}
    assert any(scored.edit.removes_nodes for scored in left)


@pytest.mark.parametrize(
    "edits",
    [
        [DropBranch("sum", 0), DropBranch("sum", 1)],
        [Merge("project", "expand"), Kernel("project", ((0, 1, 1), (0, 1, 1)))],
        [Merge("project", "expand"), LowRank("project", 1, "channel")],
    ],
)
def test_an_edit_of_a_layer_that_another_one_has_removed_is_refused(edits) -> None:
    with pytest.raises(PlanError, match="cannot be made") as caught:
        apply_edits(residual(), edits)
    assert "removes the layer" in caught.value.why


@pytest.mark.parametrize(
    ("alone", "others", "expected"),
    [
        (3.0, [(5, 1.0), (3, 1.08), (4, 1.05)], [1.08, 1.05, 1.0, 3.0]),  # three are equal, the fewest edits first
        (1.05, [(1, 1.0), (2, 1.2)], [1.05, 1.0, 1.2]),
        (1.2, [(1, 1.0)], [1.0, 1.2]),
        (1.0, [(1, 2.0)], [1.0, 2.0]),
        (math.nan, [(1, 1.0)], [1.0, math.nan]),
        (math.nan, [], [math.nan]),
        (None, [(1, math.inf)], [math.inf]),
    ],
)
def test_of_about_equal_solutions_the_one_with_the_fewest_edits_comes_first(alone, others, expected):
    def solution(edits, rank):
        return SimpleNamespace(rank=rank, base=SimpleNamespace(edits=(None,) * edits))

    search = contest.Search(run=None)
    search.alone = None if alone is None else solution(0, alone)
    search.others = [solution(*other) for other in others]
    np.testing.assert_array_equal([found.rank for found in search.ranked()], expected)


@pytest.mark.parametrize(("factor", "latency", "kept"), [(2.0, True, False), (0.5, True, True), (2.0, False, True)])
def test_edits_that_are_slower_than_channels_alone_are_left_out(factor, latency, kept, planted, samples, monkeypatch):
    """Only where latency is measured: the decision is one by time."""
    monkeypatch.setattr(contest, "median_times", lambda *_, **__: [1.0, factor])
    measure = replace(FAST, latency=latency)
    result = onnxprune.prune(
        planted, data=samples, measure=measure, granularity=("filter", "kernel"), reduce={"flops": 0.85}, round_to=1
    )
    told = next(note for note in result.report.notes if note.startswith("compared on held-out samples"))
    assert bool(result.plan.blocks) == kept
    assert ("left out: slower than channels alone" in told) == (not kept)

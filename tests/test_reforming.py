"""Layers are given another form so that targets are met, by whichever kind of edit loses least; plans say so and can be replayed.

Times of layers are replaced by their multiplications: what is measured has no say in what is tested here.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from test_granularity import residual

import onnxprune
from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.errors import TargetError
from onnxprune.granularity import timing
from onnxprune.granularity.candidates import Candidate
from onnxprune.granularity.edits import Depth, Grouped, Kernel, Rank
from onnxprune.granularity.timing import Saving
from onnxprune.graph.analysis import analyse
from onnxprune.graph.io import load
from onnxprune.options import GRANULARITIES, Options
from onnxprune.reforming import contest
from onnxprune.reforming.base import Base, Scored, apply
from onnxprune.reforming.prices import BlockMeter, cheapest, pick
from onnxprune.runtime.session import run_batch
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.proof import TOLERANCE

FAST = onnxprune.BenchmarkConfig(latency=False)


@pytest.fixture(autouse=True)
def by_macs(monkeypatch):
    """Let a layer take as long as it multiplies."""
    monkeypatch.setattr(timing, "_medians", lambda sessions, feeds: [1.0] * len(sessions))
    real = timing.Timer._measure

    def measured(self, edit, nodes):
        found = real(self, edit, nodes)
        if found is None:
            return None
        before = timing._costs(self._original(nodes)[0])[0]
        return Saving(before / 1e6, (before - found.macs) / 1e6, found.macs, found.params)

    monkeypatch.setattr(timing.Timer, "_measure", measured)


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


def test_a_plan_with_blocks_is_replayed_to_the_same_model(tiny_path, samples, out):
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


def test_a_plan_with_blocks_and_channels_is_replayed_to_the_same_model(planted, samples, out):
    dials = {"data": samples, "measure": FAST, "round_to": 1}
    first = onnxprune.prune(
        planted, granularity=("filter", "kernel"), reduce={"flops": 0.9}, output=out / "a.onnx", **dials
    )
    assert "conv2" in [entry["layer"] for entry in first.plan.blocks[0]]
    assert not first.plan.keep.all()
    onnxprune.prune(planted, plan=out / "a.plan.json", output=out / "b.onnx", **dials)
    assert onnx.load(out / "a.onnx").graph == onnx.load(out / "b.onnx").graph


def test_an_edited_block_counts(tiny_path, samples, out):
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


def test_a_block_of_a_plan_that_cannot_be_made_is_refused(tiny_path, samples, out, refused):
    onnxprune.prune(tiny_path, data=samples, measure=FAST, reduce={"flops": 0.4}, round_to=2, output=out / "a.onnx")
    path = out / "a.plan.json"
    plan = json.loads(path.read_text())
    for blocks, says in (
        ([[{"kind": "rank", "layer": "conv2", "rank": 99, "form": "channel"}]], "directions"),
        ([[{"kind": "fold", "layer": "conv2"}]], "cannot be read"),
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


def test_a_target_that_blocks_alone_cannot_reach_is_refused(tiny_path, samples, out, refused):
    refused(
        "prune", tiny_path, "-o", out / "b.onnx", "--granularity", "depth", "--reduce", "flops=30%", "--data", samples,
        says=("the target cannot be reached", "--granularity auto"),
    )  # fmt: skip


def test_all_compete(tiny_path, samples):
    result = pruned(tiny_path, samples, GRANULARITIES, reduce={"flops": 0.5})
    told = next(note for note in result.report.notes if note.startswith("held against each other"))
    losses = [float(part.split("divergence ")[1].split()[0]) for part in told.split(";") if "divergence" in part]
    assert len(losses) > 1
    assert result.report.after.flops <= 0.5 * result.report.before.flops
    alone = pruned(tiny_path, samples, ("filter",), reduce={"flops": 0.5})
    assert min(losses) <= losses[0]
    if not result.plan.blocks:
        assert (result.plan.keep == alone.plan.keep).all()


def test_progressive_steps_take_blocks_by_blocks(tiny_path, samples):
    result = pruned(tiny_path, samples, ("rank", "kernel"), schedule="progressive", steps=2)
    assert 1 <= len(result.plan.blocks) <= 2
    assert result.report.after.flops <= 0.6 * result.report.before.flops


def test_progressive_steps_take_blocks_beside_channels(planted, samples, out):
    """The first step is met by taps that say nothing; channels go later, and the plan gives the same again."""
    dials = {"data": samples, "measure": FAST, "round_to": 1}
    result = onnxprune.prune(
        planted, granularity=("filter", "kernel"), reduce={"flops": 0.9}, schedule="progressive", steps=3,
        output=out / "a.onnx", **dials,
    )  # fmt: skip
    told = next(note for note in result.report.notes if note.startswith("held against each other"))
    first = told[told.index("33% of the way") : told.index("67% of the way")]
    assert "with 1 layers of another form" in first
    assert "all the way" in told
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
    real = contest._Contest._stepped

    def stepped(self, contender):
        if not contender.base.chosen or everything:
            raise TargetError("no", why="coupled otherwise; and more", hint="none")
        return real(self, contender)

    monkeypatch.setattr(contest._Contest, "_stepped", stepped)
    everything = False
    result = onnxprune.prune(planted, **dials)
    assert result.plan.blocks
    assert any("channels alone cannot reach the target by steps (coupled otherwise)" in n for n in result.report.notes)
    everything = True
    with pytest.raises(TargetError, match="no"):
        onnxprune.prune(planted, **dials)


@pytest.mark.parametrize(("less", "taken"), [(0.01, False), (0.05, True)])
def test_of_equal_ways_the_one_with_fewer_edits_is_taken(less, taken, planted, samples, monkeypatch):
    real = contest._Contest._mended

    def mended(self, contender, depth):
        found = real(self, contender, depth)
        return found if depth == 1 else replace(found, loss=1 - less if contender.base.chosen else 1.0)

    monkeypatch.setattr(contest._Contest, "_mended", mended)
    assert bool(pruned(planted, samples, ("filter", "kernel"), reduce={"flops": 0.9}).plan.blocks) == taken


def test_edits_that_lose_more_than_the_best_has_lost_get_no_channels_chosen(planted, samples, monkeypatch):
    made = []

    def costly(*args):
        made.append(replace(apply(*args), loss=100.0))
        return made[-1]

    monkeypatch.setattr(contest, "apply", costly)
    result = pruned(planted, samples, ("filter", "kernel"), reduce={"flops": 0.9})
    assert made
    assert not result.plan.blocks
    told = next(note for note in result.report.notes if note.startswith("held against each other"))
    assert "lose 100 before any channel goes" in told
    assert "with" not in told


def test_what_a_later_round_starts_from_is_what_is_left(models):
    model = load(models / "small.onnx")
    analysis = analyse(model)
    options = Options(reduce={"latency": 0.5}).resolved(False)
    meter = CostEstimator(analysis, options, onnxprune.BenchmarkConfig(runs=10, warmup=2, seconds=2))
    keep = np.ones(analysis.trace.n_channels, dtype=bool)
    keep[np.concatenate([group.channels[1::2] for group in analysis.trace.groups])] = False
    keep[analysis.trace.pinned] = True
    left = meter.for_model(analyse(rewrite.delete(model, analysis.trace, keep)))
    assert BlockMeter(left, ()).start["flops"] < 0.6 * BlockMeter(meter, ()).start["flops"]
    assert BlockMeter(left, ()).start["latency"] < 0.9 * BlockMeter(meter, ()).start["latency"]
    assert left.budget() == meter.budget()


def test_edits_go_no_further_than_the_goals(tiny_path):
    analysis = analyse(load(tiny_path))
    meter = CostEstimator(analysis, Options(reduce={"flops": 0.5}).resolved(False), FAST)
    macs = meter.whole["flops"] / 2
    found = [
        Scored(Candidate(Rank(str(n), 4, "channel"), (n,)), Saving(1.0, 0.5, macs * 0.2, 0.0), 0.1, 0.1 * (n + 1))
        for n in range(5)
    ]
    gauge = BlockMeter(meter, found)
    assert cheapest(gauge, gauge.budget()).tolist() == [True, True, True, False, False]
    assert cheapest(gauge, gauge.budget(), 1.1).tolist() == [True, True, False, False, False], "channels do the rest"


@pytest.mark.parametrize("ignore", [("conv1", "head"), ("w1", "w3")])
def test_ignored_layers_keep_their_form(ignore, tiny_path, samples):
    result = pruned(tiny_path, samples, ("rank", "kernel"), ignore=ignore, reduce={"flops": 0.3})
    assert {entry["layer"] for part in result.plan.blocks for entry in part} == {"conv2"}


def test_a_layer_is_ignored_by_the_name_of_its_weight_as_well(tiny_path, samples):
    result = pruned(tiny_path, samples, ("rank", "kernel"), ignore=("w2",), reduce={"flops": 0.05})
    layers = {entry["layer"] for part in result.plan.blocks for entry in part}
    assert layers
    assert "conv2" not in layers


def test_importances_weigh_blocks(tiny_path, samples):
    forms = {}
    for importance in ("obs", "l2", "activation"):
        result = pruned(tiny_path, samples, ("kernel",), importance=importance, scope="global")
        forms[importance] = [entry["why"]["error"] for entry in result.plan.blocks[0]]
    assert len({json.dumps(found) for found in forms.values()}) > 1


@pytest.mark.torch
@pytest.mark.parametrize("importance", ["taylor", "fisher", "hessian"])
def test_gradients_weigh_blocks(importance, tiny_path, samples):
    result = pruned(tiny_path, samples, ("kernel", "rank"), importance=importance)
    assert result.report.after.flops <= 0.6 * result.report.before.flops
    assert all(entry["why"]["divergence"] >= 0 for entry in result.plan.blocks[0])


@pytest.mark.torch
def test_what_a_change_costs_is_what_the_loss_rises_by(tiny_path, samples):
    from onnxprune.calibration.batches import Calibration
    from onnxprune.data.dataset import inputs_of, load_data
    from onnxprune.importance import gradients
    from onnxprune.metrics.outputs import output_divergence

    model = load(tiny_path)
    analysis = analyse(model)
    calibration = Calibration.of(load_data(samples, inputs_of(model.header), None), 64)
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


def test_groups_are_folded_into_their_neighbours(tiny_path, samples):
    model = load(tiny_path)
    analysis = analyse(model)
    rng = np.random.default_rng(0)
    edit = Grouped("conv2", 2, tuple(map(int, rng.permutation(16))), tuple(map(int, rng.permutation(16))))

    found = apply(Base(analysis, model), [edit], {}, Options().resolved(False), None)
    assert [node.op for node in found.analysis.model.graph.nodes] == [node.op for node in model.graph.nodes]
    assert found.proof.difference <= TOLERANCE
    assert found.analysis.model.graph.nodes[2].attrs["group"] == 2


def test_a_branch_goes_and_what_is_left_is_repaired():
    model = residual()
    analysis = analyse(model)

    found = apply(Base(analysis, model), [Depth("sum", 0)], {}, Options().resolved(False), None)
    assert "outer" not in [node.name for node in found.analysis.model.graph.nodes]
    assert found.proof.difference <= TOLERANCE


def scored(edit, nodes, loss):
    return Scored(Candidate(edit, nodes), Saving(1.0, 0.5, 1.0, 1.0), 0.1, loss)


def test_the_price_decides():
    whole = ((0, 1, 3), (0, 1, 3))
    found = [
        scored(Rank("a", 4, "channel"), (0,), 0.1),
        scored(Rank("a", 2, "channel"), (0,), 0.5),
        scored(Kernel("b", whole), (1,), 0.4),
        scored(Depth("sum", 0), (0, 1, 2), 0.7),
    ]
    gains = np.array([0.1, 0.3, 0.2, 0.4])
    assert not pick(found, gains, 0.1).any()
    assert pick(found, gains, 1.5).tolist() == [True, False, False, False]
    assert pick(found, gains, 2.1).tolist() == [False, True, True, False]
    assert pick(found, np.array([0.1, 0.1, 0.1, 0.9]), 2.0).tolist() == [False, False, False, True]

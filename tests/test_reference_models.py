"""The reference networks in models/ with their scenes, and the same networks untrained, out of both exporters of torch."""

from __future__ import annotations

import functools
import importlib
import re
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
MODELS = ROOT / "models"
SCENES = ("detector", "unet")
NAMES = ("small", "resnet", "mobile", *SCENES)

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
    "detector": [
        (16, 0, 1), (32, 0, 1), (16, 0, 1), (16, 0, 2), (16, 0, 1), (32, 0, 1),
        (48, 0, 1), (24, 0, 1), (24, 0, 2), (24, 0, 1), (48, 0, 1),
        (64, 0, 1), (32, 0, 1), (32, 0, 2), (32, 0, 1), (64, 0, 1),
        (48, 0, 1), (24, 0, 1), (24, 0, 1), (48, 0, 1),
        (32, 0, 1), (64, 0, 1), (32, 0, 1), (32, 0, 1), (64, 0, 1),
        (24, 0, 1), (2, 2, 2), (24, 0, 1), (5, 5, 2), (24, 0, 1), (24, 0, 1),
    ],
    "unet": [
        (16, 0, 1), (16, 0, 1), (32, 0, 1), (32, 0, 1), (64, 0, 1), (64, 0, 1),
        (32, 0, 1), (32, 0, 1), (32, 0, 1), (16, 0, 1), (16, 0, 1), (16, 0, 1), (6, 6, 1),
    ],
}  # fmt: skip
COSTS = {"small": (11_732_224, 564_426), "resnet": (20_183_936, 174_410), "mobile": (7_897_024, 177_954)}
COSTS |= {"detector": (9_708_416, 212_071), "unet": (99_549_184, 116_838)}
"""MACs per image and parameters, BatchNormalization folded; those of small and resnet were worked out by hand."""


@functools.cache
def analysed(name: str) -> Analysis:
    return analysing.analyse(io.load(MODELS / f"{name}.onnx"))


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
    op, output = {"detector": ("Concat", "output"), "unet": ("Conv", "logits")}.get(name, ("Gemm", "logits"))
    assert {(pin.op, pin.reason) for pin in trace.pins} == {(op, f"it is a channel of the model output {output}")}


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
    if method == "bn_scale" and name not in ("resnet", "detector"):
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
def tool(name: str) -> ModuleType:
    """Return a script of tools/ as a module."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "tools"))


def slices() -> Any:
    boxes, masks = (np.load(MODELS / f"scenes_{kind}.npz") for kind in ("boxes", "masks"))
    assert np.array_equal(boxes["images"], masks["images"])
    return tool("scenes").Scenes(boxes["images"], boxes["labels"], masks["labels"])


def test_scenes_have_exact_labels() -> None:
    scenes, side = slices(), tool("scenes").SIDE
    assert (scenes.images.shape, scenes.images.dtype) == ((400, 1, side, side), np.uint8)
    assert (scenes.boxes.shape, scenes.boxes.dtype) == ((400, 4, 5), np.float32)
    assert (scenes.masks.shape, scenes.masks.dtype) == ((400, side, side), np.uint8)
    for boxes, classes in zip(scenes.boxes, scenes.masks, strict=True):
        boxes = boxes[boxes[:, 4] >= 0].astype(int)
        assert 1 <= len(boxes) <= 4
        assert set(boxes[:, 4] + 1) | {0} == set(np.unique(classes))
        inside = np.zeros((6, side, side), bool)
        for x1, y1, x2, y2, kind in boxes:
            part = classes[y1:y2, x1:x2] == kind + 1
            assert part[[0, -1]].any(1).all(), "the garment reaches the upper and the lower edge"
            assert part[:, [0, -1]].any(0).all(), "the garment reaches the left and the right edge"
            inside[kind + 1, y1:y2, x1:x2] = True
        assert inside[1:].any(0)[classes > 0].all()
    calibration = np.load(MODELS / "scenes_calibration.npz")
    assert calibration.files == ["images"]
    assert calibration["images"].shape == (256, 1, side, side)


def test_scenes_follow_from_their_seed() -> None:
    module = tool("scenes")
    if not module.DATASET.is_dir():
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    made, stored = module.make_scenes("t10k", 20, 1), slices()
    for name in ("images", "boxes", "masks"):
        assert np.array_equal(getattr(made, name), getattr(stored, name)[:20])


@pytest.mark.parametrize("name", SCENES)
def test_accuracy_of_the_scene_networks(name: str) -> None:
    """The page tells what the file reaches on the evaluation slice."""
    module, path = tool("scenes"), MODELS / f"{name}.onnx"
    assert path.stat().st_size < 1e6
    if name == "detector":
        pytest.importorskip("pycocotools")
    found = module.accuracy(path, "detect" if name == "detector" else "segment", slices())
    page = (MODELS / "README.md").read_text(encoding="utf-8")
    cells = next(line for line in page.splitlines() if line.startswith(f"| `{name}.onnx`")).split("|")
    assert cells[5].strip() == ", ".join(found)
    assert list(found.values()) == pytest.approx([float(v) for v in re.findall(r"[\d.]+", cells[7])], abs=0.3)
    assert next(iter(found.values())) > {"detector": 60, "unet": 75}[name]


@pytest.mark.torch
@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
@pytest.mark.parametrize("name", NAMES)
def test_untrained_networks_out_of_both_exporters(name: str, exporter: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    path = tmp_path / f"{name}.onnx"
    tool("make_models").export(tool("make_models").build(name), path, exporter)
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

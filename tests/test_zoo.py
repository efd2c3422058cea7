"""The structure of 28 torchvision networks, from both exporters, with random weights: half of the FLOPs go in each.

Each result is proven, except where that takes longest (`UNPROVEN`, `PROVEN_ONCE`); there its structure and its counts are
checked. `tools/coverage.py` proves all of them, with the weights of both exporters.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from zoo_models import EXPORTERS, ZOO, write

from onnxprune.allocation import knapsack
from onnxprune.evaluation.structure import check_structure
from onnxprune.graph import io
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.importance import weights as importance
from onnxprune.options import Options
from onnxprune.pipeline.schedule import make_plan
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.mask import mask
from onnxprune.surgery.proof import TOLERANCE, prove

TARGET = 0.5

UNPROVEN = ("alexnet", "vgg11_bn", "vgg16")
"""A quarter to half a gigabyte of weights: opening four sessions takes longer than all else."""
PROVEN_ONCE = ("fcn_resnet50", "googlenet", "inception_v3", "resnet34", "resnet50", "resnext50_32x4d", "vit_b_16", "wide_resnet50_2")  # fmt: skip
"""Proven on the graph of the first exporter only: those of both differ in their head or their Gelu."""

PRUNABLE: dict[str, tuple[float, int, int]] = {
    "alexnet": (1.00, 9344, 1000),
    "convnext_tiny": (0.93, 26496, 2536),
    "deeplabv3_mobilenet_v3_large": (1.00, 9208, 21),
    "densenet121": (1.00, 10240, 1000),
    "efficientnet_b0": (1.00, 11404, 1000),
    "efficientnet_v2_s": (1.00, 38784, 1000),
    "fcn_resnet50": (1.00, 11968, 21),
    "googlenet": (1.00, 7280, 1000),
    "inception_v3": (1.00, 17216, 1000),
    "lraspp_mobilenet_v3_large": (1.00, 7544, 21),
    "maxvit_t": (1.00, 33736, 1960),
    "mnasnet1_0": (1.00, 10024, 1000),
    "mobilenet_v2": (1.00, 9128, 1000),
    "mobilenet_v3_large": (1.00, 8696, 1000),
    "mobilenet_v3_small": (1.00, 4872, 1000),
    "regnet_x_400mf": (1.00, 1392, 1000),
    "regnet_y_400mf": (1.00, 2048, 1000),
    "resnet18": (1.00, 2880, 1000),
    "resnet34": (1.00, 4736, 1000),
    "resnet50": (1.00, 11456, 1000),
    "resnext50_32x4d": (1.00, 4376, 1000),
    "shufflenet_v2_x1_0": (1.00, 3541, 1001),
    "squeezenet1_1": (1.00, 2944, 1000),
    "swin_t": (0.96, 17802, 2536),
    "vgg11_bn": (1.00, 10944, 1000),
    "vgg16": (1.00, 12416, 1000),
    "vit_b_16": (0.99, 37008, 1768),
    "wide_resnet50_2": (1.00, 19008, 1000),
}
"""By architecture: share of the FLOPs that can move, channels that may go, channels that must stay."""


def stored_floats(proto: onnx.ModelProto) -> int:
    """Count the elements of all float initializers."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    return sum(math.prod(tensor.dims) for tensor in proto.graph.initializer if tensor.data_type in floats)


def largest_block(analysis: Analysis) -> float:
    """Return the most MACs that a single block of channels holds in the whole network: no plan may miss by more."""
    trace, everything = analysis.trace, np.ones(analysis.trace.n_channels, dtype=bool)
    scores = importance.score(analysis.model, trace, "l2")
    dense, _ = analysis.cost.totals(everything)
    most = 0.0
    for block in knapsack.channel_batches(trace, scores, everything, knapsack.PruningRules()):
        without = everything.copy()
        without[block.channels] = False
        most = max(most, dense - analysis.cost.totals(without)[0])
    return most


def test_the_table_is_the_zoo() -> None:
    assert {file.name for file in ZOO.glob("*.z")} == {f"{e}-{name}.onnx.z" for e in EXPORTERS for name in PRUNABLE}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Return the folder of the models. It is removed at the end; pytest would keep half a gigabyte."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


CASES = [
    pytest.param(exporter, name, proven, id=f"{exporter}-{name}{'' if proven else '-unproven'}")
    for exporter in EXPORTERS
    for name in PRUNABLE
    for proven in [name not in (*UNPROVEN, *(() if exporter == EXPORTERS[0] else PROVEN_ONCE))]
]


@pytest.mark.parametrize(("exporter", "name", "proven"), CASES)
def test_half_of_the_flops_go(exporter: str, name: str, proven: bool, folder: Path) -> None:
    model = io.load(write(ZOO / f"{exporter}-{name}.onnx.z", folder))
    analysis = analyse(model)
    trace = analysis.trace
    found = (round(analysis.cost.prunable_share(), 2), int((~trace.pinned).sum()), int(trace.pinned.sum()))
    assert found == PRUNABLE[name]

    keep = make_plan(analysis, Options(reduce={"flops": TARGET}, round_to=8)).keep
    dense, _ = analysis.cost.totals(np.ones_like(keep))
    left, params = analysis.cost.totals(keep)
    excess = (1 - TARGET) * dense - left
    assert excess >= 0
    assert excess <= dense / 1000 or excess <= largest_block(analysis)
    pruned = rewrite.delete(model, trace, keep)
    assert [str(check) for check in check_structure(pruned, model) if not check] == []
    assert stored_floats(pruned.stub()[0]) == params
    if proven:
        assert prove(model, pruned, mask(model, trace, keep), trace.input_shapes).difference <= TOLERANCE

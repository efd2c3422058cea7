"""Situations about rules of operators: weights computed at run time, needless pins, and the first cause of a pin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from graphs import random_plan

import onnxprune
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.graph import io
from onnxprune.graph.analysis import Inspection, analyse, inspect
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.mask import mask
from onnxprune.surgery.proof import TOLERANCE, prove

Situation = Callable[[str], Path]
OUTPUT = "it is a channel of the model output"
FAST = BenchmarkConfig(latency=False)


def proven(path: Path, heads: str = "whole") -> Inspection:
    """Trace a model, prove random plans of it, and inspect it."""
    model = io.load(path)
    analysis = analyse(model, heads=heads)
    trace = analysis.trace
    for seed, ratio in enumerate((0.3, 0.6, 0.95)):
        keep = random_plan(trace, seed, ratio)
        assert not keep.all()
        pruned, masked = rewrite.delete(model, trace, keep), mask(model, trace, keep)
        assert prove(model, pruned, masked, trace.input_shapes, seed=seed).difference <= TOLERANCE
    return inspect(analysis)


def free(found: Inspection) -> int:
    """Return the number of prunable channels."""
    return int((~found.analysis.trace.pinned).sum())


def reasons(found: Inspection) -> dict[str, tuple[str, int]]:
    """Return operator and number of channels by reason, except for channels of the outputs."""
    return {pin.reason: (pin.operator, pin.channels) for pin in found.held if OUTPUT not in pin.reason}


FREE = {
    "constif": 224,
    "convlstm": 128,
    "einsumdense": 420,
    "attn23": 420,
    "optiona": 400,
    "segnet": 352,
    "seqsplit": 352,
    "siamrpn": 256,
}
"""Situations in which nothing but the outputs is pinned, and their prunable channels."""
NAMES = [pytest.param(name, marks=pytest.mark.situation(name)) for name in FREE]
PINNED = [pytest.param(name, marks=pytest.mark.situation(name)) for name in ("condconv", "dcn", "eca")]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_the_outputs_is_pinned(situation: Situation, name: str) -> None:
    found = proven(situation(name))
    assert not reasons(found)
    assert free(found) == FREE[name]


@pytest.mark.parametrize("name", [*NAMES, *PINNED])
def test_a_third_of_the_flops_goes_without_data(situation: Situation, name: str) -> None:
    result = onnxprune.prune(situation(name), reduce={"flops": 0.3}, measure=FAST, round_to=4, repair="none")
    assert result.report.verdict.integrity == "PASSED"
    assert not result.plan.keep.all()


@pytest.mark.situation("condconv")
def test_weights_that_are_mixed_from_stored_ones_pin_what_they_read(situation: Situation) -> None:
    found = proven(situation("condconv"))
    assert reasons(found) == {"the weight of this Conv is not a constant": ("Conv", 128)}
    assert free(found) == 32 + 2 * 4 + 64 + 64


@pytest.mark.situation("dcn")
def test_positions_of_a_deformable_convolution_are_pinned(situation: Situation) -> None:
    found = proven(situation("dcn"))
    assert reasons(found) == {"DeformConv reads positions from the channel": ("DeformConv", 3 * (18 + 9))}
    assert {layer.op for layer in found.layers} >= {"DeformConv"}, "its cost is counted"


@pytest.mark.situation("eca")
def test_the_channels_of_an_attention_along_channels_have_one_reason(situation: Situation) -> None:
    found = proven(situation("eca"))
    assert reasons(found).pop("Conv can't lose channels on axis 2") == ("Conv", 64)
    assert set(reasons(found)) <= {"Conv can't lose channels on axis 2", "the channel is the only one of a tensor"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.situation(n)) for n in ("attn23", "einsumdense")])
def test_the_width_of_heads_is_prunable(situation: Situation, name: str) -> None:
    found = proven(situation(name), heads="width")
    assert not reasons(found)
    assert free(found) == FREE[name] - 4 + 16 + 16

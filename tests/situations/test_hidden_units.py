"""Text recognition: hidden units of both recurrent layers are prunable, and every step of them is counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from graphs import random_plan

from onnxprune.graph.analysis import analyse, inspect
from onnxprune.graph.io import load
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.mask import mask
from onnxprune.surgery.proof import TOLERANCE, prove

HIDDEN, FEATURES = 64, 128


@pytest.mark.situation("crnn")
def test_hidden_units_of_a_text_recogniser(situation: Callable[[str], Path]) -> None:
    analysis = analyse(load(situation("crnn")))
    trace = analysis.trace
    assert analysis.cost.prunable_share() == 1.0
    cells = [group for group in trace.groups if group.name.startswith("LSTM")]
    assert [group.channels.size for group in cells] == [HIDDEN, HIDDEN]
    assert not any(trace.pinned[group.channels].any() for group in trace.groups[:-1])  # the last one is the output
    steps = trace.input_shapes["x"][3] // 4
    layers = [layer for layer in inspect(analysis).layers if layer.op == "LSTM"]
    for layer in layers:
        elements = 2 * 4 * HIDDEN * (FEATURES + HIDDEN)
        assert (layer.channels, layer.params, layer.macs) == (HIDDEN, elements, elements * steps)


@pytest.mark.situation("crnn")
@pytest.mark.parametrize("seed", range(3))
def test_a_text_recogniser_loses_hidden_units(situation: Callable[[str], Path], seed: int) -> None:
    analysis = analyse(load(situation("crnn")))
    model, trace = analysis.model, analysis.trace
    keep = random_plan(trace, seed, 0.5)
    pruned = rewrite.delete(model, trace, keep)
    assert prove(model, pruned, mask(model, trace, keep)).difference <= TOLERANCE
    proto = pruned.to_proto()
    cells = [group for group in trace.groups if group.name.startswith("LSTM")]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    nodes = [node for node in proto.graph.node if node.op_type == "LSTM"]
    for node, cell in zip(nodes, cells, strict=True):
        kept = int(keep[cell.channels].sum())
        assert kept < HIDDEN
        assert onnx.helper.get_node_attr_value(node, "hidden_size") == kept
        assert shapes[node.input[2]] == (2, 4 * kept, kept)
    assert inspect(analyse(pruned)).macs == pytest.approx(analysis.cost.totals(keep)[0])

"""Grouped convolutions lose positions of every group, or whole groups."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Builder, load, random_plan

from onnxprune.graph.cost import CostModel
from onnxprune.graph.trace import trace
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.mask import mask
from onnxprune.surgery.proof import TOLERANCE, prove


@pytest.mark.parametrize(("grouped", "units"), [("positions", 3), ("whole", 4)])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_units_of_a_grouped_convolution(op: str, grouped: str, units: int) -> None:
    b = Builder()
    first = b.conv("x", 12)
    shape = (8, 3, 3, 3) if op == "Conv" else (12, 2, 3, 3)
    middle = b.node(op, [first, b.normal(*shape)], (8, *b.shapes[first][1:]), group=4, pads=[1, 1, 1, 1])
    model = load(b.build(b.conv(middle, 5)))
    found = trace(model, grouped=grouped)
    free = {group.layers[0]: int((~found.pinned[group.channels]).sum()) for group in found.groups}
    assert units in free.values()
    for seed in range(4):
        keep = random_plan(found, seed, 0.5)
        pruned = rewrite.delete(model, found, keep)
        assert prove(model, pruned, mask(model, found, keep)).difference <= TOLERANCE
        again = CostModel(trace(pruned, grouped=grouped)).totals(
            np.ones(trace(pruned, grouped=grouped).n_channels, bool)
        )
        assert CostModel(found).totals(keep) == pytest.approx(again)

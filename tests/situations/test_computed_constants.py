"""Constants that a file computes from smaller ones are stored so, before and after channels are deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import G
from onnx import helper

from onnxprune.graph import io
from onnxprune.graph.trace import trace
from onnxprune.surgery import channels
from onnxprune.surgery.mask import mask
from onnxprune.surgery.proof import prove

Map = Callable[[G], str]
SIZE = 32


def tiled(g: G) -> str:
    return g.op("Tile", g.c(g.w(1, 16, 4, 4)), g.ints(1, 1, 8, 8))


def expanded(g: G) -> str:
    return g.op("Expand", g.c(g.w(16, 1, 1)), g.ints(1, 16, SIZE, SIZE))


def filled(g: G) -> str:
    size = g.op("Concat", g.ints(1), g.ints(16), g.ints(SIZE, SIZE), axis=0)
    return g.op("ConstantOfShape", size, value=helper.make_tensor("v", 1, [1], [0.5]))


def resized(g: G) -> str:
    return g.op("Resize", g.c(g.w(1, 16, 8, 8)), "", g.c(np.array([1, 1, 4, 4], np.float32)), mode="linear")


def half(g: G) -> str:
    return g.op("Cast", g.c(g.w(16, SIZE, SIZE).astype(np.float16)), to=1)


def twice(g: G) -> str:
    part = g.c(g.w(1, 16, SIZE // 2, SIZE))
    return g.op("Mul", g.op("Concat", part, part, axis=2), g.c(np.array(0.5, np.float32)))


def ranged(g: G) -> str:
    row = g.op("Range", *(g.c(np.array(v, np.float32)) for v in (0, SIZE * SIZE, 1)))
    return g.op("Sin", g.op("Reshape", row, g.ints(1, 1, SIZE, SIZE)))


def shuffled(g: G) -> str:  # channels lie on another axis of the small constant
    return g.op("Tile", g.op("Transpose", g.c(g.w(16, 1, 4, 4)), perm=[1, 0, 2, 3]), g.ints(1, 1, 8, 8))


def biased(g: G) -> str:  # as the relative position bias of Swin: the table has channels last, and fewer axes
    index = g.c(np.random.default_rng(0).integers(0, 49, SIZE * SIZE))
    rows = g.op("Reshape", g.op("Gather", g.c(g.w(49, 16)), index), g.ints(SIZE, SIZE, 16))
    return g.op("Unsqueeze", g.op("Transpose", rows, perm=[2, 0, 1]), g.ints(0))


def network(path: Path, make: Map) -> Path:
    g = G(17)
    t = g.conv(g.x("x", ["N", 3, SIZE, SIZE]), 3, 16)
    t = g.op("Relu", g.op("Add", t, make(g)))
    t = g.op("Relu", g.conv(t, 16, 16))
    g.y(g.fc(g.gap(t), 16, 10), ["N", 10])
    g.save(path)
    return path


def halved(model: io.Model) -> tuple[io.Model, float]:
    """Delete every second channel that is prunable; return the model and its difference from the masked one."""
    traced = trace(model)
    keep = traced.pinned | (np.arange(traced.n_channels) % 2 == 0)
    small = channels.delete(model, traced, keep)
    return small, prove(model, small, mask(model, traced, keep)).difference


@pytest.mark.parametrize("make", [tiled, expanded, filled, resized, half, twice, ranged, shuffled, biased])
def test_a_computed_constant_never_enlarges_the_file(tmp_path: Path, make: Map) -> None:
    path = network(tmp_path / "m.onnx", make)
    model = io.load(path)
    small, difference = halved(model)
    assert difference <= 1e-4
    assert io.save(model, tmp_path / "same.onnx") <= path.stat().st_size
    assert io.save(small, tmp_path / "small.onnx") < path.stat().st_size
    again = io.load(tmp_path / "small.onnx")
    assert again.params == sum(
        int(np.prod(t.dims)) for t in again.to_proto().graph.initializer if t.data_type in (1, 10)
    )


@pytest.mark.parametrize("make", [tiled, expanded, filled, resized, half, twice, shuffled, biased])
def test_channels_that_meet_a_computed_constant_are_free(tmp_path: Path, make: Map) -> None:
    assert not trace(io.load(network(tmp_path / "m.onnx", make))).pinned[:16].any()


def test_what_cannot_be_computed_without_the_channel_pins_it(tmp_path: Path) -> None:
    def rolled(g: G) -> str:  # each channel is the sum of those before it
        return g.op("Tile", g.op("CumSum", g.c(g.w(1, 16, 8, 8)), g.c(np.array(1))), g.ints(1, 1, 4, 4))

    traced = trace(io.load(network(tmp_path / "m.onnx", rolled)))
    assert traced.pinned[:16].all()
    assert any("would be stored whole" in pin.reason for pin in traced.pins)


def test_small_arithmetic_is_folded(tmp_path: Path) -> None:
    def small(g: G) -> str:
        return g.op("Expand", g.op("Sqrt", g.c(np.array([2.0], np.float32))), g.ints(1, 16, 1, 1))

    model = io.load(network(tmp_path / "m.onnx", small))
    assert {node.op_type for node in model.to_proto().graph.node}.isdisjoint({"Expand", "Sqrt"})


def test_a_transposed_weight_that_is_used_elsewhere_is_stored_once(tmp_path: Path) -> None:
    g = G(17)
    weight = g.c(g.w(48, 48))
    t = g.op("Flatten", g.gap(g.conv(g.x("x", ["N", 3, SIZE, SIZE]), 3, 48)), axis=1)
    t = g.op("Relu", g.op("MatMul", t, weight))
    t = g.op("MatMul", t, g.op("Transpose", weight, perm=[1, 0]))
    g.y(g.op("MatMul", t, g.c(g.w(48, 10))), ["N", 10])
    g.save(tmp_path / "m.onnx")
    model = io.load(tmp_path / "m.onnx")
    small, difference = halved(model)
    assert difference <= 1e-4
    for each in (model, small):
        assert io.save(each, tmp_path / "out.onnx") <= (tmp_path / "m.onnx").stat().st_size
    assert any("another constant" in pin.reason for pin in trace(model).pins)


def test_two_casts_of_one_weight_are_one_tensor(tmp_path: Path) -> None:
    g = G(17)
    weight = g.c(g.w(16, 16, 3, 3).astype(np.float16))
    t = g.conv(g.x("x", ["N", 3, SIZE, SIZE]), 3, 16)
    for _ in range(2):
        t = g.op("Relu", g.op("Conv", t, g.op("Cast", weight, to=1), pads=[1] * 4))
    g.y(g.fc(g.gap(t), 16, 10), ["N", 10])
    g.save(tmp_path / "m.onnx")
    model = io.load(tmp_path / "m.onnx")
    kernels = [node.inputs[1] for node in model.graph.nodes if node.op == "Conv"]
    assert kernels[1] is kernels[2]
    io.save(model, tmp_path / "same.onnx")
    stored = onnx.load(tmp_path / "same.onnx").graph.initializer
    assert [list(t.dims) for t in stored if t.data_type == onnx.TensorProto.FLOAT16] == [[16, 16, 3, 3]]

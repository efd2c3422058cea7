"""Golden tables of prunable channels in small graphs. A comparison of outputs cannot detect a needless pin."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from graphs import Builder, load

from onnxprune.graph.trace import trace as trace_model

OUTPUT = "it is a channel of the model output"
ONLY = "the channel is the only one of a tensor"
Table = dict[str, tuple[int, int]]
"""By the name of the first layer of a group: (prunable channels, pinned channels)."""
Reasons = dict[str, str]
"""By the same name: the beginning of a reason, for groups with pinned channels."""

GRAPHS: dict[str, tuple[Callable[[Builder], str], Table, Reasons]] = {}


def golden(table: Table, **reasons: str) -> Callable[[Callable[[Builder], str]], Callable[[Builder], str]]:
    """Register a graph; the channels of its last layer, `last`, are in the model output."""

    def register(build: Callable[[Builder], str]) -> Callable[[Builder], str]:
        GRAPHS[build.__name__] = (build, table, reasons)
        return build

    return register


def finish(b: Builder, x: str) -> str:
    """Add a Conv `last`, whose two channels are the output."""
    return b.conv(x, 2, name="last")


@golden({"a": (6, 0)})
def chain(b: Builder) -> str:
    return finish(b, b.node("Relu", [b.conv("x", 6, 3, name="a")]))


@golden({"a": (6, 0), "hidden": (5, 0)})
def chain_to_gemm(b: Builder) -> str:
    x = b.flatten(b.pool(b.conv("x", 6, 3, name="a"), "MaxPool", 2, 2))
    return b.gemm(b.node("Relu", [b.gemm(x, 5, name="hidden")]), 2, trans_b=False, name="last")


@golden({"a": (6, 0), "hidden": (5, 0)})
def matmul_head(b: Builder) -> str:
    x = b.conv("x", 6, name="a")
    x = b.reshape(x, (0, -1), (6 * 64,))
    x = b.node("Add", [b.node("MatMul", [x, b.normal(6 * 64, 5)], (5,), name="hidden"), b.normal(5)])
    return b.gemm(x, 2, name="last")


@golden({"a": (6, 0)})
def reduced_over_pixels(b: Builder) -> str:
    return b.gemm(b.reduce_mean(b.conv("x", 6, name="a"), (2, 3), keepdims=False), 2, name="last")


@golden({"a": (6, 0)})
def residual(b: Builder) -> str:
    x = b.conv("x", 6, name="a")
    return finish(b, b.node("Add", [x, b.conv(x, 6, name="b")]))


@golden({"a": (6, 0), "b": (6, 0)})
def residual_with_inner_channels(b: Builder) -> str:
    x = b.conv("x", 6, name="a")
    return finish(b, b.node("Add", [b.conv(b.node("Relu", [b.conv(x, 6, 3, name="b")]), 6, name="c"), x]))


@golden({"a": (0, 3)}, a="Add joins the channel with the model input x")
def residual_with_the_input(b: Builder) -> str:
    return finish(b, b.node("Add", [b.conv("x", 3, name="a"), "x"]))


@golden({"a": (6, 0)})
def depthwise_with_multiplier(b: Builder) -> str:
    return finish(b, b.depthwise(b.depthwise(b.conv("x", 6, name="a"), multiplier=2), 1))


@golden({"a": (3, 0), "b": (2, 0)})
def grouped_conv(b: Builder) -> str:
    return finish(b, b.conv(b.conv("x", 6, name="a"), 4, 3, group=2, name="b"))


@golden({"a": (6, 0), "b": (6, 0)})
def batchnorm_that_stays(b: Builder) -> str:
    x = b.batchnorm(b.node("Relu", [b.conv("x", 6, name="a")]))
    return finish(b, b.conv(b.batchnorm(x), 6, name="b"))


@golden({"a": (6, 0), "Conv_2": (4, 0)})
def squeeze_and_excitation(b: Builder) -> str:
    return finish(b, b.squeeze_excite(b.conv("x", 6, name="a"), 4))


@golden({"a": (6, 0), "gate": (0, 1)}, gate=ONLY)
def spatial_gate(b: Builder) -> str:
    x = b.conv("x", 6, name="a")
    return finish(b, b.node("Mul", [x, b.node("Sigmoid", [b.conv("x", 1, name="gate")])], b.shapes[x]))


@golden({"a": (6, 0)})
def constants(b: Builder) -> str:
    x = b.conv("x", 6, name="a")
    for shape in ((), (1,), (6, 1, 1), (1, 6, 1, 1), (1, 1, 8, 8), (1, 6, 8, 8)):
        x = b.node("Mul", [b.node("Add", [x, b.normal(*shape)]), b.normal(*shape)])
    return finish(b, b.node("PRelu", [x, b.normal(6, 1, 1)]))


@golden({"a": (6, 0)})
def clip_and_dropout(b: Builder) -> str:
    x = b.node("Clip", [b.conv("x", 6, name="a"), b.const(np.float32(0)), b.const(np.float32(6))])
    return finish(b, b.node("Identity", [b.node("Dropout", [x])]))


@golden({"a": (6, 0), "b": (4, 0)})
def concat(b: Builder) -> str:
    return finish(b, b.concat([b.conv("x", 6, name="a"), b.conv("x", 4, name="b")]))


@golden({"a": (6, 0)})
def concat_with_itself_and_the_input(b: Builder) -> str:
    x = b.conv("x", 6, name="a")
    return finish(b, b.concat([x, "x", x]))


@golden({"a": (1, 0), "a#2": (0, 3), "b": (4, 0)}, **{"a#2": "it meets the model input x"})
def grouped_conv_on_an_uneven_concat(b: Builder) -> str:
    # group 1 reads a0 .. a3; group 2 reads a4, which goes together with a0, and the input
    return finish(b, b.conv(b.concat([b.conv("x", 5, name="a"), "x"]), 8, group=2, name="b"))


@golden({"a": (6, 0)})
def pad_on_pixels(b: Builder) -> str:
    x = b.pad(b.conv("x", 6, name="a"), (0, 1, 1), (0, 1, 1), value=1.0)
    return finish(b, b.pad(x, (0, 2, 0), (0, 0, 1), "reflect"))


@golden({"a": (6, 0), "Pad_1": (3, 0)})
def pad_on_channels(b: Builder) -> str:
    return finish(b, b.pad(b.conv("x", 6, name="a"), (1, 0, 0), (2, 0, 0), value=1.0))


@golden({"a": (0, 6)}, a="it meets the model input x")
def pad_on_channels_before_an_add(b: Builder) -> str:
    x = b.pad("x", (0, 0, 0), (3, 0, 0))
    return finish(b, b.node("Add", [x, b.conv("x", 6, name="a")]))


@golden({"a": (6, 0)})
def channels_last(b: Builder) -> str:
    x = b.node("Transpose", [b.conv("x", 6, name="a")], (8, 8, 6), perm=[0, 2, 3, 1])
    x = b.node("Mul", [b.node("Add", [x, b.normal(6)]), b.normal(1, 1, 6)])
    return finish(b, b.node("Transpose", [x], (6, 8, 8), perm=[0, 3, 1, 2]))


@golden({"a": (6, 0)})
def flatten_pixels_and_back(b: Builder) -> str:
    x = b.reshape(b.conv("x", 6, name="a"), (0, 6, 64), (6, 64))
    return finish(b, b.reshape(x, (-1, 6, 8, 8), (6, 8, 8)))


@golden({"a": (3, 0)})
def channel_shuffle(b: Builder) -> str:
    return finish(b, b.shuffle(b.conv("x", 6, name="a"), 2))


@golden({"a": (3, 0)})
def channel_shuffle_with_minus_one(b: Builder) -> str:
    return finish(b, b.shuffle(b.conv("x", 6, name="a"), 2, batch=-1))


@golden({"a": (6, 0)})
def split(b: Builder) -> str:
    left, right = b.split(b.conv("x", 6, name="a"), (2, 4))
    return finish(b, b.concat([right, b.node("Relu", [left])]))


@golden({"a": (3, 0)})
def split_in_halves_that_meet(b: Builder) -> str:
    left, right = b.split(b.conv("x", 6, name="a"), (3, 3))
    return finish(b, b.node("Mul", [left, b.node("Sigmoid", [right])]))


@golden({"a": (6, 0)})
def slice_of_channels(b: Builder) -> str:
    return finish(b, b.slice(b.conv("x", 6, name="a"), 2, 5))


@golden({"a": (6, 0)})
def gather_of_channels(b: Builder) -> str:
    return finish(b, b.gather(b.conv("x", 6, name="a"), (5, 0, -2)))


@golden({"a": (6, 0)})
def average_pools(b: Builder) -> str:
    x = b.pool(b.conv("x", 6, name="a"), "AveragePool", 3, 2, 1)
    return b.gemm(b.flatten(b.global_pool(x)), 2, name="last")


@golden({"a": (0, 6)}, a="ReduceMean runs over the channels")
def mean_over_channels(b: Builder) -> str:
    return finish(b, b.reduce_mean(b.conv("x", 6, name="a"), (1,)))


@golden({"a": (0, 1)}, a=ONLY)
def single_channel(b: Builder) -> str:
    return finish(b, b.conv("x", 1, name="a"))


@golden({"a": (6, 0), "b": (0, 4)}, b=OUTPUT)
def second_output(b: Builder) -> str:
    x = b.conv("x", 6, name="a")
    return finish(b, b.node("Relu", [b.conv(x, 4, name="b")]))


@golden({"a": (6, 0)})
def shared_weight(b: Builder) -> str:
    weight = b.normal(6, 3, 1, 1)
    one, two = (b.conv(x, 6, weight=weight, name=n) for x, n in (("x", "a"), (b.node("Relu", ["x"]), "b")))
    return finish(b, b.concat([one, two]))


@golden({"a": (4, 0)})
def every_second_channel_from_the_end(b: Builder) -> str:
    x = b.node("Slice", [b.conv("x", 8, name="a"), *(b.ints(n) for n in (-1, -100, 1, -2))], (4, 8, 8))
    return finish(b, x)


@golden({"a": (6, 0)})
def norm_that_is_expanded_to_the_shape_of_its_tensor(b: Builder) -> str:
    x = b.conv("x", 6, name="a")
    length = b.node("Sqrt", [b.reduce_mean(b.node("Mul", [x, x]), (2, 3))])
    wide = b.node("Expand", [length, b.node("Shape", [x], ())], (6, 8, 8))
    return finish(b, b.node("Div", [x, wide]))


@golden({"a": (6, 0)})
def map_of_one_channel_that_is_expanded(b: Builder) -> str:
    x = b.conv("x", 6, name="a")
    gate = b.node("Sigmoid", [b.node("Slice", ["x", *(b.ints(n) for n in (0, 1, 1))], (1, 8, 8))])
    wide = b.node("Expand", [gate, b.node("Shape", [x], ())], (6, 8, 8))
    return finish(b, b.node("Mul", [x, wide]))


@golden({"a": (6, 0)})
def positions_that_are_cut_to_the_length(b: Builder) -> str:
    x = b.conv("x", 6, name="a")
    height = b.node("Slice", [b.node("Shape", [x], ()), b.ints(2), b.ints(3)], ())
    cut = b.node("Slice", [b.normal(1, 6, 20, 8), b.ints(0), height, b.ints(2)], (6, 8, 8))
    return finish(b, b.node("Add", [x, cut]))


@golden({"a": (6, 0)})
def rows_of_a_table(b: Builder) -> str:
    x = b.conv("x", 6, name="a")
    best = b.node("ArgMax", [b.global_pool("x")], (1, 1), axis=1, keepdims=0)
    rows = b.node("Gather", [b.normal(3, 6), b.node("Squeeze", [best, b.ints(1, 2)], ())], (6,), axis=0)
    return finish(b, b.node("Add", [x, b.node("Unsqueeze", [rows, b.ints(2, 3)], (6, 1, 1))]))


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("name", list(GRAPHS))
def test_prunable_channels(name: str, opset: int) -> None:
    build, table, reasons = GRAPHS[name]
    b = Builder((3, 8, 8), opset=opset)
    outputs = [build(b)]
    if name == "second_output":
        outputs.append("Relu_2_out")
    trace = trace_model(load(b.build(*outputs)))

    found = {
        group.name: (int((~trace.pinned[group.channels]).sum()), int(trace.pinned[group.channels].sum()))
        for group in trace.groups
    }
    assert found.pop("last") == (0, 2)
    assert found == table
    for group in trace.groups:
        pins = [pin.reason for pin in trace.why_pinned(group.channels)]
        expected = OUTPUT if group.name == "last" else reasons.get(group.name)
        assert bool(pins) == (expected is not None), pins
        assert expected is None or any(reason.startswith(expected) for reason in pins), pins

"""Repair of layers that share a weight: the weight is fitted once, on the rows of all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import Builder, load
from repaired import inputs, repaired, run

import onnxprune
from onnxprune.graph.trace import trace as trace_model
from onnxprune.metrics.outputs import output_divergence


def network(b: Builder, x: str, weights: list[tuple[str, str]], width: int) -> str:
    for weight, bias in weights:
        x = b.node("Conv", [x, weight, bias], (width, *b.shapes[x][1:]), kernel_shape=[3, 3], pads=[1] * 4)
        x = b.node("Relu", [x])
    return x


def siamese(b: Builder) -> list[str]:
    weights = [(b.normal(16, i, 3, 3, scale=(4.5 * i) ** -0.5), b.normal(16, scale=0.2)) for i in (3, 16, 16)]
    other = b.node("Mul", ["x", b.normal(3, 8, 8)])
    one, two = (b.flatten(b.global_pool(network(b, x, weights, 16))) for x in ("x", other))
    return [b.node("Abs", [b.node("Sub", [one, two])])]


def pyramid(b: Builder) -> list[str]:
    levels = [b.conv("x", 16, 3)]
    for _ in range(2):
        levels.append(b.conv(b.node("Relu", [levels[-1]]), 16, 3, stride=2))
    weights = [(b.normal(16, 16, 3, 3, scale=0.12), b.normal(16, scale=0.2)) for _ in range(2)]
    last = b.normal(4, 16, 1, 1)
    heads = [network(b, b.conv(level, 16), weights, 16) for level in levels]
    return [b.node("Conv", [x, last], (4, *b.shapes[x][1:]), kernel_shape=[1, 1]) for x in heads]


def recurrence(b: Builder) -> list[str]:
    x = b.node("Relu", [b.conv("x", 16, 3)])
    columns = b.node("ReduceMean", [x], (16, 8), axes=[2], keepdims=0)
    w, u, bias = b.normal(24, 24, scale=0.2), b.normal(24, 16, scale=0.8), b.normal(24, scale=0.3)
    h = ""
    for t in range(6):
        step = b.node("Gather", [columns, b.const(np.array(t))], (16,), axis=2)
        new = b.node("Gemm", [step, u, bias], (24,), transB=1)
        h = b.node("Tanh", [b.node("Add", [new, b.node("Gemm", [h, w], (24,), transB=1)]) if h else new])
    return [b.gemm(h, 5)]


@pytest.mark.parametrize(
    ("build", "only_bias"),
    [(siamese, False), (pyramid, False), (pyramid, True), (recurrence, False), (recurrence, True)],
)
def test_repair_lowers_the_loss_and_keeps_one_weight(build: Callable[[Builder], list[str]], only_bias: bool) -> None:
    b = Builder((3, 8, 8))
    model = load(b.build(*build(b)))
    trace = trace_model(model)
    rng = np.random.default_rng(1)
    keep = np.ones(trace.n_channels, dtype=bool)
    for group in trace.groups:
        free = group.channels[~trace.pinned[group.channels]]
        keep[rng.permutation(free)[: free.size // 3]] = False
    case = repaired(model, trace, keep, n=256, only_bias=only_bias)
    feeds = inputs(model, 128, 99)
    wanted = run(model, feeds)
    cut, fitted = (output_divergence(wanted, run(some, feeds)) for some in (case.pruned, case.repaired))
    assert fitted < (0.95 if only_bias else 0.7) * cut
    names = {tensor.name for tensor in case.pruned.to_proto().graph.initializer}
    added = {tensor.name for tensor in case.repaired.to_proto().graph.initializer} - names
    assert len(added) <= 1  # the bias of a layer without one
    shared = sum(len(group.layers) > 1 for group in trace.groups)
    assert shared


@pytest.mark.parametrize("repair", ["lstsq", "bias"])
@pytest.mark.parametrize("samples", [None, 48])
def test_several_shared_layers_in_every_step_of_a_recurrence(repair: str, samples: int | None, tmp_path: Path) -> None:
    """A gated cell, unrolled: the second step of one gate needs the first step of gates that are fitted later."""
    b = Builder((12,))
    shapes = {"encoder": (40, 4), "keep": (24, 64), "reset": (24, 64), "new": (24, 64), "first": (24, 40)}
    layers = {name: (b.normal(*shape, scale=0.2), b.normal(shape[0], scale=0.1)) for name, shape in shapes.items()}

    def gemm(x: str, name: str) -> str:
        return b.node("Gemm", [x, *layers[name]], (shapes[name][0],), transB=1)

    state = ""
    for part in b.split("x", (4, 4, 4)):
        seen = b.node("Relu", [gemm(part, "encoder")])
        state = state or b.node("Tanh", [gemm(seen, "first")])
        both = b.concat([state, seen])
        keep, reset = (b.node("Sigmoid", [gemm(both, name)]) for name in ("keep", "reset"))
        new = b.node("Tanh", [gemm(b.concat([b.node("Mul", [reset, state]), seen]), "new")])
        old = b.node("Mul", [b.node("Sub", [b.const(np.array(1, np.float32)), keep], b.shapes[keep]), state])
        state = b.node("Add", [old, b.node("Mul", [keep, new])])
    onnx.save(b.build(b.gemm(state, 5)), tmp_path / "m.onnx")
    data = None if samples is None else np.random.default_rng(0).normal(size=(samples, 12)).astype(np.float32)
    found = onnxprune.prune(
        tmp_path / "m.onnx", data=data, reduce={"flops": 0.3}, round_to=1, repair=repair, latency=False
    )
    assert found.report.after.flops < 0.75 * found.report.before.flops
    assert found.report.repair

"""Attention loses whole heads, or width of every head; without heads, channels that both factors are summed over."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import load, random_plan
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.trace import trace
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.mask import mask
from onnxprune.surgery.proof import TOLERANCE, prove

TOKENS, HEADS, WIDTH = 9, 4, 6


def attention(x: str, apart: tuple[list[int], list[int]], back: list[int]) -> list[onnx.NodeProto]:
    """Return the nodes of an attention: projections are reshaped to `split`, and queries and values, or keys, transposed by `apart`."""
    nodes = []
    for name, perm in (("q", apart[0]), ("k", apart[1]), ("v", apart[0])):
        nodes += [
            helper.make_node("MatMul", [x, f"w{name}"], [name], name=name),
            helper.make_node("Reshape", [name, "split"], [f"{name}s"]),
            helper.make_node("Transpose", [f"{name}s"], [f"{name}t"], perm=perm),
        ]
    return [
        *nodes,
        helper.make_node("MatMul", ["qt", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "vt"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["back"], perm=back),
        helper.make_node("Reshape", ["back", "join"], ["joined"]),
        helper.make_node("MatMul", ["joined", "wo"], ["y"], name="out"),
    ]


@pytest.mark.parametrize(
    ("n_heads", "mode", "free"),
    [(HEADS, "whole", [HEADS]), (HEADS, "width", [WIDTH, WIDTH]), (1, "whole", [WIDTH, WIDTH])],
)
def test_units_of_attention(n_heads: int, mode: str, free: list[int]) -> None:
    rng = np.random.default_rng(0)
    inner = n_heads * WIDTH
    weights = {name: rng.normal(size=(16, inner)).astype(np.float32) / 4 for name in ("wq", "wk", "wv")}
    weights["wo"] = rng.normal(size=(inner, 5)).astype(np.float32)
    shapes = {"split": np.array([0, TOKENS, n_heads, WIDTH]), "join": np.array([0, TOKENS, inner])}
    nodes = attention("x", ([0, 2, 1, 3], [0, 2, 3, 1]), [0, 2, 1, 3])
    initializers = [numpy_helper.from_array(value, name) for name, value in (weights | shapes).items()]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "attention",
        [info("x", TensorProto.FLOAT, ["N", TOKENS, 16])],
        [info("y", TensorProto.FLOAT, ["N", TOKENS, 5])],
        initializers,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    model = load(proto)
    found = trace(model, heads=mode)
    units = sorted(int((~found.pinned[group.channels]).sum()) for group in found.groups if group.name != "out")
    assert units == free
    effects = []
    for seed in range(4):
        keep = random_plan(found, seed, 0.5)
        pruned, masked = rewrite.delete(model, found, keep), mask(model, found, keep)
        assert prove(model, pruned, masked).difference <= TOLERANCE
        effects.append(keep.all())
    assert not all(effects)


@pytest.mark.parametrize("batch", ["N", 3])
def test_heads_that_are_joined_with_the_samples(batch: int | str) -> None:
    """Legacy exports of torch's MultiheadAttention compute samples x heads at run time, and split (tokens, samples x heads, width)."""
    rng = np.random.default_rng(0)
    inner = HEADS * WIDTH
    weights = {name: rng.normal(size=(16, inner)).astype(np.float32) / 4 for name in ("wq", "wk", "wv")}
    weights["wo"] = rng.normal(size=(inner, 5)).astype(np.float32)
    integers = {"heads": [HEADS], "tokens": [TOKENS], "width": [WIDTH], "inner": [inner], "one": [1], "two": [2]}
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Shape", ["t"], ["shape"]),
        helper.make_node("Slice", ["shape", "one", "two"], ["samples"]),
        helper.make_node("Mul", ["samples", "heads"], ["many"]),
        helper.make_node("Concat", ["tokens", "many", "width"], ["split"], axis=0),
        helper.make_node("Concat", ["tokens", "samples", "inner"], ["join"], axis=0),
    ]
    nodes += attention("t", ([1, 0, 2], [1, 2, 0]), [1, 0, 2])
    initializers = [numpy_helper.from_array(np.asarray(v), n) for n, v in (weights | integers).items()]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "attention",
        [info("x", TensorProto.FLOAT, [batch, TOKENS, 16])],
        [info("y", TensorProto.FLOAT, [TOKENS, batch, 5])],
        initializers,
    )
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    found = trace(model)
    assert [int((~found.pinned[group.channels]).sum()) for group in found.groups if group.name != "out"] == [HEADS]
    for seed in range(4):
        keep = random_plan(found, seed, 0.5)
        pruned, masked = rewrite.delete(model, found, keep), mask(model, found, keep)
        assert prove(model, pruned, masked).difference <= TOLERANCE

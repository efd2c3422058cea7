"""A normalization is recognized in the spellings of Flax, JAX and torch: its sums over 1/n are means."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from cases import CUT, A, Y, build, case, check
from graphs import load

from onnxprune.graph.trace import trace

NAMED = "a normalization in primitives: ReduceMean runs over the channels (free with --norms cut"
MEAN = "m0 = ReduceSum (a, ax) m = Mul (m0, eighth)"
FLAX = f"""{MEAN} sq = Mul (a, a) r0 = ReduceSum (sq, ax) r = Mul (r0, eighth) mm = Mul (m, m) v0 = Sub (r, mm)
    v1 = Max (v0, zero) v2 = Add (v1, eps) """
SPELLINGS = {
    "E[x^2] - E[x]^2, root, reciprocal": FLAX
    + "q = Sqrt (v2) i = Reciprocal (q) d = Sub (a, m) t = Mul (i, scale) o = Mul (d, t)",
    "power of -0.5": FLAX + "i = Pow (v2, mhalf) d = Sub (a, m) o = Mul (d, i)",
    "divided by n": "m0 = ReduceSum (a, ax) m = Div (m0, eight) d = Sub (a, m) e = Pow (d, two) r0 = ReduceSum (e, ax) "
    "r = Div (r0, eight) s = Add (eps, r) q = Sqrt (s) o = Div (d, q)",
    "the constant first": "m0 = ReduceSum (a, ax) m = Mul (eighth, m0) d = Sub (a, m) e = Mul (d, d) r = ReduceMean (e, ax) "
    "s = Add (r, eps) q = Sqrt (s) o = Div (d, q)",
    "epsilon before the root of a sum of squares": "r0 = ReduceSumSquare (a, ax) r = Mul (r0, eighth) s = Add (r, eps) q = Sqrt (s) o = Div (a, q)",
    "a norm over the root of n": "r0 = ReduceL2 (a, ax) r = Div (r0, root8) s = Max (r, eps) o = Div (a, s)",
}
WEIGHTS: dict[str, Any] = {
    "ax": [1], "eighth": np.float32(1 / 8), "eight": np.float32(8), "root8": np.float32(8**0.5), "mhalf": np.float32(-0.5), "scale": (8, 1, 1),
}  # fmt: skip


def spelled(name: str, **more: Any) -> Any:
    """Return a case with a normalization over the channels between two layers."""
    return case("ReduceSum", name, f"{A} {SPELLINGS[name]} b = Relu (o) {Y}", *more.pop("counts"), **WEIGHTS, **more)


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelled_normalization_is_named(name: str) -> None:
    proto = build(f"{A} {SPELLINGS[name]} b = Relu (o) {Y}", WEIGHTS)
    found = trace(load(proto))
    reasons = [pin.reason for pin in found.pins]
    assert any(reason.startswith(NAMED) for reason in reasons) or "norm over" in name, reasons
    assert (~found.pinned).sum() == 0
    assert {pin.op for pin in found.pins} <= {"ReduceMean", "Conv"}, "the first cause is the only reason"


@pytest.mark.parametrize("name", SPELLINGS)
def test_its_statistics_run_over_the_survivors_when_it_is_cut(name: str) -> None:
    found = check(spelled(name, counts=(8, 4), modes=CUT))
    assert found.inexact().sum() == 8


@pytest.mark.parametrize("factor", [0.12, 1.0, -0.125])
def test_another_factor_is_no_mean(factor: float) -> None:
    text = f"{A} m0 = ReduceSum (a, ax) m = Mul (m0, k) b = Mul (a, m) {Y}"
    model = load(build(text, {**WEIGHTS, "k": np.float32(factor)}))
    assert "ReduceSum" in {node.op for node in model.graph.nodes}


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_a_sum_with_other_readers_stays(opset: int) -> None:
    if opset == 11:
        text = f"{A} m0 = ReduceSum <axes=[1]> (a) m = Mul (m0, eighth) n = Relu (m0) e = Mul (a, n) b = Mul (e, m) {Y}"
    else:
        text = f"{A} {MEAN} n = Relu (m0) e = Mul (a, n) b = Mul (e, m) {Y}"
    model = load(build(text, WEIGHTS, opset))
    onnx.checker.check_model(model.to_proto(), full_check=True)
    assert {"ReduceMean", "ReduceSum"} <= {node.op for node in model.graph.nodes}

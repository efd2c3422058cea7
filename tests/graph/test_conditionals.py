"""An If with a constant condition is the branch that is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import A, Case, Y, case, check
from graphs import load

BODY = "float[N,8,6,6]"
REST: dict[str, Any] = {"yes": np.bool_(True), "no": np.bool_(False), "k": (8, 8, 1, 1), "outputs": "float[N,4,6,6] y"}
CASES = [
    case(
        "If",
        "true",
        f"{A} b = If <then_branch = one () => ({BODY} t1) {{ e = Conv (a, k) t1 = Relu (e) }}, else_branch = two () => ({BODY} e1) {{ e1 = Neg (a) }}> (yes) {Y}",
        16,
        4,
        **REST,
    ),
    case(
        "If",
        "false, names used twice",
        f"{A} b1 = If <then_branch = one () => ({BODY} t1) {{ t1 = Relu (a) }}, else_branch = two () => ({BODY} t1) {{ e = Conv (a, k) t1 = Neg (e) }}> (no) b = If <then_branch = one () => ({BODY} t1) {{ t1 = Relu (b1) }}, else_branch = two () => ({BODY} t1) {{ e = Conv (b1, k) t1 = Neg (e) }}> (no) {Y}",
        8,
        4,
        **REST,
    ),
    case(
        "If",
        "nested",
        f"{A} b = If <then_branch = one () => ({BODY} t1) {{ t1 = If <then_branch = i1 () => ({BODY} t2) {{ t2 = Relu (a) }}, else_branch = i2 () => ({BODY} t3) {{ t3 = Neg (a) }}> (no) }}, else_branch = two () => ({BODY} e1) {{ e1 = Neg (a) }}> (yes) {Y}",
        8,
        4,
        **REST,
    ),
    case(
        "If",
        "an output",
        f"{A} b = Relu (a) {Y.replace('y =', 'y0 =')} y = If <then_branch = one () => (float[N,4,6,6] t1) {{ t1 = Relu (y0) }}, else_branch = two () => (float[N,4,6,6] e1) {{ e1 = Neg (y0) }}> (yes)",
        8,
        4,
        **REST,
    ),
    case(
        "If",
        "by shape, passes on",
        f"{A} s = Shape (a) s1 = Gather (s, i1) c0 = Equal (s1, n8) b = If <then_branch = one () => ({BODY} t1) {{ t1 = Identity (a) }}, else_branch = two () => ({BODY} e1) {{ e1 = Neg (a) }}> (c0) {Y}",
        8,
        4,
        i1=np.int64(1),
        n8=np.int64(8),
        **REST,
    ),
    case(
        "If",
        "two results, one twice",
        f"{A} p, q = If <then_branch = one () => ({BODY} t1, {BODY} t2) {{ t1 = Relu (a) t2 = Identity (t1) }}, else_branch = two () => ({BODY} e1, {BODY} e2) {{ e1 = Neg (a) e2 = Neg (e1) }}> (yes) b = Add (p, q) {Y}",
        8,
        4,
        **REST,
    ),
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_the_branch_that_is_taken_is_part_of_the_graph(case: Case) -> None:
    check(case)
    assert "If" not in {node.op for node in load(case.build()).graph.nodes}

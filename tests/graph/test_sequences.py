"""Sequences whose elements are known before a run are tensors."""

from __future__ import annotations

import numpy as np
import pytest
from cases import A, C, Case, Y, case, check
from graphs import load

CASES = [
    case(
        "SequenceAt",
        "sizes",
        f"{A} s = SplitToSequence <axis=1> (a, sz) p = SequenceAt (s, i0) q = SequenceAt (s, im) b = Concat <axis=1> (q, p) {Y}",
        8,
        4,
        sz=[5, 3],
        i0=np.int64(0),
        im=np.int64(-1),
        outputs="float[N,4,6,6] y",
    ),
    case(
        "SequenceAt",
        "a number of channels",
        f"{A} s = SplitToSequence <axis=1> (a, sz) p = SequenceAt (s, i0) q = SequenceAt (s, im) b = Mul (q, p) {Y}",
        4,
        4,
        sz=np.int64(4),
        i0=np.int64(0),
        im=np.int64(-1),
        v=(4, 4, 1, 1),
        outputs="float[N,4,6,6] y",
    ),
    case(
        "SequenceAt",
        "opset 11",
        f"{A} s = SplitToSequence <axis=1> (a, sz) p = SequenceAt (s, i0) q = SequenceAt (s, im) b = Concat <axis=1> (q, p) {Y}",
        8,
        4,
        sz=[5, 3],
        i0=np.int64(0),
        im=np.int64(-1),
        opset=11,
        outputs="float[N,4,6,6] y",
    ),
    case(
        "SequenceConstruct",
        "at",
        f"{A} {C} s = SequenceConstruct (a, c) b = SequenceAt (s, i0) {Y}",
        8,
        4,
        i0=np.int64(1),
        outputs="float[N,4,6,6] y",
    ),
    case(
        "ConcatFromSequence",
        "",
        f"{A} {C} s = SequenceConstruct (a, c) b = ConcatFromSequence <axis=1> (s) {Y}",
        16,
        4,
        v=(4, 16, 1, 1),
        outputs="float[N,4,6,6] y",
    ),
    case(
        "ConcatFromSequence",
        "stack",
        f"{A} {C} s = SequenceConstruct (a, c) b1 = ConcatFromSequence <axis=1, new_axis=1> (s) b = ReduceSum <keepdims=0> (b1, ax) {Y}",
        8,
        4,
        ax=[1],
        outputs="float[N,4,6,6] y",
    ),
    case(
        "SequenceInsert",
        "",
        f"{A} {C} s0 = SequenceEmpty () s1 = SequenceInsert (s0, a) s2 = SequenceInsert (s1, c, i0) s3 = SequenceErase (s2) b = ConcatFromSequence <axis=1> (s2) z1 = SequenceAt (s3, i0) b1 = Concat <axis=1> (b, z1) y = Conv (b1, v, vb)",
        16,
        4,
        v=(4, 24, 1, 1),
        i0=np.int64(0),
        outputs="float[N,4,6,6] y",
    ),
    case(
        "SplitToSequence",
        "rows without keepdims",
        f"{A} s = SplitToSequence <axis=2, keepdims=0> (a) p = SequenceAt (s, i0) q = SequenceAt (s, im) r = Add (p, q) b = Unsqueeze (r, ax) {Y}",
        8,
        4,
        i0=np.int64(0),
        im=np.int64(3),
        ax=[2],
        outputs="float[N,4,1,6] y",
    ),
    case(
        "SequenceLength",
        "",
        f"{A} s = SplitToSequence <axis=2> (a, sz) n = SequenceLength (s) f = Cast <to=1> (n) p = SequenceAt (s, i0) b = Mul (p, f) {Y}",
        8,
        4,
        sz=[3, 3],
        i0=np.int64(0),
        outputs="float[N,4,3,6] y",
    ),
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_no_sequence_is_left(case: Case) -> None:
    check(case)
    assert not [node.op for node in load(case.build()).graph.nodes if "Sequence" in node.op]


def test_a_sequence_that_is_read_at_a_computed_position_stays() -> None:
    check(
        case(
            "SplitToSequence",
            "computed position",
            f"{A} s = SplitToSequence <axis=2> (a, sz) m1 = ReduceMax <keepdims=0> (x) m2 = Greater (m1, big) i = Cast <to=7> (m2) b = SequenceAt (s, i) {Y}",
            0,
            12,
            "there is no rule for SplitToSequence",
            sz=[3, 3],
            big=np.float32(1e9),
            outputs="float[N,4,3,6] y",
        )
    )

"""One case per operator of the rule table, and the two sets are the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from cases import CASES, OTHER_CASES, SIZE_CASES, Case, check

from onnxprune.graph.operators import RULES, SHAPE_RULES


def marked(cases: list[Case]) -> list[Any]:
    """Turn cases into parameters; those with a defect are expected to fail."""
    return [
        pytest.param(c, id=c.id, marks=[pytest.mark.xfail(strict=True, reason=c.defect)] if c.defect else [])
        for c in cases
    ]


def test_every_rule_has_a_case_and_every_case_has_a_rule() -> None:
    assert {case.op for case in CASES} == set(RULES)
    assert {case.op for case in SIZE_CASES} == set(SHAPE_RULES)
    assert not {case.op for case in OTHER_CASES} & set(RULES)


def test_a_case_uses_its_operator() -> None:
    for case in (*CASES, *SIZE_CASES):
        assert "in primitives" in case.name or case.op in {node.op_type for node in case.build().graph.node}, case.id


def test_cases_have_names_of_their_own() -> None:
    for cases in (CASES, SIZE_CASES, OTHER_CASES):
        assert not [name for name, times in Counter(case.id for case in cases).items() if times > 1]


@pytest.mark.parametrize("case", marked(CASES))
def test_rule(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", marked(SIZE_CASES))
def test_shape_arithmetic(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", marked(OTHER_CASES))
def test_what_has_no_rule(case: Case) -> None:
    check(case)

"""Every operator of the rule table has a case, and every case an operator."""

from __future__ import annotations

from collections import Counter
from typing import Any

import onnx
import onnx_graphsurgeon as gs
import pytest
from cases import CASES, OTHER_CASES, SIZE_CASES, Case, check

from onnxprune.graph.operators import OPERATORS, RULES, SHAPE_RULES, OperatorSpec, spec_of
from onnxprune.graph.saturation import UNBOUNDED

WITHOUT_A_ROW = {
    "text and files": "ImageDecoder RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer",
    "bodies, whose channels are pinned": "If Loop Scan SequenceMap",
    "rewritten before the trace": "ConcatFromSequence Constant SequenceAt SequenceConstruct SequenceEmpty SequenceErase "
    "SequenceInsert SequenceLength SplitToSequence",
    "values without an axis": "Optional OptionalGetElement OptionalHasElement",
    "positions, or results whose length depends on values": "Compress GatherElements GatherND NonMaxSuppression NonZero "
    "OneHot Scatter ScatterElements ScatterND Unique",
    "constants, or computed from sizes alone": "BlackmanWindow EyeLike HammingWindow HannWindow MelWeightMatrix Range Size",
    "all elements of an axis at once": "AffineGrid CenterCropPad Col2Im DFT Det STFT",
    "losses": "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss",
}
"""Operators whose channels are pinned, by what they have in common."""


def test_every_operator_up_to_opset_24_has_a_row_or_a_reason() -> None:
    schemas = [schema for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain]
    known = {schema.name for schema in schemas if schema.since_version <= 24}
    reasons = [name for names in WITHOUT_A_ROW.values() for name in names.split()]
    assert set(reasons) == known - set(OPERATORS)
    assert len(reasons) == len(set(reasons))


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
def test_operator_without_a_rule(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("node", [gs.Node("Relu", domain="com.example"), gs.Node("NoSuchOperator")])
def test_a_node_without_a_row_has_no_feature(node: gs.Node) -> None:
    spec = spec_of(node)
    assert spec == OperatorSpec()
    assert spec.rule is None
    assert spec.linear(node) is None
    assert spec.saturation(node) == UNBOUNDED

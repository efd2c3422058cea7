"""A pin that follows from another one names the first cause, once; an input that a rule ignores is pinned by the walk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import OUTPUT, A, C, Y, build
from graphs import load

from onnxprune.graph import trace as walk
from onnxprune.graph.analysis import PinCost, analyse, inspect
from onnxprune.graph.operators import spec_of
from onnxprune.graph.rule_context import RuleContext

SOURCES = {
    "Softmax": ("s = Softmax <axis=1> (c)", "Softmax mixes the channels"),
    "Trilu": ("t1 = Transpose <perm=[0,2,1,3]> (c) t2 = Trilu (t1) s = Transpose <perm=[0,2,1,3]> (t2)", "Trilu needs the positions of channels"),
    "Det": ("e1 = Det (c) e2 = Unsqueeze (e1, ax) s = Expand (e2, like)", "there is no rule for Det"),
    "CumSum": ("s = CumSum (c, one)", "CumSum mixes the channels"),
}  # fmt: skip
JOINS = """d1 = Add (a, s) r1 = Relu (d1) d2 = Conv (r1, k) d3 = Mul (d2, s) s2 = Sigmoid (s) d4 = Sub (d3, s2)
    d5 = Conv (d4, k) b = Add (d5, s2)"""
WEIGHTS: dict[str, Any] = {"k": (8, 8, 1, 1), "ax": [2, 3], "one": np.int64(1), "like": [1, 8, 6, 6]}


def held(text: str, **weights: Any) -> list[PinCost]:
    """Return the table of pins of a model, without those of its outputs."""
    found = inspect(analyse(load(build(text, WEIGHTS | weights))))
    return [pin for pin in found.held if OUTPUT not in pin.reason]


@pytest.mark.parametrize("op", SOURCES)
def test_every_pin_that_follows_names_the_first_cause(op: str) -> None:
    source, reason = SOURCES[op]
    (found,) = held(f"{A} {C} {source} {JOINS} {Y}")
    assert (found.operator, found.reason, found.nodes) == (op, reason, 1)
    assert found.channels == 2 * 8  # layers that read one weight share their channels


def test_a_tensor_without_a_refusal_upstream_is_named_by_the_operator_that_joins_it() -> None:
    (found,) = held("a = Conv (x, w) b = Add (a, x) y = Conv (b, v)", w=(3, 3, 1, 1), v=(4, 3, 1, 1))
    assert found.reason == "Add joins the channel with the model input x"


def test_a_rule_that_forgets_an_input_pins_its_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(ctx: RuleContext) -> list[Any]:
        return [ctx.activation(0)]

    real = spec_of

    def spec(node: Any) -> Any:
        from dataclasses import replace

        return replace(real(node), rule=forgets) if node.op == "Mul" else real(node)

    monkeypatch.setattr(walk, "spec_of", spec)
    (found,) = held(f"{A} {C} b = Mul (a, c) {Y}")
    assert (found.operator, found.reason, found.channels) == ("Mul", "Mul takes its input B from the channel", 8)

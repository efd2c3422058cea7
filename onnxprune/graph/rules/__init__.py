"""The rule table: for every operator, what it does to channel ids. The only place that knows operators.

A rule sees one node through a `Site` and returns one id array per output. An id array has the rank of its tensor; its size is
1 on axes without channels. Rules are the numpy operation that the operator itself would do, on ids; what they find out on the
way (ties, pins, slices, counts) they tell the site.
"""

from __future__ import annotations

from onnxprune.graph.rule_context import Rule
from onnxprune.graph.rules import elementwise, layers, movement

RULES: dict[str, Rule] = {**elementwise.RULES, **layers.RULES, **movement.RULES}
"""Rules by operator of the ONNX domain. An operator that is not here pins whatever reaches it."""

TAKES_CONSTANTS_FIRST = frozenset({*elementwise.BROADCAST, "Concat", "Conv", "Einsum", "Gemm", "Gather", "MatMul"})
"""Operators whose rule expects that the first input may be a constant. At others a constant has no channels to move."""


def support() -> list[tuple[str, str]]:
    """Return (operator, what becomes of channels there) for every rule, in alphabetical order."""
    return [(name, (RULES[name].__doc__ or "").strip().splitlines()[0]) for name in sorted(RULES)]

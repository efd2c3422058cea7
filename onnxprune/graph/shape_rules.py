"""Follow shape arithmetic: the origin of each integer of a shape.

Exports with dynamic axes compute shapes at run time: Shape, Gather, Mul, Concat, Reshape. A size that comes from Shape
follows the survivors by itself; a literal that Concat joins must be rewritten. A rule here maps the sizes at the inputs
of a node to the sizes of its output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from onnx import TensorProto

from onnxprune.graph.ids import rows, varying
from onnxprune.graph.rule_context import RuleContext, Size

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
Sizes = list[Size]
ShapeRule = Callable[[RuleContext], Sizes | None]


def shape(ctx: RuleContext) -> Sizes | None:
    """The sizes of an activation."""
    ids = ctx.ids(0)
    if ids is None:
        return None
    start, end = ctx.attr("start", 0), ctx.attr("end", None)
    axes = varying(ids)
    every = [Size(size, None, rows(ids, axis) if axis in axes else None) for axis, size in enumerate(ctx.shape(0))]
    return every[start:end]


def same(ctx: RuleContext) -> Sizes | None:
    """The integers of the input, in the same order."""
    return ctx.sizes(0)


def cast(ctx: RuleContext) -> Sizes | None:
    """The integers as another type."""
    whole = int(ctx.attr("to")) not in FLOATS
    return [replace(size, value=int(size.value) if whole else float(size.value)) for size in ctx.sizes(0) or []] or None


def rounded(ctx: RuleContext) -> Sizes | None:
    """The integers rounded."""
    # a number of channels is whole already, or its channels are pinned where it is used
    away = math.ceil if ctx.op == "Ceil" else math.floor
    return [replace(size, value=float(away(size.value))) for size in ctx.sizes(0) or []] or None


def gather(ctx: RuleContext) -> Sizes | None:
    """The integers at constant positions."""
    sizes, index = ctx.sizes(0), ctx.const(1)
    if sizes is None or index is None or len(ctx.shape(0)) != 1:
        return None
    return [sizes[int(i)] for i in index.reshape(-1)]


def slice_(ctx: RuleContext) -> Sizes | None:
    """The integers between constant bounds."""
    sizes = ctx.sizes(0)
    bounds = [ctx.const(i) for i in (1, 2)] if ctx.n_inputs > 1 else [ctx.attr("starts"), ctx.attr("ends")]
    steps = ctx.const(4)
    if sizes is None or any(bound is None or len(bound) != 1 for bound in bounds) or len(ctx.shape(0)) != 1:
        return None
    start, end = (int(bound[0]) for bound in bounds if bound is not None)
    return sizes[start : end : 1 if steps is None else int(steps[0])]


def concat(ctx: RuleContext) -> Sizes | None:
    """The integers of all inputs, one after the other."""
    parts = [ctx.sizes(i) for i in range(ctx.n_inputs)]
    return None if None in parts else [size for part in parts for size in part or []]


def arithmetic(ctx: RuleContext) -> Sizes | None:
    """Two lists of integers, combined element by element."""
    a, b = ctx.sizes(0), ctx.sizes(1)
    if a is None or b is None or (len(a) != len(b) and 1 not in (len(a), len(b))):
        return None
    n = max(len(a), len(b))
    return [_combine(ctx, x, y) for x, y in zip(a * (n // len(a)), b * (n // len(b)), strict=True)]


def _combine(ctx: RuleContext, x: Size, y: Size) -> Size:
    if ctx.op == "Mul":
        value = x.value * y.value
        following, factor = (y, x) if y.ids is not None else (x, y)
        if following.ids is not None and factor.ids is None and factor.value == int(factor.value):
            return replace(following, value=value, owner=None, num=following.num * int(factor.value))
        literal, factor = (y, x) if y.owner is not None else (x, y)
        if literal.owner is not None and factor.owner is None and factor.ids is None and isinstance(value, int):
            return replace(literal, value=value, num=literal.num * int(factor.value))
    elif ctx.op == "Div":
        whole = isinstance(x.value, int) and isinstance(y.value, int)
        value = 0 if not y.value else x.value // y.value if whole else x.value / y.value
        if x.ids is not None and y.ids is None and y.value and y.value == int(y.value):
            return replace(x, value=value, owner=None, den=x.den * int(y.value))
    else:
        value = x.value + y.value if ctx.op == "Add" else x.value - y.value
    for size in (x, y):
        if size.ids is not None:
            ctx.pin(size.ids, f"the number of channels goes into a {ctx.op} of shapes")
    return Size(value)

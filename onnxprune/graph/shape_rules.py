"""Follow shape arithmetic: where each integer of a shape comes from.

Exports with dynamic axes compute shapes at run time: Shape, Gather, Mul, Concat, Reshape. A size that comes from Shape follows
the survivors by itself; a literal joined in by Concat must be rewritten. A rule here maps the origins of a node's input
integers to those of its output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxprune.graph.rule_context import Site, Size, rows, varying

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
MOST_FLOATS = 16
"""A float constant with more elements is no list of sizes."""
Sizes = list[Size]
SizeRule = Callable[[Site], Sizes | None]


def _shape(site: Site) -> Sizes | None:
    ids = site.ids(0)
    if ids is None:
        return None
    start, end = site.attr("start", 0), site.attr("end", None)
    axes = varying(ids)
    every = [Size(size, None, rows(ids, axis) if axis in axes else None) for axis, size in enumerate(site.shape(0))]
    return every[start:end]


def _same(site: Site) -> Sizes | None:
    return site.sizes(0)


def _cast(site: Site) -> Sizes | None:
    whole = int(site.attr("to")) not in FLOATS
    return [
        replace(size, value=int(size.value) if whole else float(size.value)) for size in site.sizes(0) or []
    ] or None


def _rounded(site: Site) -> Sizes | None:
    # what follows channels is a whole number already, or it is pinned where it is used
    away = math.ceil if site.op == "Ceil" else math.floor
    return [replace(size, value=float(away(size.value))) for size in site.sizes(0) or []] or None


def _gather(site: Site) -> Sizes | None:
    sizes, index = site.sizes(0), site.const(1)
    if sizes is None or index is None or len(site.shape(0)) != 1:
        return None
    return [sizes[int(i)] for i in index.reshape(-1)]


def _slice(site: Site) -> Sizes | None:
    sizes = site.sizes(0)
    bounds = [site.const(i) for i in (1, 2)] if site.n_inputs > 1 else [site.attr("starts"), site.attr("ends")]
    steps = site.const(4)
    if sizes is None or any(bound is None or len(bound) != 1 for bound in bounds) or len(site.shape(0)) != 1:
        return None
    start, end = (int(bound[0]) for bound in bounds if bound is not None)
    return sizes[start : end : 1 if steps is None else int(steps[0])]


def _concat(site: Site) -> Sizes | None:
    parts = [site.sizes(i) for i in range(site.n_inputs)]
    if any(part is None for part in parts):
        return None
    return [size for part in parts for size in part or []]


def _arithmetic(site: Site) -> Sizes | None:
    a, b = site.sizes(0), site.sizes(1)
    if a is None or b is None or (len(a) != len(b) and 1 not in (len(a), len(b))):
        return None
    n = max(len(a), len(b))
    return [_combine(site, x, y) for x, y in zip(a * (n // len(a)), b * (n // len(b)), strict=True)]


def _combine(site: Site, x: Size, y: Size) -> Size:
    if site.op == "Mul":
        value = x.value * y.value
        following, factor = (y, x) if y.ids is not None else (x, y)
        if following.ids is not None and factor.ids is None and factor.value == int(factor.value):
            return replace(following, value=value, owner=None, num=following.num * int(factor.value))
        literal, factor = (y, x) if y.owner is not None else (x, y)
        if literal.owner is not None and factor.owner is None and factor.ids is None and isinstance(value, int):
            return replace(literal, value=value, num=literal.num * int(factor.value))
    elif site.op == "Div":
        whole = isinstance(x.value, int) and isinstance(y.value, int)
        value = 0 if not y.value else x.value // y.value if whole else x.value / y.value
        if x.ids is not None and y.ids is None and y.value and y.value == int(y.value):
            return replace(x, value=value, owner=None, den=x.den * int(y.value))
    else:
        value = x.value + y.value if site.op == "Add" else x.value - y.value
    for size in (x, y):
        if size.ids is not None:
            site.pin(size.ids, f"its number goes into a {site.op} of shapes")
    return Size(value)


SIZE_RULES: dict[str, SizeRule] = {
    "Shape": _shape,
    **dict.fromkeys(("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"), _same),
    **dict.fromkeys(("Ceil", "Floor"), _rounded),
    **dict.fromkeys(("Add", "Div", "Mul", "Sub"), _arithmetic),
    "Cast": _cast,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
}
"""Operators of shape arithmetic. At any other one, channels whose number it reads are pinned."""


def literals(value: np.ndarray[Any, Any], node: int, i: int) -> Sizes | None:
    """Return the integers of a constant as sizes that can be rewritten; floats, which scale sizes, as they are."""
    if value.dtype.kind == "f" and value.size <= MOST_FLOATS and np.isfinite(value).all():
        return [Size(float(v)) for v in value.reshape(-1)]
    return [Size(int(v), (node, i, j)) for j, v in enumerate(value.reshape(-1))] if value.dtype.kind == "i" else None

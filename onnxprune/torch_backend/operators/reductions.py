"""Reductions, and operators along one axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from onnxprune.torch_backend.operators.node import Binder, Node, Run, plain

Axes = tuple[int, ...]


def reduction(function: Callable[[Tensor, Axes, bool], Tensor]) -> Binder:
    """Axes are an attribute or an input; without axes, all are reduced, or none."""

    def run(x: Tensor, *, axes: Sequence[int] | None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        if not axes and noop_with_empty_axes:
            return x
        return function(x, tuple(axes or range(x.ndim)), bool(keepdims))

    return plain(run, axes=1)


def prod(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """Return the product."""
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def norm(p: int) -> Callable[[Tensor, Axes, bool], Tensor]:
    """Return the function that computes the p-norm; unlike the root of a sum, torch's norm has a gradient at 0."""

    def run(x: Tensor, axes: Axes, keep: bool) -> Tensor:
        numbers = x if x.is_floating_point() else x.double()
        found: Tensor = torch.linalg.vector_norm(numbers, p, axes, keepdim=keep)
        return found.to(x.dtype)

    return run


def mean(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """Return the mean, of integers rounded toward zero."""
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    return x.double().mean(axes, keepdim=keep).trunc().to(x.dtype)


def argument(function: Callable[..., Tensor]) -> Binder:
    """Bind argmax or argmin; select_last_index decides between equal elements."""

    def run(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
        if select_last_index:
            return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=bool(keepdims))
        return function(x, axis, keepdim=bool(keepdims))

    return plain(run)


def softmax(function: Callable[[Tensor, int], Tensor]) -> Binder:
    """Before opset 13, the axes from `axis` on form one."""

    def binder(node: Node) -> Run:
        axis = node.attr("axis", -1 if node.opset >= 13 else 1)
        if node.opset >= 13:
            return lambda x: function(x, axis)
        return lambda x: function(x.flatten(axis), -1).reshape(x.shape) if x.ndim else function(x, 0)

    return binder


def cumsum(x: Tensor, *, axis: list[int], exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Sum along an axis; exclusive sums leave out the element itself."""
    total = torch.cumsum(x.flip(axis) if reverse else x, axis[0], dtype=x.dtype)
    total = total.flip(axis) if reverse else total
    return total - x if exclusive else total


def top_k(x: Tensor, *, k: Sequence[int], axis: int = -1, largest: int = 1) -> Sequence[Tensor]:
    """Of equal elements the first one counts, which torch.topk does not guarantee."""
    values, places = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, k[0]), places.narrow(axis, 0, k[0])

"""Operators that reduce axes, or work along one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from onnxprune.training.operators.node import Binder, Node, Run

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _reduce(function: Reduction) -> Binder:
    """Axes are an attribute or an input; where there are none, all are meant, or nothing at all."""

    def binder(node: Node) -> Run:
        axes, keep = node.numbers(1, "axes"), bool(node.attr("keepdims", 1))
        noop = bool(node.attr("noop_with_empty_axes", 0))

        def run(*inputs: Tensor | None) -> Tensor:
            x = inputs[0]
            assert x is not None
            found = tuple(axes(inputs) or ())
            if not found and noop:
                return x
            return function(x, found or tuple(range(x.ndim)), keep)

        return run

    return binder


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _norm(p: int) -> Reduction:
    # unlike the root of a sum, torch's norm has a gradient where all is zero
    def run(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        numbers = x if x.is_floating_point() else x.double()
        norm: Tensor = torch.linalg.vector_norm(numbers, p, axes, keepdim=keep)
        return norm.to(x.dtype)

    return run


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    return x.double().mean(axes, keepdim=keep).trunc().to(x.dtype)


def argument(function: Callable[..., Tensor]) -> Binder:
    """The first of several that are equal, or the last."""

    def binder(node: Node) -> Run:
        axis, keep = node.attr("axis", 0), bool(node.attr("keepdims", 1))
        if not node.attr("select_last_index", 0):
            return lambda x: function(x, axis, keepdim=keep)
        return lambda x: x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)

    return binder


def _hardmax(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


def softmax(function: Callable[[Tensor, int], Tensor]) -> Binder:
    """Before opset 13 all axes from one on were taken for one."""

    def binder(node: Node) -> Run:
        if node.opset >= 13:
            axis = node.attr("axis", -1)
            return lambda x: function(x, axis)
        first = node.attr("axis", 1)
        return lambda x: function(x.flatten(first), -1).reshape(x.shape) if x.ndim else function(x, 0)

    return binder


def cumulative(function: Callable[..., Tensor], start: float) -> Binder:
    """Along an axis; exclusive: each element holds what came before it."""

    def binder(node: Node) -> Run:
        axes = node.numbers(1)
        exclusive, reverse = node.attr("exclusive", 0), node.attr("reverse", 0)

        def run(*inputs: Tensor | None) -> Tensor:
            x, axis = inputs[0], (axes(inputs) or [0])[0]
            assert x is not None
            x = x.flip(axis) if reverse else x
            if exclusive:
                size = x.shape[axis]
                first = torch.full_like(x.narrow(axis, 0, min(1, size)), start)
                x = torch.cat((first, x.narrow(axis, 0, max(0, size - 1))), axis)
            y = function(x, axis, dtype=x.dtype)
            return y.flip(axis) if reverse else y

        return run

    return binder


def top_k(node: Node) -> Run:
    """The number is an attribute before opset 10; of equal elements the first one counts, which torch's own does not promise."""
    counts, axis, largest = node.numbers(1, "k"), node.attr("axis", -1), bool(node.attr("largest", 1))

    def run(*inputs: Tensor | None) -> Sequence[Tensor]:
        x, count = inputs[0], (counts(inputs) or [1])[0]
        assert x is not None
        values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, count), places.narrow(axis, 0, count)

    return run


BINDERS: dict[str, Binder] = {
    "ArgMax": argument(torch.argmax),
    "ArgMin": argument(torch.argmin),
    "CumProd": cumulative(torch.cumprod, 1),
    "CumSum": cumulative(torch.cumsum, 0),
    "Hardmax": softmax(_hardmax),
    "LogSoftmax": softmax(torch.log_softmax),
    "ReduceL1": _reduce(_norm(1)),
    "ReduceL2": _reduce(_norm(2)),
    "ReduceLogSum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "ReduceLogSumExp": _reduce(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMean": _reduce(_mean),
    "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduce(_prod),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype)),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep, dtype=x.dtype)),
    "Softmax": softmax(torch.softmax),
    "TopK": top_k,
}

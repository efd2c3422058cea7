"""Pools."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.training.operators.node import Binder, Node, Run
from onnxprune.training.operators.spatial import Window, pad

MAXIMA: dict[int, Callable[..., Tensor]] = {1: torch.max_pool1d, 2: torch.max_pool2d, 3: torch.max_pool3d}
PLACES: dict[int, Callable[..., tuple[Tensor, Tensor]]] = {
    1: torch.max_pool1d_with_indices,
    2: torch._C._nn.max_pool2d_with_indices,
    3: torch._C._nn.max_pool3d_with_indices,
}
MEANS: dict[int, Callable[..., Tensor]] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def max_pool(node: Node) -> Run:
    """Pads that torch does not take are added before it; places count over the whole tensor."""
    window, kernel = Window.of(node), list(node.attr("kernel_shape"))
    n, places = len(kernel), node.n_outputs > 1
    strides, dilations = window.steps(n)
    even, columns = window.even(n), node.attr("storage_order", 0)
    own = even if even is not None and all(2 * p <= k for p, k in zip(even, kernel, strict=True)) else None

    def run(x: Tensor) -> Tensor | Sequence[Tensor]:
        numbers = x if x.is_floating_point() else x.double()  # torch pools no integers
        sizes, before = x.shape[2:], [0] * n
        if own is not None:
            arguments = (kernel, strides, own, dilations, window.ceil)
        else:
            before, after = window.around(sizes, kernel)
            numbers = pad(numbers, before, window.reach(sizes, kernel, before, after), -math.inf)
            arguments = (kernel, strides, [0] * n, dilations, False)
        if not places:
            return MAXIMA[n](numbers, *arguments).to(x.dtype)
        best, at = PLACES[n](numbers, *arguments)
        return best.to(x.dtype), _positions(at, x, numbers.shape[2:], before, bool(columns))

    return run


def _positions(at: Tensor, x: Tensor, padded: Sequence[int], before: Sequence[int], columns: bool) -> Tensor:
    """Return places within one padded channel as places within the whole of x."""
    axes = [place - width for place, width in zip(torch.unravel_index(at, list(padded)), before, strict=True)]
    flat = torch.zeros_like(at)
    order = list(zip(axes, x.shape[2:], strict=True))
    for place, size in reversed(order) if columns else order:
        flat = flat * size + place
    first = torch.arange(math.prod(x.shape[:2]), device=x.device) * math.prod(x.shape[2:])
    return flat + first.reshape(*x.shape[:2], *[1] * (x.ndim - 2))


def average_pool(node: Node) -> Run:
    """What is added around counts where count_include_pad says so; what ceil_mode reaches beyond that never does."""
    window, kernel = Window.of(node), list(node.attr("kernel_shape"))
    n, include = len(kernel), bool(node.attr("count_include_pad", 0))
    strides, dilations = window.steps(n)
    even = window.even(n)
    if even is not None and max(dilations) == 1 and all(2 * p <= k for p, k in zip(even, kernel, strict=True)):
        return lambda x: MEANS[n](x, kernel, strides, even, window.ceil, include)

    def run(x: Tensor) -> Tensor:
        sizes = x.shape[2:]
        before, after = window.around(sizes, kernel)
        reach = window.reach(sizes, kernel, before, after)
        counted = x.new_ones((1, 1, *sizes))
        if include:
            inside = [min(a, r) for a, r in zip(after, reach, strict=True)]
            counted = pad(counted, before, inside, 1.0)
            counted = pad(counted, [0] * n, [r - i for r, i in zip(reach, inside, strict=True)])
        else:
            counted = pad(counted, before, reach)
        axes = tuple(range(-n, 0))
        total = _windows(pad(x, before, reach), kernel, strides, dilations).sum(axes)
        return total / _windows(counted, kernel, strides, dilations).sum(axes)

    return run


def lp_pool(node: Node) -> Run:
    """The p-norm of each window, zeros around."""
    window, kernel, p = Window.of(node), list(node.attr("kernel_shape")), node.attr("p", 2)
    n = len(kernel)
    strides, dilations = window.steps(n)

    def run(x: Tensor) -> Tensor:
        before, after = window.around(x.shape[2:], kernel)
        x = pad(x, before, window.reach(x.shape[2:], kernel, before, after))
        found = _windows(x, kernel, strides, dilations)
        norm: Tensor = torch.linalg.vector_norm(found, p, tuple(range(-n, 0)))
        return norm

    return run


def _windows(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """Return a view with the elements of each window on axes of their own, the last ones."""
    for axis, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        x = x.unfold(2 + axis, (k - 1) * d + 1, s)[..., ::d]
    return x


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def global_lp_pool(node: Node) -> Run:
    """The p-norm of each channel."""
    p = node.attr("p", 2)
    return lambda x: torch.linalg.vector_norm(x, p, _spatial(x), keepdim=True)


BINDERS: dict[str, Binder] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": lambda node: lambda x: x.mean(_spatial(x), keepdim=True),
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": lambda node: lambda x: x.amax(_spatial(x), keepdim=True),
    "LpPool": lp_pool,
    "MaxPool": max_pool,
}

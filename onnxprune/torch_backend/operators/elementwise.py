"""Element-wise operators, with broadcasting."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.torch_backend.operators.node import Binder, Node, Run


def variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Binder:
    """Bind a function of two tensors to an operator with one or more inputs."""
    return lambda node: lambda *tensors: functools.reduce(function, tensors)


def clip(node: Node) -> Run:
    """Bounds are attributes before opset 11, and inputs since."""
    if any(node.has(i) and node.constant(i) is None for i in (1, 2)):
        return _clamp
    low, high = ((node.numbers(i, name)(()) or [None])[0] for i, name in ((1, "min"), (2, "max")))
    if low == 0 and high is None:
        return lambda x, *_: torch.relu(x)
    if low is None or high is None or low > high:
        return lambda x, *_: _clamp(x, low, high)
    # one backward pass instead of four; as in ReLU6 of torch, the gradient is 0 at a bound
    return lambda x, *_: functional.hardtanh(x, low, high) if x.is_floating_point() else torch.clamp(x, low, high)


def _clamp(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def identity(x: Tensor, *_: Tensor | None) -> Tensor:
    """Return the input."""
    return x


def dropout(node: Node) -> Run:
    """Nothing is dropped: training takes the exported network as it is."""
    if node.n_outputs == 1:
        return identity
    return lambda x, *_: (x, torch.ones_like(x, dtype=torch.bool))


def power(node: Node) -> Run:
    """The result has the type of the base."""
    constant = node.constant(1)
    if constant is None or constant.size != 1 or constant.ndim > 1:
        return lambda x, y: torch.pow(x, y).to(x.dtype)
    exponent = constant.item()
    return lambda x, _: x * x if exponent == 2 else torch.pow(x, exponent).to(x.dtype)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Torch takes one slope or one per channel; other slopes are broadcast."""
    per_channel = x.ndim > 1 and slope.ndim == x.ndim - 1 and slope.shape[0] == slope.numel() == x.shape[1]
    if slope.numel() == 1 or per_channel:
        return functional.prelu(x, slope.reshape(-1))
    return torch.where(x >= 0, x, slope * x)


def hard_sigmoid(node: Node) -> Run:
    """Return alpha x + beta, clipped to 0 and 1."""
    alpha, beta = node.attr("alpha", 0.2), node.attr("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:  # as in torch; 1/6 has this precision in float32
        return functional.hardsigmoid
    return lambda x: functional.hardtanh(alpha * x + beta, 0.0, 1.0)


def is_inf(node: Node) -> Run:
    """Both signs only."""
    node.require(detect_negative=1, detect_positive=1)
    return torch.isinf

"""Operators that take every element by itself, or broadcast several tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.training.operators.node import Binder, Node, Run

SELU = (1.67326319217681884765625, 1.05070102214813232421875)
"""Its alpha and gamma by default, which are those that torch has built in."""


def _plain(function: Callable[..., Tensor]) -> Binder:
    """A function of torch that needs no attribute."""
    return lambda node: function


def _scaled(function: Callable[..., Tensor], **defaults: float) -> Binder:
    """A function whose further arguments are attributes, in this order."""
    return lambda node: functools.partial(_call, function, *(node.attr(k, v) for k, v in defaults.items()))


def _call(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    *settings, x = arguments
    return function(x, *settings)


def clip(node: Node) -> Run:
    """Bounds are attributes before opset 11, inputs since."""
    if not (node.known(1) and node.known(2)):
        return _clamp
    low, high = ((node.numbers(i, name)(()) or [None])[0] for i, name in ((1, "min"), (2, "max")))
    if low is None and high is None:
        return _same
    if low == 0 and high is None:
        return lambda x, *_: torch.relu(x)
    if low is None or high is None or low > high:
        return lambda x, *_: torch.clamp(x, low, high)
    # one pass backwards instead of four; as in torch's ReLU6, nothing flows where a bound is met
    return lambda x, *_: functional.hardtanh(x, low, high) if x.is_floating_point() else torch.clamp(x, low, high)


def _clamp(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def _same(x: Tensor, *_: Tensor | None) -> Tensor:
    return x


def dropout(node: Node) -> Run:
    """Nothing is dropped, in training neither: what is trained is the network that was exported."""
    if node.n_outputs == 1:
        return _same
    return lambda x, *_: (x, torch.ones_like(x, dtype=torch.bool))


def div(node: Node) -> Run:
    """Integers are divided towards zero."""

    def run(a: Tensor, b: Tensor) -> Tensor:
        return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")

    return run


def mod(node: Node) -> Run:
    """The sign is that of the divisor, with fmod that of the dividend."""
    return torch.fmod if node.attr("fmod", 0) else torch.remainder


def power(node: Node) -> Run:
    """The result has the type of the base."""
    constant = node.constant(1)
    if constant is not None and constant.size == 1 and constant.ndim <= 1:
        exponent = constant.item()
        if exponent == 2:
            return lambda x, _: x * x
        return lambda x, _: torch.pow(x, exponent).to(x.dtype)
    return lambda x, y: torch.pow(x, y).to(x.dtype)


def variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Binder:
    """One tensor or more."""
    return lambda node: lambda *tensors: functools.reduce(function, tensors)


def mean(node: Node) -> Run:
    """Of one tensor or more."""
    return lambda *tensors: functools.reduce(torch.add, tensors) / len(tensors)


def prelu(node: Node) -> Run:
    """A slope per channel, or one for all, is what torch knows; others are broadcast."""

    def run(x: Tensor, slope: Tensor) -> Tensor:
        per_channel = (
            slope.ndim == x.ndim - 1 and slope.shape[0] == slope.numel() == x.shape[1] if x.ndim > 1 else False
        )
        if slope.numel() == 1 or per_channel:
            return functional.prelu(x, slope.reshape(-1))
        return torch.where(x >= 0, x, slope * x)

    return run


def gelu(node: Node) -> Run:
    """Exact, or by tanh."""
    return functools.partial(functional.gelu, approximate=node.attr("approximate", "none"))


def swish(node: Node) -> Run:
    """Return x sigmoid(alpha x)."""
    alpha = node.attr("alpha", 1.0)
    return functional.silu if alpha == 1 else lambda x: x * torch.sigmoid(alpha * x)


def hard_sigmoid(node: Node) -> Run:
    """Return alpha x + beta, but between 0 and 1."""
    alpha, beta = node.attr("alpha", 0.2), node.attr("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:  # what torch's own one is; float32 knows a sixth no better
        return functional.hardsigmoid
    return lambda x: functional.hardtanh(alpha * x + beta, 0.0, 1.0)


def selu(node: Node) -> Run:
    """Return gamma (alpha e^x - alpha) below zero, gamma x above."""
    alpha, gamma = node.attr("alpha", SELU[0]), node.attr("gamma", SELU[1])
    if (alpha, gamma) == SELU:
        return functional.selu
    return lambda x: gamma * functional.elu(x, alpha)


def shrink(node: Node) -> Run:
    """Towards zero by bias, and zero within lambd."""
    lambd, bias = node.attr("lambd", 0.5), node.attr("bias", 0.0)
    return lambda x: torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


def is_inf(node: Node) -> Run:
    """Of either sign, or of one."""
    negative, positive = node.attr("detect_negative", 1), node.attr("detect_positive", 1)
    if negative and positive:
        return torch.isinf
    if not negative and not positive:
        return lambda x: torch.zeros_like(x, dtype=torch.bool)
    return torch.isneginf if negative else torch.isposinf


BINDERS: dict[str, Binder] = {
    "Abs": _plain(torch.abs),
    "Acos": _plain(torch.acos),
    "Acosh": _plain(torch.acosh),
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "Asin": _plain(torch.asin),
    "Asinh": _plain(torch.asinh),
    "Atan": _plain(torch.atan),
    "Atanh": _plain(torch.atanh),
    "Ceil": _plain(torch.ceil),
    "Celu": _scaled(functional.celu, alpha=1.0),
    "Clip": clip,
    "Cos": _plain(torch.cos),
    "Cosh": _plain(torch.cosh),
    "Div": div,
    "Dropout": dropout,
    "Elu": _scaled(functional.elu, alpha=1.0),
    "Equal": _plain(torch.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Floor": _plain(torch.floor),
    "Gelu": gelu,
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": _plain(functional.hardswish),
    "Identity": _plain(_same),
    "IsInf": is_inf,
    "IsNaN": _plain(torch.isnan),
    "LeakyRelu": _scaled(functional.leaky_relu, alpha=0.01),
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "Log": _plain(torch.log),
    "Max": variadic(torch.maximum),
    "Mean": mean,
    "Min": variadic(torch.minimum),
    "Mish": _plain(functional.mish),
    "Mod": mod,
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not),
    "Or": _plain(torch.logical_or),
    "PRelu": prelu,
    "Pow": power,
    "Reciprocal": _plain(torch.reciprocal),
    "Relu": _plain(torch.relu),
    "Round": _plain(torch.round),
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": _plain(torch.sigmoid),
    "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin),
    "Sinh": _plain(torch.sinh),
    "Softplus": _plain(functional.softplus),
    "Softsign": _plain(functional.softsign),
    "Sqrt": _plain(torch.sqrt),
    "Sub": _plain(torch.sub),
    "Sum": variadic(torch.add),
    "Swish": swish,
    "Tan": _plain(torch.tan),
    "Tanh": _plain(torch.tanh),
    "ThresholdedRelu": lambda node: functools.partial(
        functional.threshold, threshold=node.attr("alpha", 1.0), value=0.0
    ),
    "Where": _plain(torch.where),
    "Xor": _plain(torch.logical_xor),
}

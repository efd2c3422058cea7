"""Differentiable distances of one output, for kinds that take no class scores; see `onnxprune.metrics.output_distance`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.metrics.output_distance import LEAST, OutputDistance


def distance(found: OutputDistance, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the distance of an output, a scalar; T^2 KL at temperature T, whose gradients keep their scale."""
    student, teacher = student.float(), teacher.float()
    if found.measure == "error":
        return ((student - teacher).square() / _variance(found, student)).mean()
    if found.measure == "cosine":
        x, y = _unit(found, student), _unit(found, teacher)
        alone = (x == 0).all(found.axis) != (y == 0).all(found.axis)  # the cosine with a row of zeros is 0
        return (x - y).square().sum() / (2 * alone.numel()) + 0.5 * alone.float().mean()
    t = temperature
    p, q = (_logits(found, output) / t for output in (teacher, student))
    if found.measure == "kl":
        log_p, log_q = (x.log_softmax(_axis(found)) for x in (p, q))
        total = functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    else:
        yes, no = functional.logsigmoid(p), functional.logsigmoid(-p)
        total = (yes.exp() * (yes - functional.logsigmoid(q)) + no.exp() * (no - functional.logsigmoid(-q))).sum()
    return t * t * total / found.positions(student.shape)


def noise(found: OutputDistance, output: Tensor, generator: torch.Generator) -> Tensor:
    """Return the output times random signs, whose gradient has the Hessian of the distance from the same output as covariance."""
    if found.measure == "error":
        root = (2 / _variance(found, output)).sqrt()
        values = root * output
    elif found.measure == "cosine":
        values = _unit(found, output)
    elif found.measure == "kl":
        values = _logits(found, output).log_softmax(_axis(found))  # the gradient of log p makes r sqrt(p) into A r
        values = (values.detach() / 2).exp() * values
    else:
        values = _logits(found, output)
        p = values.detach().sigmoid()
        values = (p * (1 - p)).sqrt() * values
    signs = torch.randint(0, 2, values.shape, generator=generator).to(values.dtype) * 2 - 1
    return (values * signs).sum() / math.sqrt(found.positions(output.shape))


def _axis(found: OutputDistance) -> int:
    assert found.axis is not None
    return found.axis


def _logits(found: OutputDistance, output: Tensor) -> Tensor:
    """Return logits, or what makes logits of probabilities."""
    if not found.probabilities:
        return output
    log = output.clamp_min(LEAST).log()
    return log if found.measure == "kl" else log - (1 - output).clamp_min(LEAST).log()


def _unit(found: OutputDistance, output: Tensor) -> Tensor:
    """Return the rows of an embedding at length 1; rows of zeros stay."""
    length = torch.linalg.vector_norm(output, dim=_axis(found), keepdim=True)
    return output / torch.where(length > 0, length, 1.0)


def _variance(found: OutputDistance, like: Tensor) -> Tensor:
    """Return the variance in a shape that broadcasts over an output."""
    variance = torch.as_tensor(found.variance, dtype=torch.float32, device=like.device)
    return variance if found.axis is None else variance.reshape(-1, *[1] * (-found.axis - 1))

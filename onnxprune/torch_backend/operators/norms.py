"""Normalizations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.torch_backend.operators.node import Node, Run


def batch_normalization(node: Node) -> Run:
    """Running statistics; in training mode those of the batch, which update the running ones as in torch."""
    node.require(training_mode=0)
    epsilon, momentum = node.attr("epsilon", 1e-5), node.attr("momentum", 0.9)
    return lambda x, scale, bias, mean, var: functional.batch_norm(
        x, mean, var, scale, bias, node.mode.training, 1 - momentum, epsilon
    )


def group_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    """Scale and bias are per group before opset 21, and per channel since."""
    times = x.shape[1] // scale.numel()
    return torch.group_norm(x, num_groups, scale.repeat_interleave(times), bias.repeat_interleave(times), epsilon)


def layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5
) -> Tensor:
    """Normalize over the axes from `axis` on; a scale that needs broadcasting is multiplied afterwards."""
    shape = x.shape[axis % x.ndim :]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    y = functional.layer_norm(x, shape, None, None, epsilon) * scale
    return y if bias is None else y + bias


def local_response_normalization(
    x: Tensor, *, size: int, bias: float = 1.0, alpha: float = 1e-4, beta: float = 0.75
) -> Tensor:
    """Divide by the squares of neighboring channels; an even window has one more channel behind than before."""
    squares = functional.pad((x * x).flatten(2), (0, 0, (size - 1) // 2, size // 2))
    mean = functional.avg_pool2d(squares.unsqueeze(1), (size, 1), 1).squeeze(1)
    return x / torch.pow(bias + alpha * mean.reshape(x.shape), beta)


def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Divide by the p-norm along an axis; 0 stays 0."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)

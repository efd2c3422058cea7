"""Normalisations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.training.operators.node import Binder, Node, Run

TINY = 1e-9
"""What MeanVarianceNormalization adds to a deviation."""


def batch_normalization(node: Node) -> Run:
    """Running statistics as a rule; those of the batch while training, which change the running ones as torch's layer does.

    A node that is in training mode by itself takes those of the batch always, and returns what becomes of the running ones.
    """
    epsilon, momentum = node.attr("epsilon", 1e-5), node.attr("momentum", 0.9)
    if node.attr("training_mode", 0):

        def train(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Sequence[Tensor]:
            axes = [axis for axis in range(x.ndim) if axis != 1]
            y = torch.batch_norm(x, scale, bias, None, None, True, 0.0, epsilon, False)
            found = torch.var_mean(x, axes, correction=0)
            means, variances = (
                old * momentum + new * (1 - momentum) for old, new in ((mean, found[1]), (var, found[0]))
            )
            return y, means, variances

        return train

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return functional.batch_norm(x, mean, var, scale, bias, node.mode.training, 1 - momentum, epsilon)

    return run


def instance_normalization(node: Node) -> Run:
    """Each channel of each sample by itself."""
    epsilon = node.attr("epsilon", 1e-5)
    return lambda x, scale, bias: torch.group_norm(x, x.shape[1], scale, bias, epsilon)


def group_normalization(node: Node) -> Run:
    """Scale and bias are per group before opset 21, per channel since."""
    groups, epsilon = node.attr("num_groups"), node.attr("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if node.opset < 21:
            times = x.shape[1] // groups
            scale, bias = scale.repeat_interleave(times), bias.repeat_interleave(times)
        return torch.group_norm(x, groups, scale, bias, epsilon)

    return run


def layer_normalization(node: Node) -> Run:
    """Over all axes from one on; a scale that has to be broadcast is multiplied afterwards."""
    first, epsilon = node.attr("axis", -1), node.attr("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor | Sequence[Tensor]:
        shape = x.shape[first % x.ndim :]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            y = functional.layer_norm(x, shape, scale, bias, epsilon)
        else:
            y = functional.layer_norm(x, shape, None, None, epsilon) * scale
            y = y if bias is None else y + bias
        if node.n_outputs == 1:
            return y
        var, mean = torch.var_mean(x, list(range(first % x.ndim, x.ndim)), correction=0, keepdim=True)
        return y, mean, torch.rsqrt(var + epsilon)

    return run


def rms_normalization(node: Node) -> Run:
    """Over all axes from one on, by the root of the mean square."""
    first, epsilon = node.attr("axis", -1), node.attr("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor) -> Tensor:
        shape = x.shape[first % x.ndim :]
        if scale.shape == shape:
            return functional.rms_norm(x, shape, scale, epsilon)
        return functional.rms_norm(x, shape, None, epsilon) * scale

    return run


def mean_variance_normalization(node: Node) -> Run:
    """Over axes; by default over all but the channels."""
    axes = node.attr("axes", [0, 2, 3])

    def run(x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        return (x - mean) / (var.sqrt() + TINY)

    return run


def local_response_normalization(node: Node) -> Run:
    """By the squares of a channel's neighbours; of an even number, one more lies behind it than before."""
    size, bias = node.attr("size"), node.attr("bias", 1.0)
    alpha, beta = node.attr("alpha", 1e-4), node.attr("beta", 0.75)

    def run(x: Tensor) -> Tensor:
        squares = functional.pad((x * x).flatten(2), (0, 0, (size - 1) // 2, size // 2))
        mean = functional.avg_pool2d(squares.unsqueeze(1), (size, 1), 1).squeeze(1)
        return x / torch.pow(bias + alpha * mean.reshape(x.shape), beta)

    return run


def lp_normalization(node: Node) -> Run:
    """By the p-norm along an axis; what is zero stays zero."""
    axis, p = node.attr("axis", -1), node.attr("p", 2)

    def run(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
        return x / torch.where(norm == 0, torch.ones_like(norm), norm)

    return run


BINDERS: dict[str, Binder] = {
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": local_response_normalization,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
}

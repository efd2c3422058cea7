"""AdamW or SGD with a scheduled learning rate; AdamW steps are scaled by the size of each filter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from onnxprune.options import RATES, ResolvedTraining
from onnxprune.training.constraints import Filters

WARM_UP = 0.15
"""Share of the one-cycle schedule in which the learning rate rises."""
FIRST = 0.04
"""Learning rate at the start of the one-cycle schedule, as a share of the highest rate."""
MOMENTUM = 0.9
SMALLEST = 0.1
"""Least size of a filter, as a share of the size of its tensor, so that a filter of tiny weights can still learn."""
BARE = 1e-2
"""Least size of a bias or a scale."""
TINY = 1e-30


def learning_rate(training: ResolvedTraining, share: float) -> float:
    """Return the learning rate after a share of the training; one-cycle: Smith and Topin, 2018, "Super-Convergence", with cosines."""
    top = RATES[training.optimizer] if training.rate is None else training.rate
    if training.schedule == "constant":
        return top
    if training.schedule == "cosine":
        return top * _falling(share)
    if share < WARM_UP:
        return top * (1 - (1 - FIRST) * _falling(share / WARM_UP))
    return top * _falling((share - WARM_UP) / (1 - WARM_UP))


def _falling(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


class Optimizer:
    """AdamW with steps scaled by filter, or SGD with Nesterov momentum; weights with two or more axes decay."""

    def __init__(
        self, weights: Mapping[str, Tensor], training: ResolvedTraining, filters: Mapping[str, tuple[Filters, ...]]
    ) -> None:
        """Measure the sizes of the filters at the start of training."""
        self._weights, self._training = weights, training
        matrices = [w for w in weights.values() if w.ndim > 1]
        others = [w for w in weights.values() if w.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": training.decay}, {"params": others, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        rate = learning_rate(training, 0.0)
        self._sizes: dict[str, Tensor] = {}
        self._inner: torch.optim.Optimizer
        if training.optimizer == "sgd":  # its steps grow with the gradients: they need no scaling
            self._inner = torch.optim.SGD(groups, rate, MOMENTUM, nesterov=True)
        else:
            self._inner = torch.optim.AdamW(groups, rate)
            self._sizes = filter_sizes(weights, filters)

    def clear(self) -> None:
        """Set all gradients to None."""
        self._inner.zero_grad(set_to_none=True)

    def step(self, share: float) -> None:
        """Clip the gradient and update the weights; `share` is the share of the training that is done."""
        for group in self._inner.param_groups:
            group["lr"] = learning_rate(self._training, share)
        if self._training.clip:
            torch.nn.utils.clip_grad_norm_(self._weights.values(), self._training.clip)
        moved = (name for name in self._sizes if self._weights[name].grad is not None)
        before = {name: self._weights[name].detach().clone() for name in moved}
        self._inner.step()
        with torch.no_grad():
            for name, old in before.items():
                self._weights[name].copy_(torch.lerp(old, self._weights[name], self._sizes[name]))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer, for a checkpoint."""
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._inner.load_state_dict(state)


def filter_sizes(weights: Mapping[str, Tensor], filters: Mapping[str, tuple[Filters, ...]]) -> dict[str, Tensor]:
    """Return the root mean square of the filter of each element, which broadcasts to the weight; weights without filters have one size.

    The steps of Adam are equally large for all elements, but folded BatchNormalization leaves filters of very different sizes in one
    layer. The ratio of a step to the weights decides how far a network moves (You et al., 2020, "Large Batch Optimization for Deep
    Learning", LAMB, section 3: per layer and step); here it is fixed per filter, since the weights are already trained.
    """
    sizes = {}
    for name, weight in weights.items():
        w = weight.detach()
        whole = w.square().mean().sqrt()
        if w.ndim < 2:
            sizes[name] = whole.clamp_min(BARE)
        elif name in filters:
            sizes[name] = _of_filters(w, filters[name][0]).maximum(SMALLEST * whole).clamp_min(TINY)
        else:
            sizes[name] = whole.clamp_min(TINY)
    return sizes


def _of_filters(weight: Tensor, filters: Filters) -> Tensor:
    """Return the filter size of each element, in the shape of the weight."""
    norms = filters.norms(weight)
    view = weight.reshape(filters.shape)
    count = view.numel() / norms.numel()
    sizes: Tensor = (norms / count**0.5).expand(view.shape).reshape(weight.shape).to(weight.dtype)
    return sizes

"""Learning rates that are shares of the weights: folded BatchNormalization leaves filters of very different size side by side."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from onnxprune.training.constraints import Filters

SMALLEST = 0.1
"""Size that a filter has at least, as a share of that of its tensor: what hardly writes anything may still learn to."""
BARE = 1e-2
"""Size that a bias or a scale has at least."""
TINY = 1e-30


class Relative:
    """Scales each step of an optimiser whose steps are as large for all elements (Adam) by the size of the filter.

    The size is the root mean square of its elements when training starts. The ratio of a step to the weights is what decides how far a
    network moves (You et al., 2020, "Large Batch Optimization for Deep Learning", LAMB, section 3), there per layer and step by
    step; here once per filter, since the weights are trained already.
    """

    def __init__(self, weights: Mapping[str, Tensor], filters: Mapping[str, tuple[Filters, ...]]) -> None:
        """Measure the sizes.

        Args:
            weights: as they are when training starts.
            filters: by name; a weight without is measured as a whole.
        """
        self._weights = weights
        self._before: dict[str, Tensor] = {}
        self._sizes: dict[str, Tensor] = {}
        for name, weight in weights.items():
            w = weight.detach()
            whole = w.square().mean().sqrt()
            if w.ndim < 2:
                self._sizes[name] = whole.clamp_min(BARE)
            elif name in filters:
                self._sizes[name] = _of_filters(w, filters[name][0]).maximum(SMALLEST * whole).clamp_min(TINY)
            else:
                self._sizes[name] = whole.clamp_min(TINY)

    def before(self) -> None:
        """Remember the weights."""
        self._before = {name: w.detach().clone() for name, w in self._weights.items() if w.grad is not None}

    @torch.no_grad()
    def after(self) -> None:
        """Go that share of the way which the optimiser went."""
        for name, old in self._before.items():
            weight = self._weights[name]
            weight.copy_(torch.lerp(old, weight, self._sizes[name]))
        self._before.clear()


def _of_filters(weight: Tensor, filters: Filters) -> Tensor:
    """Return the size of the filter that each element belongs to, in the shape of the weight."""
    norms = filters.norms(weight)
    view = weight.reshape(filters.shape)
    count = view.numel() / norms.numel()
    sizes: Tensor = (norms / count**0.5).expand(view.shape).reshape(weight.shape).to(weight.dtype)
    return sizes

"""What holds for weights after each step: bounds of their values, norms of their filters, elements that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import onnx_graphsurgeon as gs
import torch
from torch import Tensor

from onnxprune.errors import OptionError
from onnxprune.options import Bound
from onnxprune.training.executor import Executor

INSIDE = 1 - 2.0**-20
"""A filter is scaled to this much of its bound, so that rounding to single precision does not take it beyond."""


class Constraints:
    """Projections onto bounds, exact in the type that is written.

    Attributes:
        notes: what the weights violated when they were first looked at.
    """

    def __init__(self, executor: Executor, bounds: Sequence[Bound]) -> None:
        """Find the weights that each bound names.

        Args:
            executor: its weights.
            bounds: in the order they were given.

        Raises:
            OptionError: a bound that names no weight, or a norm where there are no filters.
        """
        axes = filter_axes(executor.model.graph)
        self._bounds: list[tuple[str, Bound, int | None]] = []
        for bound in bounds:
            named = [name for name in executor.weights if fnmatchcase(name, bound.pattern)]
            if bound.norm is not None:
                named = [name for name in named if name in axes]
            if not named:
                what = "filters" if bound.norm is not None else "trained weights"
                raise OptionError(
                    f"--{bound.option} names no {what}",
                    why=f"no initializer is called {bound.pattern!r}",
                    hint="names are those that `onnxprune inspect --json` and netron show; * stands for anything",
                )
            self._bounds += [(name, bound, axes.get(name)) for name in named]
        self.notes = tuple(self._violations(executor.weights))

    def __bool__(self) -> bool:
        return bool(self._bounds)

    @torch.no_grad()
    def project(self, weights: Mapping[str, Tensor]) -> None:
        """Move weights to the nearest values that hold every bound, in place."""
        for name, bound, axis in self._bounds:
            weight = weights[name]
            if bound.norm is None:
                weight.clamp_(bound.low, bound.high)
                continue
            assert axis is not None
            norms = filter_norms(weight, axis)
            factor = (bound.norm / norms.clamp_min(1e-300) * INSIDE).where(norms > bound.norm, torch.ones_like(norms))
            weight.copy_(weight.double() * factor.reshape(_along(weight, axis)))

    @torch.no_grad()
    def _violations(self, weights: Mapping[str, Tensor]) -> list[str]:
        found = []
        for name, bound, axis in self._bounds:
            weight = weights[name]
            if bound.norm is None:
                count, what = int(((weight < bound.low) | (weight > bound.high)).sum()), "elements"
                total = weight.numel()
            else:
                assert axis is not None
                norms = filter_norms(weight, axis)
                count, total, what = int((norms > bound.norm).sum()), norms.numel(), "filters"
            if count:
                found.append(
                    f"--{bound.option}: {count} of {total} {what} of {name} were beyond {bound.text} at the start"
                )
        return found


def filter_norms(weight: Tensor, axis: int) -> Tensor:
    """Return the Euclidean norm of each filter, (n,) float64."""
    norms: Tensor = torch.linalg.vector_norm(weight.double().movedim(axis, 0).flatten(1), dim=1)
    return norms


def filter_axes(graph: gs.Graph) -> dict[str, int]:
    """Return the axis of the filters of every weight that has some."""
    axes: dict[str, int] = {}
    for node in graph.nodes:
        for i, tensor in enumerate(node.inputs[:2]):
            if not isinstance(tensor, gs.Constant) or len(tensor.shape) < 2:
                continue
            if node.op == "Conv" and i == 1:
                axes[tensor.name] = 0
            elif node.op == "ConvTranspose" and i == 1 and node.attrs.get("group", 1) == 1:
                axes[tensor.name] = 1
            elif node.op == "Gemm":
                axes[tensor.name] = int(not node.attrs.get("transB", 0)) if i else int(node.attrs.get("transA", 0))
            elif node.op == "MatMul":
                axes[tensor.name] = len(tensor.shape) - 1 if i else len(tensor.shape) - 2
    return axes


def _along(weight: Tensor, axis: int) -> list[int]:
    shape = [1] * weight.ndim
    shape[axis] = -1
    return shape


class Frozen:
    """The local threshold: an element whose accumulated gradient is smaller in magnitude than a threshold sits a step out.

    Attributes:
        share: of the elements that sat the last step out.
    """

    def __init__(self, weights: Mapping[str, Tensor], below: float) -> None:
        self._weights, self._below = weights, below
        self._held: dict[str, tuple[Tensor, Tensor]] = {}
        self.share = 0.0

    def before(self) -> None:
        """Remember, from the gradients as they are now, which elements stay and what they are."""
        total = held = 0
        for name, weight in self._weights.items():
            if weight.grad is None:
                continue
            stays = weight.grad.abs() < self._below
            self._held[name] = (stays, weight.detach().clone())
            total, held = total + stays.numel(), held + int(stays.sum())
        self.share = held / max(1, total)

    @torch.no_grad()
    def after(self) -> None:
        """Put back what was not to change: momentum and weight decay move elements without a gradient, too."""
        for name, (stays, value) in self._held.items():
            weight = self._weights[name]
            weight.copy_(torch.where(stays, value, weight))
        self._held.clear()

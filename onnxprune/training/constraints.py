"""Constraints on weights after each step: ranges of values, norms of filters, elements that are not updated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import Tensor

from onnxprune.errors import OptionError
from onnxprune.options import Bound
from onnxprune.torch_backend.executor import Executor

INSIDE = 1 - 2.0**-20
"""Filters are scaled to this share of their bound, so that the bound holds for any order of summation."""


@dataclass(frozen=True)
class Filters:
    """Layout of the filters of a weight.

    Attributes:
        shape: shape of the weight, with a separate axis for the groups of a ConvTranspose.
        summed: axes of `shape` that a norm runs over.
    """

    shape: tuple[int, ...]
    summed: tuple[int, ...]

    def norms(self, weight: Tensor) -> Tensor:
        """Return the Euclidean norm of each filter, float64, with the summed axes kept at length 1."""
        norms: Tensor = torch.linalg.vector_norm(weight.double().reshape(self.shape), dim=self.summed, keepdim=True)
        return norms

    def within(self, weight: Tensor, most: float, stays: Tensor | None = None) -> Tensor:
        """Return the nearest weight, of the same type, whose filters all have a norm of at most `most`.

        `stays` marks elements that do not change; on their own they satisfy the bound.
        """
        over = self.norms(weight) > most
        if not bool(over.any()):
            return weight
        fixed = torch.zeros_like(weight, dtype=torch.bool) if stays is None else stays
        free = self.norms(weight.masked_fill(fixed, 0))
        room = ((most * INSIDE) ** 2 - self.norms(weight.masked_fill(~fixed, 0)) ** 2).clamp_min(0).sqrt()
        factor = torch.where(over, (room / free).nan_to_num(1.0).clamp_max(1.0), 1.0)
        scaled = toward_zero((weight.double().reshape(self.shape) * factor).reshape(weight.shape), weight.dtype)
        return torch.where(fixed, weight, scaled)


@dataclass(frozen=True)
class _Rule:
    """All bounds of one weight; `low` and `high` are numbers of the stored type."""

    name: str
    low: float
    high: float
    norms: tuple[tuple[Filters, float], ...]

    def projected(self, weight: Tensor, stays: Tensor | None = None) -> Tensor:
        new = weight.clamp(self.low, self.high)
        new = new if stays is None else torch.where(stays, weight, new)
        for filters, most in self.norms:
            new = filters.within(new, most, stays)
        return new


class Constraints:
    """Projections onto bounds, exact in the stored type.

    Attributes:
        notes: bounds that the weights violate at the start.
    """

    def __init__(self, executor: Executor, bounds: Sequence[Bound]) -> None:
        """Find the weights that each bound names.

        Raises:
            OptionError: a bound names no weight or no filters, or two bounds exclude each other.
        """
        tensors = executor.model.graph.tensors()
        self._stored = {name: getattr(torch, str(np.asarray(tensors[name].values).dtype)) for name in executor.weights}
        filters = filters_of(executor.model.graph)
        by_name: dict[str, list[Bound]] = {}
        notes = []
        for bound in bounds:
            for name in _named(bound, executor.weights, filters):
                by_name.setdefault(name, []).append(bound)
                notes += _violations(bound, name, executor.weights[name], filters.get(name, ()))
        self.notes = tuple(notes)
        self._rules = [_merged(n, self._stored[n], given, filters.get(n, ())) for n, given in by_name.items()]

    def __bool__(self) -> bool:
        return bool(self._rules)

    @torch.no_grad()
    def project(self, weights: Mapping[str, Tensor], stays: Mapping[str, Tensor] | None = None) -> None:
        """Move weights to the nearest values within all bounds, in place; elements in `stays` do not change."""
        for rule in self._rules:
            weights[rule.name].copy_(rule.projected(weights[rule.name], (stays or {}).get(rule.name)))

    @torch.no_grad()
    def project_beside(self, weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
        """Project, without changing elements that equal those of `others`, which satisfy all bounds."""
        self.project(weights, {rule.name: weights[rule.name] == others[rule.name] for rule in self._rules})

    @torch.no_grad()
    def rounded(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return finite weights in the precision of the file, rounded so that all bounds still hold."""
        result = dict(weights)
        norms = {rule.name: rule.norms for rule in self._rules}
        for name, weight in weights.items():
            stored = self._stored[name]
            if stored.itemsize < weight.dtype.itemsize:
                limit = torch.finfo(stored).max
                finite = weight.detach().double().clamp(-limit, limit)
                value, cut = finite.to(stored), toward_zero(finite, stored)
                for filters, most in norms.get(name, ()):
                    over = (filters.norms(value) > most).expand(filters.shape).reshape(value.shape)
                    value = torch.where(over, cut, value)
                result[name] = value.to(weight.dtype)
        return result


def filters_of(graph: gs.Graph) -> dict[str, tuple[Filters, ...]]:
    """Return the filters of every weight that has filters, one entry per use; a filter computes one output channel."""
    found: dict[str, set[Filters]] = {}
    for node in graph.nodes:
        for i, tensor in enumerate(node.inputs[:2]):
            if isinstance(tensor, gs.Constant) and len(tensor.shape) >= 2:
                filters = _filters(node, i, tuple(tensor.shape))
                if filters is not None:
                    found.setdefault(tensor.name, set()).add(filters)
    return {name: tuple(sorted(each, key=lambda f: (f.shape, f.summed))) for name, each in found.items()}


def _filters(node: gs.Node, i: int, shape: tuple[int, ...]) -> Filters | None:
    axes = range(len(shape))
    if node.op == "Conv" and i == 1:
        return Filters(shape, tuple(axes[1:]))
    if node.op == "ConvTranspose" and i == 1:
        groups = int(node.attrs.get("group", 1))
        return Filters((groups, shape[0] // groups, *shape[1:]), (1, *(axis + 1 for axis in axes[2:])))
    if node.op == "Gemm":
        return Filters(shape, (int(node.attrs.get("transB", 0)) if i else 1 - int(node.attrs.get("transA", 0)),))
    if node.op == "MatMul":
        return Filters(shape, (axes[-2] if i else axes[-1],))
    return None


def _named(bound: Bound, weights: Mapping[str, Tensor], filters: Mapping[str, tuple[Filters, ...]]) -> list[str]:
    named = [name for name in weights if fnmatchcase(name, bound.pattern) and (bound.norm is None or name in filters)]
    if not named:
        raise OptionError(
            f"--{bound.option} names no {'trained weight' if bound.norm is None else 'filters'}",
            why=f"none of the {len(weights)} trained weights matches {bound.pattern!r}",
            hint=f"the weights are {', '.join(list(weights)[:4])}; * matches any text",
        )
    return named


def _violations(bound: Bound, name: str, weight: Tensor, filters: Sequence[Filters]) -> list[str]:
    """Return a note if a weight violates a bound."""
    weight = weight.detach().double()
    if bound.norm is None:
        beyond, total, what = (weight < bound.low) | (weight > bound.high), weight.numel(), "elements"
    else:
        norms = [each.norms(weight) for each in filters]
        beyond = torch.cat([(norm > bound.norm).flatten() for norm in norms])
        total, what = beyond.numel(), "filters"
    count = int(beyond.sum())
    if not count:
        return []
    return [f"--{bound.option} {bound.text}: {count} of {total} {what} of {name} violate it at the start"]


def _merged(name: str, stored: torch.dtype, bounds: Sequence[Bound], filters: Sequence[Filters]) -> _Rule:
    """Combine all bounds of a weight."""
    low, high = max(bound.low for bound in bounds), min(bound.high for bound in bounds)
    most = min((bound.norm for bound in bounds if bound.norm is not None), default=None)
    if low > high or (most is not None and not low <= 0 <= high):
        texts = ", ".join(f"--{bound.option} {bound.text}" for bound in bounds)
        raise OptionError(
            f"the bounds of {name} exclude each other",
            why=f"{texts}: " + ("no value satisfies all" if low > high else "a norm needs a range that contains 0"),
            hint="give patterns that match different weights",
        )
    bottom, top = -_at_most(-low, stored), _at_most(high, stored)
    if bottom > top:  # no number of this type is within the range: take the nearest one
        bottom = top = float(torch.tensor(low, dtype=torch.float64).to(stored))
    return _Rule(name, bottom, top, () if most is None else tuple((each, most) for each in filters))


def _at_most(value: float, kind: torch.dtype) -> float:
    """Return the largest number of a type that is at most `value`."""
    exact = torch.tensor(value, dtype=torch.float64)
    near = exact.to(kind)
    return float(torch.nextafter(near, torch.full_like(near, -torch.inf)) if float(near) > value else near)


def toward_zero(values: Tensor, kind: torch.dtype) -> Tensor:
    """Return float64 values in another type, rounded toward zero."""
    near = values.to(kind)
    return torch.where(near.double().abs() > values.abs(), torch.nextafter(near, torch.zeros_like(near)), near)


class Frozen:
    """The local threshold: weights with |accumulated gradient| < T are not updated in a step.

    Attributes:
        share: share of the elements that were not updated in the last step.
        stays: mask of these elements, by name of the weight.
    """

    def __init__(self, weights: Mapping[str, Tensor], below: float) -> None:
        self._weights, self._below = weights, below
        self._values: dict[str, Tensor] = {}
        self.stays: dict[str, Tensor] = {}
        self.share = 0.0

    def before(self) -> None:
        """Store the elements with small gradients, and all values."""
        self.stays = {name: w.grad.abs() < self._below for name, w in self._weights.items() if w.grad is not None}
        self._values = {name: self._weights[name].detach().clone() for name in self.stays}
        held = sum(int(stays.sum()) for stays in self.stays.values())
        self.share = held / max(1, sum(stays.numel() for stays in self.stays.values()))

    @torch.no_grad()
    def after(self) -> None:
        """Restore the elements that are not updated: momentum and weight decay also move elements with small gradients."""
        for name, stays in self.stays.items():
            weight = self._weights[name]
            weight.copy_(torch.where(stays, self._values[name], weight))
        self._values.clear()

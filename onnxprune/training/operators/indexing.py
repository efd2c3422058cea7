"""Operators that take elements by their positions, or put them there."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.training.operators.node import Binder, Node, Run

REDUCED = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""What torch calls the reductions of a scatter."""


def _counted(at: Tensor, size: int) -> Tensor:
    """Return positions as torch wants them: negative ones count from the end."""
    at = at.long()
    return torch.where(at < 0, at + size, at)


def gather(node: Node) -> Run:
    """One position takes its axis away; constant ones that are not negative need no look at run time."""
    axis, known = node.attr("axis", 0), node.constant(1)
    if known is not None and known.size == 1 and known.ndim == 0:
        node.host.add(1)
        place = int(known)
        return lambda x, _: x.select(axis, place)
    plain = known is not None and known.dtype.kind == "i" and known.size > 0 and int(known.min()) >= 0

    def run(x: Tensor, at: Tensor) -> Tensor:
        flat = at.reshape(-1) if plain else _counted(at, x.shape[axis]).reshape(-1)
        taken = x.index_select(axis, flat)
        if at.ndim == 1:
            return taken
        place = axis % x.ndim
        return taken.reshape(*x.shape[:place], *at.shape, *x.shape[place + 1 :])

    return run


def gather_elements(node: Node) -> Run:
    """As torch's gather."""
    axis = node.attr("axis", 0)
    return lambda x, at: torch.gather(x, axis, _counted(at, x.shape[axis]))


def _parts(at: Tensor, shape: tuple[int, ...], batch: int = 0) -> tuple[Tensor, ...]:
    """Return positions that lie along the last axis one axis apart, those of the batch before them."""
    own = tuple(_counted(part, size) for part, size in zip(at.unbind(-1), shape[batch:], strict=False))
    rank = at.ndim - 1
    rows = (
        torch.arange(shape[a], device=at.device).reshape(*[-1 if b == a else 1 for b in range(rank)])
        for a in range(batch)
    )
    return (*rows, *own)


def gather_nd(node: Node) -> Run:
    """The last axis of the positions holds coordinates."""
    batch = node.attr("batch_dims", 0)
    return lambda x, at: x[_parts(at, tuple(x.shape), batch)]


def scatter_elements(node: Node) -> Run:
    """As torch's scatter."""
    axis, reduction = node.attr("axis", 0), node.attr("reduction", "none")

    def run(x: Tensor, at: Tensor, updates: Tensor) -> Tensor:
        places = _counted(at, x.shape[axis])
        if reduction == "none":
            return x.scatter(axis, places, updates)
        return x.scatter_reduce(axis, places, updates, REDUCED[reduction], include_self=True)

    return run


def scatter_nd(node: Node) -> Run:
    """The last axis of the positions holds coordinates; what lies behind them is put as a whole."""
    reduction = node.attr("reduction", "none")

    def run(x: Tensor, at: Tensor, updates: Tensor) -> Tensor:
        if reduction in ("none", "add"):
            return x.index_put(_parts(at, tuple(x.shape)), updates, accumulate=reduction == "add")
        # in torch only one axis can be reduced onto: coordinates become positions on it
        depth = at.shape[-1]
        rows = torch.zeros(at.shape[:-1], dtype=torch.int64, device=at.device)
        for part, size in zip(_parts(at, tuple(x.shape)), x.shape[:depth], strict=True):
            rows = rows * size + part
        flat = x.reshape(-1, *x.shape[depth:])
        new = updates.reshape(-1, *x.shape[depth:])
        places = rows.reshape(-1, *[1] * (flat.ndim - 1)).expand_as(new)
        return flat.scatter_reduce(0, places, new, REDUCED[reduction]).reshape(x.shape)

    return run


BINDERS: dict[str, Binder] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
}

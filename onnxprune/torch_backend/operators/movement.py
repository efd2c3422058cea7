"""Operators that move elements, or select elements by position."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.torch_backend.operators import spatial
from onnxprune.torch_backend.operators.node import Node, Run, unsupported

Ints = Sequence[int]


def reshape(x: Tensor, *, shape: Ints, allowzero: int = 0) -> Tensor:
    """A 0 keeps the size of its axis, unless allowzero."""
    return x.reshape([x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(shape)])


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """The result has two axes."""
    cut = axis % x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:cut]), math.prod(x.shape[cut:]))


def unsqueeze(x: Tensor, *, axes: Ints) -> Tensor:
    """Axes refer to the result."""
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def expand(x: Tensor, *, shape: Ints) -> Tensor:
    """Broadcast in both directions."""
    sizes: torch.Size = torch.broadcast_shapes(tuple(x.shape), tuple(shape))  # type: ignore[no-untyped-call]
    return x.expand(sizes)


def split(node: Node) -> Run:
    """Sizes are an attribute or an input; without sizes, all parts but the last are equal."""
    sizes, axis = node.numbers(1, "split"), node.attr("axis", 0)
    return lambda x, *rest: torch.split(x, sizes((x, *rest)) or max(1, -(-x.shape[axis] // node.n_outputs)), axis)


def slice_(x: Tensor, *, starts: Ints, ends: Ints, axes: Ints | None, steps: Ints | None) -> Tensor:
    """Bounds are attributes before opset 10, and inputs since; a negative step reverses the axis."""
    steps = steps or [1] * len(starts)
    for axis, start, end, step in zip(axes or range(len(starts)), starts, ends, steps, strict=True):
        taken = range(*slice(start, end, step).indices(x.shape[axis]))
        if len(taken) == x.shape[axis] and step > 0:
            continue
        forward = taken if step > 0 else taken[::-1]
        x = x[(slice(None),) * (axis % x.ndim) + (slice(forward.start, forward.stop, forward.step),)]
        x = x.flip(axis) if step < 0 else x
    return x


def pad(x: Tensor, *, pads: Ints, value: Sequence[float] | None, axes: Ints | None, mode: str = "constant") -> Tensor:
    """Negative widths cut; positive widths add a constant, or reflect, repeat or wrap the tensor."""
    before, after = [0] * x.ndim, [0] * x.ndim
    half = len(pads) // 2
    for axis, b, a in zip(axes or range(x.ndim), pads[:half], pads[half:], strict=True):
        before[axis], after[axis] = b, a
    if mode == "constant":
        return spatial.pad(x, before, after, (value or [0])[0])
    for axis, (b, a) in enumerate(zip(before, after, strict=True)):
        x = _continued(x, axis, b, a, mode)
    return x


def _continued(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    cut = -min(before, 0)
    x = x.narrow(axis, cut, x.shape[axis] - cut + min(after, 0))
    if before <= 0 and after <= 0:
        return x
    size = x.shape[axis]
    at = torch.arange(-max(before, 0), size + max(after, 0), device=x.device)
    if mode == "edge":
        at = at.clamp(0, size - 1)
    elif mode == "wrap":
        at = at % size
    else:
        period = max(1, 2 * (size - 1))
        at = torch.minimum(at % period, period - at % period)
    return x.index_select(axis, at)


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Mode CRD is column first, DCR depth first."""
    if mode == "CRD":
        return functional.pixel_shuffle(x, blocksize)
    n, c, h, w = x.shape
    x = x.reshape(n, blocksize, blocksize, c // blocksize**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // blocksize**2, h * blocksize, w * blocksize)


def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    """Each position of a block becomes a channel."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * blocksize**2, h // blocksize, w // blocksize)


def positive(at: Tensor, size: int) -> Tensor:
    """Return positions with negative ones, which count from the end, made positive."""
    at = at.long()
    return torch.where(at < 0, at + size, at)


def gather(node: Node) -> Run:
    """A scalar position removes its axis; constant positions without a negative one need no conversion."""
    axis, known = node.attr("axis", 0), node.constant(1)
    if known is not None and known.size == 1 and known.ndim == 0:
        node.host.add(1)
        place = int(known)
        return lambda x, _: x.select(axis, place)
    unsigned = known is not None and known.dtype.kind == "i" and known.size > 0 and int(known.min()) >= 0

    def run(x: Tensor, at: Tensor) -> Tensor:
        flat = at.reshape(-1) if unsigned else positive(at, x.shape[axis]).reshape(-1)
        taken = x.index_select(axis, flat)
        place = axis % x.ndim
        return taken if at.ndim == 1 else taken.reshape(*x.shape[:place], *at.shape, *x.shape[place + 1 :])

    return run


def scatter_elements(node: Node) -> Run:
    """The same as torch.scatter."""
    node.require(reduction="none")
    axis = node.attr("axis", 0)
    return lambda x, at, updates: x.scatter(axis, positive(at, x.shape[axis]), updates)


def gather_nd(node: Node) -> Run:
    """The last axis of the positions holds coordinates."""
    node.require(batch_dims=0)
    return lambda x, at: x[_coordinates(x, at)]


def scatter_nd(node: Node) -> Run:
    """The last axis of the positions holds coordinates; the axes that they leave are written whole."""
    reduction = node.attr("reduction", "none")
    if reduction not in ("none", "add"):
        raise unsupported(f"ScatterND with reduction={reduction}", node.label)
    return lambda x, at, updates: x.index_put(_coordinates(x, at), updates, accumulate=reduction == "add")


def _coordinates(x: Tensor, at: Tensor) -> tuple[Tensor, ...]:
    return tuple(positive(part, size) for part, size in zip(at.unbind(-1), x.shape, strict=False))

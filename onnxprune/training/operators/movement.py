"""Operators that move elements about."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.training.operators.node import Binder, Node, Numbers, Run


def _with(numbers: Numbers, function: Callable[[Tensor, list[int] | None], Tensor]) -> Run:
    """Return the function that passes the first input and the numbers to another one."""

    def run(*inputs: Tensor | None) -> Tensor:
        assert inputs[0] is not None
        return function(inputs[0], numbers(inputs))

    return run


def reshape(node: Node) -> Run:
    """A 0 is the size that was there, unless allowzero."""
    zero = node.attr("allowzero", 0)

    def move(x: Tensor, sizes: list[int] | None) -> Tensor:
        found = [x.shape[i] if s == 0 and not zero else s for i, s in enumerate(sizes or [])]
        return x.reshape(found)

    return _with(node.numbers(1, "shape"), move)


def flatten(node: Node) -> Run:
    """Two axes are left."""
    axis = node.attr("axis", 1)

    def run(x: Tensor) -> Tensor:
        cut = axis % x.ndim if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:cut]), math.prod(x.shape[cut:]))

    return run


def squeeze(node: Node) -> Run:
    """Some axes of one element, or all of them."""
    return _with(node.numbers(1, "axes"), lambda x, axes: x.squeeze() if axes is None else x.squeeze(axes))


def unsqueeze(node: Node) -> Run:
    """Axes count in the result."""

    def move(x: Tensor, axes: list[int] | None) -> Tensor:
        given = axes or []
        for axis in sorted(axis % (x.ndim + len(given)) for axis in given):
            x = x.unsqueeze(axis)
        return x

    return _with(node.numbers(1, "axes"), move)


def transpose(node: Node) -> Run:
    """Axes are reversed where no order is given."""
    perm = node.attr("perm")
    return lambda x: x.permute(perm or tuple(reversed(range(x.ndim))))


def concat(node: Node) -> Run:
    """Along an axis."""
    axis = node.attr("axis", 1)
    return lambda *tensors: torch.cat(tensors, axis)


def expand(node: Node) -> Run:
    """A size of 1 in the target leaves what is there."""

    def move(x: Tensor, sizes: list[int] | None) -> Tensor:
        target = sizes or []
        shape = [1] * (len(target) - x.ndim) + list(x.shape)
        target = [1] * (len(shape) - len(target)) + target
        return x.expand([old if new == 1 else new for old, new in zip(shape, target, strict=True)])

    return _with(node.numbers(1), move)


def tile(node: Node) -> Run:
    """As often as said, along each axis."""
    return _with(node.numbers(1), lambda x, repeats: x.repeat(repeats or []))


def split(node: Node) -> Run:
    """Sizes are an attribute or an input; without, all parts are equal but the last one."""
    sizes, axis, count = node.numbers(1, "split"), node.attr("axis", 0), node.n_outputs

    def run(*inputs: Tensor | None) -> Sequence[Tensor]:
        x = inputs[0]
        assert x is not None
        found = sizes(inputs)
        return torch.split(x, found or max(1, -(-x.shape[axis] // count)), axis)

    return run


def slice_(node: Node) -> Run:
    """Bounds are attributes before opset 10, inputs since; a negative step walks backwards."""
    starts, ends, axes = node.numbers(1, "starts"), node.numbers(2, "ends"), node.numbers(3, "axes")
    steps = node.numbers(4)

    def run(*inputs: Tensor | None) -> Tensor:
        x, first, last = inputs[0], starts(inputs) or [], ends(inputs) or []
        assert x is not None
        places = axes(inputs) or range(len(first))
        for axis, start, end, step in zip(places, first, last, steps(inputs) or [1] * len(first), strict=True):
            taken = range(*slice(start, end, step).indices(x.shape[axis]))
            if len(taken) == x.shape[axis] and step > 0:
                continue
            forward = taken if step > 0 else taken[::-1]
            x = x[(slice(None),) * (axis % x.ndim) + (slice(forward.start, forward.stop, forward.step),)]
            x = x.flip(axis) if step < 0 else x
        return x

    return run


def pad(node: Node) -> Run:
    """What is negative is cut off first; then a number is put around, or what is there is mirrored, repeated or gone round."""
    pads, values, axes = node.numbers(1, "pads"), node.numbers(2, "value"), node.numbers(3)
    mode = node.attr("mode", "constant")

    def run(*inputs: Tensor | None) -> Tensor:
        x, widths = inputs[0], pads(inputs) or []
        assert x is not None
        before, after = [0] * x.ndim, [0] * x.ndim
        half = len(widths) // 2
        for axis, b, a in zip(axes(inputs) or range(x.ndim), widths[:half], widths[half:], strict=True):
            before[axis], after[axis] = b, a
        if mode == "constant":
            flat = [width for axis in reversed(range(x.ndim)) for width in (before[axis], after[axis])]
            while len(flat) > 2 and not any(flat[-2:]):
                flat = flat[:-2]
            return functional.pad(x, flat, value=(values(inputs) or [0])[0])
        for axis, (b, a) in enumerate(zip(before, after, strict=True)):
            x = _padded(x, axis, b, a)
        return x

    def _padded(x: Tensor, axis: int, before: int, after: int) -> Tensor:
        cut = -min(before, 0)
        x = x.narrow(axis, cut, x.shape[axis] - cut + min(after, 0))
        before, after = max(before, 0), max(after, 0)
        if not before and not after:
            return x
        size = x.shape[axis]
        at = torch.arange(-before, size + after, device=x.device)
        if mode == "edge":
            at = at.clamp(0, size - 1)
        elif mode == "wrap":
            at = at % size
        else:
            period = max(1, 2 * (size - 1))
            at = at % period
            at = torch.minimum(at, period - at)
        return x.index_select(axis, at)

    return run


def trilu(node: Node) -> Run:
    """One triangle of a matrix."""
    function = torch.triu if node.attr("upper", 1) else torch.tril
    return _with(node.numbers(1), lambda x, diagonal: function(x, int((diagonal or [0])[0])))


def depth_to_space(node: Node) -> Run:
    """Columns first, or depth first."""
    block, crd = node.attr("blocksize"), node.attr("mode", "DCR") == "CRD"
    if crd:
        return lambda x: functional.pixel_shuffle(x, block)

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(n, c // block**2, h * block, w * block)

    return run


def space_to_depth(node: Node) -> Run:
    """Each pixel of a block becomes a channel."""
    block = node.attr("blocksize")

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(n, c * block**2, h // block, w // block)

    return run


BINDERS: dict[str, Binder] = {
    "Concat": concat,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Pad": pad,
    "Reshape": reshape,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}

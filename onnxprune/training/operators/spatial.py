"""How a window moves over the spatial axes, for convolutions and pools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from onnxprune.training.operators.node import Node

Ints = Sequence[int]


@dataclass(frozen=True)
class Window:
    """The attributes that convolutions and pools share; those that are left out are filled in for a number of axes."""

    strides: Ints | None
    dilations: Ints | None
    pads: Ints | None
    auto_pad: str
    ceil: bool

    @classmethod
    def of(cls, node: Node) -> Window:
        """Read the attributes of a node."""
        strides, dilations, pads = (node.attr(name) for name in ("strides", "dilations", "pads"))
        return cls(strides, dilations, pads, node.attr("auto_pad", "NOTSET"), bool(node.attr("ceil_mode", 0)))

    def steps(self, n: int) -> tuple[list[int], list[int]]:
        """Return strides and dilations for n axes."""
        return list(self.strides or [1] * n), list(self.dilations or [1] * n)

    def around(self, sizes: Ints, kernel: Ints) -> tuple[list[int], list[int]]:
        """Return what is added before and after each axis."""
        n = len(kernel)
        if self.auto_pad.startswith("SAME"):
            strides, dilations = self.steps(n)
            totals = [
                max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
                for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
            ]
            less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
            return (less, more) if self.auto_pad == "SAME_UPPER" else (more, less)
        if self.pads is None or self.auto_pad == "VALID":
            return [0] * n, [0] * n
        return list(self.pads[:n]), list(self.pads[n:])

    def even(self, n: int) -> list[int] | None:
        """Return the pads where they are the same on both sides whatever comes; None where they are not."""
        if self.auto_pad.startswith("SAME"):
            return None
        before, after = self.around([0] * n, [1] * n)
        return before if before == after and min(before, default=0) >= 0 else None

    def reach(self, sizes: Ints, kernel: Ints, before: Ints, after: Ints) -> list[int]:
        """Return what to add after each axis so that every position of a pool is there, and no other.

        The last one must begin within the input or what is before it.
        """
        strides, dilations = self.steps(len(kernel))
        found = []
        for size, k, s, d, b, a in zip(sizes, kernel, strides, dilations, before, after, strict=True):
            extent = (k - 1) * d + 1
            free = size + b + a - extent
            count = (-(-free // s) if self.ceil else free // s) + 1
            if self.ceil and (count - 1) * s >= size + b:
                count -= 1
            found.append((count - 1) * s + extent - size - b)
        return found


def pad(x: Tensor, before: Ints, after: Ints, value: float = 0.0) -> Tensor:
    """Add to the last axes, or cut off where negative."""
    if not any(before) and not any(after):
        return x
    pairs = zip(reversed(before), reversed(after), strict=True)
    return functional.pad(x, [width for pair in pairs for width in pair], value=value)

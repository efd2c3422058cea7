"""Windows of convolutions and pools over the spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from onnxprune.torch_backend.operators.node import Node

Ints = Sequence[int]
Pads = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Window:
    """The attributes that convolutions and pools share; methods fill in absent ones."""

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

    def halves(self, totals: Ints) -> Pads:
        """Split pads between both sides; SAME_UPPER puts the larger half behind."""
        less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
        return (less, more) if self.auto_pad == "SAME_UPPER" else (more, less)

    def around(self, sizes: Ints, kernel: Ints) -> Pads:
        """Return the pads before and after each axis."""
        n = len(kernel)
        if self.auto_pad.startswith("SAME"):
            window = zip(sizes, kernel, *self.steps(n), strict=True)
            return self.halves([max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size) for size, k, s, d in window])
        if self.pads is None or self.auto_pad == "VALID":
            return [0] * n, [0] * n
        return list(self.pads[:n]), list(self.pads[n:])

    def even(self, n: int) -> list[int] | None:
        """Return the pads if they are equal on both sides for every input size, else None."""
        if self.auto_pad.startswith("SAME"):
            return None
        before, after = self.around([0] * n, [1] * n)
        return before if before == after and min(before, default=0) >= 0 else None

    def own_pads(self, kernel: Ints) -> list[int] | None:
        """Return the pads if a pool of torch supports them: equal, and at most half of the kernel; else None."""
        even = self.even(len(kernel))
        return even if even is not None and all(2 * p <= k for p, k in zip(even, kernel, strict=True)) else None

    def reach(self, sizes: Ints, kernel: Ints, before: Ints, after: Ints) -> list[int]:
        """Return the pads after each axis that fit the positions of a pool; the last one begins within the input or the pads before it."""
        found = []
        for size, k, s, d, b, a in zip(sizes, kernel, *self.steps(len(kernel)), before, after, strict=True):
            extent = (k - 1) * d + 1
            free = size + b + a - extent
            count = (-(-free // s) if self.ceil else free // s) + 1
            if self.ceil and (count - 1) * s >= size + b:
                count -= 1
            found.append((count - 1) * s + extent - size - b)
        return found


def pad(x: Tensor, before: Ints, after: Ints, value: float = 0.0) -> Tensor:
    """Pad the last axes; negative pads cut."""
    if not any(before) and not any(after):
        return x
    pairs = zip(reversed(before), reversed(after), strict=True)
    return functional.pad(x, [width for pair in pairs for width in pair], value=value)

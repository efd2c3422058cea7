"""Resize in all its forms.

Along each axis, an output is a weighted sum of inputs: the weights are worked out once per pair of sizes, in numpy, as the standard
says. They are then applied by torch's own interpolation where that has the same weights, else by a matrix product per axis.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.training.operators.node import Binder, Node, Run

Array = np.ndarray[Any, Any]
EXACT = 1e-5
"""Difference of weights up to which torch's own interpolation is taken for the same."""
SMOOTH = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}
"""torch's names, by mode and rank."""


@dataclass(frozen=True)
class Axis:
    """One axis that changes: sizes, the scale between them as given, and the part of it that tf_crop_and_resize takes."""

    size: int
    target: int
    scale: float
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class Style:
    """Attributes of a Resize, with the defaults of its opset."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude_outside: bool
    antialias: bool

    @classmethod
    def of(cls, node: Node) -> Style:
        """Read the attributes of a node; before opset 11 there was one way, which is that of Upsample."""
        old = node.op == "Upsample" or node.opset < 11
        mode = {"bilinear": "linear"}.get(node.attr("mode", "nearest"), node.attr("mode", "nearest"))
        return cls(
            mode,
            "asymmetric" if old else node.attr("coordinate_transformation_mode", "half_pixel"),
            "simple" if old else node.attr("nearest_mode", "round_prefer_floor"),
            node.attr("cubic_coeff_a", -0.75),
            bool(node.attr("exclude_outside", 0)),
            bool(node.attr("antialias", 0)),
        )

    def places(self, axis: Axis) -> Array:
        """Return where each output lies on the input, in single precision, as onnxruntime computes it."""
        x, one = np.arange(axis.target, dtype=np.float32), np.float32
        scale, half = one(axis.scale), one(0.5)
        if self.coordinates == "asymmetric":
            return x / scale
        if self.coordinates == "align_corners":
            return x * one(axis.size - 1) / one(max(axis.target - 1, 1))
        if self.coordinates == "tf_half_pixel_for_nn":
            return (x + half) / scale
        if self.coordinates == "tf_crop_and_resize":
            first, last = one(axis.start) * one(axis.size - 1), one(axis.end) * one(axis.size - 1)
            return (
                first + x * (last - first) / one(axis.target - 1) if axis.target > 1 else (first + last) * half + 0 * x
            )
        if self.coordinates == "pytorch_half_pixel" and axis.target == 1:
            return 0 * x
        offset = one(0)
        if self.coordinates == "half_pixel_symmetric":
            offset = one(axis.size / 2) * (1 - one(axis.target) / (scale * one(axis.size)))
        return offset + (x + half) / scale - half

    def picked(self, axis: Axis) -> Array:
        """Return the nearest input of each output."""
        at = self.places(axis)
        half = np.float32(0.5)
        functions: dict[str, Callable[[Array], Array]] = {
            "ceil": np.ceil,
            "floor": np.floor,
            "round_prefer_ceil": lambda p: np.floor(p + half),
            "round_prefer_floor": lambda p: np.ceil(p - half),
            "simple": np.ceil if axis.scale < 1 else np.trunc,
        }
        return np.clip(functions[self.nearest](at), 0, axis.size - 1).astype(np.int64)

    def weights(self, axis: Axis) -> Array:
        """Return the share of each input in each output, (target, size)."""
        at = self.places(axis).astype(np.float64)[:, None]
        wide = max(1.0, 1 / axis.scale) if self.antialias else 1.0
        reach = (1 if self.mode == "linear" else 2) * wide
        if self.mode == "linear" and not self.antialias:
            at = np.clip(at, 0, axis.size - 1)
        around = math.ceil(reach) + 1
        taps = np.floor(at).astype(np.int64) + np.arange(-around, around + 1)
        shares = self._kernel((taps - at) / wide)
        outside = (taps < 0) | (taps >= axis.size)
        if self.exclude_outside:
            shares = np.where(outside, 0, shares)
        shares = shares / shares.sum(1, keepdims=True)
        result = np.zeros((axis.target, axis.size))
        np.add.at(result, (np.arange(axis.target)[:, None], np.clip(taps, 0, axis.size - 1)), shares)
        return result

    def _kernel(self, distance: Array) -> Array:
        d, a = np.abs(distance), self.cubic
        if self.mode == "linear":
            return np.asarray(np.maximum(0, 1 - d))
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.asarray(np.where(d < 1, near, np.where(d < 2, far, 0)))


Apply = Callable[[Tensor], Tensor]


def _applied(style: Style, axes: Sequence[tuple[int, Axis]], rank: int, fill: float) -> Apply:
    """Return the function that resizes all these axes."""
    spatial = [place for place, _ in axes] and all(place >= 2 for place, _ in axes) and rank in (3, 4, 5)
    crop = style.coordinates == "tf_crop_and_resize"
    if style.mode == "nearest":
        picked = [(place, style.picked(axis), axis) for place, axis in axes]
        if spatial and all(
            np.array_equal(at, np.arange(axis.target) * axis.size // axis.target) for _, at, axis in picked
        ):
            sizes = {place: axis.target for place, axis in axes}
            return lambda x: functional.interpolate(x, [sizes.get(a, x.shape[a]) for a in range(2, rank)])
        moves: list[Apply] = [_pick(place, torch.from_numpy(at)) for place, at, _ in picked]
    else:
        own = None if crop or not spatial else _own(style, axes, rank)
        if own is not None:
            return own
        moves = [_mix(place, torch.from_numpy(style.weights(axis))) for place, axis in axes]
    if crop:
        for place, axis in axes:
            at = style.places(axis)
            moves.append(_fill(place, torch.from_numpy((at < 0) | (at > axis.size - 1)), fill))
    return lambda x: functools.reduce(lambda y, move: move(y), moves, x)


def _own(style: Style, axes: Sequence[tuple[int, Axis]], rank: int) -> Apply | None:
    """Return torch's own interpolation where it has the same weights."""
    name = SMOOTH.get((style.mode, rank))
    corners = style.coordinates == "align_corners"
    if name is None or style.antialias or (style.mode == "cubic" and (style.cubic != -0.75 or style.exclude_outside)):
        return None
    usual = Style(style.mode, "align_corners" if corners else "half_pixel", "", -0.75, False, False)
    for _, axis in axes:
        plain = Axis(axis.size, axis.target, axis.target / axis.size)
        if np.abs(usual.weights(plain) - style.weights(axis)).max(initial=0) > EXACT:
            return None
    sizes = {place: axis.target for place, axis in axes}
    return lambda x: functional.interpolate(
        x, [sizes.get(a, x.shape[a]) for a in range(2, rank)], mode=name, align_corners=corners
    )


def _pick(place: int, at: Tensor) -> Apply:
    return lambda x: x.index_select(place, at.to(x.device))


def _mix(place: int, weights: Tensor) -> Apply:
    return lambda x: torch.movedim(torch.movedim(x, place, -1) @ weights.t().to(x), -1, place)


def _fill(place: int, outside: Tensor, value: float) -> Apply:
    def run(x: Tensor) -> Tensor:
        return x.masked_fill(outside.to(x.device).reshape([-1 if a == place else 1 for a in range(x.ndim)]), value)

    return run


def resize(node: Node) -> Run:
    """Scales or sizes, of all axes or of some."""
    style = Style.of(node)
    old = node.op == "Upsample" or node.opset < 11
    scales = node.numbers(1 if old else 2, "scales")
    sizes = node.numbers(3)
    rois = node.numbers(1) if not old and style.coordinates == "tf_crop_and_resize" else lambda inputs: None
    node.host.add(1)  # the region of other modes is not read
    axes, policy = node.attr("axes"), node.attr("keep_aspect_ratio_policy", "stretch")
    fill = node.attr("extrapolation_value", 0.0)

    @functools.lru_cache(maxsize=64)
    def planned(
        shape: tuple[int, ...], factors: tuple[float, ...], targets: tuple[int, ...], roi: tuple[float, ...]
    ) -> Apply:
        rank, places = len(shape), [a % len(shape) for a in axes] if axes else list(range(len(shape)))
        before = [shape[a] for a in places]
        if targets and policy != "stretch":
            ratios = [t / b for t, b in zip(targets, before, strict=True)]
            ratio = min(ratios) if policy == "not_larger" else max(ratios)
            factors, targets = (ratio,) * len(before), tuple(math.floor(ratio * b + 0.5) for b in before)
        elif targets:
            factors = tuple(t / b for t, b in zip(targets, before, strict=True))
        else:
            targets = tuple(math.floor(b * np.float32(f)) for b, f in zip(before, factors, strict=True))
        regions = [(roi[i], roi[i + len(places)]) if roi else (0.0, 1.0) for i in range(len(places))]
        changed = [
            (place, Axis(size, target, factor, *region))
            for place, size, target, factor, region in zip(places, before, targets, factors, regions, strict=True)
            if size != target or factor != 1  # onnxruntime leaves such an axis alone, whatever its region
        ]
        return _applied(style, changed, rank, fill)

    def run(*inputs: Tensor | None) -> Tensor:
        x = inputs[0]
        assert x is not None
        lists = (scales(inputs), sizes(inputs), rois(inputs))
        return planned(tuple(x.shape), *(tuple(found or ()) for found in lists))(x)

    return run


BINDERS: dict[str, Binder] = {"Resize": resize, "Upsample": resize}

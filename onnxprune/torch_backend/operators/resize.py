"""Resize and Upsample.

Along each axis, an output is a weighted sum of inputs. The weights are computed once per pair of sizes, in numpy, by the formulas of the
standard. torch.nn.functional.interpolate is used where its weights are equal, else a selection or a matrix product per axis.
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

from onnxprune.torch_backend.operators.node import Node, Run, unsupported

Array = np.ndarray[Any, Any]
Apply = Callable[[Tensor], Tensor]
EXACT = 1e-5
"""Largest difference of weights at which the interpolation of torch counts as equal."""
INTERPOLATIONS = {
    ("linear", 3): "linear",
    ("linear", 4): "bilinear",
    ("linear", 5): "trilinear",
    ("cubic", 4): "bicubic",
}
"""Names in torch, by mode and rank."""
COORDINATES = ("align_corners", "asymmetric", "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn")


@dataclass(frozen=True)
class Axis:
    """One resized axis: its sizes, and the given scale between them."""

    place: int
    size: int
    target: int
    scale: float


@dataclass(frozen=True)
class Style:
    """Attributes of a Resize, with the defaults of its opset."""

    mode: str
    coordinates: str
    nearest: str = ""
    cubic: float = -0.75

    def places(self, axis: Axis) -> Array:
        """Return the position of each output on the input, in single precision, as onnxruntime computes it."""
        x, one = np.arange(axis.target, dtype=np.float32), np.float32
        scale, half = one(axis.scale), one(0.5)
        if self.coordinates == "asymmetric":
            return x / scale
        if self.coordinates == "align_corners":
            return x * one(axis.size - 1) / one(max(axis.target - 1, 1))
        if self.coordinates == "tf_half_pixel_for_nn":
            return (x + half) / scale
        if self.coordinates == "pytorch_half_pixel" and axis.target == 1:
            return 0 * x
        return (x + half) / scale - half

    def picked(self, axis: Axis) -> Array:
        """Return the nearest input of each output."""
        half = np.float32(0.5)
        functions: dict[str, Callable[[Array], Array]] = {
            "ceil": np.ceil,
            "floor": np.floor,
            "round_prefer_ceil": lambda p: np.floor(p + half),
            "round_prefer_floor": lambda p: np.ceil(p - half),
            "simple": np.ceil if axis.scale < 1 else np.trunc,
        }
        return np.clip(functions[self.nearest](self.places(axis)), 0, axis.size - 1).astype(np.int64)

    def weights(self, axis: Axis) -> Array:
        """Return the share of each input in each output, (target, size)."""
        at = self.places(axis).astype(np.float64)[:, None]
        if self.mode == "linear":
            at = np.clip(at, 0, axis.size - 1)
        taps = np.floor(at).astype(np.int64) + np.arange(-3, 4)
        shares = self._kernel(np.abs(taps - at))
        result = np.zeros((axis.target, axis.size))
        np.add.at(result, (np.arange(axis.target)[:, None], np.clip(taps, 0, axis.size - 1)), shares)
        return result

    def _kernel(self, d: Array) -> Array:
        a = self.cubic
        if self.mode == "linear":
            return np.asarray(np.maximum(0, 1 - d))
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.asarray(np.where(d < 1, near, np.where(d < 2, far, 0)))


def _resizing(style: Style, axes: Sequence[Axis], rank: int) -> Apply:
    """Return the function that resizes these axes."""
    name = "nearest" if style.mode == "nearest" else INTERPOLATIONS.get((style.mode, rank))
    spatial = axes and all(axis.place >= 2 for axis in axes) and rank in (3, 4, 5)
    if name is not None and spatial and all(_is_interpolation(style, axis) for axis in axes):
        sizes = {axis.place: axis.target for axis in axes}
        aligned = None if name == "nearest" else style.coordinates == "align_corners"
        return lambda x: functional.interpolate(
            x, [sizes.get(a, x.shape[a]) for a in range(2, rank)], mode=name, align_corners=aligned
        )
    if style.mode == "nearest":
        moves = [_pick(axis.place, torch.from_numpy(style.picked(axis))) for axis in axes]
    else:
        moves = [_mix(axis.place, torch.from_numpy(style.weights(axis))) for axis in axes]
    return lambda x: functools.reduce(lambda y, move: move(y), moves, x)


def _is_interpolation(style: Style, axis: Axis) -> bool:
    """Tell whether the interpolation of torch has the same weights along an axis."""
    if style.mode == "nearest":
        return np.array_equal(style.picked(axis), np.arange(axis.target) * axis.size // axis.target)
    usual = Style(style.mode, "align_corners" if style.coordinates == "align_corners" else "half_pixel")
    plain = Axis(axis.place, axis.size, axis.target, axis.target / axis.size)
    return bool(np.abs(usual.weights(plain) - style.weights(axis)).max(initial=0) <= EXACT)


def _pick(place: int, at: Tensor) -> Apply:
    return lambda x: x.index_select(place, at.to(x.device))


def _mix(place: int, weights: Tensor) -> Apply:
    return lambda x: torch.movedim(torch.movedim(x, place, -1) @ weights.t().to(x), -1, place)


def resize(node: Node) -> Run:
    """Scales or sizes, of all axes or of some; before opset 11 Resize has the style of Upsample."""
    node.require(antialias=0, exclude_outside=0, keep_aspect_ratio_policy="stretch")
    old = node.op == "Upsample" or node.opset < 11
    mode = node.attr("mode", "nearest").replace("bilinear", "linear")
    coordinates = "asymmetric" if old else node.attr("coordinate_transformation_mode", "half_pixel")
    if coordinates not in COORDINATES:
        raise unsupported(f"Resize with coordinate_transformation_mode={coordinates}", node.label)
    nearest = "simple" if old else node.attr("nearest_mode", "round_prefer_floor")
    style = Style(mode, coordinates, nearest, node.attr("cubic_coeff_a", -0.75))
    scales, sizes, axes = node.numbers(1 if old else 2, "scales"), node.numbers(3), node.attr("axes")
    node.host.add(1)  # the region, which the supported coordinates do not read

    @functools.lru_cache(maxsize=64)
    def planned(shape: tuple[int, ...], factors: tuple[float, ...], targets: tuple[int, ...]) -> Apply:
        places = [a % len(shape) for a in axes] if axes else list(range(len(shape)))
        before = [shape[a] for a in places]
        if targets:
            factors = tuple(t / b for t, b in zip(targets, before, strict=True))
        else:
            targets = tuple(math.floor(b * np.float32(f)) for b, f in zip(before, factors, strict=True))
        found = [Axis(*each) for each in zip(places, before, targets, factors, strict=True)]
        return _resizing(style, [axis for axis in found if axis.size != axis.target or axis.scale != 1], len(shape))

    def run(x: Tensor, *rest: Tensor | None) -> Tensor:
        given = (tuple(numbers((x, *rest)) or ()) for numbers in (scales, sizes))
        return planned(tuple(x.shape), *given)(x)

    return run

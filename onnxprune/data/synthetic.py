"""Generated inputs, for a model that comes without data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.data.augment import channel_axis
from onnxprune.data.dataset import Data, InputSpec
from onnxprune.errors import DataError, OptionError

Array = np.ndarray[Any, Any]
NAME = "generated inputs"
EXPONENTS = (0.5, 1.5)
"""The amplitude of a frequency f goes with 1 / f^b, b drawn from here."""
OWN = 0.3
"""Amplitude of what a channel has for itself, against what all channels have in common."""
GAIN = (0.5, 1.5)
OFFSET = 0.5
CLIPPED = 0.5
"""Share of the samples with flat areas, and with edges around these."""
HIGH = 2.0
"""Where they are clipped from above."""
CHUNK = 2**20
"""Elements drawn at a time; this bounds what is needed beside the result to some 30 MB, or to a few samples."""


def generate(specs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]], samples: int, seed: int) -> Data:
    """Return data for a model of which there are none.

    4-D inputs of floats are taken for images, and get noise that looks like them in its spectrum: that of natural images
    falls with about 1/f in amplitude (Field 1987, "Relations between the statistics of natural images and the response
    properties of cortical cells"), their channels have most in common, and half of the samples are clipped, so that there
    are flat areas and edges. As nothing is known of the preprocessing that the model was trained with, but that it mostly
    brings values to about mean 0 and standard deviation 1, gain (0.5 … 1.5) and offset (-0.5 … 0.5) differ between samples.
    Channels are on the axis of size 1, 3 or 4 among the second and the last, else on the second.

    Other floats, and images of one pixel, are standard normal; integers and booleans are 0 or 1.

    Args:
        specs: what the model wants.
        shapes: a full shape by input name, batch included; used where an axis is dynamic, but for the batch. Inputs without
            such an axis may be missing.
        samples: how many; rounded up to a multiple of the batch, where the model fixes it.
        seed: 0 or more. What an input gets depends on this and its position, not on the other inputs.

    Raises:
        OptionError: fewer than one sample.
        DataError: an axis without a size, an input without a batch axis, or one that takes neither numbers nor booleans.
    """
    if samples < 1:
        raise OptionError(f"{samples} generated samples are too few", hint="give 1 or more")
    fixed = math.lcm(*(spec.shape[0] or 1 for spec in specs if spec.shape))
    n = math.ceil(samples / fixed) * fixed
    seeds = np.random.SeedSequence(seed).spawn(len(specs))
    arrays = {
        spec.name: _draw(spec, (n, *_sample_shape(spec, shapes)), np.random.default_rng(own))
        for spec, own in zip(specs, seeds, strict=True)
    }
    return Data(arrays, None, None, tuple(specs), NAME)


def _sample_shape(spec: InputSpec, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the concrete shape of one sample, without the batch axis."""
    where = f"input {spec.name}"
    if not spec.shape:
        raise DataError("nothing can be generated for a scalar", where=where, why="it has no batch", hint="give --data")
    full = shapes.get(spec.name, spec.shape)
    if len(full) != len(spec.shape):
        raise DataError(
            "the shape to generate has another rank",
            where=where,
            why=f"it is {list(full)}, the model wants {len(spec.shape)} axes",
            hint="give a size for every axis",
        )
    sizes = [have if want is None else want for want, have in zip(spec.shape[1:], full[1:], strict=True)]
    known = tuple(size for size in sizes if size is not None and size > 0)
    if len(known) < len(sizes):
        raise DataError(
            "the shape to generate is not known",
            where=where,
            why=f"sizes of a sample are {['any' if size is None else size for size in sizes]}",
            hint="give a size above 0 for every dynamic axis",
        )
    return known


def _draw(spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return an array of the dtype of an input, drawn piece by piece."""
    kind = spec.dtype.name  # not dtype.kind, which does not tell bfloat16 from structures
    floats = "float" in kind
    if not floats and "int" not in kind and kind != "bool":
        raise DataError(f"nothing can be generated of type {kind}", where=f"input {spec.name}", hint="give --data")
    axis = channel_axis(shape) if len(shape) == 4 else 1
    sides = [size for n, size in enumerate(shape) if n not in (0, axis)]
    images = floats and len(shape) == 4 and max(sides) > 1
    result = np.empty(shape, spec.dtype)
    step = max(1, CHUNK // math.prod(shape[1:]))
    for start in range(0, len(result), step):
        part = result[start : start + step]
        if images:
            part = np.moveaxis(part, axis, 1)
            part[...] = _images(part.shape, rng)
        elif floats:
            part[...] = rng.standard_normal(part.shape, np.float32)
        else:
            part[...] = rng.integers(0, 2, part.shape, np.int8)
    return result


def _images(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return noise of shape (n, channels, h, w), float32, with the spectrum of images."""
    from scipy import fft  # numpy < 2 would go to float64

    n, _, h, w = shape
    each = (n, 1, 1, 1)
    x: Array = rng.standard_normal(shape, np.float32)
    x *= OWN
    x += rng.standard_normal((n, 1, h, w), np.float32)
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w))
    frequency[0, 0] = 1 / max(h, w)  # 0 of itself: how far the means of the channels differ is as with the lowest one
    spectrum = fft.rfft2(x)
    spectrum *= (frequency ** -rng.uniform(*EXPONENTS, each)).astype(np.float32)
    x = fft.irfft2(spectrum, s=(h, w), overwrite_x=True)
    x -= x.mean((1, 2, 3), keepdims=True)
    x /= x.std((1, 2, 3), keepdims=True)
    clipped = rng.random(each) < CLIPPED
    low = rng.uniform(-0.5, 1, each)
    low = np.where(low > 0, -low, -1)
    np.clip(x, np.where(clipped, low, -np.inf), np.where(clipped, HIGH, np.inf), out=x)
    x *= rng.uniform(*GAIN, each)
    x += rng.uniform(-OFFSET, OFFSET, each)
    return x

"""Generated inputs for a model without data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.data.augment import channel_axis
from onnxprune.data.dataset import Data
from onnxprune.data.input_spec import InputSpec
from onnxprune.errors import DataError

Array = np.ndarray[Any, Any]
NAME = "generated inputs"
EXPONENTS = (0.5, 1.5)
"""Range of b, where the amplitude of a frequency f is 1 / f^b."""
OWN = 0.3
"""Amplitude of the noise of one channel / amplitude of the noise that all channels share."""
GAIN = (0.5, 1.5)
OFFSET = 0.5
CLIPPED = 0.5
"""Share of the samples that are clipped, with flat areas and edges."""
HIGH = 2.0
"""Upper bound of clipped samples."""
BYTE_MEAN, BYTE_STD = 116.0, 58.0
"""Mean and standard deviation of the bytes of photographs, about; mean of the three colors of ImageNet."""
CHUNK = 2**20
"""Elements drawn at a time; bounds the memory beside the result to about 30 MB, or to a few samples."""


def generate(specs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]], samples: int, seed: int) -> Data:
    """Return generated samples for the inputs of a model.

    4-D floats are taken for images and get noise with the spectrum of natural images: the amplitude falls with about
    1/f (Field, 1987, "Relations between the statistics of natural images and the response properties of cortical
    cells"), channels share most of the noise, and half of the samples are clipped, which gives flat areas and edges.
    Preprocessing mostly brings values to mean 0 and standard deviation 1; gain (0.5 … 1.5) and offset (-0.5 … 0.5)
    differ between samples. `channel_axis` guesses the channel axis. Bytes of images are the same noise with the mean and
    deviation of photographs. Other floats, and images of one pixel, are standard normal; other integers and booleans
    are 0 or 1.

    Args:
        specs: inputs of the model.
        shapes: full shape by input name, batch included, for inputs with dynamic axes besides the batch.
        samples: 1 or more; rounded up to a multiple of the samples that every run takes.
        seed: 0 or more. The samples of an input depend on the seed and the position of the input only.

    Raises:
        DataError: an axis without a size, an input without a batch axis, or an input of another type.

    >>> spec = InputSpec("x", np.dtype(np.float32), (None, 3, 8, 8))
    >>> generate([spec], {}, samples=4, seed=0).shapes()
    {'x': (1, 3, 8, 8)}
    """
    fixed = math.lcm(*(spec.fixed or 1 for spec in specs))
    n = math.ceil(samples / fixed) * fixed
    seeds = np.random.SeedSequence(seed).spawn(len(specs))
    arrays = {}
    for spec, own in zip(specs, seeds, strict=True):
        rows, shape = spec.samples.rows, _sample_shape(spec, shapes)
        drawn = _draw(spec, (n * rows, *shape), np.random.default_rng(own))
        arrays[spec.name] = drawn if rows == 1 else drawn.reshape(n, rows, *shape)
    return Data(arrays, None, None, tuple(specs), NAME, is_generated=True)


def why_not_generated(specs: Sequence[InputSpec]) -> str | None:
    """Return why generated inputs do not suit a model (integers, or an input without a batch), else None."""
    for spec in specs:
        if "float" not in spec.dtype.name and not is_bytes_of_image(spec):
            return f"input {spec.name} is of type {spec.dtype.name}, and its values are not known"
        if not spec.shape:
            return f"input {spec.name} is a scalar"
    return None


def is_bytes_of_image(spec: InputSpec) -> bool:
    """Tell whether an input takes the bytes of images."""
    rank = len(spec.shape) - (spec.samples.axis is not None)
    return spec.dtype == np.uint8 and rank >= 2


def _sample_shape(spec: InputSpec, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the concrete shape of a sample, without the batch axis."""
    where = f"input {spec.name}"
    if not spec.shape:
        raise DataError("nothing can be generated for a scalar", where=where, why="it has no batch", hint="give --data")
    full = shapes.get(spec.name, spec.shape)
    others = [axis for axis in range(len(spec.shape)) if axis != spec.samples.axis]
    sizes = [full[axis] if spec.shape[axis] is None else spec.shape[axis] for axis in others]
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
    """Draw an array with the dtype of an input, chunk by chunk."""
    kind = spec.dtype.name  # not dtype.kind, which does not tell bfloat16 from structures
    floats = "float" in kind
    if not floats and "int" not in kind and kind != "bool":
        raise DataError(f"nothing can be generated of type {kind}", where=f"input {spec.name}", hint="give --data")
    axis = channel_axis(shape) if len(shape) == 4 else 1
    sides = [size for n, size in enumerate(shape) if n not in (0, axis)]
    pixels = is_bytes_of_image(spec)
    images = (floats or pixels) and len(shape) == 4 and max(sides) > 1
    result = np.empty(shape, spec.dtype)
    step = max(1, CHUNK // math.prod(shape[1:]))
    for start in range(0, len(result), step):
        part = result[start : start + step]
        if images:
            part = np.moveaxis(part, axis, 1)
            drawn = _images(part.shape, rng)
            part[...] = np.clip(np.rint(BYTE_MEAN + BYTE_STD * drawn), 0, 255) if pixels else drawn
        elif pixels:
            part[...] = rng.integers(0, 256, part.shape, np.uint8)
        elif floats:
            part[...] = rng.standard_normal(part.shape, np.float32)
        else:
            part[...] = rng.integers(0, 2, part.shape, np.int8)
    return result


def _images(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Draw float32 noise (n, channels, h, w) with the spectrum of images."""
    from scipy import fft  # numpy < 2 would go to float64

    n, _, h, w = shape
    each = (n, 1, 1, 1)
    x: Array = rng.standard_normal(shape, np.float32)
    x *= OWN
    x += rng.standard_normal((n, 1, h, w), np.float32)
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w))
    frequency[0, 0] = 1 / max(h, w)  # not 0: the means of channels differ as the lowest frequency does
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

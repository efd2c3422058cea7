"""Augmentation: calibration samples once more, slightly changed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

COLORS = (1, 3, 4)
"""Possible numbers of image channels."""
FLIP, DETAILED, ERASE = 0.5, 0.5, 0.5
"""Probabilities of `flip`, `detail` and `erase`."""
SHIFT = 0.08
"""Largest shift, as a share of the side."""
ZOOM = (0.9, 1.1)
ANGLE = 8.0
"""Largest rotation in degrees, to either side."""
DETAIL = 0.3
"""Smallest zoom of `detail`."""
ENLARGED = 3.0
"""Ratio of the mean squared difference two pixels apart to that one pixel apart, above which an image was enlarged.
The ratio of an interpolated image goes towards 4; photographs have about 2 (their spectrum falls with the square of the
frequency; Field, 1987, "Relations between the statistics of natural images and the response properties of cortical
cells")."""
GAIN = (0.85, 1.15)
OFFSET, NOISE = 0.1, 0.03
"""Largest change of brightness, and standard deviation of the noise, in standard deviations of the batch."""
ERASED = 4
"""Side of the image / largest side of the erased rectangle."""


def channel_axis(shape: Sequence[int | None]) -> int:
    """Guess the channel axis of images: 3 where only the last of four axes is as long as colors are, else 1.

    >>> channel_axis((None, 224, 224, 3)), channel_axis((None, 3, 224, 224))
    (3, 1)
    """
    return 3 if len(shape) == 4 and shape[3] in COLORS and shape[1] not in COLORS else 1


def augment(batch: Array, kinds: Collection[str], rng: np.random.Generator, channels: int = 1) -> Array:
    """Return a batch in which each sample is changed at random.

    | kind | change |
    | --- | --- |
    | flip | swap left and right of half of the samples |
    | crop | shift by up to 8 % of either side |
    | scale | zoom by 0.9 to 1.1 about the center |
    | rotate | turn by up to 8 degrees about the center |
    | detail | zoom half of the samples by 0.3 to 1, mirrored at the edges: enlarged images regain fine detail |
    | jitter | contrast by 0.85 to 1.15 about the mean of the sample; brightness by up to 0.1 |
    | noise | add Gaussian noise of 0.03 |
    | erase | set a rectangle of up to a quarter of either side of half of the samples to the mean of the sample |

    Brightness and noise are in standard deviations of the batch. Outside, images continue with their edge values.

    Args:
        batch (array): preprocessed, (n, channels, h, w) or (n, h, w, channels); not modified. Anything but a non-empty
            4-D array of floats is returned as it is.
        kinds (collection of str): some of `onnxprune.options.AUGMENTATIONS`, in any order.
        rng (numpy.random.Generator): the same state gives the same batch in either layout.
        channels (int, default 1): channel axis, 1 or 3.

    Returns:
        Contiguous array with the shape and dtype of `batch`.

    >>> batch = np.arange(4.0).reshape(1, 1, 2, 2)
    >>> augment(batch, ["flip"], np.random.default_rng(2)).tolist()
    [[[[1.0, 0.0], [3.0, 2.0]]]]
    """
    if batch.ndim != 4 or batch.dtype.kind != "f" or not batch.size or not kinds:
        return batch
    # a copy; float16 is widened, as scipy does not take it
    x: Array = np.array(np.moveaxis(batch, channels, 1), np.float64 if batch.itemsize > 4 else np.float32, order="C")
    spread = float(x.std())
    each = (len(x), 1, 1, 1)
    if "flip" in kinds:
        chosen = rng.random(len(x)) < FLIP
        x[chosen] = x[chosen, ..., ::-1]
    if not {"crop", "scale", "rotate", "detail"}.isdisjoint(kinds):  # together: pixels are interpolated once
        x = _warp(x, kinds, rng)
    if "jitter" in kinds:
        mean = x.mean((1, 2, 3), keepdims=True)
        x -= mean
        x *= rng.uniform(*GAIN, each).astype(x.dtype)
        x += mean + (spread * rng.uniform(-OFFSET, OFFSET, each)).astype(x.dtype)
    if "noise" in kinds:
        x += NOISE * spread * rng.standard_normal(x.shape, x.dtype.type)
    if "erase" in kinds:
        _erase(x, rng)
    return np.ascontiguousarray(np.moveaxis(x, 1, channels), batch.dtype)


def is_enlarged(batch: Array, channels: int = 1) -> bool:
    """Tell whether images (4-D floats) were enlarged: filters for fine detail then look superfluous."""
    if batch.ndim != 4 or batch.dtype.kind != "f" or not batch.size:
        return False
    x = np.moveaxis(batch, channels, 1)
    if min(x.shape[2:]) < 3:
        return False

    def difference(pixels: int) -> float:
        down, across = x[:, :, pixels:] - x[:, :, :-pixels], x[..., pixels:] - x[..., :-pixels]
        return float((down * down).mean(dtype=np.float64) + (across * across).mean(dtype=np.float64))

    return difference(2) > ENLARGED * difference(1)


def _warp(x: Array, kinds: Collection[str], rng: np.random.Generator) -> Array:
    """Return (n, channels, h, w) shifted, zoomed and turned, each sample by one affine transform."""
    from scipy.ndimage import affine_transform

    n, _, *sides = x.shape
    shift = rng.uniform(-SHIFT, SHIFT, (n, 2)) * sides if "crop" in kinds else np.zeros((n, 2))
    zoom = rng.uniform(*ZOOM, n) if "scale" in kinds else np.ones(n)
    if "detail" in kinds:
        zoom = np.where(rng.random(n) < DETAILED, zoom * np.exp(rng.uniform(np.log(DETAIL), 0, n)), zoom)
    angle = np.radians(rng.uniform(-ANGLE, ANGLE, n)) if "rotate" in kinds else np.zeros(n)
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    matrices = np.stack([cos, -sin, sin, cos], axis=1).reshape(n, 2, 2)
    # scipy takes the value of pixel p from matrix p + offset; without a shift the center stays in place
    center = (np.array(sides) - 1) / 2
    offsets = center - matrices @ center + shift
    mode = "mirror" if "detail" in kinds else "nearest"
    result = np.empty_like(x)
    for source, target, matrix, offset in zip(x, result, matrices, offsets, strict=True):
        for plane, out in zip(source, target, strict=True):
            affine_transform(plane, matrix, offset, output=out, order=1, mode=mode)
    return result


def _erase(x: Array, rng: np.random.Generator) -> None:
    """Set a rectangle to the mean of the sample; images below `ERASED` pixels on a side stay as they are."""
    n, _, *sides = x.shape
    if min(sides) < ERASED:
        return
    chosen = rng.random(n) < ERASE
    inside = []
    for side in sides:
        length = rng.integers(1, side // ERASED, n, endpoint=True)
        start = rng.integers(0, side - length, endpoint=True)
        pixels = np.arange(side) - start[:, None]
        inside.append((pixels >= 0) & (pixels < length[:, None]))
    rows, columns = inside
    mask = (chosen[:, None] & rows)[:, None, :, None] & columns[:, None, None, :]
    np.copyto(x, x.mean((1, 2, 3), keepdims=True), where=mask)

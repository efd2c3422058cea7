"""Augmentation: calibration inputs once more, slightly changed. Light to import, since the command line reads the kinds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from onnxprune.errors import OptionError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

KINDS = ("flip", "crop", "scale", "rotate", "detail", "jitter", "noise", "erase")
"""In the order in which they are applied; crop, scale, rotate and detail go together, so that pixels are interpolated once."""
COLOURS = (1, 3, 4)
"""How many channels an image has."""
FLIP = 0.5
"""Probability."""
SHIFT = 0.08
"""At most, as a share of the side."""
ZOOM = (0.9, 1.1)
ANGLE = 8.0
"""Degrees, to either side."""
DETAILED = 0.5
"""Probability."""
DETAIL = 0.3
"""Zoom at least."""
ENLARGED = 3.0
"""Ratio of the mean squared difference two pixels apart to that one pixel apart, from which an image was enlarged: where there is
nothing between the pixels it goes towards 4, photographs at their own size have about 2 (their spectrum falls with the square of the
frequency; Field, 1987, "Relations between the statistics of natural images and the response properties of cortical cells")."""
GAIN = (0.85, 1.15)
OFFSET = 0.1
"""At most, in standard deviations of the batch."""
NOISE = 0.03
"""Standard deviations of the batch."""
ERASE = 0.5
"""Probability."""
ERASED = 4
"""The rectangle has at most the side of the image divided by this."""


def parse_kinds(text: str) -> tuple[str, ...]:
    """Read kinds of augmentation as a person writes them: `none`, or names separated by commas.

    Returns:
        Each kind once, in the order of `KINDS`, so that the order in which they are given changes nothing.

    Raises:
        OptionError: an unknown kind.
    """
    names = [name.strip().lower() for name in text.split(",")]
    if names == ["none"]:
        return ()
    _check_kinds(names)
    return tuple(kind for kind in KINDS if kind in names)


def _check_kinds(names: Collection[str]) -> None:
    for name in names:
        if name not in KINDS:
            raise OptionError(
                f"unknown augmentation {name!r}", hint=f"give none, or some of {', '.join(KINDS)}, separated by commas"
            )


def channel_axis(shape: Sequence[int | None]) -> int:
    """Guess where images have their channels: 3 if there are four axes and only that one is as long as colours are, else 1."""
    return 3 if len(shape) == 4 and shape[3] in COLOURS and shape[1] not in COLOURS else 1


def augment(batch: Array, kinds: Collection[str], rng: np.random.Generator, channels: int = 1) -> Array:
    """Return a batch in which each sample is changed by a draw of its own.

    | kind | what it does |
    | --- | --- |
    | flip | left and right, for half of the samples |
    | crop | shift by up to 8 % of either side |
    | scale | by 0.9 to 1.1 about the centre |
    | rotate | by up to 8 degrees about the centre |
    | detail | half of the samples by 0.3 to 1, mirrored all around: what was enlarged gets back the detail of photographs |
    | jitter | contrast by 0.85 to 1.15 about the mean of the sample; brightness by up to 0.1 |
    | noise | Gaussian, 0.03 |
    | erase | a rectangle of up to a quarter of either side gets the mean of the sample, for half of the samples |

    Brightness and noise are in standard deviations of the batch; where an image has no values, it continues as at its edge (with
    detail it is mirrored there).

    Args:
        batch: preprocessed, (n, channels, h, w) or (n, h, w, channels); it is not written to. Anything but a 4-D array of
            floats comes back as it is, and so does an empty one.
        kinds: some of `KINDS`, in any order.
        rng: advanced; the same state gives the same batch, whatever the layout.
        channels: axis of the channels, 1 or 3.

    Returns:
        (shape and dtype of `batch`) contiguous.

    Raises:
        OptionError: an unknown kind.
    """
    _check_kinds(kinds)
    if batch.ndim != 4 or batch.dtype.kind != "f" or not batch.size or not kinds:
        return batch
    import numpy as np

    # a copy; float16 is widened, as scipy does not take it
    x: Array = np.array(np.moveaxis(batch, channels, 1), np.float64 if batch.itemsize > 4 else np.float32, order="C")
    spread = float(x.std())
    each = (len(x), 1, 1, 1)
    if "flip" in kinds:
        chosen = rng.random(len(x)) < FLIP
        x[chosen] = x[chosen, ..., ::-1]
    if not {"crop", "scale", "rotate", "detail"}.isdisjoint(kinds):
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
    """Tell whether images lack the detail that their number of pixels could show: filters that see detail then look superfluous.

    Args:
        batch: images; anything but a 4-D array of floats is not enlarged.
        channels: axis of the channels, 1 or 3.
    """
    if batch.ndim != 4 or batch.dtype.kind != "f" or not batch.size:
        return False
    import numpy as np

    x = np.moveaxis(batch, channels, 1)
    if min(x.shape[2:]) < 3:
        return False

    def apart(pixels: int) -> float:
        down, across = x[:, :, pixels:] - x[:, :, :-pixels], x[..., pixels:] - x[..., :-pixels]
        return float((down * down).mean(dtype=np.float64) + (across * across).mean(dtype=np.float64))

    return apart(2) > ENLARGED * apart(1)


def _warp(x: Array, kinds: Collection[str], rng: np.random.Generator) -> Array:
    """Return (n, channels, h, w) moved, zoomed and turned, each sample by one affine transform for all of its channels."""
    import numpy as np
    from scipy.ndimage import affine_transform

    n, _, *sides = x.shape
    shift = rng.uniform(-SHIFT, SHIFT, (n, 2)) * sides if "crop" in kinds else np.zeros((n, 2))
    zoom = rng.uniform(*ZOOM, n) if "scale" in kinds else np.ones(n)
    if "detail" in kinds:
        zoom = np.where(rng.random(n) < DETAILED, zoom * np.exp(rng.uniform(np.log(DETAIL), 0, n)), zoom)
    angle = np.radians(rng.uniform(-ANGLE, ANGLE, n)) if "rotate" in kinds else np.zeros(n)
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    matrices = np.stack([cos, -sin, sin, cos], axis=1).reshape(n, 2, 2)
    # scipy takes the value for a pixel p from matrix p + offset; what is at the centre stays there, but for the shift
    centre = (np.array(sides) - 1) / 2
    offsets = centre - matrices @ centre + shift
    mode = "mirror" if "detail" in kinds else "nearest"
    result = np.empty_like(x)
    for source, target, matrix, offset in zip(x, result, matrices, offsets, strict=True):
        for plane, out in zip(source, target, strict=True):
            affine_transform(plane, matrix, offset, output=out, order=1, mode=mode)
    return result


def _erase(x: Array, rng: np.random.Generator) -> None:
    """Write the mean of a sample into a rectangle of it; images below `ERASED` pixels on a side have none that is so small."""
    import numpy as np

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

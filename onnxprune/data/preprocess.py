"""Preprocessing of stored values into the inputs that the model was trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from onnxprune.errors import DataError, first_line
from onnxprune.reading import exists, read_toml

Array = np.ndarray[Any, Any]


MOST_SIDE = 16_384
"""Pixels of a side of a preprocessed image, at most."""
PAD_VALUE = 114
"""Byte around a letterboxed image: the grey that the detectors of ultralytics are trained with."""


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing of stored values, applied in the order of the fields.

    Attributes:
        resize (int, default None): shorter side in pixels, 1 or more; None: as stored (image files only).
        crop (int, default None): side in pixels of the central square that is kept; None: all (image files only).
        stretch (int or (height, width), default None): exact size in pixels, whatever the aspect ratio; excludes `resize`,
            `crop` and `letterbox` (image files only).
        letterbox (int or (height, width), default None): exact size in pixels; the image keeps its aspect ratio, lies in
            the center, and is padded with `pad_value`; excludes `resize`, `crop` and `stretch` (image files only). Rounding
            is that of `LetterBox` of ultralytics.
        pad_value (int, default 114): byte around a letterboxed image.
        interpolation (str, default bilinear): nearest, bilinear or bicubic (image files only).
        color (str, default RGB): RGB, BGR or L (image files only).
        layout (str, default NCHW): layout of the model input, NCHW or NHWC; stored arrays are not transposed.
        exif (bool, default True): turn an image as its EXIF orientation says (image files only).
        skip_bad (bool, default False): leave out images that cannot be read (image files only).
        pad (int, default 0): zeros that are added on each side of both spatial axes.
        repeat (int, default 1): number of copies of the channel axis.
        scale (float, default 1): factor, not 0.
        mean, std (sequence of float, default 0 and 1): one value, or one per channel; the result is (x - mean) / std.

    Raises:
        DataError: a field has a value that is not allowed.
    """

    resize: int | None = None
    crop: int | None = None
    stretch: int | Sequence[int] | None = None
    letterbox: int | Sequence[int] | None = None
    pad_value: int = PAD_VALUE
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    color: Literal["RGB", "BGR", "L"] = "RGB"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    exif: bool = True
    skip_bad: bool = False
    pad: int = 0
    repeat: int = 1
    scale: float = 1.0
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        for key, least in (("resize", 1), ("crop", 1), ("pad", 0), ("repeat", 1)):
            value = getattr(self, key)
            is_default = value is None and key in ("resize", "crop")
            if not is_default and not (_is_number(value, Integral) and least <= value <= MOST_SIDE):
                raise _wrong(key, value, f"give a whole number, {least} to {MOST_SIDE}")
        for key in EXACT:
            object.__setattr__(self, key, _sides(key, getattr(self, key)))
        if not (_is_number(self.pad_value, Integral) and 0 <= self.pad_value <= 255):
            raise _wrong("pad_value", self.pad_value, "give a whole number, 0 to 255")
        self._check_exclusive()
        for key in ("exif", "skip_bad"):
            if not isinstance(getattr(self, key), bool):
                raise _wrong(key, getattr(self, key), "give true or false")
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise _wrong(key, getattr(self, key), f"give one of {', '.join(allowed)}")
        if not _is_number(self.scale, Real) or self.scale == 0:
            raise _wrong("scale", self.scale, "give a number other than 0")
        for key in ("mean", "std"):
            value = getattr(self, key)
            row = (value,) if isinstance(value, Real) else tuple(value) if isinstance(value, Iterable) else ()
            if not row or not all(_is_number(entry, Real) and (key == "mean" or entry > 0) for entry in row):
                sign = "numbers" if key == "mean" else "numbers above 0"
                raise _wrong(key, value, f"give {sign}: one, or one per channel")
            object.__setattr__(self, key, row)

    def _check_exclusive(self) -> None:
        exact = [key for key in EXACT if getattr(self, key) is not None]
        others = [key for key in ("resize", "crop", *exact[1:]) if getattr(self, key) is not None]
        if exact and others:
            raise DataError(
                f"preprocessing fields {exact[0]!r} and {others[0]!r} exclude each other",
                why="each of them says how large images become",
                hint=f"give {exact[0]} alone, or leave it out",
            )
        if self.pad_value != PAD_VALUE and self.letterbox is None:
            raise _wrong("pad_value", self.pad_value, "only letterbox pads with it; give letterbox as well")

    def apply(self, batch: Array) -> Array:
        """Return a preprocessed batch in float32.

        Args:
            batch (array): (n, channels, height, width), channels last with the layout NHWC, or any other shape.

        Raises:
            DataError: `mean` or `std` do not fit the channels.

        >>> Preprocess(scale=0.5, mean=(1.0,)).apply(np.array([[4, 8]])).tolist()
        [[1.0, 3.0]]
        """
        channel, spatial = (1, (2, 3)) if self.layout == "NCHW" else (3, (1, 2))
        if batch.ndim == 4:
            if self.pad:
                batch = np.pad(batch, [(self.pad, self.pad) if axis in spatial else (0, 0) for axis in range(4)])
            if self.repeat > 1:
                batch = np.repeat(batch, self.repeat, axis=channel)
        x = batch.astype(np.float32)
        x *= np.float32(self.scale)
        shape = [1] * x.ndim
        if x.ndim > channel:
            shape[channel] = -1
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        channels = x.shape[channel] if x.ndim > channel else 1
        if any(v.size not in (1, channels) for v in (mean, std)):
            raise DataError(
                "mean or std of the preprocessing do not fit",
                where="--preprocess",
                why=f"{mean.size} and {std.size} values for {channels} channels in samples of shape {list(x.shape[1:])}",
                hint="give one value, or one per channel",
            )
        x -= mean.reshape(shape)
        x /= std.reshape(shape)
        return x


EXACT = ("stretch", "letterbox")
"""Fields that say the exact size of images."""
CHOICES: dict[str, tuple[str, ...]] = {
    "interpolation": ("nearest", "bilinear", "bicubic"),
    "color": ("RGB", "BGR", "L"),
    "layout": ("NCHW", "NHWC"),
}


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(cast(float, value))


def _sides(key: str, value: Any) -> int | tuple[int, ...] | None:
    """Return a side, or height and width, as numbers of Python."""
    if value is None:
        return None
    sides = (value,) if isinstance(value, Real) else tuple(value) if isinstance(value, Iterable) else ()
    if len(sides) not in (1, 2) or not all(_is_number(side, Integral) and 1 <= side <= MOST_SIDE for side in sides):
        raise _wrong(key, value, f"give one whole number, 1 to {MOST_SIDE}, or height and width")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _wrong(key: str, value: object, hint: str) -> DataError:
    return DataError(f"preprocessing field {key!r} has a wrong value", why=f"it is {value!r}", hint=hint)


PRESETS: dict[str, Preprocess] = {
    "unit": Preprocess(scale=1 / 255),
    "imagenet": Preprocess(resize=256, crop=224, scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "tf": Preprocess(resize=256, crop=224, scale=1 / 127.5, mean=(1.0,), std=(1.0,)),
}
"""Presets of `--preprocess`: `unit` is x/255, `tf` is x/127.5 - 1."""


def load_preprocess(name: str) -> Preprocess:
    """Return a preset, or read a TOML file with the fields of `Preprocess` in an [array] or [image] table.

    Raises:
        DataError: `name` is neither a preset nor a readable file, or a field is unknown.

    >>> load_preprocess("tf").crop
    224
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if path.is_dir() or not exists(path):
        raise DataError(
            f"no preprocessing {name!r}",
            why="it is neither a preset nor a file",
            hint=f"give one of {', '.join(PRESETS)}, or a TOML file",
        )
    try:
        content = read_toml(path)
    except (OSError, ValueError) as error:
        raise DataError(
            "the preprocessing file cannot be read", where=name, why=first_line(error), hint="write valid TOML"
        ) from error
    values: dict[str, Any] = {}
    for section, table in content.items():
        if section not in ("array", "image") or not isinstance(table, dict):
            raise DataError(
                f"unknown preprocessing table {section!r}", where=name, hint="put all fields under [array] or [image]"
            )
        values |= table
    unknown = sorted(set(values) - set(Preprocess.__dataclass_fields__))
    if unknown:
        raise DataError(
            f"unknown preprocessing field {unknown[0]!r}",
            where=name,
            hint=f"known are {', '.join(Preprocess.__dataclass_fields__)}",
        )
    try:
        return Preprocess(**values)
    except DataError as error:
        raise DataError(error.what, where=name, why=error.why, hint=error.hint) from None

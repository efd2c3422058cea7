"""Calibration data cut into batches, some of which are held out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.data.augment import augment, channel_axis, is_enlarged
from onnxprune.data.dataset import Data
from onnxprune.errors import DataError
from onnxprune.runtime.session import Feeds
from onnxprune.types import IntArray

BATCH = 32
"""Samples at a time, where the model leaves it open."""
ELEMENTS = 2**21
"""Input elements at a time, about: large images go in small batches, so that little memory is needed beside what is kept."""
PARTS = 8
"""There are at least so many batches, if there are as many samples."""
HELD_EVERY = 4
"""One batch of so many is held out."""
COPIES = 3
"""Augmented copies of each sample."""
ENOUGH = 128
"""Samples below which a run warns."""
AIM = 512
MOST_HELD = 1024
"""Samples that training holds out, at most."""
AUTOMATIC = ("crop", "scale", "rotate")
"""Augmentation, where it is left open and needed."""
LOOKED_AT = 64
"""Samples that are looked at to tell whether images were enlarged."""


@dataclass(frozen=True)
class Calibration:
    """Samples to look at a network with.

    Attributes:
        data: the samples.
        batch: how many go through the model at a time.
        kinds: augmentation; each sample then comes `COPIES` times more, changed.
        seed: of the augmentation.
    """

    data: Data
    batch: int
    kinds: tuple[str, ...] = ()
    seed: int = 0

    @classmethod
    def of(cls, data: Data, samples: int, kinds: tuple[str, ...] = (), seed: int = 0) -> Calibration:
        """Take a seeded choice of samples, of a model with a fixed batch no fewer than one batch.

        Raises:
            DataError: there are not as many.
        """
        fixed = data.inputs[0].shape[0] if data.inputs[0].shape else None
        if fixed and len(data) < fixed:
            raise DataError(
                "too few samples",
                where=data.name,
                why=f"the model takes {fixed} at a time, there are {len(data)}",
                hint=f"give {fixed} or more",
            )
        samples = max(samples, fixed or 1)
        if len(data) > samples:
            picked = np.sort(np.random.default_rng(seed).choice(len(data), samples, replace=False))
            data = data.take(picked)
        elements = max(1, sum(math.prod(shape) for shape in data.shapes().values()))
        batch = fixed or max(1, min(BATCH, len(data) // PARTS, ELEMENTS // elements))
        return cls(data, batch, kinds, seed)

    @property
    def plain(self) -> Calibration:
        """The same samples without augmentation, to choose on: copies mend a layer with few rows, but what they lose misleads."""
        return replace(self, kinds=())

    @property
    def _fixed(self) -> bool:
        return bool(self.data.inputs[0].shape and self.data.inputs[0].shape[0])

    @property
    def _per_copy(self) -> int:
        """Number of batches without augmentation; a rest too small for a model of a fixed batch is left out."""
        whole, rest = divmod(len(self.data), self.batch)
        return whole + (1 if rest and not self._fixed else 0)

    def __len__(self) -> int:
        """Return the number of batches."""
        return self._per_copy * (1 + (COPIES if self.kinds else 0))

    def __iter__(self) -> Iterator[Feeds]:
        """Yield the batches, the same ones each time; those as they are first, then the augmented ones in the same order."""
        rng = np.random.default_rng(self.seed)
        for batch in range(len(self)):
            start = batch % self._per_copy * self.batch
            feeds = self.data.rows(start, min(start + self.batch, len(self.data)))
            if batch >= self._per_copy:
                feeds = {name: augment(x, self.kinds, rng, channel_axis(x.shape)) for name, x in feeds.items()}
            yield feeds

    def is_held(self, batch: int) -> bool:
        """Tell whether a batch is held out, with all its augmented copies; where there are few, each has a part that is."""
        return self._per_copy < HELD_EVERY or batch % self._per_copy % HELD_EVERY == HELD_EVERY - 1

    def split(self, batch: int, rows: int) -> tuple[slice, slice]:
        """Say which rows of a batch are for fitting, and which are held out."""
        if self._per_copy >= HELD_EVERY:
            return (slice(0, 0), slice(None)) if self.is_held(batch) else (slice(None), slice(0, 0))
        cut = rows - rows // HELD_EVERY
        return slice(0, cut), slice(cut, None)


def is_enlarged_data(data: Data) -> bool:
    """Tell whether an input holds images that were made larger: what sees fine detail would be taken for superfluous."""
    feeds = data.rows(0, min(LOOKED_AT, len(data)))
    return any(is_enlarged(x, channel_axis(x.shape)) for x in feeds.values() if x.ndim == 4)


def hold_out(n: int, share: float, multiple: int, seed: int) -> tuple[IntArray, IntArray]:
    """Part samples into those that are trained on, and those that are held out for looking at how it goes.

    Calibration must not see the latter, either: layers are fitted to what it sees, which would make weights look best as they are at the
    start.

    Args:
        n: number of samples.
        share: that is held out; `MOST_HELD` at most.
        multiple: of it: a fixed batch.
        seed: of the choice.

    Returns:
        Their numbers, ascending.
    """
    order = np.random.default_rng((seed, 2)).permutation(n)
    held = min(MOST_HELD, round(n * share))
    held -= held % multiple
    return np.sort(order[held:]), np.sort(order[:held])

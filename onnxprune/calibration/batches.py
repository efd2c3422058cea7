"""Calibration samples in batches, some of which are held out."""

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
"""Samples in a batch, at most, where the model does not fix it."""
ELEMENTS = 2**21
"""Input elements in a batch, about; bounds the memory of large images."""
PARTS = 8
"""Batches, at least, where there are as many samples."""
HELD_EVERY = 4
"""One of so many batches is held out."""
COPIES = 3
"""Augmented copies of each sample."""
ENOUGH, AIM = 128, 512
"""Number of samples below which a run warns, and that it recommends."""
MOST_HELD = 1024
"""Held-out samples of a training, at most."""
AUTOMATIC = ("crop", "scale", "rotate")
"""Augmentation that `auto` stands for, where the samples need it."""
CHECKED = 64
"""Samples by which enlarged images are recognized."""


@dataclass(frozen=True)
class Calibration:
    """Calibration samples; iteration yields the same batches each time, augmented copies last.

    Attributes:
        data: samples.
        batch: samples in a batch.
        kinds: kinds of augmentation; with any, each sample has `COPIES` augmented copies.
        seed: seed of the augmentation.
    """

    data: Data
    batch: int
    kinds: tuple[str, ...] = ()
    seed: int = 0

    @classmethod
    def of(cls, data: Data, samples: int, kinds: tuple[str, ...] = (), seed: int = 0, most: int = BATCH) -> Calibration:
        """Draw at most `samples` samples, but no fewer than a fixed batch, and set the batch, `most` samples unless it is fixed.

        Raises:
            DataError: there are fewer samples than a fixed batch.

        >>> from onnxprune.data.dataset import InputSpec, load_data
        >>> data = load_data(np.zeros((40, 3)), [InputSpec("x", np.dtype(np.float32), (None, 3))])
        >>> calibration = Calibration.of(data, samples=32)
        >>> len(calibration), calibration.batch, [batch for batch in range(8) if calibration.is_held(batch)]
        (8, 4, [3, 7])
        """
        fixed = data.fixed
        if fixed and len(data) < fixed:
            raise DataError(
                "too few samples",
                where=data.name,
                why=f"the model takes {fixed} at a time, there are {len(data)}",
                hint=f"give {fixed} or more",
            )
        samples = max(samples, fixed or 1)
        if len(data) > samples:
            data = data.take(np.sort(np.random.default_rng(seed).choice(len(data), samples, replace=False)))
        elements = max(1, sum(math.prod(shape) for shape in data.shapes().values()))
        batch = fixed or max(1, min(BATCH, most, len(data) // PARTS, ELEMENTS // elements))
        return cls(data, batch, kinds, seed)

    @property
    def plain(self) -> Calibration:
        """The samples without augmentation, for scores: copies help layers with few rows, but bias importances."""
        return replace(self, kinds=())

    @property
    def _per_copy(self) -> int:
        """Number of batches without augmentation; the rest of the samples is left out where the batch is fixed."""
        return len(self.data) // self.batch if self.data.fixed else -(-len(self.data) // self.batch)

    def __len__(self) -> int:
        """Return the number of batches, augmented ones included."""
        return self._per_copy * (1 + (COPIES if self.kinds else 0))

    def __iter__(self) -> Iterator[Feeds]:
        rng = np.random.default_rng(self.seed)
        for batch in range(len(self)):
            start = batch % self._per_copy * self.batch
            samples = self.data.samples(start, min(start + self.batch, len(self.data)))
            if batch >= self._per_copy:
                samples = {name: augment(x, self.kinds, rng, channel_axis(x.shape)) for name, x in samples.items()}
            yield self.data.as_run(samples)

    def is_held(self, batch: int) -> bool:
        """Tell whether a batch is held out with all its copies; below `HELD_EVERY` batches, a part of each is."""
        return self._per_copy < HELD_EVERY or batch % self._per_copy % HELD_EVERY == HELD_EVERY - 1

    def split(self, batch: int, rows: int) -> tuple[slice, slice]:
        """Return the slices of the rows of a batch that are fitted, and that are held out."""
        if self._per_copy >= HELD_EVERY:
            return (slice(0, 0), slice(None)) if self.is_held(batch) else (slice(None), slice(0, 0))
        cut = rows - rows // HELD_EVERY
        return slice(0, cut), slice(cut, None)


def has_images(data: Data) -> bool:
    """Tell whether an input holds images of the user: what `onnxprune.data.augment.augment` changes."""
    return not data.is_generated and any(x.ndim == 4 and x.dtype.kind == "f" for x in data.samples(0, 1).values())


def is_enlarged_data(data: Data) -> bool:
    """Tell whether an input holds enlarged images; see `onnxprune.data.augment.is_enlarged`."""
    feeds = data.samples(0, min(CHECKED, len(data)))
    return any(is_enlarged(x, channel_axis(x.shape)) for x in feeds.values() if x.ndim == 4)


def hold_out(n: int, share: float, multiple: int, seed: int) -> tuple[IntArray, IntArray]:
    """Split n samples into training and held-out samples; return the ascending indices of both.

    Calibration gets the training samples only: layers fitted to held-out samples make the initial weights look best.

    Args:
        n: number of samples.
        share: share that is held out, `MOST_HELD` samples at most.
        multiple: the number of held-out samples is a multiple of it (a fixed batch).
        seed: seed of the split.

    >>> fitted, held = hold_out(8, share=0.25, multiple=1, seed=0)
    >>> len(fitted), len(held)
    (6, 2)
    """
    order = np.random.default_rng((seed, 2)).permutation(n)
    held = min(MOST_HELD, round(n * share))
    held -= held % multiple
    return np.sort(order[held:]), np.sort(order[:held])

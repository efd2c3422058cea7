"""Calibration data cut into batches, some of which are held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.augment import augment
from onnxprune.data import Array, Data
from onnxprune.runtime import Feeds

BATCH = 32
"""Samples at a time, where the model leaves it open."""
PARTS = 8
"""There are at least so many batches, if there are as many samples."""
HELD_EVERY = 4
"""One batch of so many is held out."""
COPIES = 3
"""Augmented copies of each sample."""
ENOUGH = 128
"""Samples below which a run warns."""
AIM = 512


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
        """Take a seeded choice of samples."""
        fixed = data.inputs[0].shape[0] if data.inputs[0].shape else None
        if len(data) > samples:
            picked = np.sort(np.random.default_rng(seed).choice(len(data), samples, replace=False))
            data = data.take(picked)
        batch = fixed or max(1, min(BATCH, len(data) // PARTS))
        return cls(data, batch, kinds, seed)

    def __iter__(self) -> Iterator[Feeds]:
        """Yield the batches, the same ones each time; a rest too small for a model of a fixed batch is left out."""
        fixed = bool(self.data.inputs[0].shape and self.data.inputs[0].shape[0])
        rng = np.random.default_rng(self.seed)
        for copy in range(1 + (COPIES if self.kinds else 0)):
            for feeds in self.data.batches(self.batch):
                if fixed and len(next(iter(feeds.values()))) < self.batch:
                    continue
                yield feeds if copy == 0 else {name: self._augmented(name, x, rng) for name, x in feeds.items()}

    def _augmented(self, name: str, x: Array, rng: np.random.Generator) -> Array:
        shape = next(spec.shape for spec in self.data.inputs if spec.name == name)
        last = len(shape) == 4 and shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4)
        return augment(x, self.kinds, rng, 3 if last else 1)

    def part(self, start: int, stop: int) -> Calibration:
        """Return some of the samples, without augmentation."""
        return Calibration(self.data.take(np.arange(start, stop)), self.batch)


def split(n_batches: int, batch: int, rows: int) -> tuple[slice, slice]:
    """Say which rows of a batch are for fitting, and which are held out: whole batches where there are enough of them."""
    if n_batches >= HELD_EVERY:
        held = batch % HELD_EVERY == HELD_EVERY - 1
        return (slice(0, 0), slice(None)) if held else (slice(None), slice(0, 0))
    cut = rows - rows // HELD_EVERY
    return slice(0, cut), slice(cut, None)


def is_held(n_batches: int, batch: int) -> bool:
    """Tell whether a whole batch is held out; with few batches, none is, and all have to do."""
    return n_batches < HELD_EVERY or batch % HELD_EVERY == HELD_EVERY - 1

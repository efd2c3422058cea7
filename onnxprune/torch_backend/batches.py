"""The samples of a training, in batches: everything random follows from the seed and the number of a batch."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from onnxprune.calibration.batches import MOST_HELD, hold_out
from onnxprune.data.augment import augment, channel_axis
from onnxprune.data.dataset import Array, Data, Feeds
from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.options import Training
from onnxprune.torch_backend.operators.shapes import widened
from onnxprune.types import IntArray

PROBED = 8


class Batches:
    """Batches to train on, and samples to validate on.

    Attributes:
        size: samples of a batch.
        fitted: indices of the samples that are trained on.
        validation: indices of the samples that are held out, or of some of those trained on where none are.
        probe: a few of these: as few as the model takes.
        per_epoch: batches until every sample was trained on, but for a rest that fills no batch.
    """

    def __init__(self, data: Data, training: Training, seed: int, memory: float) -> None:
        """Split the samples.

        Args:
            data: samples.
            training: size of the batches, share that is held out, and augmentation, which is resolved.
            seed: of the order.
            memory: bytes that preprocessed samples may take; beyond that they are made anew each time.

        Raises:
            OptionError: the augmentation is still `auto`.
            ModelError: the samples cannot be fed in batches.
            DataError: they do not fill one.
        """
        if isinstance(training.augment, str):
            raise OptionError(
                f"--train-augment {training.augment} is not resolved",
                why="only the data say which kinds of augmentation fit",
                hint="give the kinds, or none",
            )
        self._data, self._seed, self._kinds = data, seed, training.augment
        fixed = _fixed_batch(data)
        multiple, most = fixed or 1, max(MOST_HELD, fixed or 0)
        self.fitted, held = hold_out(len(data), training.hold_out, multiple, seed)
        self.size = fixed or max(1, min(training.batch, len(self.fitted)))
        if len(self.fitted) < self.size:
            raise DataError(
                "too few samples to train on",
                where=data.name,
                why=f"batches have {self.size}; there are {len(data)} samples, {len(held)} of which are held out",
                hint="give more, or --hold-out 0",
            )
        validation: IntArray = held if held.size else self.fitted[:most]
        self.validation = validation[: len(validation) - len(validation) % multiple]
        self.probe = self.validation[: fixed or PROBED]
        self.per_epoch = len(self.fitted) // self.size
        size = sum(value.nbytes for value in data.rows(0, 1).values()) * len(data)
        self._kept = data.rows(0, len(data)) if size <= memory else None
        self._order = functools.lru_cache(maxsize=1)(self._shuffled)

    def draw(self, number: int) -> tuple[dict[str, Tensor], IntArray]:
        """Return a batch to train on, augmented, and the indices of its samples.

        Args:
            number: of the batch, from 0. The same number gives the same batch, whatever was drawn before.
        """
        epoch, place = divmod(number, self.per_epoch)
        chosen = np.sort(self._order(epoch)[place * self.size : (place + 1) * self.size])
        feeds = self.feeds(chosen)
        if self._kinds:
            rng = np.random.default_rng((self._seed, 1, number))
            feeds = {name: augment(x, self._kinds, rng, channel_axis(x.shape)) for name, x in feeds.items()}
        return tensors(feeds), chosen

    def for_validation(self) -> Iterator[dict[str, Tensor]]:
        """Yield the validation samples in batches."""
        for start in range(0, len(self.validation), self.size):
            yield tensors(self.feeds(self.validation[start : start + self.size]))

    def feeds(self, indices: IntArray) -> Feeds:
        """Return samples, preprocessed."""
        if self._kept is not None:
            return {name: value[indices] for name, value in self._kept.items()}
        return self._data.take(indices).rows(0, len(indices))

    def _shuffled(self, epoch: int) -> IntArray:
        return np.random.default_rng((self._seed, 0, epoch)).permutation(self.fitted)


def _fixed_batch(data: Data) -> int | None:
    """Return the size that all batches must have; None where any will do."""
    hint = "leave the training out, or export with the batch as the first axis of every input"
    for spec in data.inputs:
        if not spec.shape:
            raise ModelError(f"input {spec.name} has no batch axis", why="samples cannot be fed in batches", hint=hint)
    sizes = {spec.name: spec.shape[0] for spec in data.inputs if spec.shape[0] is not None}
    if len(set(sizes.values())) > 1:
        why = ", ".join(f"{name} takes {size}" for name, size in sizes.items())
        raise ModelError("the inputs have different batches", why=why, hint=hint)
    return next(iter(sizes.values()), None)


def tensors(feeds: Mapping[str, Array]) -> dict[str, Tensor]:
    """Return arrays as tensors, of types that torch computes with."""
    return {name: torch.from_numpy(np.ascontiguousarray(widened(value))) for name, value in feeds.items()}

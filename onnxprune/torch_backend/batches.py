"""Batches of samples for training; the seed and the number of a batch determine everything random."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from onnxprune.calibration.batches import MOST_HELD, hold_out
from onnxprune.data.augment import augment, channel_axis
from onnxprune.data.dataset import Array, Data, Feeds
from onnxprune.data.input_spec import InputSpec
from onnxprune.errors import DataError, ModelError
from onnxprune.options import ResolvedTraining
from onnxprune.torch_backend.operators.shapes import widened
from onnxprune.types import IntArray, SampleAxis

PROBED = 8
"""Samples of the probe, where the batch is dynamic."""


class Batches:
    """Batches for training, and held-out samples for validation.

    Attributes:
        size: samples of a batch.
        fitted: indices of the training samples.
        validation: indices of the held-out samples; of some training samples where none are held out.
        probe: the first validation samples, `PROBED` of them or one fixed batch.
        per_epoch: full batches of an epoch.
    """

    def __init__(self, data: Data, training: ResolvedTraining, seed: int, memory: float) -> None:
        """Split the samples; if all of them take more than `memory` bytes, each batch is preprocessed again.

        Raises:
            ModelError: the model takes no batches of samples.
            DataError: the samples do not fill a batch.
        """
        self._data, self._seed, self._kinds = data, seed, training.augment
        fixed = fixed_batch(data.inputs)
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
        """Return training batch `number`, augmented, and the indices of its samples; independent of other calls."""
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
        """Return preprocessed samples."""
        if self._kept is not None:
            return {name: value[indices] for name, value in self._kept.items()}
        return self._data.take(indices).rows(0, len(indices))

    def _shuffled(self, epoch: int) -> IntArray:
        return np.random.default_rng((self._seed, 0, epoch)).permutation(self.fitted)


def fixed_batch(inputs: Sequence[InputSpec]) -> int | None:
    """Return the fixed batch size of a model; None where the batch is dynamic.

    Raises:
        ModelError: samples do not lie on the first axis of every input.
    """
    hint = "leave out training and gradients, or export with the batch as the first axis of every input"
    for spec in inputs:
        if spec.samples != SampleAxis() or not spec.shape:
            raise ModelError(
                f"input {spec.name} has no batch axis in front", why="samples cannot be fed in batches", hint=hint
            )
    sizes = {spec.name: spec.fixed for spec in inputs if spec.fixed is not None}
    if len(set(sizes.values())) > 1:
        why = ", ".join(f"{name} takes {size}" for name, size in sizes.items())
        raise ModelError("the inputs have different batches", why=why, hint=hint)
    return next(iter(sizes.values()), None)


def tensors(feeds: Mapping[str, Array]) -> dict[str, Tensor]:
    """Return arrays as tensors, widened to types that torch computes with."""
    return {name: torch.from_numpy(np.ascontiguousarray(widened(value))) for name, value in feeds.items()}

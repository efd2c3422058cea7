"""Validation on the samples held out: how a student does, and its best weights so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from onnxprune.metrics.outputs import classification_accuracy, compare_outputs, output_divergence
from onnxprune.torch_backend.batches import Batches
from onnxprune.torch_backend.executor import Executor
from onnxprune.torch_backend.losses import all_finite
from onnxprune.training.objective import Objective, validation_outputs


@dataclass(frozen=True)
class Validation:
    """The result of one validation.

    Attributes:
        step, seconds: of the training.
        loss: of training, mean since the last validation; None at the start.
        divergence: from the original; see `onnxprune.metrics.outputs.output_divergence`.
        agreement: percent of samples with the class that the original gives; None where there are no classes.
        top1: percent right; None without labels.
    """

    step: int
    seconds: float
    loss: float | None
    divergence: float
    agreement: float | None
    top1: float | None


class Validator:
    """Validates weights, and keeps the best ones.

    Attributes:
        history: all validations.
        step: of the training, at the best weights.
        since: validations since then.
        score: of the best weights, the smaller the better; None: the next ones are the best so far.
        weights, buffers: the best weights, and the running statistics with them.
    """

    def __init__(self, executor: Executor, objective: Objective, batches: Batches) -> None:
        self._executor, self._objective, self._batches = executor, objective, batches
        self.history: list[Validation] = []
        self.step, self.since = 0, 0
        self.score: float | None = None
        self.weights, self.buffers = copies(executor.weights), copies(executor.buffers)

    def validate(self, step: int, seconds: float, loss: float | None, weights: Mapping[str, Tensor]) -> None:
        """Run weights on the validation samples, and keep them if they do better than any before.

        Args:
            step: of the training.
            seconds: of the training.
            loss: of training, mean since the last validation.
            weights: those of the executor, or a running mean of them.
        """
        with self._holding(weights):
            outputs = validation_outputs(self._executor, self._batches)
        targets, labels = self._objective.targets, self._objective.labels
        divergence = output_divergence(targets, outputs)
        agreement = compare_outputs(targets, outputs).get("agreement")
        top1 = None if labels is None else classification_accuracy(outputs, labels[self._batches.validation])["top1"]
        self.history.append(Validation(step, seconds, loss, divergence, agreement, top1))
        self.since += 1
        score = self._objective.score(outputs, divergence)
        if (self.score is None or score < self.score) and all_finite(weights.values()):
            self.score, self.step, self.since = score, step, 0
            self.weights, self.buffers = copies(weights), copies(self._executor.buffers)

    @contextmanager
    def _holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Run with other weights; those of the executor are put back afterwards, to the bit."""
        if weights is self._executor.weights:
            yield
            return
        current = copies(self._executor.weights)
        put(weights, self._executor.weights)
        try:
            yield
        finally:
            put(current, self._executor.weights)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "history": [asdict(each) for each in self.history],
            "step": self.step,
            "since": self.since,
            "score": self.score,
            "weights": self.weights,
            "buffers": self.buffers,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run was."""
        self.history = [Validation(**each) for each in state["history"]]
        self.step, self.since, self.score = state["step"], state["since"], state["score"]
        self.weights, self.buffers = state["weights"], state["buffers"]


def copies(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors."""
    return {name: value.detach().clone() for name, value in values.items()}


@torch.no_grad()
def put(values: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    """Copy tensors into others of the same names."""
    for name, value in values.items():
        into[name].copy_(value)

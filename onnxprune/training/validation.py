"""Validation of the student on the held-out samples; the best weights so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from onnxprune.metrics.outputs import class_scores, output_agreement, output_divergence
from onnxprune.metrics.paired_tests import right
from onnxprune.torch_backend.batches import Batches
from onnxprune.torch_backend.executor import Executor
from onnxprune.torch_backend.losses import all_finite
from onnxprune.training.objective import Objective, validation_outputs


@dataclass(frozen=True)
class Validation:
    """The result of one validation.

    Attributes:
        step, seconds: position in the training.
        loss: mean training loss since the last validation; None at the start.
        divergence: divergence from the original; see `onnxprune.metrics.outputs.output_divergence`.
        agreement: percent of samples (of maps and frames, of positions) with the class of the original; None without class scores.
        top1: percent of correct samples; None without labels.
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
        step: training step of the best weights.
        since: validations since then.
        score: score of the best weights, lower is better; None: the next weights become the best.
        weights, buffers: the best weights, and their running statistics.
    """

    def __init__(self, executor: Executor, objective: Objective, batches: Batches) -> None:
        self._executor, self._objective, self._batches = executor, objective, batches
        self.history: list[Validation] = []
        self.step, self.since = 0, 0
        self.score: float | None = None
        self.weights, self.buffers = copies(executor.weights), copies(executor.buffers)

    def validate(self, step: int, seconds: float, loss: float | None, weights: Mapping[str, Tensor]) -> None:
        """Run `weights` (of the executor, or their running mean) on the validation samples, and keep the best."""
        current = copies(self._executor.weights)
        put(weights, self._executor.weights)
        try:
            outputs = validation_outputs(self._executor, self._batches)
        finally:
            put(current, self._executor.weights)
        targets, labels = self._objective.targets, self._objective.labels
        kind = self._objective.distance
        divergence = output_divergence(targets, outputs, kind=kind)
        agreement = output_agreement(targets, outputs, kind)
        scores = None if labels is None else class_scores(outputs, labelled=True)
        top1 = None
        if scores is not None and labels is not None:
            top1 = 100.0 * float(right(scores, labels[self._batches.validation]).mean())
        self.history.append(Validation(step, seconds, loss, divergence, agreement, top1))
        self.since += 1
        score = self._objective.score(outputs, divergence)
        if (self.score is None or score < self.score) and all_finite(weights.values()):
            self.score, self.step, self.since = score, step, 0
            self.weights, self.buffers = copies(weights), copies(self._executor.buffers)

    def state_dict(self) -> dict[str, Any]:
        """Return the attributes, for a checkpoint."""
        plain = {name: getattr(self, name) for name in ("step", "since", "score", "weights", "buffers")}
        return {"history": [asdict(each) for each in self.history], **plain}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the attributes of a checkpoint."""
        self.history = [Validation(**each) for each in state["history"]]
        self.step, self.since, self.score = state["step"], state["since"], state["score"]
        self.weights, self.buffers = state["weights"], state["buffers"]


def copies(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return detached copies."""
    return {name: value.detach().clone() for name, value in values.items()}


@torch.no_grad()
def put(values: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    """Copy values into the tensors of the same names."""
    for name, value in values.items():
        into[name].copy_(value)

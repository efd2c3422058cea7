"""How far a student is from its teacher, differentiably, and from labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

LEAST = 1e-12
"""Probability that a probability counts as at least."""
QUIET = 1e-12
"""Variance that an output has at least."""


@dataclass(frozen=True)
class Distance:
    """What distillation minimises at the outputs.

    For a classifier T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over samples (Hinton, Vinyals and Dean, 2015, "Distilling
    the Knowledge in a Neural Network", section 2; T^2 keeps the size of the gradients), for any other output the squared error as a
    share of the teacher's variance, mean over outputs: what `onnxprune.fidelity.divergence` measures.

    Attributes:
        classes: position of the output that classifies; None: there is none.
        probabilities: whether that output is one already, which is then taken back to its logarithm.
        temperature: T.
    """

    classes: int | None
    probabilities: bool
    temperature: float = 1.0

    @classmethod
    def of(cls, outputs: Sequence[Tensor], temperature: float = 1.0) -> Distance:
        """Look at outputs of the teacher to tell what they are."""
        for i, output in enumerate(outputs):
            flat = scores(output)
            if flat is not None:
                total = flat.sum(1)
                unit = bool((flat >= 0).all()) and torch.allclose(total, torch.ones_like(total), atol=1e-3)
                return cls(i, unit, temperature)
        return cls(None, False, temperature)

    def logits(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return (n, classes) logits; of probabilities, their logarithm."""
        assert self.classes is not None
        flat = scores(outputs[self.classes])
        assert flat is not None
        return flat.clamp_min(LEAST).log() if self.probabilities else flat

    def __call__(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the distance, a scalar."""
        if self.classes is None:
            parts = [error(s, t) for s, t in zip(student, teacher, strict=True) if t.is_floating_point()]
            return torch.stack(parts).mean()
        t = self.temperature
        p, q = (functional.log_softmax(self.logits(outputs).float() / t, 1) for outputs in (teacher, student))
        return t * t * functional.kl_div(q, p, reduction="batchmean", log_target=True)

    def labelled(self, student: Sequence[Tensor], labels: Tensor, smoothing: float) -> Tensor:
        """Return the cross-entropy to labels, smoothed as Szegedy et al., 2016, "Rethinking the Inception Architecture", section 7."""
        return functional.cross_entropy(self.logits(student).float(), labels, label_smoothing=smoothing)


def error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared error as a share of the variance of what it should be."""
    teacher = teacher.float()
    return functional.mse_loss(student.float(), teacher) / teacher.var(correction=0).clamp_min(QUIET)


def scores(output: Tensor) -> Tensor | None:
    """Return the (n, classes) form of an output; None where it has none. The same as `onnxprune.fidelity.scores_of`."""
    flat = output.reshape(output.shape[0], -1) if output.ndim > 2 and max(output.shape[2:]) == 1 else output
    return flat if flat.ndim == 2 and flat.shape[1] > 1 and flat.is_floating_point() else None

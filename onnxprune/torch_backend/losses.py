"""Differentiable distances of a student from its teacher, and from labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.metrics.distances import AUTO, SCORES, takes_class_scores
from onnxprune.metrics.output_distance import OutputDistance, distance_of
from onnxprune.metrics.outputs import names_the_same
from onnxprune.torch_backend import output_losses
from onnxprune.types import IntArray

FeaturePositions = Mapping[str, tuple[int, IntArray | None]]
"""Activations by name: channel axis, and the positions of the student's channels in the teacher (None: all)."""
LEAST = 1e-12
"""Lower bound of a probability before its logarithm, and of the variance of an output."""
UNLABELLED = ("boxes", "embedding")
"""Kinds whose outputs of the form (n, k) hold no class scores."""


@dataclass(frozen=True)
class Distance:
    """Distillation loss of the outputs.

    For class scores T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over samples (Hinton, Vinyals and Dean, 2015, "Distilling
    the Knowledge in a Neural Network", section 2; T^2 keeps the scale of the gradients); for all other outputs the squared error as a
    share of the teacher's variance, mean over outputs. At T = 1 the loss equals `onnxprune.metrics.outputs.output_divergence`. `of` takes
    the variances once, so that the loss of a batch is the mean of the losses of its parts. Of the kinds of `onnxprune.metrics.distances` that
    take no class scores, each output has a distance of its own.

    Attributes:
        classes: index of the output with class scores, which labels may be compared with; None if no output has any.
        probabilities: whether the class scores are probabilities, whose logarithm is taken.
        temperature: T.
        variances: variance of each other floating point output, by index.
        labelled: whether (n, k, 1) holds class scores.
        distances: distance of each floating point output, by index, for kinds that take no class scores; else empty.
    """

    classes: int | None
    probabilities: bool
    temperature: float
    variances: Mapping[int, float]
    labelled: bool = False
    distances: Mapping[int, OutputDistance] = field(default_factory=dict)

    @classmethod
    def of(cls, outputs: Sequence[Tensor], temperature: float = 1.0, kind: str = AUTO) -> Distance:
        """Find the class scores and the variances of the teacher's outputs; integer outputs do not count.

        Raises:
            OptionError: the kind is unknown.
        """
        known, labelled = takes_class_scores(kind), kind == SCORES
        classes = next((i for i, output in enumerate(outputs) if scores(output, labelled=labelled) is not None), None)
        unit = classes is not None and are_probabilities(outputs[classes], labelled=labelled)
        if not known:
            found = {i: distance_of(kind, output.detach().cpu().numpy()) for i, output in enumerate(outputs)}
            distances = {i: each for i, each in found.items() if each is not None}
            return cls(None if kind in UNLABELLED else classes, unit, temperature, {}, distances=distances)
        learned = [i for i, output in enumerate(outputs) if output.is_floating_point() and output.numel()]
        if labelled and classes is not None:
            main = outputs[classes].numpy()
            learned = [i for i in learned if i == classes or not names_the_same(main, outputs[i].numpy())]
        return cls(classes, unit, temperature, {i: variance(outputs[i]) for i in learned if i != classes}, labelled)

    def __bool__(self) -> bool:
        """Tell whether any output counts."""
        return self.classes is not None or bool(self.variances) or bool(self.distances)

    def __call__(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the loss, a scalar."""
        if self.distances:
            return self._of_kind(student, teacher)
        others = self.beside(student, teacher)
        if self.classes is None:
            assert others is not None
            return others
        t = self.temperature
        p, q = (functional.log_softmax(self.logits(outputs) / t, 1) for outputs in (teacher, student))
        divergence = t * t * functional.kl_div(q, p, reduction="batchmean", log_target=True)
        return divergence if others is None else divergence + others

    def _of_kind(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the mean distance of the outputs that a kind is made for, plus the mean error of all others."""
        made: list[Tensor] = []
        others: list[Tensor] = []
        for i, found in self.distances.items():
            part = output_losses.distance(found, student[i], teacher[i], self.temperature)
            (others if found.measure == "error" else made).append(part)
        return torch.stack([torch.stack(each).mean() for each in (made, others) if each]).sum()

    def beside(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor | None:
        """Return the loss of the outputs without class scores; None if there are none."""
        parts = [error(student[i], teacher[i], size) for i, size in self.variances.items()]
        return torch.stack(parts).mean() if parts else None

    def logits(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return (n, classes) logits, or the logarithm of probabilities."""
        assert self.classes is not None
        flat = scores(outputs[self.classes], labelled=self.labelled)
        assert flat is not None
        flat = flat.float()
        return flat.clamp_min(LEAST).log() if self.probabilities else flat

    def cross_entropy(self, student: Sequence[Tensor], labels: Tensor, smoothing: float) -> Tensor:
        """Return the cross-entropy to smoothed labels: Szegedy et al., 2016, "Rethinking the Inception Architecture", section 7."""
        return functional.cross_entropy(self.logits(student), labels, label_smoothing=smoothing)


class Features:
    """Squared error of activations as a share of the teacher's variance, mean over activations."""

    def __init__(self, features: FeaturePositions, teacher: Mapping[str, Tensor]) -> None:
        """Compute the variances of the teacher's activations."""
        self.names = tuple(features)
        self._axes = {name: axis for name, (axis, _) in features.items()}
        self._positions = {
            name: torch.from_numpy(positions).to(teacher[name].device)
            for name, (_, positions) in features.items()
            if positions is not None
        }
        self._variances = {name: variance(self._selected(name, teacher[name])) for name in self.names}

    def __call__(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """Return the loss, a scalar."""
        errors = [error(student[n], self._selected(n, teacher[n]), size) for n, size in self._variances.items()]
        return torch.stack(errors).mean()

    def _selected(self, name: str, teacher: Tensor) -> Tensor:
        positions = self._positions.get(name)
        return teacher if positions is None else teacher.index_select(self._axes[name], positions)


def variance(values: Tensor) -> float:
    """Return the variance of all values, at least `LEAST`."""
    return max(float(values.double().var(correction=0)), LEAST)


def error(student: Tensor, teacher: Tensor, size: float) -> Tensor:
    """Return the mean squared error as a share of `size`."""
    return functional.mse_loss(student.float(), teacher.float()) / size


def scores(output: Tensor, *, labelled: bool = False) -> Tensor | None:
    """Return the (n, classes) form of an output, or None, as `onnxprune.metrics.outputs.class_scores` does."""
    least = 3 if labelled else 4
    flat = output.reshape(output.shape[0], -1) if output.ndim >= least and max(output.shape[2:]) == 1 else output
    return flat if flat.ndim == 2 and flat.shape[1] > 1 and flat.is_floating_point() else None


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Tell whether all tensors are free of NaN and infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def are_probabilities(output: Tensor, *, labelled: bool = False) -> bool:
    """Tell whether class scores are probabilities, as `onnxprune.metrics.outputs.log_probabilities` does."""
    flat = scores(output, labelled=labelled)
    assert flat is not None
    total = flat.float().sum(1)
    return bool((flat >= 0).all()) and torch.allclose(total, torch.ones_like(total), atol=1e-3)

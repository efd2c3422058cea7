"""The training loss: distance from the teacher's outputs and activations, and cross-entropy to labels."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from onnxprune.data.dataset import Array, Data
from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.metrics.distances import AUTO, SCORES, takes_class_scores
from onnxprune.metrics.outputs import Outputs, class_scores
from onnxprune.options import LABELS, ResolvedTraining
from onnxprune.torch_backend.batches import Batches, tensors
from onnxprune.torch_backend.executor import Executor
from onnxprune.torch_backend.losses import Distance, FeaturePositions, Features
from onnxprune.types import IntArray


class Objective:
    """The loss of a student.

    Attributes:
        targets: outputs of the teacher for the validation samples.
        labels: labels of all samples; None if the loss does not use them.
        distance: kind of the distance from the teacher, of `onnxprune.metrics.distances`.
    """

    def __init__(
        self,
        student: Executor,
        teacher: Executor,
        batches: Batches,
        data: Data,
        training: ResolvedTraining,
        features: FeaturePositions,
        distance: str = AUTO,
    ) -> None:
        """Run the teacher on the validation samples.

        Raises:
            ModelError: no output is a floating point number.
            OptionError: the options ask for labels, and there are none; the kind of the distance is unknown.
            DataError: a label is out of range.
        """
        self._student, self._teacher, self._batches, self._training = student, teacher, batches, training
        self.distance = distance
        self._outputs = [value.name for value in student.model.graph.outputs]
        self.targets = validation_outputs(teacher, batches)
        self._distance = Distance.of([torch.from_numpy(o) for o in self.targets], training.temperature, distance)
        if not self._distance:
            raise ModelError(
                "nothing can be learned from the original",
                where=str(teacher.model.path),
                why="none of its outputs is a floating point number",
                hint="leave out training",
            )
        self._features: Features | None = None
        if training.features and features:
            with torch.no_grad():
                activations = teacher(tensors(batches.feeds(batches.probe)), tuple(features))
            self._features = Features(features, activations)
        self.labels, self._label_share = self._checked_labels(data)

    def loss(self, feeds: dict[str, Tensor], chosen: IntArray) -> Tensor:
        """Return the loss of a batch, a scalar; `chosen` holds the indices of its samples."""
        training, names = self._training, () if self._features is None else self._features.names
        with torch.autocast(self._student.device.type, torch.bfloat16, training.precision == "bfloat16"):
            with torch.no_grad():
                wanted = self._teacher(feeds, names)
            given = self._student(feeds, names)
        student, teacher = ([found[name] for name in self._outputs] for found in (given, wanted))
        loss = self._distance(student, teacher)
        if self.labels is not None and self._label_share:
            labels = torch.from_numpy(self.labels[chosen]).to(self._student.device)
            supervised = self._distance.cross_entropy(student, labels, training.smoothing)
            loss = (1 - self._label_share) * loss + self._label_share * supervised
        if self._features is not None:
            loss = loss + training.features * self._features(given, wanted)
        return loss

    def score(self, outputs: Outputs, divergence: float) -> float:
        """Return the score of weights, lower is better: the loss without temperature, smoothing and activations.

        Accuracy on few held-out samples is too noisy to choose weights by.
        """
        given, wanted = ([torch.from_numpy(o) for o in found] for found in (outputs, self.targets))
        beside = self._distance.beside(given, wanted)
        if self._distance.classes is not None and beside is not None:
            divergence += float(beside)
        if self.labels is not None and self._label_share:
            labels = torch.from_numpy(self.labels[self._batches.validation])
            supervised = float(self._distance.cross_entropy(given, labels, 0.0))
            divergence = (1 - self._label_share) * divergence + self._label_share * supervised
        return math.inf if math.isnan(divergence) else divergence

    def _checked_labels(self, data: Data) -> tuple[Array | None, float]:
        """Return the labels, or None if the loss does not use them, and their share of the loss."""
        asked = self._training.labels
        if not asked and not takes_class_scores(self.distance):
            return None, 0.0
        known = self._distance.classes is not None
        classes = class_scores(self.targets, labelled=self.distance == SCORES) if known else None
        if data.labels is None or classes is None or not _are_class_numbers(data.labels):
            if asked:
                why = "the data have none" if data.labels is None else "no output has the form (samples, classes)"
                if data.labels is not None and classes is not None:
                    why = "those of the data are no class numbers"
                raise OptionError(
                    f"--label-weight {asked:g} needs labels", why=why, hint="give labeled data, or leave out the option"
                )
            return None, 0.0
        labels, share = np.asarray(data.class_labels), LABELS if asked is None else asked
        n = classes.shape[1]
        beyond = labels[(labels < 0) | (labels >= n)]
        if not beyond.size:
            return labels, share
        if not share:
            return None, 0.0
        raise DataError(
            "a label is out of range",
            where=data.name,
            why=f"there is a label {beyond[0]}, and the model has {n} classes, from 0",
            hint="check that the labels belong to this model, or give --label-weight 0",
        )


def _are_class_numbers(labels: Array) -> bool:
    """Tell whether labels are one integer per sample; those of some tasks are maps, boxes or texts."""
    return np.ndim(labels) == 1 and np.asarray(labels).dtype.kind in "iu"


def validation_outputs(executor: Executor, batches: Batches) -> Outputs:
    """Return the outputs for all validation samples."""
    return executor.model.signature.join([executor.outputs(feeds) for feeds in batches.for_validation()])

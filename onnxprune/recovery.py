"""Train what is left of a network, as a stage of a run: what it is trained towards, on which samples, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.analysis import Analysis, analysed
from onnxprune.calibration.batches import AUTOMATIC, hold_out, is_enlarged_data
from onnxprune.data.dataset import Data
from onnxprune.data.synthetic import NAME as GENERATED_NAME
from onnxprune.errors import TargetError
from onnxprune.graph.model import Model
from onnxprune.options import Options, Training
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery.proof import Proof, prove
from onnxprune.torch_backend import require_torch
from onnxprune.types import BoolArray, IntArray, Trace

if TYPE_CHECKING:
    from onnxprune.training.distill import TrainingResult


AT_THE_END = 0.5
"""Share of the training that comes after the last step of a progressive schedule; the rest is spread evenly between the steps."""


@dataclass(frozen=True)
class Recovery:
    """How a run trains.

    Attributes:
        original: what is trained towards.
        data: the samples, all of them.
        training: how; its augmentation is resolved.
        options: of the run: seed, memory, and how channels are traced.
        checkpoint: file that the state of a training is kept in; a number is added for those between steps.
        on_stage: called as it goes on.
    """

    original: Analysis
    data: Data
    training: Training
    options: Options
    checkpoint: Path | None = None
    on_stage: ProgressCallback = quiet

    def __post_init__(self) -> None:
        require_torch("training")

    def fitted(self) -> Data:
        """Return the samples that training does not hold out."""
        shape = self.data.inputs[0].shape
        multiple = (shape[0] if shape else None) or 1
        fitted, _ = hold_out(len(self.data), self.training.hold_out, multiple, self.options.seed)
        return self.data.take(fitted)

    def between(self, model: Model, keep: BoolArray, step: int) -> Model:
        """Train after one of the steps of a progressive schedule, the last one excepted; nothing is gated there."""
        share = (1 - AT_THE_END) / (self.options.steps - 1)
        training = replace(self.training, amount=self.training.amount * share, gate_below=None)
        return self._train(model, keep, training, None, self._state(step)).model

    def last(self, model: Model, keep: BoolArray) -> tuple[TrainingResult, BoolArray, Proof | None]:
        """Train for what is left of the time, and delete the channels that were gated.

        Args:
            model: pruned, repaired.
            keep: (n_channels of the original,) what is left in it.

        Returns:
            The result, what is left of the original in it, and the proof that deleting what was gated changed nothing; None where
            nothing was.
        """
        share = AT_THE_END if self.options.rounds > 1 else 1.0
        training = replace(self.training, amount=self.training.amount * share)
        trace = None
        if training.gate_below is not None:
            trace = self.traced(model)
            if trace.n_channels != int(keep.sum()):
                raise TargetError(
                    "--gate-below cannot follow this model",
                    why="pruned, its channels are coupled in another way than before",
                    hint="leave it out",
                )
        tuned = self._train(model, keep, training, trace, self._state(0))
        if trace is None or tuned.gated is None or not tuned.gated.any():
            return tuned, keep, None
        result, proof = without_gated(tuned, trace, self.original.trace.input_shapes, self.options.seed)
        left = keep.copy()
        left[np.flatnonzero(keep)[tuned.gated]] = False
        return replace(tuned, model=result), left, proof

    def traced(self, model: Model) -> Trace:
        """Return the facts of a model that was pruned by this run."""
        return analysed(model, replace(self.options, ignore=()), self.original.trace.input_shapes).trace

    def forget(self) -> None:
        """Remove the states: the run is over."""
        if self.checkpoint is not None:
            for step in range(self.options.steps + 1):
                path = self._state(step)
                assert path is not None
                path.unlink(missing_ok=True)

    def _state(self, step: int) -> Path | None:
        if self.checkpoint is None or not step:
            return self.checkpoint
        return self.checkpoint.with_name(f"{self.checkpoint.name}.{step}")

    def _train(
        self, model: Model, keep: BoolArray, training: Training, trace: Trace | None, state: Path | None
    ) -> TrainingResult:
        from onnxprune.training.distill import Setting, distill  # only here: torch takes seconds to load

        setting = Setting(
            seed=self.options.seed,
            features=boundaries(self.original, keep, model) if training.features else {},
            trace=trace,
            checkpoint=state,
            memory=self.options.memory / 2,
            on_progress=lambda share, text: self.on_stage("train", share, text),
        )
        return distill(model, self.original.model, self.data, training, setting)


def augmented(training: Training, data: Data) -> Training:
    """Return how to train with its augmentation resolved."""
    if not isinstance(training.augment, str):
        return training
    kinds: tuple[str, ...] = ()
    if data.name != GENERATED_NAME:
        kinds = (*AUTOMATIC, "detail") if is_enlarged_data(data) else AUTOMATIC
    return replace(training, augment=kinds)


def without_gated(
    tuned: TrainingResult, trace: Trace, known: dict[str, tuple[int, ...]], seed: int
) -> tuple[Model, Proof]:
    """Delete the channels that training has gated, and prove that it changes nothing.

    Raises:
        ProofError: it does.
    """
    assert tuned.gated is not None
    keep = ~tuned.gated
    result = rewrite.delete(tuned.model, trace, keep)
    return result, prove(tuned.model, result, tuned.model, known, seed, loaded=True)


def boundaries(original: Analysis, keep: BoolArray, model: Model) -> Mapping[str, tuple[int, IntArray | None]]:
    """Return the last activation of every group that both models have, with its axis and the positions of what is left of it."""
    order = {tensor.name: n for n, node in enumerate(original.model.graph.nodes) for tensor in node.outputs}
    there = {tensor.name for node in model.graph.nodes for tensor in node.outputs}
    group_of = np.full(original.trace.n_channels, -1)
    for number, group in enumerate(original.trace.groups):
        group_of[group.channels] = number
    last: dict[int, str] = {}
    for name, (_, channels) in original.trace.carried.items():
        if name not in order or name not in there or (channels < 0).any():
            continue
        groups = np.unique(group_of[channels])
        if groups.size == 1 and (groups[0] not in last or order[name] > order[last[int(groups[0])]]):
            last[int(groups[0])] = name
    found: dict[str, tuple[int, IntArray | None]] = {}
    for name in last.values():
        axis, channels = original.trace.carried[name]
        found[name] = (axis, np.flatnonzero(keep[channels]))
    return found

"""Distillation: train a pruned model toward the outputs of the original, on the graph itself."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxprune.data.dataset import Data
from onnxprune.errors import ModelError, OptionError, TrainingError
from onnxprune.graph.model import Model
from onnxprune.metrics.distances import AUTO
from onnxprune.options import ResolvedTraining
from onnxprune.runtime.session import ORT_VERSION
from onnxprune.torch_backend import parity
from onnxprune.torch_backend.allocator import keep_memory
from onnxprune.torch_backend.batches import Batches
from onnxprune.torch_backend.executor import Executor
from onnxprune.torch_backend.losses import FeaturePositions, all_finite
from onnxprune.training import checkpoint
from onnxprune.training.constraints import Constraints, Frozen, filters_of
from onnxprune.training.gradient_gates import PATIENCE, Gates
from onnxprune.training.objective import Objective
from onnxprune.training.optimizer import Optimizer
from onnxprune.training.validation import Validation, Validator, copies, put
from onnxprune.types import BoolArray, Trace

VALIDATIONS = 20
"""Number of validations, about: one after each 1/20 of the training."""
SAVED_EVERY = 30.0
"""Seconds between two checkpoints."""
HASHED = 32
"""Training samples, and validation samples, whose values identify the data of a checkpoint."""
WINDOWS = 4
"""Least number of windows of the global threshold; see `onnxprune.training.gradient_gates`."""
NOTHING = 1e-10
"""A loss below this is rounding."""
QUANTILES = (0.0, 0.05, 0.25, 0.5, 1.0)
"""Quantiles of the peak gradients in the notes."""


@dataclass(frozen=True)
class TrainingResult:
    """The result of fine-tuning.

    Attributes:
        model: the model with the best weights on the held-out samples.
        steps, samples, seconds: length of the training; samples are gradients of single samples.
        best: step of the best weights.
        validations: all validations on the held-out samples.
        gated: (n_channels of the trace,) channels gated by the global threshold; None without one.
        notes: notes for the report.
        states: checkpoints of this training, and of those before it that the run consists of, with their keys.
    """

    model: Model
    steps: int
    samples: int
    seconds: float
    best: int
    validations: tuple[Validation, ...]
    gated: BoolArray | None = None
    notes: tuple[str, ...] = ()
    states: tuple[tuple[Path, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "steps": self.steps,
            "samples": self.samples,
            "seconds": self.seconds,
            "best_step": self.best,
            "looks": [asdict(each) for each in self.validations],
            "gated": None if self.gated is None else int(self.gated.sum()),
        }


@dataclass(frozen=True)
class Setting:
    """Arguments of a training beside models, data and options.

    Attributes:
        seed: seed of the order of the samples and of their augmentation.
        features: activations that both models have, for `Training.features`.
        trace: facts of the student, for `Training.gate_below`.
        checkpoint: file of the state, from which an interrupted training resumes; see `onnxprune.training.checkpoint`.
        memory: bytes that preprocessed samples may take.
        distance: kind of the distance from the teacher, of `onnxprune.metrics.distances`.
        on_progress: called after each step with the share that is done, and a text with the loss.
    """

    seed: int = 0
    features: FeaturePositions = field(default_factory=dict)
    trace: Trace | None = None
    checkpoint: Path | None = None
    memory: float = 1e9
    on_progress: Callable[[float, str], None] | None = None
    distance: str = AUTO


def distill(student: Model, teacher: Model, data: Data, training: ResolvedTraining, setting: Setting) -> TrainingResult:
    """Train a model toward the outputs of another one.

    The same seed gives the same weights on the same machine with the same number of threads, unless the training is limited in minutes.

    Args:
        student: the model to train; it does not change.
        teacher: the model that gives the targets; it has the same inputs.
        data: samples, with or without labels; see `Training.labels`.
        training: options.
        setting: seed, memory, checkpoint, and arguments that some options need.

    Raises:
        ModelError: training does not support an operator, torch and onnxruntime disagree, or nothing can be trained or learned.
        DataError: a label is out of range, or the samples do not fill a batch.
        OptionError: a constraint names no weight, or the options ask for labels and there are none.
        OutputError: a checkpoint cannot be written, or belongs to another run.
        TrainingError: out of memory.
    """
    try:
        keep_memory()
        return _Run(student, teacher, data, training, setting).go()
    except (MemoryError, RuntimeError) as problem:  # on a CPU torch raises RuntimeError
        text = str(problem)
        if isinstance(problem, RuntimeError) and "allocate memory" not in text and "out of memory" not in text:
            raise
        raise TrainingError(
            "out of memory while training",
            why=f"a batch has {training.batch} samples",
            hint="give a smaller --train-batch, and a larger --accumulate in return",
        ) from problem


@dataclass
class _Progress:
    """Counters of a run.

    Attributes:
        step: steps done.
        spent: seconds.
        losses: losses of the steps since the last validation.
        frozen: share of elements that were not updated, summed over the steps.
        still: steps whose gradients are rounding.
        finished: whether the training is over.
    """

    step: int = 0
    spent: float = 0.0
    losses: list[float] = field(default_factory=list)
    frozen: float = 0.0
    still: int = 0
    finished: bool = False


class _Run:
    """The loop over the steps of one training."""

    def __init__(
        self, student: Model, teacher: Model, data: Data, training: ResolvedTraining, setting: Setting
    ) -> None:
        self.training, self.setting = training, setting
        self.executor = Executor(student, device=training.device)
        self.executor.training = training.batchnorm == "train"
        if not self.executor.weights:
            raise ModelError(
                "nothing can be trained",
                where=str(student.path),
                why="the model has no float weights",
                hint="prune the model before it is quantized",
            )
        self.teacher = Executor(teacher, device=training.device, trained=False)
        self.weights = self.executor.weights
        self.batches = Batches(data, training, setting.seed, setting.memory)
        probe = self.batches.feeds(self.batches.probe)
        compared = [parity.check(executor, probe) for executor in (self.teacher, self.executor)]
        self.objective = Objective(
            self.executor, self.teacher, self.batches, data, training, setting.features, setting.distance
        )
        self.constraints = Constraints(self.executor, training.bounds)
        self.notes = [*filter(None, compared), *self.constraints.notes]
        self.frozen = None if training.freeze_below is None else Frozen(self.weights, training.freeze_below)
        self.gates: Gates | None = None
        if training.gate_below is not None:
            if setting.trace is None:
                raise OptionError("--gate-below needs the groups of the model", hint="give the trace of the model")
            patience = PATIENCE if training.unit == "min" else max(1, min(PATIENCE, self._steps() // WINDOWS))
            self.gates = Gates(self.executor, setting.trace, training.gate_below, patience=patience)
        self.optimizer = Optimizer(self.weights, training, filters_of(student.graph))
        self.key = self._key()
        self.progress = _Progress()
        self.constraints.project(self.weights)
        self.mean = copies(self.weights) if training.ema else self.weights
        self.validator = Validator(self.executor, self.objective, self.batches)

    def go(self) -> TrainingResult:
        """Train, from the start or from a checkpoint."""
        self._resume()
        progress, validator = self.progress, self.validator
        started = time.monotonic() - progress.spent
        if not validator.history:
            self._validate()
        saved = time.monotonic()
        while not progress.finished:
            self._advance(started)
            path = self.setting.checkpoint
            if path is not None and (progress.finished or time.monotonic() - saved > SAVED_EVERY):
                self._save(path)
                saved = time.monotonic()
        return TrainingResult(
            self.executor.written(self.constraints.rounded(validator.weights), validator.buffers),
            progress.step,
            progress.step * self.training.accumulate * self.batches.size,
            progress.spent,
            validator.step,
            tuple(validator.history),
            None if self.gates is None else self.gates.gated,
            (*self.notes, *self._summary()),
            () if self.setting.checkpoint is None else ((self.setting.checkpoint, self.key),),
        )

    def _advance(self, started: float) -> None:
        """Take one step, and validate when due."""
        progress, validator, patience = self.progress, self.validator, self.training.patience
        before = self._share()
        if not self._step(before):
            progress.finished = True
            return
        progress.step += 1
        progress.spent = time.monotonic() - started
        done = self._share()
        if done >= 1 or validator.score is None or math.floor(done * VALIDATIONS) > math.floor(before * VALIDATIONS):
            self._validate()
            progress.spent = time.monotonic() - started
        stuck = bool(patience) and validator.since >= patience
        if stuck and done < 1:
            self.notes.append(f"stopped after {progress.step} steps: {patience} validations without improvement")
        progress.finished = stuck or self._share() >= 1
        if self.setting.on_progress is not None:
            last = validator.history[-1]
            agreement = "" if last.agreement is None else f", agreement {last.agreement:.1f} %"
            loss = progress.losses[-1] if progress.losses else last.loss
            self.setting.on_progress(min(1.0, done), f"loss {loss:.3g}{agreement}")

    def _share(self) -> float:
        """Return the share of the training that is done."""
        if self.training.unit == "min":
            return self.progress.spent / (60 * self.training.amount)
        return self.progress.step / self._steps()

    def _steps(self) -> int:
        """Return the number of steps of a training that is not limited in minutes."""
        amount = self.training.amount
        if self.training.unit == "epochs":
            amount = math.ceil(amount * self.batches.per_epoch / self.training.accumulate)
        return max(1, round(amount))

    def _validate(self) -> None:
        progress = self.progress
        loss = float(np.mean(progress.losses)) if progress.losses else None
        progress.losses.clear()
        self.validator.validate(progress.step, progress.spent, loss, self.mean)

    def _step(self, share: float) -> bool:
        """Take one step; return False, without an update, if the loss or its gradient is not finite."""
        loss = self._accumulate()
        if loss is None:
            return False
        self._observe(loss)  # before gradients are clipped
        self.optimizer.step(share)
        if self.frozen is not None:
            self.frozen.after()
        self.constraints.project(self.weights, None if self.frozen is None else self.frozen.stays)
        if self.gates is not None:
            self.gates.apply()
        if self.training.ema:
            self._average()
        self.progress.losses.append(loss)
        return True

    def _accumulate(self) -> float | None:
        """Sum the gradients of a step; return its loss, or None if the loss or a gradient is not finite."""
        self.optimizer.clear()
        times, total = self.training.accumulate, 0.0
        for part in range(times):
            feeds, chosen = self.batches.draw(self.progress.step * times + part)
            loss = self.objective.loss(feeds, chosen) / times
            if not all_finite([loss]):
                self._stop("the loss", feeds)
                return None
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        if not all_finite(w.grad for w in self.weights.values() if w.grad is not None):
            self._stop("the gradient", feeds)
            return None
        return total

    def _observe(self, loss: float) -> None:
        """Compare the gradients with the thresholds."""
        if self.frozen is not None:
            self.frozen.before()
            self.progress.frozen += self.frozen.share
        if self.gates is None:
            return
        if loss < NOTHING:  # the student equals its teacher: all gradients are rounding
            self.progress.still += 1
        elif self.gates.observe().any():
            self.validator.score = None  # earlier weights have channels that are gated now
            self.gates.apply(self.validator.weights)

    @torch.no_grad()
    def _average(self) -> None:
        """Update the running mean, with a smaller decay in the first steps; weights that never move keep their bits."""
        step = self.progress.step
        keep = min(self.training.ema, (1 + step) / (10 + step))
        for name, weight in self.weights.items():
            self.mean[name].lerp_(weight.detach(), 1 - keep)
        self.constraints.project_beside(self.mean, self.weights)
        if self.gates is not None:
            self.gates.apply(self.mean)

    def _stop(self, what: str, feeds: dict[str, Tensor]) -> None:
        where = self.executor.not_finite(feeds)
        if not where and (where := self.teacher.not_finite(feeds)):
            where = f"{where} of the original"
        at = f"; the first value that is not finite comes from {where}" if where else ""
        self.notes.append(
            f"training stopped at step {self.progress.step + 1}: {what} is not finite{at}. The result has the best weights so far, "
            f"of step {self.validator.step}; a smaller --lr may help"
        )

    def _summary(self) -> list[str]:
        """Return notes on the effect of the thresholds."""
        notes, progress = [], self.progress
        if self.frozen is not None and progress.step:
            share = progress.frozen / progress.step
            notes.append(
                f"--freeze-below {self.training.freeze_below:g}: {share:.1%} of the elements were not updated in a step, on average"
            )
        if self.gates is not None:
            quantiles = self.gates.quantiles(QUANTILES)
            text = ", ".join(f"{at:.0%} {value:.1e}" for at, value in quantiles.items())
            text = f"quantiles of the other peak gradients: {text}" if text else "no window was completed"
            notes.append(f"--gate-below {self.gates.threshold:g}: {int(self.gates.gated.sum())} channels gated; {text}")
            if progress.still:
                notes.append(
                    f"{progress.still} of {progress.step} steps did not count for --gate-below: the model equals the original, and all "
                    "gradients are rounding"
                )
        return notes

    def _key(self) -> str:
        """Return a digest of everything that the result depends on."""
        setting, versions = self.setting, (torch.__version__, ORT_VERSION)
        plain = [asdict(self.training), setting.seed, sorted(setting.features), self.teacher.model.digest, *versions]
        plain += [] if setting.distance == AUTO else [setting.distance]
        digest = hashlib.sha256(json.dumps(plain, default=str, sort_keys=True).encode())
        for name, tensor in (*self.weights.items(), *self.executor.buffers.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        for indices in (self.batches.fitted, self.batches.validation):
            digest.update(indices.tobytes())
            some = indices[:: max(1, len(indices) // HASHED)]
            for value in self.batches.feeds(some).values():
                digest.update(value.tobytes())
        if self.objective.labels is not None:
            digest.update(self.objective.labels.tobytes())
        return digest.hexdigest()

    def _save(self, path: Path) -> None:
        state: checkpoint.State = {
            "progress": asdict(self.progress),
            "weights": copies(self.weights),
            "mean": copies(self.mean) if self.training.ema else {},
            "buffers": dict(self.executor.buffers),
            "validator": self.validator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "gates": None if self.gates is None else self.gates.state_dict(),
            "notes": self.notes,
        }
        checkpoint.save(path, self.key, state)

    def _resume(self) -> None:
        path = self.setting.checkpoint
        state = None if path is None else checkpoint.load(path, self.key)
        if path is not None and state is not None:
            self._take(state)

    def _take(self, state: checkpoint.State) -> None:
        """Go on from a state, which is as it was written."""
        self.progress = _Progress(**state["progress"])
        put(state["weights"], self.weights)
        put(state["mean"], self.mean)
        put(state["buffers"], self.executor.buffers)
        self.validator.load_state_dict(state["validator"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.gates is not None:
            self.gates.load_state_dict(state["gates"])
            self.gates.apply()
        self.notes = state["notes"]
        if not self.progress.finished:
            self.notes.append(f"resumed after {self.progress.step} steps")

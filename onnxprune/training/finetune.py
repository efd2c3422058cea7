"""Train a pruned model to give what the original gives: distillation, on the graph itself."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxprune import fidelity, runtime
from onnxprune.data import Array, Data
from onnxprune.errors import DataError, ModelError, OptionError, TrainingError
from onnxprune.model import Model
from onnxprune.options import LABELS, RATES, ResolvedTraining
from onnxprune.training import checkpoint, parity
from onnxprune.training.allocator import keep_memory
from onnxprune.training.batches import Batches, evaluating, tensors
from onnxprune.training.constraints import Constraints, Frozen, filters_of
from onnxprune.training.executor import Executor
from onnxprune.training.gates import PATIENCE, Gates
from onnxprune.training.losses import Distance, Features, all_finite
from onnxprune.training.relative import Relative
from onnxprune.types import BoolArray, IntArray, Trace

WARM_UP = 0.15
"""Share of a one-cycle schedule in which the learning rate rises."""
FIRST = 0.04
"""What it starts from, as a share of the highest one."""
MOMENTUM = 0.9
LOOKS = 20
"""Looks at the samples held out, about: one is due whenever another 1/20 of the training is done."""
SAVED_EVERY = 30.0
"""Seconds between two states on disk."""
HASHED = 32
"""Samples of those that are trained on, and of those that are looked at, by which a state knows its data."""
WINDOWS = 4
"""Windows of the global threshold, at least; see `onnxprune.training.gates`."""
NOTHING = 1e-10
"""A loss below is rounding."""
SHOWN = (0.0, 0.05, 0.25, 0.5, 1.0)
"""Quantiles of the loudness that are told."""


@dataclass(frozen=True)
class Look:
    """One look at the samples held out.

    Attributes:
        step, seconds: when.
        loss: of training, mean since the last look; None at the start.
        divergence: from the original; see `onnxprune.fidelity.divergence`.
        agreement: percent of samples with the class that the original gives; None where there are no classes.
        top1: percent right; None without labels.
    """

    step: int
    seconds: float
    loss: float | None
    divergence: float
    agreement: float | None
    top1: float | None


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning returns.

    Attributes:
        model: with the weights that did best on the samples held out.
        steps, samples, seconds: that it took; samples are those that gradients were taken of.
        best: step after which the weights were as they are.
        looks: at the samples held out.
        gated: (n_channels of the trace,) channels that the global threshold took out; None where it was not used.
        notes: what a reader should know.
    """

    model: Model
    steps: int
    samples: int
    seconds: float
    best: int
    looks: tuple[Look, ...]
    gated: BoolArray | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "steps": self.steps,
            "samples": self.samples,
            "seconds": self.seconds,
            "best_step": self.best,
            "looks": [asdict(look) for look in self.looks],
            "gated": None if self.gated is None else int(self.gated.sum()),
        }


Told = Callable[[float, str], None]
"""Called with the share that is done, and how it goes."""


def finetune(
    student: Model,
    teacher: Model,
    data: Data,
    training: ResolvedTraining,
    *,
    seed: int = 0,
    features: Mapping[str, tuple[int, IntArray | None]] | None = None,
    trace: Trace | None = None,
    state: Path | None = None,
    memory: float = 1e9,
    told: Told | None = None,
) -> Tuned:
    """Train a model towards the outputs of another one.

    The same seed gives the same weights on the same machine with the same number of threads, unless the time is limited in minutes.

    Args:
        student: what is trained; it is not changed.
        teacher: what it should do; its inputs are the same.
        data: samples; labels are used where there are some, see `Training.labels`.
        training: how.
        seed: of the order of the samples, and of their augmentation.
        features: activations that both models have, with the axis and the positions of those of its channels in the teacher that the
            student still has (None: all).
        trace: of the student, for `Training.gate_below`.
        state: file that the state is kept in, to go on after an interrupt; see `checkpoint`.
        memory: bytes that preprocessed samples may take.
        told: called as it goes on.

    Raises:
        ModelError: an operator that torch has no function for, torch and onnxruntime do not agree, or nothing can be trained or learned.
        DataError: labels that are out of range, or samples too few for a batch.
        OptionError: a constraint that names nothing, or labels that are asked for and not there.
        OutputError: a state that cannot be written, or of another run.
        TrainingError: out of memory.
    """
    try:
        keep_memory()
        run = _Run(
            student,
            teacher,
            data,
            training,
            seed=seed,
            features=features or {},
            trace=trace,
            state=state,
            memory=memory,
            told=told,
        )
        return run.go()
    except MemoryError as problem:
        raise _too_large(training.batch) from problem
    except RuntimeError as problem:  # what torch raises on a CPU has no type of its own
        if "allocate memory" in str(problem) or "out of memory" in str(problem):
            raise _too_large(training.batch) from problem
        raise


def _too_large(batch: int) -> TrainingError:
    return TrainingError(
        "out of memory while training",
        why=f"gradients were taken of {batch} samples at a time",
        hint="give a smaller --train-batch, with --accumulate to make up for it",
    )


@dataclass
class _Progress:
    """Where a run stands; all that changes, beside the weights.

    Attributes:
        step: steps that are done.
        spent: seconds.
        best: step of the best weights; `score` is theirs, the smaller the better. None: the next ones are the best so far.
        since: looks since then.
        looks: all of them.
        losses: of the steps since the last look.
        frozen: shares of the elements that sat out, summed over the steps.
        still: steps without a gradient that says anything.
        finished: whether nothing is left to do.
    """

    step: int = 0
    spent: float = 0.0
    best: int = 0
    score: float | None = None
    since: int = 0
    looks: list[Look] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    frozen: float = 0.0
    still: int = 0
    finished: bool = False


class _Run:
    """One training: what it needs, what it changes, and the course of it."""

    def __init__(
        self,
        student: Model,
        teacher: Model,
        data: Data,
        training: ResolvedTraining,
        *,
        seed: int,
        features: Mapping[str, tuple[int, IntArray | None]],
        trace: Trace | None,
        state: Path | None,
        memory: float,
        told: Told | None,
    ) -> None:
        self.training, self.path, self.told = training, state, told
        self.executor = _trained(student, training)
        self.teacher = Executor(teacher, device=training.device, trained=lambda name: False)
        self.weights = self.executor.weights
        self.outputs = [value.name for value in student.graph.outputs]
        self.batches = Batches(data, training, seed, memory)
        self.per_step = training.accumulate * self.batches.size
        self.notes = [note for note in (self._compared(executor) for executor in (self.teacher, self.executor)) if note]
        self.targets = self._seen(self.teacher)
        self.distance = self._make_distance()
        self.features = self._make_features(features) if training.features and features else None
        self.labels, self.label_share = self._checked(data)
        self.constraints = Constraints(self.executor, training.bounds)
        self.notes += self.constraints.notes
        self.frozen = None if training.freeze_below is None else Frozen(self.weights, training.freeze_below)
        self.gates = None if training.gate_below is None else self._make_gates(trace, training.gate_below)
        self.optimizer = self._make_optimizer()
        adam = training.optimizer == "adamw"  # steps of the other one are as large as gradients are
        self.relative = Relative(self.weights, filters_of(student.graph)) if adam else None
        self.key = self._key(seed, features)
        self.progress = _Progress()
        self.constraints.project(self.weights)
        self.mean = _copies(self.weights) if training.ema else self.weights
        self.best, self.best_buffers = _copies(self.weights), _copies(self.executor.buffers)
        self.started = 0.0

    # ---------------------------------------------------------------------------------------------------------- the course of it

    def go(self) -> Tuned:
        """Train, or go on where a state says."""
        self._resume()
        progress = self.progress
        self.started = time.monotonic() - progress.spent
        if not progress.looks:
            self._look()
        saved = time.monotonic()
        while not progress.finished:
            self._advance()
            if self.path is not None and (progress.finished or time.monotonic() - saved > SAVED_EVERY):
                self._save(self.path)
                saved = time.monotonic()
        return Tuned(
            self.executor.written(self.constraints.rounded(self.best), self.best_buffers),
            progress.step,
            progress.step * self.per_step,
            progress.spent,
            progress.best,
            tuple(progress.looks),
            None if self.gates is None else self.gates.gated,
            (*self.notes, *self._summary()),
        )

    def _advance(self) -> None:
        """Take one step, and look where that is due; note when all is done."""
        progress, patience = self.progress, self.training.patience
        before = self._share()
        if not self._step(before):
            progress.finished = True
            return
        progress.step += 1
        progress.spent = time.monotonic() - self.started
        done = self._share()
        if done >= 1 or progress.score is None or math.floor(done * LOOKS) > math.floor(before * LOOKS):
            self._look()
            progress.spent = time.monotonic() - self.started
        stuck = bool(patience) and progress.since >= patience
        if stuck and done < 1:
            self.notes.append(
                f"stopped after {progress.step} steps: {patience} looks at the samples held out without a better one"
            )
        progress.finished = stuck or self._share() >= 1
        self._tell(done)

    def _share(self) -> float:
        """Return the share of the training that is done."""
        if self.training.unit == "min":
            return self.progress.spent / (60 * self.training.amount)
        return self.progress.step / self._steps()

    def _steps(self) -> int:
        """Return how many steps there are, unless the time is limited."""
        training = self.training
        amount = training.amount
        if training.unit == "epochs":
            amount = math.ceil(amount * self.batches.per_epoch / training.accumulate)
        return max(1, round(amount))

    def _rate(self, share: float) -> float:
        """Return the learning rate: one-cycle as in Smith and Topin, 2018, "Super-Convergence", with cosines as in fastai."""
        training = self.training
        top = RATES[training.optimizer] if training.rate is None else training.rate
        if training.schedule == "constant":
            return top
        if training.schedule == "cosine":
            return top * _falling(share)
        if share < WARM_UP:
            return top * (1 - (1 - FIRST) * _falling(share / WARM_UP))
        return top * _falling((share - WARM_UP) / (1 - WARM_UP))

    def _tell(self, share: float) -> None:
        if self.told is not None:
            last = self.progress.looks[-1]
            agreement = "" if last.agreement is None else f", agreement {last.agreement:.1f} %"
            loss = self.progress.losses[-1] if self.progress.losses else last.loss
            self.told(min(1.0, share), f"loss {loss:.3g}{agreement}")

    # ----------------------------------------------------------------------------------------------------------------- one step

    def _step(self, share: float) -> bool:
        """Take one step; return False, with weights as they were, where the loss or its gradient is not finite."""
        loss = self._accumulate()
        if loss is None:
            return False
        self._watch(loss)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(share)
        if self.training.clip:  # thresholds are held against gradients as they were
            torch.nn.utils.clip_grad_norm_(self.weights.values(), self.training.clip)
        if self.relative is not None:
            self.relative.before()
        self.optimizer.step()
        if self.relative is not None:
            self.relative.after()
        self._restrain()
        if self.training.ema:
            self._average()
        self.progress.losses.append(loss)
        return True

    def _accumulate(self) -> float | None:
        """Sum up the gradients of a step; return its loss, or None where something is not finite."""
        self.optimizer.zero_grad(set_to_none=True)
        times, total = self.training.accumulate, 0.0
        for part in range(times):
            feeds, chosen = self.batches.draw(self.progress.step * times + part)
            loss = self._loss(feeds, chosen) / times
            if not all_finite([loss]):
                self._stop("the loss", feeds)
                return None
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        if not all_finite(w.grad for w in self.weights.values() if w.grad is not None):
            self._stop("the gradient", feeds)
            return None
        return total

    def _loss(self, feeds: dict[str, Tensor], chosen: IntArray) -> Tensor:
        names = () if self.features is None else self.features.names
        with torch.autocast(self.executor.device.type, torch.bfloat16, self.training.precision == "bfloat16"):
            with torch.no_grad():
                wanted = self.teacher(feeds, names)
            given = self.executor(feeds, names)
        student, teacher = ([found[name] for name in self.outputs] for found in (given, wanted))
        loss = self.distance(student, teacher)
        if self.labels is not None and self.label_share:
            labels = torch.from_numpy(self.labels[chosen]).to(self.executor.device)
            right = self.distance.labelled(student, labels, self.training.smoothing)
            loss = (1 - self.label_share) * loss + self.label_share * right
        if self.features is not None:
            loss = loss + self.training.features * self.features(given, wanted)
        return loss

    def _watch(self, loss: float) -> None:
        """Hold the gradients against thresholds."""
        progress = self.progress
        if self.frozen is not None:
            self.frozen.before()
            progress.frozen += self.frozen.share
        if self.gates is None:
            return
        if loss < NOTHING:
            # a student that does what its teacher does: gradients are rounding, and say nothing about channels
            progress.still += 1
        elif self.gates.observe().any():
            progress.score = None  # weights from before have channels that are gone now
            self.gates.apply(self.best)

    def _restrain(self) -> None:
        """Put back what was not to move, and hold the bounds."""
        if self.frozen is not None:
            self.frozen.after()
        self.constraints.project(self.weights, None if self.frozen is None else self.frozen.stays)
        if self.gates is not None:
            self.gates.apply()

    @torch.no_grad()
    def _average(self) -> None:
        """Move the running mean; what never moved stays the same to the bit. Early on it forgets faster than later."""
        step = self.progress.step
        keep = min(self.training.ema, (1 + step) / (10 + step))
        for name, weight in self.weights.items():
            self.mean[name].lerp_(weight.detach(), 1 - keep)
        self.constraints.project_beside(self.mean, self.weights)
        if self.gates is not None:
            self.gates.apply(self.mean)

    def _stop(self, what: str, feeds: dict[str, Tensor]) -> None:
        where = self.executor.not_finite(feeds)
        if not where:
            where = self.teacher.not_finite(feeds)
            where = f"{where} of the original" if where else ""
        at = f"; the first value that is not finite comes from {where}" if where else ""
        self.notes.append(
            f"training stopped at step {self.progress.step + 1}: {what} is not finite{at}. The weights are the best ones before, "
            f"of step {self.progress.best}; a smaller --lr may help"
        )

    # ------------------------------------------------------------------------------------------------------ looking at what is held

    def _look(self) -> None:
        """Run what is looked at, and keep the weights if they do better there than any before."""
        progress = self.progress
        with self._showing_mean():
            outputs = self._seen(self.executor)
        found = fidelity.fidelity(self.targets, outputs)
        divergence = fidelity.divergence(self.targets, outputs)
        top1 = None
        if self.labels is not None:
            top1 = fidelity.accuracy(outputs, self.labels[self.batches.watched])["top1"]
        loss = float(np.mean(progress.losses)) if progress.losses else None
        progress.losses.clear()
        progress.looks.append(Look(progress.step, progress.spent, loss, divergence, found.get("agreement"), top1))
        progress.since += 1
        score = self._score(outputs, divergence)
        if (progress.score is None or score < progress.score) and all_finite(self.mean.values()):
            progress.score, progress.best, progress.since = score, progress.step, 0
            self.best, self.best_buffers = _copies(self.mean), _copies(self.executor.buffers)

    def _score(self, outputs: fidelity.Outputs, divergence: float) -> float:
        """Return what the best weights have least of: the loss, without its temperature, smoothing and activations.

        Where few samples are held out a count of wrong answers would be a matter of chance.
        """
        given, wanted = ([torch.from_numpy(o) for o in found] for found in (outputs, self.targets))
        beside = self.distance.beside(given, wanted)
        if self.distance.classes is not None and beside is not None:
            divergence += float(beside)
        if self.labels is not None and self.label_share:
            right = self.distance.labelled(given, torch.from_numpy(self.labels[self.batches.watched]), 0.0)
            divergence = (1 - self.label_share) * divergence + self.label_share * float(right)
        return math.inf if math.isnan(divergence) else divergence

    def _seen(self, executor: Executor) -> fidelity.Outputs:
        """Return the outputs for the samples that are looked at."""
        parts = []
        with evaluating(executor), torch.no_grad():
            for feeds in self.batches.looked_at():
                found = executor(feeds)
                parts.append([found[name].to("cpu").numpy() for name in self.outputs])
        return runtime.joined(parts)

    @contextmanager
    def _showing_mean(self) -> Iterator[None]:
        """Run with the running mean of the weights; they are put back afterwards, to the bit."""
        if not self.training.ema:
            yield
            return
        current = _copies(self.weights)
        _put(self.mean, self.weights)
        try:
            yield
        finally:
            _put(current, self.weights)

    def _summary(self) -> list[str]:
        """Say what thresholds did."""
        notes, progress = [], self.progress
        if self.frozen is not None and progress.step:
            share = progress.frozen / progress.step
            notes.append(
                f"--freeze-below {self.training.freeze_below:g}: {share:.1%} of the elements sat a step out, on average"
            )
        if self.gates is not None:
            notes.append(
                f"--gate-below {self.gates.threshold:g}: {int(self.gates.gated.sum())} channels gated; {_loudness(self.gates)}"
            )
            if progress.still:
                notes.append(
                    f"{progress.still} of {progress.step} steps did not count for --gate-below: the model already did what the original "
                    "does, and its gradients say nothing about channels"
                )
        return notes

    # -------------------------------------------------------------------------------------------------------------- the machinery

    def _compared(self, executor: Executor) -> str:
        return parity.check(executor, self.batches.feeds(self.batches.few))

    def _make_distance(self) -> Distance:
        distance = Distance.of([torch.from_numpy(o) for o in self.targets], self.training.temperature)
        if not distance:
            raise ModelError(
                "nothing can be learned from the original",
                where=str(self.teacher.model.path),
                why="none of its outputs is a floating point number",
                hint="leave the training out",
            )
        return distance

    def _make_features(self, features: Mapping[str, tuple[int, IntArray | None]]) -> Features:
        with torch.no_grad(), evaluating(self.teacher):
            return Features(features, self.teacher(tensors(self.batches.feeds(self.batches.few)), tuple(features)))

    def _make_gates(self, trace: Trace | None, threshold: float) -> Gates:
        if trace is None:
            raise OptionError("--gate-below needs the groups of the model", hint="give its trace")
        patience = PATIENCE
        if self.training.unit != "min":
            patience = max(1, min(PATIENCE, self._steps() // WINDOWS))
        return Gates(self.executor, trace, threshold, patience=patience)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        training = self.training
        matrices = [w for w in self.weights.values() if w.ndim > 1]
        others = [w for w in self.weights.values() if w.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": training.decay}, {"params": others, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        if training.optimizer == "sgd":
            return torch.optim.SGD(groups, self._rate(0.0), MOMENTUM, nesterov=True)
        return torch.optim.AdamW(groups, self._rate(0.0))

    def _checked(self, data: Data) -> tuple[Array | None, float]:
        """Return the labels, if they are of any use, and the share of the loss that is theirs.

        Raises:
            OptionError: they are asked for, and there are none, or no classes.
            DataError: they are out of range.
        """
        asked = self.training.labels
        classes = fidelity.scores_of(self.targets) if self.distance.classes is not None else None
        if data.labels is None or classes is None:
            if asked:
                why = "the data have none" if data.labels is None else "no output has the form (samples, classes)"
                raise OptionError(
                    f"--label-weight {asked:g} needs labels", why=why, hint="give labelled data, or leave it out"
                )
            return None, 0.0
        labels, share = np.asarray(data.labels), LABELS if asked is None else asked
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

    # ----------------------------------------------------------------------------------------------------------- its state on disk

    def _key(self, seed: int, features: Mapping[str, tuple[int, IntArray | None]]) -> str:
        """Return a digest of what the course of a training depends on."""
        versions = torch.__version__, runtime.VERSION
        plain = [asdict(self.training), seed, sorted(features), self.teacher.model.digest, *versions]
        digest = hashlib.sha256(json.dumps(plain, default=str, sort_keys=True).encode())
        for name, tensor in (*self.weights.items(), *self.executor.buffers.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        for numbers in (self.batches.fitted, self.batches.watched):
            digest.update(numbers.tobytes())
            some = numbers[:: max(1, len(numbers) // HASHED)]
            for value in self.batches.feeds(some).values():
                digest.update(value.tobytes())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def _save(self, path: Path) -> None:
        state: checkpoint.State = {
            "progress": asdict(self.progress),
            "weights": {name: w.detach() for name, w in self.weights.items()},
            "mean": {name: w.detach() for name, w in self.mean.items()} if self.training.ema else {},
            "buffers": dict(self.executor.buffers),
            "best": self.best,
            "best_buffers": self.best_buffers,
            "optimizer": self.optimizer.state_dict(),
            "gates": None if self.gates is None else self.gates.state_dict(),
            "notes": self.notes,
        }
        checkpoint.save(path, self.key, state)

    def _resume(self) -> None:
        state = None if self.path is None else checkpoint.load(self.path, self.key)
        if state is None:
            return
        found = state["progress"]
        self.progress = _Progress(**{**found, "looks": [Look(**look) for look in found["looks"]]})
        _put(state["weights"], self.weights)
        _put(state["mean"], self.mean)
        _put(state["buffers"], self.executor.buffers)
        self.best, self.best_buffers = state["best"], state["best_buffers"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.gates is not None:
            self.gates.load_state_dict(state["gates"])
            self.gates.apply()
        self.notes = state["notes"]
        if not self.progress.finished:
            self.notes.append(f"resumed after {self.progress.step} steps")


def _trained(student: Model, training: ResolvedTraining) -> Executor:
    """Return the graph of the student in torch.

    Raises:
        ModelError: it has nothing that can be trained.
    """
    executor = Executor(student, device=training.device)
    executor.training = training.batchnorm == "train"
    if not executor.weights:
        raise ModelError(
            "nothing can be trained",
            where=str(student.path),
            why="there are no float weights",
            hint="prune the model before it is quantised",
        )
    return executor


def _falling(share: float) -> float:
    """Return half a cosine, from 1 to 0."""
    return (1 + math.cos(math.pi * share)) / 2


def _loudness(gates: Gates) -> str:
    found = gates.quantiles(SHOWN)
    if not found:
        return "the training ended before its first window"
    return "quantiles of the loudness of the others: " + ", ".join(
        f"{at:.0%} {value:.1e}" for at, value in found.items()
    )


def _copies(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in values.items()}


@torch.no_grad()
def _put(values: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        into[name].copy_(value)

"""Train a pruned model to give what the original gives: distillation, on the graph itself."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxprune import fidelity, runtime
from onnxprune.augment import augment, channel_axis
from onnxprune.data import Array, Data, Feeds
from onnxprune.errors import DataError, ModelError, OptionError, TrainingError
from onnxprune.model import Model
from onnxprune.options import LABELS, RATES, Training
from onnxprune.training import checkpoint
from onnxprune.training.constraints import Constraints, Frozen
from onnxprune.training.executor import Executor
from onnxprune.training.losses import Distance, error
from onnxprune.types import BoolArray, IntArray, Trace

WARM_UP = 0.15
"""Share of a one-cycle schedule in which the learning rate rises."""
LOOKS = 20
"""Validations, about: one is due whenever another 1/20 of the training is done."""
MOST_HELD = 1024
"""Samples that are held out, at most."""
SAVED_EVERY = 30.0
"""Seconds between two states on disk."""
TOLERANCE = 1e-4
"""Difference between torch and onnxruntime that is let pass, as a share of the range of an output."""
MOMENTUM = 0.9


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
    training: Training,
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
        ModelError: an operator that torch has no function for, or where torch and onnxruntime do not agree.
        DataError: labels that are out of range.
        OptionError: a constraint that names nothing.
        OutputError: a state that cannot be written, or of another run.
        TrainingError: out of memory.
    """
    try:
        return _Run(student, teacher, data, training, seed, features or {}, trace, state, memory, told).go()
    except (torch.OutOfMemoryError, MemoryError) as problem:
        raise _too_large(training.batch) from problem
    except RuntimeError as problem:
        if "allocate memory" in str(problem) or "out of memory" in str(problem):
            raise _too_large(training.batch) from problem
        raise


def _too_large(batch: int) -> TrainingError:
    return TrainingError(
        "out of memory while training",
        why=f"gradients were taken of {batch} samples at a time",
        hint="give a smaller --train-batch, with --accumulate to make up for it",
    )


class _Samples:
    """Preprocessed samples, kept where they take less than what they may; else made anew each time."""

    def __init__(self, data: Data, memory: float) -> None:
        self._data = data
        size = sum(value.nbytes for value in data.rows(0, 1).values()) * len(data)
        self._kept = data.rows(0, len(data)) if size <= memory else None

    def __call__(self, numbers: IntArray) -> Feeds:
        if self._kept is not None:
            return {name: value[numbers] for name, value in self._kept.items()}
        return self._data.take(numbers).rows(0, len(numbers))


@dataclass
class _Progress:
    """Where a run stands; all that changes, beside the weights."""

    step: int = 0
    spent: float = 0.0
    best: int = 0
    best_divergence: float = math.inf
    looks: list[Look] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    since: int = 0
    finished: bool = False


class _Run:
    def __init__(
        self,
        student: Model,
        teacher: Model,
        data: Data,
        training: Training,
        seed: int,
        features: Mapping[str, tuple[int, IntArray | None]],
        trace: Trace | None,
        state: Path | None,
        memory: float,
        told: Told | None,
    ) -> None:
        self.training, self.seed, self.data, self.path, self.told = training, seed, data, state, told
        self.kinds = () if isinstance(training.augment, str) else training.augment
        self.executor = Executor(student, device=training.device)
        self.teacher = Executor(teacher, device=training.device, trained=lambda name: False)
        self.executor.training = training.batchnorm == "train"
        self.weights = self.executor.weights
        if not self.weights:
            raise ModelError(
                "nothing can be trained",
                where=str(student.path),
                why="there are no float weights",
                hint="prune the model before it is quantised",
            )
        self.outputs = [value.name for value in student.graph.outputs]
        self.features = dict(features) if training.features else {}
        fixed = data.inputs[0].shape[0] if data.inputs[0].shape else None
        self.batch = fixed or min(training.batch, max(1, len(data)))
        self.fitted, self.held = _split(len(data), training.hold_out, self.batch if fixed else 1, seed)
        self.batch = fixed or min(self.batch, len(self.fitted))
        if len(self.fitted) < self.batch:
            raise DataError(
                "too few samples to train on",
                where=data.name,
                why=f"{len(data)} samples, of which {len(self.held)} are held out",
                hint="give more, or --hold-out 0",
            )
        self.samples = _Samples(data, memory)
        self.targets = self._look_at_teacher()
        self.distance = Distance.of([torch.from_numpy(o) for o in self.targets], training.temperature)
        self.labels = None if data.labels is None else np.asarray(data.labels)
        share = training.labels if training.labels is not None else (LABELS if self.labels is not None else 0.0)
        self.label_share = self._checked_labels(share)
        self.constraints = Constraints(self.executor, training.bounds)
        self.frozen = None if training.freeze_below is None else Frozen(self.weights, training.freeze_below)
        self.gates = None
        if training.gate_below is not None:
            if trace is None:
                raise OptionError("--gate-below needs the groups of the model", hint="give its trace")
            from onnxprune.training.gates import Gates

            self.gates = Gates(self.executor, trace, training.gate_below)
        self.optimizer = self._make_optimizer()
        self.notes = list(self.constraints.notes)
        self.progress = _Progress()
        self.mean = {name: w.detach().clone() for name, w in self.weights.items()} if training.ema else self.weights
        self.best = {name: w.detach().clone() for name, w in self.weights.items()}
        self.best_buffers = {name: b.clone() for name, b in self.executor.buffers.items()}
        self.key = self._key(student, teacher)
        self.started = time.monotonic()

    # ---------------------------------------------------------------------------------------------------------- the course of it

    def go(self) -> Tuned:
        self._agree()
        self._resume()
        progress, training = self.progress, self.training
        self.started = time.monotonic() - progress.spent
        saved = time.monotonic()
        if not progress.looks:
            self.constraints.project(self.weights)
            self.constraints.project(self.mean)
            self._look(None)
        due = 1 + math.floor(self._share() * LOOKS)
        while not progress.finished and (share := self._share()) < 1:
            if not self._step(share):
                break
            progress.step += 1
            progress.spent = time.monotonic() - self.started
            done = self._share()
            if done * LOOKS >= due or done >= 1:
                due = 1 + math.floor(done * LOOKS)
                self._look(float(np.mean(progress.losses)))
                progress.losses.clear()
                if training.patience and progress.since >= training.patience:
                    self.notes.append(
                        f"stopped after {progress.step} steps: no better for {training.patience} looks at the samples held out"
                    )
                    break
            if self.path is not None and time.monotonic() - saved > SAVED_EVERY:
                self._save()
                saved = time.monotonic()
            self._tell(done)
        progress.finished = True
        if self.path is not None:
            self._save()
        self.constraints.project(self.best)
        model = self.executor.written(self.best, self.best_buffers)
        return Tuned(
            model,
            progress.step,
            progress.step * training.accumulate * self.batch,
            progress.spent,
            progress.best,
            tuple(progress.looks),
            None if self.gates is None else self.gates.gated,
            tuple(self.notes),
        )

    def _share(self) -> float:
        """Return the share of the training that is done."""
        training, progress = self.training, self.progress
        if training.unit == "min":
            return progress.spent / (60 * training.amount)
        return progress.step / self._steps()

    def _steps(self) -> int:
        training = self.training
        if training.unit == "steps":
            return max(1, round(training.amount))
        return max(1, math.ceil(training.amount * self._per_epoch() / training.accumulate))

    def _per_epoch(self) -> int:
        return max(1, len(self.fitted) // self.batch)

    def _rate(self, share: float) -> float:
        """Return the learning rate: one-cycle as in Smith and Topin, 2018, "Super-Convergence", with cosines as in fastai."""
        training = self.training
        top = training.rate if training.rate is not None else RATES[training.optimizer]
        if training.schedule == "constant":
            return top
        if training.schedule == "cosine":
            return top * (1 + math.cos(math.pi * share)) / 2
        if share < WARM_UP:
            return top * (0.04 + 0.96 * (1 - math.cos(math.pi * share / WARM_UP)) / 2)
        return top * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))) / 2

    def _step(self, share: float) -> bool:
        """Take one step; return False, with weights as they were, where the loss is not finite."""
        training = self.training
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(share)
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for micro in range(training.accumulate):
            feeds, labels = self._draw(self.progress.step * training.accumulate + micro)
            loss = self._loss(feeds, labels) / training.accumulate
            if not bool(torch.isfinite(loss)):
                self._stop("the loss", feeds)
                return False
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        gradients = [w for w in self.weights.values() if w.grad is not None]
        norm = torch.nn.utils.get_total_norm([w.grad for w in gradients if w.grad is not None])
        if not bool(torch.isfinite(norm)):
            self._stop("the gradient", feeds)
            return False
        if self.gates is not None:
            self.gates.observe()
        if self.frozen is not None:
            self.frozen.before()
        if training.clip:  # thresholds are held against gradients as they were
            torch.nn.utils.clip_grads_with_norm_(gradients, training.clip, norm)
        self.optimizer.step()
        self.constraints.project(self.weights)
        if self.frozen is not None:
            self.frozen.after()
        if self.gates is not None:
            self.gates.apply()
        if training.ema:
            self._average()
        self.progress.losses.append(total)
        return True

    @torch.no_grad()
    def _average(self) -> None:
        """Move the running mean; what did not change stays the same to the bit. Early on it forgets faster than later."""
        keep = min(self.training.ema, (1 + self.progress.step) / (10 + self.progress.step))
        for name, weight in self.weights.items():
            self.mean[name].lerp_(weight.detach(), 1 - keep)

    def _loss(self, feeds: dict[str, Tensor], labels: Tensor | None) -> Tensor:
        names = list(self.features)
        with self._precision():
            with torch.no_grad():
                wanted = self.teacher(feeds, names)
            given = self.executor(feeds, names)
        student, teacher = ([found[name] for name in self.outputs] for found in (given, wanted))
        loss = self.distance(student, teacher)
        if labels is not None:
            share = self.label_share
            loss = (1 - share) * loss + share * self.distance.labelled(student, labels, self.training.smoothing)
        if names:
            parts = []
            for name, (axis, positions) in self.features.items():
                target = wanted[name]
                if positions is not None:
                    target = target.index_select(axis, torch.from_numpy(positions).to(target.device))
                parts.append(error(given[name], target))
            loss = loss + self.training.features * torch.stack(parts).mean()
        return loss

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.executor.device.type, torch.bfloat16, self.training.precision == "bfloat16")

    def _draw(self, number: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return a batch by its number: all that is random follows from it and the seed, so that a resumed run draws the same."""
        epoch, place = divmod(number, self._per_epoch())
        order = np.random.default_rng((self.seed, epoch)).permutation(self.fitted)
        chosen = np.sort(order[place * self.batch : (place + 1) * self.batch])
        feeds = self.samples(chosen)
        if self.kinds:
            rng = np.random.default_rng((self.seed, 1, number))
            feeds = {name: augment(x, self.kinds, rng, channel_axis(x.shape)) for name, x in feeds.items()}
        labels = None
        if self.label_share and self.labels is not None:
            labels = torch.from_numpy(self.labels[chosen]).to(self.executor.device)
        return _tensors(feeds), labels

    # ------------------------------------------------------------------------------------------------------ looking at what is held

    def _look_at_teacher(self) -> fidelity.Outputs:
        return self._outputs(self.teacher, self.held if self.held.size else self.fitted[:MOST_HELD])

    def _outputs(self, executor: Executor, numbers: IntArray) -> fidelity.Outputs:
        """Return the outputs for some samples, in batches."""
        parts = []
        was, executor.training = executor.training, False
        with torch.no_grad():
            for start in range(
                0, len(numbers) - len(numbers) % self.batch if self._is_fixed() else len(numbers), self.batch
            ):
                found = executor(_tensors(self.samples(numbers[start : start + self.batch])))
                parts.append([found[name].to("cpu").numpy() for name in self.outputs_of(executor)])
        executor.training = was
        return runtime.joined(parts)

    def outputs_of(self, executor: Executor) -> list[str]:
        return [value.name for value in executor.model.graph.outputs]

    def _is_fixed(self) -> bool:
        return bool(self.data.inputs[0].shape and self.data.inputs[0].shape[0])

    def _look(self, loss: float | None) -> None:
        """Run what is held out, and keep the weights if they do better there than any before."""
        progress = self.progress
        numbers = self.held if self.held.size else self.fitted[:MOST_HELD]
        current = {name: w.detach().clone() for name, w in self.weights.items()} if self.training.ema else None
        if current is not None:
            self._put(self.mean)
        outputs = self._outputs(self.executor, numbers)
        divergence = fidelity.divergence(self.targets, outputs)
        found = fidelity.fidelity(self.targets, outputs)
        top1 = None
        if self.labels is not None and self.distance.classes is not None:
            top1 = fidelity.accuracy(outputs, self.labels[numbers])["top1"]
        progress.looks.append(Look(progress.step, progress.spent, loss, divergence, found.get("agreement"), top1))
        score = divergence if top1 is None or not self.label_share else 100 - top1 + min(divergence, 1.0) / 1e3
        progress.since += 1
        if score < progress.best_divergence:
            progress.best_divergence, progress.best, progress.since = score, progress.step, 0
            self.best = {name: w.detach().clone() for name, w in self.weights.items()}
            self.best_buffers = {name: b.clone() for name, b in self.executor.buffers.items()}
        if current is not None:
            self._put(current)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])

    def _tell(self, share: float) -> None:
        if self.told is not None:
            last = self.progress.looks[-1]
            agreement = "" if last.agreement is None else f", agreement {last.agreement:.1f} %"
            loss = self.progress.losses[-1] if self.progress.losses else last.loss
            self.told(min(1.0, share), f"loss {loss:.3g}{agreement}")

    def _agree(self) -> None:
        """Hold torch against onnxruntime before anything is trained, for both models.

        Raises:
            ModelError: they differ.
        """
        feeds = self.samples(self.fitted[: self.batch])
        for executor in (self.teacher, self.executor):
            model = executor.model
            expected = runtime.run(model.session(optimise=False), feeds)
            was, executor.training = executor.training, False
            with torch.no_grad():
                found = executor(_tensors(feeds))
            executor.training = was
            names = self.outputs_of(executor)
            worst = max(
                (
                    fidelity.relative_difference(e.astype(np.float64), found[n].cpu().numpy().astype(np.float64))
                    for n, e in zip(names, expected, strict=True)
                    if np.asarray(e).dtype.kind == "f"
                ),
                default=0.0,
            )
            if worst > TOLERANCE and not all(np.asarray(e).dtype == np.float16 for e in expected):
                raise ModelError(
                    "torch and onnxruntime do not agree on this model",
                    where=str(model.path),
                    why=f"outputs differ by {worst:.1e} of their range, {TOLERANCE:.0e} is allowed",
                    hint="leave the training out; please report it",
                )

    def _stop(self, what: str, feeds: dict[str, Tensor]) -> None:
        where = self.executor.not_finite(feeds)
        at = f"; the first value that is not finite comes from {where}" if where else ""
        self.notes.append(
            f"training stopped at step {self.progress.step + 1}: {what} is not finite{at}. The weights are the best ones before, of step {self.progress.best}; a smaller --lr may help"
        )

    def _checked_labels(self, share: float) -> float:
        if not share:
            return 0.0
        if self.labels is None:
            raise OptionError(f"--label-weight {share:g} needs labels", hint="give labelled data, or leave it out")
        if self.distance.classes is None:
            raise OptionError(
                "labels are of no use here",
                why="no output of the form (samples, classes)",
                hint="give --label-weight 0",
            )
        classes = fidelity.scores_of(self.targets)
        assert classes is not None
        if self.labels.max() >= classes.shape[1]:
            raise DataError(
                "a label is out of range",
                where=self.data.name,
                why=f"the largest is {self.labels.max()}, the model has {classes.shape[1]} classes",
                hint="check that the labels belong to this model, or give --label-weight 0",
            )
        return share

    # -------------------------------------------------------------------------------------------------------------- the machinery

    def _make_optimizer(self) -> torch.optim.Optimizer:
        training = self.training
        matrices = [w for w in self.weights.values() if w.ndim > 1]
        others = [w for w in self.weights.values() if w.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": training.decay}, {"params": others, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        rate = self._rate(0.0)
        if training.optimizer == "sgd":
            return torch.optim.SGD(groups, rate, MOMENTUM, nesterov=True)
        return torch.optim.AdamW(groups, rate)

    def _key(self, student: Model, teacher: Model) -> str:
        """Return a digest of what the course of a training depends on."""
        digest = hashlib.sha256(
            json.dumps(
                [
                    asdict(self.training),
                    self.seed,
                    sorted(self.features),
                    teacher.digest,
                    len(self.data),
                    torch.__version__,
                ],
                default=str,
                sort_keys=True,
            ).encode()
        )
        for name, weight in self.weights.items():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
        for value in self.samples(self.fitted[: min(8, len(self.fitted))]).values():
            digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def _save(self) -> None:
        assert self.path is not None
        progress = self.progress
        state: checkpoint.State = {
            "progress": {**asdict(progress)},
            "weights": {name: w.detach() for name, w in self.weights.items()},
            "mean": {name: w.detach() for name, w in self.mean.items()} if self.training.ema else {},
            "buffers": dict(self.executor.buffers),
            "best": self.best,
            "best_buffers": self.best_buffers,
            "optimizer": self.optimizer.state_dict(),
            "gates": None if self.gates is None else self.gates.state_dict(),
            "notes": self.notes,
        }
        checkpoint.save(self.path, self.key, state)

    def _resume(self) -> None:
        state = None if self.path is None else checkpoint.load(self.path, self.key)
        if state is None:
            return
        found = state["progress"]
        self.progress = _Progress(**{**found, "looks": [Look(**look) for look in found["looks"]]})
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])
            for name, value in state["mean"].items():
                self.mean[name].copy_(value)
            for name, buffer in self.executor.buffers.items():
                buffer.copy_(state["buffers"][name])
        self.best, self.best_buffers = state["best"], state["best_buffers"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.gates is not None:
            self.gates.load_state_dict(state["gates"])
        self.notes = [*state["notes"], f"resumed after {self.progress.step} steps"]


def _split(n: int, share: float, multiple: int, seed: int) -> tuple[IntArray, IntArray]:
    """Return the numbers of the samples that are fitted, and of those held out; the latter a multiple of a fixed batch."""
    order = np.random.default_rng((seed, 2)).permutation(n)
    held = min(MOST_HELD, round(n * share))
    held -= held % multiple
    return np.sort(order[held:]), np.sort(order[:held])


def _tensors(feeds: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feeds.items()}

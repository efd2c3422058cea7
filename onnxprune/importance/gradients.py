"""Importances from gradients: derivatives of the loss with respect to a mask on each channel.

Every channel c gets a factor m_c on all weights that read it: m_c = 1 is the model itself, and m_c = 0 is the model without the channel
(see `onnxprune.surgery.channels`). L_n is the loss of sample n, and g_nc = dL_n/dm_c, summed over all readers, positions and filters of
the channel *before* anything is squared, so that coupled layers count as one unit. The methods are

    taylor    E_n |g_nc|            first order: Molchanov et al., 2017, "Pruning Convolutional Neural Networks for Resource Efficient
                                    Inference", eq. 8; for groups Molchanov et al., 2019, "Importance Estimation for Neural Network
                                    Pruning", eq. 8 (which squares it)
    fisher    E_n [g_nc^2] / 2      second order, the diagonal of the Fisher information: Theis et al., 2018, "Faster gaze prediction
                                    with dense networks and Fisher pruning", eq. 7; of a group: Liu et al., 2021, "Group Fisher
                                    Pruning for Practical Network Compression", eq. 6
    hessian   E_n,v [v_c (H_n v)_c] / 2     second order, the diagonal of the Hessian, with v of random signs (Hutchinson): Bekas et al.,
                                    2007, "An estimator for the diagonal of a matrix"; for pruning, by traces of weights: Yu et al., 2022,
                                    "Hessian-Aware Pruning and Optimal Neural Implant", eq. 5. Each sample has a v of its own.

The loss. `taylor` takes the cross-entropy with the labels, or, without labels, with the most likely class of the model. The loss of the
other two is the divergence from the model's own output, in the units of `onnxprune.metrics.outputs.output_divergence`. The gradient of
that loss is 0 and its expansion to second order is H/2, so that a score estimates the divergence after one channel is deleted, in nats
for a classifier. The Hessian at the model itself is J' A A' J, where J is the derivative of the output and A A' the Hessian of the loss
there: A = diag(sqrt p) (1 - sqrt p sqrt p') per sample for a classifier. `fisher` draws a vector r of random signs, and g is the
derivative of (A r)' z. This is unbiased, as are labels drawn from the distribution of the model, but less noisy where the model is
certain. `fisher` and `hessian` estimate the same number, by noise at the output and by noise at the channels; `fisher` needs less work
and fewer draws. Labels are not used: the Hessian of a cross-entropy does not depend on them in a network of ReLUs.

Outputs without class scores count by their squared error as a share of their variance; `taylor` then takes g as `fisher` does. So it does
for all kinds of distances that take no class scores; see `onnxprune.metrics.distances`.
All scores are in the units of the loss, over the whole network, so that scores of different layers can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxprune.calibration.batches import Calibration
from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.graph.model import Model, inputs_of
from onnxprune.importance.weights import ScoringInputs
from onnxprune.metrics.distances import AUTO, SCORES, takes_class_scores
from onnxprune.metrics.output_distance import Look, OutputDistance
from onnxprune.runtime.session import Feeds
from onnxprune.torch_backend import output_losses
from onnxprune.torch_backend.batches import fixed_batch, tensors
from onnxprune.torch_backend.executor import Executor
from onnxprune.torch_backend.losses import LEAST, are_probabilities
from onnxprune.torch_backend.losses import scores as classes
from onnxprune.types import FloatArray, IntArray, Trace

DRAWS = {"taylor": 1, "fisher": 4, "hessian": 16}
"""Random vectors per sample."""
HELD, HELD_TWICE = 3, 9
"""Memory of torch for first and second derivatives, about, in sizes of all activations of a batch."""
LEAST_DIRECTIONS, DIRECTIONS = 4, 32
"""Range of the number of random vectors, for all samples together, that changes of weights are judged by; memory decides."""
TINY = 1e-12
"""Magnitude of a weight below which its gradient cannot be computed from the gradient of its mask."""
Array = np.ndarray[Any, Any]
Chunk = tuple[Feeds, Array | None]
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Site:
    """Place of a mask: input `input` of node `node`, which has `rank` axes, and holds `channels` (-1: no mask) along `axis`.

    Each sample has its own mask over `rows` indices of the first axis; 0: all samples share one mask, because it lies on a weight, or on
    an activation whose first axis does not hold the samples.
    """

    node: int
    input: int
    axis: int
    channels: IntArray
    rank: int
    rows: int


def sites(model: Model, trace: Trace) -> list[Site]:
    """Return the places of masks at which a mask of 0 equals deletion.

    A mask lies on the activation that a weight reads, so that each sample can have its own; where the channel axis of the activation is
    not known, on the weight. Sums over channels without a weight are masked as well. No factor expresses other statistics, which run
    over the channels left after a deletion: their readers are masked, and repair corrects the rest.
    """
    found: dict[tuple[int, int, int], Site] = {}
    batch = trace.samples

    def add(node: int, i: int, axis: int, channels: IntArray, rank: int, rows: int) -> None:
        old = found.get((node, i, axis))
        channels = channels if old is None else np.where(old.channels >= 0, old.channels, channels)
        found[node, i, axis] = Site(node, i, axis, channels, rank, rows)

    def on_activation(node: int, i: int, axis: int, channels: IntArray) -> None:
        shape = trace.shapes[model.graph.nodes[node].inputs[i].name]
        led = axis != 0 and shape[0] % batch == 0 and (batch > 1 or shape[0] == 1)
        add(node, i, axis, channels, len(shape), shape[0] // batch if led else 0)

    for fact in trace.slices:
        if fact.role != "reads":
            continue
        read = np.unique(fact.channels[fact.channels >= 0])
        node, weight = model.graph.nodes[fact.layer], fact.input
        if fact.layer != fact.node:  # a separate node dequantizes the weight
            name = model.graph.nodes[fact.node].outputs[0].name
            weight = next(i for i, tensor in enumerate(node.inputs) if tensor.name == name)
        carried = ((i, *trace.carried[x.name]) for i, x in enumerate(node.inputs) if x.name in trace.carried)
        known = next(((i, axis, ids) for i, axis, ids in carried if i != weight and np.isin(read, ids).all()), None)
        if known is not None:
            i, axis, ids = known
            on_activation(fact.layer, i, axis, np.where(np.isin(ids, read), ids, -1))
        else:
            stored = model.graph.nodes[fact.node].inputs[fact.input]
            add(fact.layer, weight, fact.axis, fact.channels, len(stored.shape), 0)
    for summed in trace.summed:
        if summed.statistic == "sum":
            on_activation(summed.node, summed.input, summed.axis, summed.channels)
    return list(found.values())


def scores(inputs: ScoringInputs, draws: int | None = None) -> FloatArray:
    """Return the importance of every channel, (n_channels,), in units of the loss; exactly 0 where no output depends on it.

    `taylor` uses the labels of the samples, if any. A batch takes about `inputs.workspace.memory` bytes in torch, and has at least one
    sample; `draws` is the number of random vectors per sample (None: `DRAWS`).

    Raises:
        DataError: a label is out of range.
        ModelError: training does not support an operator, or a gradient is not finite.
        OptionError: no channel changes any output.
    """
    assert inputs.workspace is not None
    trace, method, calibration = inputs.trace, inputs.method, inputs.workspace.calibration
    masked = _Masked(inputs.model, trace)
    size = masked.samples_at_once(inputs.workspace.memory / (HELD_TWICE if method == "hessian" else HELD))
    loss = _Loss(masked.executor, _chunks(calibration, size), inputs.seed, inputs.workspace.distance)
    draws = draws or DRAWS[method]
    total = np.zeros(trace.n_channels)
    seen = 0
    for feeds, labels in _chunks(calibration, size):
        outputs, masks = masked.run(feeds)
        if method == "taylor":
            total += masked.gradient(loss.first_order(outputs, labels), masks).abs().sum(0).numpy()
        elif method == "fisher":
            for draw in range(draws):
                gradient = masked.gradient(loss.noise(outputs), masks, again=draw < draws - 1)
                total += gradient.square().sum(0).numpy() / (2 * draws)
        else:
            total += masked.curvature(loss.divergence(outputs), masks, draws, loss.generator).numpy() / 2
        seen += _count(feeds)
        if not np.isfinite(total).all():
            raise ModelError(
                f"--importance {method} finds gradients that are not finite",
                where=f"samples {seen - _count(feeds)} to {seen - 1} of {calibration.data.name}",
                why="an operator has no finite derivative there, or an output is not finite",
                hint="use --importance obs, which needs no gradients",
            )
        if inputs.progress:
            inputs.progress(min(1.0, seen / len(calibration.data)))
    if trace.n_channels and not total.any():
        raise OptionError(
            f"--importance {method} finds nothing to rank",
            why="no gradient reaches any channel: the outputs do not depend on them, or an operator in between has no gradient",
            hint="use --importance obs, which needs no gradients",
        )
    return np.maximum(total / max(1, seen), 0)  # the true diagonal is nowhere negative, its estimate may be


def of_weights(
    model: Model,
    trace: Trace,
    calibration: Calibration,
    method: str,
    weights: Mapping[int, int],
    *,
    memory: float = 1e9,
    seed: int = 0,
    progress: Progress | None = None,
    distance: str = AUTO,
) -> tuple[dict[int, Array], int]:
    """Return random directions of the weights of layers, from which `of_change` estimates the loss after any change.

    `_Loss.noise` draws signs for each sample, so that gradients may be summed over the samples before they are squared: the products of
    different samples have mean 0. `hessian` equals `fisher` here. `weights` maps each node to the input that holds its weight, `distance`
    is a kind of `onnxprune.metrics.distances`. Returns (draws, *weight) by node, and the number of samples.
    """
    stored = {n: model.graph.nodes[n].inputs[i].values for n, i in weights.items()}
    masked = _Masked(model, trace)
    size = masked.samples_at_once(memory / 2 / (HELD_TWICE if method == "hessian" else HELD))
    loss = _Loss(masked.executor, _chunks(calibration, size), seed, distance)
    elements = sum(value.size for value in stored.values())
    draws = 1 if method == "taylor" else int(np.clip(memory / 2 / (4 * max(1, elements)), LEAST_DIRECTIONS, DIRECTIONS))
    total = {n: np.zeros((draws, *value.shape), dtype=np.float32) for n, value in stored.items()}
    seen = 0
    for feeds, labels in _chunks(calibration, size):
        masks = {key: torch.ones(stored[key[0]].shape, requires_grad=True) for key in weights.items()}
        outputs = masked.executor(tensors(feeds), masks=masks)
        for draw in range(draws):
            value = loss.first_order(outputs, labels) if method == "taylor" else loss.noise(outputs)
            for n, gradient in zip(weights, _grad(value, list(masks.values()), again=draw < draws - 1), strict=True):
                total[n][draw] += gradient.numpy()
        seen += _count(feeds)
        if progress:
            progress(min(1.0, seen / len(calibration.data)))
    for n, value in stored.items():  # the gradient of a mask is the gradient of the weight times the weight
        total[n] = np.divide(total[n], value, out=np.zeros_like(total[n]), where=np.abs(value) > TINY)
    return total, seen


def of_change(directions: Array, change: Array, samples: int) -> float:
    """Return the expected rise of the loss per sample after `change` is added to a weight.

    `directions` are (draws, *weight) of `of_weights` over `samples` samples; one draw gives a first-order estimate.
    """
    along = np.tensordot(directions.astype(np.float64), change, axes=change.ndim)
    if len(directions) == 1:
        return float(np.abs(along[0]) / samples)
    return float(np.mean(along**2) / (2 * samples))


class _Masked:
    """A model with masks on its channels, and derivatives with respect to the masks."""

    def __init__(self, model: Model, trace: Trace) -> None:
        fixed_batch(inputs_of(model))
        self.executor, self.trace, self.n_channels = Executor(model, trained=False), trace, trace.n_channels
        self.places = sites(model, trace)
        self.apart = all(site.rows for site in self.places)
        """Whether each sample of a batch has its own masks; else a batch is one unit."""
        channels = (np.where(site.channels < 0, self.n_channels, site.channels) for site in self.places)
        self.index = [torch.from_numpy(each) for each in channels]

    def samples_at_once(self, memory: float) -> int:
        """Return the number of samples whose activations fit into `memory` bytes; 1 where samples cannot have their own masks."""
        model, trace = self.executor.model, self.trace
        if model.signature.fixed is not None:
            return model.signature.fixed
        names = {tensor.name for node in model.graph.nodes for tensor in node.outputs if tensor.name in trace.shapes}
        bytes_each = 4 * sum(math.prod(trace.shapes[name]) for name in names) / trace.samples
        return max(1, int(memory / max(1.0, bytes_each))) if self.apart else 1

    def run(self, feeds: Feeds) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the outputs, and the masks that the outputs depend on."""
        count = _count(feeds)
        masks: list[Tensor] = []
        by_input: dict[tuple[int, int], Tensor] = {}
        for site in self.places:
            shape = [max(1, site.rows * count)] + [1] * (site.rank - 1)
            shape[site.axis] = site.channels.size
            masks.append(torch.ones(shape, requires_grad=True))
            key = site.node, site.input
            by_input[key] = by_input[key] * masks[-1] if key in by_input else masks[-1]
        return self.executor(tensors(feeds), masks=by_input), masks

    def gradient(self, loss: Tensor, masks: list[Tensor], *, again: bool = False) -> Tensor:
        """Return the derivative of a loss, (units, n_channels); `again` keeps the graph for another derivative."""
        return self._per_channel(_grad(loss, masks, again=again), masks)

    def curvature(self, loss: Tensor, masks: list[Tensor], draws: int, generator: torch.Generator) -> Tensor:
        """Return an estimate of the diagonal of the Hessian, (n_channels,), summed over the samples."""
        first = _grad(loss, masks, twice=True)
        total = torch.zeros(self.n_channels, dtype=torch.float64)
        for draw in range(draws):
            units = self._units(masks)
            signs = torch.randint(0, 2, (units, self.n_channels + 1), generator=generator) * 2.0 - 1
            along = torch.zeros(())
            for g, site, index in zip(first, self.places, self.index, strict=True):
                v = signs[:, index]
                v = v.repeat_interleave(g.shape[0] // units, 0) if site.rows else v
                along = along + (g * v.reshape(g.shape)).sum()
            if along.requires_grad:  # else the loss is linear in all masks
                second = self._per_channel(_grad(along, masks, again=draw < draws - 1), masks)
                total += (signs[:, :-1] * second).sum(0) / draws
        return total

    def _units(self, masks: list[Tensor]) -> int:
        return masks[0].shape[0] // self.places[0].rows if self.apart and masks else 1

    def _per_channel(self, gradients: Sequence[Tensor], masks: list[Tensor]) -> Tensor:
        """Sum the derivatives of all masks of each channel, (units, n_channels)."""
        units = self._units(masks)
        total = torch.zeros(units, self.n_channels + 1, dtype=torch.float64)
        for g, index in zip(gradients, self.index, strict=True):
            total.index_add_(1, index, g.double().reshape(units, -1, index.numel()).sum(1))
        return total[:, :-1]


class _Loss:
    """The losses that are differentiated; see the docstring of the module."""

    def __init__(self, executor: Executor, chunks: Iterable[Chunk], seed: int, kind: str = AUTO) -> None:
        self.names = [value.name for value in executor.model.graph.outputs]
        self.generator = torch.Generator().manual_seed(seed)
        self.classifier: str | None = None
        self.probabilities = False
        self.labelled = kind == SCORES
        self.distances: dict[str, tuple[OutputDistance, float]] = {}
        """Distance of each output, and its values per sample; for kinds that take no class scores."""
        self.weights: dict[str, float] = {}
        """Weight of the squared error of one element, by output; for models without class scores."""
        if not takes_class_scores(kind):
            self._look(executor, chunks, kind)
            return
        sums: dict[str, Array] = {}
        samples = 0
        for feeds, _ in chunks:
            samples += _count(feeds)
            with torch.no_grad():
                outputs = executor(tensors(feeds))
            self.classifier = next((name for name in self.names if self._scores(outputs, name) is not None), None)
            if self.classifier is not None:  # decided as in `onnxprune.metrics.outputs`
                self.probabilities = are_probabilities(outputs[self.classifier], labelled=self.labelled)
                return
            for name in self.names:
                x = outputs[name]
                if x.is_floating_point() and x.numel():
                    part = np.array([x.numel(), float(x.double().sum()), float(x.double().square().sum())])
                    sums[name] = sums.get(name, np.zeros(3)) + part
        self.weights = {
            name: samples / (n * max(square / n - (mean / n) ** 2, 1e-30) * len(sums))
            for name, (n, mean, square) in sums.items()
        }

    def _look(self, executor: Executor, chunks: Iterable[Chunk], kind: str) -> None:
        """Find the distance of each output, and the number of its values per sample."""
        samples = 0
        looks = {name: Look(kind) for name in self.names}
        for feeds, _ in chunks:
            samples += _count(feeds)
            with torch.no_grad():
                outputs = executor(tensors(feeds))
            for name, look in looks.items():
                look.add(outputs[name].numpy())
        found = {name: (look.distance(), look.size / samples) for name, look in looks.items()}
        self.distances = {name: (each, size) for name, (each, size) in found.items() if each is not None}

    def _of_kind(self, outputs: dict[str, Tensor]) -> Iterator[tuple[OutputDistance, Tensor, float]]:
        """Yield the distance of each output, the output, and the factor of its mean in the sum over the samples."""
        errors = sum(found.measure == "error" for found, _ in self.distances.values())
        for name, (found, size) in self.distances.items():
            alike = errors if found.measure == "error" else len(self.distances) - errors
            yield found, outputs[name], outputs[name].numel() / size / alike

    def first_order(self, outputs: dict[str, Tensor], labels: Array | None) -> Tensor:
        """Return the cross-entropy with the labels, or with the most likely class; summed over the samples."""
        if self.classifier is None:
            return self.noise(outputs)
        log_p = self._log_probabilities(outputs)
        if labels is None:
            return -log_p.amax(1).sum()
        if labels.max() >= log_p.shape[1]:
            raise DataError(
                "a label is out of range",
                why=f"the largest is {labels.max()}, the model has {log_p.shape[1]} classes",
                hint="check that the labels belong to this model, or leave them out",
            )
        return -log_p.gather(1, torch.from_numpy(labels)[:, None]).sum()

    def noise(self, outputs: dict[str, Tensor]) -> Tensor:
        """Return the outputs times noise whose covariance is the Hessian of the divergence; summed over the samples."""
        if self.classifier is not None:
            log_p = self._log_probabilities(outputs)
            root = (log_p.detach() / 2).exp()
            signed = root * self._signs(root)
            return (signed * log_p).sum()  # the gradient of log p makes r sqrt(p) into A r
        total = torch.zeros(())
        for found, z, factor in self._of_kind(outputs):
            total = total + math.sqrt(factor) * output_losses.noise(found, z, self.generator)
        for name, weight in self.weights.items():
            z = outputs[name]
            total = total + math.sqrt(2 * weight) * (z * self._signs(z)).sum()
        return total

    def divergence(self, outputs: dict[str, Tensor]) -> Tensor:
        """Return the divergence from the same outputs, up to a constant, summed over the samples: only its curvature is not 0."""
        if self.classifier is not None:
            log_p = self._log_probabilities(outputs)
            return -(log_p.detach().exp() * log_p).sum()
        total = torch.zeros(())
        for found, z, factor in self._of_kind(outputs):
            total = total + factor * output_losses.distance(found, z, z.detach())
        for name, weight in self.weights.items():
            z = outputs[name]
            total = total + weight * (z - z.detach()).square().sum()
        return total

    def _scores(self, outputs: dict[str, Tensor], name: str) -> Tensor | None:
        return classes(outputs[name], labelled=self.labelled)

    def _log_probabilities(self, outputs: dict[str, Tensor]) -> Tensor:
        assert self.classifier is not None
        x = self._scores(outputs, self.classifier)
        assert x is not None
        return x.clamp_min(LEAST).log() if self.probabilities else x.log_softmax(1)

    def _signs(self, like: Tensor) -> Tensor:
        return torch.randint(0, 2, like.shape, generator=self.generator).to(like.dtype) * 2 - 1


def _grad(loss: Tensor, masks: list[Tensor], *, again: bool = False, twice: bool = False) -> Sequence[Tensor]:
    """Return the derivative with respect to each mask, 0 where the loss does not depend on a mask.

    `again` keeps the graph for another derivative, `twice` makes the result differentiable.
    """
    if not loss.requires_grad:
        return [torch.zeros_like(mask) for mask in masks]
    found: Sequence[Tensor] = torch.autograd.grad(
        loss, masks, retain_graph=again or twice, create_graph=twice, allow_unused=True, materialize_grads=True
    )
    return found


def _chunks(calibration: Calibration, size: int) -> Iterator[Chunk]:
    """Yield batches of at most `size` samples, and their labels."""
    start, numbers = 0, calibration.data.class_labels
    for feeds in calibration:
        count = _count(feeds)
        for at in range(0, count, size):
            stop = min(at + size, count)
            labels = None if numbers is None else numbers[start + at : start + stop]
            yield {name: x[at:stop] for name, x in feeds.items()}, labels
        start += count


def _count(feeds: Feeds) -> int:
    return len(next(iter(feeds.values())))

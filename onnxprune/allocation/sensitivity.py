"""What the output loses as each group by itself loses channels: the model is run with each, readers repaired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxprune.calibration.batches import Calibration
from onnxprune.calibration.capture import ActivationStore, LayerwiseRunner
from onnxprune.graph.model import Model
from onnxprune.graph.readers import linear_of
from onnxprune.importance.obs import Removal
from onnxprune.metrics.outputs import output_divergence
from onnxprune.repair.network import MOST_SAMPLES, held_batches, outputs_of
from onnxprune.surgery.mask import mask
from onnxprune.types import Curve, Trace

Array = np.ndarray[Any, Any]
WORK = 3e12
"""Multiply-accumulates that all measurements together may take; the number of samples follows from it."""
LEAST_SAMPLES = 16
BROKEN = 1e6
"""Loss of an output that is not finite."""
FLAT = 1e-9
"""Loss of a first channel at least: what nothing was seen of still has an order."""


def curves(
    model: Model,
    trace: Trace,
    removals: Sequence[Removal],
    calibration: Calibration,
    macs: float,
    store: ActivationStore,
    progress: Callable[[float], None] | None = None,
    of: int | None = None,
) -> tuple[Curve, ...]:
    """Measure every group at the numbers of channels for which its removal has weights.

    The part of the network before a group runs once. Samples are those held out, as many as `WORK` allows. Between measurements a
    curve rises as the error of the readers does, which is as convex as the loss of the output: on straight lines the numbers that
    were measured would look better than those between.

    Args:
        model: the original.
        trace: its facts.
        removals: one per group.
        calibration: the samples.
        macs: of the model, per sample.
        store: where activations and the weights of `removals` are.
        progress: called with the share that is done.
        of: measurements that `WORK` is for, where these are a part of them; None: these.
    """
    first = {removal.group.name: _first_reader(trace, removal) for removal in removals}
    points = sum(len(removal.weights) for removal in removals)
    probe = Probe(model, calibration, macs * (of or points), store)
    found: dict[str, Curve] = {}
    done = 0
    for removal in sorted(removals, key=lambda removal: first[removal.group.name]):
        probe.advance(first[removal.group.name])
        losses = []
        for gone, weights in removal.weights.items():
            keep = np.ones(trace.n_channels, dtype=bool)
            keep[removal.order[:gone]] = False
            variant = mask(model, trace, keep)
            aligned = len(variant.graph.nodes) == len(model.graph.nodes)  # else a mask was put on an activation
            for node, (matrix, bias) in weights.items():
                layer = linear_of(_same(variant, model, node, aligned))
                assert layer is not None
                layer.write(store.get(matrix), store.get(bias) if layer.has_bias else None)
            losses.append(probe.loss(variant, aligned=aligned))
            done += 1
            if progress:
                progress(done / points)
        values = np.maximum.accumulate(np.clip([0.0, *losses], 0, BROKEN))
        values[1:] = np.maximum(values[1:], FLAT)
        counts = np.array([0, *removal.weights], dtype=np.int64)
        guide = np.maximum.accumulate(np.concatenate([[0.0], removal.losses]))
        found[removal.group.name] = Curve(removal.group.name, removal.order, counts, values, guide)
    probe.close()
    return tuple(found[removal.group.name] for removal in removals)


class Probe:
    """Measures what the output of a model loses with one layer changed; what lies before it runs once.

    Args:
        model: the original.
        calibration: the samples; those that are held out are used, as many as `WORK` allows.
        macs: of the model, per sample, times the measurements that there will be.
        store: where activations are.
    """

    def __init__(self, model: Model, calibration: Calibration, macs: float, store: ActivationStore) -> None:
        samples = int(np.clip(WORK / max(1.0, macs / 2), LEAST_SAMPLES, MOST_SAMPLES))
        self._batches = held_batches(calibration, samples)
        self._stream = LayerwiseRunner(model, self._batches, store)
        self._reference = self._stream.finish(model)

    def advance(self, n: int) -> None:
        """Run up to the inputs of node n; nodes are asked for in the order in which they run."""
        if n < len(self._stream.nodes):
            self._stream.advance(self._stream.inputs[n])

    def mean(self, name: str, axis: int) -> Array:
        """Return the mean of a tensor that `advance` was asked for over all its axes but one."""
        stream = self._stream
        values = [np.moveaxis(stream.read(name, batch), axis, 0) for batch in range(stream.n_batches)]
        flat = np.concatenate([value.reshape(value.shape[0], -1) for value in values], axis=1)
        return np.asarray(flat.mean(axis=1, dtype=np.float64))

    def loss(self, variant: Model, *, aligned: bool = True) -> float:
        """Return the divergence of the output; `aligned`: the nodes are those of the model, in the same order."""
        outputs = self._stream.finish(variant) if aligned else outputs_of(variant, self._batches)
        return output_divergence(self._reference, outputs)

    def close(self) -> None:
        """Forget the activations."""
        self._stream.close()


def _first_reader(trace: Trace, removal: Removal) -> int:
    """Return the first node that reads a channel of a group."""
    mine = np.zeros(trace.n_channels + 1, dtype=bool)
    mine[removal.order] = True
    nodes = [fact.node for fact in trace.slices if fact.role == "reads" and mine[fact.channels].any()]
    nodes += [fact.node for fact in trace.summed if mine[fact.channels].any()]
    return min(nodes, default=len(trace.labels))


def _same(variant: Model, model: Model, node: int, aligned: bool) -> Any:
    """Return a node of the variant by its number in the model."""
    if aligned:
        return variant.graph.nodes[node]
    output = model.graph.nodes[node].outputs[0].name
    return next(found for found in variant.graph.nodes if found.outputs and found.outputs[0].name == output)

"""The loss of the output as each group by itself loses channels, measured on the model with the readers repaired."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.calibration.capture import LayerwiseRunner
from onnxprune.calibration.workspace import Workspace
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.comparison_points import measured_tensors
from onnxprune.graph.linear import share_one_weight, write_together
from onnxprune.graph.model import Model
from onnxprune.graph.readers import linear_layers, linear_of, units_of
from onnxprune.importance.obs import Removal
from onnxprune.metrics.outputs import Outputs, output_divergence
from onnxprune.repair.network import MOST_SAMPLES, held_batches, measured_of
from onnxprune.runtime.session import DEFAULT, SessionConfig
from onnxprune.surgery.mask import mask
from onnxprune.types import Curve, FloatArray, Trace

WORK = 3e12
"""Multiply-accumulates of all measurements together; the number of samples follows from it."""
LEAST_SAMPLES, LEAST_DENSE = 16, 4
DENSE = 4096
"""Values of all outputs per sample, from which `LEAST_DENSE` samples are as many as `LEAST_SAMPLES` rows of scores, and more."""
BROKEN = 1e6
"""Loss of an output that is not finite."""
FLAT = 1e-9
"""Least loss of a first channel, so that channels without an effect still have an order."""


def curves(
    analysis: Analysis,
    removals: Sequence[Removal],
    workspace: Workspace,
    progress: Callable[[float], None] | None = None,
    of: int | None = None,
    config: SessionConfig | None = None,
) -> tuple[Curve, ...]:
    """Measure the loss of every group at the numbers of channels for which its removal has weights.

    The part of the network before a group runs once. Between measurements a curve rises as the error of the readers
    does, which is as convex as the loss of the output. On straight lines the measured numbers would look better than
    those between.

    Args:
        analysis: of the original.
        removals: one per group; their weights are in the store of the workspace.
        workspace: calibration samples; as many held-out samples are used as `WORK` allows.
        progress: called with the share that is done.
        of: number of measurements that `WORK` is for, where these are a part of them; None: these.
        config: how the models run whose outputs are compared; None: the nodes behind a group alone, on the CPU.
    """
    model, trace, store = analysis.model, analysis.trace, workspace.store
    first = {removal.group.name: _first_reader(trace, removal) for removal in removals}
    points = sum(len(removal.weights) for removal in removals)
    probe = Probe(analysis, workspace, of or points, config)
    found: dict[str, Curve] = {}
    done = 0
    units = {unit.nodes[0]: unit for unit in units_of(model.graph, linear_layers(model.graph))}
    for removal in sorted(removals, key=lambda removal: first[removal.group.name]):
        probe.advance(first[removal.group.name])
        losses = []
        for gone, weights in removal.weights.items():
            keep = np.ones(trace.n_channels, dtype=bool)
            keep[removal.order[:gone]] = False
            variant = mask(model, trace, keep)
            aligned = len(variant.graph.nodes) == len(model.graph.nodes)  # else a mask was put on an activation
            by_output = {node.outputs[0].name: node for node in variant.graph.nodes if node.outputs}
            for node, (matrix, bias) in weights.items():
                together = [linear_of(by_output[model.graph.nodes[n].outputs[0].name]) for n in units[node].nodes]
                layers = [layer for layer in together if layer is not None]
                share_one_weight(layers)
                layers[0].write(store.get(matrix), None)
                if all(layer.has_bias for layer in layers) and not units[node].fixed_bias:
                    write_together(layers, None, store.get(bias) - layers[0].effective()[1])
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
    """Measures the loss of the output of a model with one layer changed; the part before this layer runs once.

    Args:
        analysis: of the model.
        workspace: calibration samples; as many held-out samples are used as `WORK` allows.
        measurements: how many there will be.
        config: as for `curves`.
    """

    def __init__(
        self, analysis: Analysis, workspace: Workspace, measurements: int, config: SessionConfig | None = None
    ) -> None:
        macs = analysis.cost.totals(np.ones(analysis.trace.n_channels, dtype=bool))[0] * measurements
        self._model, self._measured = analysis.model, measured_tensors(analysis.model.graph)
        names = self._measured.names
        values = sum(math.prod(analysis.trace.shapes.get(name, ())) for name in names) / analysis.trace.samples
        least = LEAST_DENSE if values >= DENSE else LEAST_SAMPLES
        samples = int(np.clip(WORK / max(1.0, macs / 2), least, MOST_SAMPLES))
        self._kind = workspace.distance
        self._batches = held_batches(workspace.calibration.plain, samples)
        self._runner = LayerwiseRunner(analysis.model, self._batches, workspace.store, names)
        self._runner.hold(self._measured.points)
        self._config = config
        self._reference = self._runner.finish(analysis.model) if config is None else self._whole(analysis.model)

    def advance(self, n: int) -> None:
        """Run up to the inputs of node n; nodes are asked for in graph order."""
        if n < len(self._runner.nodes):
            self._runner.advance(self._runner.inputs[n])

    def mean(self, name: str, axis: int) -> FloatArray:
        """Return the mean of an input of the current node over all axes but one, which keep size 1."""
        values = [np.moveaxis(self._runner.read(name, batch), axis, 0) for batch in range(self._runner.n_batches)]
        flat = np.concatenate([value.reshape(value.shape[0], -1) for value in values], axis=1)
        others = tuple(other for other in range(values[0].ndim) if other != axis)
        return np.expand_dims(flat.mean(axis=1, dtype=np.float64), others)

    def loss(self, variant: Model, *, aligned: bool = True) -> float:
        """Return the divergence of the output; `aligned`: the variant has the nodes of the model in the same order."""
        outputs = self._runner.finish(variant) if aligned and self._config is None else self._whole(variant)
        return output_divergence(self._reference, outputs, scores=not self._measured.points, kind=self._kind)

    def _whole(self, variant: Model) -> Outputs:
        """Return what is measured of a model that runs as a whole."""
        return measured_of(self._model, variant, self._batches, self._measured, self._config or DEFAULT)

    def close(self) -> None:
        """Forget the activations."""
        self._runner.close()


def _first_reader(trace: Trace, removal: Removal) -> int:
    """Return the first node that reads a channel of a group."""
    mine = np.zeros(trace.n_channels + 1, dtype=bool)
    mine[removal.order] = True
    nodes = [fact.node for fact in trace.slices if fact.role == "reads" and mine[fact.channels].any()]
    nodes += [fact.node for fact in trace.summed if mine[fact.channels].any()]
    return min(nodes, default=len(trace.labels))

"""Closed-form repair: every layer behind a cut is refitted, in order, to its output in the original model.

With X the rows of a layer's input in the pruned model so far and Y the rows of its output in the original, restricted
to the surviving channels,

    min over D, c of |(W + D) X + b + c - Y|^2 + lambda |D|^2

(DESIGN.md, "Repair"; the reconstruction of He et al., 2017, "Channel Pruning for Accelerating Very Deep Neural
Networks", eq. 2, made in sequence and on every coupled layer). Four refinements:

- where a layer feeds an Add, the target is the sum less the other term, so that a residual branch also corrects the
  error of the stream;
- errors on the flat part of a Relu or a saturating activation do not count: where the original lies on it, so may the
  repaired model, anywhere (Zhang et al., 2015, "Accelerating Very Deep Convolutional Networks", eq. 8). The problem is
  solved by turns: targets move onto the prediction where both are flat, then the fit is repeated with the same
  factorized matrix;
- the penalty is chosen on held-out rows, and a layer whose error on them does not fall keeps its weights;
- the layers of a chain, between which no other layer reads, are then fitted to their last output together, since
  survivors in between need not keep their values (`onnxprune.repair.block_reconstruction`); the last of them is fitted
  once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.calibration.capture import LayerwiseRunner
from onnxprune.calibration.moments import threads_for
from onnxprune.calibration.workspace import Workspace
from onnxprune.errors import ProofError
from onnxprune.graph.linear import Linear
from onnxprune.graph.model import Model
from onnxprune.graph.operators import spec_of
from onnxprune.graph.readers import Unit, linear_layers, units_of
from onnxprune.graph.saturation import UNBOUNDED, Flat
from onnxprune.repair import block_reconstruction
from onnxprune.repair.layer_chain import LayerChain, chain_of
from onnxprune.repair.layer_fit import LayerFit, LayerTarget, Sampled, balanced, row_budget, sample_rows
from onnxprune.repair.unit_order import in_order
from onnxprune.types import Array, BoolArray, Repaired, Trace

LEAST_GAIN = 1e-6
"""Share of the error that a change must remove."""
DEPTH = 5
"""Largest number of layers that are fitted together; more take longer and gain little."""
CHAIN_TURNS = 3
"""Largest number of turns of each layer chain; a layer is in as many chains as layers are fitted together."""
CHAIN_ROWS = 50_000
"""Approximate number of target positions on which a chain is fitted; whole samples are taken."""
LEAST_SAMPLES = 32
"""Smallest number of samples for a chain; with fewer the chain is not fitted."""
WORK = 3e12
"""Largest number of multiply-accumulates of all chain fits; beyond it chains are shortened, then turns are dropped."""


@dataclass(frozen=True)
class RepairTask:
    """The models of a repair, and the selection.

    Attributes:
        reference: model whose tensors are the targets, by name; a layer whose output the reference lacks is only fitted
            in a chain.
        pruned: the traced model without the channels that are not in `keep`.
        trace: facts of the traced model: the reference, or the reference after layer edits.
        keep: (n_channels,) True where a channel stays.
        changed: tensors whose layers differ from those of the reference, and are not repaired yet.
        depth: largest number of layers that are fitted together; 1: each layer alone.
        adds_biases: whether a layer that has no bias may get one.
    """

    reference: Model
    pruned: Model
    trace: Trace
    keep: BoolArray
    changed: Set[str] = frozenset()
    depth: int = DEPTH
    adds_biases: bool = True

    def layers(self, model: Model) -> dict[int, Linear]:
        """Return the layers of a model that are fitted, by node number."""
        found = linear_layers(model.graph)
        if self.adds_biases:
            return found
        return {n: layer if layer.bias_place else replace(layer, bias=None) for n, layer in found.items()}


def repair(
    task: RepairTask,
    workspace: Workspace,
    *,
    only_bias: bool = False,
    progress: Callable[[float], None] | None = None,
) -> tuple[Model, tuple[Repaired, ...]]:
    """Refit the layers of a pruned model, in the order in which they run.

    Args:
        task: the models and the selection.
        workspace: calibration samples, and the memory for activations and sums.
        only_bias: weights stay and only biases are fitted (bias correction by the mean).
        progress: called with the share of layers that is done.

    Returns:
        The repaired model, and one record for each layer.
    """
    return _Repair(task, workspace, only_bias).run(progress)


class _Repair:
    """One repair: both models, run layer by layer."""

    def __init__(self, task: RepairTask, workspace: Workspace, only_bias: bool) -> None:
        self.trace, self.changed, self.only_bias = task.trace, task.changed, only_bias
        self.calibration, self.memory = workspace.calibration, workspace.memory
        self.model = task.pruned.copy()
        self.before = LayerwiseRunner(task.reference, self.calibration, workspace.store)
        self.after = LayerwiseRunner(self.model, self.calibration, workspace.store)
        self.alive = np.append(task.keep, True)
        self.cut = {f.node for f in self.trace.slices if not self.alive[f.channels].all()}
        self.layers = task.layers(self.model)
        self.units = in_order(units_of(self.model.graph, self.layers), self.after)
        self.jobs = list(self._jobs())
        self.chains = {} if only_bias else self._chains(task.depth)

    def run(self, progress: Callable[[float], None] | None) -> tuple[Model, tuple[Repaired, ...]]:
        """Refit all layers; see `repair`."""
        before, after = self.before, self.after
        done: dict[int, Repaired] = {}
        together: dict[int, Repaired] = {}
        before.lasting = {job.target for _, jobs in self.jobs for job in jobs}
        for number, (unit, jobs) in enumerate(self.jobs):
            later = (self.chains[job.node] for _, some in self.jobs[number:] for job in some if job.node in self.chains)
            seen = [name for job in jobs for name in (job.x, job.other) if name]
            again = after.dependents(unit.nodes, seen)
            # steps of a recurrence run before the layers in them are fitted: the inputs of these layers stay
            ahead = {name for _, some in self.jobs[number:] for job in some for name in (job.x, job.other) if name}
            after.lasting = {name for chain in later for name in chain.taken} | after.taken(again) | ahead
            before.lasting -= {job.target for job in jobs}
            before.advance([job.target for job in jobs])
            job = jobs[0]
            with threads_for(job.layer.matrix(job.layer.values).shape[2]):
                after.advance(seen)
                found = self._fit(unit, jobs)
                chain = self.chains.get(job.node)
                if chain is not None and found.rows and after.may_rewind(chain.nodes, chain.layers):
                    errors = self._fit_chain(job, chain)
                    if errors is not None:
                        after.rewind(chain.nodes)
                        found = self._fit_again(unit, jobs, seen, found)
                        for n, layer in chain.layers.items():
                            features = layer.effective()[0].shape[2]
                            record = Repaired(self.trace.labels[n], found.rows, features, *errors, np.inf)
                            together.setdefault(n, record)
                elif again:  # inputs of later layers have changed with the weight
                    after.rewind(again)
                    found = self._fit_again(unit, jobs, seen, found)
            after.rewind(again)
            done |= {job.node: replace(found, label=self.trace.labels[job.node]) for job in jobs}
            if progress:
                progress((number + 1) / len(self.jobs))
        after.lasting = set()
        before.close()
        after.close()
        own = {n: layer for n, layer in done.items() if layer.after < layer.before}
        return self.model, tuple(layer for _, layer in sorted({**done, **together, **own}.items()))

    def _jobs(self) -> Iterator[tuple[Unit, tuple[LayerTarget, ...]]]:
        """Yield every unit with a layer that changed, or whose input changed, where the reference has all its outputs."""
        touched = self._touched()
        place = {n: number for number, unit in enumerate(self.units) for n in unit.nodes}
        for unit in self.units:
            if touched.isdisjoint(unit.nodes) or (unit.fixed and unit.fixed_bias):
                continue
            jobs = [self._target(n, place, alone=len(unit.nodes) == 1) for n in unit.nodes]
            if all(job.target in self.before.producer for job in jobs):
                yield unit, tuple(jobs)

    def _touched(self) -> set[int]:
        """Return the linear layers that changed, or whose input changed."""
        stream, trace, alive = self.after, self.trace, self.alive
        reads = {f.node for f in trace.slices if f.role == "reads" and not alive[f.channels].all()}
        touched: set[str] = set()
        found: set[int] = set()
        for n, names in enumerate(stream.inputs):
            new = any(t.name in self.changed for t in stream.nodes[n].outputs)
            layer = self.layers.get(n)
            if layer is not None and (new or n in reads or stream.nodes[n].inputs[layer.x].name in touched):
                found.add(n)
            if n in self.cut or new or not touched.isdisjoint(names):
                touched |= {t.name for t in stream.nodes[n].outputs}
        return found

    def _target(self, n: int, place: Mapping[int, int], *, alone: bool) -> LayerTarget:
        """Return the target of a layer: its output, or a sum where it is `alone`, not with others in a unit."""
        stream, layer = self.after, self.layers[n]
        x, y = stream.nodes[n].inputs[layer.x].name, stream.nodes[n].outputs[0].name
        other, target = _sum_of(stream, self.trace, place, n, y) if alone else (None, y)
        return LayerTarget(n, layer, x, target, other, _flat(stream, target))

    def _fit(self, unit: Unit, jobs: Sequence[LayerTarget]) -> Repaired:
        """Fit the layers of a unit, and write the weights if their error on held-out rows is lower."""
        layers = [job.layer for job in jobs]
        groups, outputs, features = layers[0].matrix(layers[0].values).shape
        label = self.trace.labels[jobs[0].node]
        total, wide = row_budget(layers[0], self.memory)
        bias = layers[0].effective()[1]
        parts: tuple[list[list[Sampled]], list[list[Sampled]]] = ([], [])
        for job in jobs:
            survivors = self._survivors(job)
            if survivors is None or int(survivors.sum()) != groups * outputs:
                return Repaired(label, 0, features, 0.0, 0.0, np.inf)
            beyond = job.layer.effective()[1] - bias
            n = -(-total // len(jobs))
            rows = sample_rows(job, self.before, self.after, survivors, self.calibration, n, beyond)
            for part, some in zip(parts, rows, strict=True):
                part.append(some)
        train, held = map(balanced, parts)
        n_rows = sum(some.x.shape[1] for some in (*train, *held))
        if not train or not held:
            return Repaired(label, n_rows, features, 0.0, 0.0, np.inf)
        fit = LayerFit(unit, layers, train, held, wide)
        at_first = fit.error(fit.start)
        weights, penalty = fit.solve(self.only_bias or unit.fixed)
        at_last = at_first if weights is None else fit.error(weights)
        if weights is None or not at_last < at_first * (1 - LEAST_GAIN):  # NaN included
            return Repaired(label, n_rows, features, at_first, at_first, np.inf)
        fit.write(weights)
        return Repaired(label, n_rows, features, at_first, at_last, penalty)

    def _fit_again(self, unit: Unit, jobs: Sequence[LayerTarget], seen: Sequence[str], found: Repaired) -> Repaired:
        """Fit a unit once more, after other weights that its inputs depend on; return one record of both fits."""
        self.after.advance(seen)
        last = self._fit(unit, jobs)
        return replace(last, before=found.before, after=min(last.after, found.before))

    def _chains(self, depth: int) -> dict[int, LayerChain]:
        """Return the chain of changed layers that ends at each layer, shortened until all work is below `WORK`."""
        stream, trace, layers = self.after, self.trace, self.layers
        targets = [jobs[0] for unit, jobs in self.jobs if unit.is_own]
        free = self.cut | {job.node for job in targets}
        free |= {n for n in layers if stream.nodes[n].outputs[0].name not in self.before.producer}
        free &= {unit.nodes[0] for unit in self.units if unit.is_own}

        def chain(job: LayerTarget, depth: int) -> LayerChain | None:
            return chain_of(stream, job.node, job.target, layers, free, trace.shapes, depth)

        found = {job.node: whole for job in targets if (whole := chain(job, depth)) is not None}
        samples = len(self.calibration) * self.calibration.batch
        for job in targets:
            if job.node not in found:
                continue
            shape = trace.shapes[job.target]
            positions = int(np.prod(shape[1:])) // shape[job.layer.channel_axis]
            for shorter in range(len(found[job.node].layers) - 1, 1, -1):
                work = found[job.node].work * _samples_of(found[job.node], positions, samples)
                if CHAIN_TURNS * work <= WORK / len(found):
                    break
                found[job.node] = chain(job, shorter) or found[job.node]
        return found

    def _fit_chain(self, job: LayerTarget, chain: LayerChain) -> tuple[float, float] | None:
        """Fit a chain to the target of its last layer, on whole samples.

        Returns:
            The mean squared error on held-out samples, before and after; None where the layers keep their weights.
        """
        before, after = self.before, self.after
        survivors = self._survivors(job)
        assert survivors is not None  # else the layer would have no rows
        y = before.read(job.target, 0)
        taken = [after.read(name, 0) for name in chain.taken]
        if any(value.ndim == 0 or len(value) != len(y) for value in taken):
            return None
        positions = job.layer.positions(y) // len(y)
        there = sum(len(before.read(job.target, batch)) for batch in range(before.n_batches))
        samples = _samples_of(chain, positions, there, self.memory)
        turns = int(min(CHAIN_TURNS, WORK / len(self.chains) / max(1.0, samples * chain.work)))
        if samples < min(there, LEAST_SAMPLES) or not turns:
            return None
        parts: tuple[list[block_reconstruction.Samples], list[block_reconstruction.Samples]] = ([], [])
        for batch in range(before.n_batches):
            y = before.read(job.target, batch)
            share = samples * (batch + 1) // before.n_batches - samples * batch // before.n_batches
            pick = np.arange(min(len(y), share))
            for part, chosen in zip(parts, self.calibration.split(batch, pick.size), strict=True):
                here = pick[chosen]
                if here.size:
                    wanted = np.compress(survivors, y[here], axis=job.layer.channel_axis)
                    inputs = {name: after.read(name, batch)[here] for name in chain.taken}
                    part.append(block_reconstruction.Samples(inputs, wanted))
        if not parts[0] or not parts[1]:
            return None
        train, held = map(block_reconstruction.joined, parts)
        first, last = block_reconstruction.fit(chain, after, job.flat, train, held, turns, self.calibration.seed)
        return (first / positions, last / positions) if last < first else None

    def _survivors(self, job: LayerTarget) -> BoolArray | None:
        """Return the mask of outputs that survive; None where these lie on another axis than the layer writes.

        Raises:
            ProofError: the target has other channels than the trace.
        """
        y: Array = self.before.read(job.target, 0)
        axis = job.layer.channel_axis % y.ndim
        carried = self.trace.carried.get(job.target)
        if carried is None:
            return np.ones(y.shape[axis], dtype=bool)
        if carried[0] != axis:
            return None
        if len(carried[1]) != y.shape[axis]:
            raise ProofError(
                "the repair target does not match the trace",
                where=self.trace.labels[job.node],
                why=f"it has {y.shape[axis]} channels, the trace has {len(carried[1])}",
                hint="nothing was written; this is a defect of onnxprune: please report it",
            )
        return self.alive[carried[1]]


def _samples_of(chain: LayerChain, positions: int, there: int, memory: float = np.inf) -> int:
    return min(there, max(LEAST_SAMPLES, -(-CHAIN_ROWS // max(1, positions))), int(min(there, memory / chain.bytes)))


def _sum_of(stream: LayerwiseRunner, trace: Trace, place: Mapping[int, int], n: int, y: str) -> tuple[str | None, str]:
    """Return the other term and the name of the sum that alone reads y, if the term is final when layer n is fitted."""
    users = stream.users.get(y, [])
    if len(users) != 1 or y in stream.results or stream.nodes[users[0]].op not in ("Add", "Sum"):
        return None, y
    add = stream.nodes[users[0]]
    others = [t for t in add.inputs if t.name != y]
    if len(others) != 1 or hasattr(others[0], "values") or trace.shapes.get(others[0].name) != trace.shapes.get(y):
        return None, y
    before = stream.ancestors([others[0].name])
    if n in before or any(place[m] > place[n] for m in before if m in place):
        return None, y
    return others[0].name, add.outputs[0].name


def _flat(stream: LayerwiseRunner, name: str) -> Flat:
    """Return the bounds beyond which no reader of a tensor distinguishes its values."""
    users = [stream.nodes[n] for n in stream.users.get(name, [])]
    if not users or name in stream.results:
        return UNBOUNDED
    bounds = [spec_of(node).saturation(node) for node in users]
    return min(low for low, _ in bounds), max(high for _, high in bounds)

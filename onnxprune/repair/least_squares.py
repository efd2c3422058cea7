"""Closed-form repair: every layer downstream of a cut is fitted anew, in order, to what it gave in the original model.

With X the rows that a layer sees in the pruned model so far and Y what it gave in the original, restricted to what survives,

    min over D, c of |(W + D) X + b + c - Y|^2 + lambda |D|^2

(DESIGN.md, "Repair"; the same idea as the reconstruction of He et al., 2017, "Channel Pruning for Accelerating Very Deep Neural
Networks", eq. 2, made in sequence and on every coupled layer). Four refinements:

- where a layer feeds an Add, the target is the sum, less what the other branch now gives, so that a residual branch also corrects the
  error of the stream;
- what a Relu or a saturating activation cuts off does not count: where the original lies on the flat part, so may the repaired model,
  anywhere (Zhang et al., 2015, "Accelerating Very Deep Convolutional Networks", eq. 8). That is solved by turns: targets are
  moved onto the prediction where both are flat, then the fit is made again, with the same factorised matrix;
- the penalty is chosen on rows that were held out, and a layer whose error on these does not fall keeps its weights;
- where nothing else sees what lies between, the layers up to a target are then fitted to it together, as survivors in between need not
  be what they were (`onnxprune.repair.block_reconstruction`). That makes up for more than any fit of one layer can; the last of them is fitted again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.calibration.batches import Calibration
from onnxprune.calibration.capture import Store, Stream
from onnxprune.calibration.moments import ROWS_TOGETHER, Moments, Rows, choose, ridge, threads_for
from onnxprune.errors import ProofError
from onnxprune.graph.linear import Linear
from onnxprune.graph.model import Model
from onnxprune.graph.operators import spec_of
from onnxprune.graph.readers import linear_layers
from onnxprune.graph.saturation import UNBOUNDED, Flat
from onnxprune.repair import block_reconstruction, layer_chain
from onnxprune.types import BoolArray, FloatArray, Repaired, Trace

Array = np.ndarray[Any, Any]
LEAST_ROWS, LEAST_ROWS_OF_GROUPS = 20_000, 4_000
"""Rows that a layer is fitted on at least, where there are so many; of a layer in groups, whose matrices are small, each of which sees all rows."""
ROWS_PER_FEATURE = 40
FEWEST_ROWS = 512
"""Rows that a layer is fitted on whatever the memory, where there are so many."""
LEAST_GAIN = 1e-6
"""Share of the error that a change has to take away."""
TURNS = 6
"""How often targets on flat parts of an activation are moved."""
STRIDE = 1.5
"""How far each turn goes along the change that it finds; between 1 and 2 it converges, and faster."""
DEPTH = 5
"""Layers that are fitted together, at most; more take longer and gain less and less."""
BLOCK_TURNS = 3
"""How often each block of layers is fitted, at most; a layer is in as many blocks as layers are fitted together."""
BLOCK_ROWS = 50_000
"""Positions of its target on which a block is fitted, about: whole samples, so many as that takes."""
LEAST_SAMPLES = 32
"""Samples for a block, at least, or it is left."""
WORK = 3e12
"""Multiply-accumulates that the fits of all blocks together may take; what exceeds it makes blocks shorter, then turns fewer."""
Weights = tuple[FloatArray, FloatArray]
"""A matrix (groups, outputs, features) and a bias (groups, outputs)."""


@dataclass(frozen=True)
class Job:
    """One layer to fit, and its target: an output, or a sum less the other term."""

    node: int
    layer: Linear
    x: str
    target: str
    other: str | None
    flat: Flat


@dataclass(frozen=True)
class _How:
    """Memory for the sums of one layer in bytes, whether only biases are fitted, and the seed."""

    memory: float
    only_bias: bool
    seed: int


def repair(
    original: Model,
    pruned: Model,
    trace: Trace,
    keep: BoolArray,
    calibration: Calibration,
    *,
    store: Store,
    memory: float,
    only_bias: bool = False,
    depth: int = DEPTH,
    seed: int = 0,
    changed: Set[str] = frozenset(),
    progress: Callable[[float], None] | None = None,
) -> tuple[Model, tuple[Repaired, ...]]:
    """Fit the layers of a pruned model, in the order in which they run.

    Args:
        original: what is fitted to, tensor by tensor by name; a layer whose output it does not have is only fitted with those behind it.
        pruned: the model that was traced, without the channels that are not in `keep`.
        trace: facts of the model that was traced: `original`, or that with other layers in place of some.
        keep: (n_channels,) True where a channel stays.
        calibration: the samples.
        store: for activations.
        memory: bytes that the sums of one layer may take.
        only_bias: whether weights stay and only biases are fitted (bias correction by the mean).
        depth: how many layers are fitted together, at most; 1 leaves it at each by itself.
        seed: for the choice of positions, where there are more than needed.
        changed: names of tensors that layers give which are not those of the original, and have not been fitted yet.
        progress: called with the share that is done.

    Returns:
        The repaired model, and what was done at each layer.
    """
    result = pruned.copy()
    how = _How(memory, only_bias, seed)
    before, after = Stream(original, calibration, store), Stream(result, calibration, store)
    alive = np.append(keep, True)
    jobs = list(_jobs(after, trace, alive, {*before.producer}, changed))
    samples = len(calibration) * calibration.batch
    plans = {} if only_bias else _blocks(after, {*before.producer}, jobs, trace, alive, depth, samples)
    done: dict[int, Repaired] = {}
    together: dict[int, Repaired] = {}
    for number, job in enumerate(jobs):
        after.lasting = {name for later in jobs[number:] if later.node in plans for name in plans[later.node].taken}
        seen = [name for name in (job.x, job.other) if name]
        after.advance(seen)
        before.advance([job.target])
        with threads_for(job.layer.matrix(job.layer.values).shape[2]):
            found = _fit(job, before, after, trace, alive, calibration, how)
            block = plans.get(job.node)
            if block is not None and found.rows and after.may_rewind(block.nodes, block.layers):
                survivors = _survivors(job, before.read(job.target, 0), trace, alive)
                assert survivors is not None  # or there were no rows
                errors = _fit_block(job, block, before, after, survivors, calibration, memory, len(plans), seed)
                if errors is not None:
                    after.rewind(block.nodes)
                    after.advance(seen)
                    again = _fit(job, before, after, trace, alive, calibration, how)
                    found = replace(again, before=found.before, after=min(again.after, found.before))
                    for n, layer in block.layers.items():
                        together.setdefault(n, _of_block(trace.labels[n], layer, found.rows, errors))
        done[job.node] = found
        if progress:
            progress((number + 1) / len(jobs))
    after.lasting = set()
    before.close()
    after.close()
    own = {n: layer for n, layer in done.items() if layer.after < layer.before}
    return result, tuple(layer for _, layer in sorted({**done, **together, **own}.items()))


def _of_block(label: str, layer: Linear, rows: int, errors: tuple[float, float]) -> Repaired:
    return Repaired(label, rows, layer.effective()[0].shape[2], *errors, np.inf)


def _jobs(stream: Stream, trace: Trace, alive: BoolArray, there: Set[str], changed: Set[str]) -> Iterator[Job]:
    """Yield every linear layer that is not what it was, or whose input is not, if the original has what it gives."""
    layers = linear_layers(stream.model.graph)
    reads = {f.node for f in trace.slices if f.role == "reads" and not alive[f.channels].all()}
    cut = {f.node for f in trace.slices if not alive[f.channels].all()}
    touched: set[str] = set()
    for n, names in enumerate(stream.inputs):
        new = any(t.name in changed for t in stream.nodes[n].outputs)
        if n in cut or new or not touched.isdisjoint(names):
            touched |= {t.name for t in stream.nodes[n].outputs}
        layer = layers.get(n)
        if layer is None or not (new or n in reads or stream.nodes[n].inputs[layer.x].name in touched):
            continue
        x, y = stream.nodes[n].inputs[layer.x].name, stream.nodes[n].outputs[0].name
        other, target = _sum_of(stream, trace, layers, n, y)
        if target not in there:
            continue
        yield Job(n, layer, x, target, other, _flat(stream, target))


def _sum_of(stream: Stream, trace: Trace, layers: dict[int, Linear], n: int, y: str) -> tuple[str | None, str]:
    """Return the other term and the name of the sum that alone takes y, if that term is final when layer n is fitted."""
    users = stream.users.get(y, [])
    if len(users) != 1 or y in stream.results or stream.nodes[users[0]].op not in ("Add", "Sum"):
        return None, y
    add = stream.nodes[users[0]]
    others = [t for t in add.inputs if t.name != y]
    if len(others) != 1 or hasattr(others[0], "values") or trace.shapes.get(others[0].name) != trace.shapes.get(y):
        return None, y
    before = stream.ancestors([others[0].name])
    if n in before or any(m > n for m in before if m in layers):
        return None, y
    return others[0].name, add.outputs[0].name


def _flat(stream: Stream, name: str) -> Flat:
    """Return the bounds beyond which all that uses a tensor does not care for its value."""
    users = [stream.nodes[n] for n in stream.users.get(name, [])]
    if not users or name in stream.results:
        return UNBOUNDED
    bounds = [spec_of(node).saturation(node) for node in users]
    return min(low for low, _ in bounds), max(high for _, high in bounds)


@dataclass(frozen=True)
class _Seen:
    """Some rows of a layer: what it sees, (groups, n, features), what is wanted there, (groups, n, outputs), and the other term.

    `given` is what its first weights give there, the other term with it.
    """

    x: Array
    wanted: Array
    other: Array | float
    given: Array | None = None


def _fit(
    job: Job,
    before: Stream,
    after: Stream,
    trace: Trace,
    alive: BoolArray,
    calibration: Calibration,
    how: _How,
) -> Repaired:
    """Fit one layer, and write it if it predicts the held-out rows better."""
    layer = job.layer
    groups, outputs, features = layer.matrix(layer.values).shape
    label = trace.labels[job.node]
    survivors = _survivors(job, before.read(job.target, 0), trace, alive)
    if survivors is None or int(survivors.sum()) != groups * outputs:
        return Repaired(label, 0, features, 0.0, 0.0, np.inf)
    wide = 8.0 * groups * features * (features * 4 + outputs * 3) > how.memory
    least = LEAST_ROWS if groups == 1 else LEAST_ROWS_OF_GROUPS
    total = int(np.sqrt(how.memory / (32.0 * groups))) if wide else max(least, ROWS_PER_FEATURE * features)
    total = max(FEWEST_ROWS, min(total, int(how.memory / (8.0 * groups * (features + 3 * outputs)))))
    train, held = _gather(job, before, after, survivors, calibration, total, how.seed)
    n_rows = sum(seen.x.shape[1] for seen in (*train, *held))
    if not train or not held:
        return Repaired(label, n_rows, features, 0.0, 0.0, np.inf)
    fit = _LayerFit(job, train, held, Rows if wide else Moments)
    at_first = fit.error(fit.start)
    weights, penalty = fit.solve(how.only_bias)
    at_last = at_first if weights is None else fit.error(weights)
    if weights is None or not at_last < at_first * (1 - LEAST_GAIN):  # nor where it is not a number
        return Repaired(label, n_rows, features, at_first, at_first, np.inf)
    fit.write(weights)
    return Repaired(label, n_rows, features, at_first, at_last, penalty)


class _LayerFit:
    """The regression of one layer on gathered rows, all in terms of rows shifted by their mean."""

    def __init__(self, job: Job, train: list[_Seen], held: list[_Seen], kind: Any) -> None:
        layer = self.layer = job.layer
        self.flat, self.kind = job.flat, kind
        matrix, bias = layer.effective()
        self.shift = train[0].x.mean(axis=1, keepdims=True) if layer.has_bias else np.zeros_like(train[0].x[:, :1])
        self.start: Weights = (matrix, bias + np.einsum("gof,gf->go", matrix, self.shift[:, 0]))
        self.train, self.held = ([_started(seen, self.shift, self.start) for seen in part] for part in (train, held))

    def sums(self, parts: list[_Seen], at: Weights | None, like: Any = None) -> Any:
        """Add up what the first weights miss, targets being moved onto what the weights `at` give."""
        outputs = self.start[0].shape[1]
        result = self.kind(np.zeros_like(self.shift), outputs, centre=self.layer.has_bias, like=like)
        for seen in parts:
            there = None
            if at is not None and self.flat != UNBOUNDED:
                there = seen.given if at is self.start else _given(seen, at)
            result.add(seen.x, _missed(seen, seen.given, self.flat, there))
        return result

    def error(self, weights: Weights) -> float:
        """Return the mean squared error of some weights on held-out rows, what is cut off not counting."""
        square = rows = 0.0
        for seen in self.held:
            given = seen.given if weights is self.start else _given(seen, weights)
            missed = _missed(seen, given, self.flat, given)
            square += float(np.einsum("gno,gno->", missed, missed, dtype=np.float64))
            rows += missed.shape[1]
        return square / rows

    def solve(self, only_bias: bool) -> tuple[Weights | None, float]:
        """Return the best weights and their penalty; no weights where no penalty predicts the held-out rows better."""
        # the first fit takes all targets as they are: moved ones would hold it where the pruned weights are
        seen_sums = self.sums(self.train, None)
        fit = ridge(seen_sums, self.sums(self.held, None), only_bias=only_bias)
        if self.flat != UNBOUNDED and not fit.after < fit.before:
            seen_sums = self.sums(self.train, self.start)
            fit = ridge(seen_sums, self.sums(self.held, self.start), only_bias=only_bias)
        if not fit.after < fit.before:
            return None, np.inf
        solve = None if np.isinf(fit.penalty) else seen_sums.solver(fit.penalty)

        def solution(sums: Any) -> Weights:
            change = np.zeros_like(self.start[0]) if solve is None else solve(sums)
            return self.start[0] + change, self.start[1] + sums.bias(change)

        weights = solution(seen_sums)
        for _ in range(1, 1 if self.flat == UNBOUNDED else TURNS):
            further = solution(self.sums(self.train, weights, seen_sums))
            matrix, bias = (old + STRIDE * (new - old) for old, new in zip(weights, further, strict=True))
            weights = matrix, bias
        return weights, fit.penalty

    def write(self, weights: Weights) -> None:
        """Write weights into the layer."""
        matrix, bias = weights
        unshifted = bias - np.einsum("gof,gf->go", matrix, self.shift[:, 0])
        self.layer.write(matrix, unshifted if self.layer.has_bias else None)


def _blocks(
    stream: Stream, there: Set[str], jobs: list[Job], trace: Trace, alive: BoolArray, depth: int, samples: int
) -> dict[int, layer_chain.Block]:
    """Return the layers that are fitted together with each one, of those that pruning has touched, as many as `WORK` allows."""
    layers = linear_layers(stream.model.graph)
    free = {f.node for f in trace.slices if not alive[f.channels].all()} | {job.node for job in jobs}
    free |= {n for n in layers if stream.nodes[n].outputs[0].name not in there}

    def block(job: Job, depth: int) -> layer_chain.Block | None:
        return layer_chain.block_of(stream, job.node, job.target, layers, free, trace.shapes, depth)

    found = {job.node: whole for job in jobs if (whole := block(job, depth)) is not None}
    for job in jobs:
        if job.node not in found:
            continue
        shape = trace.shapes[job.target]
        positions = int(np.prod(shape[1:])) // shape[job.layer.channel_axis]
        for shorter in range(len(found[job.node].layers) - 1, 1, -1):
            work = found[job.node].work * _samples_of(found[job.node], positions, samples)
            if BLOCK_TURNS * work <= WORK / len(found):
                break
            found[job.node] = block(job, shorter) or found[job.node]
    return found


def _samples_of(block: layer_chain.Block, positions: int, there: int, memory: float = np.inf) -> int:
    """Return how many samples a block is fitted on, of those that are there."""
    return min(there, max(LEAST_SAMPLES, -(-BLOCK_ROWS // max(1, positions))), int(min(there, memory / block.bytes)))


def _fit_block(
    job: Job,
    block: layer_chain.Block,
    before: Stream,
    after: Stream,
    survivors: BoolArray,
    calibration: Calibration,
    memory: float,
    n_blocks: int,
    seed: int,
) -> tuple[float, float] | None:
    """Fit the layers up to the target of a job together, on whole samples.

    Returns:
        Its mean squared error on those held out, before and after; None where the layers keep their weights.
    """
    y = before.read(job.target, 0)
    taken = [after.read(name, 0) for name in block.taken]
    if any(value.ndim == 0 or len(value) != len(y) for value in taken):
        return None
    positions = job.layer.positions(y) // len(y)
    there = sum(len(before.read(job.target, batch)) for batch in range(before.n_batches))
    samples = _samples_of(block, positions, there, memory)
    turns = int(min(BLOCK_TURNS, WORK / n_blocks / max(1.0, samples * block.work)))
    if samples < min(there, LEAST_SAMPLES) or not turns:
        return None
    parts: tuple[list[block_reconstruction.Samples], list[block_reconstruction.Samples]] = ([], [])
    for batch in range(before.n_batches):
        y = before.read(job.target, batch)
        share = samples * (batch + 1) // before.n_batches - samples * batch // before.n_batches
        pick = np.arange(min(len(y), share))
        for part, chosen in zip(parts, calibration.split(batch, pick.size), strict=True):
            here = pick[chosen]
            if here.size:
                wanted = np.compress(survivors, y[here], axis=job.layer.channel_axis)
                part.append(
                    block_reconstruction.Samples({name: after.read(name, batch)[here] for name in block.taken}, wanted)
                )
    if not parts[0] or not parts[1]:
        return None
    first, last = block_reconstruction.fit(
        block,
        after,
        job.flat,
        block_reconstruction.joined(parts[0]),
        block_reconstruction.joined(parts[1]),
        turns,
        seed,
    )
    return (first / positions, last / positions) if last < first else None


def _gather(
    job: Job, before: Stream, after: Stream, survivors: BoolArray, calibration: Calibration, total: int, seed: int
) -> tuple[list[_Seen], list[_Seen]]:
    """Return rows at some positions of every batch, those to fit and those held out."""
    layer = job.layer
    rng = np.random.default_rng((seed, job.node))
    per_batch = -(-total // before.n_batches)
    parts: tuple[list[_Seen], list[_Seen]] = ([], [])
    for batch in range(before.n_batches):
        y = before.read(job.target, batch)
        if not survivors.all():
            y = np.compress(survivors, y, axis=layer.channel_axis)
        pick = choose(layer.positions(y), per_batch, rng)
        for part, chosen in zip(parts, calibration.split(batch, pick.size), strict=True):
            here = pick[chosen]
            if here.size:
                x = layer.rows(after.read(job.x, batch), here).astype(np.float32, copy=False)
                wanted = layer.outputs(y, here).astype(np.float32, copy=False)
                other = 0.0 if job.other is None else layer.outputs(after.read(job.other, batch), here)
                part.append(_Seen(x, wanted, other))
    return _joined(parts[0]), _joined(parts[1])


def _joined(parts: list[_Seen]) -> list[_Seen]:
    """Put small parts together: a product of few rows takes as long as its result is large."""
    result: list[_Seen] = []
    waiting: list[_Seen] = []
    for number, seen in enumerate(parts):
        waiting.append(seen)
        if sum(some.x.shape[1] for some in waiting) >= ROWS_TOGETHER or number == len(parts) - 1:
            arrays = [np.concatenate([getattr(s, name) for s in waiting], axis=1) for name in ("x", "wanted")]
            others = [some.other for some in waiting]
            other = 0.0 if isinstance(others[0], float) else np.concatenate(others, axis=1)
            result.append(_Seen(arrays[0], arrays[1], other))
            waiting = []
    return result


def _started(seen: _Seen, shift: Array, start: Weights) -> _Seen:
    """Shift rows, where they are, and keep what the first weights give there: it is asked for again and again."""
    np.subtract(seen.x, shift, out=seen.x)
    return replace(seen, given=_given(seen, start))


def _given(seen: _Seen, weights: Weights) -> Array:
    matrix, bias = (part.astype(np.float32) for part in weights)
    return np.asarray(seen.x @ np.swapaxes(matrix, 1, 2) + bias[:, None, :] + seen.other)


def _missed(seen: _Seen, given: Array | None, flat: Flat, there: Array | None) -> Array:
    """Return what is wanted less what is given; where it lies on a flat part, as what is `there` does, that is wanted."""
    wanted = seen.wanted
    if there is not None and flat != UNBOUNDED:
        low, high = flat
        wanted = np.where(wanted <= low, np.minimum(there, low), wanted)
        wanted = np.where(wanted >= high, np.maximum(there, high), wanted)
    return np.asarray(wanted - given)


def _survivors(job: Job, y: Array, trace: Trace, alive: BoolArray) -> BoolArray | None:
    """Return which outputs of the original layer are left; None where they lie on another axis than the layer writes.

    Raises:
        ProofError: what is aimed at has other channels than what was traced.
    """
    axis = job.layer.channel_axis % y.ndim
    carried = trace.carried.get(job.target)
    if carried is None:
        return np.ones(y.shape[axis], dtype=bool)
    if carried[0] != axis:
        return None
    if len(carried[1]) != y.shape[axis]:
        raise ProofError(
            "repair cannot aim at what it was given",
            where=trace.labels[job.node],
            why=f"it has {y.shape[axis]} channels there, {len(carried[1])} were traced",
            hint="nothing was written; this is a defect of onnxprune: please report it",
        )
    return alive[carried[1]]

"""Optimal Brain Surgeon on the readers of a group: the order in which channels go, the loss, and the refitted weights.

For a reader y = W x the least squared error of the output without the features S of x, with all other weights adjusted,
is

    L(S) = tr( W_S [(H^-1)_SS]^-1 W_S' ),    H = covariance of x + damping

(Hassibi and Stork, 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon", eq. 5, for several
weights at once). H is the exact Hessian of the squared error. The channel with the least sum of L over all readers of
its group goes first; then the other weights are adjusted, H^-1 is downdated, and the next channel is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from onnxprune.calibration.batches import HELD_EVERY
from onnxprune.calibration.capture import ActivationStore, Kept, LayerwiseRunner
from onnxprune.calibration.moments import ROWS_TOGETHER, Moments, choose, threads_for
from onnxprune.calibration.workspace import Workspace
from onnxprune.graph.linear import Linear
from onnxprune.graph.model import Model
from onnxprune.graph.readers import Reader, readers_of
from onnxprune.importance.weights import ScoringInputs
from onnxprune.types import Array, FloatArray, Group, IntArray, Trace

DAMPING = 1e-2
"""Least damping of the covariance, as a share of its mean diagonal. With few rows the damping is features / rows, since
in a covariance of fewer rows than features every channel is a combination of the others."""
LEAST_ROWS = 20_000
ROWS_PER_FEATURE = 10
CONSTANT = 1e-6
"""Share of the mean variance below which a feature counts as constant."""
SAME = 1e-10
"""Share of its mean square below which the variance of an output counts as zero."""
WORKING = 4
"""Copies of a covariance while it is in use: sums, mean, damped matrix, inverse."""
COMPACT = 0.75
"""Share of features left below which matrices are compacted."""
AT_ONCE = 48
"""Channels go one by one while fewer than twice as many are left, otherwise 1 / AT_ONCE of those left at a time."""
SHARES = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Shares of a group at which the refitted weights of its readers are kept."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of the input of a reader, per feature (groups, features); `zeros` is the share of exact zeros.

    `covariance`, (groups, features, features), is None where it exceeds the memory; `damping` is a share of its mean
    diagonal.
    """

    mean: FloatArray
    variance: FloatArray
    zeros: FloatArray
    covariance: FloatArray | None
    damping: float


@dataclass(frozen=True)
class Removal:
    """The removal of a group's channels, one after the other.

    Attributes:
        group: the group.
        order: (n,) its prunable channels, first to go first.
        losses: (n,) squared error of the readers' outputs, as shares of their variance, summed up as channels go.
        weights: number of channels gone -> node of a reader -> its (matrix, bias), kept in an `ActivationStore`.
    """

    group: Group
    order: IntArray
    losses: FloatArray
    weights: dict[int, dict[int, tuple[Kept, Kept]]]

    def drop(self, store: ActivationStore) -> None:
        """Drop the weights from the store."""
        for matrix, bias in (pair for of_node in self.weights.values() for pair in of_node.values()):
            store.drop(matrix)
            store.drop(bias)


def collect(
    model: Model,
    trace: Trace,
    workspace: Workspace,
    readers: Mapping[int, Reader],
    *,
    hold_out: bool = False,
    apart: bool = False,
) -> Iterator[tuple[int, Statistics]]:
    """Yield node and input statistics of each reader, when its last layer was seen; the model runs once.

    The rows of all layers that share a weight have one covariance. `hold_out` leaves out the held-out samples; with
    `apart` the sampled positions of a reader do not depend on the other readers.
    """
    calibration = workspace.calibration
    stream = LayerwiseRunner(model, calibration, workspace.store)
    used = [b for b in range(stream.n_batches) if not hold_out or calibration.split(b, HELD_EVERY)[0] != slice(0, 0)]
    rng = np.random.default_rng(calibration.seed)
    sums: dict[int, _Sums] = {}
    for n, layer, node in sorted((n, layer, node) for node, r in readers.items() for n, layer in r.members):
        reader = readers[node]
        rng = np.random.default_rng((calibration.seed, n)) if apart else rng
        stream.advance([layer.node.inputs[layer.x].name])
        groups, features = reader.channels.shape
        total = max(LEAST_ROWS, ROWS_PER_FEATURE * features) // len(reader.members)
        positions = partial(_positions, layer, trace)
        if node not in sums:
            room = workspace.memory - sum(open_.bytes for open_ in sums.values())
            sums[node] = _Sums(groups, features, whole=WORKING * _bytes(reader) <= room)
        with threads_for(features):
            for batch in used:
                x = stream.read(layer.node.inputs[layer.x].name, batch)
                pick = choose(positions(x), -(-total // len(used)), rng)
                pick = pick[calibration.split(batch, pick.size)[0]] if hold_out else pick
                sums[node].add(layer.rows(x, pick).astype(np.float32, copy=False), last=batch == used[-1])
        if n == reader.last:
            yield node, sums.pop(node).statistics()
    stream.close()


def _bytes(reader: Reader) -> float:
    """Return the bytes of the covariance of a reader's input."""
    groups, features = reader.channels.shape
    return float(8 * groups * features**2)


class _Sums:
    """Sums over rows of a reader's input; `whole`: with the covariance."""

    def __init__(self, groups: int, features: int, *, whole: bool) -> None:
        self.whole = whole
        self.center: Array | None = None
        self.moments: Moments | None = None
        self.sums, self.squares, self.zeros = np.zeros((3, groups, features))
        self.n = 0
        self.waiting: list[Array] = []
        self.bytes = 8.0 * groups * features**2 if whole else 0.0

    def add(self, rows: Array, *, last: bool) -> None:
        """Add rows, (groups, n, features); few rows wait for others, as their product costs as much as one of many."""
        self.waiting.append(rows)
        if sum(part.shape[1] for part in self.waiting) < ROWS_TOGETHER and not last:
            return
        rows = np.concatenate(self.waiting, axis=1)
        self.waiting = []
        self.zeros += np.count_nonzero(rows == 0, axis=1)
        if self.center is None:
            self.center = rows.mean(axis=1, keepdims=True)
            self.moments = Moments(self.center, 0) if self.whole else None
        if self.moments is not None:
            self.moments.add(rows, rows[:, :, :0])
        rows = rows - self.center
        self.sums += rows.sum(axis=1, dtype=np.float64)
        self.squares += np.einsum("gnf,gnf->gf", rows, rows, dtype=np.float64)
        self.n += rows.shape[1]

    def statistics(self) -> Statistics:
        """Return the statistics of all rows."""
        assert self.center is not None
        n, features = self.n, self.sums.shape[1]
        variance = np.maximum(self.squares / n - (self.sums / n) ** 2, 0)
        covariance = None if self.moments is None else self.moments.covariance()
        mean = self.sums / n + self.center[:, 0]
        return Statistics(mean, variance, self.zeros / n, covariance, max(DAMPING, features / n))


def _positions(layer: Linear, trace: Trace, x: Array) -> int:
    """Return the number of output positions for an input, in proportion to the traced shapes of both."""
    read, written = (trace.shapes[t.name] for t in (layer.node.inputs[layer.x], layer.node.outputs[0]))
    return math.prod(written) // written[layer.channel_axis] * x.size // math.prod(read)


def removals(
    model: Model,
    trace: Trace,
    workspace: Workspace,
    scores: FloatArray | None,
    fallback: FloatArray,
    *,
    hold_out: bool = False,
    names: Container[str] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Iterator[Removal]:
    """Remove the channels of every group, one after the other.

    Args:
        model: the original.
        trace: its facts.
        workspace: calibration samples, and the memory for activations, weights and covariances.
        scores: (n_channels,) importance that gives the order; None: second order.
        fallback: (n_channels,) importance that gives the order in groups that no linear layer reads.
        hold_out: leave out the held-out samples, so that weights can be judged on them: on its own rows, with few per
            feature, a wide layer looks five to ten times cheaper.
        names: of the groups; None: all.
        progress: called with the share that is done.
    """
    by_group = {name: found for name, found in readers_of(model, trace).items() if names is None or name in names}
    readers = {reader.node: reader for found in by_group.values() for reader in found}
    complete: dict[int, list[str]] = {}
    for name, found in by_group.items():
        complete.setdefault(max((reader.last for reader in found), default=-1), []).append(name)
    groups = {group.name: group for group in trace.groups}
    store = workspace.store
    seen: dict[int, tuple[Statistics, Kept | None]] = {}  # covariances wait in the store

    def finish(node: int) -> Iterator[Removal]:
        for name in complete.pop(node, []):
            found = by_group.pop(name)
            room, parts = workspace.memory, []
            with threads_for(max((reader.channels.shape[1] for reader in found), default=0)):
                for reader in sorted(found, key=_bytes):
                    statistics, kept = seen[reader.node]
                    room -= WORKING * _bytes(reader)
                    covariance = None if kept is None or room < 0 else store.get(kept)
                    parts.append(_Part(reader, replace(statistics, covariance=covariance), groups[name]))
                removal = _remove_all(trace, groups[name], parts, scores, fallback, store)
            yield removal
        left = {reader.node for found in by_group.values() for reader in found}
        for old in [number for number in seen if number not in left]:
            _, kept = seen.pop(old)
            if kept is not None:
                store.drop(kept)

    yield from finish(-1)
    all_statistics = collect(model, trace, workspace, readers, hold_out=hold_out)
    for done, (node, statistics) in enumerate(all_statistics, start=1):
        kept = None if statistics.covariance is None else store.put(statistics.covariance)
        seen[node] = replace(statistics, covariance=None), kept
        del statistics
        yield from finish(readers[node].last)
        if progress:
            progress(done / len(readers))


def scores_of(trace: Trace, found: Iterable[Removal], fallback: FloatArray) -> FloatArray:
    """Return the second order importance of every channel, (n_channels,), divided by the mean of its group.

    The importance is the rise of the loss when the channel goes, at its place in the order, made non-decreasing; pinned
    channels get infinity. Groups that no linear layer reads keep `fallback`.
    """
    result = fallback.copy()
    for removal in found:
        if not removal.losses.size or not removal.losses[-1] > 0:
            continue
        result[removal.group.channels] = np.inf
        steps = np.maximum.accumulate(np.diff(removal.losses, prepend=0.0))
        result[removal.order] = steps / steps.mean()
    return result


def activation_scores(model: Model, trace: Trace, workspace: Workspace, kind: str) -> FloatArray:
    """Return an importance from reader inputs, (n_channels,), divided by the mean of the group.

    Channels that no linear layer reads get NaN.

    `activation`: input variance times squared weight, summed over the features of a channel: OBS with a diagonal
    Hessian. `apoz`: mean share of non-zeros (one minus eq. 1 of Hu et al., 2016, "Network Trimming").
    """
    by_group = readers_of(model, trace)
    readers = {reader.node: reader for found in by_group.values() for reader in found}
    total, features = np.zeros((2, trace.n_channels))
    for node, seen in collect(model, trace, replace(workspace, memory=0.0), readers):
        reader = readers[node]
        if kind == "apoz":
            values = 1 - seen.zeros
        else:
            matrix, _ = reader.layer.effective()
            values = seen.variance * np.einsum("gof,gof->gf", matrix, matrix)
        here, times = reader.channels >= 0, len(reader.members)
        total += times * np.bincount(reader.channels[here], weights=values[here], minlength=total.size)
        features += times * np.bincount(reader.channels[here], minlength=total.size)
    raw = np.where(features > 0, total / np.maximum(features, 1) if kind == "apoz" else total, np.nan)
    for group in trace.groups:
        mean = raw[group.channels].mean()
        if mean > 0:
            raw[group.channels] /= mean
    return raw


def activation(inputs: ScoringInputs) -> FloatArray:
    """Return the scores of `activation` or `apoz`; see `activation_scores`."""
    assert inputs.workspace is not None
    return activation_scores(inputs.model, inputs.trace, inputs.workspace, inputs.method)


class _Part:
    """One reader of a group: its weights and inverse Hessian as channels go."""

    def __init__(self, reader: Reader, statistics: Statistics, group: Group) -> None:
        self.reader, self.statistics = reader, statistics
        self.matrix0, self.bias0 = reader.layer.effective()
        self.matrix = self.matrix0.copy()
        n_groups, features = reader.channels.shape
        covariance, variance = statistics.covariance, statistics.variance
        self.inverse: Any = None
        mean = variance.mean(axis=1, keepdims=True)
        varies = np.where(variance > CONSTANT * mean, 1, CONSTANT)  # a bias replaces constant features at no cost
        damping = statistics.damping * mean * varies + 1e-12
        if covariance is not None:
            lifted = covariance.copy()
            lifted[:, np.arange(features), np.arange(features)] += damping
            self.inverse = np.linalg.inv(lifted)
            spread = float(np.einsum("gof,gof->", self.matrix @ covariance, self.matrix))
        else:
            self.diagonal = variance + damping
            spread = float(np.einsum("gof,gf,gof->", self.matrix, variance, self.matrix))
        energy = float(np.einsum("gof,gf,gof->", self.matrix, variance + statistics.mean**2, self.matrix))
        self.spread = spread if spread > SAME * energy else np.inf  # a constant output loses nothing
        self.columns = np.arange(features)  # of the matrix, in the layer
        self.live = np.ones((n_groups, features), dtype=bool)
        self._index(group, n_groups)

    def _index(self, group: Group, n_groups: int) -> None:
        """Index the features of each channel of the group: (groups, channels, most features of a channel)."""
        local = np.full(max(int(group.channels.max()), int(self.reader.channels.max())) + 2, -1)
        local[group.channels] = np.arange(group.channels.size)
        place = local[self.reader.channels]
        counts = np.stack([np.bincount(row[row >= 0], minlength=group.channels.size) for row in place])
        self.features = np.zeros((n_groups, group.channels.size, max(1, counts.max())), dtype=np.int64)
        self.there = np.zeros(self.features.shape, dtype=bool)
        for g, row in enumerate(place):
            order = np.argsort(row, kind="stable")
            order = order[row[order] >= 0]
            slot = np.arange(order.size) - (np.cumsum(counts[g]) - counts[g])[row[order]]
            self.features[g, row[order], slot] = order
            self.there[g, row[order], slot] = True

    def losses(self, channels: IntArray) -> FloatArray:
        """Return the loss when each of these channels alone goes, as a share of the variance of each layer's output."""
        total = np.zeros(channels.size)
        for g, (features, there) in enumerate(zip(self.features, self.there, strict=True)):
            where, mask = features[channels], there[channels]
            if self.inverse is None:
                weights = (self.matrix[g] ** 2).sum(axis=0) * self.diagonal[g]
                total += (weights[where] * mask).sum(axis=1)
            elif where.shape[1] == 1:
                weights = (self.matrix[g] ** 2).sum(axis=0) / np.maximum(np.diagonal(self.inverse[g]), 1e-30)
                total += (weights[where] * mask)[:, 0]
            else:
                block = self.inverse[g][where[:, :, None], where[:, None, :]]
                both = mask[:, :, None] & mask[:, None, :]
                block = np.where(both, block, np.eye(where.shape[1]))
                weights = np.moveaxis(self.matrix[g][:, where] * mask, 0, 2)  # (channels, features, outputs)
                products = weights @ np.swapaxes(weights, 1, 2)
                total += np.einsum("cst,cts->c", np.linalg.inv(block), products)
        return total / self.spread * len(self.reader.members)

    def remove(self, channels: IntArray) -> None:
        """Remove channels, adjust the other weights, and downdate the inverse Hessian."""
        for g, (features, there) in enumerate(zip(self.features, self.there, strict=True)):
            gone = features[channels][there[channels]]
            if self.inverse is not None and gone.size:
                inverse = self.inverse[g]
                gain = np.linalg.solve(inverse[np.ix_(gone, gone)], inverse[gone])  # (gone, features)
                self.matrix[g] -= self.matrix[g][:, gone] @ gain
                inverse -= inverse[:, gone] @ gain
                inverse[gone] = inverse[:, gone] = 0
            self.matrix[g][:, gone] = 0
            self.live[g, gone] = False
        if len(self.live) == 1 and self.live.mean() < COMPACT:
            self._compact()

    def _compact(self) -> None:
        """Drop the removed features: the work for each channel grows with the square of their number."""
        live = self.live[0]
        self.matrix, self.columns = self.matrix[:, :, live], self.columns[live]
        if self.inverse is not None:
            self.inverse = np.ascontiguousarray(self.inverse[:, live][:, :, live])
        else:
            self.diagonal = self.diagonal[:, live]
        self.features = np.maximum(np.cumsum(live) - 1, 0)[self.features]
        self.live = self.live[:, live]

    def weights(self) -> tuple[FloatArray, FloatArray]:
        """Return the current matrix, and the bias that keeps the mean of the output."""
        matrix = np.zeros_like(self.matrix0)
        matrix[:, :, self.columns] = self.matrix
        return matrix, self.bias0 + np.einsum("gof,gf->go", self.matrix0 - matrix, self.statistics.mean)


def points_of(trace: Trace) -> int:
    """Return over how many numbers of channels, in all groups, removals keep weights."""
    free = ((group.channels.size, int((~trace.pinned[group.channels]).sum())) for group in trace.groups)
    return sum(1 for size, left in free for count in _wanted(size) if count <= min(left, size - 1))


def _wanted(size: int) -> list[int]:
    return sorted({max(1, round(size * share)) for share in SHARES})


def _remove_all(
    trace: Trace,
    group: Group,
    parts: list[_Part],
    scores: FloatArray | None,
    fallback: FloatArray,
    store: ActivationStore,
) -> Removal:
    size = group.channels.size
    given = np.nan_to_num(fallback if scores is None else scores, nan=np.inf)
    left = np.flatnonzero(~trace.pinned[group.channels])
    left = left[np.argsort(given[group.channels[left]], kind="stable")]
    second_order = scores is None and bool(parts)
    wanted = _wanted(size)
    weights: dict[int, dict[int, tuple[Kept, Kept]]] = {}
    order: list[IntArray] = []
    losses: list[FloatArray] = []
    gone = 0
    while left.size and gone < size - 1:
        costs = np.zeros(left.size)
        for part in parts:
            costs += part.losses(left)
        stop = next((count for count in wanted if count > gone), size)  # weights are kept at exactly these numbers
        at_once = min(max(1, left.size // AT_ONCE), stop - gone, size - 1 - gone)
        chosen = np.arange(at_once)
        if second_order:
            chosen = np.sort(np.argpartition(costs, at_once - 1)[:at_once])
            chosen = chosen[np.argsort(costs[chosen], kind="stable")]
        for part in parts:
            part.remove(left[chosen])
        order.append(left[chosen])
        losses.append(costs[chosen])
        left = np.delete(left, chosen)
        gone += at_once
        if gone in wanted:
            weights[gone] = {}
            for part in parts:
                matrix, bias = part.weights()
                weights[gone][part.reader.node] = (store.put(matrix.astype(np.float32)), store.put(bias))
    picked = np.concatenate(order or [np.zeros(0, dtype=np.int64)])
    return Removal(group, group.channels[picked], np.cumsum(np.concatenate(losses or [np.zeros(0)])), weights)

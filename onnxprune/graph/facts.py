"""Collect facts about channel ids while the graph is walked, then resolve them into groups of channels.

During the walk every filter has an *id*. Rules tie ids, pin them, and say which tensors hold them. `Facts.resolve` then
finds the connected components of the ties: each is one *channel*, a unit that can only go as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from onnxprune.graph.rule_context import FIXED, varying
from onnxprune.types import BoolArray, Count, Group, IntArray, Lookup, Pin, Role, Slice, Statistic, Summed, Work

NOBODY: IntArray = np.zeros(0, dtype=np.int64)
ZERO = np.zeros((), dtype=np.int8)


class RawSlice(NamedTuple):
    """A `Slice` before resolution; `ids` is (n,) or (n, m): the m ids that live at each index of the axis."""

    node: int
    input: int
    tensor: str
    axis: int
    ids: IntArray
    role: Role
    layer: int
    zero: np.ndarray[Any, Any]


class RawCount(NamedTuple):
    """A `Count` before resolution; `ids` as in `RawSlice`."""

    node: int
    field: str
    input: int | None
    element: int | None
    ids: IntArray
    per: int = 1


class RawLookup(NamedTuple):
    """A `Lookup` before resolution; `ids` as in `RawSlice`."""

    node: int
    input: int
    ids: IntArray


class RawSummed(NamedTuple):
    """A `Summed` before resolution; `ids` as in `RawSlice`."""

    node: int
    input: int
    axis: int
    ids: IntArray
    statistic: Statistic
    axes: tuple[int, ...]
    scale: int | None


class RawEqual(NamedTuple):
    """A size computed at run time as (survivors of `ids`) * num / den must equal the survivors of `rows`."""

    node: int
    ids: IntArray
    num: int
    den: int
    rows: IntArray


class RawPin(NamedTuple):
    """Ids that must stay, and why."""

    ids: IntArray
    node: int
    reason: str


@dataclass(frozen=True)
class Resolved:
    """The facts in terms of channels; see `onnxprune.types.Trace` for the fields.

    `lookup` holds the channel of each id, and -1 at its end for id -1.
    """

    n_channels: int
    groups: tuple[Group, ...]
    pinned: BoolArray
    pins: tuple[Pin, ...]
    slices: tuple[Slice, ...]
    counts: tuple[Count, ...]
    lookups: tuple[Lookup, ...]
    summed: tuple[Summed, ...]
    extents: tuple[IntArray, ...]
    works: tuple[Work, ...]
    lookup: IntArray


class Facts:
    """What the rules have found out so far."""

    def __init__(self) -> None:
        self.n_ids = 0
        self.block_nodes: list[int] = []  # the node that minted each block of ids
        self.block_sizes: list[int] = []
        self.edges: list[IntArray] = []  # (2, k) pairs of ids that are one channel
        self.pins: list[RawPin] = []
        self.slices: list[RawSlice] = []
        self.counts: list[RawCount] = []
        self.lookups: list[RawLookup] = []
        self.summed: list[RawSummed] = []
        self.equals: list[RawEqual] = []
        self.works: list[Work] = []
        self.grids: dict[bytes, IntArray] = {}
        self.lanes: dict[bytes, tuple[int, IntArray]] = {}  # ids along one axis of a tensor, with a node that makes it

    def mint(self, node: int, n: int) -> IntArray:
        """Return n new ids, written by `node`."""
        ids = np.arange(self.n_ids, self.n_ids + n, dtype=np.int64)
        self.n_ids += n
        self.block_nodes.append(node)
        self.block_sizes.append(n)
        return ids

    def pin(self, ids: IntArray, node: int, reason: str) -> None:
        """Keep `ids` (entries of -1 are ignored)."""
        ids = np.unique(ids)
        ids = ids[ids >= 0]
        if ids.size:
            self.pins.append(RawPin(ids, node, reason))

    def tie(self, a: IntArray, b: IntArray, node: int, reason: str) -> None:
        """Make a[i] and b[i] one channel; where only one of the two is an id, it is pinned for `reason`."""
        a, b = a.ravel(), b.ravel()
        both = (a >= 0) & (b >= 0) & (a != b)
        if both.any():
            self.edges.append(np.unique(np.stack([a[both], b[both]]), axis=1))
        alone = (a >= 0) ^ (b >= 0)
        if alone.any():
            self.pin(np.maximum(a, b)[alone], node, reason)

    def see(self, ids: IntArray, node: int) -> None:
        """Take note of a tensor that lives in the graph: none of its axes may lose all its channels."""
        if ids.size == 1:
            if ids.flat[0] >= 0:
                lane = ids.reshape(1)
                self.lanes.setdefault(lane.tobytes(), (node, lane))
            return
        if len(varying(ids)) > 1:
            grid = np.squeeze(ids)
            self.grids.setdefault(bytes(str(grid.shape), "ascii") + grid.tobytes(), grid)
            return
        lane = ids.reshape(-1)
        self.lanes.setdefault(lane.tobytes(), (node, lane))

    def resolve(self, labels: tuple[str, ...], ops: tuple[str, ...]) -> Resolved:
        """Turn ids into channels and groups.

        Args:
            labels: one per node of the graph.
            ops: operator of each node.
        """
        of_id = self._components()
        of_id = self._make_rectangular(of_id)
        n = int(of_id.max()) + 1 if of_id.size else 0
        lookup = np.append(of_id, FIXED)  # index -1 gives -1

        def along(raw: RawSlice | RawCount | RawLookup) -> IntArray | None:
            """Return the channels along the axis of a fact; None where it holds none that may go."""
            channels = self._one_dimensional(lookup[raw.ids], raw.ids, raw.node)
            return channels if channels is not None and (channels >= 0).any() else None

        slices = [
            Slice(raw.node, raw.input, raw.tensor, raw.axis, channels, raw.role, raw.layer, raw.zero)
            for raw in self.slices
            if (channels := along(raw)) is not None
        ]
        self._pin_conflicts(lookup)
        counts = [
            Count(raw.node, raw.field, raw.input, raw.element, channels, raw.per)
            for raw in self.counts
            if (channels := along(raw)) is not None
        ]
        lookups = [
            Lookup(raw.node, raw.input, channels) for raw in self.lookups if (channels := along(raw)) is not None
        ]
        summed = [
            Summed(raw.node, raw.input, raw.axis, lookup[raw.ids], raw.statistic, raw.axes, raw.scale)
            for raw in self.summed
        ]
        for equal in self.equals:
            self._check_equal(equal, lookup, n)

        extents: dict[bytes, IntArray] = {}
        for node, lane in self.lanes.values():
            channels = np.unique(lookup[lane])
            if channels[0] == FIXED:
                continue  # something always stays
            if channels.size == 1:
                self.pin(lane, node, "it is the only channel of a tensor")
            extents.setdefault(channels.tobytes(), channels)

        works = tuple(replace(w, over=lookup[w.over] if w.over.ndim == 1 else NOBODY) for w in self.works)
        pins = tuple(Pin(np.unique(of_id[p.ids]), labels[p.node], ops[p.node], p.reason) for p in self.pins)
        pinned = np.zeros(n, dtype=bool)
        for pin in pins:
            pinned[pin.channels] = True
        groups = self._groups(of_id, n, labels)
        return Resolved(
            n,
            groups,
            pinned,
            pins,
            tuple(slices),
            tuple(counts),
            tuple(lookups),
            tuple(summed),
            tuple(extents.values()),
            works,
            lookup,
        )

    def _components(self) -> IntArray:
        """Number the connected components of the ties by their first id; return the number of each id."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not self.n_ids:
            return np.zeros(0, dtype=np.int64)
        a, b = np.concatenate(self.edges, axis=1) if self.edges else np.zeros((2, 0), dtype=np.int64)
        graph = coo_array((np.ones(a.size, dtype=np.int8), (a, b)), shape=(self.n_ids, self.n_ids))
        _, labels = connected_components(graph, directed=False)
        _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
        rank = np.empty(first.size, dtype=np.int64)
        rank[np.argsort(first)] = np.arange(first.size)
        return rank[inverse]

    def _make_rectangular(self, of_id: IntArray) -> IntArray:
        """Tie channels that spread over two axes of a tensor, so that what is left is a rectangle.

        Positions on the last axis are the units: they are tied across all other axes, as in a grouped Conv, whose groups
        keep the same positions.
        """
        waiting = list(self.grids.values())
        while waiting:
            tied = np.zeros(self.n_ids + 1, dtype=bool)  # a tie may make another grid of the same channels rectangular
            later = []
            for grid in waiting:
                channels = np.where(grid >= 0, of_id[grid], FIXED)
                if (channels == FIXED).any():
                    owner = self.block_nodes[self._block_of(int(grid.max()))]
                    self.pin(grid, owner, "its channels lie on two axes of a tensor, among others that stay")
                elif self._varying_axes(channels) <= 1:
                    continue
                elif tied[channels].any():
                    later.append(grid)
                else:
                    last = np.broadcast_to(grid[(0,) * (grid.ndim - 1)], grid.shape)
                    self.edges.append(np.stack([grid.ravel(), np.ascontiguousarray(last).ravel()]))
                    tied[channels] = True
            if tied.any():
                of_id = self._components()
            waiting = later
        return of_id

    def _block_of(self, an_id: int) -> int:
        return int(np.searchsorted(np.cumsum(self.block_sizes), an_id, side="right"))

    @staticmethod
    def _varying_axes(channels: IntArray) -> int:
        return sum(bool((channels != channels.take([0], axis=axis)).any()) for axis in range(channels.ndim))

    def _one_dimensional(self, channels: IntArray, ids: IntArray, node: int) -> IntArray | None:
        """Reduce the (n, m) channels along an axis to (n,); None where the axis never shrinks."""
        if channels.ndim == 1:
            return channels
        if (channels == channels[:, :1]).all():
            return np.ascontiguousarray(channels[:, 0])
        ordered = np.sort(channels, axis=1)
        if not (ordered == ordered[:1]).all():
            self.pin(ids, node, "its channels don't form a rectangle in a tensor")
        return None

    def _pin_conflicts(self, lookup: IntArray) -> None:
        """Pin channels whose number an integer holds together with the number of others, or cannot hold."""
        owners: dict[tuple[int, str, int | None, int | None], RawCount] = {}
        for count in self.counts:
            first = owners.setdefault((count.node, count.field, count.input, count.element), count)
            if (lookup[count.ids].reshape(len(count.ids), -1) >= 0).any() and count.per > 1:
                times = np.unique(lookup[count.ids], return_counts=True)[1]
                if count.ids.ndim > 1 or (times % count.per).any():
                    self.pin(count.ids, count.node, "a literal that is multiplied at run time would not follow it")
            if first.per != count.per or not np.array_equal(lookup[first.ids], lookup[count.ids]):
                for one in (first, count):
                    self.pin(one.ids, count.node, "one integer of a shape stands for its number and for that of others")

    def _check_equal(self, equal: RawEqual, lookup: IntArray, n: int) -> None:
        """Pin what a size computed at run time depends on, unless it follows the survivors whatever they are."""

        def weights(rows: IntArray) -> IntArray:
            """Return how often each channel decides whether an index of the axis survives; what stays is in front."""
            channels = lookup[rows]
            if channels.ndim > 1:  # rows of several channels: either each is one channel, or the axis never shrinks
                same = (channels == channels[:, :1]).all()
                channels = channels[:, 0] if same else np.full(len(channels), FIXED)
            return np.bincount(channels + 1, minlength=n + 1)

        if not np.array_equal(weights(equal.ids) * equal.num, weights(equal.rows) * equal.den):
            reason = "a shape computed at run time would not follow it"
            self.pin(equal.ids, equal.node, reason)
            self.pin(equal.rows, equal.node, reason)

    def _groups(self, of_id: IntArray, n: int, labels: tuple[str, ...]) -> tuple[Group, ...]:
        """Put channels that are written by the same layers into one group."""
        if not n:
            return ()
        block_of_id = np.repeat(np.arange(len(self.block_sizes)), self.block_sizes)
        # a channel's signature is the sum of a random number per block: equal exactly when the blocks are (but for chance
        # below 2**-40), and computed without a loop over channels
        hashes = np.random.default_rng(0).integers(0, 2**63, len(self.block_sizes), dtype=np.uint64)
        signature = np.zeros(n, dtype=np.uint64)
        np.add.at(signature, of_id, hashes[block_of_id])
        _, first, inverse = np.unique(signature, return_index=True, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        members = np.split(order, np.cumsum(np.bincount(inverse))[:-1])
        pairs, filters = np.unique(np.stack([of_id, block_of_id]), axis=1, return_counts=True)
        starts = np.searchsorted(pairs[0], np.arange(n + 1))
        groups: list[Group] = []
        used: dict[str, int] = {}
        for position in np.argsort(first):
            channel = int(first[position])
            span = slice(starts[channel], starts[channel + 1])
            blocks, width = pairs[1, span], int(filters[span].min())
            layers = tuple(dict.fromkeys(labels[self.block_nodes[block]] for block in blocks))
            used[layers[0]] = used.get(layers[0], 0) + 1
            name = layers[0] if used[layers[0]] == 1 else f"{layers[0]}#{used[layers[0]]}"
            groups.append(Group(name, layers, np.sort(members[position]), width))
        return tuple(groups)

"""Collect facts about channel ids while the graph is walked, then resolve them into groups of channels.

During the walk every filter has an *id*. Rules tie ids, pin ids, and report the tensors with ids. `Facts.resolve` then
finds the connected components of the ties: each is one *channel*, a unit that is deleted as a whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from onnxprune.graph.ids import FIXED, compress, varying
from onnxprune.types import Count, Group, IntArray, Lookup, Pin, Slice, Summed, Trace, Work

Fact = TypeVar("Fact", Slice, Count, Lookup)
NOBODY: IntArray = np.zeros(0, dtype=np.int64)
ZERO = np.zeros((), dtype=np.int8)


class Equal(NamedTuple):
    """A size computed at run time as (survivors of `ids`) * num / den must equal the survivors of `rows`."""

    node: int
    ids: IntArray
    num: int
    den: int
    rows: IntArray


class _Pin(NamedTuple):
    """Pinned ids and the reason."""

    ids: IntArray
    node: int
    reason: str


class Facts:
    """Facts that the rules report. The `channels` of a fact are ids: (n,), or (n, m) with m ids at each index."""

    def __init__(self) -> None:
        self.n_ids = 0
        self.block_nodes: list[int] = []  # the node that minted each block of ids
        self.block_sizes: list[int] = []
        self.edges: list[IntArray] = []  # (2, k) pairs of ids that are one channel
        self.pins: list[_Pin] = []
        self.slices: list[Slice] = []
        self.counts: list[Count] = []
        self.lookups: list[Lookup] = []
        self.summed: list[Summed] = []
        self.equals: list[Equal] = []
        self.works: list[Work] = []
        self.grids: dict[tuple[tuple[int, ...], bytes], IntArray] = {}  # ids on several axes of a tensor
        self.lanes: dict[
            bytes, tuple[int, IntArray]
        ] = {}  # a node that writes a tensor, ids along one axis of the tensor

    def mint(self, node: int, n: int) -> IntArray:
        """Return n new ids, written by `node`."""
        ids = np.arange(self.n_ids, self.n_ids + n, dtype=np.int64)
        self.n_ids += n
        self.block_nodes.append(node)
        self.block_sizes.append(n)
        return ids

    def pin(self, ids: IntArray, node: int, reason: str) -> bool:
        """Pin `ids` (entries of -1 are ignored); return whether there were any."""
        ids = np.unique(ids)
        ids = ids[ids >= 0]
        if ids.size:
            self.pins.append(_Pin(ids, node, reason))
        return bool(ids.size)

    def tie(self, a: IntArray, b: IntArray, node: int, reason: str) -> bool:
        """Make a[i] and b[i] one channel, broadcast; pin an id that meets no id, for `reason`; return whether one did."""
        a, b = (array.ravel() for array in np.broadcast_arrays(a, b))
        both = (a >= 0) & (b >= 0) & (a != b)
        if both.any():
            self.edges.append(np.unique(np.stack([a[both], b[both]]), axis=1))
        alone = (a >= 0) ^ (b >= 0)
        return bool(alone.any()) and self.pin(np.maximum(a, b)[alone], node, reason)

    def see(self, ids: IntArray, node: int) -> None:
        """Record a tensor of the graph: one of its channels must survive."""
        if not ids.size:
            return  # a part of a Split or Slice that is empty already
        if len(varying(ids)) > 1:
            grid = np.squeeze(ids)
            self.grids.setdefault((grid.shape, grid.tobytes()), grid)
        if ids.size > 1 or ids.flat[0] >= 0:
            lane = ids.reshape(-1)
            self.lanes.setdefault(lane.tobytes(), (node, lane))

    def resolve(self, labels: tuple[str, ...], ops: tuple[str, ...]) -> tuple[Trace, IntArray]:
        """Turn ids into channels and groups, given the label and the operator of each node.

        Returns:
            A trace that knows no tensors yet, and the channel of each id, with -1 at its end for id -1.
        """
        of_id = self._make_rectangular(self._components())
        n = int(of_id.max()) + 1 if of_id.size else 0
        lookup = np.append(of_id, FIXED)  # index -1 gives -1

        def resolved(facts: list[Fact]) -> tuple[Fact, ...]:
            along = ((fact, self._one_dimensional(lookup[fact.channels], fact.channels, fact.node)) for fact in facts)
            return tuple(replace(fact, channels=found) for fact, found in along if (found >= 0).any())

        slices = resolved(self.slices)
        self._pin_conflicts(lookup)
        counts, lookups = resolved(self.counts), resolved(self.lookups)
        summed = tuple(replace(fact, channels=lookup[fact.channels]) for fact in self.summed)
        for equal in self.equals:
            self._check_equal(equal, lookup, n)

        extents: dict[bytes, IntArray] = {}
        for node, lane in self.lanes.values():
            channels = np.unique(lookup[lane])
            if channels[0] == FIXED:
                continue  # one index is pinned, so the axis cannot become empty
            if channels.size == 1:
                self.pin(lane, node, "the channel is the only one of a tensor")
            extents.setdefault(channels.tobytes(), channels)

        works = tuple(replace(w, over=lookup[w.over] if w.over.ndim == 1 else NOBODY) for w in self.works)
        pins = tuple(Pin(np.unique(of_id[p.ids]), labels[p.node], ops[p.node], p.reason) for p in self.pins)
        pinned = np.zeros(n, dtype=bool)
        for pin in pins:
            pinned[pin.channels] = True
        trace = Trace(
            labels=labels,
            ops=ops,
            n_channels=n,
            groups=self._groups(of_id, n, labels),
            pinned=pinned,
            pins=pins,
            slices=slices,
            counts=counts,
            lookups=lookups,
            summed=summed,
            works=works,
            extents=tuple(extents.values()),
        )
        return trace, lookup

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
        """Tie channels that spread over two axes of a tensor, so that the survivors form a rectangle.

        Positions on the last axis are the units: they are tied across all other axes, as in a grouped Conv, whose
        groups keep the same positions.
        """
        waiting = list(self.grids.values())
        while waiting:
            tied = np.zeros(self.n_ids + 1, dtype=bool)  # a tie may make another grid of the same channels rectangular
            later = []
            for grid in waiting:
                channels = np.where(grid >= 0, of_id[grid], FIXED)
                if (channels == FIXED).any():
                    block = np.searchsorted(np.cumsum(self.block_sizes), grid.max(), side="right")
                    self.pin(
                        grid, self.block_nodes[block], "the channels lie on two axes of a tensor, among pinned ones"
                    )
                elif len(varying(compress(channels))) <= 1:
                    continue
                elif tied[channels].any():
                    later.append(grid)
                else:
                    last = np.broadcast_to(grid[(0,) * (grid.ndim - 1)], grid.shape)
                    self.edges.append(np.stack([grid.ravel(), last.ravel()]))
                    tied[channels] = True
            if tied.any():
                of_id = self._components()
            waiting = later
        return of_id

    def _one_dimensional(self, channels: IntArray, ids: IntArray, node: int) -> IntArray:
        """Reduce the (n, m) channels along an axis to (n,); (0,) where the axis never shrinks."""
        if channels.ndim == 1:
            return channels
        if (channels == channels[:, :1]).all():
            return np.ascontiguousarray(channels[:, 0])
        ordered = np.sort(channels, axis=1)
        if not (ordered == ordered[:1]).all():
            self.pin(ids, node, "the channels don't form a rectangle in a tensor")
        return NOBODY

    def _pin_conflicts(self, lookup: IntArray) -> None:
        """Pin channels that share an integer with other channels, or whose number the integer cannot follow."""
        owners: dict[tuple[int, str, int | None, int | None], Count] = {}
        for count in self.counts:
            first = owners.setdefault((count.node, count.field, count.input, count.index), count)
            found = lookup[count.channels].reshape(len(count.channels), -1)
            if (found >= 0).any() and count.per > 1:
                is_one = bool((found == found[:, :1]).all())  # every index of the axis holds one channel, as a head
                times = np.unique(found[:, 0], return_counts=True)[1]
                if not is_one or (times % count.per).any():
                    self.pin(
                        count.channels,
                        count.node,
                        "a literal that is multiplied at run time would not follow the deletion",
                    )
            if first.per != count.per or not np.array_equal(lookup[first.channels], lookup[count.channels]):
                for one in (first, count):
                    self.pin(
                        one.channels,
                        count.node,
                        "one integer of a shape stands for the number of these channels and of others",
                    )

    def _check_equal(self, equal: Equal, lookup: IntArray, n: int) -> None:
        """Pin the channels of a size computed at run time unless the size follows every selection."""

        def weights(rows: IntArray) -> IntArray:
            """Count the indices of the axis per channel, pinned indices first."""
            channels = lookup[rows]
            if channels.ndim > 1:  # rows of several channels: either each is one channel, or the axis never shrinks
                same = (channels == channels[:, :1]).all()
                channels = channels[:, 0] if same else np.full(len(channels), FIXED)
            return np.bincount(channels + 1, minlength=n + 1)

        if not np.array_equal(weights(equal.ids) * equal.num, weights(equal.rows) * equal.den):
            reason = "a shape computed at run time would not follow the deletion"
            self.pin(equal.ids, equal.node, reason)
            self.pin(equal.rows, equal.node, reason)

    def _groups(self, of_id: IntArray, n: int, labels: tuple[str, ...]) -> tuple[Group, ...]:
        """Put channels that are written by the same layers into one group."""
        if not n:
            return ()
        block_of_id = np.repeat(np.arange(len(self.block_sizes)), self.block_sizes)
        # the signature of a channel is a sum of one random number per block: channels of equal blocks have equal
        # signatures, and others do not (except by chance, below 2**-40)
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

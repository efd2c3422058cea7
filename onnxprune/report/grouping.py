"""The graph of groups, for the page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.types import BoolArray, IntArray, Trace


@dataclass(frozen=True)
class GroupNode:
    """A group, with its layers and neighbors.

    Attributes:
        name: as in the plan.
        writers: layers that write channels of the group.
        followers: layers that lose the same channels: depthwise convolutions, normalizations.
        readers: layers that read channels of the group.
        before, after: number of channels; `after` is None where it is not known.
        pinned: number of pinned channels.
        reasons: distinct reasons of the pins.
        feeds: numbers of the groups that the readers write.
    """

    name: str
    writers: tuple[str, ...]
    followers: tuple[str, ...]
    readers: tuple[str, ...]
    before: int
    after: int | None
    pinned: int
    reasons: tuple[str, ...]
    feeds: tuple[int, ...]


def survivors(trace: Trace, keep: BoolArray) -> dict[str, int]:
    """Return how many channels of each group are kept, by name."""
    return {group.name: int(keep[group.channels].sum()) for group in trace.groups}


def groups(trace: Trace, left: Mapping[str, int]) -> tuple[GroupNode, ...]:
    """Return all groups of the original in graph order; `left` holds the number of kept channels by name."""
    of_channel = np.full(trace.n_channels + 1, -1)
    for number, group in enumerate(trace.groups):
        of_channel[group.channels] = number
    known: dict[int, list[int]] = {}

    def touched(channels: IntArray) -> list[int]:
        if id(channels) not in known:  # many facts share an array
            known[id(channels)] = [number for number in np.unique(of_channel[channels]).tolist() if number >= 0]
        return known[id(channels)]

    writers, followers, readers, reasons = (defaultdict[int, dict[Any, None]](dict) for _ in range(4))
    written = defaultdict[int, set[int]](set)
    roles = {"writes": writers, "follows": followers, "scales": followers, "reads": readers}
    for fact in trace.slices:
        for number in touched(fact.channels):
            roles[fact.role][number][fact.layer] = None
            if fact.role == "writes":
                written[fact.layer].add(number)
    for pin in trace.pins:
        for number in touched(pin.channels):
            reasons[number][pin.reason] = None
    order = sorted(range(len(trace.groups)), key=lambda number: min(writers[number], default=len(trace.labels)))
    place = {number: position for position, number in enumerate(order)}

    def names(layers: Iterable[int]) -> tuple[str, ...]:
        return tuple(trace.labels[layer] for layer in sorted(layers))

    return tuple(
        GroupNode(
            name=(group := trace.groups[number]).name,
            writers=names(writers[number]) or group.layers,
            followers=names(set(followers[number]) - set(writers[number])),
            readers=names(readers[number]),
            before=int(group.channels.size),
            after=left.get(group.name),
            pinned=int(trace.pinned[group.channels].sum()),
            reasons=tuple(reasons[number]),
            feeds=tuple(sorted({place[fed] for layer in readers[number] for fed in written[layer]} - {place[number]})),
        )
        for number in order
    )

"""The graph of groups: which layers belong together, and which groups lie between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.types import BoolArray, IntArray, Trace


@dataclass(frozen=True)
class GroupNode:
    """A group: layers whose channels can only go together.

    Attributes:
        name: as in the plan.
        writers: layers that write its channels.
        followers: layers that are cut along: depthwise convolutions, normalisations.
        readers: layers that read its channels.
        before, after: channels; `after` is None where it is not known.
        pinned: channels that must stay.
        reasons: why, each once.
        feeds: numbers of the groups that its readers write.
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
    """Return how many channels of each group stay, by its name."""
    return {group.name: int(keep[group.channels].sum()) for group in trace.groups}


def groups(trace: Trace, left: Mapping[str, int]) -> tuple[GroupNode, ...]:
    """Return all groups in the order of the graph, with what lies around them.

    Every fact of the trace is looked at once.

    Args:
        trace: of the original.
        left: channels that are left of each group, by its name.
    """
    of_channel = np.full(trace.n_channels + 1, -1)
    for number, group in enumerate(trace.groups):
        of_channel[group.channels] = number
    known: dict[int, tuple[int, ...]] = {}

    def touched(channels: IntArray) -> tuple[int, ...]:
        key = id(channels)  # many facts share an array
        if key not in known:
            known[key] = tuple(int(number) for number in np.unique(of_channel[channels]) if number >= 0)
        return known[key]

    by_role: dict[str, dict[int, dict[int, None]]] = {
        role: defaultdict(dict) for role in ("writes", "follows", "reads")
    }
    for fact in trace.slices:
        role = "follows" if fact.role == "scales" else fact.role
        for number in touched(fact.channels):
            by_role[role][number][fact.layer] = None
    reasons: dict[int, dict[str, None]] = defaultdict(dict)
    for pin in trace.pins:
        for number in touched(pin.channels):
            reasons[number][pin.reason] = None
    written: dict[int, list[int]] = defaultdict(list)
    for number, layers in by_role["writes"].items():
        for layer in layers:
            written[layer].append(number)
    order = sorted(
        range(len(trace.groups)), key=lambda number: min(by_role["writes"].get(number, {}), default=len(trace.labels))
    )
    place = {number: position for position, number in enumerate(order)}

    def names(role: str, number: int) -> tuple[str, ...]:
        return tuple(trace.labels[layer] for layer in sorted(by_role[role].get(number, ())))

    found = []
    for number in order:
        group = trace.groups[number]
        writers = names("writes", number) or group.layers
        fed = {place[other] for layer in by_role["reads"].get(number, ()) for other in written.get(layer, ())}
        found.append(
            GroupNode(
                group.name,
                writers,
                tuple(name for name in names("follows", number) if name not in set(writers)),
                names("reads", number),
                int(group.channels.size),
                left.get(group.name),
                int(trace.pinned[group.channels].sum()),
                tuple(reasons.get(number, ())),
                tuple(sorted(fed - {place[number]})),
            )
        )
    return tuple(found)

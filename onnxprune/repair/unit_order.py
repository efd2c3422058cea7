"""The order in which units of layers are fitted: each behind the units that its inputs depend on."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.calibration.capture import LayerwiseRunner
from onnxprune.graph.readers import Unit


def in_order(units: Sequence[Unit], stream: LayerwiseRunner) -> list[Unit]:
    """Sort units so that each stands behind all that it depends on; units that depend on each other stay in graph order."""
    units = sorted(units, key=lambda unit: unit.nodes)
    if all(len(unit.nodes) == 1 for unit in units):
        return list(units)
    before = _before(units, stream)
    done: set[int] = set()
    found: list[Unit] = []
    for first in range(len(units)):
        waiting = [] if first in done else [(first, iter(sorted(before[first])))]
        done.add(first)
        while waiting:  # depth first; a unit that is waiting already is in a cycle with this one
            number, rest = waiting[-1]
            needed = next((other for other in rest if other not in done), None)
            if needed is None:
                found.append(units[number])
                waiting.pop()
            else:
                done.add(needed)
                waiting.append((needed, iter(sorted(before[needed]))))
    return found


def _before(units: Sequence[Unit], stream: LayerwiseRunner) -> list[set[int]]:
    """Return for each unit the units that come last before its layers."""
    of_node = {n: number for number, unit in enumerate(units) for n in unit.nodes}
    before: list[set[int]] = [set() for _ in units]
    behind: dict[str, frozenset[int]] = {}
    for n, names in enumerate(stream.inputs):
        last = frozenset[int]().union(*(behind.get(name, frozenset()) for name in names))
        own = of_node.get(n)
        if own is not None:
            before[own] |= last - {own}
            last = frozenset({own})
        behind |= {tensor.name: last for tensor in stream.nodes[n].outputs}
    return before

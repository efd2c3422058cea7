"""Choose which channels stay, so that the targets hold and the least important channels go first."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from onnxprune.errors import OptionError, TargetError
from onnxprune.options import SCOPES
from onnxprune.types import BoolArray, Curve, FloatArray, Group, IntArray, Trace

ATTEMPTS = 8
"""How often a block that overshoots the target is left out to look for a nearer one."""
NEAR = 0.01
"""Overshoot, as a share of what may be left, that needs no further look."""


TOLD = (
    ("MACs", ",.0f"),
    ("parameters", ",.0f"),
    ("bytes", ",.0f"),
    ("bytes of activations", ",.0f"),
    ("milliseconds", ".3g"),
)
"""What the fields of `Limits` are called in an error, and how their amounts are written."""


class Costs(Protocol):
    """What a model costs under any choice of survivors."""

    def totals(self, keep: BoolArray) -> tuple[float, ...]:
        """Return amounts in the order of the fields of `Limits`; it may end where no limit follows."""


@dataclass(frozen=True)
class Limits:
    """Absolute bounds: what may be left. None: no bound.

    Attributes:
        macs: multiply-accumulates per sample.
        params: parameters.
        size: bytes of the file.
        memory: bytes of the activations that are alive at once.
        latency: milliseconds of a run.
    """

    macs: float | None = None
    params: float | None = None
    size: float | None = None
    memory: float | None = None
    latency: float | None = None

    @property
    def bounds(self) -> tuple[float | None, ...]:
        """The bounds, in the order of the fields."""
        return self.macs, self.params, self.size, self.memory, self.latency

    def pairs(self, amounts: Sequence[float]) -> Iterator[tuple[float, float]]:
        """Yield (amount, bound) of everything that is bound."""
        for n, bound in enumerate(self.bounds):
            if bound is not None:
                yield amounts[n], bound

    def hold(self, *amounts: float) -> bool:
        """Tell whether a model of this cost keeps every bound."""
        return all(amount <= bound for amount, bound in self.pairs(amounts))

    def part(self, amounts: Sequence[float], share: float) -> Limits:
        """Return bounds some share of the way from these amounts; one that holds already stays."""
        bounds = (
            bound if bound is None or bound >= amount else amount - share * (amount - bound)
            for amount, bound in zip(amounts, self.bounds, strict=True)
        )
        return Limits(*bounds)

    def overshoot(self, *amounts: float) -> float:
        """Return how far below its bounds a model lies, as a share of the nearest one."""
        return min((1 - amount / bound for amount, bound in self.pairs(amounts) if bound), default=0.0)

    def excess(self, *amounts: float) -> float:
        """Return how far above its bounds a model lies, as shares of them, added up; 0 where all hold.

        With the largest one alone, a step that helps with another limit would count for nothing.
        """
        return sum(max(amount / bound - 1, 0.0) for amount, bound in self.pairs(amounts))


@dataclass(frozen=True)
class PruningRules:
    """What a group must keep.

    Attributes:
        round_to: survivors of a group are a multiple of this, and channels go in blocks of it.
        min_channels: channels that stay in every group at least.
        max_ratio: share of a group's channels that may go at most.
        scope: `global` ranks all blocks of the network together; `uniform` takes the same share of each group.
        steps: the same as `round_to` for single groups, by name.
        sizes: channels that groups had at first, by name, where some have gone already; shares are shares of that.
    """

    round_to: int = 8
    min_channels: int = 1
    max_ratio: float = 1.0
    scope: str = "global"
    sizes: Mapping[str, int] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)

    def step(self, group: Group) -> int:
        """Return what the survivors of a group are a multiple of, in channels: the runtime counts filters."""
        return -(-self.steps.get(group.name, self.round_to) // group.width)

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise OptionError(f"unknown scope {self.scope!r}", hint=f"choose one of {', '.join(SCOPES)}")
        if self.round_to < 1 or self.min_channels < 1 or not 0 < self.max_ratio <= 1:
            raise OptionError(
                "a pruning rule is out of range",
                why=f"round_to={self.round_to}, min_channels={self.min_channels}, max_ratio={self.max_ratio}",
                hint="round_to and min_channels are 1 or more, max_ratio lies above 0 and at most at 1",
            )


@dataclass(frozen=True)
class ChannelBatch:
    """Channels of one group that go together, and the key that orders them."""

    group: str
    channels: IntArray
    key: float


def channel_batches(trace: Trace, scores: FloatArray, keep: BoolArray, rules: PruningRules) -> list[ChannelBatch]:
    """Return every block that the rules let go, weakest first.

    Within a group channels are sorted by importance and cut into blocks of `round_to` filters, the first one shorter where
    that makes the survivors a multiple of it. A channel that is pinned, or that the method could not score, is in no block.
    """
    blocks: list[ChannelBatch] = []
    for group in trace.groups:
        left = group.channels[keep[group.channels]]
        free = left[~trace.pinned[left] & ~np.isnan(scores[left])]
        multiple = rules.step(group)
        whole = rules.sizes.get(group.name, group.channels.size)
        least = max(rules.min_channels, int(np.ceil(whole * (1 - rules.max_ratio) - 1e-9)))
        order = free[np.argsort(scores[free], kind="stable")]
        at = 0
        while at < order.size:
            survivors = left.size - at
            size = survivors % multiple or multiple
            if survivors - size < max(least, 1) or at + size > order.size:
                break
            block = order[at : at + size]
            at += size
            done = 1 - (left.size - at) / group.channels.size
            blocks.append(
                ChannelBatch(group.name, block, float(scores[block].mean()) if rules.scope == "global" else done)
            )
    blocks.sort(key=lambda block: block.key)
    return _nonempty(trace, keep, blocks)


def _nonempty(trace: Trace, keep: BoolArray, blocks: list[ChannelBatch]) -> list[ChannelBatch]:
    """Drop blocks that would leave some tensor (a part of a Split, a branch of a Concat) without any channel."""
    left = [int(keep[extent].sum()) for extent in trace.extents]
    members: list[list[int]] = [[] for _ in range(trace.n_channels)]
    for number, extent in enumerate(trace.extents):
        for channel in extent.tolist():
            members[channel].append(number)
    allowed = []
    for block in blocks:
        loss = Counter(number for channel in block.channels.tolist() for number in members[channel])
        if any(left[number] <= lost for number, lost in loss.items()):
            continue
        for number, lost in loss.items():
            left[number] -= lost
        allowed.append(block)
    return allowed


def allocate(
    trace: Trace, cost: Costs, scores: FloatArray, keep: BoolArray, rules: PruningRules, limits: Limits
) -> BoolArray:
    """Remove the fewest blocks, weakest first, with which all limits hold.

    Cost falls with every block, so the number of blocks is found by bisection. Where the last block overshoots the target
    (a coarse group can hold a fifth of the network), it is also tried without that block and what follows in its group. That
    is taken when it lands nearer and removes no more importance.

    Args:
        trace: facts of the model.
        cost: its cost model.
        scores: (n_channels,) importance.
        keep: (n_channels,) channels that are left before.
        rules: what a group must keep.
        limits: what may be left.

    Returns:
        (n_channels,) channels that stay.

    Raises:
        TargetError: the limits cannot be reached; says how near they can be, and what holds the rest.
    """
    if limits.hold(*cost.totals(keep)):
        return keep.copy()
    blocks = channel_batches(trace, scores, keep, rules)
    everything = _without(keep, blocks)
    if not limits.hold(*cost.totals(everything)):
        raise _unreachable(trace, cost, everything, limits, rules)
    best, least, allowed = everything, np.inf, np.inf
    for _ in range(ATTEMPTS):
        if not limits.hold(*cost.totals(_without(keep, blocks))):
            break
        low, high = 0, len(blocks)
        while high - low > 1:
            middle = (low + high) // 2
            holds = limits.hold(*cost.totals(_without(keep, blocks[:middle])))
            low, high = (low, middle) if holds else (middle, high)
        result = _without(keep, blocks[:high])
        overshoot = limits.overshoot(*cost.totals(result))
        lost = float(scores[keep & ~result].sum())
        if overshoot < least and lost <= allowed:
            best, least = result, overshoot
        allowed = min(allowed, lost)  # what the first attempt, weakest blocks in order, removes
        if overshoot < NEAR:
            break
        last = blocks[high - 1]
        blocks = blocks[: high - 1] + [block for block in blocks[high:] if block.group != last.group]
    return best


LOOK_AHEAD = (1, 2, 4, 8)
"""Blocks of a group that are weighed together: a curve may be steep at first and flat after."""
SWEEPS = 4
"""How often the choice is gone over for exchanges, at most."""


def allocate_by_loss(
    trace: Trace,
    cost: Costs,
    curves: Sequence[Curve],
    keep: BoolArray,
    rules: PruningRules,
    limits: Limits,
) -> BoolArray:
    """Remove blocks with the least sum of measured losses with which all limits hold.

    A knapsack whose weights depend on each other, as the cost of a layer is a product. Solved greedily: the blocks with the least loss
    per saved cost go first, up to eight of a group at once, so that what counts is the lower convex hull of a curve; savings shrink
    as others go, so the best is weighed anew before it is taken. Then what is not needed comes back, dearest first, and single blocks
    are exchanged between groups while that loses less.

    Args:
        trace: facts of the model.
        cost: its cost model.
        curves: what each group loses; groups without one stay.
        keep: (n_channels,) channels that are left before.
        rules: what a group must keep; its scope has no say.
        limits: what may be left.

    Returns:
        (n_channels,) channels that stay.

    Raises:
        TargetError: the limits cannot be reached.
    """
    rank = np.full(trace.n_channels, np.nan)
    for curve in curves:
        rank[curve.order] = np.arange(curve.order.size)
    blocks: dict[str, list[ChannelBatch]] = {}
    for block in channel_batches(trace, rank, keep, rules):
        blocks.setdefault(block.group, []).append(block)
    everything = _without(keep, [block for found in blocks.values() for block in found])
    if not limits.hold(*cost.totals(everything)):
        raise _unreachable(trace, cost, everything, limits, rules)
    bag = GreedyKnapsack(cost, limits, keep, blocks, {curve.group: curve for curve in curves})
    bag.fill()
    bag.exchange()
    return bag.left()


class GreedyKnapsack:
    """How many blocks of each group have gone, and what that costs and saves."""

    def __init__(
        self,
        cost: Costs,
        limits: Limits,
        keep: BoolArray,
        blocks: dict[str, list[ChannelBatch]],
        curves: dict[str, Curve],
    ) -> None:
        self.cost, self.limits, self.keep = cost, limits, keep
        self.gone = dict.fromkeys(blocks, 0)
        self.channels = {name: np.concatenate([b.channels for b in found]) for name, found in blocks.items()}
        self.ends = {name: np.cumsum([0, *(b.channels.size for b in found)]) for name, found in blocks.items()}
        self.losses = {
            name: curves[name].at((~keep[curves[name].order]).sum() + ends) for name, ends in self.ends.items()
        }

    def left(self, changed: Mapping[str, int] | None = None) -> BoolArray:
        """Return what stays; `changed` are numbers of blocks in place of those that have gone."""
        result = self.keep.copy()
        for name, count in {**self.gone, **(changed or {})}.items():
            result[self.channels[name][: self.ends[name][count]]] = False
        return result

    def excess(self, keep: BoolArray) -> float:
        """Return how far above its limits a choice lies."""
        return self.limits.excess(*self.cost.totals(keep))

    def _rise(self, name: str, count: int) -> float:
        return float(self.losses[name][count] - self.losses[name][self.gone[name]])

    def _best_step(self, name: str, excess: float) -> tuple[float, int]:
        """Return the least loss per saving of a group, and the number of its blocks that are gone then."""
        best = (np.inf, 0)
        for ahead in LOOK_AHEAD:
            count = self.gone[name] + ahead
            if count >= len(self.losses[name]):
                break
            saved = excess - self.excess(self.left({name: count}))
            if saved > 0:
                best = min(best, (self._rise(name, count) / saved, count))
        return best

    def fill(self) -> None:
        """Take blocks until all limits hold."""
        excess = self.excess(self.left())
        waiting = [(self._best_step(name, excess)[0], name) for name in self.gone]
        heapq.heapify(waiting)
        while excess > 0 and waiting:
            _, name = heapq.heappop(waiting)
            ratio, count = self._best_step(name, excess)
            if not np.isfinite(ratio):
                continue
            if waiting and ratio > waiting[0][0]:
                heapq.heappush(waiting, (ratio, name))
                continue
            self.gone[name] = count
            excess = self.excess(self.left())
            heapq.heappush(waiting, (self._best_step(name, excess)[0], name))
        if excess > 0:  # steps that save nothing by themselves are left: take all
            self.gone = {name: ends.size - 1 for name, ends in self.ends.items()}

    def exchange(self) -> None:
        """Give back what is not needed, then exchange blocks between groups while that loses less."""
        self._give_back()
        for _ in range(SWEEPS):
            if not self._exchange_once():
                return
            self._give_back()

    def _give_back(self) -> None:
        changed = True
        while changed:
            changed = False
            dearest = sorted(
                (name for name, count in self.gone.items() if count),
                key=lambda name: self._rise(name, self.gone[name] - 1),
            )
            for name in dearest:
                if self.excess(self.left({name: self.gone[name] - 1})) <= 0:
                    self.gone[name] -= 1
                    changed = True

    def _exchange_once(self) -> bool:
        improved = False
        for back in sorted((n for n, c in self.gone.items() if c), key=lambda n: self._rise(n, self.gone[n] - 1)):
            gain = -self._rise(back, self.gone[back] - 1)
            others = [
                (self._rise(n, c + 1), n) for n, c in self.gone.items() if n != back and c + 1 < len(self.losses[n])
            ]
            for price, name in sorted(others):
                if price >= gain:
                    break
                changed = {back: self.gone[back] - 1, name: self.gone[name] + 1}
                if self.excess(self.left(changed)) <= 0:
                    self.gone.update(changed)
                    improved = True
                    break
        return improved


def _without(keep: BoolArray, blocks: Sequence[ChannelBatch]) -> BoolArray:
    result = keep.copy()
    if blocks:
        result[np.concatenate([block.channels for block in blocks])] = False
    return result


def below(trace: Trace, scores: FloatArray, keep: BoolArray, rules: PruningRules, threshold: float) -> BoolArray:
    """Remove every channel whose normalised importance lies below `threshold`, as far as the rules allow.

    Each group loses what lies below, less the channels needed to end on a multiple of `round_to`.
    """
    result = keep.copy()
    for block in channel_batches(trace, scores, keep, rules):
        if (scores[block.channels] < threshold).all():
            result[block.channels] = False
    return result


def refuse_unreachable(trace: Trace, cost: Costs, keep: BoolArray, rules: PruningRules, limits: Limits) -> None:
    """Raise TargetError when the limits cannot be reached, in whatever order channels go."""
    smallest = _without(keep, channel_batches(trace, np.zeros(trace.n_channels), keep, rules))
    if not limits.hold(*cost.totals(smallest)):
        raise _unreachable(trace, cost, smallest, limits, rules)


def _unreachable(trace: Trace, cost: Costs, smallest: BoolArray, limits: Limits, rules: PruningRules) -> TargetError:
    dense = cost.totals(np.ones(trace.n_channels, dtype=bool))
    least = cost.totals(smallest)
    parts = [
        f"{name} can fall to {value:{form}} (-{1 - value / whole:.1%}), {bound:{form}} (-{1 - bound / whole:.1%}) was asked"
        for (name, form), whole, (value, bound) in (
            (told, dense[n], (least[n], bound))
            for n, (told, bound) in enumerate(zip(TOLD, limits.bounds, strict=True))
            if bound is not None
        )
        if value > bound
    ]
    return TargetError(
        "the target cannot be reached",
        why="; ".join([*parts, *holders(trace, rules)]),
        hint="ask for less, or relax --min-channels, --max-ratio, --round-to or --ignore",
    )


def holders(trace: Trace, rules: PruningRules) -> Sequence[str]:
    """Say, most channels first, what keeps channels from going."""
    held: dict[str, int] = {}
    for pin in trace.pins:
        held[f"{pin.reason} ({pin.node})"] = held.get(f"{pin.reason} ({pin.node})", 0) + pin.channels.size
    ranked = sorted(held.items(), key=lambda item: -item[1])[:3]
    lines = [f"{count} channels stay because {reason}" for reason, count in ranked]
    small = sum(
        1
        for group in trace.groups
        if not trace.pinned[group.channels].all() and group.channels.size <= rules.step(group)
    )
    if small and max(rules.round_to, *rules.steps.values(), 1) > 1:
        lines.append(f"{small} groups have no more channels than they are rounded to, and stay whole")
    return lines

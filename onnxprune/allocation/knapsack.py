"""Select the channels that stay, so that the budget holds and the least important channels are removed first."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.errors import OptionError, TargetError
from onnxprune.metrics.table import METRICS
from onnxprune.options import SCOPES
from onnxprune.types import BoolArray, Curve, FloatArray, Group, IntArray, Trace

ATTEMPTS = 8
"""How often a channel batch that overshoots the budget is left out to look for a nearer selection."""
NEAR = 0.01
"""Overshoot, as a share of the budget, that needs no further look."""
Amounts = dict[str, float]
"""Amounts by metric, see `onnxprune.metrics.table.METRICS`."""
Budget = dict[str, float]
"""Largest amounts that hold, by metric; a metric without a bound is absent."""
Predict = Callable[[BoolArray], Amounts]
"""Returns the amounts of a selection, (n_channels,)."""


def holds(amounts: Amounts, budget: Budget) -> bool:
    """Tell whether every bound holds."""
    return all(amounts[name] <= bound for name, bound in budget.items())


def overshoot(amounts: Amounts, budget: Budget) -> float:
    """Return how far amounts lie below the budget, as a share of the nearest bound."""
    return min((1 - amounts[name] / bound for name, bound in budget.items() if bound), default=0.0)


def excess(amounts: Amounts, budget: Budget) -> float:
    """Return how far amounts lie above the budget, as shares of the bounds, summed; 0 where all hold.

    With the largest one alone, a removal that helps with another bound would count for nothing.
    """
    return sum(max(amounts[name] / bound - 1, 0.0) for name, bound in budget.items())


def part_way(amounts: Amounts, budget: Budget, share: float) -> Budget:
    """Return bounds some share of the way from these amounts to a budget; a bound that holds already stays."""
    return {
        name: bound if bound >= amounts[name] else amounts[name] - share * (amounts[name] - bound)
        for name, bound in budget.items()
    }


@dataclass(frozen=True)
class PruningRules:
    """What a group must keep.

    Attributes:
        round_to: channel multiple: survivors of a group are a multiple of it, and channels are removed in batches of it.
        min_channels: channels that every group keeps at least.
        max_ratio: largest share of a group's channels that is removed.
        scope: `global` ranks all channel batches of the network together; `uniform` takes the same share of each group.
        multiples: channel multiples of single groups, by name, in place of `round_to`.
    """

    round_to: int = 8
    min_channels: int = 1
    max_ratio: float = 1.0
    scope: str = "global"
    multiples: Mapping[str, int] = field(default_factory=dict)

    def multiple(self, group: Group) -> int:
        """Return the multiple of the survivors of a group, in channels: the runtime counts filters."""
        return -(-self.multiples.get(group.name, self.round_to) // group.width)

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
    """Channels of one group that are removed together, and the key that orders batches."""

    group: str
    channels: IntArray
    key: float


def channel_batches(trace: Trace, scores: FloatArray, keep: BoolArray, rules: PruningRules) -> list[ChannelBatch]:
    """Return every channel batch that the rules allow to remove, least important first.

    Within a group channels are sorted by importance and cut into batches of `round_to` filters, the first one shorter where
    that makes the survivors a multiple of it. A channel that is pinned, or has no score, is in no batch.
    """
    batches: list[ChannelBatch] = []
    for group in trace.groups:
        left = group.channels[keep[group.channels]]
        free = left[~trace.pinned[left] & ~np.isnan(scores[left])]
        multiple = rules.multiple(group)
        least = max(rules.min_channels, int(np.ceil(group.channels.size * (1 - rules.max_ratio) - 1e-9)), 1)
        order = free[np.argsort(scores[free], kind="stable")]
        at = 0
        while at < order.size:
            survivors = left.size - at
            size = survivors % multiple or multiple
            if survivors - size < least or at + size > order.size:
                break
            channels = order[at : at + size]
            at += size
            removed = 1 - (left.size - at) / group.channels.size
            key = float(scores[channels].mean()) if rules.scope == "global" else removed
            batches.append(ChannelBatch(group.name, channels, key))
    batches.sort(key=lambda batch: batch.key)
    return _nonempty(trace, keep, batches)


def _nonempty(trace: Trace, keep: BoolArray, batches: list[ChannelBatch]) -> list[ChannelBatch]:
    """Drop batches that would leave some tensor (a part of a Split, a branch of a Concat) without any channel."""
    left = [int(keep[extent].sum()) for extent in trace.extents]
    members: list[list[int]] = [[] for _ in range(trace.n_channels)]
    for number, extent in enumerate(trace.extents):
        for channel in extent.tolist():
            members[channel].append(number)
    allowed = []
    for batch in batches:
        loss = Counter(number for channel in batch.channels.tolist() for number in members[channel])
        if any(left[number] <= lost for number, lost in loss.items()):
            continue
        for number, lost in loss.items():
            left[number] -= lost
        allowed.append(batch)
    return allowed


def allocate(
    trace: Trace, predict: Predict, scores: FloatArray, keep: BoolArray, rules: PruningRules, budget: Budget
) -> BoolArray:
    """Remove the fewest channel batches, least important first, with which the budget holds.

    Costs fall with every batch, so the number of batches is found by bisection. Where the last batch overshoots the budget
    (a coarse group can hold a fifth of the network), the selection is also tried without that batch and what follows in its
    group. That is taken when it lands nearer and removes no more importance.

    Args:
        trace: facts of the model.
        predict: costs of a selection.
        scores: (n_channels,) importance.
        keep: (n_channels,) channels that are left before.
        rules: what a group must keep.
        budget: what may be left.

    Returns:
        (n_channels,) channels that stay.

    Raises:
        TargetError: the budget cannot be met; the message gives the smallest amounts, and what pins channels.
    """
    if holds(predict(keep), budget):
        return keep.copy()
    batches = channel_batches(trace, scores, keep, rules)
    smallest = _without(keep, batches)
    if not holds(predict(smallest), budget):
        raise _unreachable(trace, predict, smallest, budget, rules)
    best, least, allowed = smallest, np.inf, np.inf
    for _ in range(ATTEMPTS):
        if not holds(predict(_without(keep, batches)), budget):
            break
        low, high = 0, len(batches)
        while high - low > 1:
            middle = (low + high) // 2
            enough = holds(predict(_without(keep, batches[:middle])), budget)
            low, high = (low, middle) if enough else (middle, high)
        result = _without(keep, batches[:high])
        gap = overshoot(predict(result), budget)
        lost = float(scores[keep & ~result].sum())
        if gap < least and lost <= allowed:
            best, least = result, gap
        allowed = min(allowed, lost)  # what the first attempt, least important batches in order, removes
        if gap < NEAR:
            break
        last = batches[high - 1]
        batches = batches[: high - 1] + [batch for batch in batches[high:] if batch.group != last.group]
    return best


LOOK_AHEAD = (1, 2, 4, 8)
"""Batches of a group that are weighed together: a curve may be steep at first and flat after."""
SWEEPS = 4
"""How often the selection is searched for exchanges, at most."""


def allocate_by_loss(
    trace: Trace, predict: Predict, curves: Sequence[Curve], keep: BoolArray, rules: PruningRules, budget: Budget
) -> BoolArray:
    """Remove channel batches with the least sum of measured losses with which the budget holds.

    A knapsack whose weights depend on each other, as the cost of a layer is a product. Solved greedily: the batches with the least loss
    per saved cost are removed first, up to eight of a group at once, so that the lower convex hull of a curve counts; savings shrink
    as others are removed, so the best is weighed anew before it is taken. Then batches that need not go come back, most expensive
    first, and single batches are exchanged between groups while that loses less.

    Args:
        trace: facts of the model.
        predict: costs of a selection.
        curves: loss of each group; groups without one stay whole.
        keep: (n_channels,) channels that are left before.
        rules: what a group must keep; `scope` is not used.
        budget: what may be left.

    Returns:
        (n_channels,) channels that stay.

    Raises:
        TargetError: the budget cannot be met.
    """
    rank = np.full(trace.n_channels, np.nan)
    for curve in curves:
        rank[curve.order] = np.arange(curve.order.size)
    batches: dict[str, list[ChannelBatch]] = {}
    for batch in channel_batches(trace, rank, keep, rules):
        batches.setdefault(batch.group, []).append(batch)
    smallest = _without(keep, [batch for found in batches.values() for batch in found])
    if not holds(predict(smallest), budget):
        raise _unreachable(trace, predict, smallest, budget, rules)
    knapsack = GreedyKnapsack(predict, budget, keep, batches, {curve.group: curve for curve in curves})
    knapsack.fill()
    knapsack.exchange()
    return knapsack.left()


class GreedyKnapsack:
    """How many channel batches of each group are removed, and what that costs and saves."""

    def __init__(
        self,
        predict: Predict,
        budget: Budget,
        keep: BoolArray,
        batches: dict[str, list[ChannelBatch]],
        curves: dict[str, Curve],
    ) -> None:
        self.predict, self.budget, self.keep = predict, budget, keep
        self.gone = dict.fromkeys(batches, 0)
        self.channels = {name: np.concatenate([b.channels for b in found]) for name, found in batches.items()}
        self.ends = {name: np.cumsum([0, *(b.channels.size for b in found)]) for name, found in batches.items()}
        self.losses = {
            name: curves[name].at((~keep[curves[name].order]).sum() + ends) for name, ends in self.ends.items()
        }

    def left(self, changed: Mapping[str, int] | None = None) -> BoolArray:
        """Return the channels that stay; `changed` replaces the numbers of removed batches of some groups."""
        result = self.keep.copy()
        for name, count in {**self.gone, **(changed or {})}.items():
            result[self.channels[name][: self.ends[name][count]]] = False
        return result

    def excess(self, changed: Mapping[str, int] | None = None) -> float:
        """Return how far a selection exceeds the budget; see `left`."""
        return excess(self.predict(self.left(changed)), self.budget)

    def _rise(self, name: str, count: int) -> float:
        return float(self.losses[name][count] - self.losses[name][self.gone[name]])

    def _best_step(self, name: str, excess: float) -> tuple[float, int]:
        """Return the least loss per saving of a group, and the number of its batches that are removed then."""
        best = (np.inf, 0)
        for ahead in LOOK_AHEAD:
            count = self.gone[name] + ahead
            if count >= len(self.losses[name]):
                break
            saved = excess - self.excess({name: count})
            if saved > 0:
                best = min(best, (self._rise(name, count) / saved, count))
        return best

    def fill(self) -> None:
        """Remove batches until the budget holds."""
        excess = self.excess()
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
            excess = self.excess()
            heapq.heappush(waiting, (self._best_step(name, excess)[0], name))
        if excess > 0:  # batches that save nothing by themselves are left: remove all
            self.gone = {name: ends.size - 1 for name, ends in self.ends.items()}

    def exchange(self) -> None:
        """Give back batches that need not go, then exchange batches between groups while that loses less."""
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
                if self.excess({name: self.gone[name] - 1}) <= 0:
                    self.gone[name] -= 1
                    changed = True

    def _exchange_once(self) -> bool:
        improved = False
        for back in sorted((n for n, c in self.gone.items() if c), key=lambda n: self._rise(n, self.gone[n] - 1)):
            gain = -self._rise(back, self.gone[back] - 1)
            others = [
                (self._rise(n, c + 1), n) for n, c in self.gone.items() if n != back and c + 1 < len(self.losses[n])
            ]
            for loss, name in sorted(others):
                if loss >= gain:
                    break
                changed = {back: self.gone[back] - 1, name: self.gone[name] + 1}
                if self.excess(changed) <= 0:
                    self.gone.update(changed)
                    improved = True
                    break
        return improved


def _without(keep: BoolArray, batches: Sequence[ChannelBatch]) -> BoolArray:
    result = keep.copy()
    if batches:
        result[np.concatenate([batch.channels for batch in batches])] = False
    return result


def below(trace: Trace, scores: FloatArray, keep: BoolArray, rules: PruningRules, threshold: float) -> BoolArray:
    """Remove every channel whose normalized importance lies below `threshold`, as far as the rules allow.

    Each group loses what lies below, less the channels needed to end on a multiple of `round_to`.
    """
    result = keep.copy()
    for batch in channel_batches(trace, scores, keep, rules):
        if (scores[batch.channels] < threshold).all():
            result[batch.channels] = False
    return result


def refuse_unreachable(trace: Trace, predict: Predict, keep: BoolArray, rules: PruningRules, budget: Budget) -> None:
    """Raise TargetError when the budget cannot be met, in whatever order channels are removed."""
    smallest = _without(keep, channel_batches(trace, np.zeros(trace.n_channels), keep, rules))
    if not holds(predict(smallest), budget):
        raise _unreachable(trace, predict, smallest, budget, rules)


def _unreachable(
    trace: Trace, predict: Predict, smallest: BoolArray, budget: Budget, rules: PruningRules
) -> TargetError:
    dense, least = predict(np.ones(trace.n_channels, dtype=bool)), predict(smallest)
    parts = []
    for name, bound in budget.items():
        metric, whole, value = METRICS[name], dense[name], least[name]
        if value > bound:
            form = metric.format
            parts.append(
                f"{metric.label} can fall to {value:{form}} (-{1 - value / whole:.1%}), "
                f"{bound:{form}} (-{1 - bound / whole:.1%}) was asked"
            )
    return TargetError(
        "the target cannot be reached",
        why="; ".join([*parts, *holders(trace, rules)]),
        hint="ask for less, or relax --min-channels, --max-ratio, --round-to or --ignore",
    )


def holders(trace: Trace, rules: PruningRules) -> Sequence[str]:
    """Return the main reasons why channels are pinned, most channels first."""
    held: dict[str, int] = {}
    for pin in trace.pins:
        held[f"{pin.reason} ({pin.node})"] = held.get(f"{pin.reason} ({pin.node})", 0) + pin.channels.size
    ranked = sorted(held.items(), key=lambda item: -item[1])[:3]
    lines = [f"{count} channels stay because {reason}" for reason, count in ranked]
    small = sum(
        1
        for group in trace.groups
        if not trace.pinned[group.channels].all() and group.channels.size <= rules.multiple(group)
    )
    if small and max(rules.round_to, *rules.multiples.values(), 1) > 1:
        lines.append(f"{small} groups have no more channels than they are rounded to, and stay whole")
    return lines

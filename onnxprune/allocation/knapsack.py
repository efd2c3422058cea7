"""Select the channels that stay, so that the budget holds and the least important channels are removed first."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.allocation import channel_multiple
from onnxprune.errors import TargetError
from onnxprune.metrics.table import METRICS
from onnxprune.options import ResolvedOptions
from onnxprune.types import BoolArray, Curve, FloatArray, Group, IntArray, Trace

ATTEMPTS = 8
"""Largest number of selections among which the nearest to the budget is taken."""
NEAR = 0.01
"""Overshoot, as a share of the budget, at which the search ends."""
LOOK_AHEAD = (1, 2, 4, 8)
"""Numbers of batches of a group that are weighed together: a loss curve may be steep at first and flat after."""
SWEEPS = 4
"""Largest number of passes that exchange batches between groups."""
RELAX = "ask for less, or relax --min-channels, --max-ratio, --round-to or --ignore"
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


def points_beyond(amounts: Amounts, budget: Budget, whole: Amounts) -> float:
    """Return how far amounts lie below the nearest bound, as a share of the whole model."""
    return min(((bound - amounts[name]) / whole[name] for name, bound in budget.items() if whole[name]), default=0.0)


def excess(amounts: Amounts, budget: Budget) -> float:
    """Return how far amounts lie above the budget, as shares of the bounds, summed; 0 where all hold.

    The sum, and not the largest, is used because a removal may help with any of the bounds.
    """
    return sum(max(amounts[name] / bound - 1, 0.0) for name, bound in budget.items())


def part_way(amounts: Amounts, budget: Budget, share: float) -> Budget:
    """Return bounds a share of the way from these amounts to a budget; a bound that already holds stays."""
    return {
        name: bound if bound >= amounts[name] else amounts[name] - share * (amounts[name] - bound)
        for name, bound in budget.items()
    }


@dataclass(frozen=True)
class PruningRules:
    """What every group must keep.

    Attributes:
        round_to: channel multiple of the survivors of a group, and the number of filters in a channel batch.
        min_channels: fewest channels of a group.
        max_ratio: largest share of a group's channels that is removed.
        scope: `global` ranks all channel batches of the network together; any other removes the same share of each
            group.
        multiples: channel multiples of single groups, by name, in place of `round_to`.
        may_refine: whether a finer multiple may be taken where a channel batch would go far beyond the budget.
    """

    round_to: int = 8
    min_channels: int = 1
    max_ratio: float = 1.0
    scope: str = "global"
    multiples: Mapping[str, int] = field(default_factory=dict)
    may_refine: bool = False

    @classmethod
    def of(cls, trace: Trace, options: ResolvedOptions, scope: str = "global") -> PruningRules:
        """Return the rules of the options; without `round_to` the channel multiples are those of the machine."""
        if options.round_to is not None:
            return cls(options.round_to, options.min_channels, options.max_ratio, scope)
        multiple, multiples = channel_multiple.multiples(trace, options.multiple)
        return cls(multiple, options.min_channels, options.max_ratio, scope, multiples, may_refine=True)

    def multiple(self, group: Group) -> int:
        """Return the multiple of the survivors of a group, in channels."""
        return -(-self.multiples.get(group.name, self.round_to) // group.width)

    def rounded_to(self, multiple: int) -> PruningRules:
        """Return the rules with one channel multiple for all groups."""
        return replace(self, round_to=multiple, multiples={})

    def refined(self, multiple: int, groups: Iterable[Group]) -> PruningRules:
        """Return the rules with a channel multiple of at most `multiple` in some groups."""
        finer = {group.name: min(multiple, self.multiples.get(group.name, self.round_to)) for group in groups}
        return replace(self, multiples={**self.multiples, **finer})


@dataclass(frozen=True)
class ChannelBatch:
    """Channels of one group that are removed together; batches are removed in the order of `key`."""

    group: str
    channels: IntArray
    key: float


def channel_batches(trace: Trace, scores: FloatArray, keep: BoolArray, rules: PruningRules) -> list[ChannelBatch]:
    """Return the channel batches that the rules allow to remove, least important first.

    Channels of a group are sorted by importance and cut into batches of the channel multiple. The first batch is
    shorter where the group is no multiple. Pinned channels and channels without a score are in no batch.
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


def by_group(batches: Iterable[ChannelBatch]) -> dict[str, list[ChannelBatch]]:
    """Return the channel batches of each group, in their order."""
    found: dict[str, list[ChannelBatch]] = {}
    for batch in batches:
        found.setdefault(batch.group, []).append(batch)
    return found


def without(keep: BoolArray, batches: Iterable[ChannelBatch]) -> BoolArray:
    """Return the channels that stay, (n_channels,), after the removal of some batches."""
    result = keep.copy()
    for batch in batches:
        result[batch.channels] = False
    return result


def _nonempty(trace: Trace, keep: BoolArray, batches: list[ChannelBatch]) -> list[ChannelBatch]:
    """Drop batches that would leave a tensor (a part of a Split, a branch of a Concat) without channels."""
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

    Costs fall with every batch, so bisection finds the number of batches. Where the last batch overshoots the budget (a
    coarse group can hold a fifth of the network), the selection without this batch and the later ones of its group is
    tried as well. It is taken when it lies nearer to the budget and removes no more importance.

    Args:
        trace: facts of the model.
        predict: costs of a selection.
        scores: (n_channels,) importance.
        keep: (n_channels,) channels that are left before.
        rules: what a group must keep.
        budget: largest amounts.

    Returns:
        (n_channels,) channels that stay.

    Raises:
        TargetError: the budget cannot be met; the message gives the smallest amounts, and what pins channels.
    """
    if holds(predict(keep), budget):
        return keep.copy()
    batches = channel_batches(trace, scores, keep, rules)
    best = _smallest(trace, predict, keep, batches, rules, budget)
    least, allowed = np.inf, np.inf
    for _ in range(ATTEMPTS):
        if not holds(predict(without(keep, batches)), budget):
            break
        low, high = 0, len(batches)
        while high - low > 1:
            middle = (low + high) // 2
            enough = holds(predict(without(keep, batches[:middle])), budget)
            low, high = (low, middle) if enough else (middle, high)
        result = without(keep, batches[:high])
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


def allocate_by_loss(
    trace: Trace, predict: Predict, curves: Sequence[Curve], keep: BoolArray, rules: PruningRules, budget: Budget
) -> BoolArray:
    """Remove channel batches with the least sum of measured losses with which the budget holds.

    This is a knapsack whose weights depend on each other, because the cost of a layer is a product. It is solved
    greedily. The batches with the least loss per saved cost are removed first, up to eight of a group at once, so that
    the lower convex hull of a curve counts. Savings shrink as other batches are removed, so the best batches are
    weighed again before they are taken. Then unneeded batches are restored, most expensive first, and single batches
    are exchanged between groups while that reduces the loss.

    The arguments are those of `allocate`; groups without a curve stay whole.
    """
    rank = np.full(trace.n_channels, np.nan)
    for curve in curves:
        rank[curve.order] = np.arange(curve.order.size)
    batches = channel_batches(trace, rank, keep, rules)
    _smallest(trace, predict, keep, batches, rules, budget)
    knapsack = GreedyKnapsack(predict, budget, keep, by_group(batches), {curve.group: curve for curve in curves})
    knapsack.fill()
    knapsack.exchange()
    return knapsack.left()


class GreedyKnapsack:
    """The number of channel batches that are removed from each group, with the loss and the excess over the budget."""

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
        """Return the least loss per saving of a group, and the number of removed batches that reaches it."""
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
        if excess > 0:  # the other batches save nothing by themselves: remove all
            self.gone = {name: ends.size - 1 for name, ends in self.ends.items()}

    def exchange(self) -> None:
        """Restore unneeded batches, then exchange batches between groups while that reduces the loss."""
        self._give_back()
        for _ in range(SWEEPS):
            if not self._exchange_once():
                return
            self._give_back()

    def _give_back(self) -> None:
        changed = True
        while changed:
            changed = False
            for name in self._most_expensive():
                if self.excess({name: self.gone[name] - 1}) <= 0:
                    self.gone[name] -= 1
                    changed = True

    def _most_expensive(self) -> list[str]:
        """Return the groups with removed batches, the group whose last removed batch lost most first."""
        return sorted((n for n, count in self.gone.items() if count), key=lambda n: self._rise(n, self.gone[n] - 1))

    def _exchange_once(self) -> bool:
        improved = False
        for back in self._most_expensive():
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


def below(trace: Trace, scores: FloatArray, keep: BoolArray, rules: PruningRules, threshold: float) -> BoolArray:
    """Remove every channel batch whose normalized importances all lie below `threshold`."""
    batches = channel_batches(trace, scores, keep, rules)
    return without(keep, (batch for batch in batches if (scores[batch.channels] < threshold).all()))


def refuse_unreachable(trace: Trace, predict: Predict, rules: PruningRules, budget: Budget) -> None:
    """Raise TargetError when the budget cannot be met, in whatever order channels are removed."""
    keep = np.ones(trace.n_channels, dtype=bool)
    _smallest(trace, predict, keep, channel_batches(trace, np.zeros(keep.size), keep, rules), rules, budget)


def _smallest(
    trace: Trace,
    predict: Predict,
    keep: BoolArray,
    batches: Sequence[ChannelBatch],
    rules: PruningRules,
    budget: Budget,
) -> BoolArray:
    """Return the selection without any of the batches; raise TargetError where the budget does not hold even then."""
    smallest = without(keep, batches)
    least = predict(smallest)
    if holds(least, budget):
        return smallest
    dense, parts = predict(np.ones(trace.n_channels, dtype=bool)), []
    for name, bound in budget.items():
        metric, whole, value = METRICS[name], dense[name], least[name]
        if value > bound:
            form = metric.format
            parts.append(
                f"{metric.label} can fall to {value:{form}} (-{1 - value / whole:.1%}), "
                f"{bound:{form}} (-{1 - bound / whole:.1%}) was asked"
            )
    raise unreachable(*parts, *holders(trace, rules))


def unreachable(*reasons: str, hint: str = RELAX) -> TargetError:
    """Return the error of a target that cannot be met."""
    return TargetError("the target cannot be reached", why="; ".join(reasons), hint=hint)


def holders(trace: Trace, rules: PruningRules) -> Sequence[str]:
    """Return the main reasons why channels are pinned, most channels first."""
    held: Counter[str] = Counter()
    for pin in trace.pins:
        held[f"{pin.reason} ({pin.node})"] += pin.channels.size
    lines = [f"{count} channels stay because {reason}" for reason, count in held.most_common(3)]
    small = sum(
        not trace.pinned[group.channels].all() and group.channels.size <= rules.multiple(group)
        for group in trace.groups
    )
    if small and max(rules.round_to, *rules.multiples.values(), 1) > 1:
        lines.append(f"{small} groups have no more channels than they are rounded to, and stay whole")
    return lines

"""Choose which channels stay, so that the targets hold and the least important channels go first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.channels.cost import CostModel
from onnxprune.errors import OptionError, TargetError
from onnxprune.options import SCOPES
from onnxprune.types import BoolArray, FloatArray, IntArray, Trace

ATTEMPTS = 8
"""How often a block that overshoots the target is left out to look for a nearer one."""
NEAR = 0.01
"""Overshoot, as a share of what may be left, that needs no further look."""


@dataclass(frozen=True)
class Limits:
    """Absolute bounds: what may be left. None: no bound."""

    macs: float | None = None
    params: float | None = None

    def hold(self, macs: float, params: float) -> bool:
        """Tell whether a model of this cost keeps every bound."""
        return (self.macs is None or macs <= self.macs) and (self.params is None or params <= self.params)

    def overshoot(self, macs: float, params: float) -> float:
        """Return how far below its bounds a model lies, as a share of the nearest one."""
        pairs = ((macs, self.macs), (params, self.params))
        return min((1 - value / bound for value, bound in pairs if bound), default=0.0)


@dataclass(frozen=True)
class Rules:
    """What a group must keep.

    Attributes:
        round_to: survivors of a group are a multiple of this, and channels go in blocks of it.
        min_channels: channels that stay in every group at least.
        max_ratio: share of a group's channels that may go at most.
        scope: `global` ranks all blocks of the network together; `uniform` takes the same share of each group.
    """

    round_to: int = 8
    min_channels: int = 1
    max_ratio: float = 1.0
    scope: str = "global"

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
class Block:
    """Channels of one group that go together, and the key that orders them."""

    group: str
    channels: IntArray
    key: float


def blocks_of(trace: Trace, scores: FloatArray, keep: BoolArray, rules: Rules) -> list[Block]:
    """Return every block that the rules let go, weakest first.

    Within a group channels are sorted by importance and cut into blocks of `round_to` filters, the first one shorter where
    that makes the survivors a multiple of it. A channel that is pinned, or that the method could not score, is in no block.
    """
    blocks: list[Block] = []
    for group in trace.groups:
        left = group.channels[keep[group.channels]]
        free = left[~trace.pinned[left] & ~np.isnan(scores[left])]
        multiple = -(-rules.round_to // group.width)  # filters are what the runtime counts
        least = max(rules.min_channels, int(np.ceil(group.channels.size * (1 - rules.max_ratio) - 1e-9)))
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
            blocks.append(Block(group.name, block, float(scores[block].mean()) if rules.scope == "global" else done))
    blocks.sort(key=lambda block: block.key)
    return _nonempty(trace, keep, blocks)


def _nonempty(trace: Trace, keep: BoolArray, blocks: list[Block]) -> list[Block]:
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
    trace: Trace, cost: CostModel, scores: FloatArray, keep: BoolArray, rules: Rules, limits: Limits
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
    blocks = blocks_of(trace, scores, keep, rules)
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


def _without(keep: BoolArray, blocks: Sequence[Block]) -> BoolArray:
    result = keep.copy()
    if blocks:
        result[np.concatenate([block.channels for block in blocks])] = False
    return result


def below(trace: Trace, scores: FloatArray, keep: BoolArray, rules: Rules, threshold: float) -> BoolArray:
    """Remove every channel whose normalised importance lies below `threshold`, as far as the rules allow.

    Each group loses what lies below, less the channels needed to end on a multiple of `round_to`.
    """
    result = keep.copy()
    for block in blocks_of(trace, scores, keep, rules):
        if (scores[block.channels] < threshold).all():
            result[block.channels] = False
    return result


def _unreachable(trace: Trace, cost: CostModel, smallest: BoolArray, limits: Limits, rules: Rules) -> TargetError:
    dense = cost.totals(np.ones(trace.n_channels, dtype=bool))
    least = cost.totals(smallest)
    parts = [
        f"{name} can fall to {value:,.0f} (-{1 - value / whole:.1%}), {bound:,.0f} (-{1 - bound / whole:.1%}) was asked"
        for name, whole, value, bound in (
            ("MACs", dense[0], least[0], limits.macs),
            ("parameters", dense[1], least[1], limits.params),
        )
        if bound is not None and value > bound
    ]
    return TargetError(
        "the target cannot be reached",
        why="; ".join([*parts, *holders(trace, rules)]),
        hint="ask for less, or relax --min-channels, --max-ratio, --round-to or --ignore",
    )


def holders(trace: Trace, rules: Rules) -> Sequence[str]:
    """Say, most channels first, what keeps channels from going."""
    held: dict[str, int] = {}
    for pin in trace.pins:
        held[f"{pin.reason} ({pin.node})"] = held.get(f"{pin.reason} ({pin.node})", 0) + pin.channels.size
    ranked = sorted(held.items(), key=lambda item: -item[1])[:3]
    lines = [f"{count} channels stay because {reason}" for reason, count in ranked]
    small = sum(
        1
        for group in trace.groups
        if not trace.pinned[group.channels].all() and group.channels.size * group.width <= rules.round_to
    )
    if small and rules.round_to > 1:
        lines.append(
            f"{small} groups have no more than {rules.round_to} channels and stay whole under --round-to {rules.round_to}"
        )
    return lines

"""Frozen dataclasses that cross the stages of a run.

A *channel* is one removable unit: a set of filters, and all that follows and reads them, which only can go together.
Channels are numbered 0 … n-1 over the whole model; arrays of channel numbers hold -1 where something always stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

Role = Literal["writes", "follows", "scales", "reads"]
"""What a tensor does with a channel: a filter *writes* it, a bias or depthwise kernel *follows* it, the factor of a
BatchNormalization *scales* it (and follows it), the next layer's weight *reads* it."""
Statistic = Literal["sum", "mean", "mean square", "variance", "window"]
"""What an operator takes over channels: in a *sum* those that are zero count for nothing, a *window* is the
sum over a channel's neighbors, the others are taken over how many there are."""


@dataclass(frozen=True)
class Slice:
    """Input `input` of node `node` holds `channels` along `axis` (1-D, one entry per index of the axis, -1: stays).

    It is a weight of the layer `layer`: that node itself, or the one that `node` dequantizes it for. What stands for zero in
    it is `zero`, broadcast.
    """

    node: int
    input: int
    tensor: str
    axis: int
    channels: IntArray
    role: Role
    layer: int
    zero: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Count:
    """An integer of node `node` equals the number of survivors among `channels`, or that divided by `per`.

    It is the attribute `field`, or (where `input` is not None) an element of the constant at that input; `index` is
    the position in a list, None for a scalar.
    """

    node: int
    field: str
    input: int | None
    index: int | None
    channels: IntArray
    per: int


@dataclass(frozen=True)
class Lookup:
    """The integers in the constant at input `input` of node `node` are positions on an axis that holds `channels`.

    Those of deleted channels vanish, the others are renumbered.
    """

    node: int
    input: int
    channels: IntArray


@dataclass(frozen=True)
class Summed:
    """Node `node` takes a statistic of its activation at input `input` over `axis`, which holds `channels`; no weight reads them there.

    A *sum* (of the activation, of its product with another one, of its powers) is exact: the masked model has zeros there. The other
    statistics run over the channels that stay, in the masked model as well, but what is left changes when one goes: that takes repair.

    Attributes:
        axes: all axes that the statistic runs over.
        scale: input that multiplies what was divided by the root of the statistic; None where nothing is.
    """

    node: int
    input: int
    axis: int
    channels: IntArray
    statistic: Statistic = "sum"
    axes: tuple[int, ...] = ()
    scale: int | None = None


@dataclass(frozen=True)
class Pin:
    """`channels` must stay, because of `reason` at node `node` (its label) of operator `op`."""

    channels: IntArray
    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class Work:
    """Layer `layer` multiplies each element of its weight (input `input` of `node`) `positions` times per sample.

    Where it does so once per channel, `over` holds these channels (else it is empty), and positions fall with them.
    """

    node: int
    input: int
    positions: int
    over: IntArray
    layer: int


@dataclass(frozen=True)
class Group:
    """Channels that compete with each other: the same layers write each of them.

    Attributes:
        name: label of the first layer that writes the group; unique in the model.
        layers: labels of all layers that write it.
        channels: channel numbers, in the order of the first layer's filters.
        width: filters that a channel has in one layer, at least: 1, or more where a grouped convolution or a shuffle ties
            some of the same layer.
    """

    name: str
    layers: tuple[str, ...]
    channels: IntArray
    width: int = 1


@dataclass(frozen=True)
class Trace:
    """What belongs together in a model, and what must stay.

    Attributes:
        labels: one label per node of the graph, in graph order.
        n_channels: number of channels in the model.
        groups: disjoint; together they hold every channel.
        pinned: (n_channels,) True where a channel must stay.
        extents: arrays of channels that share one axis of some tensor; one of each must survive.
        shapes: concrete shape of every tensor while tracing.
        input_shapes: the shapes that the inputs were given.
        batch: size of the dynamic batch axis while tracing, 1 where the batch is fixed.
        per_tensor_params: elements of each weight, by name; see `onnxprune.graph.model.is_weight`.
        per_tensor_uses: inputs of nodes that take each of them.
        carried: the axis of each activation that holds channels, and (n,) the channels there; absent where no axis, or more than
            one, holds any.
        weight_sizes: elements of the weight of each layer in `works`, by (node, input).
    """

    labels: tuple[str, ...]
    ops: tuple[str, ...]
    n_channels: int
    groups: tuple[Group, ...]
    pinned: BoolArray
    pins: tuple[Pin, ...]
    slices: tuple[Slice, ...]
    counts: tuple[Count, ...]
    lookups: tuple[Lookup, ...]
    summed: tuple[Summed, ...]
    works: tuple[Work, ...]
    extents: tuple[IntArray, ...]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    batch: int = 1
    per_tensor_params: dict[str, int] = field(default_factory=dict)
    per_tensor_uses: dict[str, int] = field(default_factory=dict)
    weight_sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    carried: dict[str, tuple[int, IntArray]] = field(default_factory=dict)

    def inexact(self) -> BoolArray:
        """Return which channels change the others when they go, (n_channels,): a normalization runs over them."""
        found = np.zeros(self.n_channels + 1, dtype=bool)
        for summed in self.summed:
            if summed.statistic != "sum":
                found[summed.channels] = True
        return found[:-1]

    def slices_by_use(self) -> dict[tuple[int, int], list[Slice]]:
        """Return the slices of each (node, input) that has any."""
        uses: dict[tuple[int, int], list[Slice]] = {}
        for fact in self.slices:
            uses.setdefault((fact.node, fact.input), []).append(fact)
        return uses

    def why_pinned(self, channels: IntArray) -> list[Pin]:
        """Return the pins that touch any of `channels`, each reason once per node."""
        mask = np.zeros(self.n_channels + 1, dtype=bool)
        mask[channels] = True
        mask[-1] = False
        return [pin for pin in self.pins if mask[pin.channels].any()]


STRAIGHT = 1e-6
"""Share of the loss of a whole group that each channel is thought to cost beside what its guide says: a guide may be flat."""


@dataclass(frozen=True)
class Curve:
    """What the network loses as one group loses channels.

    Attributes:
        group: its name.
        order: channels that may go, first to go first.
        counts: numbers of channels gone at which the loss was measured, ascending, from 0.
        losses: divergence of the output there, never falling; see `onnxprune.metrics.outputs.output_divergence`.
        guide: what is thought to be lost with 0, 1, … channels gone, in whatever unit, never falling; None: the same with each.
    """

    group: str
    order: IntArray
    counts: IntArray
    losses: FloatArray
    guide: FloatArray | None = None

    def at(self, gone: IntArray) -> FloatArray:
        """Return the loss with so many channels gone; between measurements it rises as the guide does."""
        if self.guide is None or not self.guide[-1] > 0:
            return np.interp(gone, self.counts, self.losses)
        way = self.guide / self.guide[-1] + STRAIGHT * np.arange(self.guide.size)
        return np.asarray(np.interp(way[np.minimum(gone, way.size - 1)], way[self.counts], self.losses))


@dataclass(frozen=True)
class Plan:
    """Which channels stay.

    Attributes:
        keep: (n_channels,) True where a channel stays.
        digest: SHA-256 of the model file the plan was made for.
        settings: the options that led to it, as written to plan.json.
        path: one (share of FLOPs removed, share of parameters removed) per progressive step.
        curves: what each group loses, where that was measured.
        blocks: edits of layers that came before, in rounds, as they stand in plan.json, with what each costs and saves; `keep` then speaks of
            what they have left of the model.
    """

    keep: BoolArray
    digest: str
    settings: dict[str, object] = field(default_factory=dict)
    path: tuple[tuple[float, float], ...] = ()
    curves: tuple[Curve, ...] = ()
    blocks: tuple[tuple[Mapping[str, Any], ...], ...] = ()


@dataclass(frozen=True)
class Repaired:
    """What repair did at one layer.

    Attributes:
        label: of the layer.
        rows: positions it was fitted on.
        features: unknowns per output.
        before, after: mean squared error of its output on rows held out; equal where the layer keeps its weights.
        penalty: ridge penalty that was chosen, as a share of the mean variance of a feature; infinite where only the bias
            changed, or nothing.
    """

    label: str
    rows: int
    features: int
    before: float
    after: float
    penalty: float


@dataclass(frozen=True)
class Check:
    """One line of a verdict: a measured value, held against a limit.

    `limit` is None where the value is only told. A check is undecided where samples or runs do not suffice to say on which side of the
    limit the value lies; it does not fail then.
    """

    name: str
    value: float | str | bool
    limit: float | str | None
    passed: bool
    detail: str = ""
    undecided: bool = False

    def __bool__(self) -> bool:
        return self.passed

    @property
    def status(self) -> str:
        """PASSED, FAILED or UNDECIDED."""
        return "FAILED" if not self.passed else "UNDECIDED" if self.undecided else "PASSED"

    def __str__(self) -> str:
        value = f"{self.value:.6g}" if isinstance(self.value, float) else str(self.value)
        limit = "" if self.limit is None else f" (limit {self.limit})"
        return f"{self.status} | {self.name}: {value}{limit}" + (f" | {self.detail}" if self.detail else "")


@dataclass(frozen=True)
class Verdict:
    """All checks of a run; truthy when every one passed."""

    checks: tuple[Check, ...]

    def __bool__(self) -> bool:
        return all(self.checks)

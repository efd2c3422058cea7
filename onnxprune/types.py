"""Frozen dataclasses that pass between the stages of a run.

A *channel* is one unit of deletion: a set of filters, and the slices of all tensors that follow and read these filters.
Channels are numbered 0 … n-1 over the whole model; -1 in an array of channel numbers marks a pinned index.
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
Array = np.ndarray[Any, Any]

Role = Literal["writes", "follows", "scales", "reads"]
"""Role of a tensor for a channel: a filter *writes* the channel, a bias or depthwise kernel *follows* it, the factor of
a BatchNormalization *scales* (and follows) it, the weight of the next layer *reads* it."""
Statistic = Literal["sum", "mean", "mean square", "variance", "window"]
"""Statistic of an operator over channels. A *sum* is exact without channels that are zero, a *window* is the sum over
the neighbors of a channel, the others depend on the number of channels."""


@dataclass(frozen=True)
class SampleAxis:
    """Where samples lie in an input or output of a model.

    Attributes:
        axis: axis of samples; None: there is none, and each run takes or gives one sample.
        rows: indices of the axis per sample, as frames of a video that lie on the batch axis.
    """

    axis: int | None = 0
    rows: int = 1


@dataclass(frozen=True)
class Slice:
    """Input `input` of node `node` holds `channels` along `axis` (1-D, one entry per index of the axis, -1: pinned).

    The input is a weight of the layer `layer`: `node` itself, or the reader of the weight that `node` dequantizes.
    `zero`, broadcast, stands for zero in the tensor.
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
    """An integer of node `node` equals (survivors among `channels`) / `per`.

    The integer is the attribute `field`, or (where `input` is not None) an element of the constant at that input;
    `index` is the position in a list, None for a scalar.
    """

    node: int
    field: str
    input: int | None
    index: int | None
    channels: IntArray
    per: int


@dataclass(frozen=True)
class Lookup:
    """The constant at input `input` of node `node` holds positions on an axis with `channels`.

    Positions of deleted channels are removed, the others renumbered.
    """

    node: int
    input: int
    channels: IntArray


@dataclass(frozen=True)
class Summed:
    """Node `node` takes a statistic of its activation at input `input` over `axis`, which holds `channels`.

    No weight reads the channels there. A *sum* (of the activation, its product with another one, its powers) is exact:
    the masked model has zeros there. The other statistics run over the kept channels, in the masked model as well; each
    deletion changes the kept channels, which then need repair.

    Attributes:
        axes: all axes that the statistic runs over.
        scale: input that multiplies the activation after its division by the root of the statistic, or None.
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
    """`channels` are pinned for `reason` at the node with label `node` and operator `op`."""

    channels: IntArray
    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class Work:
    """Layer `layer` multiplies each element of its weight (input `input` of `node`) `positions` times per sample.

    Where the positions include channels, `over` holds these channels (else it is empty), and positions shrink with
    them.
    """

    node: int
    input: int
    positions: int
    over: IntArray
    layer: int


@dataclass(frozen=True)
class Opaque:
    """Node `node` has weights that no rule counts: `operator` has no rule, or it has bodies.

    `macs` are per sample, None where shapes or operator do not tell; `weights` gives the elements of each weight, by name.
    `note` says which part of a body counts.
    """

    node: int
    operator: str
    macs: float | None
    weights: Mapping[str, int]
    note: str = ""

    @property
    def params(self) -> int:
        """Elements of the weights."""
        return sum(self.weights.values())


@dataclass(frozen=True)
class Group:
    """Channels that the same layers write, and that compete with each other.

    Attributes:
        name: label of the first layer that writes the group; unique in the model.
        layers: labels of all layers that write the group.
        channels: channel numbers, in the order of the first layer's filters.
        width: least number of filters per channel in a layer: 1, or more where a grouped convolution or a shuffle ties
            filters of one layer.
    """

    name: str
    layers: tuple[str, ...]
    channels: IntArray
    width: int = 1


@dataclass(frozen=True)
class Trace:
    """Channels of a model, their coupling, and the pins.

    Attributes:
        labels: one label per node of the graph, in graph order.
        n_channels: number of channels in the model.
        groups: disjoint groups that together hold every channel.
        pinned: (n_channels,) True where a channel is pinned.
        extents: arrays of channels along one axis of a tensor; one channel of each must survive.
        shapes: concrete shape of every tensor while tracing.
        input_shapes: shapes of the inputs while tracing.
        samples: number of samples while tracing.
        per_tensor_params: elements of each weight, by name; see `onnxprune.graph.model.is_weight`.
        weight_sizes: elements of the weight of each layer in `works`, by (node, input).
        opaque: nodes with weights that no rule counts.
        carried: (axis, (n,) channels on the axis) of each activation with channels on exactly one axis.
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
    samples: int = 1
    per_tensor_params: dict[str, int] = field(default_factory=dict)
    weight_sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    opaque: tuple[Opaque, ...] = ()
    carried: dict[str, tuple[int, IntArray]] = field(default_factory=dict)

    def inexact(self) -> BoolArray:
        """Return (n_channels,) True where deleting a channel changes others, since a normalization runs over them."""
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
        """Return the pins of any of `channels`."""
        mask = np.zeros(self.n_channels + 1, dtype=bool)
        mask[channels] = True
        mask[-1] = False
        return [pin for pin in self.pins if mask[pin.channels].any()]


STRAIGHT = 1e-6
"""Slope added to a guide per channel, as a share of its last value: a guide may be flat."""


@dataclass(frozen=True)
class Curve:
    """Loss of the network against the number of channels deleted from one group.

    Attributes:
        group: name of the group.
        order: prunable channels, in the order of deletion.
        counts: numbers of deleted channels at which the loss was measured, ascending, from 0.
        losses: divergence of the output there, not decreasing; see `onnxprune.metrics.outputs.output_divergence`.
        guide: estimated loss with 0, 1, … channels deleted, in any unit, not decreasing; None: linear.
    """

    group: str
    order: IntArray
    counts: IntArray
    losses: FloatArray
    guide: FloatArray | None = None

    def at(self, gone: IntArray) -> FloatArray:
        """Return the loss with `gone` channels deleted, interpolated along the guide between measurements."""
        if self.guide is None or not self.guide[-1] > 0:
            return np.interp(gone, self.counts, self.losses)
        way = self.guide / self.guide[-1] + STRAIGHT * np.arange(self.guide.size)
        return np.asarray(np.interp(way[np.minimum(gone, way.size - 1)], way[self.counts], self.losses))


@dataclass(frozen=True)
class Plan:
    """A selection of channels, and the settings that led to it.

    Attributes:
        keep: (n_channels,) True where a channel is kept.
        digest: SHA-256 of the model file of the plan.
        settings: the options of the run, as written to plan.json.
        path: one (share of FLOPs removed, share of parameters removed) per progressive step.
        curves: measured loss curves of groups, if any.
        blocks: layer edits before the selection, in rounds, as in plan.json, with cost and saving of each; `keep`
            indexes the channels of the edited model.
    """

    keep: BoolArray
    digest: str
    settings: dict[str, object] = field(default_factory=dict)
    path: tuple[tuple[float, float], ...] = ()
    curves: tuple[Curve, ...] = ()
    blocks: tuple[tuple[Mapping[str, Any], ...], ...] = ()


@dataclass(frozen=True)
class Repaired:
    """Result of repair at one layer.

    Attributes:
        label: of the layer.
        rows: positions in the fit.
        features: unknowns per output.
        before, after: mean squared error of the output on held-out rows; equal where the layer keeps its weights.
        penalty: ridge penalty of the fit, as a share of the mean variance of a feature; infinite where only the bias
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
    """One line of a verdict: a measured value and its limit.

    `limit` is None for a value without a limit. A check is undecided, and does not fail, where samples or runs are too
    few to tell on which side of the limit the value lies. `kind` is `integrity` (the file is what it should be), `quality`
    (what the model says), or `cost` (speed, size, memory).
    """

    name: str
    value: float | str | bool
    limit: float | str | None
    passed: bool
    detail: str = ""
    undecided: bool = False
    kind: str = "integrity"

    def __bool__(self) -> bool:
        return self.passed

    @property
    def status(self) -> str:
        """PASSED, FAILED or UNDECIDED; INFO for a value without a limit."""
        if not self.passed:
            return "FAILED"
        if self.undecided:
            return "UNDECIDED"
        return "INFO" if self.limit is None and self.kind != "integrity" else "PASSED"

    def __str__(self) -> str:
        value = amount_text(self.value)
        limit = "" if self.limit is None else f" (limit {amount_text(self.limit)})"
        return f"{self.status} | {self.name}: {value}{limit}" + (f" | {self.detail}" if self.detail else "")


def amount_text(amount: object) -> str:
    """Write a value of a check, or of an option: numbers with six digits, large ones without an exponent.

    >>> amount_text(2259870.0), amount_text(0.5)
    ('2,259,870', '0.5')
    """
    if not isinstance(amount, float):
        return str(amount)
    return f"{amount:,.0f}" if 1e5 <= abs(amount) < 1e15 else f"{amount:.6g}"


def doubt(name: str, value: float | str | bool, detail: str) -> Check:
    """Return a line of a verdict that leaves quality undecided: figures on such data say little."""
    return Check(name, value, None, True, detail, undecided=True, kind="quality")


@dataclass(frozen=True)
class Verdict:
    """All checks of a run; truthy when none failed.

    Quality is PASSED only where it was measured, and held against a limit.
    """

    checks: tuple[Check, ...]

    def __bool__(self) -> bool:
        return all(self.checks)

    def of(self, kind: str) -> tuple[Check, ...]:
        """Return the checks of a kind."""
        return tuple(check for check in self.checks if check.kind == kind)

    def word(self, kind: str) -> str:
        """Return the worst status of a kind: FAILED, UNDECIDED, PASSED; NOT MEASURED where nothing has a limit."""
        found = {check.status for check in self.of(kind)}
        return next((status for status in ("FAILED", "UNDECIDED", "PASSED") if status in found), "NOT MEASURED")

    @property
    def integrity(self) -> str:
        """PASSED or FAILED: structure, proof, the same inputs and outputs, finite numbers."""
        return self.word("integrity")

    @property
    def quality(self) -> str:
        """PASSED, FAILED, UNDECIDED, or NOT MEASURED where no sample of the user was there."""
        return self.word("quality")

    @property
    def headline(self) -> str:
        """FAILED where a check failed, else the word for quality, which limits on costs can only make UNDECIDED."""
        if not self:
            return "FAILED"
        return "UNDECIDED" if self.quality == "PASSED" and self.word("cost") == "UNDECIDED" else self.quality

"""The global threshold: while a network is trained, channels whose parameters hardly get any gradient are gated to zero.

*Unit.* What is gated is a channel in the sense of `onnxprune.types`: all filters that can only go together, over all layers they are
coupled with. Its parameters are all slices of all weights that hold it: filters that write it, biases, depthwise kernels and scales
that follow it, and the slices of the next layers that read it.

*Definition.* Training is cut into windows of `patience` steps of the optimizer. The *peak gradient* of a channel in a window is the largest
absolute value of the derivative of the loss with respect to any of its parameters in any of the steps, as accumulated in `.grad` when
the optimizer steps: before momentum, clipping and decoupled weight decay, and of a loss that is a mean over the batch. At the end of a
window every channel with a peak gradient below T, one T for the whole network, is gated: the slices that read it are set to zero, which
is what deletion is, and held there after every further step. A gate never opens again. A gradient that is not finite counts as infinite.
Channels are gated in ascending order of their peak gradients, and never beyond what each group and each tensor must keep; pinned channels
are not gated, nor are those that a mask on weights alone cannot express (statistics run over them, or a weight that reads them is
quantised, is not trained, or reads another channel elsewhere).

Deleting the gated channels afterwards (`Gates.keep` is what `onnxprune.surgery.channels.delete` takes) is exact.

*When it helps.* For channels that neither carry anything nor are about to: a ReLU that never fires gets no gradient in its filter, and
gives its readers none ; and channels that weight decay or a group penalty has driven to zero on both sides.A channel that is merely
saturated still gives its readers gradients, and stays.Small gradients do not say that a channel is of little use: at an optimum all
gradients are small.So T has to lie below the gradient noise of useful channels, and it depends on the loss, the batch and the scale of
the weights: train for one window with T = 0, which gates nothing, look at ` quantiles `, and take T from the gap between the silent channels
and the rest.Without a gap the threshold is the wrong tool: see ` onnxprune.importance.gradients ` for what a removal costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from onnxprune.torch_backend.executor import Executor
from onnxprune.types import BoolArray, FloatArray, IntArray, Slice, Trace

PATIENCE = 50
"""Steps of a window."""
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 1.0)


class Gates:
    """Observes the gradients of a training run, and gates channels.

    Call `observe` before the optimizer steps, `apply` after it.

    Attributes:
        threshold: T.
        patience: steps of a window.
        gated: (n_channels,) True where a channel is gated.
        peaks: (n_channels,) peak gradients of the last completed window, NaN before the first.
    """

    def __init__(
        self,
        executor: Executor,
        trace: Trace,
        threshold: float,
        *,
        patience: int = PATIENCE,
        min_channels: int = 1,
        max_ratio: float = 0.9,
    ) -> None:
        """Find the parameters of every channel.

        Args:
            executor: of the traced model.
            trace: facts of the model.
            threshold: T; 0 gates nothing.
            patience: steps of a window.
            min_channels: channels that every group keeps at least.
            max_ratio: share of a group that may be gated at most.
        """
        self.executor, self.trace = executor, trace
        self.threshold, self.patience = threshold, patience
        self.gated: BoolArray = np.zeros(trace.n_channels, dtype=bool)
        self.peaks: FloatArray = np.full(trace.n_channels, np.nan)
        self._window = np.zeros(trace.n_channels)
        self._step = 0
        distinct = {(f.tensor, f.axis, f.channels.tobytes()): f for f in trace.slices if f.tensor in executor.weights}
        self._facts = list(distinct.values())
        self._index = [torch.from_numpy(np.where(f.channels < 0, trace.n_channels, f.channels)) for f in self._facts]
        self._free = ~trace.pinned & _expressible(trace, set(executor.weights))
        self._floors = _floors(trace, min_channels, max_ratio)
        self._zeroed: list[tuple[str, int, torch.Tensor]] = []
        """Weights, an axis of each, and which indices of that are held at zero."""

    @property
    def keep(self) -> BoolArray:
        """What stays, (n_channels,), for the pruner."""
        return ~self.gated

    def observe(self) -> BoolArray:
        """Take in the gradients of a step; at the end of a window, gate.

        Returns:
            (n_channels,) channels that were gated now.
        """
        self._window = np.fmax(self._window, self._largest())
        self._step += 1
        new = np.zeros_like(self.gated)
        if self._step == self.patience:
            self.peaks = self._window
            self._window = np.zeros_like(self._window)
            self._step = 0
            new = self._choose()
            self._gate(self.gated | new)
        return new

    def apply(self, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Set the slices that read gated channels to zero, in the trained weights or in a running mean of them."""
        weights = self.executor.weights if weights is None else weights
        with torch.no_grad():
            for name, axis, index in self._zeroed:
                weights[name].index_fill_(axis, index, 0)

    def quantiles(self, at: Sequence[float] = QUANTILES) -> dict[float, float]:
        """Return quantiles of the peak gradients of the channels that may still be gated; none before the first window ends."""
        values = self.peaks[self._free & ~self.gated]
        if not values.size or np.isnan(values).any():
            return {}
        return dict(zip(at, np.quantile(values, at, method="lower").tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        arrays = {"gated": self.gated, "peaks": self.peaks, "window": self._window}
        return {"step": self._step, **{name: torch.from_numpy(x.copy()) for name, x in arrays.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run was; weights are left as they are until `apply`."""
        self._step = int(state["step"])
        self.peaks, self._window = state["peaks"].numpy().copy(), state["window"].numpy().copy()
        self._gate(state["gated"].numpy())

    def _largest(self) -> FloatArray:
        """Return the largest absolute gradient of the parameters of each channel."""
        total = torch.zeros(self.trace.n_channels + 1, dtype=torch.float64)
        for fact, index in zip(self._facts, self._index, strict=True):
            gradient = self.executor.weights[fact.tensor].grad
            if gradient is not None:
                values = gradient.detach().abs().moveaxis(fact.axis, 0).reshape(index.numel(), -1).amax(1)
                total.scatter_reduce_(0, index, values.double().cpu().nan_to_num(nan=torch.inf), "amax")
        return total[:-1].numpy()

    def _choose(self) -> BoolArray:
        """Return the channels to gate, in ascending order of their peaks while every group and tensor keeps what it must."""
        quiet = np.flatnonzero(self._free & ~self.gated & (self.peaks < self.threshold))
        room = [int((~self.gated[members]).sum()) - least for members, least in self._floors]
        floors_of: dict[int, list[int]] = {int(channel): [] for channel in quiet}
        for number, (members, _) in enumerate(self._floors):
            for channel in np.intersect1d(members, quiet).tolist():
                floors_of[channel].append(number)
        new = np.zeros_like(self.gated)
        for channel in quiet[np.argsort(self.peaks[quiet], kind="stable")].tolist():
            if all(room[number] > 0 for number in floors_of[channel]):
                new[channel] = True
                for number in floors_of[channel]:
                    room[number] -= 1
        return new

    def _gate(self, gated: BoolArray) -> None:
        self.gated = gated.copy()
        flags = np.append(gated, False)
        self._zeroed = [
            (fact.tensor, fact.axis, torch.from_numpy(np.flatnonzero(flags[fact.channels])).to(self.executor.device))
            for fact in self._facts
            if fact.role == "reads" and flags[fact.channels].any()
        ]


def _floors(trace: Trace, min_channels: int, max_ratio: float) -> list[tuple[IntArray, int]]:
    """Return sets of channels, and the least number of each that stays."""
    groups = [
        (g.channels, max(min_channels, math.ceil(g.channels.size * (1 - max_ratio) - 1e-9))) for g in trace.groups
    ]
    return [*groups, *((np.unique(extent[extent >= 0]), 1) for extent in trace.extents if (extent >= 0).all())]


def _expressible(trace: Trace, trained: set[str]) -> BoolArray:
    """Return the channels whose deletion equals zeros in trained weights, (n_channels,)."""
    result = np.ones(trace.n_channels + 1, dtype=bool)
    for summed in trace.summed:
        result[summed.channels] = False
    reads: dict[str, list[Slice]] = {}
    for fact in trace.slices:
        if fact.role == "reads":
            reads.setdefault(fact.tensor, []).append(fact)
    for name, facts in reads.items():
        for fact in facts:
            same = [other for other in facts if other.axis == fact.axis]
            alone = np.all([other.channels == fact.channels for other in same], axis=0)
            unread = len(same) < trace.per_tensor_uses.get(name, 1)  # a use that reads nothing, or fixed channels
            if unread or name not in trained:
                alone[:] = False
            result[fact.channels[~alone]] = False
    return result[:-1]

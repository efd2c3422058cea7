"""The global threshold: during training, channels whose parameters all have small gradients are gated to zero.

The parameters of a channel (see `onnxprune.types`) are all slices of all weights that hold it: filters that write it, biases, depthwise
kernels and scales that follow it, and the slices of the next layers that read it.

Training is divided into windows of `patience` steps. The *peak gradient* of a channel in a window is the largest absolute derivative of
the loss with respect to any of its parameters in any step, as accumulated in `.grad`: before momentum, clipping and weight decay, for a
loss that is a mean over the batch. A gradient that is not finite counts as infinite. At the end of a window every channel with a peak
gradient below T, one T for the whole network, is gated: the slices that read it are set to zero, after every further step too. This
equals deletion, so that deleting the gated channels (`onnxprune.surgery.channels.delete` with `Gates.keep`) is exact. A gate never
reopens. Channels are gated in ascending order of their peak gradients, as far as each group and each tensor keeps its minimum. Pinned
channels are not gated, nor are channels that zero weights cannot express: statistics run over them, or a weight that reads them is
quantized, is not trained, or reads another channel elsewhere.

`docs/gradients.md` says when the threshold helps, and how to choose T.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from onnxprune.torch_backend.executor import Executor
from onnxprune.types import BoolArray, FloatArray, Trace

PATIENCE = 50
"""Steps of a window."""


class Gates:
    """Observes the gradients of a training run, and gates channels.

    Call `observe` before the optimizer steps, `apply` after it.

    Attributes:
        threshold: T; 0 gates nothing.
        gated: (n_channels,) gated channels.
        peaks: (n_channels,) peak gradients of the last completed window, NaN before the first.
    """

    def __init__(
        self,
        executor: Executor,
        trace: Trace,
        threshold: float,
        *,
        patience: int = PATIENCE,
        max_ratio: float = 0.9,
    ) -> None:
        """Find the parameters of every channel; at most a share `max_ratio` of each group is gated."""
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
        least = [max(1, math.ceil(g.channels.size * (1 - max_ratio) - 1e-9)) for g in trace.groups]
        extents = (np.unique(extent[extent >= 0]) for extent in trace.extents if (extent >= 0).all())
        self._floors = [*zip((g.channels for g in trace.groups), least, strict=True), *((ids, 1) for ids in extents)]
        """Sets of channels, and the least number of each that stays."""
        self._zeroed: list[tuple[str, int, torch.Tensor]] = []
        """Weights, an axis of each, and the indices along it that are held at zero."""

    @property
    def keep(self) -> BoolArray:
        """Channels that are left, (n_channels,)."""
        return ~self.gated

    def observe(self) -> BoolArray:
        """Observe the gradients of a step; return the channels that this step gates, (n_channels,)."""
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
        """Set the slices that read gated channels to zero, in `weights` or the weights of the executor."""
        weights = self.executor.weights if weights is None else weights
        with torch.no_grad():
            for name, axis, index in self._zeroed:
                weights[name].index_fill_(axis, index, 0)

    def quantiles(self, at: Sequence[float]) -> dict[float, float]:
        """Return quantiles of the peak gradients of the channels that can still be gated; none before the first window ends."""
        values = self.peaks[self._free & ~self.gated]
        if not values.size or np.isnan(values).any():
            return {}
        return dict(zip(at, np.quantile(values, at, method="lower").tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the state, for a checkpoint."""
        arrays = {"gated": self.gated, "peaks": self.peaks, "window": self._window}
        return {"step": self._step, **{name: torch.from_numpy(x.copy()) for name, x in arrays.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint; weights do not change until `apply`."""
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
        """Return the channels to gate, (n_channels,)."""
        quiet = np.flatnonzero(self._free & ~self.gated & (self.peaks < self.threshold))
        room, floors_of = [], {int(channel): list[int]() for channel in quiet}
        for number, (members, least) in enumerate(self._floors):
            room.append(int((~self.gated[members]).sum()) - least)
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


def _expressible(trace: Trace, trained: set[str]) -> BoolArray:
    """Return the channels whose deletion equals zeros in trained weights, (n_channels,)."""
    result = np.ones(trace.n_channels + 1, dtype=bool)
    for summed in trace.summed:
        result[summed.channels] = False
    for fact in trace.slices:
        if fact.role == "reads" and fact.tensor not in trained:
            result[fact.channels] = False
    return result[:-1]

"""The `input` granularity: a layer stops to read some channels of a tensor that other nodes read as well.

Channels of a residual stream or of a concatenation can only be deleted for all their readers at once. Here one reader drops those that it
can do without, and the stream stays as it is for the others. The channels that go are found by Optimal Brain Surgeon on the inputs of this
layer alone (Hassibi and Stork, 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon", eq. 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.graph.linear import Conv, Linear, Product
from onnxprune.surgery.edits.protocol import LayerEdit, Place, RefusalError, Statistics
from onnxprune.types import BoolArray, FloatArray, IntArray

SHARES = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Shares of a layer's input channels that candidates keep."""
FEWEST = 16
"""Input channels below which none goes."""
MOST_FEATURES = 2304
"""Features of a layer, inputs times taps, above which none goes: their order takes time with the third power."""
ONE_BY_ONE = frozenset(
    {"BatchNormalization", "Clip", "Dropout", "HardSwish", "Identity", "LeakyRelu", "PRelu", "Relu", "Sigmoid"}
)
"""Operators between a shared tensor and its reader that compute each channel by itself."""


@dataclass(frozen=True)
class DropInputs(LayerEdit):
    """A layer that reads some of the channels of its input.

    Attributes:
        kept: number of channels that it reads.
        channels: (kept,) these channels, ascending; None: those with the largest weights.
    """

    kind: ClassVar[str] = "input"
    needs_data: ClassVar[bool] = True
    layer: str
    kept: int
    channels: IntArray | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.kept} inputs"

    @classmethod
    def of_layer(cls, layer: Linear, label: str, multiple: int) -> Iterator[Self]:
        """Yield numbers of inputs, for a layer that reads a tensor which is not its own."""
        inputs = _inputs(layer)
        if (
            inputs < FEWEST
            or layer.matrix(layer.values).shape[2] > MOST_FEATURES
            or not is_shared(layer.node.inputs[layer.x])
        ):
            return
        kept = {max(multiple, round(share * inputs / multiple) * multiple) for share in SHARES}
        yield from (cls(label, count) for count in sorted(kept) if count < inputs)

    def masked(self, layer: Linear) -> FloatArray:
        """Return the matrix with the removed inputs set to zero."""
        return np.asarray(np.where(self._features(layer), layer.effective()[0], 0.0))

    def refit(self, statistics: Statistics | None) -> tuple[Self, float]:
        """Return the edit with the inputs that are missed least without the others, and its error."""
        assert statistics is not None
        layer = statistics.layer
        inputs = self._checked(layer)
        features = layer.matrix(layer.values).shape[2] // inputs
        channels = np.sort(statistics.removal(features)[inputs - self.kept :])
        found = replace(self, channels=channels)
        return found, statistics.regressed(np.flatnonzero(found._features(layer)))[1]

    def best(self, statistics: Statistics) -> FloatArray:
        """Return the regression of the output on the kept inputs."""
        found = self.refit(statistics)[0] if self.channels is None else self
        return statistics.regressed(np.flatnonzero(found._features(statistics.layer)))[0]

    def timed(self, layer: Linear) -> Self:
        """Return the edit with inputs that need no order, spread over all."""
        return replace(self, channels=np.arange(self.kept) * self._checked(layer) // self.kept)

    def replace_layer(self, place: Place, layer: Linear) -> None:
        """Gather the kept inputs before the layer."""
        node, channels = layer.node, self._channels(layer)
        output = gs.Variable(f"{node.outputs[0].name}__inputs")
        index = gs.Constant(f"{output.name}__index", channels.astype(np.int64))
        axis = 1 if isinstance(layer, Conv) else _feature_axis(layer)
        graph_node = gs.Node("Gather", f"{output.name}__node", {"axis": axis}, [node.inputs[layer.x], index], [output])
        place.graph.nodes.append(graph_node)
        weight = np.take(layer.values, channels, axis=_weight_axis(layer))
        node.inputs[layer.x] = output
        node.inputs[layer.weight] = gs.Constant(f"{node.outputs[0].name}__inputs_weight", np.ascontiguousarray(weight))

    def _checked(self, layer: Linear) -> int:
        """Return the number of the layer's inputs."""
        inputs = _inputs(layer)
        if not inputs:
            raise RefusalError("the layer has no inputs that can be dropped one by one")
        if not 1 <= self.kept < inputs:
            raise RefusalError(f"the layer has {inputs} inputs, {self.kept} of them cannot be kept")
        return inputs

    def _channels(self, layer: Linear) -> IntArray:
        inputs = self._checked(layer)
        if self.channels is not None:
            if self.channels.size != self.kept or self.channels.max(initial=0) >= inputs:
                raise RefusalError("the kept inputs belong to another layer")
            return self.channels
        matrix = layer.effective()[0]
        norms = (matrix**2).sum(axis=(0, 1)).reshape(inputs, -1).sum(axis=1)
        return np.sort(np.argsort(-norms, kind="stable")[: self.kept])

    def _features(self, layer: Linear) -> BoolArray:
        """Return which features the kept inputs are, (features,)."""
        keep = np.zeros(self._checked(layer), dtype=bool)
        keep[self._channels(layer)] = True
        return np.repeat(keep, layer.matrix(layer.values).shape[2] // keep.size)


def is_shared(tensor: gs.Tensor) -> bool:
    """Tell whether the channels of a tensor are read elsewhere, by other nodes or before operators that keep them apart.

    Where they are not, it is better to delete them in the layer that writes them.
    """
    while True:
        if len(tensor.outputs) > 1:
            return True
        if not tensor.inputs or tensor.inputs[0].op not in ONE_BY_ONE:
            return False
        tensor = tensor.inputs[0].inputs[0]


def _inputs(layer: Linear) -> int:
    """Return the number of input channels, or 0 where they are not one axis of the input."""
    if isinstance(layer, Conv):
        return 0 if layer.transposed or layer.groups > 1 else int(layer.values.shape[1])
    plain = isinstance(layer, Product) and layer.node.op in ("Gemm", "MatMul") and layer.weight == 1 and layer.x == 0
    return int(layer.values.shape[_weight_axis(layer)]) if plain and layer.values.ndim == 2 else 0


def _feature_axis(layer: Linear) -> int:
    return 0 if layer.node.attrs.get("transA") else -1


def _weight_axis(layer: Linear) -> int:
    """Return the axis of the stored weight that holds the inputs."""
    return 1 if isinstance(layer, Conv) or layer.node.attrs.get("transB") else 0

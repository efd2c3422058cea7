"""The inputs of a model, and arrays of samples in their layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnxprune.errors import DataError
from onnxprune.types import SampleAxis

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class InputSpec:
    """Name, dtype and shape of a model input, and its axis of samples; None in `shape` is a dynamic axis.

    An input without an axis of samples takes one value per run: of the one sample (`per_run` 1), or of all samples alike.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    samples: SampleAxis = field(default=SampleAxis())
    per_run: int | None = None

    @property
    def fixed(self) -> int | None:
        """Samples that every run takes; None: any number."""
        if self.samples.axis is None or not self.shape:
            return self.per_run
        size = self.shape[self.samples.axis]
        return None if size is None else size // self.samples.rows

    def by_sample(self, array: Array, where: str) -> Array:
        """Return an array with samples first; a stack of inputs where every run takes one sample.

        Raises:
            DataError: the rows do not fill the last sample.
        """
        axis, rows = self.samples.axis, self.samples.rows
        if array.ndim == len(self.shape) + 1 and (axis is None or self.fixed == 1):
            if axis is None or array.shape[axis + 1] != rows:
                return array
            moved = np.moveaxis(array, axis + 1, 1)
            return moved if rows > 1 else moved[:, 0]
        if array.ndim != len(self.shape):
            return array
        if axis is None:
            return array[None]
        moved = np.moveaxis(array, axis, 0)
        if rows == 1:
            return moved
        if len(moved) % rows:
            raise DataError(
                f"input {self.name} does not hold whole samples",
                where=where,
                why=f"a sample takes {rows} rows of axis {axis}, there are {len(moved)}",
                hint=f"give a multiple of {rows} rows",
            )
        return moved.reshape(-1, rows, *moved.shape[1:])

    def by_run(self, batch: Array) -> Array:
        """Return samples, (n x rows, …), as the model takes them."""
        if self.samples.axis is not None:
            return np.moveaxis(batch, 0, self.samples.axis)
        return np.asarray(batch[0])


def input_specs(
    proto: onnx.ModelProto, samples: Mapping[str, SampleAxis] | None = None, fixed: int | None = None
) -> tuple[InputSpec, ...]:
    """Return the inputs of a model, without its initializers.

    Args:
        proto: the model, or its header.
        samples: axis of samples of each input; None: the first axis.
        fixed: samples that every run takes, where the shapes do not say it.
    """
    weights = {tensor.name for tensor in proto.graph.initializer}
    specs = []
    for value in proto.graph.input:
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        shape = [d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim]
        place = SampleAxis() if samples is None else samples[value.name]
        if fixed is not None and place.axis is not None:
            shape[place.axis] = fixed * place.rows
        specs.append(InputSpec(value.name, dtype, tuple(shape), place, fixed))
    return tuple(specs)

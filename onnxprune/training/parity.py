"""Hold torch against onnxruntime before anything is trained."""

from __future__ import annotations

import numpy as np
import onnx
import torch

from onnxprune.data import Array, Feeds
from onnxprune.errors import ModelError
from onnxprune.metrics.outputs import ROUNDING_FACTOR, Outputs, jittered, relative_difference
from onnxprune.model import Model, tensors_of
from onnxprune.runtime.session import UNOPTIMIZED, run_batch
from onnxprune.training.batches import evaluating, tensors
from onnxprune.training.executor import Executor

TOLERANCE = 1e-4
"""Difference that is let pass, as a share of the range of an output."""
HALF_TOLERANCE = 1e-2
"""The same where onnxruntime rounds to half precision, which the executor does not."""
HALVES = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
INPUT_SCALES = (1.0, 0.1, 0.01)
"""What samples are multiplied with in turn, until one tells."""


def check(executor: Executor, feeds: Feeds) -> str:
    """Run samples in both, and compare the outputs.

    Networks that amplify rounding can differ by more than the tolerance though both are right: a difference of no more than
    `ROUNDING_FACTOR` times what a jitter of the last bits of the inputs does is put down to that, and the comparison is made again on
    smaller inputs.

    Returns:
        A note where no comparison told: all differences were within what rounding does, but beyond the tolerance. Else nothing.

    Raises:
        ModelError: they differ, or one of the two does not run the model.
    """
    model = executor.model
    session = model.session(UNOPTIMIZED)
    tolerance = HALF_TOLERANCE if _is_rounded(model) else TOLERANCE
    worst = 0.0
    for scale in INPUT_SCALES:
        scaled = {name: _scaled(value, scale) for name, value in feeds.items()}
        expected = run_batch(session, scaled)
        difference = _worst(expected, _outputs(executor, scaled))
        if difference <= tolerance:
            return ""
        worst = max(worst, difference)
        rounding = _worst(expected, run_batch(session, {name: jittered(x, 0) for name, x in scaled.items()}))
        if difference > ROUNDING_FACTOR * rounding:
            raise ModelError(
                "torch and onnxruntime do not agree on this model",
                where=str(model.path),
                why=f"outputs differ by {difference:.1e} of their range, {tolerance:.0e} is allowed",
                hint="leave the training out; please report it",
            )
    return f"outputs differ between torch and onnxruntime by {worst:.1e} of their range: this model amplifies rounding"


def _is_rounded(model: Model) -> bool:
    """Tell whether a model computes in half precision anywhere."""
    values = [*model.graph.inputs, *(tensor for _, _, tensor in tensors_of(model.graph))]
    types = [
        t.dtype if isinstance(t.dtype, int) else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(t.dtype)) for t in values
    ]
    casts = [node.attrs.get("to") for node in model.graph.nodes if node.op == "Cast"]
    return not HALVES.isdisjoint([*types, *casts])


def _outputs(executor: Executor, feeds: Feeds) -> Outputs:
    with evaluating(executor), torch.no_grad():
        found = executor(tensors(feeds))
    return [found[value.name].to("cpu").numpy() for value in executor.model.graph.outputs]


def _worst(expected: Outputs, found: Outputs) -> float:
    """Return the largest difference of any floating point output."""
    pairs = ((np.asarray(a), np.asarray(b)) for a, b in zip(expected, found, strict=True))
    return max((relative_difference(a, b.astype(a.dtype)) for a, b in pairs if a.dtype.kind == "f"), default=0.0)


def _scaled(value: Array, scale: float) -> Array:
    return value if value.dtype.kind != "f" else (value * scale).astype(value.dtype)

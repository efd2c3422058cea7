"""Compare the executor with onnxruntime before anything is trained."""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.data.dataset import Feeds
from onnxprune.errors import ModelError
from onnxprune.graph.model import Model, tensors_of
from onnxprune.metrics.outputs import (
    INPUT_SCALES,
    ROUNDING_FACTOR,
    TOLERANCE,
    Outputs,
    jittered,
    largest_difference,
    scaled,
)
from onnxprune.runtime.session import run_batch
from onnxprune.torch_backend.batches import tensors
from onnxprune.torch_backend.executor import Executor

HALF_TOLERANCE = 1e-2
"""Largest difference where onnxruntime rounds to half precision, which the executor does not."""
HALVES = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}


def check(executor: Executor, feeds: Feeds) -> str:
    """Run samples in torch and in onnxruntime, and compare the floating point outputs.

    As in `onnxprune.verify.prove`, a difference of up to `ROUNDING_FACTOR` times what a jitter of the inputs does is put down
    to rounding, and the comparison is repeated on smaller inputs.

    Returns:
        A note where all differences were beyond the tolerance, though within what rounding does; else an empty text.

    Raises:
        ModelError: the outputs differ, or one of the two does not run the model.
    """
    model = executor.model
    session = model.session(optimise=False)
    tolerance = HALF_TOLERANCE if _is_rounded(model) else TOLERANCE
    worst = 0.0
    for scale in INPUT_SCALES:
        inputs = scaled(feeds, scale)
        expected = run_batch(session, inputs)
        difference = _difference(expected, executor.outputs(tensors(inputs)))
        if difference <= tolerance:
            return ""
        worst = max(worst, difference)
        rounding = _difference(expected, run_batch(session, jittered(inputs, 0)))
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


def _difference(expected: Outputs, found: Outputs) -> float:
    pairs = [(a, b.astype(a.dtype)) for a, b in zip(expected, found, strict=True) if a.dtype.kind == "f"]
    return largest_difference([a for a, _ in pairs], [b for _, b in pairs])

"""Comparison of the executor with onnxruntime before training."""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.data.dataset import Feeds
from onnxprune.errors import ModelError
from onnxprune.graph.model import Model, tensors_of
from onnxprune.metrics import outputs
from onnxprune.runtime.session import UNOPTIMIZED, run_batch
from onnxprune.torch_backend.batches import tensors
from onnxprune.torch_backend.executor import Executor

HALF_TOLERANCE = 1e-2
"""Largest difference where onnxruntime computes in half precision; the executor computes in single precision."""
HALVES = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}


def check(executor: Executor, feeds: Feeds) -> str:
    """Run samples in torch and in onnxruntime, and compare the floating point outputs.

    As in `onnxprune.surgery.proof.prove`, a difference of at most `outputs.ROUNDING_FACTOR` times the effect of a jitter of the inputs
    counts as rounding, and the comparison is repeated on smaller inputs.

    Returns:
        A note if every difference is beyond the tolerance but within rounding; else an empty text.

    Raises:
        ModelError: the outputs differ, or torch or onnxruntime does not run the model.
    """
    model = executor.model
    session = model.session(UNOPTIMIZED)
    tolerance = HALF_TOLERANCE if _is_rounded(model) else outputs.TOLERANCE
    worst = 0.0
    for scale in outputs.INPUT_SCALES:
        inputs = outputs.scaled(feeds, scale)
        expected = run_batch(session, inputs)
        difference = _difference(expected, executor.outputs(tensors(inputs)))
        if difference <= tolerance:
            return ""
        worst = max(worst, difference)
        rounding = _difference(expected, run_batch(session, outputs.jittered(inputs, 0)))
        if difference > outputs.ROUNDING_FACTOR * rounding:
            raise ModelError(
                "torch and onnxruntime do not agree on this model",
                where=str(model.path),
                why=f"outputs differ by {difference:.1e} of their range, {tolerance:.0e} is allowed",
                hint="leave out training; please report it",
            )
    return f"outputs differ between torch and onnxruntime by {worst:.1e} of their range: this model amplifies rounding"


def _is_rounded(model: Model) -> bool:
    """Tell whether a model computes in half precision."""
    values = [*model.graph.inputs, *(tensor for _, _, tensor in tensors_of(model.graph))]
    types = [
        t.dtype if isinstance(t.dtype, int) else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(t.dtype)) for t in values
    ]
    casts = [node.attrs.get("to") for node in model.graph.nodes if node.op == "Cast"]
    return not HALVES.isdisjoint([*types, *casts])


def _difference(expected: outputs.Outputs, found: outputs.Outputs) -> float:
    pairs = [(a, b.astype(a.dtype)) for a, b in zip(expected, found, strict=True) if a.dtype.kind == "f"]
    return outputs.largest_difference([a for a, _ in pairs], [b for _, b in pairs])

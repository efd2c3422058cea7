"""Open sessions of onnxruntime and run batches in them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from onnxprune.errors import ModelError

Feeds = dict[str, np.ndarray[Any, Any]]
ELEMENT_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
    "tensor(int16)": np.int16,
    "tensor(uint16)": np.uint16,
}

CPU_PROVIDER = "CPUExecutionProvider"

ort.set_default_logger_severity(4)
ORT_VERSION: str = ort.__version__


def open_session(
    model: onnx.ModelProto | bytes | str,
    *,
    optimise: bool = True,
    threads: int = 0,
    where: str = "the model",
    patient: bool = False,
    weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
    profile: str | None = None,
    provider: str = CPU_PROVIDER,
) -> ort.InferenceSession:
    """Open an onnxruntime session.

    Args:
        model: a proto, its bytes, or a path.
        optimise: whether onnxruntime may rewrite the graph; off, two models are compared operator by operator.
        threads: threads within an operator; 0 leaves it to onnxruntime.
        where: how to call the model in an error.
        patient: whether its threads sleep between runs, for runs in turn with numpy: threads that spin would take the processors
            from the threads of its linear algebra.
        weights: values of initializers that the proto names as stored elsewhere; the session reads them where they are.
        provider: what executes it.
        profile: how the file begins that onnxruntime's profiler writes; None: it is off.

    Raises:
        ModelError: onnxruntime cannot load it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if patient:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    shared = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x)) for name, x in (weights or {}).items()}
    if shared:
        options.add_external_initializers(list(shared), list(shared.values()))
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    if isinstance(source, str):
        source = os.path.realpath(source)  # external data lie beside the file, not beside a link to it
    if provider not in ort.get_available_providers():
        raise ModelError(
            f"onnxruntime has no {provider} here",
            where=where,
            why=f"it has {', '.join(ort.get_available_providers())}",
            hint="install the onnxruntime of that provider, or name another one",
        )
    try:
        opened = ort.InferenceSession(source, options, providers=[provider], enable_fallback=0)
    except Exception as error:
        raise ModelError(
            "onnxruntime cannot load the model",
            where=where,
            why=str(error).strip().splitlines()[0][:400],
            hint="check that the file runs in onnxruntime before pruning it",
        ) from error
    opened.onnxprune_weights = shared  # they have to live as long as the session
    return opened


def run_batch(
    opened: ort.InferenceSession, feeds: Feeds, *, where: str = "the model", names: list[str] | None = None
) -> list[Any]:
    """Run one batch; return the outputs in order.

    Raises:
        ModelError: onnxruntime fails on these inputs.
    """
    try:
        return list(opened.run(names, feeds))
    except Exception as error:
        shapes = ", ".join(f"{name} {value.dtype}{list(value.shape)}" for name, value in feeds.items())
        raise ModelError(
            "onnxruntime cannot run the model",
            where=where,
            why=f"on {shapes}: {str(error).strip().splitlines()[0][:400]}",
            hint="check the shapes and dtypes of the inputs",
        ) from error


def concatenate_outputs(parts: Sequence[Sequence[Any]]) -> list[np.ndarray[Any, Any]]:
    """Join the outputs of several batches along the samples, output by output."""
    return [np.concatenate([np.atleast_1d(part[i]) for part in parts]) for i in range(len(parts[0]))]


def random_feeds(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], seed: int) -> Feeds:
    """Return seeded inputs of the given shapes: standard normal numbers, or 0 and 1 for integers and booleans."""
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for value in proto.graph.input:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = shapes[value.name]
        floating = np.issubdtype(dtype, np.floating) or str(dtype) == "bfloat16"
        feeds[value.name] = (rng.standard_normal(shape) if floating else rng.integers(0, 2, shape)).astype(dtype)
    return feeds

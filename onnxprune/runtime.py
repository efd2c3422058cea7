"""Everything that runs in onnxruntime: sessions, batches, observed shapes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

DYNAMIC_SIZES: tuple[Sequence[int], ...] = (
    range(224, 32 * 1024, 32),
    range(48, 16 * 1024, 16),
    range(32, 32 * 1024, 32),
    (1,),
    (256,),
    (512,),
)
"""Sizes to try for dynamic axes other than the batch: each list gives different sizes, multiples of what networks stride by;
its last one is used again where it ends."""
TOLD_SHAPES = 4

CPU = "CPUExecutionProvider"

ort.set_default_logger_severity(4)
VERSION: str = ort.__version__


def session(
    model: onnx.ModelProto | bytes | str,
    *,
    optimise: bool = True,
    threads: int = 0,
    where: str = "the model",
    patient: bool = False,
    weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
    profile: str | None = None,
    provider: str = CPU,
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


def run(
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


def joined(parts: Sequence[Sequence[Any]]) -> list[np.ndarray[Any, Any]]:
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


def concrete_shapes(
    proto: onnx.ModelProto,
    batch: int,
    *,
    known: Mapping[str, tuple[int, ...]] | None = None,
    sizes: Sequence[int] = DYNAMIC_SIZES[0],
    states: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Give every dynamic axis of the inputs a size.

    An axis name that several inputs share gets one size, and that of a first axis is the batch wherever it stands.

    Args:
        proto: the model, or its header.
        batch: size of a dynamic first axis.
        known: shapes of data, for the other axes.
        sizes: for the other axes, in turn, where there are no data.
        states: whether all inputs but the first have only the batch for a dynamic axis, wherever it lies.

    Raises:
        ModelError: an input without a rank.
    """
    first = [value.type.tensor_type.shape.dim[0] for value in proto.graph.input if value.type.tensor_type.shape.dim]
    names = {dim.dim_param: batch for dim in first if dim.dim_param}
    left = iter(sizes)
    result: dict[str, tuple[int, ...]] = {}
    for number, value in enumerate(proto.graph.input):
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            raise ModelError(
                "an input has no rank", where=f"input {value.name}", hint="export the model with input shapes"
            )
        shape: list[int] = []
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                size = dim.dim_value
            elif axis == 0 or (states and number):
                size = batch
            elif dim.dim_param in names:
                size = names[dim.dim_param]
            else:
                size = known[value.name][axis] if known else next(left, sizes[-1])
                if dim.dim_param:
                    names[dim.dim_param] = size
            shape.append(size)
        result[value.name] = tuple(shape)
    return result


def workable_shapes(opened: ort.InferenceSession, proto: onnx.ModelProto, batch: int) -> dict[str, tuple[int, ...]]:
    """Return input shapes that a model runs on, with `batch` as its batch where that is dynamic.

    Raises:
        ModelError: it runs on none of the sizes that are tried.
    """
    if all(dim.dim_value > 0 for value in proto.graph.input for dim in value.type.tensor_type.shape.dim[1:]):
        return concrete_shapes(proto, batch)
    failures: list[tuple[dict[str, tuple[int, ...]], ModelError]] = []
    for _, shapes in candidates(proto, (batch,)):
        try:
            run(opened, random_feeds(proto, shapes, 0))
        except ModelError as failure:
            failures.append((shapes, failure))
            continue
        return shapes
    raise none_runs(failures)


def candidates(
    proto: onnx.ModelProto, batches: Sequence[int], known: Mapping[str, tuple[int, ...]] | None = None
) -> Iterator[tuple[int, dict[str, tuple[int, ...]]]]:
    """Yield (batch, input shapes) to try in turn, none of them twice: every list of `DYNAMIC_SIZES` with every batch.

    At last the dynamic axes of all inputs but the first are taken for the batch, as the state of a recurrent network has it.
    """
    seen: list[dict[str, tuple[int, ...]]] = []
    for states in (False, True) if known is None else (False,):
        for sizes in DYNAMIC_SIZES:
            for batch in batches:
                shapes = concrete_shapes(proto, batch, known=known, sizes=sizes, states=states)
                if shapes not in seen:
                    seen.append(shapes)
                    yield batch, shapes


def none_runs(failures: Sequence[tuple[Mapping[str, tuple[int, ...]], ModelError]]) -> ModelError:
    """Return the error to raise when a model runs on none of the input shapes: the first one where only the batch changed."""
    (_, first), tried = failures[0], [shapes for shapes, _ in failures]
    if len({tuple(shape[1:] for shape in shapes.values()) for shapes in tried}) == 1:
        return first
    told = [", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) for shapes in tried[:TOLD_SHAPES]]
    more = f"; and {len(tried) - len(told)} more" if len(tried) > len(told) else ""
    return ModelError(
        "no input shape that was tried runs",
        where=first.where,
        why=f"tried {'; '.join(told)}{more}. The first failed {first.why}",
        hint="give arrays of the right shapes with `prune --data`",
    )


def has_dynamic_batch(proto: onnx.ModelProto) -> bool:
    """Tell whether the first axis of every input is dynamic."""
    dims = [value.type.tensor_type.shape.dim for value in proto.graph.input]
    return bool(dims) and all(len(dim) and not dim[0].dim_value > 0 for dim in dims)


@dataclass(frozen=True)
class Inferred:
    """Result of shape inference: full shapes, shapes with None for what is unknown, and ONNX element types, by tensor."""

    full: dict[str, tuple[int, ...]]
    partial: dict[str, list[int | None]]
    types: dict[str, int]


def infer_shapes(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Inferred:
    """Infer what shapes are known without running.

    Args:
        proto: a model that does not carry its large weights.
        shapes: concrete shapes to give to inputs.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    for value in fixed.graph.input:
        if value.name in shapes:
            del value.type.tensor_type.shape.dim[:]
            for size in shapes[value.name]:
                value.type.tensor_type.shape.dim.add(dim_value=size)
    for value in fixed.graph.output:  # what the exporter wrote there is inferred again
        value.type.tensor_type.ClearField("shape")
    try:
        fixed = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    except Exception:
        return Inferred(dict(shapes), {}, {})
    partial: dict[str, list[int | None]] = {}
    types: dict[str, int] = {}
    for value in (*fixed.graph.input, *fixed.graph.value_info, *fixed.graph.output):
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            partial[value.name] = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    full = {name: tuple(d for d in dims if d is not None) for name, dims in partial.items() if None not in dims}
    return Inferred({**full, **shapes}, partial, types)


def observe(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], names: Iterable[str], where: str) -> Feeds:
    """Run the model once on seeded inputs of `shapes` and return the named tensors.

    Raises:
        ModelError: it cannot be loaded or run.
    """
    wanted = list(dict.fromkeys(names))
    extended = onnx.ModelProto()
    extended.CopyFrom(proto)
    present = {value.name for value in extended.graph.output}
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in present)
    opened = session(extended, optimise=False, where=where)
    return dict(zip(wanted, run(opened, random_feeds(proto, shapes, 0), where=where, names=wanted), strict=True))


# ----------------------------------------------------------------------------------------------------------------- timing

RESAMPLES = 2000
TOLD = 0.2
"""Seconds between reports of progress."""


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    def __call__(self) -> float:
        """Return them."""
        return time.perf_counter() - self._begin


@dataclass(frozen=True)
class Latency:
    """Milliseconds per run of one or two models, measured in turn.

    Attributes:
        a, b: median milliseconds of each; `b` is None when only one model was timed.
        a_interval, b_interval: 95 % bootstrap interval of each median.
        speedup: median of a / median of b: above 1, b is faster.
        speedup_interval: 95 % bootstrap interval of it, over pairs of runs.
        runs, batch, threads: how it was measured; threads 0 is onnxruntime's own choice.
    """

    a: float
    a_interval: tuple[float, float]
    b: float | None
    b_interval: tuple[float, float] | None
    speedup: float | None
    speedup_interval: tuple[float, float] | None
    runs: int
    batch: int
    threads: int


def time_runs(
    sessions: Sequence[ort.InferenceSession],
    feeds: Sequence[Feeds],
    *,
    runs: int,
    warmup: int,
    threads: int,
    batch: int,
    seconds: float = 60.0,
    fewest: int = 10,
    progress: Callable[[float], None] | None = None,
) -> Latency:
    """Time one or two sessions, run in turn so that a drift of the machine meets both.

    Args:
        sessions: one or two.
        feeds: inputs of each.
        runs: counted runs of each.
        warmup: runs of each that don't count.
        threads: only told in the result.
        batch: only told in the result.
        seconds: stop early when the counted runs take longer than this.
        fewest: runs of each that are made all the same.
        progress: called now and then, between runs, with the share that is done.
    """
    for _ in range(warmup):
        for opened, inputs in zip(sessions, feeds, strict=True):
            run(opened, inputs)
    times: list[list[float]] = [[] for _ in sessions]
    order = list(range(len(sessions)))
    begin = told = time.perf_counter()
    for count in range(runs):
        for index in order if count % 2 == 0 else reversed(order):
            start = time.perf_counter()
            sessions[index].run(None, feeds[index])
            times[index].append(1e3 * (time.perf_counter() - start))
        if progress and time.perf_counter() - told > TOLD:
            told = time.perf_counter()
            progress(max((count + 1) / runs, min(1.0, (told - begin) / seconds)))
        if count + 1 >= fewest and time.perf_counter() - begin > seconds:
            break
    rows = np.array(times)
    picks = np.random.default_rng(0).integers(0, rows.shape[1], (RESAMPLES, rows.shape[1]))
    medians = np.median(rows[:, picks], axis=2)  # (sessions, resamples)

    def interval(values: np.ndarray[Any, Any]) -> tuple[float, float]:
        low, high = np.percentile(values, [2.5, 97.5])
        return float(low), float(high)

    a = float(np.median(rows[0]))
    if len(sessions) == 1:
        return Latency(a, interval(medians[0]), None, None, None, None, rows.shape[1], batch, threads)
    b = float(np.median(rows[1]))
    return Latency(
        a,
        interval(medians[0]),
        b,
        interval(medians[1]),
        a / b,
        interval(medians[0] / medians[1]),
        rows.shape[1],
        batch,
        threads,
    )

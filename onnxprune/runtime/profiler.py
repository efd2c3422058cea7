"""The latency of each kernel, from onnxruntime's profiler."""

from __future__ import annotations

import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune import leftovers
from onnxprune.runtime.providers import CPU_PROVIDER, short_name
from onnxprune.runtime.session import Feeds, SessionConfig, open_session, run_batch
from onnxprune.runtime.timing import sample_times

MARK = re.compile(r"(?<![A-Za-z0-9])node(\d+)(?!\d)")
"""Number of the original node in the name of a kernel: onnxruntime adds to the names of nodes that it replaces."""
BLOCKED = "_nchwc"
"""Suffix of the output name by which onnxruntime calls a kernel that computes in blocks of channels."""
SUBGRAPH = "subgraph"
"""Operator of the nodes that an execution provider compiles into one kernel: OpenVINO, TensorRT, CoreML and QNN do."""
MIN_RUNS, WARMUP = 4, 2
FUSED = 4
"""Largest number of nodes that are fused into one kernel with the name of the last output."""


@dataclass(frozen=True)
class Kernel:
    """A kernel: one node of onnxruntime's optimized graph.

    Attributes:
        node: number of the original node; None where onnxruntime inserted the kernel, or its name does not tell.
        op: operator in the optimized graph: Conv, ReorderOutput, FusedMatMul, …; of several nodes that an execution
            provider compiles into one, `SUBGRAPH`.
        microseconds: mean of the middle half of the runs; the profiler rounds each run to whole microseconds.
        provider: execution provider that ran it.
        name: in the profile.
    """

    node: int | None
    op: str
    microseconds: float
    provider: str = CPU_PROVIDER
    name: str = ""

    @property
    def label(self) -> str:
        """A name for a kernel that belongs to no node."""
        if self.op == SUBGRAPH:
            return f"(compiled by {short_name(self.provider)}, which does not time layers)"
        return f"({self.op}, inserted by onnxruntime)" if self.op else f"({self.name}, no node of the model)"


@dataclass(frozen=True)
class Profile:
    """Kernels of a model in the order of execution, and median milliseconds of a run with the profiler off."""

    kernels: tuple[Kernel, ...]
    milliseconds: float


def profile(
    proto: onnx.ModelProto,
    feeds: Feeds,
    config: SessionConfig,
    *,
    weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
    runs: int = 20,
    seconds: float = math.inf,
    where: str = "the model",
) -> Profile:
    """Run a model under onnxruntime's profiler, then without it.

    Args:
        proto: the model; its nodes are renamed.
        feeds: inputs.
        config: how the model is executed.
        weights: as for `onnxprune.runtime.session.open_session`.
        runs: counted runs with and without the profiler, at most; `MIN_RUNS` at least.
        seconds: time limit of all runs.
        where: name of the model in errors.

    Raises:
        ModelError: it cannot be loaded or run.
    """
    for number, node in enumerate(proto.graph.node):
        node.name = f"node{number}"
    start = time.perf_counter()
    with leftovers.temporary_folder() as folder:
        profile_file = str(folder / "profile")
        opened = open_session(proto, config, weights=weights, where=where, profile=profile_file)
        one = max(1e-3 * float(sample_times([opened], [feeds], runs=1, warmup=WARMUP)[0, 0]), 1e-6)
        runs = int(np.clip((seconds - (time.perf_counter() - start)) / (2 * one), MIN_RUNS, runs))
        for _ in range(runs):
            run_batch(opened, feeds, where=where)
        events = json.loads(Path(opened.end_profiling()).read_text(encoding="utf-8"))
    milliseconds = float(np.median(sample_times([opened], [feeds], runs=runs)))
    return Profile(tuple(kernels(events, origins(proto.graph), WARMUP + 1, runs)), milliseconds)


def origins(graph: onnx.GraphProto, *, marked: bool = True) -> Callable[[str, str], int | None]:
    """Return a function that finds the original node of a kernel, by name and operator; `marked`: names have its number."""
    writers = {name: number for number, node in enumerate(graph.node) for name in node.output if name}

    def find(name: str, op: str) -> int | None:
        if marked and (mark := MARK.search(name)):
            return int(mark[1])
        last = writers.get(name.removesuffix(BLOCKED))
        if last is None:
            return None
        nearest = [last]  # a Conv with a fused activation has the name of the output of the activation
        for _ in range(FUSED):
            found = next((number for number in nearest if graph.node[number].op_type == op), None)
            if found is not None:
                return found
            inputs = (name for number in nearest for name in graph.node[number].input)
            nearest = [writers[name] for name in inputs if name in writers]
        return last

    return find


def kernels(
    events: Sequence[Mapping[str, Any]], origin: Callable[[str, str], int | None], warmup: int, runs: int
) -> Iterator[Kernel]:
    """Yield the kernels of events of onnxruntime's profiler; `origin` finds the node of a name and an operator."""
    times: dict[str, list[float]] = defaultdict(list)
    ops: dict[str, tuple[str, str]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            times[name].append(float(event["dur"]))
            ops[name] = event["args"]["op_name"], event["args"].get("provider") or CPU_PROVIDER
    for name, durations in times.items():
        each = len(durations) // (warmup + runs)  # more than 1 in the body of a loop, and where names are not unique
        rows = np.array(durations[: each * (warmup + runs)]).reshape(warmup + runs, each)[warmup:].sum(axis=1)
        low, high = np.percentile(rows, [25, 75])
        op, provider = ops[name]
        compiled = name.startswith(f"{provider}_")
        node = None if compiled else origin(name.removesuffix("_kernel_time"), op)
        microseconds = float(rows[(rows >= low) & (rows <= high)].mean())
        yield Kernel(node, SUBGRAPH if compiled else op, microseconds, provider, name.removesuffix("_kernel_time"))

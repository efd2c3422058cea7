"""Where onnxruntime spends its time, kernel by kernel, from its own profiler."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.runtime.session import Feeds, open_session, run_batch
from onnxprune.runtime.timing import Clock

MARK = re.compile(r"(?<![A-Za-z0-9])node(\d+)(?!\d)")
"""How most kernels name the node that they came from: onnxruntime adds to the names of nodes that it replaces."""
BLOCKED = "_nchwc"
"""What it adds to the name of an output instead, where it computes in blocks of channels."""
FUSED = 4
"""Nodes that are fused into one, at most, where it goes by the name of the last output."""


@dataclass(frozen=True)
class Kernel:
    """What onnxruntime ran for one node of its optimised graph, in the order of execution.

    Attributes:
        node: number of the node of the model that it came from; None for what onnxruntime put in, and where it does not say.
        op: its operator there: Conv, ReorderOutput, FusedMatMul, …
        microseconds: mean of the middle half of the runs; each is told as a whole number.
    """

    node: int | None
    op: str
    microseconds: float


@dataclass(frozen=True)
class Profile:
    """Kernels of a model, and milliseconds of a run with the profiler off: median over the same number of runs."""

    kernels: tuple[Kernel, ...]
    milliseconds: float
    runs: int


def profile(
    proto: onnx.ModelProto,
    feeds: Feeds,
    *,
    weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
    runs: int = 20,
    fewest: int = 4,
    warmup: int = 2,
    seconds: float = math.inf,
    threads: int = 1,
    where: str = "the model",
) -> Profile:
    """Run a model under onnxruntime's profiler, then without it.

    Args:
        proto: the model; its nodes are named anew.
        feeds: inputs.
        weights: see `onnxprune.runtime.session.open_session`.
        runs: counted runs of each kind, at most.
        fewest: counted runs, at least.
        warmup: runs before.
        seconds: that all of it should take.
        threads: within an operator; 0 leaves it to onnxruntime.
        where: how to call the model in an error.

    Raises:
        ModelError: it cannot be loaded or run.
    """
    for number, node in enumerate(proto.graph.node):
        node.name = f"node{number}"
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        opened = open_session(
            proto, threads=threads, weights=weights, where=where, profile=str(Path(folder) / "profile")
        )
        for _ in range(warmup):
            run_batch(opened, feeds, where=where)
        begin = clock()
        run_batch(opened, feeds, where=where)
        one = max(clock() - begin, 1e-6)
        runs = int(np.clip((seconds - clock()) / (2 * one), fewest, runs))
        for _ in range(runs):
            run_batch(opened, feeds, where=where)
        events = json.loads(Path(opened.end_profiling()).read_text(encoding="utf-8"))
    times = []
    for _ in range(runs):
        begin = clock()
        run_batch(opened, feeds, where=where)
        times.append(1e3 * (clock() - begin))
    return Profile(tuple(_kernels(events, _Origin(proto.graph), warmup + 1, runs)), float(np.median(times)), runs)


class _Origin:
    """Finds the node that a kernel came from, by its name and operator."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._nodes = graph.node
        self._makes = {name: number for number, node in enumerate(graph.node) for name in node.output if name}

    def __call__(self, name: str, op: str) -> int | None:
        """Return its number."""
        mark = MARK.search(name)
        if mark:
            return int(mark[1])
        last = self._makes.get(name.removesuffix(BLOCKED))
        if last is None:
            return None
        nearest = [last]  # a Conv goes by the name of what its activation writes
        for _ in range(FUSED):
            found = next((number for number in nearest if self._nodes[number].op_type == op), None)
            if found is not None:
                return found
            before = (self._makes.get(name) for number in nearest for name in self._nodes[number].input)
            nearest = [number for number in before if number is not None]
        return last


def _kernels(
    events: Sequence[Mapping[str, Any]], origin: Callable[[str, str], int | None], warmup: int, runs: int
) -> Iterator[Kernel]:
    times: dict[str, list[float]] = defaultdict(list)
    ops: dict[str, str] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            times[name].append(float(event["dur"]))
            ops[name] = event["args"]["op_name"]
    for name, durations in times.items():
        each = len(durations) // (
            warmup + runs
        )  # more than 1 in a body that runs several times, and where names are not unique
        rows = np.array(durations[: each * (warmup + runs)]).reshape(warmup + runs, each)[warmup:].sum(axis=1)
        low, high = np.percentile(rows, [25, 75])
        node = origin(name.removesuffix("_kernel_time"), ops[name])
        yield Kernel(node, ops[name], float(rows[(rows >= low) & (rows <= high)].mean()))

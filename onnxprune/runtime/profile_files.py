"""Times of layers that were measured elsewhere: a profile of onnxruntime, of trtexec, or a CSV of `node,microseconds`."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.errors import LatencyError, content_fault, first_line
from onnxprune.reading import parse_json, read_text
from onnxprune.runtime.profiler import SUBGRAPH, Kernel, kernels, origins
from onnxprune.runtime.providers import CPU_PROVIDER, TENSORRT_PROVIDER, parse_provider
from onnxprune.types import FloatArray

KNOWN = "give a latency table, an onnxruntime profile (JSON), a `trtexec --exportProfile` file, or a CSV of node,microseconds"
SHOWN = 3
"""Number of names that an error shows."""
Find = Callable[[str, str], int | None]


@dataclass(frozen=True)
class FileProfile:
    """Times of the layers of a model, from a file.

    Attributes:
        kind: what the file is, in words.
        kernels: times by node.
        runs: (n,) milliseconds of whole runs; where the file tells none, the sum of the kernels as one run.
        provider: execution provider that ran most of the time.
    """

    kind: str
    kernels: tuple[Kernel, ...]
    runs: FloatArray
    provider: str


def read(path: Path, proto: onnx.ModelProto) -> FileProfile:
    """Read a profile of a model.

    Args:
        path: of the file.
        proto: the model, whose nodes the file names.

    Raises:
        LatencyError: the file cannot be read, is none of the known formats, or names no node of the model.
    """
    where = str(path)
    try:
        text = read_text(path, "utf-8-sig")
    except (OSError, ValueError) as error:
        raise LatencyError(
            "the profile cannot be read", where=where, why=first_line(error), hint="check the path"
        ) from error
    find = _finder(proto.graph)
    try:
        found = _parsed(text, find)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise LatencyError(
            "this is no profile that can be read", where=where, why=content_fault(error), hint=KNOWN
        ) from error
    if all(kernel.node is None and kernel.op != SUBGRAPH for kernel in found.kernels):
        names = ", ".join(kernel.name for kernel in found.kernels[:SHOWN])
        raise LatencyError(
            "the profile names no node of the model",
            where=where,
            why=f"it names {names}" if names else "it has no times",
            hint="give the model that was profiled, with the same names of nodes",
        )
    return found


def _parsed(text: str, find: Find) -> FileProfile:
    """Return the profile that a text holds, or raise ValueError, TypeError or KeyError."""
    if not text.lstrip().startswith(("[", "{")):
        return _named("CSV", [(name, 1, value) for name, value in _rows(text)], find)
    content = parse_json(text)
    if not isinstance(content, list):
        raise ValueError("the JSON is no list of events")
    if any("averageMs" in entry for entry in content):
        count = next((int(entry["count"]) for entry in content if "count" in entry), 1)
        rows = [(str(e["name"]), count, 1e3 * float(e["averageMs"])) for e in content if "averageMs" in e]
        return _named("trtexec profile", rows, find, TENSORRT_PROVIDER)
    return _onnxruntime(content, find)


def _rows(text: str) -> Iterator[tuple[str, float]]:
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        if not row or not any(cell.strip() for cell in row):
            continue
        if number == 1 and len(row) > 1 and not _is_number(row[-1]):
            continue  # a header
        if len(row) < 2 or not _is_number(row[-1]):
            raise ValueError(f"line {number} is not of the form node,microseconds")
        yield ",".join(row[:-1]).strip(), float(row[-1])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _named(kind: str, rows: list[tuple[str, int, float]], find: Find, provider: str = CPU_PROVIDER) -> FileProfile:
    """Return the profile of rows of a name, a number of runs and microseconds."""
    for name, _, value in rows:
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"the time of {name} is {value}")
    found = tuple(Kernel(find(name, ""), "", value, provider, name) for name, _, value in rows)
    total = 1e-3 * sum(kernel.microseconds for kernel in found)
    return FileProfile(kind, found, np.array([total]), provider)


def _onnxruntime(events: list[dict[str, Any]], find: Find) -> FileProfile:
    runs = np.array([1e-3 * float(e["dur"]) for e in events if e.get("cat") == "Session" and e["name"] == "model_run"])
    if not runs.size:
        raise ValueError("there is no event `model_run`: it is no profile of onnxruntime, or no run was profiled")
    warmup = 1 if runs.size > 1 else 0
    found = tuple(kernels(events, find, warmup, runs.size - warmup))
    time: dict[str, float] = {}
    for kernel in found:
        time[kernel.provider] = time.get(kernel.provider, 0.0) + kernel.microseconds
    provider = max(time, key=lambda name: time[name], default=CPU_PROVIDER)
    return FileProfile("onnxruntime profile", found, runs[warmup:], str(parse_provider(provider)))


def _finder(graph: onnx.GraphProto) -> Find:
    """Return a function that finds the node of a name: of a node, of its output, or made of the names of several nodes."""
    numbers = {node.name: number for number, node in enumerate(graph.node) if node.name}
    longest = sorted(numbers, key=len, reverse=True)
    by_output = origins(graph, marked=False)

    def find(name: str, op: str) -> int | None:
        for part in (name, *(part.strip() for part in re.split(r" \+ |\|\||[(),]", name))):  # TensorRT joins names
            if part in numbers:
                return numbers[part]
        if (found := by_output(name, op)) is not None:
            return found
        for known in longest:  # onnxruntime adds to the names of nodes that it replaces
            if name.startswith(known) and not name[len(known) : len(known) + 1].isalnum():
                return numbers[known]
        number = re.fullmatch(r"(\w+)_(\d+)", name)  # how onnxruntime calls a node without a name
        if number and number[1] == op and int(number[2]) < len(graph.node) and not graph.node[int(number[2])].name:
            return int(number[2]) if graph.node[int(number[2])].op_type == op else None
        return None

    return find

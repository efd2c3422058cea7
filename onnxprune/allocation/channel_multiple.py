"""Which multiples of channels this machine computes at once: a runtime pads, or leaves its fast path, where counts are no multiple."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict

import numpy as np
import onnx

from onnxprune.runtime import machine
from onnxprune.runtime.session import open_session, run_batch
from onnxprune.runtime.timing import Clock
from onnxprune.types import Trace

STEPS = (16, 8)
"""Steps that are told apart."""
FINER = (8, 4, 2, 1)
"""Steps to try where a target cannot be reached with a larger one."""
WIDTHS = (48, 56, 64)
"""Channels that are timed: multiples of 16, with a multiple of 8 between them."""
CHEAPER = 0.96
"""Time at a multiple of 8, as a share of that at the next multiple of 16, from which steps of 8 are worth their while."""
SHARES = 4
"""Steps that a group has, at least, where it is not narrow."""
MOST = 0.5
"""Share of the work in narrow groups from which the network is narrow."""
SIZE, ROUNDS, RUNS = 28, 7, 6


@functools.cache
def step() -> int:
    """Return 16 or 8: measured once for a processor and a version of onnxruntime, and kept in the user's cache."""
    where = machine.environment(1, 1)
    path = machine.cache_folder() / "step.json"
    key = json.dumps(asdict(where))
    try:
        known: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
        if known[key] in STEPS:
            return known[key]
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    found = _measured()
    machine.keep(path, json.dumps({**known, key: found}))
    return found


def steps(trace: Trace) -> tuple[int, dict[str, int]]:
    """Return the step of a model, and of each of its groups, by name.

    A network that is narrow where it works goes in half the steps of the machine: cut in whole ones its groups would stay whole or lose
    a quarter and more at once, which costs more accuracy than the time is worth (measured: docs/targets.md). Wide groups go in larger ones:
    a kernel works on up to four blocks at once, and a last one alone takes longer.

    Args:
        trace: facts of the model.
    """
    base = step()
    if _share_below(trace, SHARES * base) > MOST:
        base = max(base // 2, STEPS[-1])
    found = {}
    for group in trace.groups:
        filters = group.channels.size * group.width
        found[group.name] = next((f * base for f in (4, 2) if filters >= SHARES * f * base), base)
    return base, found


def _share_below(trace: Trace, filters: int) -> float:
    """Return the share of all multiply-accumulates in layers that write groups of fewer filters."""
    narrow = {label for group in trace.groups if group.channels.size * group.width < filters for label in group.layers}
    total = inside = 0.0
    for work in trace.works:
        macs = float(trace.weight_sizes[work.node, work.input]) * work.positions
        total += macs
        inside += macs if trace.labels[work.layer] in narrow else 0.0
    return inside / total if total else 0.0


def _measured() -> int:
    """Time a small network at three widths, in turn; the least time of each counts."""
    sessions = [open_session(_network(width), threads=1) for width in WIDTHS]
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 32, SIZE, SIZE)).astype(np.float32)}
    times = np.full(len(WIDTHS), np.inf)
    clock = Clock()
    for _ in range(ROUNDS):
        for n, opened in enumerate(sessions):
            run_batch(opened, feeds)
            for _ in range(RUNS):
                begin = clock()
                run_batch(opened, feeds)
                times[n] = min(times[n], clock() - begin)
    return 8 if times[1] < CHEAPER * times[2] else 16


def _network(width: int) -> onnx.ModelProto:
    """Return what mobile and residual networks are made of: 1x1, depthwise 3x3, 3x3 and 1x1, with Relu between."""
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    layers = (((width, 32, 1, 1), 1), ((width, 1, 3, 3), width), ((width, width, 3, 3), 1), ((32, width, 1, 1), 1))
    nodes, weights, last = [], [], "x"
    for n, (shape, group) in enumerate(layers):
        pad = shape[2] // 2
        nodes.append(helper.make_node("Conv", [last, f"w{n}"], [f"c{n}"], group=group, pads=[pad] * 4))
        last = f"r{n}"
        nodes.append(helper.make_node("Relu", [f"c{n}"], [last]))
        weights.append(onnx.numpy_helper.from_array(np.full(shape, 0.01, np.float32), f"w{n}"))
    ends = [helper.make_tensor_value_info(name, real, [1, 32, SIZE, SIZE]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "widths", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)

"""Channel multiples.

A runtime computes several channels at once. It pads, or leaves its fast path, where the channels of a layer are no
multiple of that number.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx

from onnxprune.options import ResolvedOptions
from onnxprune.reading import read_json
from onnxprune.runtime import machine
from onnxprune.runtime.session import SessionConfig, open_session
from onnxprune.runtime.timing import sample_times
from onnxprune.runtime.timings import Timings
from onnxprune.types import Trace

SCHEMA = "onnxprune.channel-multiple/1"
MULTIPLES = (16, 8)
"""Channel multiples of machines."""
FINER = (8, 4, 2, 1)
"""Channel multiples that are tried where a larger one cannot meet the target."""
WIDTHS = (48, 56, 64)
"""Channels of the timed networks: multiples of 16, with a multiple of 8 between them."""
CHEAPER = 0.96
"""Largest ratio of the times with 56 and 64 channels at which the channel multiple is 8."""
SHARES = 4
"""Fewest channel multiples in a group that is not narrow."""
MOST = 0.5
"""Share of the multiply-accumulates in narrow groups above which a network is narrow."""
SIZE, RUNS, WARMUP = 28, 42, 2
SINGLE = SessionConfig(threads=1)


@functools.cache
def machine_multiple() -> int:
    """Return 16 or 8, measured once for a processor and a version of onnxruntime and kept in the user's cache."""
    where = machine.environment(SINGLE, 1)
    try:
        content = read_json(cached(where))
        if content["schema"] == SCHEMA and content["environment"] == asdict(where) and content["multiple"] in MULTIPLES:
            return int(content["multiple"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or it is damaged: it is measured
    found = _measured()
    remember(found)
    return found


def cached(where: machine.Environment) -> Path:
    """Return the path of the channel multiple of a machine in the cache."""
    return machine.cache_file("channel-multiple", asdict(where))


def remember(multiple: int) -> None:
    """Keep the channel multiple of this machine in the cache."""
    where = machine.environment(SINGLE, 1)
    content = {"schema": SCHEMA, "environment": asdict(where), "multiple": multiple}
    machine.keep(cached(where), json.dumps(content, indent=1))


def multiple_for(options: ResolvedOptions, timings: Timings) -> ResolvedOptions:
    """Return the options with the channel multiple of the machine, where they leave it to the machine."""
    if options.round_to is not None:
        return options
    (found,) = timings.of("channel multiple of the machine", 1, lambda: [machine_multiple()])
    return replace(options, multiple=round(found))


def multiples(trace: Trace, base: int | None = None) -> tuple[int, dict[str, int]]:
    """Return the channel multiple of a model, and the one of each group, by name; `base` is that of the machine.

    A network with most of its work in narrow groups takes half the multiple of the machine. With the whole multiple its
    groups would stay whole or lose a quarter and more at once, which costs more accuracy than the time is worth
    (measured in docs/targets.md). Wide groups take a larger multiple: a kernel computes up to four times the multiple
    at once, and a remainder takes longer.
    """
    base = base or machine_multiple()
    if _share_below(trace, SHARES * base) > MOST:
        base = max(base // 2, MULTIPLES[-1])
    found = {}
    for group in trace.groups:
        filters = group.channels.size * group.width
        found[group.name] = next((f * base for f in (4, 2) if filters >= SHARES * f * base), base)
    return base, found


def _share_below(trace: Trace, filters: int) -> float:
    """Return the share of all multiply-accumulates in layers that write groups of fewer filters."""
    narrow = {label for group in trace.groups if group.channels.size * group.width < filters for label in group.layers}
    macs = np.array([trace.weight_sizes[work.node, work.input] * work.positions for work in trace.works], dtype=float)
    inside = np.array([trace.labels[work.layer] in narrow for work in trace.works], dtype=bool)
    return float(macs[inside].sum() / macs.sum()) if macs.any() else 0.0


def _measured() -> int:
    """Return the channel multiple that follows from the least times of a small network at three widths."""
    sessions = [open_session(_network(width), SINGLE) for width in WIDTHS]
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 32, SIZE, SIZE)).astype(np.float32)}
    times = sample_times(sessions, [feeds] * len(sessions), runs=RUNS, warmup=WARMUP).min(axis=1)
    return 8 if times[1] < CHEAPER * times[2] else 16


def _network(width: int) -> onnx.ModelProto:
    """Return a 1x1, a depthwise 3x3, a 3x3 and a 1x1 Conv with Relu between, as in mobile and residual networks."""
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

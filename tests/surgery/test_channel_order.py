"""Channels in another order change nothing: an oracle for the facts of a trace, beside deletion."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from graphs import cnn_models, load
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxprune.graph.analysis import analyse
from onnxprune.graph.comparison_points import comparison_points
from onnxprune.graph.io import load as load_file
from onnxprune.graph.model import Model, tensors_of
from onnxprune.surgery.proof import prove
from onnxprune.types import IntArray, Trace


def permuted(model: Model, trace: Trace, order: IntArray) -> Model:
    """Return the model with its channels in another order: where channel c was, `order[c]` is then."""
    result = model.copy()
    for (node, position), facts in trace.slices_by_use().items():
        old = result.graph.nodes[node].inputs[position]
        value = old.values
        for fact in facts:
            value = value.take(places(fact.channels, order), axis=fact.axis)
        result.graph.nodes[node].inputs[position] = gs.Constant(f"{old.name}__node{node}_{position}", value)
    return result


def places(channels: IntArray, order: IntArray) -> IntArray:
    """Return which place of an axis each place takes over."""
    target = np.append(order, -1)[channels]
    old, new = np.argsort(channels, kind="stable"), np.argsort(target, kind="stable")
    assert np.array_equal(channels[old], target[new]), "channels do not change places among themselves"
    index = np.empty_like(old)
    index[new] = old
    return index


def movable(trace: Trace) -> list[IntArray]:
    """Return sets of channels that may take any order: every axis holds all of them equally often, and no constant their positions."""
    # the bounds of a Slice count channels: it may take one copy of a channel, and an activated copy of another
    axes = [*trace.extents, *(fact.channels for facts in (trace.slices, trace.counts) for fact in facts)]
    windows = [summed.channels for summed in trace.summed if summed.statistic == "window"]
    fixed = [trace.pinned.nonzero()[0], *(lookup.channels for lookup in trace.lookups), *windows]
    found = []
    for group in trace.groups:
        counts = [Counter(axis.tolist()) for axis in axes]
        classes: dict[tuple[int, ...], list[int]] = {}
        for channel in group.channels.tolist():
            if not any((channel == some).any() for some in fixed):
                classes.setdefault(tuple(count[channel] for count in counts), []).append(channel)
        found += [np.array(channels) for channels in classes.values() if len(channels) > 1]
    return found


def differ(one: Model, two: Model) -> bool:
    """Tell whether any constant of two models of one layout differs."""
    values = [[value.values for *_, value in tensors_of(model.graph)] for model in (one, two)]
    return not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*values, strict=True))


@settings(max_examples=60, deadline=None)
@given(cnn_models(), st.integers(0, 2**16))
def test_channels_in_another_order_change_nothing(proto: onnx.ModelProto, seed: int) -> None:
    model = load(proto)
    assume(not comparison_points(model.graph).boundaries)  # they are compared channel by channel
    trace = analyse(model).trace
    rng = np.random.default_rng(seed)
    order = np.arange(trace.n_channels)
    for channels in movable(trace):
        order[channels] = rng.permutation(channels)
    found = permuted(model, trace, order)
    assert differ(model, found) == bool((order != np.arange(trace.n_channels)).any())
    prove(model, found, model, trace.input_shapes, loaded=True)


@pytest.mark.parametrize("name", ["small", "resnet", "mobile"])
def test_channels_of_whole_networks_change_places(name: str, models: Path) -> None:
    model = load_file(models / f"{name}.onnx")
    trace = analyse(model).trace
    order = np.arange(trace.n_channels)
    moved = movable(trace)
    assert len(moved) >= len(trace.groups) - 1
    for channels in moved:
        order[channels] = channels[::-1]
    found = permuted(model, trace, order)
    assert differ(model, found)
    prove(model, found, model, trace.input_shapes, loaded=True)

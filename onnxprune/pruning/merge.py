"""Repair without any data: a channel that goes is merged into the survivor that is most like it, and its mean into a bias.

Where w_c, all that writes channel c, is nearly a w_s, what flows there is nearly a times what flows in s (exactly, for a positive a and
nothing but rectifiers in between); so the weights that read c, times a, are added to those that read s (Srinivas and Babu, 2015,
"Data-free parameter pruning for deep neural networks", eq. 6). What is left of the mean of c is added to the biases of the
readers where it is known: the layer that writes the channel took in a BatchNormalization, whose statistics say that its output has the
mean beta and the deviation |gamma|, and a Relu or nothing follows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.graph.model import Model
from onnxprune.graph.qdq import values_at
from onnxprune.graph.readers import Reader, readers_of
from onnxprune.types import BoolArray, FloatArray, Group, IntArray, Trace

LEAST_LIKENESS = 0.1
"""Cosine below which two channels have nothing in common."""
AT_ONCE = 2**24
"""Pairs of channels that are compared at a time."""


def merge(model: Model, trace: Trace, keep: BoolArray) -> Model:
    """Return the dense model with the readers of every channel that goes reading its nearest survivor instead.

    What still reads the channels that go does no harm: they are deleted next.

    Args:
        model: the model that was traced.
        trace: its facts.
        keep: (n_channels,) True where a channel stays.
    """
    result = model.copy()
    means = _means(model, trace)
    groups = {group.name: group for group in trace.groups}
    for name, readers in readers_of(result, trace).items():
        group = groups[name]
        gone, left = group.channels[~keep[group.channels]], group.channels[keep[group.channels]]
        if not gone.size or not readers:
            continue
        known = all(reader.layer.node.inputs[reader.layer.x].name in means for reader in readers)
        vectors = _vectors(model, trace, group, with_bias=not known)
        target, factor = _nearest(vectors, group, gone, left)
        for reader in readers:
            _redirect(result, reader, gone, target, factor, means)
    return result


def _vectors(model: Model, trace: Trace, group: Group, *, with_bias: bool) -> FloatArray:
    """Return all that writes each channel of a group, (channels, elements); biases don't count where means are known."""
    place = np.full(trace.n_channels + 1, -1)
    place[group.channels] = np.arange(group.channels.size)
    parts = []
    for fact in trace.slices:
        if fact.role == "reads":
            continue
        here = place[fact.channels]
        counts = np.bincount(here[here >= 0], minlength=group.channels.size)
        if counts.max() == 0 or counts.min() != counts.max():
            continue
        order = np.argsort(here, kind="stable")
        order = order[here[order] >= 0]
        if not with_bias and len(model.graph.nodes[fact.node].inputs[fact.input].shape) == 1:
            continue
        values = np.moveaxis(values_at(model.graph.nodes[fact.node], fact.input), fact.axis, 0)[order]
        parts.append(values.reshape(group.channels.size, -1).astype(np.float64))
    return np.concatenate(parts, axis=1) if parts else np.zeros((group.channels.size, 1))


def _nearest(vectors: FloatArray, group: Group, gone: IntArray, left: IntArray) -> tuple[IntArray, FloatArray]:
    """Return, for each channel that goes, the survivor with the greatest cosine, and the factor between the two."""
    a, b = (vectors[np.searchsorted(group.channels, some)] for some in (gone, left))
    lengths = np.maximum(np.linalg.norm(b, axis=1), 1e-30)
    best, factor = np.zeros(gone.size, dtype=np.int64), np.zeros(gone.size)
    step = max(1, AT_ONCE // left.size)
    for start in range(0, gone.size, step):
        here = slice(start, start + step)
        products = a[here] @ b.T
        cosine = products / np.maximum(np.linalg.norm(a[here], axis=1)[:, None] * lengths, 1e-30)
        best[here] = cosine.argmax(axis=1)
        pick = np.arange(len(products)), best[here]
        factor[here] = np.where(cosine[pick] >= LEAST_LIKENESS, products[pick] / lengths[best[here]] ** 2, 0.0)
    return left[best], factor


def _redirect(
    model: Model, reader: Reader, gone: IntArray, target: IntArray, factor: FloatArray, means: dict[str, FloatArray]
) -> None:
    """Add the weights that read channels that go to those that read their targets, and the rest of their means to the bias."""
    layer = reader.layer
    matrix, bias = layer.effective()
    mean = means.get(layer.node.inputs[layer.x].name)
    for g, channels in enumerate(reader.channels):
        order = np.argsort(channels, kind="stable")
        starts, ends = (np.searchsorted(channels[order], gone, side=side) for side in ("left", "right"))
        firsts = np.searchsorted(channels[order], target)
        for c, start, end, first, times in zip(gone, starts, ends, firsts, factor, strict=True):
            old, new = order[start:end], order[first : first + end - start]
            if not old.size or new.size != old.size or (channels[new] != channels[new[0]]).any():
                continue
            matrix[g][:, new] += times * matrix[g][:, old]
            if mean is not None and layer.holds_bias:
                bias[g] += matrix[g][:, old].sum(axis=1) * (mean[c] - times * mean[channels[new[0]]])
    layer.write(matrix, bias if layer.holds_bias else None)  # a new one would not be cut with the filters


def _means(model: Model, trace: Trace) -> dict[str, FloatArray]:
    """Return the mean of every channel, (n_channels,), for the tensors of which it is known."""
    from scipy.stats import norm

    result: dict[str, Any] = {}
    for fact in trace.slices:
        statistics = model.batchnorms.get(fact.tensor) if fact.role == "writes" else None
        if statistics is None or statistics.bias.size != fact.channels.size:
            continue
        tensor = model.graph.nodes[fact.node].outputs[0]
        deviation = np.maximum(np.abs(statistics.scale), 1e-12)
        ratio = statistics.bias / deviation
        rectified = statistics.bias * norm.cdf(ratio) + deviation * norm.pdf(ratio)
        here = fact.channels >= 0
        for name, values in (
            (tensor.name, statistics.bias),
            *((u.outputs[0].name, rectified) for u in tensor.outputs if u.op == "Relu"),
        ):
            result[name] = np.zeros(trace.n_channels)
            result[name][fact.channels[here]] = values[here]
    return result

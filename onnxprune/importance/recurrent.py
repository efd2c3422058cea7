"""Importance of channels that recurrent layers alone read: the mean square of what a channel adds to the gates.

For gates Wx + Rh + b the squared error without the feature f is E[x_f^2] |W_f|^2. No other weight makes up for it, as a
recurrent layer is not refitted; so the score holds the mean square of the feature, where a refitted bias would leave
the variance.
"""

from __future__ import annotations

import numpy as np

from onnxprune.calibration.capture import LayerwiseRunner
from onnxprune.calibration.workspace import Workspace
from onnxprune.graph.model import Model
from onnxprune.graph.qdq import values_at
from onnxprune.graph.readers import readers_of
from onnxprune.graph.rules.recurrent import GATES, W
from onnxprune.importance.weights import relative
from onnxprune.types import BoolArray, FloatArray, Slice, Trace


def scores(model: Model, trace: Trace, workspace: Workspace, keep: BoolArray, fallback: FloatArray) -> FloatArray:
    """Return the importance of every channel, (n_channels,), divided by the mean of its group.

    Args:
        model: the traced model.
        trace: its facts.
        workspace: calibration samples.
        keep: (n_channels,) channels that are left.
        fallback: (n_channels,) importance of channels that a linear layer reads, or no recurrent layer.
    """
    alone = {name for name, readers in readers_of(model, trace).items() if not readers}
    groups = [group.channels for group in trace.groups if group.name in alone]
    mine = np.zeros(trace.n_channels + 1, dtype=bool)
    mine[np.concatenate([np.zeros(0, dtype=np.int64), *groups])] = True
    facts = [fact for fact in trace.slices if _reads_input(model, trace, fact) and mine[fact.channels].any()]
    if not facts:
        return fallback
    total, read = np.zeros(trace.n_channels + 1), np.zeros(trace.n_channels + 1, dtype=bool)
    stream = LayerwiseRunner(model, workspace.calibration, workspace.store)
    for fact in sorted(facts, key=lambda fact: fact.layer):
        name = model.graph.nodes[fact.layer].inputs[0].name
        stream.advance([name])
        squares = np.zeros(fact.channels.size)
        for batch in range(stream.n_batches):
            x = stream.read(name, batch)
            squares += np.einsum("tni,tni->i", x, x, dtype=np.float64)
        weight = values_at(model.graph.nodes[fact.node], fact.input)
        energy = squares * np.einsum("dgi,dgi->i", weight, weight, dtype=np.float64)
        np.add.at(total, fact.channels, energy / max(float(energy.sum()), np.finfo(float).tiny))
        read[fact.channels] = True
    stream.close()
    return np.where((read & mine)[:-1], relative(trace, total[:-1], keep), fallback)


def _reads_input(model: Model, trace: Trace, fact: Slice) -> bool:
    """Tell whether a slice is that of the input weight of a recurrent layer, which reads its channels."""
    if fact.role != "reads" or trace.ops[fact.layer] not in GATES:
        return False
    weight = model.graph.nodes[fact.layer].inputs[W]
    source = weight.inputs[0] if weight.inputs else None
    return bool(fact.tensor == (weight if source is None else source.inputs[0]).name)

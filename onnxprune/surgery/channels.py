"""Delete channels of a model by the facts of its trace. No operator is named here."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.graph.model import Model
from onnxprune.runtime.weight_files import in_file
from onnxprune.types import BoolArray, IntArray, Trace

CUT_BYTES = 2**22
"""Bytes that are cut at a time where a weight loses channels along several axes."""


def delete(model: Model, trace: Trace, keep: BoolArray) -> Model:
    """Return the model without the channels where `keep`, (n_channels,), is False.

    A tensor is cut once: all its readers lose the same channels, see `onnxprune.graph.sharing`.
    """
    result = model.copy()
    nodes = result.graph.nodes
    alive = np.append(keep, True)
    done: set[str] = set()
    for (node, position), facts in trace.slices_by_use().items():
        tensor = nodes[node].inputs[position]
        cuts = {fact.axis: np.flatnonzero(alive[fact.channels]) for fact in facts if not alive[fact.channels].all()}
        if not cuts or tensor.name in done:
            continue
        done.add(tensor.name)
        tensor.values = in_file(_cut(tensor.values, sorted(cuts.items())), model.size)
        if tensor.name in model.folded:
            result.folded[tensor.name] = model.folded[tensor.name].take(sorted(cuts.items()), tensor.values)
        stats = model.batchnorms.get(tensor.name)
        filters = next((cuts[fact.axis] for fact in facts if fact.role == "writes" and fact.axis in cuts), None)
        if stats is not None and filters is not None:
            result.batchnorms[tensor.name] = stats.take(filters)
    _set_integers(nodes, trace, alive)
    return result


def _cut(value: np.ndarray[Any, Any], cuts: list[tuple[int, IntArray]]) -> np.ndarray[Any, Any]:
    """Keep the elements at the indices along each axis.

    Several axes are cut for some rows at a time, which saves the memory and time of a copy per axis.
    """
    *firsts, (last, kept) = cuts
    if not firsts:
        return value.take(kept, axis=last)
    shape = list(value.shape)
    for axis, index in cuts:
        shape[axis] = index.size
    result = np.empty(shape, value.dtype)
    rows = firsts[0][1] if firsts[0][0] == 0 else np.arange(len(value))
    step = max(1, CUT_BYTES // max(1, value[:1].nbytes))
    for start in range(0, len(rows), step):
        part = value.take(rows[start : start + step], axis=0)
        for axis, index in firsts:
            part = part if axis == 0 else part.take(index, axis=axis)
        part.take(kept, axis=last, out=result[start : start + step], mode="clip")  # other modes buffer the output
    return result


def _set_integers(nodes: list[gs.Node], trace: Trace, alive: BoolArray) -> None:
    """Write the new numbers of channels to attributes and shape literals, and renumber positions."""
    literals: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for fact in trace.counts:
        survivors = int(alive[fact.channels].sum()) // fact.per
        node = nodes[fact.node]
        if fact.input is not None:
            literals[fact.node, fact.input].append((fact.index or 0, survivors))
        elif fact.index is None:
            node.attrs[fact.field] = survivors
        else:
            node.attrs[fact.field] = [survivors if i == fact.index else v for i, v in enumerate(node.attrs[fact.field])]
    for (n, position), changes in literals.items():
        old = nodes[n].inputs[position].values
        integers: IntArray = old.copy()
        for index, survivors in changes:
            integers.reshape(-1)[index] = survivors
        if not np.array_equal(integers, old):
            _replace(nodes[n], n, position, integers)
    for lookup in trace.lookups:
        left = alive[lookup.channels]
        if not left.all():
            old = nodes[lookup.node].inputs[lookup.input].values
            positions = old % left.size  # negative ones count from the end
            kept = positions[left[positions]] if positions.ndim else positions  # a single position is pinned
            renumbered = np.asarray((np.cumsum(left) - 1)[kept], dtype=old.dtype)
            _replace(nodes[lookup.node], lookup.node, lookup.input, renumbered)


def _replace(node: gs.Node, n: int, position: int, value: IntArray) -> None:
    """Give a node a constant of its own: another node may share the old constant with another meaning."""
    node.inputs[position] = gs.Constant(f"{node.inputs[position].name}__node{n}", value)

"""Delete channels of a model by the facts of its trace. No operator is named here."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.graph.model import Model, tensors_of
from onnxprune.types import BoolArray, IntArray, Trace

CUT_BYTES = 2**22
"""Bytes that are cut at a time where a weight loses channels along several axes."""

Sliced = dict[tuple[Any, ...], tuple[gs.Constant, int, list[IntArray]]]
"""By (old name, cuts): the sliced tensor, the first node that takes it, and the kept filters."""


def delete(model: Model, trace: Trace, keep: BoolArray) -> Model:
    """Return the model without the channels where `keep`, (n_channels,), is False.

    A tensor that several nodes share stays one tensor where the nodes lose the same channels.
    """
    result = model.copy()
    nodes = result.graph.nodes
    alive = np.append(keep, True)
    made: Sliced = {}
    for (node, position), facts in trace.slices_by_use().items():
        cuts = [
            (fact, np.flatnonzero(alive[fact.channels]))
            for fact in sorted(facts, key=lambda fact: fact.axis)
            if not alive[fact.channels].all()
        ]
        if not cuts:
            continue
        old = nodes[node].inputs[position]
        key = (old.name, *((fact.axis, index.tobytes()) for fact, index in cuts))
        if key not in made:
            value = _cut(old.values, [(fact.axis, index) for fact, index in cuts])
            filters = [index for fact, index in cuts if fact.role == "writes"]
            made[key] = gs.Constant(old.name, value), node, filters
        nodes[node].inputs[position] = made[key][0]
    _name(result, made)
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


def _name(model: Model, made: Sliced) -> None:
    """Rename a sliced tensor where the whole tensor, or another cut of the tensor, is in use as well."""
    sliced = {id(constant) for constant, *_ in made.values()}
    whole = {t.name for _, _, t in tensors_of(model.graph) if id(t) not in sliced}
    versions = Counter(old for old, *_ in made)
    taken = {}
    for (old, *cuts), (constant, node, filters) in made.items():
        if old in whole or versions[old] > 1:
            constant.name = f"{old}__node{node}"
        stats, folded = model.batchnorms.get(old), model.folded.get(old)
        if stats is not None:
            model.batchnorms[constant.name] = stats.take(filters[0]) if filters else stats
        if folded is not None:
            kept = [(axis, np.frombuffer(index, dtype=np.int64)) for axis, index in cuts]
            taken[constant.name] = folded.take(kept, constant.values)
    model.folded.update(taken)


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

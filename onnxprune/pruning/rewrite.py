"""Delete channels, or zero what reads them: facts in, a new model out. There are no operator names here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune import runtime
from onnxprune.model import Model, weightless
from onnxprune.types import BoolArray, FloatArray, IntArray, Summed, Trace

BLOCK = 2**22
"""Bytes that are cut at a time where a weight loses channels along several axes."""
AXES_ARE_INPUTS = 18
"""Opset from which ReduceMean takes its axes as an input."""


def delete(model: Model, trace: Trace, keep: BoolArray) -> Model:
    """Return the model without the channels that are not in `keep`.

    Tensors that several nodes share are sliced once where the nodes agree, else each gets its own.

    Args:
        model: the model that was traced.
        trace: its facts.
        keep: (n_channels,) True where a channel stays.
    """
    result = model.copy()
    nodes = result.graph.nodes
    alive = np.append(keep, True)
    made: dict[tuple[Any, ...], gs.Constant] = {}  # (old name, cuts) -> the sliced tensor
    origin: dict[int, tuple[str, int, list[IntArray]]] = {}  # of each sliced tensor: old name, first node, filters left
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
            made[key] = gs.Constant(old.name, value)
            origin[id(made[key])] = (old.name, node, [index for fact, index in cuts if fact.role == "writes"])
        nodes[node].inputs[position] = made[key]
    _name(result, made, origin)
    _set_integers(nodes, trace, alive)
    return result


def _cut(value: np.ndarray[Any, Any], cuts: list[tuple[int, IntArray]]) -> np.ndarray[Any, Any]:
    """Keep what lies at the indices along each axis.

    Several axes are cut block by block of the first one: a large weight cut whole, axis after axis, would take the memory and
    the time of one more copy.
    """
    *firsts, (last, kept) = cuts
    if not firsts:
        return value.take(kept, axis=last)
    shape = list(value.shape)
    for axis, index in cuts:
        shape[axis] = index.size
    result = np.empty(shape, value.dtype)
    rows = firsts[0][1] if firsts[0][0] == 0 else np.arange(len(value))
    step = max(1, BLOCK // max(1, value[:1].nbytes))
    for start in range(0, len(rows), step):
        part = value.take(rows[start : start + step], axis=0)
        for axis, index in firsts:
            part = part if axis == 0 else part.take(index, axis=axis)
        part.take(kept, axis=last, out=result[start : start + step], mode="clip")  # other modes buffer the output
    return result


def _name(
    model: Model, made: dict[tuple[Any, ...], gs.Constant], origin: dict[int, tuple[str, int, list[IntArray]]]
) -> None:
    """Let a sliced tensor keep its name unless the whole one, or another cut of it, is in use as well."""
    whole = {
        t.name for node in model.graph.nodes for t in node.inputs if isinstance(t, gs.Constant) and id(t) not in origin
    }
    versions = Counter(old for old, *_ in made)
    for constant in made.values():
        old, node, writes = origin[id(constant)]
        if old in whole or versions[old] > 1:
            constant.name = f"{old}__node{node}"
        stats = model.batchnorms.get(old)
        if stats is not None:
            model.batchnorms[constant.name] = stats.take(writes[0]) if writes else stats


def mask(model: Model, trace: Trace, keep: BoolArray) -> Model:
    """Return the dense model with every weight slice that reads a deleted channel set to zero.

    This is what `delete` must equal: zeroing the filter that writes a channel would not do, since its bias still sends a
    constant on.
    """
    result = model.copy()
    nodes = result.graph.nodes
    alive = np.append(keep, True)
    for (node, position), facts in trace.slices_by_use().items():
        dead = [(fact, ~alive[fact.channels]) for fact in facts if fact.role == "reads"]
        dead = [(fact, flags) for fact, flags in dead if flags.any()]
        if not dead:
            continue
        old = nodes[node].inputs[position]
        value = old.values.copy()
        for fact, flags in dead:
            index = (slice(None),) * fact.axis + (flags,)
            value[index] = np.broadcast_to(fact.zero, value.shape)[index]
        nodes[node].inputs[position] = gs.Constant(f"{old.name}__node{node}", value)
    touched = [summed for summed in trace.summed if not alive[summed.channels].all()]
    types = runtime.infer_shapes(weightless(model), trace.input_shapes).types if touched else {}
    for summed in touched:  # new nodes go to the end, so that node numbers stay right
        _leave_out(result.graph, trace, summed, alive[summed.channels], types, model.opset)
    if touched:
        result.graph.toposort()
    return result


def _leave_out(
    graph: gs.Graph, trace: Trace, summed: Summed, flags: BoolArray, types: Mapping[str, int], opset: int
) -> None:
    """Change an operand so that a statistic over all its channels is the one over those that stay.

    With n channels of which m stay, zeros leave a sum as it is, and a mean times m/n. What is divided by a root mean square is
    multiplied by sqrt(n/m) before, and by sqrt(m/n) after; for a variance it is centred first, by the mean over the m. For a window
    those that stay are moved together, with zeros behind them, and back.

    Args:
        graph: changed in place; new nodes go to the end.
        trace: facts of the model.
        summed: the statistic.
        flags: True where a channel stays.
        types: ONNX element types by tensor.
        opset: of the model.
    """
    node = graph.nodes[summed.node]
    operand = node.inputs[summed.input]
    if operand.name in types:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(types[operand.name])
    else:  # beyond an operator that onnx does not know; the type of the weights, most likely
        weights = [t for n in graph.nodes for t in n.inputs if isinstance(t, gs.Constant)]
        floats = (t.values.dtype for t in weights if np.issubdtype(t.values.dtype, np.floating))
        dtype = next(floats, np.dtype(np.float32))
    share = float(flags.mean())
    shape = [1] * len(trace.shapes[operand.name])
    shape[summed.axis] = flags.size
    name = f"{operand.name}__node{summed.node}_{summed.input}"

    def add(op: str, label: str, inputs: list[gs.Tensor], **attrs: Any) -> gs.Variable:
        output = gs.Variable(f"{name}__{label}")
        graph.nodes.append(gs.Node(op, f"{name}__{label}__node", attrs, inputs, [output]))
        return output

    def times(operand: gs.Tensor, factor: FloatArray, label: str) -> gs.Variable:
        return add("Mul", label, [operand, gs.Constant(f"{name}__{label}__factor", factor.astype(dtype))])

    kept = flags.reshape(shape).astype(np.float64)
    if summed.statistic == "variance":
        even = times(operand, kept / share, "even")
        axes = np.array(summed.axes, dtype=np.int64)
        if opset >= AXES_ARE_INPUTS:
            mean = add("ReduceMean", "mean", [even, gs.Constant(f"{name}__axes", axes)])
        else:
            mean = add("ReduceMean", "mean", [even], axes=axes.tolist())
        operand = add("Sub", "centred", [operand, mean])
    root = summed.statistic in ("mean square", "variance")
    factor = np.sqrt(share) if root else share if summed.statistic == "mean" else 1.0
    node.inputs[summed.input] = masked = times(operand, kept / factor, "masked")
    if summed.statistic == "window":
        order = np.argsort(~flags, kind="stable")
        places = [gs.Constant(f"{name}__order{i}", index) for i, index in enumerate((order, np.argsort(order)))]
        node.inputs[summed.input] = add("Gather", "together", [masked, places[0]], axis=summed.axis)
        result, node.outputs[0] = node.outputs[0], gs.Variable(f"{name}__result")
        graph.nodes.append(
            gs.Node("Gather", f"{name}__back", {"axis": summed.axis}, [node.outputs[0], places[1]], [result])
        )
    if root and summed.scale is not None:
        node.inputs[summed.scale] = times(node.inputs[summed.scale], np.asarray(factor), "scale")


def _set_integers(nodes: list[gs.Node], trace: Trace, alive: BoolArray) -> None:
    """Write the new numbers of channels into attributes and shape literals, and renumber positions."""
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
            kept = positions[left[positions]] if positions.ndim else positions  # a single position is of one that stays
            renumbered = np.asarray((np.cumsum(left) - 1)[kept], dtype=old.dtype)
            _replace(nodes[lookup.node], lookup.node, lookup.input, renumbered)


def _replace(node: gs.Node, n: int, position: int, value: IntArray) -> None:
    """Give a node a constant of its own: another node may share the old one, and not its meaning."""
    node.inputs[position] = gs.Constant(f"{node.inputs[position].name}__node{n}", value)

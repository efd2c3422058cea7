"""Mask channels: zero the weights that read them. A pruned model must equal the masked dense model."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.graph.model import Model, inferred
from onnxprune.graph.nodes import integers_argument
from onnxprune.graph.order import sort
from onnxprune.runtime.weight_files import in_file
from onnxprune.types import BoolArray, FloatArray, Summed, Trace


def mask(model: Model, trace: Trace, keep: BoolArray) -> Model:
    """Return the dense model with every weight slice that reads a deleted channel set to zero.

    `delete` must equal this model. Zeroing the filter that writes a channel is not enough: its bias still sends a
    constant on.
    """
    result = model.copy()
    nodes = result.graph.nodes
    alive = np.append(keep, True)
    made: dict[Hashable, gs.Constant] = {}  # what one tensor becomes for several readers is stored once
    for (node, position), facts in trace.slices_by_use().items():
        dead = [(fact, ~alive[fact.channels]) for fact in facts if fact.role == "reads"]
        dead = [(fact, flags) for fact, flags in dead if flags.any()]
        if not dead:
            continue
        old = nodes[node].inputs[position]
        key = id(old), tuple((fact.axis, flags.tobytes(), fact.zero.tobytes()) for fact, flags in dead)
        if key not in made:
            value = old.values.copy()
            for fact, flags in dead:
                index = (slice(None),) * fact.axis + (flags,)
                value[index] = np.broadcast_to(fact.zero, value.shape)[index]
            made[key] = gs.Constant(f"{old.name}__node{node}_{position}", in_file(value, model.size))
        nodes[node].inputs[position] = made[key]
    touched = [summed for summed in trace.summed if not alive[summed.channels].all()]
    types = inferred(model, trace.input_shapes).types if touched else {}
    for summed in touched:  # new nodes go to the end and leave node numbers unchanged
        _leave_out(result.graph, trace, summed, alive[summed.channels], types, model.opset)
    if touched:
        sort(result.graph)
    return result


def _leave_out(
    graph: gs.Graph, trace: Trace, summed: Summed, flags: BoolArray, types: Mapping[str, int], opset: int
) -> None:
    """Change an operand in place so that a statistic over all its channels equals the statistic over the kept channels.

    With m of n channels kept (`flags`), zeros leave a sum unchanged and scale a mean by m/n. An operand that is divided
    by its root mean square is multiplied by sqrt(n/m) before, and by sqrt(m/n) after; for a variance it is first
    centered by the mean over the m. For a window the kept channels are gathered in front of the zeros, and moved back after it.
    `types` holds ONNX element types by tensor.
    """
    node = graph.nodes[summed.node]
    operand = node.inputs[summed.input]
    if operand.name in types:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(types[operand.name])
    else:  # behind an operator without shape inference: most likely the type of the weights
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
        more, attrs = integers_argument("ReduceMean", "axes", summed.axes, opset, f"{name}__axes")
        mean = add("ReduceMean", "mean", [even, *more], **attrs)
        operand = add("Sub", "centered", [operand, mean])
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

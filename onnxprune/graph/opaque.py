"""Count what the rules do not see: layers of operators without a rule, and the bodies of If, Loop and Scan."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxprune.graph.folded import is_float, is_quantized
from onnxprune.graph.initializers import FLOATS, SMALL
from onnxprune.graph.nodes import bodies_of, has_bodies
from onnxprune.graph.operators import spec_of
from onnxprune.graph.qdq import STANDARD
from onnxprune.graph.shapes import infer_shapes
from onnxprune.types import Opaque

Shapes = Mapping[str, tuple[int, ...]]
MATRIX = ("MatMul", "Gemm", "Attention", "LSTM", "GRU", "RNN")
"""Parts of the names of operators that multiply rows by a matrix, whatever their domain."""
OPTIMIZED = ("Fused", "Skip", "Bias", "FastGelu", "QuickGelu", "EmbedLayer", "Attention", "NhwcConv")
"""Beginnings of the names of operators of onnxruntime that its optimizer makes."""


def opaque_costs(graph: gs.Graph, shapes: Shapes, counted: Collection[int], batch: int) -> tuple[Opaque, ...]:
    """Return the cost, per sample, of each node with weights whose multiplications no rule counts.

    Args:
        graph: the graph that was traced.
        shapes: concrete shape of every tensor.
        counted: nodes whose multiplications are counted.
        batch: number of samples in the shapes.
    """
    found = []
    for n, node in enumerate(graph.nodes):
        spec = spec_of(node)
        if n in counted or (spec.rule is not None and not spec.weight_inputs):
            continue  # an operator with a rule multiplies no weight, as Attention with a constant mask
        cost = _body_cost(node, shapes) if has_bodies(node) else _layer_cost(node, shapes)
        if cost is not None:
            found.append(replace(cost, node=n, macs=None if cost.macs is None else cost.macs / batch))
    return tuple(found)


def operator_of(node: gs.Node) -> str:
    """Return the operator of a node, with its domain unless that is the standard one."""
    return str(node.op) if node.domain in STANDARD else f"{node.domain}.{node.op}"


def remarks(opaque: Sequence[Opaque], macs: float) -> list[str]:
    """Say what part of all MACs lies in opaque nodes, and what could not be counted."""
    unknown = [one for one in opaque if one.macs is None]
    found = []
    if opaque:
        share = sum(one.macs or 0.0 for one in opaque) / max(macs, 1.0)
        params = sum({name: size for one in opaque for name, size in one.weights.items()}.values())
        found.append(f"no rule counts channels in {_listed(opaque)}: {share:.1%} of the FLOPs, {params:,} parameters")
    if unknown:
        found.append(f"MACs of {len(unknown)} nodes are unknown ({_listed(unknown)}): shares of FLOPs are of the rest")
    notes = Counter((one.operator, one.note) for one in opaque if one.note)
    found += [f"the FLOPs of {count} {operator} are those of {note}" for (operator, note), count in notes.items()]
    return found


def _listed(opaque: Sequence[Opaque]) -> str:
    return ", ".join(f"{count} {operator}" for operator, count in Counter(one.operator for one in opaque).items())


def is_optimized(node: gs.Node) -> bool:
    """Tell whether onnxruntime's optimizer has made a node."""
    if node.domain in ("com.microsoft.nchwc", "com.ms.internal.nhwc"):
        return True
    return bool(node.domain == "com.microsoft" and node.op.startswith(OPTIMIZED))


def _layer_cost(node: gs.Node, shapes: Shapes) -> Opaque | None:
    """Return the cost of a node with weights that no rule counts; None for other nodes."""
    weights = [t for t in node.inputs if isinstance(t, gs.Constant) and _is_weight(t)]
    if not weights or not (spec_of(node).rule is None or _multiplies(node)):
        return None
    amounts = [_macs(node, t, shapes) for t in weights if len(t.shape) > 1]
    macs = None if None in amounts else float(sum(a or 0 for a in amounts))
    return Opaque(0, operator_of(node), macs, {t.name: math.prod(t.shape) for t in weights})


def _is_weight(tensor: gs.Constant) -> bool:
    """Tell whether a constant holds weights: floats that are no arguments, or a matrix of integers."""
    return (is_float(tensor) and math.prod(tensor.shape) > SMALL) or is_quantized(tensor)


def _multiplies(node: gs.Node) -> bool:
    """Tell from its name whether an operator, of whatever domain, multiplies by matrices or kernels."""
    return any(part in node.op for part in ("Conv", "Einsum", *MATRIX))


def _macs(node: gs.Node, weight: gs.Constant, shapes: Shapes) -> int | None:
    """Return the multiplications of a node with one of its weights, None where shape or operator do not tell."""
    activations = [t.name for t in node.inputs if t.name and not isinstance(t, gs.Constant)]
    x, y = shapes.get(next(iter(activations), "")), shapes.get(node.outputs[0].name)
    size, rank = int(math.prod(weight.shape)), len(weight.shape)
    if node.op == "MatMulNBits" and x is not None:  # the weight is packed
        return int(math.prod(x[:-1]) * node.attrs["K"] * node.attrs["N"])
    if not _multiplies(node):
        return 0 if node.domain in STANDARD else None
    if x is None or y is None or "Einsum" in node.op:
        return None
    if "Conv" in node.op:
        seen = x if "Transpose" in node.op else y
        return size * seen[0] * math.prod(seen[2:]) if rank > 2 else 0
    if "MatMul" in node.op and rank > 2:  # a matrix for each part of the batch
        return math.prod(y) * int(weight.shape[-1 if node.inputs[0] is weight else -2])
    return size * math.prod(x[:-1])


def _body_cost(node: gs.Node, shapes: Shapes) -> Opaque | None:
    """Return the cost of the bodies of a node; None where they hold no weight.

    A Loop counts as often as it runs at most, a Scan once per step, an If as its dearer branch.
    """
    weights: dict[str, int] = {}
    amounts: list[float | None] = []
    for body in bodies_of(node):
        times, inputs = _iterations(node, body, shapes)
        amount = _graph_macs(body, {**shapes, **inputs}, weights)
        amounts.append(None if amount is None else amount * (times or 1))
    if not weights:
        return None
    note = ""
    if node.op == "If":
        note = "the dearer branch"
    elif any(_iterations(node, body, shapes)[0] is None for body in bodies_of(node)):
        note = "one iteration"
    macs = None if None in amounts else max(a or 0.0 for a in amounts)
    return Opaque(0, operator_of(node), macs, weights, note)


def _iterations(node: gs.Node, body: gs.Graph, shapes: Shapes) -> tuple[int | None, dict[str, tuple[int, ...]]]:
    """Return how often a body runs, None where that is not known, and the shapes of its inputs as far as known."""
    names = [t.name for t in body.inputs]
    given = [shapes.get(t.name) if not isinstance(t, gs.Constant) else tuple(t.shape) for t in node.inputs]
    times: int | None = 1
    if node.op == "Loop":
        trips = node.inputs[0]
        times = int(trips.values.reshape(-1)[0]) if isinstance(trips, gs.Constant) else None
        given = [(), (), *given[2:]]
    elif node.op == "Scan":
        scanned = int(node.attrs["num_scan_inputs"])
        axes = node.attrs.get("scan_input_axes", [0] * scanned)
        first = len(given) - scanned
        for i, axis in enumerate(axes, first):
            shape = given[i]
            if shape is not None:
                times = shape[axis]
                given[i] = tuple(size for a, size in enumerate(shape) if a != axis % len(shape))
            else:
                times = None
    return times, {name: shape for name, shape in zip(names, given, strict=False) if shape is not None}


def _graph_macs(body: gs.Graph, shapes: Shapes, weights: dict[str, int]) -> float | None:
    """Return the multiplications of one run of a body, given shapes of outer tensors; add its weights to `weights`."""
    known = {**shapes, **_inferred(body, shapes)}
    total: float | None = 0.0
    for node in body.nodes:
        inner = _body_cost(node, known) if has_bodies(node) else _layer_cost(node, known)
        weights.update(
            (t.name, math.prod(t.shape)) for t in node.inputs if isinstance(t, gs.Constant) and _is_weight(t)
        )
        if inner is not None and has_bodies(node):
            weights.update(inner.weights)
        amount = 0.0 if inner is None else inner.macs
        total = None if total is None or amount is None else total + amount
    return total


def _inferred(body: gs.Graph, shapes: Shapes) -> Shapes:
    """Infer the shapes of a body; outer tensors and weights become inputs."""
    graph = OnnxExporter.export_graph(body, do_type_check=False)
    written = {name for node in graph.node for name in node.output}
    read = {name for node in graph.node for name in node.input if name} - written
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    kinds = {t.data_type for t in tensors.values() if math.prod(t.dims) > SMALL and t.data_type in FLOATS}
    kind = kinds.pop() if len(kinds) == 1 else onnx.TensorProto.FLOAT
    types = {value.name: value.type.tensor_type.elem_type or kind for value in graph.input}
    small = [tensor for tensor in tensors.values() if math.prod(tensor.dims) <= SMALL]
    del graph.input[:], graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(small)
    inputs: dict[str, tuple[int, ...]] = {}
    for name in read - {tensor.name for tensor in small}:
        stored = tensors.get(name)
        shape = shapes.get(name) if stored is None else tuple(stored.dims)
        if shape is None:
            continue
        kind_of = types.get(name, kind) if stored is None else stored.data_type
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind_of, shape))
        inputs[name] = shape
    proto = onnx.helper.make_model(graph, opset_imports=body.import_domains, ir_version=8)
    return infer_shapes(proto, inputs).full

"""The `depth` granularity: a branch of a sum is removed, or two layers with nothing between them become one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.graph.linear import Conv, Linear
from onnxprune.graph.model import Model
from onnxprune.graph.qdq import captured_names
from onnxprune.graph.readers import linear_layers, linear_of, own_layers
from onnxprune.graph.trace import node_labels
from onnxprune.surgery.edits.protocol import Candidate, Edit, Place, RefusalError, Statistics
from onnxprune.types import FloatArray


@dataclass(frozen=True)
class DropBranch(Edit):
    """The sum `layer` without one branch: only the operand at input `stays` is kept."""

    kind: ClassVar[str] = "depth"
    removes_nodes: ClassVar[bool] = True
    layer: str
    stays: int

    def __str__(self) -> str:
        return "branch removed"

    @property
    def family(self) -> str:
        """The kept operand."""
        return f"depth {self.stays}"

    @classmethod
    def candidates(cls, model: Model, multiple: int) -> Iterator[Candidate]:
        """Yield the branches of sums that nothing else reads and that hold a layer."""
        graph = model.graph
        labels = node_labels(graph)
        number = {id(node): n for n, node in enumerate(graph.nodes)}
        layers = linear_layers(graph)
        results = {id(t) for t in graph.outputs}
        captured = {name for node in graph.nodes for name in captured_names(node)}
        for n, node in enumerate(graph.nodes):
            if not _is_sum(graph, node) or node.inputs[0] is node.inputs[1] or node.outputs[0].name in captured:
                continue
            for stays in (0, 1):
                kept = {*results, id(node.inputs[stays])}
                inside = _only_for(node.inputs[1 - stays], node, number, kept, captured)
                if any(m in layers for m in inside):
                    yield Candidate(cls(labels[n], stays), (*sorted(inside), n))

    def mask(self, place: Place) -> None:
        """Multiply the removed operand by zero."""
        self._check(place)
        graph, node = place.graph, place.node
        constants = (t.values.dtype for other in graph.nodes for t in other.inputs if isinstance(t, gs.Constant))
        dtype = next((found for found in constants if found.kind == "f"), np.dtype(np.float32))
        zero = gs.Variable(f"{node.outputs[0].name}__nothing")
        operands = [node.inputs[1 - self.stays], gs.Constant(f"{zero.name}__factor", np.zeros((), dtype=dtype))]
        graph.nodes.append(gs.Node("Mul", f"{zero.name}__node", {}, operands, [zero]))
        node.inputs[1 - self.stays] = zero

    def rewrite(self, place: Place) -> set[str]:
        """Let all readers of the sum read the kept operand; return what they write."""
        self._check(place)
        node = place.node
        total = node.outputs[0]
        changed: set[str] = set()
        for reader in list(total.outputs):
            changed |= {t.name for t in reader.outputs}
            for i, tensor in enumerate(reader.inputs):
                if tensor is total:
                    reader.inputs[i] = node.inputs[self.stays]
        _remove(place.graph, node)
        return changed

    def _check(self, place: Place) -> None:
        if self.stays not in (0, 1) or not _is_sum(place.graph, place.node):
            raise RefusalError("the node is no sum of two activations, or is an output of the model")

    def substitute(
        self, node: gs.Node, statistics: Statistics | None, mean_of: Callable[[gs.Tensor], FloatArray]
    ) -> None:
        """Replace the branch by its mean, which later layers can compensate for."""
        mean = mean_of(node.inputs[1 - self.stays]).astype(np.float32)
        node.inputs[1 - self.stays] = gs.Constant(f"{node.outputs[0].name}__mean", mean)


@dataclass(frozen=True)
class Merge(Edit):
    """One layer in place of two with nothing between them, which is exact."""

    kind: ClassVar[str] = "merged"
    is_exact: ClassVar[bool] = True
    layer: str
    into: str

    def __str__(self) -> str:
        return f"merged into {self.into}"

    @classmethod
    def candidates(cls, model: Model, multiple: int) -> Iterator[Candidate]:
        """Yield pairs of layers that can be merged; no layer is in two pairs."""
        labels = node_labels(model.graph)
        number = {id(node): n for n, node in enumerate(model.graph.nodes)}
        layers = own_layers(model.graph)
        taken: set[int] = set()
        for n, layer in layers.items():
            users = layer.node.outputs[0].outputs
            if len(users) != 1 or layer.node.op != users[0].op or layer.node.op not in ("Conv", "Gemm"):
                continue
            second = number[id(users[0])]
            if second not in layers or not taken.isdisjoint((n, second)):
                continue
            with contextlib.suppress(RefusalError):
                _merged(model.graph, layer, layers[second])
                taken |= {n, second}
                yield Candidate(cls(labels[n], labels[second]), (n, second))

    def mask(self, place: Place) -> None:
        """Leave the dense model as it is."""

    def rewrite(self, place: Place) -> set[str]:
        """Replace the second layer by the product of both."""
        first = place.layer
        second = linear_of(place.nodes[self.into]) if self.into in place.nodes else None
        if first is None or second is None:
            raise RefusalError("one of the two layers has no stored float weight")
        attrs, weight, bias = _merged(place.graph, first, second)
        node, dtype = second.node, second.values.dtype
        name, x = node.outputs[0].name, first.node.inputs[first.x]
        node.attrs = attrs
        node.inputs = [
            x,
            gs.Constant(f"{name}__merged_weight", np.ascontiguousarray(weight).astype(dtype)),
            gs.Constant(f"{name}__merged_bias", bias.astype(dtype)),
        ]
        _remove(place.graph, first.node)
        return {name}


def _is_sum(graph: gs.Graph, node: gs.Node) -> bool:
    """Tell whether a node adds two activations and the graph does not return the sum."""
    constant = any(isinstance(t, gs.Constant) for t in node.inputs)
    return node.op == "Add" and not constant and not any(node.outputs[0] is t for t in graph.outputs)


def _remove(graph: gs.Graph, node: gs.Node) -> None:
    node.inputs.clear()
    node.outputs.clear()
    graph.nodes = [other for other in graph.nodes if other.outputs]


def _only_for(
    tensor: gs.Tensor, reader: gs.Node, number: dict[int, int], kept: set[int], captured: set[str]
) -> set[int]:
    """Return the nodes that compute a tensor for a node and for nothing else; tensors in `kept` are read elsewhere."""
    inside: set[int] = {number[id(reader)]}
    waiting = [tensor]
    while waiting:
        found = waiting.pop()
        node = found.inputs[0] if found.inputs else None
        if node is None or number[id(node)] in inside:
            continue
        alone = all(
            id(t) not in kept and t.name not in captured and all(number[id(user)] in inside for user in t.outputs)
            for t in node.outputs
        )
        if alone:
            inside.add(number[id(node)])
            waiting += [t for t in node.inputs if not isinstance(t, gs.Constant)]
    return inside - {number[id(reader)]}


def _merged(graph: gs.Graph, a: Linear, b: Linear) -> tuple[dict[str, Any], FloatArray, FloatArray]:
    """Return attributes, weight and bias of the product of two Gemms, or of two convolutions, one with a single tap.

    Raises:
        RefusalError: no single layer is equal, or another node reads the tensor between the layers.
    """
    if any(len(layer.node.inputs[layer.weight].outputs) > 1 for layer in (a, b)):
        raise RefusalError("another node reads the weight of one of the two layers")
    middle = a.node.outputs[0]
    if len(middle.outputs) != 1 or any(middle is t for t in graph.outputs):
        raise RefusalError("another node reads the tensor between the two layers")
    if b.node.inputs[b.x] is not middle:
        raise RefusalError("the two layers do not follow each other")
    if isinstance(a, Conv) and isinstance(b, Conv):
        attrs = _conv_attributes(a, b)
    elif a.node.op == b.node.op == "Gemm" and a.weight == b.weight == 1 and not b.node.attrs.get("transA", 0):
        attrs = {key: value for key, value in a.node.attrs.items() if key == "transA"} | {"transB": 1}
    else:
        raise RefusalError(f"{a.node.op} and {b.node.op} are not merged")
    (inner, inner_bias), (outer, outer_bias) = a.effective(), b.effective()
    cube = outer[0].reshape(outer.shape[1], inner.shape[1], -1)  # (outputs, middle, taps)
    weight = np.tensordot(cube, inner[0], (1, 0)).swapaxes(1, 2)  # (outputs, inputs, taps): one kernel has one tap
    bias = cube.sum(axis=2) @ inner_bias[0] + outer_bias[0]
    return attrs, weight.reshape(outer.shape[1], -1, *attrs.get("kernel_shape", ())), bias


def _conv_attributes(a: Conv, b: Conv) -> dict[str, Any]:
    if a.groups > 1 or b.groups > 1 or a.transposed or b.transposed:
        raise RefusalError("one of the two layers has groups, or is transposed")
    plain_a, plain_b = (set(layer.kernel) == {1} and layer.pads == (0,) * 2 * len(layer.kernel) for layer in (a, b))
    spatial = a if plain_b else b
    pads = spatial.pads
    first_is_plain = plain_a and set(a.strides) == {1}
    if (
        isinstance(pads, str)
        or not (plain_b or first_is_plain)
        or (not plain_b and any(pads) and a.effective()[1].any())
    ):
        raise RefusalError("the tensor between the two layers is padded")
    return {
        "kernel_shape": list(spatial.kernel),
        "strides": [s * t for s, t in zip(a.strides, b.strides, strict=True)],
        "dilations": list(spatial.dilations),
        "pads": list(pads),
    }

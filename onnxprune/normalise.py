"""Bring a graph into the form that the later stages expect: constants folded, BatchNormalization folded where exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.errors import ModelError, first_line

RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
QUANTISED_OPS = frozenset({"DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear"})


@dataclass(frozen=True)
class BatchNorm:
    """Statistics of a BatchNormalization that was folded into the layer before it; each (channels,) float64."""

    scale: np.ndarray[Any, Any]
    bias: np.ndarray[Any, Any]
    mean: np.ndarray[Any, Any]
    variance: np.ndarray[Any, Any]

    def take(self, index: np.ndarray[Any, Any]) -> BatchNorm:
        """Return the statistics of the channels at `index`."""
        return BatchNorm(self.scale[index], self.bias[index], self.mean[index], self.variance[index])


def fold_constants(graph: gs.Graph, where: str) -> gs.Graph:
    """Turn Constant nodes into constants, and compute what depends on constants alone.

    Dequantised weights stay as they are, and so does everything random.

    Raises:
        ModelError: onnxruntime cannot compute one of them.
    """
    for node in graph.nodes:
        value = _constant_value(node) if node.op == "Constant" else None
        if value is None or not node.outputs or node.outputs[0] in graph.outputs:
            continue
        output = node.outputs[0]
        node.outputs.clear()
        if isinstance(value, gs.Constant):
            output.to_constant(np.zeros(0))
            output._values = value._values  # keeps a lazily loaded tensor lazy
        else:
            output.to_constant(value)
    graph.nodes = [node for node in graph.nodes if not (node.op == "Constant" and not node.outputs)]

    def all_constant(node: gs.Node) -> bool:
        return bool(node.inputs) and all(isinstance(t, gs.Constant) or not t.name for t in node.inputs)

    def keep(node: gs.Node) -> bool:
        return (
            node.op in RANDOM_OPS
            or node.op in QUANTISED_OPS
            or any(isinstance(value, gs.Graph) for value in node.attrs.values())
        )

    if any(all_constant(node) and not keep(node) for node in graph.nodes):
        try:
            graph.fold_constants(fold_shapes=False, should_exclude_node=keep).cleanup(remove_unused_graph_inputs=False)
        except Exception as error:
            raise ModelError("constants cannot be folded", where=where, why=first_line(error)) from error
        graph.toposort()
    return graph


def _constant_value(node: gs.Node) -> gs.Constant | np.ndarray[Any, Any] | None:
    """Return what a Constant node holds; None for strings and sparse tensors, which stay nodes."""
    attrs = node.attrs
    if "value" in attrs:
        value = attrs["value"]
        return value if isinstance(value, gs.Constant) else None
    for key, dtype in (
        ("value_int", np.int64),
        ("value_ints", np.int64),
        ("value_float", np.float32),
        ("value_floats", np.float32),
    ):
        if key in attrs:
            return np.asarray(attrs[key], dtype=dtype)
    return None


def fold_batchnorms(graph: gs.Graph) -> tuple[gs.Graph, dict[str, BatchNorm]]:
    """Fold each inference BatchNormalization into the Conv, ConvTranspose or Gemm that alone feeds it.

    y = scale (Wx + b - mean) / sqrt(var + eps) + bias, computed in float64 (equation 1 of Ioffe and Szegedy, 2015). Half
    precision weights are left alone: rounding the product would change the output.

    Returns:
        The graph, and the statistics by the name of the weight that took them in.
    """
    batchnorms: dict[str, BatchNorm] = {}
    for bn in [node for node in graph.nodes if node.op == "BatchNormalization"]:
        layer = bn.inputs[0].inputs[0] if bn.inputs[0].inputs else None
        if layer is None or not _foldable(graph, layer, bn):
            continue
        weight = layer.inputs[1]
        scale, bias, mean, variance = (np.asarray(t.values, np.float64) for t in bn.inputs[1:5])
        factor = scale / np.sqrt(variance + bn.attrs.get("epsilon", 1e-5))
        axis = 1 if layer.op == "ConvTranspose" else int(layer.op == "Gemm" and not layer.attrs.get("transB", 0))
        shape = [1] * len(weight.shape)
        shape[axis] = -1
        has_bias = len(layer.inputs) > 2 and bool(layer.inputs[2].name)
        old = np.asarray(layer.inputs[2].values, np.float64).reshape(-1) if has_bias else np.zeros(1)
        dtype = weight.values.dtype
        name = bn.outputs[0].name
        new_weight = gs.Constant(f"{name}.weight", (weight.values * factor.reshape(shape)).astype(dtype))
        new_bias = gs.Constant(f"{name}.bias", np.ascontiguousarray(bias + (old - mean) * factor, dtype=dtype))
        layer.inputs = [layer.inputs[0], new_weight, new_bias]
        output = bn.outputs[0]
        bn.inputs.clear()
        bn.outputs.clear()
        layer.outputs = [output]
        batchnorms[new_weight.name] = BatchNorm(scale, bias, mean, variance)
    if batchnorms:
        graph.nodes = [node for node in graph.nodes if node.outputs]
        graph.toposort()
    return graph, batchnorms


def _foldable(graph: gs.Graph, layer: gs.Node, bn: gs.Node) -> bool:
    """Tell whether a BatchNormalization can be folded exactly into `layer`."""
    middle = bn.inputs[0]
    if (
        len(middle.outputs) != 1
        or middle in graph.outputs
        or bn.attrs.get("training_mode", 0)
        or bn.attrs.get("spatial", 1) == 0
    ):
        return False
    if any(output.name and (output.outputs or output in graph.outputs) for output in bn.outputs[1:]):
        return False
    if layer.op not in ("Conv", "ConvTranspose", "Gemm") or layer.domain not in (None, "", "ai.onnx"):
        return False
    if layer.op == "ConvTranspose" and layer.attrs.get("group", 1) != 1:
        return False
    if layer.op == "Gemm" and (layer.attrs.get("alpha", 1.0) != 1.0 or layer.attrs.get("beta", 1.0) != 1.0):
        return False
    constants = [t for t in (*layer.inputs[1:], *bn.inputs[1:]) if t.name]
    if len(bn.inputs) != 5 or not all(isinstance(t, gs.Constant) for t in constants) or len(layer.inputs) < 2:
        return False
    gemm_bias = layer.inputs[2] if layer.op == "Gemm" and len(layer.inputs) > 2 and layer.inputs[2].name else None
    if gemm_bias is not None and int(np.prod(gemm_bias.shape)) != bn.inputs[1].shape[0]:
        return False
    return layer.inputs[1].dtype in (np.dtype(np.float32), np.dtype(np.float64))

"""Normalize a graph: fold constants, fold BatchNormalization where exact, make implicit arguments explicit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxprune.errors import ModelError
from onnxprune.graph.folded import Folded, compute, growing, merge_equal, raw_values
from onnxprune.graph.nodes import has_bodies, integers_argument, redirect
from onnxprune.graph.operators import spec_of
from onnxprune.graph.order import sort
from onnxprune.graph.qdq import STANDARD, captured_names
from onnxprune.graph.shapes import InferredShapes
from onnxprune.runtime.weight_files import in_file


@dataclass(frozen=True)
class BatchNorm:
    """Parameters of a BatchNormalization that was folded into the layer before it; each (channels,) float64."""

    scale: np.ndarray[Any, Any]
    bias: np.ndarray[Any, Any]
    mean: np.ndarray[Any, Any]
    variance: np.ndarray[Any, Any]

    def take(self, index: np.ndarray[Any, Any]) -> BatchNorm:
        """Return the statistics of the channels at `index`."""
        return BatchNorm(self.scale[index], self.bias[index], self.mean[index], self.variance[index])


def fold_constants(
    graph: gs.Graph,
    where: str,
    found: dict[str, np.ndarray[Any, Any]] | None = None,
    kept: Collection[str] = (),
    folded: dict[str, Folded] | None = None,
) -> None:
    """Turn Constant nodes into constants, and compute with onnxruntime what depends on constants alone; in place.

    Dequantized weights stay integers, weights that are quantized at run time become integers, and random nodes stay.
    The folding of graphsurgeon is not used: it turns float arithmetic on shapes into integers, which rounds the scale
    of a Resize. Computed values are added to `found`, by name. Constant nodes
    that write a tensor in `kept` stay. Constants that would make the file larger are added to `folded`. `where` names
    the model in an error.

    Raises:
        ModelError: onnxruntime cannot compute a constant.
    """
    for node in graph.nodes:
        value = _constant_value(node) if node.op == "Constant" else None
        if (
            value is None
            or not node.outputs
            or node.outputs[0].name in kept
            or any(node.outputs[0] is output for output in graph.outputs)
        ):
            continue
        output = node.outputs[0]
        node.outputs.clear()
        _to_constant(output, raw_values(value) if isinstance(value, gs.Constant) else value)  # lazy tensors stay lazy
    graph.nodes = [node for node in graph.nodes if not (node.op == "Constant" and not node.outputs)]

    known: set[int] = set()  # tensors that depend on constants alone
    foldable: list[gs.Node] = []
    for node in graph.nodes:
        ready = node.inputs and all(isinstance(t, gs.Constant) or not t.name or id(t) in known for t in node.inputs)
        if ready and not has_bodies(node) and (spec_of(node).foldable or _is_rounded_weight(node)):
            foldable.append(node)
            known |= {id(t) for t in node.outputs}
    if not foldable:
        return
    inner = {id(node) for node in foldable}
    results = {id(t) for t in graph.outputs}
    merge_equal(foldable, results)
    wanted = [
        t for node in foldable for t in node.outputs
        if t.name and (found is not None or id(t) in results or any(id(reader) not in inner for reader in t.outputs))
    ]  # fmt: skip
    values = _compute(graph, foldable, wanted, where)
    if folded is not None:

        def outputs(nodes: Sequence[gs.Node]) -> dict[str, np.ndarray[Any, Any]]:
            tensors = [t for node in nodes for t in node.outputs if t.name]
            return dict(zip((t.name for t in tensors), _compute(graph, nodes, tensors, where), strict=True))

        by_name = {t.name: value for t, value in zip(wanted, values, strict=True) if id(t) not in results}
        folded |= growing(foldable, by_name, outputs, folded, graph.import_domains)
    for tensor, value in zip(wanted, values, strict=True):
        if found is not None:
            found[tensor.name] = value
        if id(tensor) not in results:  # a constant output of the model keeps its nodes
            tensor.inputs.clear()
            _to_constant(tensor, value)
    remove_dead(graph)


def _is_rounded_weight(node: gs.Node) -> bool:
    """Tell whether a node quantizes a float weight to 8 bits."""
    zero_point = node.inputs[2] if node.op == "QuantizeLinear" and len(node.inputs) > 2 else None
    return isinstance(zero_point, gs.Constant) and zero_point.dtype in (np.dtype(np.int8), np.dtype(np.uint8))


def _to_constant(tensor: gs.Variable, values: Any) -> None:
    tensor.to_constant(np.zeros(0))
    tensor.values = values


def _compute(graph: gs.Graph, nodes: Sequence[gs.Node], wanted: list[gs.Variable], where: str) -> list[Any]:
    part = gs.Graph(nodes=list(nodes), outputs=wanted)
    try:
        return compute(OnnxExporter.export_graph(part, do_type_check=False), graph.import_domains)
    except ModelError as error:
        raise ModelError("constants cannot be folded", where=where, why=error.why) from error


def drop_identities(graph: gs.Graph) -> None:
    """Let the readers of an Identity of a constant read the constant, in place: an exporter writes so that it is shared."""
    results = {id(tensor) for tensor in graph.outputs}
    for node in graph.nodes:
        if node.op != "Identity" or node.domain not in STANDARD or id(node.outputs[0]) in results:
            continue
        source = node.inputs[0]
        if isinstance(source, gs.Constant) or [writer.op for writer in source.inputs] == ["Constant"]:
            redirect(node.outputs[0], source)
    remove_dead(graph)


def remove_dead(graph: gs.Graph) -> None:
    """Remove nodes without an effect on the outputs; the graph is in topological order."""
    needed = {id(t) for t in graph.outputs}
    captured = {name for node in graph.nodes for name in captured_names(node)}
    kept: list[gs.Node] = []
    dead: list[gs.Node] = []
    for node in reversed(graph.nodes):
        if any(id(t) in needed or t.name in captured for t in node.outputs):
            kept.append(node)
            needed |= {id(t) for t in node.inputs}
        else:
            dead.append(node)
    gone = {id(node) for node in dead}
    # the list methods of graphsurgeon compare nodes by content: slow, and wrong where two nodes are equal
    for tensor in {id(t): t for node in dead for t in node.inputs}.values():
        readers = [reader for reader in tensor.outputs if id(reader) not in gone]
        list.clear(tensor.outputs)
        list.extend(tensor.outputs, readers)
    for node in dead:
        list.clear(node.inputs)
    graph.nodes = kept[::-1]


def fold_shapes(graph: gs.Graph, known: Mapping[str, Sequence[int | None]]) -> bool:
    """Turn sizes that no dynamic axis can change into constants, in place; return whether there were any.

    `known` holds the shape of each tensor, None where a size is dynamic or unknown.
    """
    changed = False
    for node in graph.nodes:
        source = node.inputs[0].inputs[0] if node.inputs and node.inputs[0].inputs else None
        if node.op == "Shape":
            value = _as_array(_shape_of(node, known))
        elif node.op in ("Gather", "Slice") and source is not None and source.op == "Shape":
            value = _part_of(node, _shape_of(source, known))
        else:
            continue
        if value is not None and node.outputs and not any(node.outputs[0] is t for t in graph.outputs):
            output = node.outputs[0]
            node.outputs.clear()
            _to_constant(output, value)
            changed = True
    if changed:
        remove_dead(graph)
    return changed


def needs_arguments(node: gs.Node) -> bool:
    """Tell whether a Split leaves its sizes, a Squeeze its axes, or an Attention its scale to the runtime."""
    if node.op == "Attention" and node.domain in STANDARD:
        return "scale" not in node.attrs
    name = {"Split": "split", "Squeeze": "axes"}.get(node.op)
    return name is not None and name not in node.attrs and (len(node.inputs) < 2 or not node.inputs[1].name)


def explicit_arguments(graph: gs.Graph, known: Mapping[str, Sequence[int | None]], opset: int) -> None:
    """Make the sizes of every Split, the axes of every Squeeze and the scale of every Attention explicit, where known.

    Only with sizes can the parts of a Split lose different numbers of channels. A Squeeze without axes would drop the
    channel axis, too, where a single channel is left. The scale of an Attention would change with the width of a head.
    """
    for node in graph.nodes:
        sizes = known.get(node.inputs[0].name) if needs_arguments(node) else None
        if sizes is None:
            continue
        if node.op == "Attention":
            width = sizes[-1] if len(sizes) == 4 or sizes[-1] is None else sizes[-1] // node.attrs["q_num_heads"]
            if width is not None:
                node.attrs["scale"] = float(width) ** -0.5
            continue
        if node.op == "Squeeze":
            name, values = "axes", [axis for axis, size in enumerate(sizes) if size == 1]
            if None in sizes or not values:
                continue
        else:
            name, axis = "split", node.attrs.get("axis", 0)
            size = sizes[axis] if -len(sizes) <= axis < len(sizes) else None
            if size is None:
                continue
            step = -(-size // len(node.outputs))
            values = [min(step, size - start) for start in range(0, size, step)]
            if len(values) != len(node.outputs):
                continue
        inputs, attrs = integers_argument(node.op, name, values, opset, f"{node.outputs[0].name}.{name}")
        node.attrs.pop("num_outputs", None)
        node.attrs.update(attrs)
        node.inputs = [node.inputs[0], *inputs]


def sum_norms(graph: gs.Graph, inferred: InferredShapes, opset: int) -> None:
    """Turn the mean of norms in global response normalization (Woo et al., 2023, equation 2) into sum / number.

    Deleting one channel changes the mean over channels for all others; a sum is exact without deleted channels, which
    contribute zero.
    """
    for node in means_of_norms(graph):
        norms, mean = node.inputs[0], node.outputs[0]
        axes = node.attrs.get("axes", node.inputs[1].values if len(node.inputs) > 1 else None)
        shape, kind = inferred.partial.get(norms.name), inferred.types.get(norms.name)
        size = shape[int(axes[0])] if shape is not None and axes is not None and len(axes) == 1 else None
        if size is None or not kind:
            continue
        axis = int(axes[0]) % len(shape or ())
        total = gs.Variable(f"{mean.name}__sum")
        number = np.array(size, dtype=onnx.helper.tensor_dtype_to_np_dtype(kind))
        more, attrs = integers_argument("ReduceSum", "axes", [axis], opset, f"{mean.name}__axes")
        attrs["keepdims"] = node.attrs.get("keepdims", 1)
        node.inputs.clear()
        node.outputs.clear()
        label = f"{node.name}__sum" if node.name else ""
        graph.nodes.append(gs.Node("ReduceSum", label, attrs, [norms, *more], [total]))
        divisor = gs.Constant(f"{mean.name}__number", number)
        graph.nodes.append(gs.Node("Div", node.name, {}, [total, divisor], [mean]))
    graph.nodes = [node for node in graph.nodes if node.outputs]
    sort(graph)


def means_of_norms(graph: gs.Graph) -> list[gs.Node]:
    """Return every ReduceMean of norms, with constant axes."""
    return [
        node
        for node in graph.nodes
        if node.op == "ReduceMean"
        and node.inputs[0].inputs
        and node.inputs[0].inputs[0].op == "ReduceL2"
        and all(isinstance(tensor, gs.Constant) for tensor in node.inputs[1:])
    ]


def unshare_targets(graph: gs.Graph) -> None:
    """Give every reader of a target shape joined by Concat a Concat of its own.

    Exporters merge equal expressions, and one shape then serves layers with unrelated channels.
    """
    clones = []
    for node in graph.nodes:
        if node.op != "Concat":
            continue
        readers = list(node.outputs[0].outputs)
        places = ([i for i, t in enumerate(reader.inputs) if t is node.outputs[0]] for reader in readers)
        if not all(at == [spec_of(reader).target_shape] for reader, at in zip(readers, places, strict=True)):
            continue
        for number, reader in enumerate(readers[1:], start=1):
            output = gs.Variable(f"{node.outputs[0].name}__{number}")
            clones.append(gs.Node("Concat", f"{node.name}__{number}", dict(node.attrs), list(node.inputs), [output]))
            reader.inputs[spec_of(reader).target_shape] = output
    if clones:
        graph.nodes.extend(clones)
        sort(graph)


def _shape_of(node: gs.Node, known: Mapping[str, Sequence[int | None]]) -> list[int | None] | None:
    tensor = node.inputs[0]
    sizes = list(tensor.shape) if isinstance(tensor, gs.Constant) else known.get(tensor.name)
    return None if sizes is None else list(sizes)[node.attrs.get("start", 0) : node.attrs.get("end")]


def _as_array(sizes: list[int | None] | None) -> np.ndarray[Any, Any] | None:
    """Return sizes as an array; None where one is unknown."""
    return None if sizes is None or None in sizes else np.array(sizes, dtype=np.int64)


def _part_of(node: gs.Node, sizes: list[int | None] | None) -> np.ndarray[Any, Any] | None:
    """Return the part of a shape that a Gather or Slice takes; None where a size or an argument is unknown."""
    arguments: list[Any] = [t.values if isinstance(t, gs.Constant) else None for t in node.inputs[1:]]
    if not arguments:
        arguments = [np.asarray(node.attrs["starts"]), np.asarray(node.attrs["ends"])]
    if sizes is None or any(argument is None for argument in arguments):
        return None
    if node.op == "Gather":
        picked = _as_array([sizes[int(i)] for i in arguments[0].reshape(-1)])
        return None if picked is None else picked.reshape(arguments[0].shape)
    if any(argument.size != 1 for argument in arguments):
        return None
    start, end, *more = (int(argument.reshape(-1)[0]) for argument in arguments)
    return _as_array(sizes[start : end : more[1] if len(more) > 1 else 1] or None)


def _constant_value(node: gs.Node) -> gs.Constant | np.ndarray[Any, Any] | None:
    """Return the value of a Constant node; None for strings and sparse tensors, which stay nodes."""
    if "value" in node.attrs:
        value = node.attrs["value"]
        return value if isinstance(value, gs.Constant) else None
    types = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    return next((np.asarray(node.attrs[key], dtype) for key, dtype in types.items() if key in node.attrs), None)


def fold_batchnorms(graph: gs.Graph, kept: Collection[str] = (), size: float = 0) -> dict[str, BatchNorm]:
    """Fold each inference BatchNormalization into the Conv, ConvTranspose or Gemm that alone feeds it, in place.

    y = scale (Wx + b - mean) / sqrt(var + eps) + bias, computed in float64 (equation 1 of Ioffe and Szegedy, 2015).
    Half precision weights are not folded: rounding the product would change the output. Nor are weights in `kept`, which a
    file stores as smaller ones; `size` are the bytes of the model. A weight of several layers is folded once, where all of them have the same
    normalization. Returns the statistics, by the name of the folded weight.
    """
    found: dict[str, BatchNorm] = {}
    while folded := _fold_round(graph, kept, size):  # one may follow another
        found |= folded
    return found


def _fold_round(graph: gs.Graph, kept: Collection[str], size: float) -> dict[str, BatchNorm]:
    """Fold each BatchNormalization that follows a layer; return the statistics as `fold_batchnorms` does."""
    pairs: dict[int, tuple[gs.Node, gs.Node]] = {}  # the layer and its normalization, by the identity of the layer
    for bn in graph.nodes:
        layer = bn.inputs[0].inputs[0] if bn.op == "BatchNormalization" and bn.inputs[0].inputs else None
        if layer is not None and _foldable(graph, layer, bn) and layer.inputs[1].name not in kept:
            pairs[id(layer)] = layer, bn
    results = {id(tensor) for tensor in graph.outputs}
    batchnorms: dict[str, BatchNorm] = {}
    for layer, bn in list(pairs.values()):
        weight = layer.inputs[1]
        sharing = [pairs.get(id(reader)) for reader in weight.outputs]
        if bn.inputs and id(weight) not in results and all(pair and _alike(pair, (layer, bn)) for pair in sharing):
            name, folded = _fold(layer, bn, [pair for pair in sharing if pair], size)
            weight.values = np.zeros(0)  # frees the values now: the tensor is part of a cycle, and collected later
            batchnorms[name] = folded
    if batchnorms:
        graph.nodes = [node for node in graph.nodes if node.outputs]
        sort(graph)
    return batchnorms


def _fold(layer: gs.Node, bn: gs.Node, sharing: list[tuple[gs.Node, gs.Node]], size: float) -> tuple[str, BatchNorm]:
    """Fold the normalization of a layer into its weight, for all layers that share both; return the weight's name."""
    weight = layer.inputs[1]
    scale, bias, mean, variance = (np.asarray(t.values, np.float64) for t in bn.inputs[1:5])
    factor = scale / np.sqrt(variance + bn.attrs.get("epsilon", 1e-5))
    axis = 1 if layer.op == "ConvTranspose" else int(layer.op == "Gemm" and not layer.attrs.get("transB", 0))
    shape = [1] * len(weight.shape)
    shape[axis] = -1
    old = _bias_of(layer)
    dtype = weight.values.dtype
    name = bn.outputs[0].name
    scaled = (weight.values * factor.reshape(shape)).astype(dtype)
    new_weight = gs.Constant(f"{name}.weight", in_file(scaled, size))
    new_bias = gs.Constant(f"{name}.bias", np.ascontiguousarray(bias + (old - mean) * factor, dtype=dtype))
    for one, normalization in sharing:
        one.inputs = [one.inputs[0], new_weight, new_bias]
        output = normalization.outputs[0]
        normalization.inputs.clear()
        normalization.outputs.clear()
        one.outputs = [output]
    return new_weight.name, BatchNorm(scale, bias, mean, variance)


def _bias_of(layer: gs.Node) -> np.ndarray[Any, Any]:
    """Return the bias of a layer in float64, one zero where it has none."""
    has_bias = len(layer.inputs) > 2 and bool(layer.inputs[2].name)
    return np.asarray(layer.inputs[2].values, np.float64).reshape(-1) if has_bias else np.zeros(1)


def _alike(one: tuple[gs.Node, gs.Node], two: tuple[gs.Node, gs.Node]) -> bool:
    """Tell whether two layers that take one weight, with their normalizations, become layers with one weight and bias."""
    (layer, bn), (other, behind) = one, two
    written = [(node.op, node.attrs.get("transB", 0), node.inputs[1].name) for node in (layer, other)]
    epsilons = [node.attrs.get("epsilon", 1e-5) for node in (bn, behind)]
    values = zip(
        (_bias_of(layer), *(t.values for t in bn.inputs[1:5])),
        (_bias_of(other), *(t.values for t in behind.inputs[1:5])),
        strict=True,
    )
    return written[0] == written[1] and epsilons[0] == epsilons[1] and all(np.array_equal(a, b) for a, b in values)


def _foldable(graph: gs.Graph, layer: gs.Node, bn: gs.Node) -> bool:
    """Tell whether a BatchNormalization can be folded exactly into `layer`."""
    middle = bn.inputs[0]
    if len(middle.outputs) != 1 or middle in graph.outputs:
        return False
    if bn.attrs.get("training_mode", 0) or bn.attrs.get("spatial", 1) == 0:
        return False
    if any(output.name and (output.outputs or output in graph.outputs) for output in bn.outputs[1:]):
        return False
    if layer.op not in ("Conv", "ConvTranspose", "Gemm") or layer.domain not in STANDARD:
        return False
    if layer.op == "ConvTranspose" and layer.attrs.get("group", 1) != 1:
        return False
    if layer.op == "Gemm" and (layer.attrs.get("alpha", 1.0) != 1.0 or layer.attrs.get("beta", 1.0) != 1.0):
        return False
    if not all(isinstance(t, gs.Constant) for t in (*layer.inputs[1:], *bn.inputs[1:]) if t.name):
        return False
    gemm_bias = layer.inputs[2] if layer.op == "Gemm" and len(layer.inputs) > 2 and layer.inputs[2].name else None
    if gemm_bias is not None and int(np.prod(gemm_bias.shape)) != bn.inputs[1].shape[0]:
        return False
    return layer.inputs[1].dtype in (np.dtype(np.float32), np.dtype(np.float64))

"""Constants that a file computes from smaller ones: folded in memory, and stored as the file had them.

Everything that reads a weight wants its values. A file wants few bytes: a half-precision weight behind a Cast, a row that
Tile repeats, a shape that ConstantOfShape fills. `Folded` keeps the nodes that computed a constant, and slices their
arguments along with the constant.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter, dtype_to_onnx

from onnxprune.graph.nodes import redirect
from onnxprune.graph.qdq import STANDARD, is_integer_matrix
from onnxprune.graph.shapes import MOST_FOLDED, infer_shapes, light, refuse_too_large
from onnxprune.runtime.session import UNOPTIMIZED, open_session, run_batch

Array = np.ndarray[Any, Any]
Cuts = Sequence[tuple[int, Array]]
"""Axes of a tensor, and the indices that are kept along each."""
SMALL_BYTES = 1024
"""Bytes up to which a constant is stored as it is."""
PACKED = 2
"""Bytes of an element of a type that numpy does not have, at most."""


@dataclass(frozen=True)
class Folded:
    """The nodes that compute a constant.

    Attributes:
        output: name of the constant.
        value: the constant, as folded or as sliced.
        nodes: the nodes, in order.
        sources: constants that the nodes read, by name.
        opsets: operator sets of the model.
    """

    output: str
    value: Array
    nodes: tuple[onnx.NodeProto, ...]
    sources: Mapping[str, gs.Constant]
    opsets: Any

    def params(self) -> dict[str, int]:
        """Return the number of floats that are stored, by the name of the source."""
        return {name: math.prod(t.shape) for name, t in self.sources.items() if is_float(t)}

    @property
    def cast(self) -> gs.Constant | None:
        """The float that a single Cast turns into the constant, None where other nodes compute it."""
        node, source = self.nodes[0], next(iter(self.sources.values()), None)
        plain = len(self.nodes) == 1 and node.op_type == "Cast" and node.domain in STANDARD
        return source if plain and source is not None and is_float(source) else None

    def take(self, cuts: Cuts, value: Array) -> Folded:
        """Return what computes `value`, which is the constant at some indices along some axes.

        Along such an axis an argument loses the same indices, and a list of sizes gets the new size. Which axis of an
        argument leads to an axis of the constant is tried: the one at the same place from the end first.

        Raises:
            ValueError: no axes of the arguments do; `can_take` tells.
        """
        found = self
        for axis, index in cuts:
            part = found.value.take(index, axis=axis)
            tried = (replace(found, value=part, sources=sources) for sources in found._cut(axis, index))
            fitting = (one for one in tried if one.cast is not None or one.computes())
            one = next(fitting, None)
            if one is None:
                raise ValueError(f"{self.output} cannot be computed from less along axis {axis}")
            found = one
        return replace(found, value=value)

    def _cut(self, axis: int, index: Array) -> Iterator[dict[str, gs.Constant]]:
        """Yield the arguments without what an axis of the constant loses, for one place of that axis after the other."""
        rank, size = self.value.ndim, self.value.shape[axis]
        largest = max((len(source.shape) for source in self.sources.values()), default=0)
        for place in (axis - rank, *(own for own in range(-1, -largest - 1, -1) if own != axis - rank)):
            yield {name: _cut(source, axis, place, rank, size, index) for name, source in self.sources.items()}

    def can_take(self, axis: int) -> bool:
        """Tell whether `take` holds along an axis: tried with every second index."""
        index = np.arange(0, self.value.shape[axis], 2)
        try:
            self.take([(axis, index)], self.value.take(index, axis=axis))
        except ValueError:
            return False
        return True

    def computes(self) -> bool:
        """Tell whether the nodes compute the constant."""
        try:
            found = self.run()
        except Exception:  # the arguments do not fit
            return False
        return found.shape == self.value.shape and np.array_equal(found, self.value)

    def run(self) -> Array:
        """Compute the constant."""
        graph = onnx.GraphProto(name="constant", node=self.nodes)
        graph.initializer.extend(map(export_constant, self.sources.values()))
        graph.output.add(name=self.output)
        return np.asarray(compute(graph, self.opsets)[0])

    def storing(self, value: Array) -> Folded | None:
        """Return what computes a constant that has taken this one's place; None where it is stored as it is.

        New values of a weight behind a Cast are rounded to the type that the file stores.
        """
        if value is self.value:
            return self
        source = self.cast
        if source is None:
            return None
        rounded = gs.Constant(source.name, value.astype(source.values.dtype))
        return replace(self, value=value, sources={source.name: rounded})

    def renamed(self, output: str, rename: Callable[[str, gs.Constant | None], str]) -> Folded:
        """Return the same computation of the constant `output`; `rename` gives the names of all other tensors."""
        names = {name: rename(name, source) for name, source in self.sources.items()}
        names |= {name: rename(name, None) for node in self.nodes for name in node.output if name}
        names[self.output] = output
        nodes = []
        for node in self.nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for values in (copy.input, copy.output):
                values[:] = [names.get(name, name) for name in values]
            nodes.append(copy)
        sources = {names[name]: gs.Constant(names[name], raw_values(source)) for name, source in self.sources.items()}
        return replace(self, output=output, nodes=tuple(nodes), sources=sources)


def _cut(source: gs.Constant, axis: int, place: int, rank: int, size: int, index: Array) -> gs.Constant:
    """Slice an argument along the axis `place`, from the end, where it has the size of an axis of a constant.

    A list of the sizes of the constant, or of as many as an argument has axes, gets the new size.
    """
    if not (isinstance(source.dtype, np.dtype) or is_float(source)):
        return source  # packed integers would not export to the same bytes
    value = source.values
    if value.dtype == np.int64 and value.shape == (rank,) and value[axis] == size:
        value = np.where(np.arange(rank) == axis, len(index), value)
    elif value.dtype == np.int64 and value.ndim == 1 and -place <= len(value) and value[place] == size:
        value = np.where(np.arange(len(value)) == len(value) + place, len(index), value)
    elif -place <= value.ndim and value.shape[place] == size:
        value = value.take(index, axis=place)
    return gs.Constant(source.name, value)


def compute(graph: onnx.GraphProto, opsets: Any) -> list[Any]:
    """Compute the outputs of a graph without inputs.

    Raises:
        ModelError: onnxruntime cannot compute them, or one has more than `MOST_FOLDED` elements.
    """
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    refuse_too_large(infer_shapes(light(proto), {}).full, most=MOST_FOLDED)
    return run_batch(open_session(proto, UNOPTIMIZED), {})


class FoldedConstants:
    """Tells which constants may lose channels, so that the file stores no tensor whole beside its slice."""

    def __init__(self, folded: Mapping[str, Folded], constants: Mapping[str, gs.Constant]) -> None:
        self._folded = {name: one for name, one in folded.items() if name in constants}
        large = [name for one in self._folded.values() for name, t in one.sources.items() if size_of(t) > SMALL_BYTES]
        self._shared = {name for name, uses in Counter(large).items() if uses > 1 or name in constants}

        self._known: dict[tuple[str, int], bool] = {}

    def refusal(self, name: str, axis: int) -> str:
        """Return why a constant cannot be sliced along an axis; empty where it can."""
        folded = self._folded.get(name)
        if name in self._shared:
            return f"the file computes another constant from {name}"
        if folded is None:
            return ""
        if not self._shared.isdisjoint(folded.sources):
            return f"the file computes {name} from a constant that is used elsewhere, too"
        if (name, axis) not in self._known:
            self._known[name, axis] = folded.can_take(axis)
        return "" if self._known[name, axis] else f"the file computes {name}, which would be stored whole"


def size_of(tensor: gs.Constant) -> int:
    """Return the bytes of a constant, which need not be loaded."""
    itemsize = int(tensor.dtype.itemsize) if isinstance(tensor.dtype, np.dtype) else PACKED
    return int(math.prod(tensor.shape) * itemsize)


def merge_equal(nodes: Sequence[gs.Node], results: Collection[int]) -> None:
    """Let nodes that compute the same from one large constant have one output, in place: a weight stays one tensor.

    `results` holds the ids of the outputs of the model, which keep their nodes.
    """
    first: dict[Hashable, gs.Node] = {}
    large: set[int] = set()
    for node in nodes:
        if not any(id(t) in large or (isinstance(t, gs.Constant) and size_of(t) > SMALL_BYTES) for t in node.inputs):
            continue
        large |= {id(t) for t in node.outputs}
        if not all(isinstance(value, int | float | str | list) for value in node.attrs.values()):
            continue
        attributes = tuple(sorted((name, repr(value)) for name, value in node.attrs.items()))
        key = (node.op, node.domain, tuple(id(t) if t.name else 0 for t in node.inputs), attributes, len(node.outputs))
        other = first.setdefault(key, node)
        if other is node or any(id(t) in results for t in node.outputs):
            continue
        for mine, kept in zip(node.outputs, other.outputs, strict=True):
            redirect(mine, kept)


def growing(
    nodes: Sequence[gs.Node],
    values: Mapping[str, Array],
    compute_all: Callable[[Sequence[gs.Node]], Mapping[str, Array]],
    known: Mapping[str, Folded],
    opsets: Any,
) -> dict[str, Folded]:
    """Return the constants that take more bytes than what they are computed from, by name.

    Nodes that share a large tensor count together: what they write is compared with the constants that nothing else
    reads, which vanish.

    Args:
        nodes: nodes that depend on constants alone, in order.
        values: the constants that other nodes read.
        compute_all: returns all outputs of some of the nodes.
        known: constants that are stored as smaller ones already.
        opsets: operator sets of the model.
    """
    found: dict[str, Folded] = {}
    inner = {id(node) for node in nodes}
    for region in _regions(nodes):
        written = {t.name: t for node in region for t in node.outputs if t.name in values}
        after = sum(values[name].nbytes for name in written)
        constants = {t.name: t for node in region for t in node.inputs if isinstance(t, gs.Constant)}
        before = sum(
            sum(map(size_of, known[name].sources.values())) if name in known else size_of(t)
            for name, t in constants.items()
            if all(id(reader) in inner for reader in t.outputs)
        )
        large = [name for name in written if values[name].nbytes > SMALL_BYTES]
        if after > before and large:
            every = {**compute_all(region), **{name: values[name] for name in written}}
            found |= {name: _folded(name, region, every, known, opsets) for name in large}
    return found


def _regions(nodes: Sequence[gs.Node]) -> list[list[gs.Node]]:
    """Return the nodes that share a large constant or a computed tensor, together and in order."""
    parent = list(range(len(nodes)))

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = n = parent[parent[n]]
        return n

    first: dict[int, int] = {}
    for n, node in enumerate(nodes):
        for tensor in (*node.inputs, *node.outputs):
            if tensor.name and (not isinstance(tensor, gs.Constant) or size_of(tensor) > SMALL_BYTES):
                parent[root(n)] = root(first.setdefault(id(tensor), n))
    regions: dict[int, list[gs.Node]] = {}
    for n, node in enumerate(nodes):
        regions.setdefault(root(n), []).append(node)
    return list(regions.values())


def _prefixed(name: str) -> Callable[[str, gs.Constant | None], str]:
    return lambda old, _: f"{name}__{old}"


def _folded(
    name: str, region: Sequence[gs.Node], values: Mapping[str, Array], known: Mapping[str, Folded], opsets: Any
) -> Folded:
    """Return the nodes of a region that compute a constant; a small tensor that they read counts as a constant."""
    needed, nodes, sources = {name}, list[onnx.NodeProto](), dict[str, gs.Constant]()
    for node in reversed(region):
        if needed.isdisjoint(t.name for t in node.outputs):
            continue
        before: list[onnx.NodeProto] = []
        for tensor in node.inputs:
            if tensor.name in known:
                part = known[tensor.name].renamed(tensor.name, _prefixed(tensor.name))
                before += part.nodes
                sources |= part.sources
            elif isinstance(tensor, gs.Constant):
                sources[tensor.name] = tensor
            elif tensor.name and values[tensor.name].nbytes <= SMALL_BYTES:
                sources[tensor.name] = gs.Constant(tensor.name, values[tensor.name])
            elif tensor.name:
                needed.add(tensor.name)
        nodes = [*before, OnnxExporter.export_node(node), *nodes]
    return Folded(name, values[name], tuple(nodes), sources, opsets)


def is_float(tensor: gs.Constant) -> bool:
    """Tell whether a constant holds floating point numbers (float16, bfloat16, float32, float64)."""
    dtype = tensor.dtype
    if isinstance(dtype, int):
        return dtype == onnx.TensorProto.BFLOAT16
    return dtype.kind == "f" or (dtype.kind == "V" and str(dtype) == "bfloat16")


def is_quantized(tensor: gs.Constant) -> bool:
    """Tell whether a constant is a matrix of integers of a byte or less: the weight of an integer operator, or dequantized."""
    return is_integer_matrix(dtype_to_onnx(tensor.dtype), tensor.shape)


def export_constant(tensor: gs.Constant) -> onnx.TensorProto:
    """Return a constant as a file stores it; integers of less than a byte are packed, which graphsurgeon's exporter leaves out."""
    values = raw_values(tensor)
    if isinstance(values, np.ndarray) and values.dtype.kind == "V":
        return onnx.numpy_helper.from_array(values, tensor.name)
    proto: onnx.TensorProto = OnnxExporter.export_tensor_proto(tensor)
    return proto


def raw_values(tensor: gs.Constant) -> Any:
    """Return the values of a constant as graphsurgeon holds them: an array, or a proto that `values` would load."""
    return tensor._values

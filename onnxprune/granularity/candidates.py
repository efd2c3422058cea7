"""Which edits come into question in a model, before anything is measured."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxprune.granularity.depth import merged
from onnxprune.granularity.edits import Depth, Edit, Grouped, Kernel, Merged, Rank, Split, Taps
from onnxprune.granularity.refusal import RefusalError
from onnxprune.graph.linear import Conv, Linear, Product
from onnxprune.graph.model import Model
from onnxprune.graph.normalize import captured_names
from onnxprune.graph.readers import linear_layers
from onnxprune.graph.trace import node_labels

SHARES = (0.125, 0.1875, 0.25, 0.375, 0.5, 0.625)
"""Of the directions of a layer, how many may be left."""
GROUPS = (2, 4, 8)
FEWEST = 8
"""Directions, and channels of a block, below which a layer is too thin to run well."""
ALL_TAPS = 9
"""Taps of a kernel up to which every combination along its axes is looked at; of larger ones what is alike along all, or along one alone."""
LEAST_GAIN = 0.1
"""Share of the multiplications that directions must save: the sizes of two layers are known before they are timed."""


@dataclass(frozen=True)
class Candidate:
    """An edit, and the numbers of the nodes that it concerns, the one it is named for first or, of a branch, last."""

    edit: Edit
    nodes: tuple[int, ...]


def layer_candidates(layer: Linear, label: str, n: int, kinds: frozenset[str], step: int) -> Iterator[Candidate]:
    """Yield the edits of one layer; orders of channels and bases are left open.

    Args:
        layer: which.
        label: its label.
        n: its number.
        kinds: granularities.
        step: what runs best as a number of directions.
    """
    groups, outputs, features = layer.matrix(layer.values).shape
    if isinstance(layer, Conv) and "kernel" in kinds and math.prod(layer.kernel) > 1:
        for taps in _taps(layer.kernel):
            yield Candidate(Kernel(label, taps), (n,))
        yield from (Candidate(edit, (n,)) for edit in _splits(layer, label, step))
    thick = groups == 1 or min(outputs, layer.values.shape[1]) >= FEWEST
    if "rank" in kinds and thick:
        yield from (Candidate(edit, (n,)) for edit in _ranks(layer, label, step))
    if "group" in kinds and groups == 1:
        inputs = layer.values.shape[1] if isinstance(layer, Conv) else features
        plain = not (isinstance(layer, Conv) and layer.transposed) and layer.node.op in ("Conv", "Gemm")
        for parts in GROUPS:
            fits = not outputs % parts and not inputs % parts and min(outputs, inputs) // parts >= FEWEST
            if plain and fits:
                yield Candidate(Grouped(label, parts, tuple(range(inputs)), tuple(range(outputs))), (n,))


def _splits(layer: Conv, label: str, step: int) -> Iterator[Split]:
    """Yield what half of the filters may lose: one ring of taps, or all but one tap."""
    plain = layer.groups == 1 or (layer.values.shape[1] == 1 and layer.values.shape[0] == layer.groups)
    filters = layer.values.shape[0]
    count = round(filters / 2 / step) * step
    if layer.transposed or not plain or not FEWEST <= count <= filters - FEWEST:
        return
    for ring in dict.fromkeys((2, max(layer.kernel) - max(layer.kernel) % 2)):
        taps = tuple(((size - max(1, size - ring)) // 2, 1, max(1, size - ring)) for size in layer.kernel)
        yield Split(label, taps, tuple(range(filters)), count)


def _taps(kernel: tuple[int, ...]) -> Iterator[tuple[Taps, ...]]:
    """Yield what may be left of a kernel: a run of taps anywhere, or every other one."""
    each = [_of_axis(size) for size in kernel]
    whole = tuple((0, 1, size) for size in kernel)
    for taps in itertools.product(*each):
        reduced = [axis for axis, (own, full) in enumerate(zip(taps, whole, strict=True)) if own != full]
        alike = len(set(taps)) == 1 and len(reduced) == len(kernel)
        if reduced and (math.prod(kernel) <= ALL_TAPS or len(reduced) == 1 or alike):
            yield taps


def _of_axis(size: int) -> list[Taps]:
    found: list[Taps] = [(0, 1, size)]
    if size > 1:
        found += [(first, 1, size - 1) for first in (0, 1)] if size <= 3 else []
        found += [((size - count) // 2, 1, count) for count in range(size - 2, 0, -2)]
    if size >= 5:
        found.append((0, 2, (size + 1) // 2))
    return list(dict.fromkeys(found))


def _ranks(layer: Linear, label: str, step: int) -> Iterator[Rank]:
    groups, outputs, features = layer.matrix(layer.values).shape
    full = min(outputs, features)
    if isinstance(layer, Product) and layer.node.op not in ("Gemm", "MatMul"):
        return
    rounded = sorted({max(step, round(share * full / step) * step) for share in SHARES})
    for rank in rounded:
        if rank < full and rank * (outputs + features) < (1 - LEAST_GAIN) * outputs * features:
            yield Rank(label, rank, "channel")
    if isinstance(layer, Conv) and not layer.transposed and groups == 1 and len(layer.kernel) >= 2:
        first, others = layer.kernel[0], math.prod(layer.kernel[1:])
        if first == 1 or others == 1:
            return
        inputs = features // first // others
        most = outputs * features / (inputs * first + outputs * others)
        limit = min(inputs * first, outputs * others)
        sizes = sorted({max(step, round(share * most / step) * step) for share in SHARES})
        for rank in sizes:
            if rank < min(limit, (1 - LEAST_GAIN) * most):
                yield Rank(label, rank, "spatial")


def branches(model: Model) -> Iterator[Candidate]:
    """Yield the branches that may go: of a sum, what nothing else takes, where the other operand goes on without it."""
    graph = model.graph
    labels = node_labels(graph)
    number = {id(node): n for n, node in enumerate(graph.nodes)}
    layers = linear_layers(graph)
    results = {id(t) for t in graph.outputs}
    captured = {name for node in graph.nodes for name in captured_names(node)}
    for n, node in enumerate(graph.nodes):
        if node.op != "Add" or id(node.outputs[0]) in results or any(hasattr(t, "values") for t in node.inputs):
            continue
        if node.inputs[0] is node.inputs[1] or node.outputs[0].name in captured:
            continue
        for stays in (0, 1):
            kept = {*results, id(node.inputs[stays])}
            inside = _only_for(node.inputs[1 - stays], node, number, kept, captured)
            if any(m in layers for m in inside):
                yield Candidate(Depth(labels[n], stays), (*sorted(inside), n))


def _only_for(
    tensor: gs.Tensor, reader: gs.Node, number: dict[int, int], kept: set[int], captured: set[str]
) -> set[int]:
    """Return the nodes that compute a tensor for a node, and nothing else; tensors in `kept` are needed elsewhere."""
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
            waiting += [t for t in node.inputs if not hasattr(t, "values")]
    return inside - {number[id(reader)]}


def pairs(model: Model) -> Iterator[Candidate]:
    """Yield the layers that follow each other with nothing between them and can be merged exactly."""
    labels = node_labels(model.graph)
    number = {id(node): n for n, node in enumerate(model.graph.nodes)}
    layers = linear_layers(model.graph)
    taken: set[int] = set()
    for n, layer in layers.items():
        users = layer.node.outputs[0].outputs
        if len(users) != 1 or layer.node.op != users[0].op or layer.node.op not in ("Conv", "Gemm"):
            continue
        second = number[id(users[0])]
        if second not in layers or not taken.isdisjoint((n, second)):
            continue
        with contextlib.suppress(RefusalError):
            merged(model.graph, layer, layers[second])
            taken |= {n, second}
            yield Candidate(Merged(labels[n], labels[second]), (n, second))

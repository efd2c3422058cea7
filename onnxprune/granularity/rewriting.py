"""Turn layers into smaller ones, and zero what goes in the layers as they are: the two must give the same.

Each edit has two sides. `masked` is the dense layer whose dropped taps, blocks or directions are zero; `rewritten` is made of its
weights alone: whatever they are, taps that stay are sliced out, blocks on the diagonal stacked, factors of a matrix of low rank found.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.errors import PlanError
from onnxprune.granularity.depth import drop_branch, mask_branch, merge_layers
from onnxprune.granularity.edits import Depth, Edit, Grouped, Kernel, Merged, Rank, Split
from onnxprune.granularity.group import group
from onnxprune.granularity.kernel import crop, split
from onnxprune.granularity.rank import project, separate, thin_conv, thin_product
from onnxprune.granularity.refusal import RefusalError
from onnxprune.graph.linear import Conv, Linear
from onnxprune.graph.model import Model, weightless
from onnxprune.graph.normalize import remove_dead
from onnxprune.graph.readers import linear_layers, linear_of
from onnxprune.graph.shapes import infer_shapes
from onnxprune.graph.trace import node_labels
from onnxprune.types import FloatArray, IntArray

Bases = Mapping[str, FloatArray]
"""Of layers that lose directions: an orthonormal basis, (groups, outputs, outputs), the most important direction first."""


@dataclass(frozen=True)
class Reformed:
    """A model before and after its layers were rewritten.

    Attributes:
        masked: dense, with what goes set to zero.
        model: with smaller layers; equal to `masked`.
        changed: names of the tensors that rewritten layers write: of those that were there before, and of `parts`.
        parts: new tensors that hold some channels of an old one: (name, old name, their numbers).
    """

    masked: Model
    model: Model
    changed: frozenset[str]
    parts: tuple[tuple[str, str, IntArray], ...] = ()


def reform(model: Model, edits: Sequence[Edit], bases: Bases) -> Reformed:
    """Make edits to a model, one to a layer.

    Args:
        model: as loaded, or as other edits have left it.
        edits: which.
        bases: of the layers that lose directions; those that are missing follow from their weights.

    Raises:
        PlanError: an edit that cannot be made.
    """
    masked, result = model.copy(), model.copy()
    numbers = {label: n for n, label in enumerate(node_labels(model.graph))}
    layers = linear_layers(model.graph)
    sizes = infer_shapes(weightless(model), {}).partial
    before = _named(result.graph)
    changed: set[str] = set()
    parts: list[tuple[str, str, IntArray]] = []
    targets = [result.graph.nodes[numbers[edit.layer]] if edit.layer in numbers else None for edit in edits]
    masks = list(masked.graph.nodes)
    partners = {edit.layer: result.graph.nodes[numbers[edit.into]] for edit in edits if isinstance(edit, Merged)}
    for edit, node in zip(edits, targets, strict=True):
        try:
            if node is None:
                raise RefusalError("there is no such layer")
            n = numbers[edit.layer]
            if isinstance(edit, Depth):
                changed |= drop_branch(result.graph, node, edit.stays)
                mask_branch(masked.graph, masks[n], edit.stays)
                continue
            if n not in layers:
                raise RefusalError(f"{node.op} is no layer with a stored float weight")
            if isinstance(edit, Merged):
                first, second = (linear_of(part) for part in (node, partners[edit.layer]))
                if first is None or second is None:
                    raise RefusalError(f"{edit.into} is no layer with a stored float weight")
                merge_layers(result.graph, first, second)
                changed.add(second.node.outputs[0].name)
                continue
            matrix = masked_matrix(edit, layers[n], bases.get(edit.layer))
            twin = replace(layers[n], node=masks[n])
            twin.write(matrix, None)
            shape = sizes.get(node.inputs[layers[n].x].name)
            layer = replace(layers[n], node=node)
            if isinstance(edit, Split):
                found = split(result.graph, layer, edit, matrix, shape)
                parts += found
                changed |= {name for name, _, _ in found}
            else:
                rewrite(result.graph, edit, layer, matrix, shape, bases.get(edit.layer))
            changed.add(masks[n].outputs[0].name)
        except RefusalError as reason:
            raise PlanError(
                f"a layer cannot be given a {edit}",
                where=edit.layer,
                why=str(reason),
                hint="take it out of the plan, or make a new one with `onnxprune plan`",
            ) from None
    for graph in (masked.graph, result.graph):
        graph.toposort()
        remove_dead(graph)
    _tell_apart(result.graph, before)
    return Reformed(masked, result, frozenset(changed), tuple(parts))


def _named(graph: gs.Graph) -> dict[int, Any]:
    """Return the tensors and nodes of a graph that have a name, by identity."""
    found = {id(t): t for node in graph.nodes for t in (*node.inputs, *node.outputs)} | {id(n): n for n in graph.nodes}
    return {key: thing for key, thing in found.items() if thing.name}


def _tell_apart(graph: gs.Graph, before: Mapping[int, Any]) -> None:
    """Give what is new a name of its own: a layer that came of one edit may be given another."""
    found = _named(graph)
    taken: dict[bool, set[str]] = {True: set(), False: set()}  # nodes and tensors may share names
    for key, thing in found.items():
        if key in before:
            taken[isinstance(thing, gs.Node)].add(thing.name)
    for key, thing in found.items():
        if key not in before:
            others = taken[isinstance(thing, gs.Node)]
            thing.name = _free(thing.name, others)
            others.add(thing.name)


def _free(name: str, taken: Set[str]) -> str:
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def masked_matrix(edit: Kernel | Split | Grouped | Rank, layer: Linear, basis: FloatArray | None) -> FloatArray:
    """Return the matrix of a layer, (groups, outputs, features), with what goes set to zero.

    Raises:
        RefusalError: the edit does not fit the layer.
    """
    matrix, _ = layer.effective()
    if isinstance(edit, Rank):
        return project(matrix, layer, edit, basis)
    return np.asarray(np.where(kept_features(edit, layer), matrix, 0.0))


def kept_features(edit: Kernel | Split | Grouped, layer: Linear) -> np.ndarray[Any, Any]:
    """Return which elements of the matrix stay, (groups, outputs, features) or what broadcasts to it.

    Raises:
        RefusalError: the edit does not fit the layer.
    """
    groups, outputs, features = layer.matrix(layer.values).shape
    if isinstance(edit, Split):
        total = groups * outputs
        if sorted(edit.filters) != list(range(total)) or not 0 < edit.count < total:
            raise RefusalError(f"its {total} filters are not each there once, in two parts")
        if (
            not isinstance(layer, Conv)
            or layer.transposed
            or not (groups == 1 or outputs == layer.values.shape[1] == 1)
        ):
            raise RefusalError("it is no convolution of one group, or of one filter for each channel")
        cut = np.zeros(total, dtype=bool)
        cut[list(edit.filters[: edit.count])] = True
        return np.asarray(~cut.reshape(groups, outputs, 1) | kept_features(Kernel(edit.layer, edit.taps), layer))
    if isinstance(edit, Kernel):
        if not isinstance(layer, Conv) or len(edit.taps) != len(layer.kernel):
            raise RefusalError("it has no kernel of so many axes")
        keep = np.ones(1, dtype=bool)
        for (first, step, count), size in zip(edit.taps, layer.kernel, strict=True):
            if min(first, step - 1, count - 1) < 0 or first + step * (count - 1) >= size:
                raise RefusalError(f"taps {first}, {first + step}, … ({count}) are not within {size}")
            axis = np.zeros(size, dtype=bool)
            axis[first : first + step * (count - 1) + 1 : step] = True
            keep = (keep[:, None] & axis).reshape(-1)
        return np.asarray(np.tile(keep, features // keep.size)[None, None])
    taps = features // len(edit.inputs) if edit.inputs else 0
    fits = groups == 1 and len(edit.outputs) == outputs and taps * len(edit.inputs) == features
    if not fits or outputs % edit.groups or len(edit.inputs) % edit.groups:
        raise RefusalError(f"{outputs} filters of {features} features don't fall into {edit.groups} groups")
    if isinstance(layer, Conv) and layer.transposed:
        raise RefusalError("it is a transposed convolution")
    of_input, of_output = (np.empty(len(order), dtype=np.int64) for order in (edit.inputs, edit.outputs))
    for order, found in ((edit.inputs, of_input), (edit.outputs, of_output)):
        if sorted(order) != list(range(len(order))):
            raise RefusalError("an order does not name each channel once")
        found[list(order)] = np.arange(len(order)) // (len(order) // edit.groups)
    return np.asarray(of_output[:, None] == np.repeat(of_input, taps)[None])[None]


def rewrite(
    graph: gs.Graph,
    edit: Kernel | Grouped | Rank,
    layer: Linear,
    matrix: FloatArray,
    shape: Sequence[int | None] | None,
    basis: FloatArray | None = None,
) -> None:
    """Put a smaller layer, or two, in the place of one.

    Args:
        graph: changed in place; new nodes go to the end.
        edit: which.
        layer: as it is; its node is used again for what writes the output.
        matrix: `masked_matrix`.
        shape: of its input, None where a size is dynamic or unknown.
        basis: of the directions that are left, where the matrix was made with one.

    Raises:
        RefusalError: it cannot be done on this layer.
    """
    if isinstance(edit, Kernel):
        assert isinstance(layer, Conv)
        crop(graph, layer, edit, matrix, shape)
    elif isinstance(edit, Grouped):
        group(graph, layer, edit, matrix)
    elif edit.form == "spatial":
        separate(graph, layer, edit.rank, matrix, shape, basis)
    elif isinstance(layer, Conv):
        thin_conv(graph, layer, edit.rank, matrix, basis)
    else:
        thin_product(graph, layer, edit.rank, matrix, basis)

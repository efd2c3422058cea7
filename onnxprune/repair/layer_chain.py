"""Layer chains: layers that lead to one tensor and to nothing else, and can be fitted together."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxprune.calibration.capture import LayerwiseRunner
from onnxprune.graph.linear import Linear, Norm
from onnxprune.graph.operators import spec_of

STEPS = 6
"""Steps of conjugate gradients in each turn."""


@dataclass(frozen=True)
class LayerChain:
    """Layers that are fitted together.

    Attributes:
        nodes: the layers and all nodes between them and the target, in graph order.
        layers: the layers to fit, by node.
        taken: input tensors, from outside the chain.
        target: output tensor.
        work: multiply-accumulates of a turn, for one sample.
        bytes: memory of a turn, for one sample.
    """

    nodes: tuple[int, ...]
    layers: Mapping[int, Linear]
    taken: tuple[str, ...]
    target: str
    work: float
    bytes: float


def chain_of(
    stream: LayerwiseRunner,
    node: int,
    target: str,
    layers: Mapping[int, Linear],
    free: Collection[int],
    shapes: Mapping[str, tuple[int, ...]],
    depth: int,
) -> LayerChain | None:
    """Return a chain of at most `depth` layers that ends at `target`; None where only the last of them can be in it.

    All nodes between the layers can be linearized, and only the target is read from outside.

    Args:
        stream: of the model; nothing that depends on the target has run.
        node: the layer whose output, by itself or in a sum, is the target.
        target: name of a tensor.
        layers: all linear layers, by node.
        free: nodes of layers that may change.
        shapes: of all tensors, with the samples on the first axis.
        depth: largest number of layers.
    """
    before = stream.ancestors([target])
    found = None
    chosen = [node]
    for n in sorted((n for n in before if n in layers and n < node and n in free), reverse=True):
        if len(chosen) >= depth:
            break
        trial = [n, *chosen]
        behind = _behind(stream, trial)
        inside = [m for m in behind if m in before]
        made = {t.name for m in inside for t in stream.nodes[m].outputs}
        seen = {*stream.results, *(name for m in behind if m not in before for name in stream.inputs[m])}
        if not seen.isdisjoint(made - {target}):
            break  # another branch reads a tensor that would change
        if not all(_is_known(stream, m, layers, shapes) for m in inside) or not all(_is_free(layers[m]) for m in trial):
            break
        chosen = trial
        taken = sorted({name for m in inside for name in stream.inputs[m]} - made)
        found = LayerChain(
            tuple(inside), {m: layers[m] for m in chosen}, tuple(taken), target, *_cost(stream, inside, layers, shapes)
        )
    return found


def _cost(
    stream: LayerwiseRunner, nodes: list[int], layers: Mapping[int, Linear], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[float, float]:
    """Return the multiply-accumulates and the bytes of a turn, for one sample."""
    macs = size = 0.0
    for n in nodes:
        elements = math.prod(shapes[stream.nodes[n].outputs[0].name][1:])
        size += 8 * elements  # value, slope, derivative and its transpose
        if n in layers:
            _, outputs, features = layers[n].effective()[0].shape
            macs += elements * features
            size += elements / outputs * features
    return 4 * (STEPS + 2) * macs, 4 * size  # weights and their change, each forward and backward


def _behind(stream: LayerwiseRunner, nodes: list[int]) -> list[int]:
    """Return some nodes and all that depend on them."""
    reached: set[str] = set()
    found = []
    for n in range(min(nodes), len(stream.nodes)):
        if n in nodes or not reached.isdisjoint(stream.inputs[n]):
            found.append(n)
            reached |= {t.name for t in stream.nodes[n].outputs if t.name}
    return found


def _is_free(layer: Linear) -> bool:
    """Tell whether a layer can be fitted in a chain: no BatchNormalization, and no bias in an Add behind it."""
    return not isinstance(layer, Norm) and not layer.adds


def _is_known(
    stream: LayerwiseRunner, n: int, layers: Mapping[int, Linear], shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    """Tell whether a node can be linearized, sample by sample."""
    node = stream.nodes[n]
    names = [*stream.inputs[n], node.outputs[0].name]
    if any(len(shapes.get(name, ())) < 2 for name in names) or len({shapes[name][0] for name in names}) > 1:
        return False
    x, y = shapes[names[0]], shapes[names[-1]]
    if n in layers:
        return layers[n].channel_axis % len(y) != 0
    role = spec_of(node).chain
    if role == "mean":
        return y[1] == x[1] and math.prod(y) == x[0] * x[1]
    if role == "reshape":  # samples must stay on the first axis
        shape = node.inputs[1] if node.op == "Reshape" else None
        kept = isinstance(shape, gs.Constant) and shape.values.flat[0] in (0, -1)
        return kept or (node.op == "Flatten" and int(node.attrs.get("axis", 1)) == 1)
    if role in ("sum", "product"):
        return len({len(shapes[name]) for name in names}) == 1
    return role == "elementwise" and len(stream.inputs[n]) == 1

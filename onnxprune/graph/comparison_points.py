"""Find the tensors at which two models are compared where their outputs say too little.

Behind a *discrete* operator (TopK, NonMaxSuppression, a comparison, …) a difference in the last bits changes whole rows. The
level of a tensor is the largest number of discrete operators on a way to the tensor from an input. A *boundary* is a tensor
that enters a node of a higher level; between boundaries the network is continuous.

A *squashing* function hides its input where it is flat: on some inputs a Sigmoid gives nothing but zeros. Where an output or a
boundary ends in such a function, the tensor in front of the function shows what the function hides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.graph.nodes import bodies_of
from onnxprune.graph.qdq import STANDARD, captured_names

Test = Callable[[gs.Node], bool]
SIZES = ("Shape", "Size")
LEARNED = 16
"""Numbers of a constant from which they count as learned: fewer are a mean, a deviation, or a limit."""
INDICES = (np.int32, np.int64, np.bool_)
"""Types of positions, sizes and masks, which nobody learns."""


def _always(node: gs.Node) -> bool:
    return True


def _gives_positions(node: gs.Node) -> bool:
    """Tell whether a node gives the positions of its values as well, and something takes the positions."""
    return len(node.outputs) > 1 and bool(node.outputs[1].name)


def _to_integers(node: gs.Node) -> bool:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(int(node.attrs["to"]))
    return bool(dtype.kind in "iub")


def _picks_nearest(node: gs.Node) -> bool:
    return bool(node.attrs.get("mode") == "nearest")


SELECTING: dict[str, Test] = {
    **dict.fromkeys(("ArgMax", "ArgMin", "Compress", "Hardmax", "NonMaxSuppression", "NonZero", "Unique"), _always),
    "TopK": _gives_positions,
}
"""Operators that select elements: what lies behind has another order, or another length, for other values."""
DISCRETE: dict[str, Test] = {
    **SELECTING,
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), _always),
    **dict.fromkeys(("Ceil", "Floor", "Mod", "Round", "Sign", "MaxRoiPool", "RoiAlign"), _always),
    **dict.fromkeys(("If", "Loop"), _always),
    "Cast": _to_integers,
    "GridSample": _picks_nearest,
    "MaxPool": _gives_positions,
}
"""Operators whose output jumps where an input passes a threshold, and the test of such a node."""
SQUASHING = {"Clip", "Erf", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Tanh"}
MOVING = {
    *(
        "Cast",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "MaxPool",
        "Pad",
    ),
    *("ReduceMax", "ReduceMin", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose"),
    "Unsqueeze",
}
"""Operators whose output holds elements of their first input."""
JOINING = {"Concat", "Mul"}
SCALING = {"Add", "Div", "Sub"}
"""Operators that scale or shift an activation, where their other input is a constant."""


@dataclass(frozen=True)
class ComparisonPoints:
    """Tensors of a graph that are compared beside its outputs, or in place of them.

    Attributes:
        outputs: of the graph.
        boundaries: activations that enter a node of a higher level, in graph order.
        squashed: activations in front of the squashing functions at the end of outputs and boundaries.
        behind: activations that a discrete operator leads to.
    """

    outputs: tuple[str, ...]
    boundaries: tuple[str, ...]
    squashed: tuple[str, ...]
    behind: frozenset[str]

    @property
    def names(self) -> tuple[str, ...]:
        """The boundaries and the squashed activations."""
        return tuple(dict.fromkeys((*self.boundaries, *self.squashed)))


def comparison_points(graph: gs.Graph) -> ComparisonPoints:
    """Find the tensors at which a model is compared with another one that must give the same."""
    levels: dict[str, int] = {tensor.name: 0 for tensor in graph.inputs}
    producers: dict[str, gs.Node] = {}
    boundaries: dict[str, None] = {}
    for node in graph.nodes:
        names = [name for name in _activations(node) if name in levels]
        before = max((levels[name] for name in names), default=0)
        if not names or (node.op in SIZES and not before):
            continue  # the values of the inputs do not matter here
        level = before + _is_discrete(node, DISCRETE)
        boundaries |= {name: None for name in names if levels[name] < level and name in producers}
        producers |= {tensor.name: node for tensor in node.outputs if tensor.name}
        levels |= {tensor.name: level for tensor in node.outputs if tensor.name}
    outputs = tuple(tensor.name for tensor in graph.outputs)
    squashed = tuple(name for name in _in_front((*outputs, *boundaries), producers) if name in producers)
    behind = frozenset(name for name, level in levels.items() if level)
    return ComparisonPoints(outputs, tuple(boundaries), squashed, behind)


def _activations(node: gs.Node) -> Iterator[str]:
    yield from (tensor.name for tensor in node.inputs if tensor.name and not isinstance(tensor, gs.Constant))
    yield from captured_names(node)


def _is_discrete(node: gs.Node, discrete: Mapping[str, Test]) -> bool:
    """Tell whether a node, or a node in its bodies, is discrete."""
    if any(_is_discrete(inner, discrete) for body in bodies_of(node) for inner in body.nodes):
        return True
    return node.domain in STANDARD and node.op in discrete and discrete[node.op](node)


@dataclass(frozen=True)
class Measured:
    """Tensors on which a changed model is compared with the original.

    Attributes:
        names: outputs, and tensors that a selection is made from. An output that follows from a selection without any
            weight is left out: it says nothing more.
        points: tensors that the changed model takes from the original where a selection reads them, so that both select the
            same, and what lies behind stays comparable; in the order in which they are computed.
    """

    names: tuple[str, ...]
    points: tuple[str, ...] = ()

    @property
    def is_one(self) -> bool:
        """Tell whether it is a single tensor: the scores of an ArgMax, or of the best classes."""
        return len(self.names) == 1


def measured_tensors(graph: gs.Graph) -> Measured:
    """Return the tensors on which the loss of a changed model is measured.

    A selection that no weight leads to is that of the inputs, and the same in every model.
    """
    levels: dict[str, int] = {tensor.name: 0 for tensor in graph.inputs}
    learned: dict[str, bool] = dict.fromkeys(levels, False)
    since: dict[str, bool] = dict(learned)
    produced: set[str] = set()
    points: dict[str, None] = {}
    for node in graph.nodes:
        names = [name for name in _activations(node) if name in levels]
        before = max((levels[name] for name in names), default=0)
        own = _has_weights(node)
        if not names and not own:
            continue
        if node.op in SIZES and not before:
            continue  # the values of the inputs do not matter here
        depends = own or any(learned[name] for name in names)
        level = before + (_is_discrete(node, SELECTING) and any(learned[name] for name in names))
        points |= {name: None for name in names if levels[name] < level and learned[name] and name in produced}
        for tensor in node.outputs:
            if tensor.name:
                levels[tensor.name], learned[tensor.name] = level, depends
                since[tensor.name] = bool(level) and (own or any(since[name] for name in names))
                produced.add(tensor.name)
    outputs = tuple(tensor.name for tensor in graph.outputs)
    telling = [name for name in outputs if not levels.get(name) or since[name]]
    if not points:
        return Measured(outputs)
    return Measured(tuple(dict.fromkeys((*telling, *points))), tuple(points))


def _has_weights(node: gs.Node) -> bool:
    """Tell whether a node, or a node in its bodies, reads learned numbers."""
    if any(_has_weights(inner) for body in bodies_of(node) for inner in body.nodes):
        return True
    constants = (tensor for tensor in node.inputs if isinstance(tensor, gs.Constant))
    return any(tensor.dtype not in INDICES and math.prod(tensor.shape) >= LEARNED for tensor in constants)


def in_front(graph: gs.Graph, other: Iterable[str]) -> Measured | None:
    """Return the measured tensors where they are others than the outputs, and are among those of another model."""
    found, present = measured_tensors(graph), set(other)
    return found if found.points and present.issuperset(found.names) else None


def in_front_of_files(original: onnx.ModelProto, other: onnx.ModelProto) -> Measured | None:
    """Return the same for two files, as they are; None for a file with functions, which hide the selection."""
    if original.functions:
        return None
    tensors = (name for node in other.graph.node for name in node.output)
    return in_front(gs.import_onnx(original), tensors)


def _in_front(names: Sequence[str], producers: dict[str, gs.Node]) -> Iterator[str]:
    """Yield the inputs of the squashing functions whose elements end in tensors, only moved, scaled or multiplied."""
    seen = set(names)
    waiting = list(names)
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.domain not in STANDARD:
            continue
        activations = [tensor.name for tensor in node.inputs if not isinstance(tensor, gs.Constant)]
        followed: list[str] = []
        if node.op in MOVING or node.op in SQUASHING:
            followed = activations[:1]
        elif node.op in JOINING or (node.op in SCALING and len(activations) == 1):
            followed = activations
        if node.op in SQUASHING:
            yield from followed
        waiting += [name for name in followed if name not in seen]
        seen.update(followed)

"""Find the tensors at which two models are compared where their outputs say too little.

Behind a *discrete* operator (TopK, NonMaxSuppression, a comparison, …) a difference in the last bits changes whole rows. The
level of a tensor is the largest number of discrete operators on a way to the tensor from an input. A *boundary* is a tensor
that enters a node of a higher level; between boundaries the network is continuous.

A *squashing* function hides its input where it is flat: on some inputs a Sigmoid gives nothing but zeros. Where an output or a
boundary ends in such a function, the tensor in front of the function shows what the function hides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from onnxprune.graph.nodes import bodies_of
from onnxprune.graph.qdq import STANDARD, captured_names

Test = Callable[[gs.Node], bool]
SIZES = ("Shape", "Size")


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

    @property
    def continuous(self) -> tuple[str, ...]:
        """The outputs that no discrete operator leads to and, where one leads to others, the first boundaries."""
        return tuple(dict.fromkeys(n for n in (*self.outputs, *self.boundaries) if n not in self.behind))


def comparison_points(graph: gs.Graph, discrete: Mapping[str, Test] = DISCRETE) -> ComparisonPoints:
    """Find the tensors at which a model is compared with another one.

    Args:
        graph: of the model.
        discrete: operators that count as discrete: all, or those of `SELECTING`.
    """
    levels: dict[str, int] = {tensor.name: 0 for tensor in graph.inputs}
    producers: dict[str, gs.Node] = {}
    boundaries: dict[str, None] = {}
    for node in graph.nodes:
        names = [name for name in _activations(node) if name in levels]
        before = max((levels[name] for name in names), default=0)
        if not names or (node.op in SIZES and not before):
            continue  # the values of the inputs do not matter here
        level = before + _is_discrete(node, discrete)
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


def measured_tensors(graph: gs.Graph) -> tuple[str, ...]:
    """Return the tensors on which the loss of a changed model is measured: its outputs, or what enters their selection."""
    points = comparison_points(graph, SELECTING)
    return points.continuous or points.outputs


def in_front(graph: gs.Graph, other: Iterable[str]) -> tuple[str, ...]:
    """Return the measured tensors where they stand for outputs that a selection leads to, and are among those of another model."""
    names = measured_tensors(graph)
    stands = names != tuple(output.name for output in graph.outputs)
    return names if stands and set(names) <= set(other) else ()


def in_front_of_files(original: onnx.ModelProto, other: onnx.ModelProto) -> tuple[str, ...]:
    """Return the same for two files, as they are; nothing for a file with functions, which hide the selection."""
    if original.functions:
        return ()
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

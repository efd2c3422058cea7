"""The view of one node that a rule gets and reports facts to, and helpers that rules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.graph import qdq
from onnxprune.graph.facts import NOBODY, ZERO, Equal, Facts
from onnxprune.graph.folded import FoldedConstants
from onnxprune.graph.ids import FIXED, Ids, compress, nothing, rows, varying
from onnxprune.types import Count, Lookup, Role, Slice, Statistic, Summed, Work

CUT = " (free with --norms cut, which takes data and repair)"
"""End of the reason that pins channels that a normalization runs over."""
FAR = 32
"""Number of nodes behind a node that are searched for its use."""
MOST_FLOATS = 16
"""A float constant with more elements is no list of sizes."""
PINNED = "a tensor whose channels are pinned"
JOINS = f"joins the channel with {PINNED}"
"""Reason after the operator where it joins channels with a tensor without channels, and nothing upstream refused any."""
Rule = Callable[["RuleContext"], Sequence[Ids]]


class Cause(NamedTuple):
    """The first refusal that leaves a tensor without channels: the node, and the reason of its pin."""

    node: int
    reason: str


@dataclass(frozen=True)
class Size:
    """One integer of a shape, and where it comes from.

    Attributes:
        value: the value while tracing; a float within arithmetic on floats.
        owner: (node, input, element) of the constant that holds value / num; None for a value computed at run time.
        ids: the value is (survivors of ids) * num / den; None where no channels decide it.
    """

    value: float
    owner: tuple[int, int, int] | None = None
    ids: Ids | None = None
    num: int = 1
    den: int = 1


@dataclass
class TraceState:
    """A graph and the results of its walk so far.

    Attributes:
        shapes: concrete shape of every tensor.
        values: small integer tensors that are computed at run time.
        stored: nodes that only dequantize a weight, by their output.
        computed: constants that the file computes from smaller ones.
        whole_from: number of groups of a convolution from which whole groups are deleted.
        head_width: whether attention loses the width of every head, not whole heads.
        cut_norms: whether channels that a normalization runs over are prunable.
        ids: channel ids of every tensor walked.
        sizes: the integers of every tensor that comes from shapes.
        causes: the first refusal upstream of each tensor that lacks channels for it.
        fed: names of the inputs of the model.
    """

    graph: gs.Graph
    opset: int
    facts: Facts
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, np.ndarray[Any, Any]]
    stored: dict[str, int]
    computed: FoldedConstants
    whole_from: float
    head_width: bool
    cut_norms: bool
    ids: dict[str, Ids] = field(default_factory=dict)
    sizes: dict[str, list[Size]] = field(default_factory=dict)
    causes: dict[str, Cause] = field(default_factory=dict)
    fed: set[str] = field(default_factory=set)


class RuleContext:
    """One node during the trace: properties that its rule reads, and facts that its rule reports."""

    def __init__(self, state: TraceState, n: int) -> None:
        self.state, self.facts = state, state.facts
        self._n, self._node = n, state.graph.nodes[n]
        self.op: str = self._node.op
        self.n_inputs = len(self._node.inputs)
        self.n_outputs = len([tensor for tensor in self._node.outputs if tensor.name])
        self._asked: set[int] = set()  # inputs whose ids the rule asked for
        self._fed = next((t.name for t in self._node.inputs if t.name in state.fed), None)
        self._inherited = next((state.causes[t.name] for t in self._node.inputs if t.name in state.causes), None)
        self._refusal: Cause | None = None

    def attr(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self._node.attrs.get(name, default)

    def has(self, i: int) -> bool:
        """Tell whether input i is given."""
        return i < self.n_inputs and bool(self._node.inputs[i].name)

    def ids(self, i: int) -> Ids | None:
        """Return the ids of input i; None for constants and absent inputs."""
        self._asked.add(i)
        return self.state.ids.get(self._node.inputs[i].name) if self.is_activation(i) else None

    def is_activation(self, i: int) -> bool:
        """Tell whether input i is given, and computed at run time."""
        return (
            self.has(i)
            and not isinstance(self._node.inputs[i], gs.Constant)
            and self._node.inputs[i].name in self.state.ids
        )

    def activation(self, i: int = 0) -> Ids:
        """Return the ids of input i, which is not constant."""
        ids = self.ids(i)
        assert ids is not None
        return ids

    def const(self, i: int) -> np.ndarray[Any, Any] | None:
        """Return input i when it is a constant."""
        if not self.has(i):
            return None
        n, place = self._origin(i)
        node = self.state.graph.nodes[n]
        return qdq.values_at(node, place) if isinstance(node.inputs[place], gs.Constant) else None

    def value(self, i: int) -> np.ndarray[Any, Any] | None:
        """Return the value of input i during the trace: a constant, or an integer tensor computed from shapes."""
        constant = self.const(i)
        if constant is not None or not self.has(i):
            return constant
        return self.state.values.get(self._node.inputs[i].name)

    def shape(self, i: int) -> tuple[int, ...]:
        """Return the shape of input i."""
        return self.state.shapes[self._node.inputs[i].name]

    def out_shape(self, i: int = 0) -> tuple[int, ...]:
        """Return the shape of output i."""
        return self.state.shapes[self._node.outputs[i].name]

    def readers(self, i: int = 0) -> list[gs.Node]:
        """Return the nodes that read output i."""
        return list(self._node.outputs[i].outputs)

    def behind(self, passes: Callable[[gs.Node], bool]) -> Iterator[gs.Node]:
        """Yield the nodes that read output 0, and those behind the nodes that pass, up to `FAR` nodes."""
        waiting = self.readers()
        for _ in range(FAR):
            if not waiting:
                return
            node = waiting.pop(0)
            yield node
            if passes(node):
                waiting += [reader for tensor in node.outputs for reader in tensor.outputs]

    def is_result(self, i: int) -> bool:
        """Tell whether output i is an output of the model."""
        return any(self._node.outputs[i] is output for output in self.state.graph.outputs)

    def source(self, i: int) -> gs.Node | None:
        """Return the node that computes input i."""
        return next(iter(self._node.inputs[i].inputs), None)

    def mint(self, n: int) -> Ids:
        """Return n new ids."""
        return self.facts.mint(self._n, n)

    def tie(self, a: Ids, b: Ids, reason: str) -> None:
        """Tie two arrays of ids, broadcast; pin an id that meets no id, for the first cause of that, else for `reason`."""
        if self._fed is not None:
            reason = reason.replace(PINNED, f"the model input {self._fed}")
        cause = self._inherited or Cause(self._n, reason)
        if self.facts.tie(a, b, *cause):
            self._refusal = self._refusal or cause

    def pin(self, ids: Ids, reason: str) -> None:
        """Pin ids."""
        cause = Cause(self._n, reason)
        if self.facts.pin(ids, *cause):
            self._refusal = self._refusal or cause

    def pin_unmet(self, ids: Ids, reason: str) -> None:
        """Pin ids that meet no channels of another input, for the first cause of that, else for `reason`."""
        self.tie(ids, np.full((), FIXED), reason)

    def cause(self) -> Cause | None:
        """Return why outputs lack channels: what this node refused, else what was refused upstream, else an input of the model."""
        fed = None if self._fed is None else Cause(self._n, f"it meets the model input {self._fed}")
        return self._refusal or self._inherited or fed

    def pin_ignored_inputs(self, operator: str) -> None:
        """Pin the ids of every input that the rule did not ask for."""
        for i in range(self.n_inputs):
            if i not in self._asked and self.is_activation(i):
                name = _formal_name(self._node, i, self.state.opset)
                self.pin(
                    self.state.ids[self._node.inputs[i].name], f"{operator} takes its input {name} from the channel"
                )

    def nothing(self) -> list[Ids]:
        """Return outputs without channels."""
        return [nothing(len(self.state.shapes.get(t.name, ()))) for t in self._node.outputs]

    def refuse(self, reason: str, inputs: Iterable[int] = (0,)) -> list[Ids]:
        """Pin the ids of the given inputs; return outputs without channels."""
        for i in inputs:
            ids = self.ids(i)
            if ids is not None:
                self.pin(ids, reason)
        self._refusal = self._refusal or self._inherited or Cause(self._n, reason)
        return self.nothing()

    def slice(self, i: int, axis: int, ids: Ids, role: Role) -> None:
        """Report that the constant at input i holds ids along an axis."""
        if not (ids >= 0).any():
            return
        source = self.state.stored.get(self._node.inputs[i].name)
        if source is None:
            self._slice(self._n, i, axis, ids, role, ZERO)
            return
        node = self.state.graph.nodes[source]
        own = qdq.axis_of(node)
        if axis == own and any(len(shape) > 1 for _, shape in qdq.parameters(node)):
            self.pin(ids, f"the weight of this {self.op} has a scale per block of channels")
            return
        self._slice(source, 0, axis, ids, role, qdq.zeros(node))
        for place, shape in qdq.parameters(node):
            if len(shape) > 1 or axis == own:
                self._slice(source, place, axis if len(shape) > 1 else 0, ids, "follows", ZERO)

    def _slice(self, n: int, i: int, axis: int, ids: Ids, role: Role, zero: np.ndarray[Any, Any]) -> None:
        name = self.state.graph.nodes[n].inputs[i].name
        refusal = self.state.computed.refusal(name, axis)
        if refusal:
            self.pin(ids, refusal)
            return
        self.facts.slices.append(Slice(n, i, name, axis, ids, role, self._n, zero))

    def _origin(self, i: int) -> tuple[int, int]:
        """Return the node and input that hold the constant at input i, be it behind a DequantizeLinear."""
        source = self.state.stored.get(self._node.inputs[i].name)
        return (self._n, i) if source is None else (source, 0)

    def count(self, field: str, ids: Ids, *, input: int | None = None, index: int | None = None) -> None:
        """Report that an integer equals the number of surviving ids."""
        if (ids >= 0).any():
            self.facts.counts.append(Count(self._n, field, input, index, ids, per=1))

    def lookup(self, i: int, ids: Ids) -> None:
        """Report that the constant at input i holds positions on an axis with ids."""
        self.facts.lookups.append(Lookup(self._n, i, ids))

    def summed(
        self,
        i: int,
        axis: int,
        ids: Ids,
        statistic: Statistic = "sum",
        axes: Sequence[int] = (),
        scale: int | None = None,
    ) -> None:
        """Report a statistic of activation i over an axis that holds ids; see `onnxprune.types.Summed`."""
        if (ids >= 0).any():
            self.facts.summed.append(Summed(self._n, i, axis, ids, statistic, tuple(axes), scale))

    def sizes(self, i: int) -> list[Size] | None:
        """Return the sizes at input i: integers that can be rewritten, and floats that scale them; None if unknown."""
        value = self.const(i)
        if value is None:
            return self.state.sizes.get(self._node.inputs[i].name) if self.has(i) else None
        if value.dtype.kind == "f" and value.size <= MOST_FLOATS and np.isfinite(value).all():
            return [Size(float(v)) for v in value.reshape(-1)]
        if value.dtype.kind != "i":
            return None
        return [Size(int(v), (self._n, i, j)) for j, v in enumerate(value.reshape(-1))]

    def size(self, size: Size, ids: Ids) -> None:
        """Report that an integer of a shape is the size of an axis that holds ids."""
        if size.owner is not None:
            node, i, element = size.owner
            self.facts.counts.append(Count(node, "shape", i, element, ids, size.num))
        elif size.ids is not None:
            self.facts.equals.append(Equal(self._n, size.ids, size.num, size.den, ids))
        else:
            self.pin(ids, "a shape is computed at run time from other values")

    def work(self, i: int, positions: int, over: Ids | None = None) -> None:
        """Report the positions at which the weight at input i is applied, for the survivors of `over`."""
        node, place = self._origin(i)
        self.facts.works.append(Work(node, place, positions, NOBODY if over is None else over, self._n))


def _formal_name(node: gs.Node, i: int, opset: int) -> str:
    """Return the name of input i in the definition of the operator; the position where the operator has none."""
    try:
        formal = onnx.defs.get_schema(node.op, opset, "").inputs
    except onnx.defs.SchemaError:
        return str(i)
    return str(formal[min(i, len(formal) - 1)].name)


def together(ctx: RuleContext, ids: Ids, axes: Sequence[int]) -> Ids:
    """Tie all ids that differ only in their place on `axes`; return the ids without these axes' extent."""
    head = ids
    for axis in axes:
        head = head.take([0], axis=axis)
    ctx.tie(ids, head, f"{ctx.op} needs the channel's counterpart on another axis")
    return head


def lane(ctx: RuleContext, i: int, axis: int) -> Ids:
    """Return the (n,) ids along one axis of input i.

    Channels that lie on other axes, too, are tied there; channels that lie on another axis alone are pinned.
    """
    ids = ctx.ids(i)
    shape = ctx.shape(i)
    axis %= len(shape)
    ids = nothing(len(shape)) if ids is None else ids
    on = varying(ids)
    others = [a for a in on if a != axis]
    if others and axis not in on:
        ctx.pin(ids, f"{ctx.op} can't lose channels on axis {others[0]}")
        ids = nothing(len(shape))
    elif others:
        ids = together(ctx, ids, others)
    return np.ascontiguousarray(np.broadcast_to(ids.reshape(-1), (shape[axis],)))


def follow(ctx: RuleContext, i: int, ids: Ids, role: Role = "follows") -> None:
    """Slice a constant at input i along every axis of the output on which it holds a value per channel."""
    constant = ctx.const(i)
    if constant is None:
        return
    for axis in varying(ids):
        own = axis - ids.ndim + constant.ndim
        if own >= 0 and constant.shape[own] > 1:
            ctx.slice(i, own, rows(ids, axis), role)


def pin_axes(ctx: RuleContext, i: int, axes: Sequence[int], what: str) -> Ids:
    """Keep channels of input i from being deleted on `axes`: tie those that lie on other axes, too, pin the others."""
    ids = ctx.activation(i)
    touched = [axis for axis in varying(ids) if axis in axes]
    if not touched:
        return ids
    if len(touched) < len(varying(ids)):
        return together(ctx, ids, touched)
    ctx.pin(ids, what)
    return nothing(ids.ndim)


def match_axes(ctx: RuleContext, i: int, ids: Ids, keeps: Callable[[int, float], bool]) -> None:
    """Compare the target shape at input i with the ids of the output: one integer per axis, or fewer for the last axes.

    `keeps` tells whether an integer at an axis needs no change whatever survives (0 or -1 in a Reshape).
    """
    sizes = ctx.sizes(i)
    axes = varying(ids)
    if sizes is None or len(sizes) > ids.ndim:
        if axes:
            ctx.pin(ids, f"the target shape of this {ctx.op} is computed at run time")
        return
    for axis, size in enumerate(sizes, start=ids.ndim - len(sizes)):
        if axis in axes and not (size.owner is not None and keeps(axis, size.value)):
            ctx.size(size, rows(ids, axis))
        elif axis not in axes and size.ids is not None:
            ctx.pin(size.ids, f"the number of channels sets another size at this {ctx.op}")


def tie_broadcast(
    ctx: RuleContext, a: Ids, a_dims: tuple[int, ...], b: Ids, b_dims: tuple[int, ...]
) -> tuple[Ids, tuple[int, ...]]:
    """Combine the ids of two operands of real sizes `a_dims`, `b_dims`; return ids and sizes of the result."""
    dims = tuple(np.broadcast_shapes(a_dims, b_dims))
    on_a, on_b = varying(a), varying(b)
    # an operand of size 1 on the channel axes of the other one serves all its channels: no tie
    a_is_wide = any(a_dims[axis] > 1 for axis in on_b)
    b_is_wide = any(b_dims[axis] > 1 for axis in on_a)
    if not on_b and not b_is_wide:
        if not on_a and a.size == b.size == 1 and b.flat[0] >= 0:  # two single channels meet
            if a.flat[0] >= 0:
                ctx.tie(a, b, "")
            return b, dims
        return a, dims
    if not on_a and not a_is_wide:
        return b, dims
    if on_a and on_b and not set(on_a).intersection(on_b):
        outer = not b_is_wide or not a_is_wide
        what = "spreads two sets of channels over two axes" if outer else "joins channels that lie on different axes"
        ctx.pin(a, f"{ctx.op} {what}")
        ctx.pin(b, f"{ctx.op} {what}")
        return nothing(len(dims)), dims
    if not on_a or not on_b:  # a single channel of the one lies on another axis than the channels of the other
        lone = a if on_a else b
        ctx.pin_unmet(lone, f"{ctx.op} {JOINS}")
        return lone, dims
    ctx.tie(a, b, f"{ctx.op} {JOINS}")
    return compress(np.where(a >= 0, a, b)), dims

"""Walk a graph on channel ids and find out what belongs together."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune import quantised, runtime
from onnxprune.channels import sizes
from onnxprune.channels.facts import NOBODY, ZERO, Facts, RawCount, RawEqual, RawLookup, RawSlice, RawSummed
from onnxprune.channels.ops import RULES, TAKES_CONSTANTS_FIRST
from onnxprune.channels.site import FIXED, Size, nothing, varying
from onnxprune.errors import ModelError, OptionError
from onnxprune.model import Model, copy_graph, is_float, params_of, tensors_of, weightless
from onnxprune.normalise import TARGETS, captured_names, fold_constants, fold_shapes
from onnxprune.types import IntArray, Role, Statistic, Trace, Work

BATCH = 13
"""Size of a dynamic batch axis while tracing: a prime that channel counts rarely have as a factor."""
RUN_BATCHES = (3, 2, 1)
"""Sizes to try when the model has to be run to learn its shapes."""
OBSERVED_ELEMENTS = 4096
"""Integer tensors up to this size are looked at, should a rule want the value of an input computed at run time."""
MAX_REPORTED = 3
WHOLE_FROM = {"positions": math.inf, "whole": 1, "many": 8}
"""Groups of a convolution from which whole ones go: with fewer channels in each, onnxruntime takes about as long as before."""


def trace(
    model: Model,
    *,
    ignore: Sequence[str] = (),
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    grouped: str = "positions",
    heads: str = "whole",
    norms: str = "keep",
) -> Trace:
    """Find the channels of a model, how they are coupled, and which must stay.

    Args:
        model: a loaded model.
        ignore: glob patterns; layers whose name, weight or group matches keep all channels.
        grouped: whether grouped convolutions lose `positions` of every group or `whole` groups; `many`: whole ones from eight on.
        heads: whether attention loses `whole` heads, or `width` of every head.
        norms: whether to `keep` channels that a normalisation runs over, or that they may be `cut`, which takes repair.
        input_shapes: shapes that the data have, for dynamic axes other than the batch.

    Raises:
        ModelError: its shapes can neither be inferred nor observed by running it.
        OptionError: a pattern in `ignore` matches nothing.
    """
    labels = node_labels(model.graph)
    ops = tuple(node.op for node in model.graph.nodes)
    known = _shapes(model, input_shapes)
    facts = Facts()
    walk = _Walk(model.graph, model.opset, facts, known)
    walk.whole_from, walk.head_width = WHOLE_FROM[grouped], heads == "width"
    walk.cut_norms = norms == "cut"
    walk.run()
    _pin_ignored(facts, model.graph, labels, ignore)
    resolved = facts.resolve(labels, ops)
    works = tuple(replace(work, positions=work.positions // known.batch) for work in resolved.works)
    params = params_of(model.graph)
    return Trace(
        labels,
        ops,
        resolved.n_channels,
        resolved.groups,
        resolved.pinned,
        resolved.pins,
        resolved.slices,
        resolved.counts,
        resolved.lookups,
        resolved.summed,
        works,
        resolved.extents,
        known.tensors,
        known.inputs,
        known.batch,
        params,
        dict(Counter(t.name for _, _, t in tensors_of(model.graph))),
        {(w.node, w.input): params.get(model.graph.nodes[w.node].inputs[w.input].name, 0) for w in works},
        _carried(walk.ids, resolved.lookup),
    )


def _carried(ids: Mapping[str, IntArray], lookup: IntArray) -> dict[str, tuple[int, IntArray]]:
    """Return the axis that holds channels, and the channels there, of every tensor that has just one such axis."""
    axes = {name: varying(array) for name, array in ids.items() if array.size > 1}
    return {name: (on[0], lookup[ids[name].reshape(-1)]) for name, on in axes.items() if len(on) == 1}


def node_labels(graph: gs.Graph) -> tuple[str, ...]:
    """Return a unique name per node: its own, else its operator and first output."""
    seen: set[str] = set()
    labels = []
    for n, node in enumerate(graph.nodes):
        label = node.name or f"{node.op}_{node.outputs[0].name if node.outputs else n}"
        if label in seen:
            label = f"{label}@{n}"
        seen.add(label)
        labels.append(label)
    return tuple(labels)


@dataclass(frozen=True)
class _Shapes:
    """What is known of the tensors when every dynamic axis has a size."""

    batch: int
    inputs: dict[str, tuple[int, ...]]
    tensors: dict[str, tuple[int, ...]]
    integers: dict[str, np.ndarray[Any, Any]]  # values of small integer tensors computed at run time


def _shapes(model: Model, known: Mapping[str, tuple[int, ...]] | None) -> _Shapes:
    """Infer all shapes, or run the model where inference leaves a gap or where shapes are computed at run time."""
    light = weightless(model)
    dynamic = runtime.has_dynamic_batch(model.header)
    # inference does not notice when the sizes of several inputs don't fit each other
    plain, other = (runtime.concrete_shapes(model.header, 1, known=known, states=states) for states in (False, True))
    must_run = known is None and plain != other
    failures = []
    for batch, inputs in runtime.candidates(model.header, (BATCH, *RUN_BATCHES) if dynamic else (1,), known):
        inferred = runtime.infer_shapes(light, inputs)
        shapes, types = inferred.full, inferred.types
        shapes |= {t.name: tuple(t.shape) for _, _, t in tensors_of(model.graph)}
        outputs = [t for node in model.graph.nodes for t in node.outputs if t.name]
        wanted = [t.name for t in outputs if t.name not in shapes]
        wanted += [t.name for t in outputs if t.outputs and _is_small_integer(types.get(t.name), shapes.get(t.name))]
        if not wanted and not must_run:
            return _Shapes(batch, inputs, shapes, {})
        more, values = _computed(model, inputs)
        shapes = {**more, **shapes}
        if all(t.name in shapes for t in outputs) and not must_run:
            return _Shapes(batch, inputs, shapes, values)
        if dynamic and batch == BATCH:
            continue  # a smaller batch is cheaper to run
        try:
            seen = runtime.observe(
                model.to_proto(), inputs, wanted or [model.header.graph.output[0].name], str(model.path)
            )
        except ModelError as failure:
            failures.append((inputs, failure))
            continue
        shapes |= {name: np.shape(value) for name, value in seen.items()}
        return _Shapes(batch, inputs, shapes, {k: v for k, v in seen.items() if _is_small_integer(v, np.shape(v))})
    raise runtime.none_runs(failures)


def _computed(
    model: Model, inputs: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, ...]], dict[str, np.ndarray[Any, Any]]]:
    """Compute shape arithmetic for inputs of these shapes, without running the network.

    Returns:
        Shapes by tensor, and the integers that it comes to.
    """
    graph = copy_graph(model.graph)
    concrete = replace(model, graph=graph)
    shapes: dict[str, tuple[int, ...]] = {}
    found: dict[str, np.ndarray[Any, Any]] = {}
    while True:
        inferred = runtime.infer_shapes(weightless(concrete), inputs)
        shapes |= inferred.full
        if not fold_shapes(graph, inferred.partial):
            break
        fold_constants(graph, str(model.path), found)
    found |= {t.name: t.values for _, _, t in tensors_of(graph) if not is_float(t)}
    computed = {t.name for node in model.graph.nodes for t in node.outputs}
    values = {name: value for name, value in found.items() if name in computed and value.dtype.kind in "iub"}
    return {**shapes, **{name: value.shape for name, value in found.items() if name in computed}}, values


def _is_small_integer(kind: Any, shape: tuple[int, ...] | None) -> bool:
    """Tell whether a tensor may hold shapes; `kind` is an ONNX element type or a value."""
    if isinstance(kind, np.ndarray):
        return kind.dtype.kind == "i" and kind.size <= OBSERVED_ELEMENTS
    integer = kind in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    return integer and (shape is None or math.prod(shape) <= OBSERVED_ELEMENTS)


class _Walk:
    """One pass over the nodes, in graph order, that applies a rule to each."""

    def __init__(self, graph: gs.Graph, opset: int, facts: Facts, known: _Shapes) -> None:
        self.graph, self.facts = graph, facts
        self.shapes, self.values = known.tensors, known.integers
        self.ids: dict[str, IntArray] = {}
        self.whole_from = WHOLE_FROM["positions"]
        self.head_width = False
        self.cut_norms = False
        self.sizes: dict[str, list[Size]] = {}  # of integer tensors that come from shapes
        captured = {name for node in graph.nodes for name in captured_names(node)}
        self.stored = quantised.stored_weights(graph, captured)  # nodes that only dequantise a weight, by their output
        self.opset = opset

    def run(self) -> None:
        for tensor in self.graph.inputs:
            self.ids[tensor.name] = nothing(len(self.shapes[tensor.name]))
        for n, node in enumerate(self.graph.nodes):
            if node.outputs and node.outputs[0].name in self.stored:
                continue  # the reader takes what it gives for a constant
            site = _Site(self, n, node)
            for name in captured_names(node):
                if name in self.ids:
                    site.pin(self.ids[name], f"the body of this {node.op} uses it")
                for size in self.sizes.get(name, []):
                    if size.ids is not None:
                        site.pin(size.ids, f"the body of this {node.op} uses its number")
            standard = node.domain in (None, "", "ai.onnx") or quantised.is_quantiser(node)
            if self._follow_sizes(site, node, standard):
                outputs = [nothing(len(self.shapes.get(t.name, ()))) for t in node.outputs]
            elif standard and node.op in RULES and (site.ids(0) is not None or node.op in TAKES_CONSTANTS_FIRST):
                outputs = list(RULES[node.op](site))
            else:
                for i in range(len(node.inputs)):
                    ids = site.ids(i)
                    if ids is not None:
                        site.pin(ids, f"there is no rule for {_operator(node)}")
                outputs = [nothing(len(self.shapes.get(t.name, ()))) for t in node.outputs]
            for tensor, ids in zip(node.outputs, outputs, strict=False):
                if tensor.name:
                    self.ids[tensor.name] = ids
                    self.facts.see(ids, n)
        self._pin_outputs()

    def _follow_sizes(self, site: _Site, node: gs.Node, standard: bool) -> bool:
        """Follow shape arithmetic through a node; return whether that is all there is to it."""
        rule = sizes.SIZE_RULES.get(node.op) if standard else None
        sources = {
            i: found for i in range(len(node.inputs)) if (found := self.sizes.get(node.inputs[i].name)) is not None
        }
        found = rule(site) if rule is not None and (sources or node.op == "Shape") else None
        if found is not None and len(found) == math.prod(site.out_shape()):
            self.sizes[node.outputs[0].name] = found
            return True
        for i, origins in sources.items():
            if standard and TARGETS.get(node.op) == i:
                continue  # its rule looks at them
            for size in origins:
                if size.ids is not None:
                    site.pin(size.ids, f"{_operator(node)} computes with its number")
        return False

    def _pin_outputs(self) -> None:
        producers = {tensor.name: n for n, node in enumerate(self.graph.nodes) for tensor in node.outputs}
        for tensor in self.graph.outputs:
            for size in self.sizes.get(tensor.name, []):
                if size.ids is not None:
                    self.facts.pin(size.ids, producers[tensor.name], f"its number is the model's output {tensor.name}")
            if tensor.name in producers:
                self.facts.pin(self.ids[tensor.name], producers[tensor.name], f"it is the model's output {tensor.name}")


def _operator(node: gs.Node) -> str:
    return node.op if node.domain in (None, "", "ai.onnx") else f"{node.domain}.{node.op}"


class _Site:
    """What the rule of one node may know and say; see `onnxprune.channels.ops.Site`."""

    def __init__(self, walk: _Walk, n: int, node: gs.Node) -> None:
        self._walk, self._n, self._node = walk, n, node
        self.op = node.op
        self.n_inputs = len(node.inputs)
        self.n_outputs = len([tensor for tensor in node.outputs if tensor.name])
        self.opset = walk.opset
        self.whole_from = walk.whole_from
        self.head_width = walk.head_width
        self.cut_norms = walk.cut_norms

    def attr(self, name: str, default: Any = None) -> Any:
        return self._node.attrs.get(name, default)

    def has(self, i: int) -> bool:
        return i < self.n_inputs and bool(self._node.inputs[i].name)

    def ids(self, i: int) -> IntArray | None:
        if not self.has(i) or isinstance(self._node.inputs[i], gs.Constant):
            return None
        return self._walk.ids.get(self._node.inputs[i].name)

    def const(self, i: int) -> np.ndarray[Any, Any] | None:
        if not self.has(i):
            return None
        n, place = self._origin(i)
        node = self._walk.graph.nodes[n]
        return quantised.values_at(node, place) if isinstance(node.inputs[place], gs.Constant) else None

    def value(self, i: int) -> np.ndarray[Any, Any] | None:
        constant = self.const(i)
        if constant is not None or not self.has(i):
            return constant
        return self._walk.values.get(self._node.inputs[i].name)

    def shape(self, i: int) -> tuple[int, ...]:
        return self._walk.shapes[self._node.inputs[i].name]

    def out_shape(self, i: int = 0) -> tuple[int, ...]:
        return self._walk.shapes[self._node.outputs[i].name]

    def mint(self, n: int) -> IntArray:
        return self._walk.facts.mint(self._n, n)

    def tie(self, a: IntArray, b: IntArray, reason: str) -> None:
        self._walk.facts.tie(a, b, self._n, reason)

    def pin(self, ids: IntArray, reason: str) -> None:
        self._walk.facts.pin(ids, self._n, reason)

    def slice(self, i: int, axis: int, ids: IntArray, role: Role) -> None:
        if not (ids >= 0).any():
            return
        source = self._walk.stored.get(self._node.inputs[i].name)
        if source is None:
            self._slice(self._n, i, axis, ids, role, ZERO)
            return
        node = self._walk.graph.nodes[source]
        own = quantised.axis_of(node)
        if axis == own and any(len(shape) > 1 for _, shape in quantised.parameters(node)):
            self.pin(ids, f"the weight of this {self.op} has a scale per block of them")
            return
        self._slice(source, 0, axis, ids, role, quantised.zeros(node))
        for place, shape in quantised.parameters(node):
            if len(shape) > 1:
                self._slice(source, place, axis, ids, "follows", ZERO)
            elif axis == own:
                self._slice(source, place, 0, ids, "follows", ZERO)

    def _slice(self, n: int, i: int, axis: int, ids: IntArray, role: Role, zero: np.ndarray[Any, Any]) -> None:
        name = self._walk.graph.nodes[n].inputs[i].name
        self._walk.facts.slices.append(RawSlice(n, i, name, axis, ids, role, self._n, zero))

    def _origin(self, i: int) -> tuple[int, int]:
        """Return the node and input that hold input i: those of the node that dequantises it, where there is one."""
        source = self._walk.stored.get(self._node.inputs[i].name)
        return (self._n, i) if source is None else (source, 0)

    def count(self, field: str, ids: IntArray, *, input: int | None = None, index: int | None = None) -> None:
        if (ids >= 0).any():
            self._walk.facts.counts.append(RawCount(self._n, field, input, index, ids))

    def lookup(self, i: int, ids: IntArray) -> None:
        self._walk.facts.lookups.append(RawLookup(self._n, i, ids))

    def summed(
        self,
        i: int,
        axis: int,
        ids: IntArray,
        statistic: Statistic = "sum",
        axes: Sequence[int] = (),
        scale: int | None = None,
    ) -> None:
        if (ids >= 0).any():
            self._walk.facts.summed.append(RawSummed(self._n, i, axis, ids, statistic, tuple(axes), scale))

    def sizes(self, i: int) -> list[Size] | None:
        if not self.has(i):
            return None
        constant = self.const(i)
        if constant is not None:
            return sizes.literals(constant, self._n, i)
        return self._walk.sizes.get(self._node.inputs[i].name)

    def size(self, size: Size, ids: IntArray) -> None:
        facts = self._walk.facts
        if size.owner is not None:
            node, i, element = size.owner
            facts.counts.append(RawCount(node, "shape", i, element, ids, size.num))
        elif size.ids is not None:
            facts.equals.append(RawEqual(self._n, size.ids, size.num, size.den, ids))
        else:
            facts.pin(ids, self._n, "a shape is computed at run time from something else")

    def work(self, i: int, positions: int, over: IntArray | None = None) -> None:
        node, place = self._origin(i)
        self._walk.facts.works.append(Work(node, place, positions, NOBODY if over is None else over, self._n))


def matching(graph: gs.Graph, labels: Sequence[str], pattern: str) -> set[int]:
    """Return the numbers of the nodes whose label, or a constant of which, has a name that a glob pattern matches."""
    return {
        n
        for n, node in enumerate(graph.nodes)
        if fnmatch.fnmatchcase(labels[n], pattern)
        or any(isinstance(t, gs.Constant) and fnmatch.fnmatchcase(t.name, pattern) for t in node.inputs)
    }


def _pin_ignored(facts: Facts, graph: gs.Graph, labels: Sequence[str], patterns: Sequence[str]) -> None:
    for pattern in patterns:
        matched = matching(graph, labels, pattern)
        if not matched:
            some = ", ".join(labels[n] for n in facts.block_nodes[:MAX_REPORTED])
            raise OptionError(
                f"--ignore {pattern!r} matches no layer",
                why="it is compared with node names and weight names",
                hint=f"names look like {some}; `onnxprune inspect` lists them all",
            )
        for raw in list(facts.slices):
            if (raw.node in matched or raw.layer in matched) and raw.role != "reads":
                facts.pin(raw.ids[raw.ids != FIXED], raw.layer, f"ignored by --ignore {pattern!r}")

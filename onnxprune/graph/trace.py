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

from onnxprune.errors import ModelError, OptionError
from onnxprune.graph import qdq
from onnxprune.graph.facts import Facts
from onnxprune.graph.ids import FIXED, nothing, varying
from onnxprune.graph.model import Model, copy_graph, is_float, params_of, tensors_of, weightless
from onnxprune.graph.normalize import captured_names, fold_constants, fold_shapes
from onnxprune.graph.operators import OperatorSpec, spec_of
from onnxprune.graph.rule_context import RuleContext, TraceState
from onnxprune.graph.shapes import (
    candidate_shapes,
    concrete_shapes,
    has_dynamic_batch,
    infer_shapes,
    no_shape_runs,
    observe_tensors,
)
from onnxprune.types import IntArray, Trace

BATCH = 13
"""Size of a dynamic batch axis while tracing: a prime that channel counts rarely have as a factor."""
RUN_BATCHES = (3, 2, 1)
"""Sizes to try when the model has to be run to learn its shapes."""
OBSERVED_ELEMENTS = 4096
"""Integer tensors up to this size are looked at, should a rule want the value of an input computed at run time."""
MAX_REPORTED = 3
WHOLE_FROM = {"positions": math.inf, "whole": 1, "auto": 8}
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
        grouped: whether grouped convolutions lose `positions` of every group or `whole` groups; `auto`: whole ones where there are many.
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
    captured = {name for node in model.graph.nodes for name in captured_names(node)}
    state = TraceState(
        model.graph,
        model.opset,
        facts,
        known.tensors,
        known.integers,
        stored=qdq.stored_weights(model.graph, captured),
        whole_from=WHOLE_FROM[grouped],
        head_width=heads == "width",
        cut_norms=norms == "cut",
    )
    _walk(state)
    _pin_ignored(facts, model.graph, labels, ignore)
    found, lookup = facts.resolve(labels, ops)
    works = tuple(replace(work, positions=work.positions // known.batch) for work in found.works)
    params = params_of(model.graph)
    return replace(
        found,
        works=works,
        shapes=known.tensors,
        input_shapes=known.inputs,
        batch=known.batch,
        per_tensor_params=params,
        per_tensor_uses=dict(Counter(t.name for _, _, t in tensors_of(model.graph))),
        weight_sizes={(w.node, w.input): params.get(model.graph.nodes[w.node].inputs[w.input].name, 0) for w in works},
        carried=_carried(state.ids, lookup),
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
    dynamic = has_dynamic_batch(model.header)
    # inference does not notice when the sizes of several inputs don't fit each other
    plain, other = (concrete_shapes(model.header, 1, known=known, states=states) for states in (False, True))
    must_run = known is None and plain != other
    failures = []
    for batch, inputs in candidate_shapes(model.header, (BATCH, *RUN_BATCHES) if dynamic else (1,), known):
        inferred = infer_shapes(light, inputs)
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
            seen = observe_tensors(
                model.to_proto(), inputs, wanted or [model.header.graph.output[0].name], str(model.path)
            )
        except ModelError as failure:
            failures.append((inputs, failure))
            continue
        shapes |= {name: np.shape(value) for name, value in seen.items()}
        return _Shapes(batch, inputs, shapes, {k: v for k, v in seen.items() if _is_small_integer(v, np.shape(v))})
    raise no_shape_runs(failures)


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
        inferred = infer_shapes(weightless(concrete), inputs)
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


def _walk(state: TraceState) -> None:
    """Apply the rule of every node, in graph order."""
    for tensor in state.graph.inputs:
        state.ids[tensor.name] = nothing(len(state.shapes[tensor.name]))
    for n, node in enumerate(state.graph.nodes):
        if node.outputs and node.outputs[0].name in state.stored:
            continue  # the reader takes what it gives for a constant
        ctx, spec = RuleContext(state, n), spec_of(node)
        for name in captured_names(node):
            if name in state.ids:
                ctx.pin(state.ids[name], f"the body of this {node.op} uses it")
            _pin_sizes(ctx, name, f"the body of this {node.op} uses its number")
        if _follow_sizes(state, ctx, spec, node):
            outputs: Sequence[IntArray] = ctx.nothing()
        elif spec.rule is not None and (spec.constant_first or ctx.ids(0) is not None):
            outputs = spec.rule(ctx)
        else:
            outputs = ctx.refuse(f"there is no rule for {_operator(node)}", range(ctx.n_inputs))
        for tensor, ids in zip(node.outputs, outputs, strict=False):
            if tensor.name:
                state.ids[tensor.name] = ids
                state.facts.see(ids, n)
    _pin_outputs(state)


def _follow_sizes(state: TraceState, ctx: RuleContext, spec: OperatorSpec, node: gs.Node) -> bool:
    """Follow shape arithmetic through a node; return whether that is all there is to it."""
    sources = {i: tensor.name for i, tensor in enumerate(node.inputs) if tensor.name in state.sizes}
    found = spec.shape_rule(ctx) if spec.shape_rule is not None and (sources or node.op == "Shape") else None
    if found is not None and len(found) == math.prod(ctx.out_shape()):
        state.sizes[node.outputs[0].name] = found
        return True
    for i, name in sources.items():
        if i != spec.target_shape:  # its rule looks at a target shape
            _pin_sizes(ctx, name, f"{_operator(node)} computes with its number")
    return False


def _pin_sizes(ctx: RuleContext, name: str, reason: str) -> None:
    """Pin the channels whose number a tensor of sizes holds."""
    for size in ctx.state.sizes.get(name, []):
        if size.ids is not None:
            ctx.pin(size.ids, reason)


def _pin_outputs(state: TraceState) -> None:
    producers = {tensor.name: n for n, node in enumerate(state.graph.nodes) for tensor in node.outputs}
    for tensor in state.graph.outputs:
        if tensor.name in producers:
            ctx = RuleContext(state, producers[tensor.name])
            _pin_sizes(ctx, tensor.name, f"its number is the model's output {tensor.name}")
            ctx.pin(state.ids[tensor.name], f"it is the model's output {tensor.name}")


def _operator(node: gs.Node) -> str:
    return node.op if node.domain in qdq.STANDARD else f"{node.domain}.{node.op}"


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
                facts.pin(raw.channels[raw.channels != FIXED], raw.layer, f"ignored by --ignore {pattern!r}")

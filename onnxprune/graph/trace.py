"""Run the graph on channel ids: find the channels, their coupling, and the pins."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.errors import ModelError, OptionError
from onnxprune.graph import qdq
from onnxprune.graph.facts import Facts
from onnxprune.graph.folded import FoldedConstants, is_float
from onnxprune.graph.ids import FIXED, nothing, varying
from onnxprune.graph.model import Model, constants_of, copy_graph, inferred, params_of, tensors_of, weightless
from onnxprune.graph.normalize import fold_constants, fold_shapes
from onnxprune.graph.opaque import opaque_costs, operator_of
from onnxprune.graph.operators import OperatorSpec, spec_of
from onnxprune.graph.rule_context import RuleContext, TraceState
from onnxprune.graph.shapes import infer_shapes, no_shape_runs, observe_tensors
from onnxprune.graph.sharing import tie_uses
from onnxprune.graph.signature import PROBE, SEVERAL
from onnxprune.types import IntArray, Trace

OBSERVED_ELEMENTS = 4096
"""Largest integer tensor whose values are observed in a run, for rules that read an input computed at run time."""
MAX_REPORTED = 3
WHOLE_FROM = {"positions": math.inf, "whole": 1, "many": 8}
"""Number of groups of a convolution from which whole groups are deleted, by `--grouped`."""


def trace(
    model: Model,
    *,
    ignore: Sequence[str] = (),
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    grouped: str = "positions",
    heads: str = "whole",
    norms: str = "keep",
) -> Trace:
    """Find the channels of a model, how they are coupled, and which are pinned.

    Args:
        model: a loaded model.
        ignore: glob patterns; channels written by layers with a matching name or weight are pinned.
        input_shapes: shapes of the data, for dynamic axes other than the batch.
        grouped: whether grouped convolutions lose `positions` of every group or `whole` groups; `many`: whole groups
            from 8 groups on.
        heads: whether attention loses `whole` heads, or `width` of every head.
        norms: whether channels that a normalization runs over are pinned (`keep`), or prunable with repair (`cut`).

    Raises:
        ModelError: the shapes can neither be inferred nor observed in a run of the model.
        OptionError: a pattern in `ignore` matches nothing.
    """
    graph = model.graph
    labels = node_labels(graph)
    known = _shapes(model, input_shapes)
    state = TraceState(
        graph,
        model.opset,
        Facts(),
        known.tensors,
        known.integers,
        stored=qdq.stored_weights(graph),
        computed=FoldedConstants(model.folded, constants_of(graph)),
        whole_from=WHOLE_FROM[grouped],
        head_width=heads == "width",
        cut_norms=norms == "cut",
    )
    _walk(state)
    tie_uses(state.facts, graph, labels)
    _pin_ignored(state.facts, graph, labels, ignore)
    found, lookup = state.facts.resolve(labels, tuple(node.op for node in graph.nodes))
    works = tuple(replace(work, positions=work.positions // known.samples) for work in found.works)
    params = params_of(model)
    axes = {name: varying(ids) for name, ids in state.ids.items()}
    return replace(
        found,
        works=works,
        shapes=known.tensors,
        input_shapes=known.inputs,
        samples=known.samples,
        per_tensor_params=params,
        weight_sizes={(w.node, w.input): math.prod(graph.nodes[w.node].inputs[w.input].shape) for w in works},
        opaque=opaque_costs(graph, known.tensors, {w.layer for w in works}, known.samples),
        carried={name: (on[0], lookup[state.ids[name].reshape(-1)]) for name, on in axes.items() if len(on) == 1},
    )


def node_labels(graph: gs.Graph) -> tuple[str, ...]:
    """Return a unique label per node: the name of the node, else operator and first output."""
    labels: dict[str, None] = {}
    for n, node in enumerate(graph.nodes):
        label = node.name or f"{node.op}_{node.outputs[0].name if node.outputs else n}"
        labels[label if label not in labels else f"{label}@{n}"] = None
    return tuple(labels)


@dataclass(frozen=True)
class _Shapes:
    """Shapes where every dynamic axis has a size, and small integer tensors computed at run time."""

    samples: int
    inputs: dict[str, tuple[int, ...]]
    tensors: dict[str, tuple[int, ...]]
    integers: dict[str, np.ndarray[Any, Any]]


def _shapes(model: Model, known: Mapping[str, tuple[int, ...]] | None) -> _Shapes:
    """Infer all shapes, or run the model where inference leaves a gap or where shapes are computed at run time."""
    light, signature = weightless(model), model.signature
    failures = []
    for samples in dict.fromkeys(signature.per_run(n) for n in (PROBE, *SEVERAL, 1)):
        inputs = signature.input_shapes(samples, known)
        found = infer_shapes(light, inputs)
        shapes, types = found.full, found.types
        shapes |= {t.name: tuple(t.shape) for _, _, t in tensors_of(model.graph)}
        outputs = [t for node in model.graph.nodes for t in node.outputs if t.name]
        wanted = [t.name for t in outputs if t.name not in shapes]
        wanted += [t.name for t in outputs if t.outputs and _is_small_integer(types.get(t.name), shapes.get(t.name))]
        if not wanted:
            return _Shapes(samples, inputs, shapes, {})
        more, values = _computed(model, inputs)
        shapes = {**more, **shapes}
        if all(t.name in shapes for t in outputs):
            return _Shapes(samples, inputs, shapes, values)
        if samples == PROBE:
            continue  # fewer samples are cheaper to run
        try:
            proto, weights = model.stub()
            asked = wanted or [model.header.graph.output[0].name]
            seen = observe_tensors(proto, inputs, asked, str(model.path), weights)
        except ModelError as failure:
            failures.append((inputs, failure))
            continue
        shapes |= {name: () if isinstance(value, list) else np.shape(value) for name, value in seen.items()}
        small = {k: v for k, v in seen.items() if isinstance(v, np.ndarray) and v.size <= OBSERVED_ELEMENTS}
        return _Shapes(samples, inputs, shapes, {k: v for k, v in small.items() if v.dtype.kind == "i"})
    raise no_shape_runs(failures)


def _computed(
    model: Model, inputs: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, ...]], dict[str, np.ndarray[Any, Any]]]:
    """Compute shape arithmetic for inputs of these shapes without a run; return shapes and integer values by tensor."""
    graph = copy_graph(model.graph)
    concrete = replace(model, graph=graph)
    shapes: dict[str, tuple[int, ...]] = {}
    found: dict[str, np.ndarray[Any, Any]] = {}
    while True:
        known = inferred(concrete, inputs)
        shapes |= known.full
        if not fold_shapes(graph, known.partial):
            break
        fold_constants(graph, str(model.path), found, model.defaults)
    found |= {t.name: t.values for _, _, t in tensors_of(graph) if not is_float(t)}
    computed = {t.name for node in model.graph.nodes for t in node.outputs}
    values = {name: value for name, value in found.items() if name in computed and value.dtype.kind in "iub"}
    return {**shapes, **{name: value.shape for name, value in found.items() if name in computed}}, values


def _is_small_integer(kind: int | None, shape: tuple[int, ...] | None) -> bool:
    """Tell whether a tensor of an ONNX element type can hold a shape."""
    integer = kind in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    return integer and (shape is None or math.prod(shape) <= OBSERVED_ELEMENTS)


def _walk(state: TraceState) -> None:
    """Apply the rule of every node, in graph order, and pin the outputs."""
    state.fed.update(tensor.name for tensor in state.graph.inputs)
    for tensor in state.graph.inputs:
        state.ids[tensor.name] = nothing(len(state.shapes[tensor.name]))
    for n, node in enumerate(state.graph.nodes):
        if node.outputs and node.outputs[0].name in state.stored:
            continue  # a constant to the reader
        ctx, spec = RuleContext(state, n), spec_of(node)
        operator = operator_of(node)
        for name in qdq.captured_names(node):
            if name in state.ids:
                ctx.pin(state.ids[name], f"the body of this {node.op} uses the channel")
            _pin_sizes(ctx, name, f"the body of this {node.op} uses the number of channels")
        if _follow_sizes(ctx, spec, node, operator):
            outputs: Sequence[IntArray] = ctx.nothing()
        elif spec.rule is not None and (spec.constant_first or ctx.is_activation(0)):
            outputs = spec.rule(ctx)
            ctx.pin_ignored_inputs(operator)
            if any(
                len(state.shapes.get(t.name, ids.shape)) != ids.ndim
                for t, ids in zip(node.outputs, outputs, strict=False)
                if t.name
            ):
                outputs = ctx.refuse(
                    f"the attributes of {operator} do not say the rank of its output", range(ctx.n_inputs)
                )
        else:
            outputs = ctx.refuse(f"there is no rule for {operator}", range(ctx.n_inputs))
        cause = ctx.cause()
        for tensor, ids in zip(node.outputs, outputs, strict=False):
            if tensor.name:
                state.ids[tensor.name] = ids
                state.facts.see(ids, n)
                if cause is not None and (ids.size == 1 or (ids == FIXED).any()):
                    state.causes[tensor.name] = cause
    producers = {tensor.name: n for n, node in enumerate(state.graph.nodes) for tensor in node.outputs}
    for tensor in state.graph.outputs:
        if tensor.name in producers:
            ctx = RuleContext(state, producers[tensor.name])
            _pin_sizes(ctx, tensor.name, f"the number of channels is the model output {tensor.name}")
            ctx.pin(state.ids[tensor.name], f"it is a channel of the model output {tensor.name}")


def _follow_sizes(ctx: RuleContext, spec: OperatorSpec, node: gs.Node, operator: str) -> bool:
    """Follow shape arithmetic through a node; return whether the node computes nothing else."""
    sizes = ctx.state.sizes
    sources = {i: tensor.name for i, tensor in enumerate(node.inputs) if tensor.name in sizes}
    found = spec.shape_rule(ctx) if spec.shape_rule is not None and (sources or node.op == "Shape") else None
    if found is not None and len(found) == math.prod(ctx.out_shape()):
        sizes[node.outputs[0].name] = found
        return True
    for i, name in sources.items():
        if i != spec.target_shape:  # the rule compares a target shape with the ids
            _pin_sizes(ctx, name, f"{operator} computes with the number of channels")
    return False


def _pin_sizes(ctx: RuleContext, name: str, reason: str) -> None:
    """Pin the channels whose number a tensor of sizes holds."""
    for size in ctx.state.sizes.get(name, []):
        if size.ids is not None:
            ctx.pin(size.ids, reason)


def matching(graph: gs.Graph, labels: Sequence[str], pattern: str) -> set[int]:
    """Return the numbers of the nodes whose label, or the name of a constant input, matches a glob pattern."""
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
                why="the pattern is compared with node names and weight names",
                hint=f"names look like {some}; `onnxprune inspect` lists them all",
            )
        for raw in list(facts.slices):
            if (raw.node in matched or raw.layer in matched) and raw.role != "reads":
                facts.pin(raw.channels[raw.channels != FIXED], raw.layer, f"ignored by --ignore {pattern!r}")

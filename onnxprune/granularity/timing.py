"""How long layers take before and after an edit, measured layer by layer, and what they multiply and store."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError
from onnxprune.granularity.edits import Depth, Edit, Grouped, Kernel, Rank, Split
from onnxprune.granularity.rewriting import reform
from onnxprune.graph.cost import CostModel
from onnxprune.graph.linear import Conv
from onnxprune.graph.model import Model, weightless
from onnxprune.graph.readers import linear_layers
from onnxprune.graph.shapes import infer_shapes
from onnxprune.graph.trace import node_labels
from onnxprune.graph.trace import trace as trace_model
from onnxprune.runtime.session import Feeds, random_feeds
from onnxprune.runtime.timing import Latency, time_runs
from onnxprune.types import FloatArray, Trace

RUNS, WARMUP, SECONDS = 40, 3, 0.25
"""Of each edit, most."""
FASTER = 0.95
"""Time of a layer after an edit, as a share of that before, that it must stay below: two measurements of one layer differ by some percent."""
Amounts = tuple[float, float, float]
"""Milliseconds of a run, MACs per sample, parameters."""


@dataclass(frozen=True)
class Saving:
    """What an edit was measured to save.

    Attributes:
        before, after: milliseconds of the layer by itself.
        macs, params: what is gone.
    """

    before: float
    after: float
    macs: float
    params: float

    @property
    def is_faster(self) -> bool:
        """Whether the layer is faster by more than the noise."""
        return self.after < FASTER * self.before


class Timer:
    """Times layers by themselves; equal ones once.

    Args:
        model: in which the layers are.
        trace: its facts.
        shapes: of the inputs of the model, for a run.
        batch: samples per run.
        threads: of onnxruntime within an operator.
    """

    def __init__(
        self, model: Model, trace: Trace, shapes: Mapping[str, tuple[int, ...]], batch: int, threads: int
    ) -> None:
        self.model, self.trace, self.threads, self.batch = model, trace, threads, batch
        inferred = infer_shapes(weightless(model), shapes)
        self._partial, self._types = inferred.partial, inferred.types
        self._numbers = {label: n for n, label in enumerate(node_labels(model.graph))}
        self._known: dict[str, Saving | None] = {}
        self._originals: dict[str, tuple[Model, Any, float]] = {}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor in a run; None where it is not known."""
        partial = self._partial.get(name)
        if partial is not None and None not in partial:
            return tuple(int(size or 0) for size in partial)
        traced = self.trace.shapes.get(name)
        if not traced:
            return traced
        head = traced[0] // self.trace.batch * self.batch if traced[0] % self.trace.batch == 0 else traced[0]
        return (head, *traced[1:])

    def saving(self, edit: Edit, nodes: Sequence[int]) -> Saving | None:
        """Measure what an edit saves.

        Args:
            edit: of a layer, in the terms of the model.
            nodes: numbers of the nodes that it concerns; of a branch, all that go.

        Returns:
            None where it cannot be made or measured.
        """
        key = self._signature(edit, nodes)
        if key not in self._known:
            try:
                self._known[key] = self._measure(edit, nodes)
            except OnnxPruneError:
                self._known[key] = None
        return self._known[key]

    def _signature(self, edit: Edit, nodes: Sequence[int]) -> str:
        return repr((self._layer_signature(nodes), _shape_of(edit)))

    def _layer_signature(self, nodes: Sequence[int]) -> str:
        parts = []
        for n in nodes:
            node = self.model.graph.nodes[n]
            sizes = [tuple(t.shape) if hasattr(t, "values") else self.shape(t.name) for t in node.inputs]
            parts.append((node.op, sorted((k, str(v)[:200]) for k, v in node.attrs.items()), sizes))
        return repr(parts)

    def _measure(self, edit: Edit, nodes: Sequence[int]) -> Saving | None:
        before = self._original(nodes)
        if before is None:
            return None
        model, opened, feeds = before
        macs, params = _costs(model)
        if isinstance(edit, Depth):
            timed = self._timed([opened], feeds)
            return Saving(timed.a, 0.0, macs, params)
        changed = reform(model, [edit], _any_basis(model, edit)).model
        less_macs, less_params = _costs(changed)
        timed = self._timed([opened, changed.session(threads=self.threads)], feeds)
        assert timed.b is not None
        return Saving(timed.a, timed.b, macs - less_macs, params - less_params)

    def _timed(self, sessions: list[Any], feeds: Feeds) -> Latency:
        return time_runs(
            sessions,
            [feeds] * len(sessions),
            runs=RUNS,
            warmup=WARMUP,
            threads=self.threads,
            batch=self.batch,
            seconds=SECONDS,
        )

    def _original(self, nodes: Sequence[int]) -> tuple[Model, Any, Any] | None:
        key = repr((list(nodes),))
        if key not in self._originals:
            alone = self._alone(nodes)
            if alone is None:
                return None
            shapes = {value.name: _dims(value) for value in alone.header.graph.input}
            feeds: Any = random_feeds(alone.header, shapes, 0)
            self._originals = {
                key: (alone, alone.session(threads=self.threads), feeds)
            }  # one at a time: they take memory
        return self._originals[key]

    def _alone(self, nodes: Sequence[int]) -> Model | None:
        """Return some nodes as a model of their own; None where shapes are not known."""
        originals = [self.model.graph.nodes[n] for n in nodes]
        tensors: dict[str, gs.Tensor] = {}

        def own(tensor: gs.Tensor) -> gs.Tensor:
            if not tensor.name:
                return gs.Variable.empty()
            return tensors.setdefault(tensor.name, tensor.copy())

        copies = [node.copy([own(t) for t in node.inputs], [own(t) for t in node.outputs]) for node in originals]
        made = {t.name for node in originals for t in node.outputs if t.name}
        taken = {t.name for node in originals for t in node.inputs if t.name and not hasattr(t, "values")}
        inner = {id(node) for node in originals}
        results = {id(t) for t in self.model.graph.outputs}
        given = [
            t.name
            for node in originals
            for t in node.outputs
            if t.name and (id(t) in results or any(id(reader) not in inner for reader in t.outputs))
        ]
        header = onnx.ModelProto(ir_version=self.model.header.ir_version, opset_import=self.model.header.opset_import)
        header.graph.name = "layer"
        for names, values in ((sorted(taken - made), header.graph.input), (given, header.graph.output)):
            for name in names:
                shape, kind = self.shape(name), self._types.get(name) or onnx.TensorProto.FLOAT
                if shape is None:
                    return None
                values.append(onnx.helper.make_tensor_value_info(name, kind, shape))
        graph = gs.Graph(
            copies,
            [tensors[name] for name in sorted(taken - made)],
            [tensors[name] for name in given],
            opset=self.model.graph.opset,
            import_domains=self.model.graph.import_domains,
            ir_version=self.model.graph.ir_version,
        )
        return replace(self.model, graph=graph, header=header, batchnorms={})


def _any_basis(model: Model, edit: Edit) -> dict[str, FloatArray]:
    """Return directions that cost nothing to find: what a layer takes does not depend on which ones they are."""
    layer = linear_layers(model.graph).get(0)
    if not isinstance(edit, Rank) or layer is None:
        return {}
    groups, outputs, _ = layer.matrix(layer.values).shape
    others = math.prod(layer.kernel[1:]) if isinstance(layer, Conv) and edit.form == "spatial" else 1
    return {
        edit.layer: np.broadcast_to(np.eye(outputs * others)[:, : edit.rank], (groups, outputs * others, edit.rank))
    }


def _dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _costs(model: Model) -> tuple[float, float]:
    traced = trace_model(model)
    return CostModel(traced).totals(np.ones(traced.n_channels, dtype=bool))


def _shape_of(edit: Edit) -> tuple[Any, ...]:
    """Return what the time of an edit depends on."""
    if isinstance(edit, Kernel):
        return ("kernel", *edit.taps)
    if isinstance(edit, Split):
        return ("split", edit.taps, edit.count, list(edit.filters) == sorted(edit.filters))
    if isinstance(edit, Rank):
        return ("rank", edit.rank, edit.form)
    if isinstance(edit, Grouped):
        ordered = [list(order) == sorted(order) for order in (edit.inputs, edit.outputs)]
        return ("group", edit.groups, *ordered)
    return (type(edit).__name__,)

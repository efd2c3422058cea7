"""Time layers by themselves before and after an edit, and count their multiplications and parameters."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.cost import CostModel
from onnxprune.graph.model import Model, weightless
from onnxprune.graph.readers import linear_layers
from onnxprune.graph.shapes import infer_shapes
from onnxprune.graph.signature import Signature
from onnxprune.graph.trace import node_labels
from onnxprune.graph.trace import trace as trace_model
from onnxprune.runtime.layer_times import LayerTimes
from onnxprune.runtime.session import Feeds, SessionConfig
from onnxprune.runtime.timing import sample_times
from onnxprune.runtime.timings import Timings
from onnxprune.surgery.edits.apply import apply_edits
from onnxprune.surgery.edits.protocol import Candidate, RefusalError
from onnxprune.types import SampleAxis

if TYPE_CHECKING:
    import onnxruntime as ort

RUNS, WARMUP, SECONDS = 40, 3, 0.25
"""Runs of each layer, and their time limit."""
FASTER = 0.95
"""Share of the time before an edit below which the layer is faster; measurements differ by some percent."""


@dataclass(frozen=True)
class Saving:
    """What one edit saves.

    Attributes:
        before, after: milliseconds of the layer.
        macs, params: removed multiplications per sample, and removed parameters.
    """

    before: float
    after: float
    macs: float
    params: float

    @property
    def is_faster(self) -> bool:
        """Whether the layer is faster by more than the noise."""
        return self.after < FASTER * self.before


@dataclass
class LayerModel:
    """Some nodes as a model."""

    model: Model
    config: SessionConfig

    @functools.cached_property
    def session(self) -> ort.InferenceSession:
        """The model in onnxruntime."""
        return self.model.session(self.config)

    @functools.cached_property
    def feeds(self) -> Feeds:
        """Random inputs."""
        return self.model.signature.random_feeds(self.model.header, 1, 0)

    @functools.cached_property
    def counts(self) -> tuple[float, float]:
        """Multiplications per sample and parameters."""
        traced = trace_model(self.model)
        return CostModel(traced).totals(np.ones(traced.n_channels, dtype=bool))


def layer_times(layers: Sequence[LayerModel]) -> list[float]:
    """Return the median milliseconds of one or two models of the same inputs; their runs are interleaved."""
    sessions, feeds = [layer.session for layer in layers], [layers[0].feeds] * len(layers)
    samples = sample_times(sessions, feeds, runs=RUNS, warmup=WARMUP, seconds=SECONDS)
    return [float(median) for median in np.median(samples, axis=1)]


class EditTimer:
    """Times each edit of a model by itself, equal ones once; `config` gives the batch, provider and threads.

    Times are taken from `timings`, the record of the run, else from the user's cache, and are measured where neither has them.
    """

    def __init__(self, analysis: Analysis, config: BenchmarkConfig, timings: Timings) -> None:
        self.kept = LayerTimes(config.session, config.batch)
        self.model, self.trace, self.config, self.timings = analysis.model, analysis.trace, config, timings
        shapes = self.model.signature.input_shapes(config.batch, self.trace.input_shapes)
        self._inferred = infer_shapes(weightless(self.model), shapes)
        self._known: dict[str, Saving | None] = {}
        self._original: tuple[tuple[int, ...], LayerModel] | None = None  # one at a time: they take memory

    def saving(self, candidate: Candidate) -> Saving | None:
        """Measure what an edit saves; None: the edit cannot be made, or its shapes are not known."""
        form = {name: value for name, value in candidate.edit.to_dict().items() if name != "layer"}
        key = repr((form, *map(self._signature, candidate.nodes)))
        if key not in self._known:
            try:
                self._known[key] = self._measured(candidate, f"{key}{self.config.session}")
            except (OnnxPruneError, RefusalError):
                self._known[key] = None
        return self._known[key]

    def _signature(self, n: int) -> tuple[object, ...]:
        node = self.model.graph.nodes[n]
        sizes = [
            (tuple(t.shape), str(t.dtype)) if isinstance(t, gs.Constant) else self._shape(t.name) for t in node.inputs
        ]
        return node.op, sorted((k, str(v)[:200]) for k, v in node.attrs.items()), sizes

    def _measured(self, candidate: Candidate, form: str) -> Saving:
        """Return what an edit saves; `form` is all that its time depends on."""
        key = f"layer {hashlib.sha256(form.encode()).hexdigest()[:24]}"
        if self._original is None or self._original[0] != candidate.nodes:
            self._original = candidate.nodes, LayerModel(self._alone(candidate.nodes), self.config.session)
        original = self._original[1]
        macs, params = original.counts
        if candidate.edit.removes_nodes:
            (before,) = self._times(key, [original])
            return Saving(before, 0.0, macs, params)
        numbers = {label: n for n, label in enumerate(node_labels(original.model.graph))}
        layer = linear_layers(original.model.graph).get(numbers.get(candidate.edit.layer, -1))
        edit = candidate.edit if layer is None else candidate.edit.timed(layer)
        edited = LayerModel(apply_edits(original.model, [edit]).model, self.config.session)
        before, after = self._times(key, [original, edited])
        return Saving(before, after, macs - edited.counts[0], params - edited.counts[1])

    def _times(self, key: str, layers: Sequence[LayerModel]) -> tuple[float, ...]:
        """Return the milliseconds of layers: recorded by the run, else kept in the cache, else measured."""
        count = len(layers)
        return self.timings.of(key, count, lambda: self.kept.of(key, count, lambda: layer_times(layers)))

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor in a timed run, where it is known."""
        partial = self._inferred.partial.get(name)
        if partial is not None and None not in partial:
            return tuple(int(size or 0) for size in partial)
        traced = self.trace.shapes.get(name)
        if not traced:
            return traced
        samples, rest = divmod(traced[0], self.trace.samples)
        wanted = self.model.signature.per_run(self.config.batch)
        return (traced[0] if rest else samples * wanted, *traced[1:])

    def _alone(self, nodes: Sequence[int]) -> Model:
        """Return some nodes as a model, or raise RefusalError."""
        graph, header = self.model.graph, self.model.header
        own = [graph.nodes[n] for n in nodes]
        inside, results = {id(node) for node in own}, {id(t) for t in graph.outputs}
        written = {t.name: t for node in own for t in node.outputs if t.name}
        read = {t.name: t for node in own for t in node.inputs if t.name and not isinstance(t, gs.Constant)}
        inputs = [read[name] for name in sorted(read.keys() - written.keys())]
        outputs = [t for t in written.values() if id(t) in results or any(id(n) not in inside for n in t.outputs)]
        proto = onnx.ModelProto(ir_version=header.ir_version, opset_import=header.opset_import)
        proto.graph.name = "layer"
        for tensors, values in ((inputs, proto.graph.input), (outputs, proto.graph.output)):
            for tensor in tensors:
                shape = self._shape(tensor.name)
                if shape is None:
                    raise RefusalError(f"the shape of {tensor.name} is not known")
                kind = self._inferred.types.get(tensor.name) or onnx.TensorProto.FLOAT
                values.append(onnx.helper.make_tensor_value_info(tensor.name, kind, shape))
        alone = gs.Graph(own, inputs, outputs, opset=graph.opset)
        shapes = {t.name: shape for t in inputs if (shape := self._shape(t.name)) is not None}
        signature = Signature(
            shapes, dict.fromkeys(shapes, SampleAxis(None)), dict.fromkeys(written, SampleAxis(None)), 1
        )
        return replace(self.model, graph=alone, header=proto, batchnorms={}, signature=signature).copy()

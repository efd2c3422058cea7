"""A model, its channels and its cost: what every command starts from."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from onnxprune.errors import OnnxPruneError
from onnxprune.graph import model as models
from onnxprune.graph.cost import CostModel, LayerCost
from onnxprune.graph.model import Model
from onnxprune.graph.opaque import remarks
from onnxprune.graph.trace import trace as trace_model
from onnxprune.options import ResolvedOptions
from onnxprune.runtime import memory_limit
from onnxprune.runtime.session import ORT_VERSION, UNOPTIMIZED, open_session, run_batch
from onnxprune.types import BoolArray, Pin, Trace

INSPECT_SCHEMA = "onnxprune.inspect/1"


@dataclass(frozen=True)
class Layer:
    """A layer with a weight, before and after."""

    name: str
    op: str
    channels_before: int
    channels_after: int
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int


@dataclass(frozen=True)
class PinCost:
    """The channels that one reason pins, at all nodes of one operator.

    `share` is the share of MACs that these channels cost; shares of different reasons overlap.
    """

    operator: str
    reason: str
    nodes: int
    channels: int
    share: float


@dataclass(frozen=True)
class Analysis:
    """A loaded model, its trace and its cost model."""

    model: Model
    trace: Trace
    cost: CostModel

    @property
    def notes(self) -> tuple[str, ...]:
        """What loading changed, and what the costs do not tell."""
        everything = np.ones(self.trace.n_channels, dtype=bool)
        return (*self.model.notes, *remarks(self.trace.opaque, self.cost.totals(everything)[0]))


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect`: an analysis, the costs of the whole model, and the cost of each kind of pin."""

    analysis: Analysis
    macs: float
    layers: tuple[LayerCost, ...]
    held: tuple[PinCost, ...]

    @property
    def inputs(self) -> dict[str, list[int]]:
        """Shapes of the inputs that FLOPs are counted for."""
        return {name: list(shape) for name, shape in self.analysis.trace.input_shapes.items()}

    @property
    def memory(self) -> dict[str, float]:
        """Expected peak memory in bytes: to prune without data, to prune with data beside `--memory`; and what this process may take."""
        size = self.analysis.model.size
        left = min((room.bytes for room in memory_limit.rooms()), default=float("inf"))
        found = {"prune": memory_limit.PRUNED, "prune_with_data": memory_limit.CALIBRATED}
        return {**{name: memory_limit.expected(size, factor) for name, factor in found.items()}, "available": left}

    @property
    def provenance(self) -> dict[str, str]:
        """Metadata that onnxprune writes into a model."""
        entries = self.analysis.model.header.metadata_props
        return {entry.key: entry.value for entry in entries if entry.key.startswith(models.PROVENANCE)}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        model, trace = self.analysis.model, self.analysis.trace
        return {
            "schema": INSPECT_SCHEMA,
            "model": {"path": str(model.path), "sha256": model.digest, "size": model.size, "params": model.params},
            "flops": 2 * self.macs,
            "macs": self.macs,
            "prunable_share": self.analysis.cost.prunable_share(),
            "inputs": self.inputs,
            "memory": self.memory,
            "layers": [asdict(layer) for layer in self.layers],
            "groups": [
                {
                    "name": group.name,
                    "layers": list(group.layers),
                    "channels": int(group.channels.size),
                    "free": int((~trace.pinned[group.channels]).sum()),
                }
                for group in trace.groups
            ],
            "pins": [
                {"node": pin.node, "operator": pin.op, "reason": pin.reason, "channels": int(pin.channels.size)}
                for pin in trace.pins
            ],
            "held": [asdict(pin) for pin in self.held],
            "uncounted": [
                {**asdict(one), "node": trace.labels[one.node], "params": one.params} for one in trace.opaque
            ],
            "notes": list(self.analysis.notes),
            "provenance": self.provenance,
        }


def analyse(
    model: Model,
    ignore: tuple[str, ...] = (),
    known: dict[str, tuple[int, ...]] | None = None,
    grouped: str = "positions",
    heads: str = "whole",
    norms: str = "keep",
) -> Analysis:
    """Trace a loaded model; `known` are the shapes of data, for dynamic axes; for the rest see `onnxprune.options.Options`.

    Raises:
        ModelError: it cannot be traced.
        OptionError: an --ignore pattern that matches nothing.
    """
    with unless_it_does_not_run(model, known):
        traced = trace_model(model, ignore=ignore, input_shapes=known, grouped=grouped, heads=heads, norms=norms)
        return Analysis(model, traced, CostModel(traced))


def analysed(model: Model, options: ResolvedOptions, known: dict[str, tuple[int, ...]] | None) -> Analysis:
    """Trace a model with resolved options; `known` are the shapes of its inputs, for dynamic axes."""
    return analyse(model, options.ignore, known, options.grouped, options.heads, options.norms)


@contextlib.contextmanager
def unless_it_does_not_run(model: Model, known: dict[str, tuple[int, ...]] | None) -> Iterator[None]:
    """Where a stage fails unexpectedly, raise ModelError if the model itself does not run.

    onnxruntime loads a model whose weights do not fit each other, and fails only when it runs the model.
    """
    try:
        yield
    except (OnnxPruneError, MemoryError):
        raise
    except Exception:
        where = str(model.path)
        feeds = model.signature.random_feeds(model.header, 1, 0, known)
        run_batch(open_session(where, UNOPTIMIZED, where=where), feeds, where=where)
        raise


def removed(analysis: Analysis, keep: BoolArray, original: Analysis | None = None) -> tuple[float, float]:
    """Return the removed shares of FLOPs and of parameters, of the model or of the original that it was edited from."""
    original = original or analysis
    whole, _ = original.cost.totals(np.ones(original.trace.n_channels, dtype=bool))
    macs, params = analysis.cost.totals(keep)
    before = original.model.params
    return 1 - macs / whole if whole else 0.0, 1 - params / before if before else 0.0


def layers_of(analysis: Analysis, keep: BoolArray, original: Analysis | None = None) -> tuple[Layer, ...]:
    """Return every layer with a weight, before and after.

    Where layers were edited, `original` is the model before: an added layer has nothing before, a deleted one nothing after.
    """
    original = original or analysis
    before = {layer.label: layer for layer in original.cost.layers(np.ones(original.trace.n_channels, dtype=bool))}
    after = {layer.label: layer for layer in analysis.cost.layers(keep)}
    none = LayerCost("", "", 0, 0, 0)
    found = []
    labels = list(after)
    for previous, label in zip([None, *before], before, strict=False):
        if label not in after:  # a deleted layer stands behind the layer that was before it
            labels.insert(0 if previous is None else labels.index(previous) + 1, label)
    for label in labels:
        a, b = before.get(label, none), after.get(label, none)
        found.append(Layer(label, a.op or b.op, a.channels, b.channels, a.macs, b.macs, a.params, b.params))
    return tuple(found)


def pinned_of(trace: Trace) -> tuple[tuple[str, str, int], ...]:
    """Return (reason, node, number of channels) of every pin."""
    return tuple((pin.reason, pin.node, int(pin.channels.size)) for pin in trace.pins)


def versions() -> dict[str, str]:
    """Return the versions that a report names."""
    return {"onnxprune": importlib.metadata.version("onnxprune"), "onnxruntime": ORT_VERSION, "onnx": onnx.__version__}


def inspect(analysis: Analysis) -> Inspection:
    """Inspect a model."""
    everything = np.ones(analysis.trace.n_channels, dtype=bool)
    macs, _ = analysis.cost.totals(everything)
    return Inspection(analysis, macs, analysis.cost.layers(everything), _pin_costs(analysis))


def _pin_costs(analysis: Analysis) -> tuple[PinCost, ...]:
    """Return the cost of each kind of pin, the largest first."""
    kinds: dict[tuple[str, str], list[Pin]] = {}
    for pin in analysis.trace.pins:
        kinds.setdefault((pin.op, pin.reason), []).append(pin)
    keep = np.ones(analysis.trace.n_channels, dtype=bool)
    whole, _ = analysis.cost.totals(keep)
    found = []
    for (op, reason), pins in kinds.items():
        channels = np.unique(np.concatenate([pin.channels for pin in pins]))
        without = keep.copy()
        without[channels] = False
        share = 1 - analysis.cost.totals(without)[0] / whole if whole else 0.0
        found.append(PinCost(op, reason, len({pin.node for pin in pins}), int(channels.size), share))
    return tuple(sorted(found, key=lambda cost: -cost.share))

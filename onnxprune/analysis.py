"""A model, its channels and its cost: what every command starts from."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx

from onnxprune.allocation import knapsack
from onnxprune.errors import ModelError, OnnxPruneError
from onnxprune.graph import model as models
from onnxprune.graph.cost import CostModel, LayerCost
from onnxprune.graph.model import Model
from onnxprune.graph.operators import OPERATORS, UNKNOWN
from onnxprune.graph.shapes import concrete_shapes
from onnxprune.graph.trace import trace as trace_model
from onnxprune.options import Options
from onnxprune.runtime.session import ORT_VERSION, open_session, random_feeds, run_batch
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
class Held:
    """What one reason, at all nodes of one operator, keeps from being pruned.

    `share` is the share of MACs that would go with these channels; shares of different reasons overlap.
    """

    operator: str
    reason: str
    nodes: int
    channels: int
    share: float


@dataclass(frozen=True)
class Inspection:
    """What can be said of a model before anything is chosen; `inputs` are the shapes that FLOPs are counted for."""

    model: str
    sha256: str
    size: int
    params: int
    macs: float
    prunable_share: float
    layers: tuple[LayerCost, ...]
    trace: Trace
    held: tuple[Held, ...]
    inputs: dict[str, list[int]]
    notes: tuple[str, ...]
    provenance: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        trace = self.trace
        return {
            "schema": INSPECT_SCHEMA,
            "model": {"path": self.model, "sha256": self.sha256, "size": self.size, "params": self.params},
            "flops": 2 * self.macs,
            "macs": self.macs,
            "prunable_share": self.prunable_share,
            "inputs": self.inputs,
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
            "held": [asdict(held) for held in self.held],
            "notes": list(self.notes),
            "provenance": self.provenance,
        }


@dataclass(frozen=True)
class Analysis:
    """A loaded model, its trace and its cost model."""

    model: Model
    trace: Trace
    cost: CostModel


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


def analysed(model: Model, options: Options, known: dict[str, tuple[int, ...]] | None) -> Analysis:
    """Trace a model, or what a run has made of it, as the options, resolved, say.

    Args:
        model: it.
        options: the dials.
        known: shapes of its inputs, or of those of the original.
    """
    return analyse(model, options.ignore, known, options.grouped, options.heads, options.norms)


@contextlib.contextmanager
def unless_it_does_not_run(model: Model, known: dict[str, tuple[int, ...]] | None) -> Iterator[None]:
    """When a stage fails in a way that nobody foresaw, say so if the model itself is what does not run.

    onnxruntime loads models whose weights do not fit each other, and notices when it runs them.
    """
    try:
        yield
    except (OnnxPruneError, MemoryError):
        raise
    except Exception:
        where = str(model.path)
        shapes = concrete_shapes(model.header, 1, known=known)
        run_batch(
            open_session(where, optimise=False, where=where),
            random_feeds(model.header, shapes, 0),
            where=where,
        )
        raise


def refuse_unprunable(analysis: Analysis) -> None:
    """Raise ModelError, with the reasons, when no channel of the model can go."""
    trace = analysis.trace
    if (~trace.pinned).any():
        return
    ops = {node.op for node in analysis.model.graph.nodes}
    layers = sorted(op for op in ops if OPERATORS.get(op, UNKNOWN).quantized_layer)
    if layers:
        raise ModelError(
            "the model is quantised: there is nothing to prune",
            where=str(analysis.model.path),
            why=f"its layers are {', '.join(layers)}",
            hint="prune the float model, then quantise the result",
        )
    reasons = knapsack.holders(trace, knapsack.PruningRules())
    raise ModelError(
        "nothing can be pruned",
        where=str(analysis.model.path),
        why="; ".join(reasons) or "it has no layer with a constant weight",
        hint="`onnxprune inspect` lists every reason",
    )


def removed(analysis: Analysis, keep: BoolArray, original: Analysis | None = None) -> tuple[float, float]:
    """Return the shares of FLOPs and of parameters that are gone, of the model or of the original that it is another form of."""
    original = original or analysis
    whole, _ = original.cost.totals(np.ones(original.trace.n_channels, dtype=bool))
    macs, params = analysis.cost.totals(keep)
    before = original.model.params
    return 1 - macs / whole if whole else 0.0, 1 - params / before if before else 0.0


def layers_of(analysis: Analysis, keep: BoolArray, original: Analysis | None = None) -> tuple[Layer, ...]:
    """Return every layer with a weight, before and after.

    Where layers were given another form, `original` says what they were: one that became two is there twice, the new one with nothing
    before; one that is gone has nothing after.
    """
    original = original or analysis
    before = {layer.label: layer for layer in original.cost.layers(np.ones(original.trace.n_channels, dtype=bool))}
    after = {layer.label: layer for layer in analysis.cost.layers(keep)}
    none = LayerCost("", "", 0, 0, 0)
    found = []
    for label in _in_order(list(before), list(after)):
        a, b = before.get(label, none), after.get(label, none)
        found.append(Layer(label, a.op or b.op, a.channels, b.channels, a.macs, b.macs, a.params, b.params))
    return tuple(found)


def _in_order(before: list[str], after: list[str]) -> list[str]:
    """Return all labels: those of the result in its order, and what is gone behind what was before it."""
    there = set(after)
    behind: dict[str, list[str]] = {}
    last = ""
    for label in before:
        if label in there:
            last = label
        else:
            behind.setdefault(last, []).append(label)
    return [*behind.get("", []), *(name for label in after for name in (label, *behind.get(label, [])))]


def pinned_of(trace: Trace) -> tuple[tuple[str, str, int], ...]:
    """Return (reason, node, number of channels) of everything that has to stay."""
    return tuple((pin.reason, pin.node, int(pin.channels.size)) for pin in trace.pins)


def versions() -> dict[str, str]:
    """Return the versions that a report names."""
    return {
        "onnxprune": importlib.metadata.version("onnxprune"),
        "onnxruntime": ORT_VERSION,
        "onnx": onnx.__version__,
    }


def inspect(analysis: Analysis) -> Inspection:
    """Return what `inspect` shows."""
    everything = np.ones(analysis.trace.n_channels, dtype=bool)
    macs, _ = analysis.cost.totals(everything)
    shapes = {name: list(shape) for name, shape in analysis.trace.input_shapes.items()}
    return Inspection(
        model=str(analysis.model.path),
        sha256=analysis.model.digest,
        size=analysis.model.size,
        params=analysis.model.params,
        macs=macs,
        prunable_share=analysis.cost.prunable_share(),
        layers=analysis.cost.layers(everything),
        trace=analysis.trace,
        held=_held(analysis),
        inputs=shapes,
        notes=analysis.model.notes,
        provenance={
            entry.key: entry.value
            for entry in analysis.model.header.metadata_props
            if entry.key.startswith(models.PROVENANCE)
        },
    )


def _held(analysis: Analysis) -> tuple[Held, ...]:
    """Return what each kind of pin holds, dearest first."""
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
        found.append(Held(op, reason, len({pin.node for pin in pins}), int(channels.size), share))
    return tuple(sorted(found, key=lambda held: -held.share))

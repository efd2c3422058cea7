"""Repair of a pruned model on random calibration samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.calibration.batches import Calibration
from onnxprune.calibration.capture import ActivationStore
from onnxprune.calibration.workspace import Workspace
from onnxprune.data.dataset import load_data
from onnxprune.graph.model import Model, inputs_of
from onnxprune.repair.least_squares import RepairTask, repair
from onnxprune.runtime.session import Feeds, open_session, run_batch
from onnxprune.surgery import channels as rewrite
from onnxprune.types import BoolArray, Repaired, Trace

Array = np.ndarray[Any, Any]


@dataclass
class Case:
    """A model, what goes, and what comes of it."""

    original: Model
    trace: Trace
    keep: BoolArray
    pruned: Model
    repaired: Model
    layers: tuple[Repaired, ...]

    def of(self, label: str) -> Repaired:
        return next(layer for layer in self.layers if layer.label == label)


def inputs(model: Model, batch: int, seed: int) -> Feeds:
    return model.signature.random_feeds(model.header, batch, seed)


def run(model: Model, feeds: Feeds) -> list[Array]:
    return run_batch(open_session(model.to_proto()), feeds)


def repaired(
    model: Model,
    trace: Trace,
    keep: BoolArray,
    n: int = 48,
    *,
    budget: float = 1e9,
    memory: float = 1e9,
    samples: int = 10_000,
    only_bias: bool = False,
    seed: int = 0,
    **how: Any,
) -> Case:
    pruned = rewrite.delete(model, trace, keep)
    fixed = inputs_of(model)[0].shape[0]
    batches = [inputs(model, n, 7)] if fixed is None else [inputs(model, 1, 7 + k) for k in range(n)]
    feeds = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    calibration = Calibration.of(load_data(feeds, inputs_of(model)), samples, seed=seed)
    store = ActivationStore(budget)
    task = RepairTask(model, pruned, trace, keep, **how)
    result, layers = repair(task, Workspace(calibration, store, memory), only_bias=only_bias)
    assert store.held == 0  # nothing is left behind
    store.close()
    return Case(model, trace, keep, pruned, result, layers)

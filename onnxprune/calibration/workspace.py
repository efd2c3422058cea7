"""The samples a run looks at, and where what it sees of them is kept."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from onnxprune.calibration.batches import AIM, AUTOMATIC, ENOUGH, Calibration, is_enlarged_data
from onnxprune.calibration.capture import ActivationStore
from onnxprune.data.dataset import Data, DataLike, inputs_of, load_data
from onnxprune.data.preprocess import Preprocess
from onnxprune.data.synthetic import NAME as GENERATED_NAME
from onnxprune.data.synthetic import generate, why_not_generated
from onnxprune.graph.analysis import Analysis, analysed
from onnxprune.graph.io import load
from onnxprune.graph.readers import readers_of
from onnxprune.options import Options, ResolvedOptions
from onnxprune.progress import ProgressCallback

GENERATED = "generated"
"""What `--data` takes for inputs that are made up."""
DATA_FREE = "data-free: inputs were generated, no sample of the real ones was seen"
STORED, SUMS = 0.4, 0.3
"""Shares of `--memory` for activations that are kept, and for the sums of one layer; the rest is for what onnxruntime and numpy take."""


@dataclass(frozen=True)
class Workspace:
    """Where calibrated stages keep what they need.

    Attributes:
        calibration: the samples.
        store: activations, in memory or in files.
        memory: bytes for the sums of one layer.
        notes: what a reader should know of the samples.
    """

    calibration: Calibration
    store: ActivationStore
    memory: float
    notes: tuple[str, ...] = ()

    @property
    def plain(self) -> Workspace:
        """The same without augmented samples."""
        return replace(self, calibration=self.calibration.plain)


@contextlib.contextmanager
def workspace_for(data: Data, analysis: Analysis, options: ResolvedOptions) -> Iterator[Workspace]:
    """Prepare calibration on some data, and clean up after it."""
    notes = []
    if data.name == GENERATED_NAME:
        notes.append(DATA_FREE)
    elif len(data) < ENOUGH:
        notes.append(f"{len(data)} samples are few to calibrate on: aim for {AIM}")
    kinds = options.augment
    if kinds is None:
        kinds, reasons = (), []
        if data.name != GENERATED_NAME and _is_short(analysis, min(len(data), options.samples)):
            kinds = AUTOMATIC
            reasons.append("most parameters lie in layers with fewer rows than unknowns")
        if data.name != GENERATED_NAME and is_enlarged_data(data):
            kinds = (*AUTOMATIC, "detail")
            reasons.append("the images look enlarged, sharp ones would fare worse")
        if kinds:
            notes.append(
                f"{', and '.join(reasons)}: samples were augmented ({', '.join(kinds)}); --augment none leaves it"
            )
    store = ActivationStore(options.memory * STORED)
    try:
        calibration = Calibration.of(data, options.samples, kinds, options.seed)
        yield Workspace(calibration, store, options.memory * SUMS, tuple(notes))
    finally:
        store.close()


def _is_short(analysis: Analysis, samples: int) -> bool:
    """Tell whether layers with more unknowns per output than they will see rows hold most of the parameters."""
    trace = analysis.trace
    found = {r.node: r for readers in readers_of(analysis.model, trace).values() for r in readers}
    short = 0
    for reader in found.values():
        shape = trace.shapes[reader.layer.node.outputs[0].name]
        rows = samples * math.prod(shape) // shape[reader.layer.channel_axis] / max(1, shape[0])
        short += reader.layer.values.size if rows < reader.channels.shape[1] else 0
    return short > analysis.model.params / 2


def is_generated(data: object) -> bool:
    """Tell whether inputs are to be made up."""
    return isinstance(data, str | os.PathLike) and os.fspath(data) == GENERATED and not os.path.exists(data)


def opened(
    model: str | os.PathLike[str],
    options: Options,
    data: DataLike | None,
    preprocess: Preprocess | str | None,
    on_stage: ProgressCallback,
    structure: Mapping[str, Any] | None = None,
) -> tuple[Analysis, Data | None, ResolvedOptions]:
    """Load a model and its data, and resolve the options: the one place where `auto` becomes a decision.

    Without data inputs are generated, except for `repair="none"`. Where they cannot be, the model gets a note that says why, and
    `repair="auto"` is `none`. `structure` has options that a plan decides.
    """
    on_stage("load", None)
    loaded = load(model)
    specs = inputs_of(loaded.header)
    given = None if data is None or is_generated(data) else load_data(data, specs, preprocess)
    made = given is None and (data is not None or options.repair != "none")
    if made and data is None and (reason := why_not_generated(specs)):
        made = False
        loaded = replace(
            loaded, notes=(*loaded.notes, f"no inputs were generated for the repair: {reason}; give --data")
        )
    resolved = replace(options.resolved(given is not None or made), **(structure or {}))
    analysis = analysed(loaded, resolved, None if given is None else given.shapes())
    if made:
        given = generate(specs, analysis.trace.input_shapes, options.samples, options.seed)
    return analysis, given, resolved

"""The calibration samples of a run, the store of their activations, and the options that depend on the data."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.calibration.batches import AIM, AUTOMATIC, ENOUGH, Calibration, has_images, is_enlarged_data
from onnxprune.calibration.capture import ActivationStore
from onnxprune.calibration.stage_results import StageResults
from onnxprune.data.dataset import Data, DataLike, hint_of, load_data
from onnxprune.data.preprocess import Preprocess
from onnxprune.data.synthetic import NAME as GENERATED_NAME
from onnxprune.data.synthetic import generate, why_not_generated
from onnxprune.graph.analysis import Analysis, analysed
from onnxprune.graph.io import load
from onnxprune.graph.model import inputs_of
from onnxprune.graph.readers import readers_of
from onnxprune.metrics.distances import AUTO, takes_class_scores
from onnxprune.options import Options, ResolvedOptions
from onnxprune.progress import ProgressCallback
from onnxprune.runtime.memory_limit import CALIBRATED, PRUNED
from onnxprune.runtime.session import Feeds

GENERATED = "generated"
"""Value of `--data` for generated inputs."""
DATA_FREE = "data-free: inputs were generated, no real sample was used"
STORED, SUMS, RUN = 0.2, 0.25, 0.25
"""Shares of `--memory` for stored activations, for the sums of one layer, and for the activations of a batch, at most. The sums have
two copies beside them where they are solved; the first and the last share are of what the samples leave."""
LEAST_ROOM = 0.25
"""Share of `--memory` that remains beside samples that are held, at least."""
ITEMSIZE = 4
"""Bytes of an element."""
ALIVE = 3
"""Tensors as large as the largest one that are alive at once, about."""


@dataclass(frozen=True)
class Workspace:
    """Calibration samples and the memory for their statistics.

    Attributes:
        calibration: samples.
        store: store of activations.
        memory: bytes for the sums of one layer.
        notes: notes on the samples, for the report.
        distance: kind of the distance of outputs by which losses are measured, of `onnxprune.metrics.distances`.
        results: results of long steps, which a run that broke off goes on from.
    """

    calibration: Calibration
    store: ActivationStore
    memory: float
    notes: tuple[str, ...] = ()
    distance: str = AUTO
    results: StageResults = field(default_factory=StageResults)

    @property
    def some(self) -> Feeds:
        """The first batch, without augmentation."""
        return next(iter(self.calibration.plain))

    @property
    def identity(self) -> tuple[Any, ...]:
        """What tells these samples from others of the same run, for `StageResults.of`."""
        return self.calibration.kinds, len(self.calibration.data), self.calibration.seed, self.distance

    @property
    def plain(self) -> Workspace:
        """The workspace without augmented samples."""
        return replace(self, calibration=self.calibration.plain)


@contextlib.contextmanager
def workspace_for(
    data: Data,
    analysis: Analysis,
    options: ResolvedOptions,
    distance: str = AUTO,
    results: StageResults | None = None,
) -> Iterator[Workspace]:
    """Yield a workspace for some data, with the augmentation that `auto` stands for; delete its files at the end.

    Raises:
        OptionError: the kind of the distance is unknown.
    """
    takes_class_scores(distance)
    notes = []
    if data.name == GENERATED_NAME:
        notes.append(DATA_FREE)
    elif len(data) < ENOUGH:
        notes.append(f"{len(data)} samples are few to calibrate on: aim for {AIM}")
    kinds = options.augment
    if kinds is None:
        kinds, reasons = (), []
        if has_images(data) and _is_short(analysis, min(len(data), options.samples)):
            kinds = AUTOMATIC
            reasons.append("most parameters lie in layers with fewer rows than unknowns")
        if has_images(data) and is_enlarged_data(data):
            kinds = (*AUTOMATIC, "detail")
            reasons.append("the images look enlarged, and sharp images would lose more")
        if kinds:
            notes.append(
                f"{', and '.join(reasons)}: samples were augmented ({', '.join(kinds)}); --augment none turns it off"
            )
    room = room_beside(data, options.memory)
    store = ActivationStore(room * STORED)
    try:
        most = int(RUN * room // (ALIVE * ITEMSIZE * largest_activation(analysis)))
        calibration = Calibration.of(data, options.samples, kinds, options.seed, most)
        yield Workspace(calibration, store, options.memory * SUMS, tuple(notes), distance, results or StageResults())
    finally:
        store.close()


def room_beside(data: Data | None, memory: float) -> float:
    """Return the bytes that samples leave of `--memory`: those of arrays count, images are read when they are needed."""
    arrays = () if data is None else [value for value in data.arrays.values() if isinstance(value, np.ndarray)]
    return max(LEAST_ROOM * memory, memory - sum(value.nbytes for value in arrays))


def largest_activation(analysis: Analysis) -> float:
    """Return the elements of the largest tensor of a model, per sample."""
    trace = analysis.trace
    return max(1.0, max((math.prod(shape) for shape in trace.shapes.values()), default=1) / trace.samples)


def _is_short(analysis: Analysis, samples: int) -> bool:
    """Tell whether layers with fewer rows than unknowns per output hold most of the parameters."""
    trace = analysis.trace
    found = {r.node: r for readers in readers_of(analysis.model, trace).values() for r in readers}
    short = 0
    for reader in found.values():
        shape = trace.shapes[reader.layer.node.outputs[0].name]
        rows = samples * math.prod(shape) // shape[reader.layer.channel_axis] / trace.samples
        short += reader.layer.values.size if rows < reader.channels.shape[1] else 0
    return short > analysis.model.params / 2


def is_generated(data: object) -> bool:
    """Tell whether `--data generated` is given, and no file has that name."""
    return isinstance(data, str | os.PathLike) and os.fspath(data) == GENERATED and not os.path.exists(data)


def opened(
    model: str | os.PathLike[str],
    options: Options,
    data: DataLike | None,
    preprocess: Preprocess | str | None,
    on_stage: ProgressCallback,
    structure: Mapping[str, Any] | None = None,
    *,
    labels: Any = None,
    task: str | None = None,
) -> tuple[Analysis, Data | None, ResolvedOptions]:
    """Load a model and its data, and resolve `auto` in the options; `structure` holds options that a plan decides.

    Without data, inputs are generated unless `repair="none"`. Where they cannot be, a note of the model says why, and
    `repair="auto"` becomes `none`.
    """
    on_stage("load", None)
    stored = None if is_generated(data) else data
    sampled = data is not None or options.repair != "none"
    needs = {"factor": CALIBRATED, "memory": options.memory} if sampled else {"factor": PRUNED}
    loaded = load(model, options.shape, hint_of(stored, preprocess), **needs)
    specs = inputs_of(loaded)
    given = None if stored is None else load_data(stored, specs, preprocess, labels, task)
    made = given is None and sampled
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
